//! Gate training in two passes: first as if every writer's push had the same effect, then with the measured
//! effects ([`crate::method::gate::effects`]).

use super::{Seen, WINDOW, space, space_of};
use crate::arch::window::Window;
use crate::eval::prompts::PromptKind;
use crate::eval::{Evaluator, FEW, MAX_ODDS, PerKind, chats};
use crate::llama::{Engine, LlamaEngine, LowRank};
use crate::method::direction::{Along, Directions};
use crate::method::edit::{self, RightFactors, WriterWeights};
use crate::method::gate::effects::{Moved, pushes};
use crate::method::gate::{GateOptions, Kernel, TrainingSet};
use crate::method::search::{DirectionSource, KlBudget, Refusal, SearchError};
use crate::output::Printer;
use crate::pipeline::edit_search::adapters;
use crate::pipeline::error::Error;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::Opened;
use crate::util::interrupt;
use crate::util::spread::spread;

/// Depth of the layer along whose direction effects are measured, with the first κ. Independent of the layer and κ
/// under trial, so that repeating a trial with explicit flags gives the same result.
const DEPTH: f64 = 0.6;

/// Prompts, over all kinds, for measuring the effect of one writer. Twice as many give no better estimate
/// (docs/notebook/linear-gates.md).
const PROMPTS_PER_EFFECT: usize = 11;

/// The gates of the writers in a window.
pub(super) struct LearnedGates {
    pub window: Window,
    pub contrast: f64,
    pub rights: RightFactors,
}

/// Inputs for gate training.
pub(super) struct GateTrainer<'a> {
    pub opened: &'a Opened,
    pub weights: &'a [WriterWeights],
    pub seen: &'a PerKind<Seen>,
    pub options: &'a InjectOptions,
    pub printer: &'a Printer,
}

