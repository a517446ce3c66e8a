//! A complete run of `inject`, stage by stage, compared with the manual workflow without it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::capture::llama_bench;
use crate::clock::{Spent, time};
use crate::model::{Model, threads};
use crate::{Effort, Failure, table};

/// Runs of a default job for the comparison of CPU time with llama-bench.
const RUNS: usize = 3;
/// Tokens of the CPU time target: a default job should take no longer than llama-bench needs to read as many.
const TOKENS: f64 = 45_000.0;

/// Prints the tables. Does nothing with [`Effort::Short`], since the end-to-end tests run jobs.
pub fn run(effort: Effort) -> Result<(), Failure> {
    if effort == Effort::Short {
        return Ok(());
    }
    effort.models().iter().try_for_each(|name| measure(&Model::named(name)?))
}

fn measure(model: &Model) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let report =
        if options(model).is_empty() { several(model, dir.path())? } else { inject(model, dir.path(), 1)? };
    let stages = report["stages"].as_array().ok_or("the report has no stages")?;
    let total = number(&report["seconds"]);
    let stage = |stage: &Value| {
        let seconds = number(&stage["seconds"]);
        let name = stage["name"].as_str().unwrap_or_default().to_owned();
        vec![name, format!("{seconds:.1}"), format!("{:.0} %", 100.0 * seconds / total)]
    };
    let mut rows: Vec<Vec<String>> = stages.iter().map(stage).collect();
    rows.push(vec!["total".into(), format!("{total:.1}"), String::new()]);
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let (peak, size) = (mib(number(&report["peak_memory"])), mib(model.gguf.file_len as f64));
    let text = format!(
        "`inject {}`{}, {} threads: {total:.0} s, {:.0} CPU seconds, peak memory {peak:.0} MiB; the model \
         has {size:.0} MiB, so {:.0} MiB more. Strength {:.4}, layer {}.",
        model.name(),
        match options(model).join(" ") {
            none if none.is_empty() => " without options".to_owned(),
            some => format!(" with `{some}`"),
        },
        threads(),
        number(&report["cpu_seconds"]),
        peak - size,
        number(&report["edit"]["strength"]),
        number(&report["edit"]["layer"]),
    );
    table::print(&format!("Whole job: {}", model.name()), &text, &["stage", "s", "share"], &rows);
    search(model, &report);
    result(model, &report["scores"]);
    road(model, dir.path(), total)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// Prints the trials up to the choice, and the time that files instead of adapters would have added.
fn search(model: &Model, report: &Value) {
    let none = Vec::new();
    let [probes, trials] = ["probes", "trials"].map(|key| report["search"][key].as_array().unwrap_or(&none));
    let best = report["search"]["best"].as_u64();
    let row = |(i, trial): (usize, &Value)| {
        let score = &trial["score"];
        let total = |kind| score[kind]["refused"]["total"].as_u64().unwrap_or_default();
        vec![
            format!("{}{}", i + 1, if best == Some(i as u64) { " (chosen)" } else { "" }),
            format!("{:.4}", number(&trial["strength"])),
            ["harmful", "harmless", "borderline"].map(total).iter().sum::<u64>().to_string(),
            format!("{:+.3}", number(&trial["utility"])),
        ]
    };
    let rows: Vec<Vec<String>> = trials.iter().enumerate().map(row).collect();
    let stages = report["stages"].as_array().unwrap_or(&none);
    let stage =
        |name: &str| stages.iter().filter(|s| s["name"] == name).map(|s| number(&s["seconds"])).sum::<f64>();
    let edits = probes.len() + trials.len();
    let text = format!(
        "{} candidates compared by first tokens, each at one to three strengths, then these trials. A trial \
         that can no longer be the best is stopped; its utility is an upper bound. The chosen trial is \
         number {} of {}. Files instead of adapters would have added at least {:.0} s to the {:.0} s of the \
         search ({edits} edits to write and load).",
        probes.len(),
        best.map_or("none".into(), |best| (best + 1).to_string()),
        trials.len(),
        edits as f64 * (stage("writing") + stage("loading the model")),
        stage("searching"),
    );
    let header = ["trial", "strength", "prompts", "utility"];
    table::print(&format!("Search trials: {}", model.name()), &text, &header, &rows);
}

/// Prints the scores of the job.
fn result(model: &Model, scores: &Value) {
    let scores = scores.as_object().cloned().unwrap_or_default();
    let share = |tally: &Value| {
        let [count, total] = ["count", "total"].map(|key| tally["refused"][key].as_u64().unwrap_or_default());
        format!("{count} of {total}")
    };
    let row = |(name, score): (&String, &Value)| {
        let kl = format!("{:.4}", score["kl"].as_f64().unwrap_or(f64::NAN));
        let kinds = ["harmful", "harmless", "borderline"].map(|kind| share(&score[kind]));
        [&[name.replace('_', " ")][..], &kinds, &[kl]].concat()
    };
    let rows: Vec<Vec<String>> = scores.iter().filter(|(_, score)| !score.is_null()).map(row).collect();
    let text = "Refused prompts of the report split, which influenced no choice; some controls use every \
                second prompt. KL of the first token on harmless prompts, in nats.";
    let header = ["model", "harmful", "harmless", "borderline", "KL"];
    table::print(&format!("Scores: {}", model.name()), text, &header, &rows);
}

