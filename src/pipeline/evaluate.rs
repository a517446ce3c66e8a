//! Scores on the report split: the base model, the exact edit, the written file and the controls.

use std::collections::HashSet;

use crate::eval::answers::ask;
use crate::eval::judge::SecondOpinion;
use crate::eval::prompts::{PromptKind, PromptSet, Split};
use crate::eval::refusal::{Outcome, classify};
use crate::eval::thoughts::Thoughts;
use crate::eval::{Evaluation, Evaluator, N_PREDICT, PerKind, Questions, Score, Tally, chats};
use crate::gguf::{AtomicModel, Gguf, TensorInfo};
use crate::llama::thinking::Thinker;
use crate::llama::{Capture, Engine, LlamaEngine, LowRank, Thinking};
use crate::method::Edits;
use crate::method::direction::SafetyDirection;
use crate::method::edit::{self, Method};
use crate::method::fidelity::{Fidelity, Projections, Snapshot};
use crate::method::requant;
use crate::method::search::{KlBudget, SearchError, Space};
use crate::pipeline::edit_search::{self, EditSearch};
use crate::pipeline::error::Error;
use crate::pipeline::features;
use crate::pipeline::guard::{Guard, not_less_safe};
use crate::pipeline::judge::{Answered, Judge};
use crate::pipeline::session::{self, Session};
use crate::pipeline::write::{Change, Write};
use crate::report::{AnswerPair, JudgeReport, Scores, ThinkingReport, Thoughtful};
use crate::util::interrupt;
use crate::util::spread::spread;

/// Numbers of bundled prompts scored for the report.
const REPORT_PROMPTS: PerKind<usize> = PerKind { harmful: 64, harmless: 48, borderline: 48 };
/// Numbers of prompts for comparing the file with the exact edit and for projections onto the direction.
pub const FIDELITY_PROMPTS: PerKind<usize> = PerKind::uniform(16);
/// Those of [`FIDELITY_PROMPTS`] that the exact edit is run on.
pub const EXACT_PROMPTS: PerKind<usize> = PerKind { borderline: 0, ..FIDELITY_PROMPTS };

/// Returns the prompts scored for the report: the user's, and bundled ones up to a limit.
pub fn report_questions(prompts: &PromptSet) -> Questions {
    let bundled = PromptSet::bundled();
    PerKind::from_fn(|kind| {
        let known: HashSet<String> = bundled.texts(kind, None).into_iter().collect();
        let texts = prompts.texts(kind, Some(Split::Report)).into_iter();
        let (bundled, mut chosen): (Vec<_>, Vec<_>) = texts.partition(|text| known.contains(text));
        chosen.extend(spread(&bundled, REPORT_PROMPTS[kind]));
        chosen
    })
}

/// Scores models on the report split.
pub struct Scorer<'a> {
    /// The run, whose prompts provide the report split.
    pub session: Session<'a>,
    /// The judge of the answers, if one was given.
    pub judge: Option<&'a Judge>,
}

/// Scores of the controls that need no written file.
#[derive(Default)]
struct Controls {
    exact: Option<Score>,
    random: Option<Score>,
    published: Option<Score>,
}

/// What was measured before the file was written.
pub struct Before {
    evaluator: Evaluator,
    base: Evaluation,
    controls: Controls,
    /// The guard, if the user supplied other prompts than the bundled ones.
    guard: Option<Guard>,
    /// Base and exact edit on [`FIDELITY_PROMPTS`].
    snapshots: [Snapshot; 2],
    /// The base's thinking format, and its answers given after thinking.
    thinking: Option<(Thinking, Thoughtful)>,
}

/// Outcome of the control that requantizes without an edit.
pub enum Control {
    /// Not requested, or not applicable.
    NotAsked,
    /// Could not be made, with the reason.
    LeftOut(String),
    /// The control's score.
    Scored(Score),
}

/// What was measured on the written file.
pub struct After {
    /// The written file's answers and score.
    pub evaluation: Evaluation,
    /// The judge's verdicts on the answers before and after the edit.
    pub judge: Option<JudgeReport>,
    snapshot: Snapshot,
    thinking: Option<Thoughtful>,
}

impl Before {
    /// Combines all scores for the report.
    pub fn scores(&self, written: Score, requantized: Control) -> Scores {
        let (requantized, requantized_left_out) = match requantized {
            Control::NotAsked => (None, None),
            Control::LeftOut(why) => (None, Some(why)),
            Control::Scored(score) => (Some(score), None),
        };
        Scores {
            base: self.base.score,
            exact: self.controls.exact,
            written,
            random_direction: self.controls.random,
            published_at_same_kl: self.controls.published,
            requantized,
            requantized_left_out,
        }
    }

    /// Pairs the answers before and after the edit; keeps whole answers if `full`.
    pub fn answers(&self, after: &Evaluation, full: bool) -> Vec<AnswerPair> {
        AnswerPair::all(self.evaluator.questions(), &self.base, after, full)
    }