impl GateTrainer<'_> {
    /// Trains the gates for every window and κ of the search space. Writers whose inputs the graph does not expose,
    /// and experts that no token was routed to, get no gate and stay unedited.
    pub fn learn(&self, ablated: bool, effects: Option<&[f64]>) -> Result<Vec<LearnedGates>, Error> {
        let of = |direction_source| space_of(self.options, direction_source);
        // The contrasts for an ablated direction are among the plain ones.
        let contrasts = of(DirectionSource::Plain).contrasts;
        let inside = |window| (window, self.opened.plan.writers_in(window));
        let direction_source = if ablated { DirectionSource::Ablated } else { DirectionSource::Plain };
        let windows: Vec<_> = of(direction_source).windows.into_iter().map(inside).collect();
        let total: usize = windows.iter().map(|(_, writers)| writers.len() + contrasts.len()).sum();
        let (bar, mut done) = (self.printer.bar("training the gates", total as u64), 0);
        let mut learned = Vec::new();
        for (window, writers) in windows {
            let mut step = || {
                done += 1;
                bar.set(done);
            };
            let kernel = Kernel::of(self.training_set(), &writers, effects, &mut step)?;
            for &contrast in &contrasts {
                interrupt::check()?;
                let rights = self.rights(&kernel, contrast)?;
                learned.push(LearnedGates { window, contrast, rights });
                step();
            }
            self.say_unrouted(learned.last());
        }
        Ok(learned)
    }

    /// Reports how many experts have no gate.
    fn say_unrouted(&self, learned: Option<&LearnedGates>) {
        let Some(LearnedGates { window, rights, .. }) = learned else { return };
        let writers = self.opened.plan.writers.iter().zip(rights);
        let rights = writers.filter_map(|(w, right)| Some((w.n_expert, right.as_deref()?)));
        let (unrouted, total) = edit::experts_spared(rights);
        if total > 0 {
            self.printer.detail(format!(
                "  layers {window}: {unrouted} of {total} experts received no tokens and stay unedited"
            ));
        }
    }

    fn training_set(&self) -> TrainingSet<'_> {
        TrainingSet {
            inputs: self.seen.as_ref().map(|s| s.activations.inputs.as_slice()),
            odds: self.seen.as_ref().map(|s| s.odds.as_slice()),
        }
    }

    fn rights(&self, kernel: &Kernel<'_>, contrast: f64) -> Result<RightFactors, Error> {
        Ok(kernel.right_factors(contrast, &GateOptions::default(), self.opened.plan.writers.len())?)
    }

    /// Measures what the push of each writer of the plan does to the log-odds of refusal, separately from the other
    /// writers: applies first-pass gates along `directions`, and reruns [`PROMPTS_PER_EFFECT`] prompts of the extract
    /// split per writer. Returns `None` if the effects cannot be determined.
    pub fn effects(
        &self,
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
        directions: &Directions,
    ) -> Result<Option<Vec<f64>>, Error> {
        let bar = self.printer.bar("measuring the writers' effects", 1 + PromptKind::ALL.len() as u64);
        let space = space(self.options.method, DirectionSource::Plain);
        let writers = self.opened.plan.writers_in(WINDOW);
        let kernel = Kernel::of(self.training_set(), &writers, None, &mut || ())?;
        let rights = self.rights(&kernel, space.contrasts[0])?;
        let layer = (DEPTH * directions.by_layer.len() as f64) as usize;
        let along = Along::Layers(&directions.by_layer).at(layer);
        let make = |strength: f64| -> Result<Vec<LowRank>, SearchError> {
            let (plan, along) = (&self.opened.plan, Along::One(along));
            Ok(adapters(plan, &edit::edits(plan, self.weights, &rights, along, strength)?)?)
        };
        let own = evaluator.base_refused().rate();
        let max_kl = self.options.search.allowed(Refusal::Whole, own).max_kl;
        let few = evaluator.part(FEW);
        let budget = KlBudget { engine, evaluator: &few, max_kl, strongest: space.strongest };
        let strength = budget.strength(&make, space.first_strength)?;
        engine.apply(&make(strength)?)?;
        bar.set(1);
        let mut done = 1;
        let moved = self.moved(engine, evaluator, &rights, &mut || {
            done += 1;
            bar.set(done);
        })?;
        engine.apply(&[])?;
        let found = moved.effects(&rights);
        self.printer.detail(match &found {
            Some(found) => {
                let own: Vec<f64> =
                    (0..found.len()).filter(|&w| rights[w].is_some()).map(|w| found[w]).collect();
                format!("  effects of the writers at layer {layer} strength {strength:.4}: {own:.2?}")
            }
            None => "  cannot determine the effects of the writers: weighting all equally".into(),
        });
        Ok(found)
    }

    /// Measures how the applied gates shift the prompts of all kinds; calls `step` after each kind.
    fn moved(
        &self,
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
        rights: &RightFactors,
        step: &mut dyn FnMut(),
    ) -> Result<Moved, Error> {
        let mut moved = Moved::default();
        let n_prompt = self.seen.values().into_iter().map(|seen| seen.texts.len()).sum();
        let share = effect_share(rights.iter().flatten().count(), n_prompt);
        for (kind, seen) in self.seen.iter() {
            // Under a memory limit, only the inputs of the first prompts are known.
            let of_kind = pushes(&seen.activations.inputs, rights);
            let known: Vec<usize> = (0..of_kind.nrows().min(seen.texts.len())).collect();
            let asked = spread(&known, (share * seen.texts.len() as f64).ceil() as usize);
            let texts: Vec<String> = asked.iter().map(|&i| seen.texts[i].clone()).collect();
            let mut odds = vec![0.0; texts.len()];
            engine.answer(&chats(&texts, None), 1, &mut |i, logits| odds[i] = evaluator.odds(logits))?;
            for (&i, now) in asked.iter().zip(odds) {
                moved.add(of_kind.row(i), seen.odds[i], now, kind == PromptKind::Harmful, MAX_ODDS);
            }
            step();
        }
        Ok(moved)
    }
}

/// Returns the share of `n_prompt` prompts that are run again to measure the effects of `n_writer` writers.
pub(super) fn effect_share(n_writer: usize, n_prompt: usize) -> f64 {
    ((PROMPTS_PER_EFFECT * n_writer) as f64 / n_prompt.max(1) as f64).min(1.0)
}
