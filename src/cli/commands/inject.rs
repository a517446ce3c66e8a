//! `inject`: from a model to a safer copy of it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::arch::plan::Plan;
use crate::cli::commands::ollama::{self, Registration};
use crate::cli::options::same_file;
use crate::eval::prompts::PromptSet;
use crate::gguf::AtomicFile;
use crate::gguf::in_place::journal_path;
use crate::gguf::{self, Gguf, ShardName};
use crate::imatrix::Imatrix;
use crate::method::edit::Method;
use crate::method::requant::Requant;
use crate::method::search::journal::Journal;
use crate::output::{Printer, percent, shell};
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::facts::{file_facts, load_prompts};
use crate::pipeline::inject::{Done, Job, Target, modified};
use crate::pipeline::options::InjectOptions;
use crate::pipeline::provenance::Provenance;
use crate::pipeline::run_facts::RunFacts;
use crate::pipeline::session::{Opened, Session};
use crate::pipeline::stored::Taken;
use crate::pipeline::{dry_run, journal, outputs, stored, types};
use crate::report::Report;
use crate::util::hint::Hint;

/// Runs the injection.
///
/// # Errors
/// [`Error`]; then nothing bears the output's name that did not before.
pub fn run(options: &InjectOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let start = Instant::now();
    let Checked { opened, prompts, taken, options } = &Checked::new(options, printer)?;
    let registration = Registration::prepare(options, opened.gguf.n_files(), printer)?;
    if options.dry_run {
        let output = Some(&options.output).filter(|_| !options.in_place);
        let all = [&options.report, &options.html, &options.save_adapter].into_iter().flatten().chain(output);
        outputs::look(all.map(PathBuf::as_path), options.overwrite)?;
        registration.announce(printer);
        dry_run::run(opened, options, prompts, printer);
        return Ok(ExitStatus::Done);
    }
    // Taken now, so that an output that cannot be written is known before the work.
    let target = Target::of(options, &opened.gguf)?;
    let options = &InjectOptions { output: target.path(options).into(), ..options.clone() };
    let side_files = [&options.report, &options.html, &options.save_adapter];
    let side_files = side_files.into_iter().flatten().map(PathBuf::as_path).chain(registration.modelfile());
    outputs::check(side_files, options.overwrite)?;
    if taken.is_none() {
        outputs::check([journal::path(options).as_path()], true)?;
    }

    let seen = modified(&opened.gguf);
    let input = file_facts(&opened.gguf, printer)?;
    let taken = taken.as_ref();
    let session = Session { opened, prompts, options, printer };
    let facts = &RunFacts::of(session, taken, &input)?;
    let mut journal = match taken {
        None => journal::open(facts.search.clone(), options, printer)?,
        Some(_) => Journal::off(),
    };
    let job = Job { session, taken, facts, seen };
    let done = job.run(input, target, &mut journal, start);
    journal::close(journal, done.is_ok(), printer);
    let done = done?;
    let status = finish(&done, options, printer)?;
    registration.finish(&done.report.output.sha256, status, options.overwrite, printer)?;
    Ok(status)
}

/// A model and what it is edited with, after all that can be checked without running it.
pub(super) struct Checked {
    pub opened: Opened,
    pub prompts: PromptSet,
    /// The stored edit that is applied in place of a search.
    pub taken: Option<Taken>,
    /// With the method that is taken.
    pub options: InjectOptions,
}

impl Checked {
    /// Checks them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(options: &InjectOptions, printer: &Printer) -> Result<Self, Error> {
        let opened = Opened::new(&options.source.path, options.run.patches.as_deref())?;
        check_input(&opened, options, printer)?;
        let prompts = load_prompts(&options.prompts, printer)?;
        let other_weights = options.allow_other_weights;
        let taken = options.edit.as_deref().map(|path| stored::take(path, &opened, other_weights, printer));
        let taken = taken.transpose()?;
        match options.in_place {
            true => gguf::in_place::refuse_split(&opened.gguf)?,
            false => refuse_input_as_output(&opened.gguf, &options.output)?,
        }
        // The edit of a file keeps the method by which it was found.
        let options = match &taken {
            Some(taken) => options.with_method(taken.edit.facts.method)?,
            None => with_method(options, &opened.plan)?,
        };
        types::check(&opened, &options, taken.as_ref())?;
        Ok(Self { opened, prompts, taken, options })
    }
}

