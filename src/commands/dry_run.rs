//! `inject --dry-run`: what would be written, and the memory that takes.

use crate::commands::estimate::Estimate;
use crate::commands::inject::prompt_facts;
use crate::commands::session::Opened;
use crate::gguf::in_place::journal_path;
use crate::options::InjectOptions;
use crate::output::Printer;
use crate::prompts::PromptSet;

/// Tells it.
pub fn run(opened: &Opened, options: &InjectOptions, prompts: &PromptSet, printer: &Printer) {
    let plan = &opened.plan;
    let edited: u64 =
        plan.writers.iter().filter_map(|w| opened.gguf.tensor(&w.tensor)).map(|t| t.n_bytes()).sum();
    let estimate = Estimate::of(opened, options, prompts);
    let facts = serde_json::json!({
        "input": opened.gguf.path.display().to_string(),
        "output": options.output.display().to_string(),
        "in_place": options.in_place,
        "architecture": plan.architecture,
        "method": options.method.name(),
        "writers": plan.writers.iter().map(|w| &w.tensor).collect::<Vec<_>>(),
        "edited_bytes": edited,
        "written_bytes": opened.gguf.total_len(),
        "files": opened.gguf.n_files(),
        "write_memory": write_memory(opened, options),
        "mapped_bytes": opened.gguf.total_len(),
        "prompts": prompt_facts(prompts),
        "estimate": estimate,
    });
    if options.json {
        printer.data(serde_json::to_string_pretty(&facts).unwrap_or_default());
    }
    printer.say(format!(
        "would edit {} matrices ({} MB) of {} and {} in at most {} MB of memory; nothing was run or written",
        plan.writers.len(),
        edited / 1_000_000,
        opened.gguf.path.display(),
        if options.in_place {
            format!("keep the original ones in {}", journal_path(&options.source.path).display())
        } else {
            format!("write {} ({} MB)", options.output.display(), opened.gguf.total_len() / 1_000_000)
        },
        write_memory(opened, options) / 1_000_000
    ));
    printer.say(format!(
        "it would decode some {} thousand tokens: about {} on {} CPU threads with AVX-512, up to twice that without",
        estimate.tokens().div_ceil(1000),
        duration(estimate.seconds),
        options.run.threads
    ));
}

/// `40 s`, `9 min`, `3.2 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Bytes that writing and verifying hold at most: the largest writer as it was and as it becomes, and what
/// does not grow with the model (buffers, decoded runs of rows of each thread). Running the model comes
/// on top: llama.cpp maps its file (`mapped_bytes`) and allocates its context.
fn write_memory(opened: &Opened, options: &InjectOptions) -> u64 {
    const BUFFERS: u64 = 64 << 20;
    let writers = opened.plan.writers.iter().filter_map(|w| opened.gguf.tensor(&w.tensor));
    let both = writers.map(|t| {
        let row = options.requant.type_for(t.ggml_type).row_bytes(t.ne[0]).unwrap_or_else(|| t.row_bytes());
        t.n_bytes().saturating_add(row.saturating_mul(t.n_rows()))
    });
    both.max().unwrap_or(0).saturating_add(BUFFERS)
}
