//! The journal of a command's search: `NAME.search.jsonl` beside its output.

use std::path::PathBuf;

use crate::eval::prompts::PromptSet;
use crate::gguf::{LockFile, sha256_hex};
use crate::llama::{devices, llama_version, matmul};
use crate::method::edit::Method;
use crate::method::search::journal::{Head, Journal};
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::Opened;
use crate::report::FileFacts;

/// Opens the journal of the search described by `head`: the existing one with `--resume`, otherwise a new one.
///
/// # Errors
/// Returns [`Error::Journal`] if the journal belongs to another search, [`Error::Lock`] if another run is using it.
pub fn open(head: Head, options: &InjectOptions, printer: &Printer) -> Result<Journal, Error> {
    let path = path(options);
    let lock = LockFile::take(&path)?;
    if !options.resume {
        return Ok(Journal::begin(&path, head).locked(lock));
    }
    let journal = Journal::resume(&path, head)?.locked(lock);
    printer.say(match journal.len() {
        0 => format!("{} is empty: starting the search from the beginning", path.display()),
        n => format!("reusing {n} steps of the search from {}", path.display()),
    });
    Ok(journal)
}

/// Returns everything that the measurements of a search depend on.
pub fn head(opened: &Opened, options: &InjectOptions, prompts: &PromptSet, input: &FileFacts) -> Head {
    let writers: Vec<&str> = opened.plan.writers.iter().map(|w| w.tensor.as_str()).collect();
    let offload = &options.run.offload;
    Head {
        version: env!("CARGO_PKG_VERSION").into(),
        llama_cpp: llama_version(),
        cpu: format!("{} | {}", devices::cpu_features(), matmul::kernel()),
        input_sha256: input.sha256.clone(),
        prompts_sha256: prompts.sha256(),
        writers_sha256: sha256_hex(writers.join("\n").as_bytes()),
        method: options.asked_method.map_or("auto", Method::name).into(),
        system_prompt: options.learn.system_prompt.identity(),
        contexts_sha256: options.learn.contexts_sha256(),
        thinking: options.learn.thinking.asked.name().into(),
        think: options.learn.thinking.budget,
        direction_source: options.learn.direction_source,
        strength: options.search.strength,
        max_kl: options.search.max_kl,
        memory: options.learn.memory,
        threads: options.run.threads,
        gpu_layers: devices::n_layers(offload),
        devices: devices::in_use(offload),
        flash_attn: offload.flash_attn,
    }
}

/// Returns the path of the journal: the output's with the extension `.search.jsonl`.
pub fn path(options: &InjectOptions) -> PathBuf {
    options.write.output.with_extension("search.jsonl")
}

/// Removes the journal of a finished search; reports the path of an unfinished one.
pub fn close(journal: Journal, done: bool, printer: &Printer) {
    match journal.path() {
        _ if done => journal.remove(),
        Some(path) => {
            let path = path.display();
            printer.say(format!("search progress is kept in {path}: add --resume to continue it"));
        }
        None => {}
    }
}