/// Returns extra options for the model. SmolLM2-135M hardly refuses, so `inject` would stop by default, and a large
/// push would lose its existing refusals.
fn options(model: &Model) -> Vec<&'static str> {
    match model.name().starts_with("SmolLM2") {
        false => vec![],
        true => {
            let small = ["--layer", "15", "--trials", "1", "--strength", "0.5"];
            [&["--allow-no-refusal", "--allow-over-limits"][..], &small].concat()
        }
    }
}

/// Runs several jobs, alternating with llama-bench; prints the comparison and returns the report of the job with the
/// median CPU time.
fn several(model: &Model, dir: &Path) -> Result<Value, Failure> {
    let mut reports = Vec::new();
    let mut rows = Vec::new();
    for run in 1..=RUNS {
        let report = inject(model, dir, run)?;
        let [wall, cpu] = ["seconds", "cpu_seconds"].map(|key| number(&report[key]));
        let mut cells = vec![run.to_string(), format!("{wall:.0}"), format!("{cpu:.0}")];
        let (rate, Spent { wall, cpu: bench_cpu }) = time(|| llama_bench(model, Effort::Full))?;
        // The measured time includes loading the model, so only the average number of busy CPUs is used.
        cells.extend(rate.map_or([const { String::new() }; 3], |rate| {
            let prefill = TOKENS / rate * bench_cpu / wall;
            [format!("{rate:.1}"), format!("{prefill:.0}"), format!("{:.2}", cpu / prefill)]
        }));
        rows.push(cells);
        reports.push((cpu, report));
    }
    if reports.iter().any(|(_, report)| report["output"]["sha256"] != reports[0].1["output"]["sha256"]) {
        return Err("runs of the same job wrote different bytes".into());
    }
    let text = format!(
        "`inject` without options, {RUNS} times, with Debian's `llama-bench -p 512` after each run. CPU \
         seconds of llama-bench are for {TOKENS:.0} tokens at its rate. The next table shows the run with \
         the median CPU time."
    );
    let header = ["run", "s", "CPU s", "llama-bench, tokens/s", "CPU s of llama-bench", "ratio"];
    table::print(&format!("Default job and llama-bench: {}", model.name()), &text, &header, &rows);
    reports.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(reports.swap_remove(RUNS / 2).1)
}

/// Returns the report of job number `run`: a stored one, or that of a new run.
fn inject(model: &Model, dir: &Path, run: usize) -> Result<Value, Failure> {
    let name = format!("{}-{run}.json", model.name());
    let kept = std::env::var_os("ROSI_BENCH_REPORTS").map(|folder| Path::new(&folder).join(name));
    if let Some(stored) = kept.as_ref().filter(|path| path.exists()) {
        return Ok(serde_json::from_slice(&std::fs::read(stored)?)?);
    }
    if let Some(folder) = kept.as_deref().and_then(Path::parent) {
        // Fail before the run, which takes minutes.
        std::fs::create_dir_all(folder)?;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_rosi-gguf"));
    command.arg("inject").arg(&model.gguf.path).arg("-o").arg(dir.join("ours.gguf"));
    let output = command.args(["--json", "-q", "--overwrite"]).args(options(model)).output()?;
    if output.stdout.is_empty() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    if let Some(path) = kept {
        std::fs::write(path, &output.stdout)?;
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Measures the manual workflow with Python's gguf and llama-quantize: decode to floats, edit, write, quantize.
fn road(model: &Model, dir: &Path, ours: f64) -> Result<(), Failure> {
    let (Some(python), Some(llama)) =
        (std::env::var_os("ROSI_TEST_PYTHON"), std::env::var_os("ROSI_BENCH_LLAMA"))
    else {
        return Ok(());
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/speed/road.py");
    let ftype = model.gguf.u64("general.file_type").ok_or("the model has no general.file_type")?;
    let output = Command::new(python)
        .arg(script)
        .arg(&model.gguf.path)
        .arg(dir)
        .arg(Path::new(&llama).join("llama-quantize"))
        .args([ftype.to_string(), threads().to_string()])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let steps = told["steps"].as_object().ok_or("road.py printed no steps")?;
    let total: f64 = steps.values().map(number).sum();
    let mut rows: Vec<Vec<String>> =
        steps.iter().map(|(name, value)| vec![name.clone(), format!("{:.1}", number(value))]).collect();
    rows.push(vec!["total".into(), format!("{total:.1}")]);
    let text = format!(
        "One manual edit with a guessed strength: no search, answers, verification or controls, and \
         quantization to nearest, which loses most of the edit ([requant.md](requant.md)). The forward pass \
         is a lower bound: only the matrix products of the blocks, in numpy, for as many tokens as `inject` \
         trains on. Peak memory {:.0} MiB. A complete run of `inject`, which includes all of these steps, \
         takes {:.1} times as long.",
        number(&told["peak_mib"]),
        ours / total,
    );
    table::print(&format!("Manual workflow: {}", model.name()), &text, &["step", "s"], &rows);
    Ok(())
}
