//! `inject`: from a model to a safer copy of it.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use crate::commands::direction::{self, Taken};
use crate::commands::dry_run;
use crate::commands::exam::{After, Before, Exam};
use crate::commands::in_place;
use crate::commands::journal;
use crate::commands::ollama::{self, Registration};
use crate::commands::provenance::Provenance;
use crate::commands::session::{self, Opened};
use crate::commands::study::{self, Study};
use crate::commands::write::{self, Change, Write};
use crate::edit::{Edit, experts_spared};
use crate::error::{Error, ExitStatus};
use crate::evaluate::Score;
use crate::gguf::in_place::journal_path;
use crate::gguf::{self, AtomicFile, AtomicModel, Gguf, GgufError, ShardName, sha256_files};
use crate::imatrix::Imatrix;
use crate::interrupt;
use crate::llama::llama_version;
use crate::options::{InjectOptions, same_file};
use crate::output::{Printer, percent};
use crate::plan::Plan;
use crate::prompts::{PromptKind, PromptSet, Split};
use crate::report::{EditFacts, FileFacts, PromptFacts, Report, cpu_seconds, peak_memory};
use crate::requant::Requant;
use crate::search::journal::Journal;
use crate::verify::{self, Base, ReadBytes, Verification};

/// Runs the injection.
///
/// # Errors
/// [`Error`]; then nothing bears the output's name that did not before.
pub fn run(options: &InjectOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let start = Instant::now();
    let opened = Opened::new(&options.source.path, options.run.patches.as_deref())?;
    check_input(&opened, options, printer)?;
    let prompts = load_prompts(&options.prompts, printer)?;
    let taken =
        options.direction.as_deref().map(|path| direction::take(path, &opened, options.force, printer));
    let taken = taken.transpose()?;
    match options.in_place {
        true => gguf::in_place::refuse_split(&opened.gguf)?,
        false => refuse_input_as_output(&opened.gguf, &options.output)?,
    }
    // The edit of a file keeps the method by which it was found.
    let method = taken.as_ref().map_or(options.method, |taken| taken.edit.facts.method);
    let options = &InjectOptions { method, ..options.clone() };
    let registration = Registration::prepare(options, opened.gguf.n_files(), printer)?;
    if options.dry_run {
        registration.announce(printer);
        dry_run::run(&opened, options, &prompts, printer);
        return Ok(ExitStatus::Done);
    }
    // Taken now, so that an output that cannot be written is known before the work.
    let target = Target::of(options, &opened.gguf)?;
    let options = &InjectOptions { output: target.path(options).into(), ..options.clone() };
    let side_files = [&options.report, &options.html, &options.save_adapter];
    let side_files = side_files.into_iter().flatten().map(PathBuf::as_path).chain(registration.modelfile());
    side_files.into_iter().try_for_each(|p| AtomicFile::create(p, options.force).map(drop))?;

    let seen = modified(&opened.gguf);
    let input = file_facts(&opened.gguf, printer)?;
    let mut journal = match &taken {
        None => journal::open(&opened, options, &prompts, &input, printer)?,
        Some(_) => Journal::off(),
    };
    let taken = taken.as_ref();
    let job = Job { opened: &opened, options, prompts: &prompts, taken, seen, registration, printer };
    let done = job.run(input, target, &mut journal, start);
    journal::close(journal, done.is_ok(), printer);
    done
}

/// One injection, after everything that can be checked before it was.
struct Job<'a> {
    opened: &'a Opened,
    options: &'a InjectOptions,
    prompts: &'a PromptSet,
    taken: Option<&'a Taken>,
    /// When the model's files were last written to, before they were hashed.
    seen: Option<Vec<SystemTime>>,
    registration: Registration,
    printer: &'a Printer,
}

/// What is written.
enum Target {
    /// A copy, whose files have no names yet.
    Copy(AtomicModel),
    /// The model itself.
    InPlace,
}