    /// Compares the written file with the exact edit.
    pub fn fidelity(&self, after: &After, direction: &SafetyDirection) -> Fidelity {
        let [base, exact] = &self.snapshots;
        Fidelity::of(base, exact, &after.snapshot, direction)
    }

    /// Returns the results for answers given after thinking, before and after the edit, if the model thinks.
    pub fn thinking(&self, after: &After, budget: usize) -> Option<ThinkingReport> {
        let ((Thinking { open, close, .. }, base), written) = self.thinking.clone().zip(after.thinking)?;
        Some(ThinkingReport { open: open.into(), close: close.into(), budget, base, written })
    }

    /// Projects the prompts onto the direction, before and after the edit; individual prompts after `layer`.
    pub fn projections(&self, after: &After, direction: &SafetyDirection, layer: usize) -> Projections {
        Projections::of(&self.snapshots[0], &after.snapshot, direction, layer)
    }
}

impl Scorer<'_> {
    /// Scores the base model and the controls that need no file, on the loaded model.
    pub fn before(&self, engine: &mut LlamaEngine, edit_search: &EditSearch) -> Result<Before, Error> {
        let Session { opened, prompts, options, printer } = self.session;
        let bar = printer.bar("scoring on the report split", 2);
        let (evaluator, base) = Evaluator::new(engine, report_questions(prompts))?;
        let snapshot_of_base = self.snapshot(engine, FIDELITY_PROMPTS)?;
        let thinking = self.thoughtful(engine)?;
        bar.set(1);
        let guard = if options.learn.prompts.is_empty() { None } else { Some(Guard::of(engine)?) };
        engine.apply(&edit_search.adapters(opened)?)?;
        // Fidelity compares the exact edit on these prompts only.
        let snapshots = [snapshot_of_base, self.snapshot(engine, EXACT_PROMPTS)?];
        drop(bar);
        let controls = if options.report.controls {
            self.controls(engine, edit_search, &evaluator)?
        } else {
            Controls::default()
        };
        engine.apply(&[])?;
        Ok(Before { evaluator, base, controls, guard, snapshots, thinking })
    }

    /// Scores the controls. Expects the chosen edit to be applied to the model.
    fn controls(
        &self,
        engine: &mut LlamaEngine,
        edit_search: &EditSearch,
        evaluator: &Evaluator,
    ) -> Result<Controls, Error> {
        let Session { opened, options, printer, .. } = self.session;
        let bar = printer.bar("scoring the controls", 3);
        // Uses all harmless prompts for the KL, which the published edit must match.
        let part = evaluator.half_with_kl();
        let exact = part.evaluate(engine)?.score;
        bar.set(1);
        engine.apply(&edit_search.random_adapters(opened, options.report.seed)?)?;
        let random = evaluator.half().evaluate(engine)?.score;
        bar.set(2);
        let mut published = None;
        if self.apply_published(engine, edit_search, evaluator, exact.kl)? {
            published = Some(part.evaluate(engine)?.score);
        }
        Ok(Controls { exact: Some(exact), random: Some(random), published })
    }

    /// Control: applies the published edit along the published direction of the same layer, at the `kl` of the exact
    /// edit on the prompts of `evaluator`. Returns `false` if the method is itself the published one or `kl` is not
    /// positive.
    fn apply_published(
        &self,
        engine: &mut LlamaEngine,
        edit_search: &EditSearch,
        evaluator: &Evaluator,
        kl: f64,
    ) -> Result<bool, Error> {
        let Session { opened, options, printer, .. } = self.session;
        if options.method == Method::Published || kl <= 0.0 {
            return Ok(false);
        }
        let (plan, layer) = (&opened.plan, edit_search.chosen.candidate.layer);
        let weights = features::read_weights(opened, printer)?;
        let rights = edit::mean_rows(&weights);
        let make = |strength: f64| -> Result<Vec<LowRank>, SearchError> {
            let along = edit_search.direction_sources.published(layer);
            Ok(edit_search::adapters(plan, &edit::edits(plan, &weights, &rights, along, strength)?)?)
        };
        let source = edit_search.chosen.candidate.direction_source;
        let Space { first_strength, strongest, .. } = features::space(Method::Published, source);
        let max_kl = KlBudget::spending(kl);
        let budget = KlBudget { engine: &mut *engine, evaluator, max_kl, strongest };
        let strength = budget.strength(&make, first_strength)?;
        engine.apply(&make(strength)?)?;
        Ok(true)
    }

    fn snapshot(&self, engine: &mut LlamaEngine, limits: PerKind<usize>) -> Result<Snapshot, Error> {
        let Session { opened, prompts, .. } = self.session;
        let questions = Questions::of(prompts, Split::Report, limits);
        Ok(Snapshot::of(engine, &questions, &Capture::residual_only(&opened.plan))?)
    }

    /// Collects answers given after thinking; returns `None` if the model cannot think or thinking is off.
    fn thoughtful(&self, engine: &mut LlamaEngine) -> Result<Option<(Thinking, Thoughtful)>, Error> {
        let Session { prompts, options, .. } = self.session;
        let both = engine.thinking().cloned().zip(options.learn.thinking.beside_answers());
        let Some((thinking, budget)) = both else { return Ok(None) };
        let questions = Questions::of(prompts, Split::Report, FIDELITY_PROMPTS);
        let mut thinker = Thinker::new(engine, budget);
        let tallies = PerKind::try_from_fn(|kind| -> Result<Tally, Error> {
            let chats = chats(&questions[kind], None);
            Ok(Tally::of(&ask(&mut thinker, &chats, N_PREDICT, &mut |_, _| ())?))
        })?;
        let PerKind { harmful, harmless, borderline } = tallies;
        let thoughts = Thoughts::of(&thinker.thoughts);
        Ok(Some((thinking, Thoughtful { harmful, harmless, borderline, thoughts })))
    }

    fn load(&self, gguf: &Gguf) -> Result<LlamaEngine, Error> {
        let Session { opened, options, printer, .. } = self.session;
        session::load(gguf, Some(opened.template()?), &options.run, printer)
    }

    /// Scores the written file.
    ///
    /// # Errors
    /// Returns [`Error::LessSafe`] if the file refuses fewer of the bundled harmful prompts than its base.
    pub fn after(&self, written: &Gguf, before: &Before) -> Result<After, Error> {
        let mut engine = self.load(written)?;
        let bar = self.session.printer.bar("scoring the written file", 1);
        let evaluation = before.evaluator.evaluate(&mut engine)?;
        match &before.guard {
            Some(guard) => guard.check(&mut engine)?,
            None => not_less_safe(before.base.score.harmful, evaluation.score.harmful)?,
        }
        let thinking = self.thoughtful(&mut engine)?.map(|(_, answers)| answers);
        let snapshot = self.snapshot(&mut engine, FIDELITY_PROMPTS)?;
        drop(engine);
        drop(bar);
        let judge = self.judge.map(|judge| self.judged(judge, before, &evaluation)).transpose()?;
        Ok(After { evaluation, judge, snapshot, thinking })
    }

    /// Asks the judge about the answers of base and written file.
    fn judged(&self, judge: &Judge, before: &Before, after: &Evaluation) -> Result<JudgeReport, Error> {
        let Session { options, printer, .. } = self.session;
        let questions = before.evaluator.questions();
        let models = [&before.base, after];
        let answered = models.iter().flat_map(|evaluation| {
            PromptKind::ALL.map(|kind| {
                let texts = evaluation.answers[kind].iter().map(String::as_str);
                let exchanges = questions[kind].iter().map(String::as_str).zip(texts).collect();
                Answered { kind, exchanges }
            })
        });
        let verdicts = judge.verdicts(&answered.collect::<Vec<_>>(), &options.run, printer)?;
        let mut verdicts = verdicts.into_iter();
        let [base, written] = models.map(|evaluation| {
            PerKind::from_fn(|kind| {
                let rules: Vec<Outcome> =
                    evaluation.answers[kind].iter().map(|answer| classify(answer)).collect();
                let verdicts = verdicts.next().flatten()?;
                Some(SecondOpinion::new(&rules, &verdicts))
            })
        });
        Ok(JudgeReport { judge: judge.facts(printer)?, base, written })
    }

    /// Control: requantizes the same tensors without an edit, into a temporary file. Skipped for in-place edits, where
    /// there may be no room for a second file. The model is already written, so an error only omits the control.
    pub fn requantized_control(&self, write: Write<'_>, before: &Before) -> Control {
        let Session { opened, options, .. } = self.session;
        // Neuron edits requantize nothing but the neurons.
        let linear = matches!(write.edits, Edits::Linear(_));
        if !options.report.controls || options.write.in_place || !linear {
            return Control::NotAsked;
        }
        let tensors = opened.gguf.tensors.iter().filter(|tensor| write.edits.touches(&tensor.name));
        let problem = |tensor: &TensorInfo| {
            Some((tensor.name.clone(), requant::unroundable(tensor, tensor.ggml_type)?))
        };
        if let Some((tensor, problem)) = { tensors }.find_map(problem) {
            return Control::LeftOut(format!("{tensor} cannot be requantized: {problem}"));
        }
        match self.score_requantized(write, before) {
            Ok(score) => Control::Scored(score),
            Err(_) if interrupt::requested() => Control::LeftOut("the run was interrupted".into()),
            Err(error) => Control::LeftOut(error.to_string()),
        }
    }

    fn score_requantized(&self, write: Write<'_>, before: &Before) -> Result<Score, Error> {
        let Session { opened, options, printer, .. } = self.session;
        // Never committed, so the file only ever has its temporary name.
        let mut file = AtomicModel::create(&options.write.output, &opened.gguf, true)?;
        Write { change: Change::RequantizeOnly, ..write }.write(&mut file, printer)?;
        let mut engine = self.load(&Gguf::open(file.temporary_path())?)?;
        let _bar = printer.bar("scoring the control", 1);
        Ok(before.evaluator.half().evaluate(&mut engine)?.score)
    }
}
