//! `reproduce`: rebuilds a written file from its recorded settings and compares the bytes.

use serde::Serialize;

use crate::cli::ReproduceArgs;
use crate::cli::commands::find;
use crate::cli::commands::inject::Checked;
use crate::gguf::{AtomicModel, Gguf};
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::facts::file_facts;
use crate::pipeline::inject::Job;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::provenance::Provenance;
use crate::pipeline::reproduce::{ReproduceError, compare};
use crate::pipeline::run_facts::{Difference, RunFacts};
use crate::pipeline::session::{self, Session};

/// The output of `--json`.
#[derive(Serialize)]
struct Told<'a> {
    file: &'a str,
    sha256: &'a str,
    model: &'a str,
    seconds: f64,
    /// What changed since the file was written, without affecting its bytes.
    differences: &'a [Difference],
}

/// Rebuilds the file under a temporary name beside it, compares the hashes, and removes the copy.
///
/// # Errors
/// Returns [`Error::Reproduce`] if the file does not record how it was made, was made from other inputs, or has
/// different bytes.
pub fn run(mut args: ReproduceArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let start = std::time::Instant::now();
    let path = find(&args.file, printer)?.path;
    let gguf = Gguf::open(&path)?;
    let untold = || ReproduceError::Untold { path: path.clone() };
    let then = Provenance::read(&gguf).and_then(|provenance| provenance.run).ok_or_else(untold)?;
    args.run.threads.get_or_insert(then.search.threads);
    let source = find(&args.model, printer)?;
    let options = then.repeat(InjectOptions::for_reproduction(args, &path, source)?)?;
    session::devices(&options.run, printer)?;
    let Checked { opened, prompts, taken, options, .. } = &Checked::new(&options, printer)?;
    let input = file_facts(&opened.gguf, printer)?;
    let taken = taken.as_ref();
    let session = Session { opened, prompts, options, printer };
    let now = RunFacts::of(session, taken, &input)?;
    let differences = compare(&path, &then, &now)?;
    for Difference { what, then, now } in &differences {
        printer.warn(format!("{what} was {then} when the file was written, now {now}: the bytes may differ"));
    }
    let original = file_facts(&gguf, printer)?;
    let file = AtomicModel::create(&options.write.output, &opened.gguf, true)?;
    // The recorded facts, not the current ones: they are part of the file, so a reported difference would change its
    // bytes.
    let job = Job { session, taken, judge: None, facts: &then, seen: None };
    let made = job.rehearse(&input, file)?;
    if made.sha256 != original.sha256 {
        let (expected, found) = (original.sha256, made.sha256);
        return Err(ReproduceError::Differs { path, expected, found, differences }.into());
    }
    let seconds = start.elapsed().as_secs_f64();
    if options.report.json {
        let (file, sha256, model) = (&original.path, &original.sha256, &input.path);
        printer.json(&Told { file, sha256, model, seconds, differences: &differences });
    }
    printer.say(format!(
        "rebuilt {} from {} in {seconds:.0} s: identical bytes, sha256 {}",
        original.path, input.path, original.sha256
    ));
    Ok(ExitStatus::Done)
}