impl Target {
    fn of(options: &InjectOptions, gguf: &Gguf) -> Result<Self, Error> {
        if options.in_place {
            gguf::in_place::check(&options.source.path)?;
            return Ok(Self::InPlace);
        }
        Ok(Self::Copy(AtomicModel::create(&options.output, gguf, options.force)?))
    }

    /// The name of what is written; of a split model that of its first file.
    fn path<'a>(&'a self, options: &'a InjectOptions) -> &'a Path {
        match self {
            Self::Copy(model) => model.path(),
            Self::InPlace => &options.output,
        }
    }
}

/// What was found in the written file.
struct Written {
    output: FileFacts,
    verification: Verification,
    after: After,
    requantized: Option<Score>,
}

impl Job<'_> {
    /// Finds the edit or takes the stored one, writes the file, and reports.
    fn run(
        &self,
        input: FileFacts,
        target: Target,
        journal: &mut Journal,
        start: Instant,
    ) -> Result<ExitStatus, Error> {
        let Job { opened, options, prompts, taken, printer, .. } = *self;
        let mut engine = session::load(&opened.gguf, Some(opened.template()?), &options.run, printer)?;
        let study = match taken {
            None => Study::new(opened, (&mut engine, journal), prompts, options, printer)?,
            Some(taken) => {
                let how = (options.imatrix.as_deref(), options.search.strength);
                direction::study(taken, opened, how, printer)?
            }
        };
        let edits = study.edits(&opened.plan)?;
        let exam = Exam { opened, options, prompts, printer };
        let before = exam.before(&mut engine, &study, &edits)?;
        drop(engine);

        let provenance = self.provenance(&study, &input);
        let inputs = &study.material.inputs;
        let (source, plan, requant) = (&opened.gguf, &opened.plan, options.requant);
        let write = Write { source, plan, edits: &edits, inputs, requant };
        let change = (write, Change::Edit(&provenance, study.along()));
        let Written { output, verification, after, requantized } = match target {
            Target::Copy(file) => self.copy(file, change, (&exam, &before), &input)?,
            Target::InPlace => self.in_place(change, (&exam, &before), &input)?,
        };

        let report = Report {
            version: env!("CARGO_PKG_VERSION").into(),
            llama_cpp: llama_version(),
            input,
            output,
            direction: taken.map(|taken| taken.file.clone()),
            architecture: opened.plan.architecture.clone(),
            prompts: prompt_facts(prompts),
            edit: edit_facts(&study, &edits, options),
            scar: study.scar.clone(),
            levers: study.search.by_lever(),
            separation: study.levers.separation(study.chosen.candidate.lever).to_vec(),
            search: study.search.clone(),
            scores: before.scores(after.examination.score, requantized),
            verification,
            answers: before.answers(&after.examination, options.full_answers),
            fidelity: before.fidelity(&after, study.direction()),
            projections: Some(before.projections(
                &after,
                study.direction(),
                last_edited(&opened.plan, &edits),
            )),
            seconds: start.elapsed().as_secs_f64(),
            stages: printer.take_stages(),
            cpu_seconds: cpu_seconds(),
            peak_memory: peak_memory(),
        };
        let status = finish(&report, opened, &edits, options, printer)?;
        self.registration.finish(&report.output.sha256, status, options.force, printer)?;
        Ok(status)
    }

    /// Writes the copy, and gives it its name when it was found good.
    fn copy(
        &self,
        mut file: AtomicModel,
        (write, change): (Write<'_>, Change<'_>),
        (exam, before): (&Exam<'_>, &Before),
        input: &FileFacts,
    ) -> Result<Written, Error> {
        write.write(change, &mut file, self.printer)?;
        let gguf = Gguf::open(file.temporary_path())?;
        let base = &self.opened.gguf;
        let verification = check_written(Base::from(base), &gguf, write.edits, self.printer)?;
        let after = exam.after(&gguf, before)?;
        let requantized = exam.requantized_control(write, before)?;
        let mut output = file_facts(&gguf, self.printer)?;
        output.path = self.options.output.display().to_string();
        check_unchanged(input, base, self.seen.as_deref(), self.printer)?;
        file.commit()?;
        Ok(Written { output, verification, after, requantized })
    }

    /// Changes the model itself, and leaves it so when it was found good.
    fn in_place(
        &self,
        change: (Write<'_>, Change<'_>),
        (exam, before): (&Exam<'_>, &Before),
        input: &FileFacts,
    ) -> Result<Written, Error> {
        let measure = |changed: &Gguf, original: &ReadBytes<'_>| {
            let base = Base { gguf: &self.opened.gguf, bytes: Some(original) };
            let verification = check_written(base, changed, change.0.edits, self.printer)?;
            let after = exam.after(changed, before)?;
            let output = file_facts(changed, self.printer)?;
            Ok(Written { output, verification, after, requantized: None })
        };
        in_place::change(change, &input.sha256, measure, self.printer)
    }

    fn provenance(&self, study: &Study, input: &FileFacts) -> Provenance {
        let found_with = self.taken.map(|taken| taken.edit.facts.prompts_sha256.clone());
        Provenance {
            version: env!("CARGO_PKG_VERSION").into(),
            method: self.options.method.name().into(),
            layer: study.chosen.candidate.layer as u32,
            strength: study.chosen.strength,
            prompts_sha256: found_with.unwrap_or_else(|| self.prompts.sha256()),
            input_sha256: input.sha256.clone(),
            lever: study.chosen.candidate.lever.name().into(),
            system_prompt: study.system_prompt.into(),
            direction_sha256: self.taken.map(|taken| taken.file.sha256.clone()),
        }
    }
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
        Some(p) if !options.force => Err(Error::Injected {
            path: options.source.path.clone(),
            version: p.version,
            strength: percent(p.strength),
        }),
        _ => Ok(()),
    }
}