/// The options with the method that is taken where none was asked for: detectors where the model has a network that every
/// token passes, else linear gates.
pub(super) fn with_method(options: &InjectOptions, plan: &Plan) -> Result<InjectOptions, Error> {
    let method = match options.asked_method {
        None if plan.ffns.is_empty() => Method::Contrast,
        None => Method::Detector,
        Some(Method::Detector) if plan.ffns.is_empty() => {
            return Err(Error::NoNetwork { architecture: plan.architecture.clone(), tried: 0 });
        }
        Some(method) => method,
    };
    options.with_method(method)
}

/// The options know of one file; a split model has more that must not be written to.
fn refuse_input_as_output(gguf: &Gguf, output: &Path) -> Result<(), Error> {
    let Some(name) = ShardName::parse(output).filter(|_| gguf.n_files() > 1) else { return Ok(()) };
    let is_input = |path: &Path| gguf.files().any(|file| same_file(path, &file.path));
    match (0..name.count).map(|no| name.path(no)).find(|path| is_input(path)) {
        None => Ok(()),
        Some(path) => Err(Error::Option {
            flag: "--output",
            problem: format!("{} is a file of the input itself", path.display()),
            hint: Some("give another name with -o; the input is never overwritten".into()),
        }),
    }
}

/// What can be refused before the model is loaded.
pub(super) fn check_input(opened: &Opened, options: &InjectOptions, printer: &Printer) -> Result<(), Error> {
    opened.gguf.refuse_siblings()?;
    opened.template().map_err(|error| ollama::explain(error, &options.source))?;
    for warning in &opened.plan.warnings {
        printer.warn(warning.to_string());
        if let Some(hint) = warning.hint() {
            printer.say(format!("hint: {hint}"));
        }
    }
    // Read again when it is needed; what is wrong with it is known before the work.
    options.imatrix.as_deref().map(Imatrix::open).transpose()?;
    match Provenance::read(&opened.gguf) {
        Some(p) if !options.allow.injected => {
            Err(Error::Injected { path: options.source.path.clone(), size: p.size(), version: p.version })
        }
        _ => Ok(()),
    }
}

fn tell_where(report: &Report, options: &InjectOptions, printer: &Printer) {
    let (path, seconds) = (options.output.display(), report.seconds);
    if !options.in_place {
        return printer.say(format!("wrote {path} in {seconds:.0} s"));
    }
    let journal = journal_path(&options.source.path);
    let bytes = std::fs::metadata(&journal).map_or(0, |found| found.len());
    printer.say(format!(
        "changed {path} in place in {seconds:.0} s; `rosi-gguf undo {}` puts the original back from {} ({} MB)",
        shell(&options.output),
        journal.display(),
        bytes / 1_000_000
    ));
}

/// Prints, writes the side files, and says how it ended.
fn finish(done: &Done, options: &InjectOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let report = &done.report;
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    if let Some(path) = &options.report {
        AtomicFile::write_whole(path, json.as_bytes(), options.overwrite)?;
    }
    if let Some(path) = &options.html {
        AtomicFile::write_whole(path, report.page()?.as_bytes(), options.overwrite)?;
    }
    if let (Some(path), Some(adapter)) = (&options.save_adapter, &done.adapter) {
        AtomicFile::write_whole(path, adapter, options.overwrite)?;
    }
    printer.say(report.summary());
    printer.detail(report.times());
    tell_where(report, options, printer);
    if let Requant::Promote(ggml_type) = options.requant {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (before, after) = (megabytes(report.input.bytes), megabytes(report.output.bytes));
        printer.say(format!("edited tensors are {ggml_type}: {before:.0} MB became {after:.0} MB"));
    }
    if options.json {
        printer.json_text(&json);
    }
    if report.survived() {
        return Ok(ExitStatus::Done);
    }
    printer.warn(format!(
        "{} of the edit is in the written file, with a cosine of {:.3}: it is not the exact edit above",
        percent(report.verification.gain.unwrap_or(0.0)),
        report.verification.cosine.unwrap_or(0.0)
    ));
    printer.warn(match options.requant {
        Requant::Nearest => "rounding to nearest loses small edits: leave out --requant nearest",
        _ => "the types of these tensors leave no room for it: give them a wider one with --promote Q8_0, or serve the base with the exact edit: --save-adapter LORA.gguf and `llama-server --lora LORA.gguf`",
    });
    Ok(ExitStatus::NotVerified)
}
