//! Makes the files of a release one by one: quantizes the base, writes the edit, and measures the result.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::config::Scoring;
use super::{Release, SharedEdit, WORK};
use crate::eval::prompts::{PromptSet, Split};
use crate::eval::{Evaluation, Evaluator, PerKind, Questions, Score, Tally};
use crate::gguf::{AtomicFile, AtomicModel, Gguf, sha256_file};
use crate::imatrix::Imatrix;
use crate::llama::llama_version;
use crate::method::requant::Requant;
use crate::method::verify::{Base, Verification};
use crate::output::percent;
use crate::pipeline::edit_search::EditSearch;
use crate::pipeline::error::Error;
use crate::pipeline::evaluate::report_questions;
use crate::pipeline::facts::{check_written, file_facts};
use crate::pipeline::guard::{Guard, not_less_safe};
use crate::pipeline::provenance::{Provenance, claimed_edits};
use crate::pipeline::session::Opened;
use crate::pipeline::stored::{self, Taken};
use crate::pipeline::write::{Change, Write};
use crate::release::plan::{PlannedFile, Step};
use crate::release::quantize::quantize;
use crate::release::state::{Recipe, Row, State, same_recipe};
use crate::report::{AnswerPair, FileFacts, MIN_SURVIVAL};
use crate::util::interrupt;
use crate::util::leftovers::Leftover;

/// Makes the files of a release.
pub(super) struct ReleaseWriter<'a> {
    pub release: &'a Release<'a>,
    /// Path, hash and size of each source.
    pub sources: &'a [FileFacts],
    /// The importance matrix and its sha256.
    pub imatrix: Option<(&'a Imatrix, String)>,
    pub edit: &'a SharedEdit,
    pub prompts: &'a PromptSet,
}

/// The report of one file, identical for identical releases.
#[derive(Debug, Serialize)]
struct Report<'a> {
    row: &'a Row,
    edit: &'a crate::method::stored::Facts,
    verification: &'a Verification,
    answers: &'a [AnswerPair],
}

/// Measurements of a base and of the file with the edit.
struct Measured {
    scores: Option<[Score; 2]>,
    guard: [Tally; 2],
    answers: Vec<AnswerPair>,
}

