//! One injection, from an opened model to the report.

use std::path::Path;
use std::time::{Instant, SystemTime};

use crate::gguf::{self, AtomicModel, Gguf, GgufError};
use crate::llama::{LlamaEngine, llama_version};
use crate::method::Edits;
use crate::method::search::journal::Journal;
use crate::method::verify::{Base, ReadBytes, Verification};
use crate::output::Printer;
use crate::pipeline::edit_search::EditSearch;
use crate::pipeline::error::Error;
use crate::pipeline::evaluate::{After, Before, Control, Scorer};
use crate::pipeline::facts::{check_written, edit_facts, file_facts, last_edited, prompt_facts};
use crate::pipeline::in_place;
use crate::pipeline::judge::Judge;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::provenance::Provenance;
use crate::pipeline::run_facts::RunFacts;
use crate::pipeline::session::{self, Session};
use crate::pipeline::stored::{self, Taken};
use crate::pipeline::write::{Change, Write};
use crate::report::{FileFacts, Report, cpu_seconds, peak_memory};

/// One injection, ready to run: all checks that are possible in advance have passed.
pub struct Job<'a> {
    /// The model and the options, with the selected method.
    pub session: Session<'a>,
    /// Stored edit to apply instead of searching.
    pub taken: Option<&'a Taken>,
    /// The judge of the answers, if one was given.
    pub judge: Option<&'a Judge>,
    /// Everything that the output's bytes depend on.
    pub facts: &'a RunFacts,
    /// Modification times of the model's files before they were hashed.
    pub seen: Option<Vec<SystemTime>>,
}

/// Result of an injection; the file is written.
pub struct Done {
    /// The report.
    pub report: Report,
    /// The exact edit as an adapter file, if requested.
    pub adapter: Option<Vec<u8>>,
}

/// Where the edited model is written.
pub enum Target {
    /// A copy, whose files still have temporary names.
    Copy(AtomicModel),
    /// The model file itself.
    InPlace,
}

impl Target {
    /// Creates the output under a temporary name, or checks that the model can be changed in place.
    ///
    /// # Errors
    /// Returns [`Error::Gguf`] if the output cannot be created, or [`Error::Undo`] if the model cannot be changed in
    /// place.
    pub fn of(options: &InjectOptions, gguf: &Gguf) -> Result<Self, Error> {
        if options.write.in_place {
            gguf::in_place::check(&options.source.path)?;
            return Ok(Self::InPlace);
        }
        Ok(Self::Copy(AtomicModel::create(&options.write.output, gguf, options.write.overwrite)?))
    }

    /// Returns the final path of the edited model; for a split model, of its first file.
    pub fn path<'a>(&'a self, options: &'a InjectOptions) -> &'a Path {
        match self {
            Self::Copy(model) => model.path(),
            Self::InPlace => &options.write.output,
        }
    }
}

/// Measurements of the written file.
struct Written {
    output: FileFacts,
    verification: Verification,
    after: After,
    requantized: Control,
}

