//! `inject`: writes a safer copy of a model.

use std::path::Path;
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
use crate::pipeline::judge::Judge;
use crate::pipeline::options::{InjectOptions, WriteOptions};
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
/// Returns [`Error`] if any stage fails; the output file is then not created or replaced.
pub fn run(options: &InjectOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let start = Instant::now();
    let Checked { opened, prompts, taken, judge, options } = &Checked::new(options, printer)?;
    let registration = Registration::prepare(options, opened.gguf.n_files(), printer)?;
    if options.dry_run {
        let output = Some(options.write.output.as_path()).filter(|_| !options.write.in_place);
        outputs::look(options.side_files().chain(output), options.write.overwrite)?;
        registration.announce(printer);
        dry_run::run(opened, options, prompts, printer);
        return Ok(ExitStatus::Done);
    }
    // Created now, so that an output that cannot be written fails before the work.
    let target = Target::of(options, &opened.gguf)?;
    let write = WriteOptions { output: target.path(options).into(), ..options.write.clone() };
    let options = &InjectOptions { write, ..options.clone() };
    outputs::check(options.side_files().chain(registration.modelfile()), options.write.overwrite)?;
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
    let job = Job { session, taken, judge: judge.as_ref(), facts, seen };
    let done = job.run(input, target, &mut journal, start);
    journal::close(journal, done.is_ok(), printer);
    let done = done?;
    let status = finish(&done, options, printer)?;
    registration.finish(&done.report.output.sha256, status, options.write.overwrite, printer)?;
    Ok(status)
}

/// A model and the inputs of its edit, after every check that does not need to run it.
pub(super) struct Checked {
    pub opened: Opened,
    pub prompts: PromptSet,
    /// The stored edit that is applied instead of a search.
    pub taken: Option<Taken>,
    /// The judge, if one was given.
    pub judge: Option<Judge>,
    /// The options with the method resolved.
    pub options: InjectOptions,
}

impl Checked {
    /// Opens and checks all inputs.
    ///
    /// # Errors
    /// Returns [`Error`] if a check fails.
    pub fn new(options: &InjectOptions, printer: &Printer) -> Result<Self, Error> {
        let opened = Opened::new(&options.source.path, options.run.patches.as_deref())?;
        check_input(&opened, options, printer)?;
        let prompts = load_prompts(&options.learn.prompts, options.learn.no_bundled_prompts)?;
        let other_weights = options.allow_other_weights;
        let taken = options.edit.as_deref().map(|path| stored::take(path, &opened, other_weights, printer));
        let taken = taken.transpose()?;
        match options.write.in_place {
            true => gguf::in_place::refuse_split(&opened.gguf)?,
            false => refuse_input_as_output(&opened.gguf, &options.write.output)?,
        }
        // A stored edit keeps the method that found it.
        let options = match &taken {
            Some(taken) => options.with_method(taken.edit.facts.method)?,
            None => with_method(options, &opened.plan)?,
        };
        types::check(&opened, &options, taken.as_ref())?;
        let judge = options.report.judge.as_ref().map(Judge::open).transpose()?;
        Ok(Self { opened, prompts, taken, judge, options })
    }
}

/// Returns the options with the method resolved. The default is detectors if the model has a feed-forward network that
/// every token passes through, and linear gates otherwise.
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

/// Rejects an output that would overwrite a file of a split model. The options only know its first file.
fn refuse_input_as_output(gguf: &Gguf, output: &Path) -> Result<(), Error> {
    let Some(name) = ShardName::parse(output).filter(|_| gguf.n_files() > 1) else { return Ok(()) };
    let is_input = |path: &Path| gguf.files().any(|file| same_file(path, &file.path));
    match (0..name.count).map(|no| name.path(no)).find(|path| is_input(path)) {
        None => Ok(()),
        Some(path) => Err(Error::Option {
            flag: "--output",
            problem: format!("{} is one of the input files", path.display()),
            hint: Some("choose another path with -o; the input is never overwritten".into()),
        }),
    }
}

/// Runs the checks that do not need the loaded model.
pub(super) fn check_input(opened: &Opened, options: &InjectOptions, printer: &Printer) -> Result<(), Error> {
    opened.gguf.refuse_siblings()?;
    opened.template().map_err(|error| ollama::explain(error, &options.source))?;
    for warning in &opened.plan.warnings {
        printer.warn(warning.to_string());
        if let Some(hint) = warning.hint() {
            printer.say(format!("hint: {hint}"));
        }
    }
    // Opened only to report errors before the work; it is read again when needed.
    options.write.imatrix.as_deref().map(Imatrix::open).transpose()?;
    match Provenance::read(&opened.gguf) {
        Some(p) if !options.allow.injected => {
            Err(Error::Injected { path: options.source.path.clone(), size: p.size(), version: p.version })
        }
        _ => Ok(()),
    }
}

fn tell_where(report: &Report, options: &InjectOptions, printer: &Printer) {
    let (path, seconds) = (options.write.output.display(), report.seconds);
    if !options.write.in_place {
        return printer.say(format!("wrote {path} in {seconds:.0} s"));
    }
    let journal = journal_path(&options.source.path);
    let bytes = std::fs::metadata(&journal).map_or(0, |found| found.len());
    printer.say(format!(
        "edited {path} in place in {seconds:.0} s; `rosi-gguf undo {}` restores the original from {} ({} MB)",
        shell(&options.write.output),
        journal.display(),
        bytes / 1_000_000
    ));
}

/// Writes the side files, prints the results, and returns the exit status.
fn finish(done: &Done, options: &InjectOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let report = &done.report;
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    if let Some(path) = &options.report.path {
        AtomicFile::write_whole(path, json.as_bytes(), options.write.overwrite)?;
    }
    if let Some(path) = &options.report.html {
        AtomicFile::write_whole(path, report.page()?.as_bytes(), options.write.overwrite)?;
    }
    if let (Some(path), Some(adapter)) = (&options.write.save_adapter, &done.adapter) {
        AtomicFile::write_whole(path, adapter, options.write.overwrite)?;
    }
    printer.say(report.summary());
    printer.detail(report.times());
    tell_where(report, options, printer);
    if let Requant::Promote(ggml_type) = options.write.requant {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (before, after) = (megabytes(report.input.bytes), megabytes(report.output.bytes));
        printer
            .say(format!("edited tensors are now {ggml_type}: {before:.0} MB before, {after:.0} MB after"));
    }
    if options.report.json {
        printer.json_text(&json);
    }
    if report.survived() {
        return Ok(ExitStatus::Done);
    }
    printer.warn(format!(
        "{} of the edit is in the written file (cosine {:.3}): it does not match the exact edit above",
        percent(report.verification.gain.unwrap_or(0.0)),
        report.verification.cosine.unwrap_or(0.0)
    ));
    printer.warn(match options.write.requant {
        Requant::Nearest => "rounding to nearest loses small edits: omit --requant nearest",
        _ => {
            "the types of these tensors are too coarse for the edit: widen them with --promote Q8_0, or \
             serve the base with the exact edit: --save-adapter LORA.gguf and `llama-server --lora LORA.gguf`"
        }
    });
    Ok(ExitStatus::NotVerified)
}