impl ReleaseWriter<'_> {
    /// Makes every file that is not complete yet. A file that refuses less than its base is discarded without stopping
    /// the others; the first such error is returned at the end.
    pub(super) fn all(&self, state: &mut State) -> Result<Option<Error>, Error> {
        let mut failed = None;
        let n = self.release.plan.files.len();
        for (i, planned) in self.release.plan.files.iter().enumerate() {
            interrupt::check()?;
            let recipe = self.recipe(planned);
            if self.is_done(state, planned, &recipe)? {
                self.release.printer.say(format!("{}/{n} {} is up to date", i + 1, planned.file));
                continue;
            }
            self.release.printer.say(format!("{}/{n} {}", i + 1, planned.file));
            let work = self.release.at(WORK);
            let unfinished = Leftover::new(&work);
            let made = self.make(state, planned, recipe);
            drop(unfinished);
            // The base takes gigabytes, and the next run would quantize it again anyway.
            let _ = std::fs::remove_dir_all(work);
            match made {
                Err(error @ Error::LessSafe { .. }) => {
                    self.release.printer.warn(format!("{}: {error}", planned.file));
                    failed.get_or_insert(error);
                }
                made => made?,
            }
        }
        Ok(failed)
    }

    /// Returns everything that determines a file.
    fn recipe(&self, planned: &PlannedFile) -> Recipe {
        let mut recipe = Recipe::from([
            ("source".into(), self.sources[planned.step.source()].sha256.clone()),
            ("type".into(), planned.label.clone()),
            ("edit".into(), self.edit.sha256.clone()),
            ("scoring".into(), self.release.scoring()),
            ("prompts".into(), self.prompts.sha256()),
            ("version".into(), env!("CARGO_PKG_VERSION").into()),
            ("llama.cpp".into(), llama_version()),
        ]);
        if let Some((_, sum)) = &self.imatrix {
            recipe.insert("imatrix".into(), sum.clone());
        }
        recipe
    }

    /// Returns whether the file exists with the recipe and hash of its row.
    fn is_done(&self, state: &State, planned: &PlannedFile, recipe: &Recipe) -> Result<bool, Error> {
        let path = self.release.at(&planned.file);
        let Some(row) = state.row(&planned.file).filter(|_| path.exists()) else { return Ok(false) };
        match same_recipe(&planned.file, &row.recipe, recipe) {
            Err(_) if self.release.waived.overwrite => return Ok(false),
            same => same?,
        }
        let bar = self.release.printer.bar(&format!("hashing {}", planned.file), row.bytes);
        let mut stop = crate::pipeline::session::stoppable(&bar);
        let found = sha256_file(&path, &mut stop).map_err(|source| Error::Io { path: path.clone(), source });
        interrupt::check()?;
        drop(stop);
        if found? == row.sha256 {
            return Ok(true);
        }
        self.release.printer.warn(format!("{} has changed since it was written; remaking it", planned.file));
        Ok(false)
    }

    /// Returns the path of the file that the edit is written into, quantizing the source if the plan says so.
    fn base(&self, planned: &PlannedFile) -> Result<PathBuf, Error> {
        let source = &self.release.sources[planned.step.source()];
        let Step::Quantize(_, quant) = planned.step else { return Ok(source.path.clone()) };
        let folder = self.release.at(if self.release.config.keep_bases { "base" } else { WORK });
        std::fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
        let path = folder.join(&planned.file);
        let _bar = self.release.printer.bar(&format!("quantizing to {}", quant.name), 1);
        let imatrix = self.imatrix.as_ref().map(|(imatrix, _)| *imatrix);
        let _unfinished = Leftover::new(&path);
        quantize(source, &path, quant, imatrix, self.release.run.threads)?;
        interrupt::check()?;
        Ok(path)
    }

    /// Makes one file, with its row and report.
    fn make(&self, state: &mut State, planned: &PlannedFile, recipe: Recipe) -> Result<(), Error> {
        let started = Instant::now();
        let base_path = self.base(planned)?;
        let (release, printer) = (self.release, self.release.printer);
        let opened = Opened::new(&base_path, release.run.patches.as_deref())?;
        if let Some(p) = Provenance::read(&opened.gguf).filter(|_| !release.waived.allow.allow_injected) {
            let (size, version) = (p.size(), p.version);
            return Err(Error::Injected { path: base_path, version, size });
        }
        let base = file_facts(&opened.gguf, printer)?;
        let taken = stored::take(&self.edit.path, &opened, release.waived.other_weights, printer)?;
        let imatrix = release.config.imatrix.as_deref();
        let edit_search = stored::edit_search(&taken, &opened, imatrix, None, printer)?;
        let path = release.at(&planned.file);
        let ours = release.waived.overwrite || state.row(&planned.file).is_some();
        let mut file = AtomicModel::create(&path, &opened.gguf, ours)?;
        self.write(&opened, &edit_search, &taken, &base, &mut file)?;
        let written = Gguf::open(file.temporary_path())?;
        // Uses the two files only, like `verify`.
        let claimed = claimed_edits(&opened.gguf, &written, &opened.plan)?;
        let verification = check_written(Base::from(&opened.gguf), &written, &claimed, printer)?;
        let measured = self.measure(&opened, &written)?;
        let output = file_facts(&written, printer)?;
        let row = Row {
            file: planned.file.clone(),
            label: planned.label.clone(),
            sha256: output.sha256,
            bytes: output.bytes,
            base_sha256: base.sha256,
            recipe,
            gain: verification.gain,
            cosine: verification.cosine,
            changed: verification.tensors.len(),
            scores: measured.scores,
            guard: measured.guard,
            seconds: started.elapsed().as_secs_f64(),
        };
        self.report(&row, &taken, &verification, &measured)?;
        self.tell(&row);
        // Save the row first: without it, the next run would reject the file as not its own.
        state.put(row);
        state.save()?;
        file.commit()?;
        Ok(())
    }

    fn write(
        &self,
        opened: &Opened,
        edit_search: &EditSearch,
        taken: &Taken,
        base: &FileFacts,
        file: &mut AtomicModel,
    ) -> Result<(), Error> {
        let facts = &taken.edit.facts;
        let edits = edit_search.edits(opened, Requant::Preserve)?;
        let provenance = Provenance {
            version: env!("CARGO_PKG_VERSION").into(),
            method: facts.method.name().into(),
            layer: facts.chosen.layer as u32,
            strength: edit_search.chosen.strength,
            prompts_sha256: facts.prompts_sha256.clone(),
            input_sha256: base.sha256.clone(),
            direction_source: facts.chosen.direction_source.name().into(),
            system_prompt: edit_search.system_prompt.to_string(),
            edit_sha256: Some(taken.file.sha256.clone()),
            run: None,
        };
        let (source, plan, inputs) = (&opened.gguf, &opened.plan, edit_search.found.inputs());
        let change = Change::Edit(&provenance, edit_search.along());
        let write = Write { source, plan, edits: &edits, inputs, requant: Requant::Preserve, change };
        write.write(file, self.release.printer)
    }

    /// Measures the base, then the file, which is rejected if it refuses less than its base.
    fn measure(&self, opened: &Opened, written: &Gguf) -> Result<Measured, Error> {
        let template = opened.template()?;
        let bar = self.release.printer.bar("scoring the base and the file", 2);
        let mut engine = self.release.load(&opened.gguf, template)?;
        let guard = Guard::of(&mut engine)?;
        let questions = match self.release.config.scoring {
            Scoring::Guard => None,
            Scoring::Report(Some(n)) => Some(Questions::of(self.prompts, Split::Report, PerKind::uniform(n))),
            Scoring::Report(None) => Some(report_questions(self.prompts)),
        };
        let base = questions.map(|questions| Evaluator::new(&mut engine, questions)).transpose()?;
        drop(engine);
        bar.set(1);
        let mut engine = self.release.load(written, template)?;
        let after = guard.written(&mut engine)?;
        not_less_safe(guard.base, after)?;
        let mut measured = Measured { scores: None, guard: [guard.base, after], answers: Vec::new() };
        if let Some((evaluator, base)) = base {
            let file: Evaluation = evaluator.evaluate(&mut engine)?;
            measured.answers = AnswerPair::all(evaluator.questions(), &base, &file, false);
            measured.scores = Some([base.score, file.score]);
        }
        Ok(measured)
    }

    /// Writes `reports/NAME.json`, omitting what differs from run to run.
    fn report(
        &self,
        row: &Row,
        taken: &Taken,
        verification: &Verification,
        measured: &Measured,
    ) -> Result<(), Error> {
        let folder = self.release.at("reports");
        std::fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
        let row = &Row { seconds: 0.0, ..row.clone() };
        let report = Report { row, edit: &taken.edit.facts, verification, answers: &measured.answers };
        let json = serde_json::to_string_pretty(&report).unwrap_or_default();
        let path = folder.join(&row.file).with_extension("json");
        Ok(AtomicFile::write_whole(&path, json.as_bytes(), true)?)
    }

    fn tell(&self, row: &Row) {
        let gain = row.gain.unwrap_or(0.0);
        let [base, file] = match row.scores {
            Some([base, file]) => [base.harmful, file.harmful],
            None => row.guard,
        };
        self.release.printer.say(format!(
            "  {} of the edit is in the file ({} tensors changed); harmful refused {} → {}; {} MB in {:.0} s",
            percent(gain),
            row.changed,
            base.refused(),
            file.refused(),
            row.bytes / 1_000_000,
            row.seconds
        ));
        if gain < MIN_SURVIVAL {
            self.release.printer.warn(format!("only {} of the edit is in {}", percent(gain), row.file));
        }
    }
}