pub(super) fn load_prompts(files: &[PathBuf], printer: &Printer) -> Result<PromptSet, Error> {
    let bundled = PromptSet::bundled();
    if files.is_empty() {
        return Ok(bundled);
    }
    let mut prompts = PromptSet::load(files)?;
    for kind in prompts.complete_with(&bundled)? {
        printer.say(format!("no {kind} prompts in your files: the bundled ones are used"));
    }
    prompts.require(&PromptKind::ALL)?;
    Ok(prompts)
}

/// Path, hash and size of what `gguf` was read from; of a split model the first path, and the others as
/// though they were joined to it.
pub(super) fn file_facts(gguf: &Gguf, printer: &Printer) -> Result<FileFacts, Error> {
    let bar = printer.bar("hashing", gguf.total_len());
    let paths: Vec<&Path> = gguf.files().map(|file| file.path.as_path()).collect();
    let sha256 = sha256_files(&paths, &mut session::stoppable(&bar));
    interrupt::check()?;
    let sha256 = sha256.map_err(|source| Error::Io { path: gguf.path.clone(), source })?;
    Ok(FileFacts { path: gguf.path.display().to_string(), sha256, bytes: gguf.total_len() })
}

pub(super) fn prompt_facts(prompts: &PromptSet) -> PromptFacts {
    let of = |split| PromptKind::ALL.map(|kind| prompts.select(kind, split).len());
    PromptFacts {
        source: prompts.source().into(),
        sha256: prompts.sha256(),
        extract: of(Split::Extract),
        search: of(Split::Search),
        report: of(Split::Report),
    }
}

pub(super) fn edit_facts(study: &Study, edits: &[Edit], options: &InjectOptions) -> EditFacts {
    let pushes = study.material.pushes(edits, study.direction().norm());
    EditFacts {
        method: options.method.name().into(),
        lever: study.chosen.candidate.lever,
        system_prompt: study.system_prompt.into(),
        layer: study.chosen.candidate.layer,
        window: study.chosen.candidate.window,
        contrast: study.chosen.candidate.contrast,
        strength: study.chosen.strength,
        alpha: edits.first().map_or(0.0, |e| e.alpha),
        writers: edits.len(),
        writers_against: pushes.iter().filter(|&&p| p < 0.0).count(),
        experts_unrouted: experts_spared(edits.iter().map(|e| (e.n_expert, e.right.as_slice()))).0,
        push: pushes.iter().sum(),
    }
}