impl Job<'_> {
    /// Finds the edit or takes the stored one, writes the file and returns the report.
    ///
    /// # Errors
    /// Returns [`Error`] if any step fails; the output path is then unchanged.
    pub fn run(
        &self,
        input: FileFacts,
        target: Target,
        journal: &mut Journal,
        start: Instant,
    ) -> Result<Done, Error> {
        let (mut engine, edit_search) = self.find(journal)?;
        let options = &self.session.options.with_method(edit_search.method)?;
        let session = Session { options, ..self.session };
        let Session { opened, prompts, printer, .. } = session;
        // Fails before scoring if a tensor's type cannot hold the edit.
        let edits = edit_search.edits(opened, options.write.requant)?;
        let scorer = Scorer { session, judge: self.judge };
        let before = scorer.before(&mut engine, &edit_search)?;
        drop(engine);

        let provenance = self.provenance(&edit_search, &input);
        let write = self.write(&edit_search, &edits, &provenance);
        let Written { output, verification, after, requantized } = match target {
            Target::Copy(file) => self.copy(file, write, &scorer, &before, &input)?,
            Target::InPlace => self.in_place(write, &scorer, &before, &input)?,
        };

        let report = Report {
            version: env!("CARGO_PKG_VERSION").into(),
            llama_cpp: llama_version(),
            input,
            output,
            stored_edit: self.taken.map(|taken| taken.file.clone()),
            architecture: opened.plan.architecture.clone(),
            prompts: prompt_facts(prompts),
            edit: edit_facts(&edit_search, &edits),
            ablated: edit_search.ablated.clone(),
            direction_sources: edit_search.search.by_source(),
            separation: edit_search
                .direction_sources
                .separation(edit_search.chosen.candidate.direction_source)
                .to_vec(),
            search: edit_search.search.clone(),
            scores: before.scores(after.evaluation.score, requantized),
            verification,
            answers: before.answers(&after.evaluation, options.report.full_answers),
            fidelity: before.fidelity(&after, edit_search.direction()),
            thinking: before.thinking(&after, options.learn.thinking.budget),
            projections: Some(before.projections(
                &after,
                edit_search.direction(),
                last_edited(&opened.plan, &edits),
            )),
            judge: after.judge,
            seconds: start.elapsed().as_secs_f64(),
            stages: printer.take_stages(),
            cpu_seconds: cpu_seconds(),
            peak_memory: peak_memory(),
        };
        let adapter =
            options.write.save_adapter.as_ref().map(|_| edit_search.adapter_file(opened)).transpose()?;
        Ok(Done { report, adapter })
    }

    /// Writes the same file as [`Self::run`], without scoring, returns its facts and removes it.
    ///
    /// # Errors
    /// Returns [`Error`] if any step fails.
    pub fn rehearse(&self, input: &FileFacts, mut file: AtomicModel) -> Result<FileFacts, Error> {
        let (engine, edit_search) = self.find(&mut Journal::off())?;
        drop(engine);
        let Session { opened, options, printer, .. } = self.session;
        let edits = edit_search.edits(opened, options.write.requant)?;
        let provenance = self.provenance(&edit_search, input);
        self.write(&edit_search, &edits, &provenance).write(&mut file, printer)?;
        file_facts(&Gguf::open(file.temporary_path())?, printer)
    }

    /// Finds the edit or takes the stored one; also returns the engine with the model loaded.
    fn find(&self, journal: &mut Journal) -> Result<(LlamaEngine, EditSearch), Error> {
        let Session { opened, prompts, options, printer } = self.session;
        let mut engine = session::load(&opened.gguf, Some(opened.template()?), &options.run, printer)?;
        session::check_all(&engine, prompts, options, printer)?;
        let edit_search = match self.taken {
            None => EditSearch::new(self.session, &mut engine, journal)?,
            Some(taken) => {
                let (imatrix, strength) = (options.write.imatrix.as_deref(), options.search.strength);
                stored::edit_search(taken, opened, imatrix, strength, printer)?
            }
        };
        Ok((engine, edit_search))
    }

    fn write<'w>(
        &'w self,
        edit_search: &'w EditSearch,
        edits: &'w Edits,
        provenance: &'w Provenance,
    ) -> Write<'w> {
        let Session { opened, options, .. } = self.session;
        let (source, plan, inputs) = (&opened.gguf, &opened.plan, edit_search.found.inputs());
        let change = Change::Edit(provenance, edit_search.along());
        Write { source, plan, edits, inputs, requant: options.write.requant, change }
    }

    /// Writes and measures the copy, and renames it to its final path if it passes.
    fn copy(
        &self,
        mut file: AtomicModel,
        write: Write<'_>,
        scorer: &Scorer<'_>,
        before: &Before,
        input: &FileFacts,
    ) -> Result<Written, Error> {
        let Session { opened, options, printer, .. } = self.session;
        write.write(&mut file, printer)?;
        let gguf = Gguf::open(file.temporary_path())?;
        let base = &opened.gguf;
        let verification = check_written(Base::from(base), &gguf, write.edits, printer)?;
        let after = scorer.after(&gguf, before)?;
        let mut output = file_facts(&gguf, printer)?;
        output.path = options.write.output.display().to_string();
        check_unchanged(input, base, self.seen.as_deref(), printer)?;
        file.commit()?;
        let requantized = scorer.requantized_control(write, before);
        Ok(Written { output, verification, after, requantized })
    }

    /// Changes the model itself, and keeps the change if it passes.
    fn in_place(
        &self,
        write: Write<'_>,
        scorer: &Scorer<'_>,
        before: &Before,
        input: &FileFacts,
    ) -> Result<Written, Error> {
        let Session { opened, printer, .. } = self.session;
        let measure = |changed: &Gguf, original: &ReadBytes<'_>| {
            let base = Base { gguf: &opened.gguf, bytes: Some(original) };
            let verification = check_written(base, changed, write.edits, printer)?;
            let after = scorer.after(changed, before)?;
            let output = file_facts(changed, printer)?;
            Ok(Written { output, verification, after, requantized: Control::NotAsked })
        };
        in_place::change(write, &input.sha256, measure, printer)
    }

    fn provenance(&self, edit_search: &EditSearch, input: &FileFacts) -> Provenance {
        let found_with = self.taken.map(|taken| taken.edit.facts.prompts_sha256.clone());
        Provenance {
            version: env!("CARGO_PKG_VERSION").into(),
            method: edit_search.method.name().into(),
            layer: edit_search.chosen.candidate.layer as u32,
            strength: edit_search.chosen.strength,
            prompts_sha256: found_with.unwrap_or_else(|| self.session.prompts.sha256()),
            input_sha256: input.sha256.clone(),
            direction_source: edit_search.chosen.candidate.direction_source.name().into(),
            system_prompt: edit_search.system_prompt.to_string(),
            edit_sha256: self.facts.edit_sha256.clone(),
            run: Some(self.facts.clone()),
        }
    }
}

/// Returns the modification times of a model's files, or `None` if the system does not provide one.
pub fn modified(gguf: &Gguf) -> Option<Vec<SystemTime>> {
    gguf.files().map(|file| std::fs::metadata(&file.path).and_then(|found| found.modified()).ok()).collect()
}

/// Fails if the input was modified during the run: the hash recorded in the copy would then be of another file.
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
