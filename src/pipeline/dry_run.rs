//! `inject --dry-run`: what a run would write, and the memory and time it would take.

use crate::arch::plan::Plan;
use crate::eval::prompts::PromptSet;
use crate::gguf::in_place::journal_path;
use crate::llama::ContextMemory;
use crate::method::edit::Method;
use crate::method::requant::Requant;
use crate::output::Printer;
use crate::pipeline::detectors;
use crate::pipeline::estimate::Estimate;
use crate::pipeline::facts::prompt_facts;
use crate::pipeline::features;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::Opened;

/// Prints the plan of the run, without running the model or writing a file.
pub fn run(opened: &Opened, options: &InjectOptions, prompts: &PromptSet, printer: &Printer) {
    let plan = &opened.plan;
    let names = edited(plan, options);
    let edited: u64 = names.iter().filter_map(|name| opened.gguf.tensor(name)).map(|t| t.n_bytes()).sum();
    let estimate = Estimate::of(opened, options, prompts);
    let context = ContextMemory::of(&opened.gguf);
    let inputs = match options.method {
        _ if options.edit.is_some() => 0,
        Method::Detector => detectors::inputs_memory(plan, options.search.layer, prompts),
        Method::Contrast | Method::Published => features::inputs_memory(plan, options, prompts),
    };
    let facts = serde_json::json!({
        "input": opened.gguf.path.display().to_string(),
        "output": options.write.output.display().to_string(),
        "in_place": options.write.in_place,
        "architecture": plan.architecture,
        "method": options.method.name(),
        "tensors": names,
        "edited_bytes": edited,
        "written_bytes": opened.gguf.total_len(),
        "files": opened.gguf.n_files(),
        "write_memory": write_memory(opened, options),
        "mapped_bytes": opened.gguf.total_len(),
        "context_memory": context,
        "inputs_memory": inputs,
        "prompts": prompt_facts(prompts),
        "estimate": estimate,
    });
    if options.report.json {
        printer.json(&facts);
    }
    printer.say(format!(
        "would edit {} matrices ({} MB) of {} and {}, using at most {} MB of memory; \
         nothing was run or written",
        names.len(),
        edited / 1_000_000,
        opened.gguf.path.display(),
        if options.write.in_place {
            format!("keep the originals in {}", journal_path(&options.source.path).display())
        } else {
            format!("write {} ({} MB)", options.write.output.display(), opened.gguf.total_len() / 1_000_000)
        },
        write_memory(opened, options) / 1_000_000
    ));
    printer.say(format!(
        "running the model takes about {} MB (cache {}, scratch {}, logits {}) on top of the mapped file; \
         training inputs take {} MB",
        context.total() / 1_000_000,
        context.cache / 1_000_000,
        context.compute / 1_000_000,
        context.output / 1_000_000,
        inputs / 1_000_000,
    ));
    printer.say(format!(
        "would decode about {} thousand tokens: about {} (±50 %) on {} threads of this CPU",
        estimate.tokens().div_ceil(1000),
        duration(estimate.seconds),
        options.run.threads
    ));
}

/// Formats a duration: `40 s`, `9 min`, `3.2 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Returns the peak bytes of writing and verifying, including the controls, which are requantized to nearest.
/// Excludes running the model: llama.cpp maps its file (`mapped_bytes`) and allocates its context (`context_memory`).
fn write_memory(opened: &Opened, options: &InjectOptions) -> u64 {
    let control = (options.report.controls && !options.write.in_place).then_some(Requant::Nearest);
    let control = control.filter(|_| options.method != Method::Detector);
    let names = edited(&opened.plan, options);
    let of = |how: Requant| {
        names.iter().filter_map(|name| opened.gguf.tensor(name)).map(move |t| how.memory(t)).max()
    };
    [Some(options.write.requant), control].into_iter().flatten().filter_map(of).max().unwrap_or(0)
}

/// Returns the names of the tensors that may be edited.
fn edited(plan: &Plan, options: &InjectOptions) -> Vec<String> {
    match options.method {
        Method::Detector => detectors::tensors(plan, options.search.layer),
        Method::Contrast | Method::Published => plan.writers.iter().map(|w| w.tensor.clone()).collect(),
    }
}