/// The last layer of which a writer is edited.
fn last_edited(plan: &Plan, edits: &[Edit]) -> usize {
    edits.iter().map(|edit| plan.writers[edit.writer].layer).max().unwrap_or(0)
}

/// When the files of a model were last written to, where the system knows.
fn modified(gguf: &Gguf) -> Option<Vec<SystemTime>> {
    gguf.files().map(|file| std::fs::metadata(&file.path).and_then(|found| found.modified()).ok()).collect()
}

/// Refuses a copy of a model that somebody wrote to meanwhile: its keys would name another file.
fn check_unchanged(
    input: &FileFacts,
    gguf: &Gguf,
    seen: Option<&[SystemTime]>,
    printer: &Printer,
) -> Result<(), Error> {
    if seen.is_some() && modified(gguf).as_deref() == seen {
        return Ok(());
    }
    let found = file_facts(gguf, printer)?.sha256;
    if found == input.sha256 {
        return Ok(());
    }
    let (path, expected) = (gguf.path.clone(), input.sha256.clone());
    Err(GgufError::Rewritten { path, expected, found }.into())
}

/// Reads the written file back; one that differs where it must not is never kept.
pub(super) fn check_written(
    base: Base<'_>,
    written: &Gguf,
    edits: &[Edit],
    printer: &Printer,
) -> Result<Verification, Error> {
    let bar = printer.bar("verifying", 1);
    let v = verify::verify_against(base, written, edits, &mut |done, total| {
        bar.set_of(done as u64, total as u64)
    })?;
    if !v.untouched_identical {
        return Err(Error::Damaged { what: v.unexpected.join(", ") });
    }
    if !v.metadata_preserved {
        return Err(Error::Damaged { what: "metadata".into() });
    }
    Ok(v)
}

fn tell_where(report: &Report, options: &InjectOptions, printer: &Printer) {
    let (path, seconds) = (options.output.display(), report.seconds);
    if !options.in_place {
        return printer.say(format!("wrote {path} in {seconds:.0} s"));
    }
    let journal = journal_path(&options.source.path);
    let bytes = std::fs::metadata(&journal).map_or(0, |found| found.len());
    printer.say(format!(
        "changed {path} in place in {seconds:.0} s; `rosi-gguf undo {path}` puts the original back from {} ({} MB)",
        journal.display(),
        bytes / 1_000_000
    ));
}

/// Prints, writes the side files, and says how it ended.
fn finish(
    report: &Report,
    opened: &Opened,
    edits: &[Edit],
    options: &InjectOptions,
    printer: &Printer,
) -> Result<ExitStatus, Error> {
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    if let Some(path) = &options.report {
        write::write_whole(path, json.as_bytes(), options.force)?;
    }
    if let Some(path) = &options.html {
        write::write_whole(path, report.page()?.as_bytes(), options.force)?;
    }
    if let Some(path) = &options.save_adapter {
        write::write_whole(path, &study::adapter_file(&opened.plan, edits)?, options.force)?;
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
        printer.data(json);
    }
    if report.survived() {
        return Ok(ExitStatus::Done);
    }
    printer.warn(format!(
        "only {} of the edit is in the written file: it is weaker than the exact edit above",
        percent(report.verification.gain.unwrap_or(0.0))
    ));
    printer.warn(match options.requant {
        Requant::Nearest => "rounding to nearest loses small edits: leave out --requant nearest",
        _ => "the types of these tensors leave no room for it: give them a wider one with --promote Q8_0, or serve the base with the exact edit: --save-adapter LORA.gguf and `llama-server --lora LORA.gguf`",
    });
    Ok(ExitStatus::NotVerified)
}
