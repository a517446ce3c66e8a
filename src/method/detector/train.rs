//! Trains detectors from examples: a score, and a threshold that few prompts pass for which the gate must stay closed.
//!
//! Scores are biased on the rows that they were learned from, so thresholds are quantiles of held-out scores: the
//! prompts are split into four folds, and each fold is scored by a fit to the other three.

use std::iter;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};

use super::ffn::Activation;
use super::logistic::{Design, Score};
use super::{Gate, Opens};
use crate::eval::prompts::PromptKind;
use crate::eval::prompts::contexts::Context;
use crate::util::linalg::{self, Cholesky, NotPositive};

/// Number of folds of the cross-validation.
const FOLDS: usize = 4;
/// Number of bars of a [`Histogram`].
const BARS: usize = 32;
/// Ridge of the constant, as a share of the mean squared input.
const CONSTANT_RIDGE: f64 = 0.01;
/// Weight of prompts that a gate must not confuse with those it opens on; above 1 because harmless prompts are so
/// diverse.
const KEPT_APART: f32 = 1.5;
/// Opening above which a gate counts as open.
const OPEN: f64 = 0.5;

/// Inputs of one network at one token of the template after a message.
#[derive(Debug, Clone)]
pub struct Examples {
    /// Input for each prompt, f32 `[n][n_embd]`.
    pub inputs: Array2<f32>,
    /// Label of each row of `inputs`, `[n]`.
    pub labels: Vec<Label>,
    /// Inputs at various other tokens, where the gates should be closed: other template tokens, tokens inside prompts,
    /// prose, code, and answers; f32 `[m][n_embd]`.
    pub elsewhere: Array2<f32>,
    /// The part of `elsewhere` from which scores also learn, called other tokens in [`super::logistic`]; f32
    /// `[m][n_embd]`.
    pub other_tokens: Array2<f32>,
}

/// The label of one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Kind of the prompt.
    pub kind: PromptKind,
    /// Context in which the request appears.
    pub context: Context,
    /// Identifies the request among those of its kind; the same request can appear in several contexts.
    pub request: usize,
    /// Whether the prompt is a lookalike, a harmful prompt that looks like an innocent one, or the innocent counterpart
    /// of one. A score that opened on lookalikes would miss other harmful prompts, so they have a gate of their own.
    pub lookalike: bool,
}

impl Label {
    /// Returns whether gates that open on `opens` learn from this prompt. The borderline ones learn to stay shut on
    /// lookalikes, too.
    fn teaches(&self, opens: Opens) -> bool {
        match opens {
            Opens::Harmful => !self.lookalike,
            Opens::Lookalike => self.lookalike || self.kind != PromptKind::Harmful,
            Opens::Borderline => true,
        }
    }
}

/// Hyperparameters of detector training; docs/notebook/detectors.md lists the alternatives that were tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Ridge penalty ρ of the regression.
    pub ridge: f64,
    /// Width Δ, in standard deviations of the scores.
    pub width: f64,
    /// Shares of the prompts on which the gate for harmful prompts stays closed.
    pub harmful: Shut,
    /// Shares of the prompts on which the gate for lookalikes stays closed.
    pub lookalike: Shut,
    /// Shares of the prompts on which the gate for borderline prompts stays closed.
    pub borderline: Shut,
}

/// Shares of the prompts on which a gate stays closed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shut {
    /// Share of harmless prompts.
    pub harmless: f64,
    /// Share of the other kind on which the gate should not open: borderline or harmful prompts.
    pub other: f64,
}

/// Held-out scores of one kind of prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Kind of the prompts, or `text` for all tokens that are not at the end of a prompt; `text` has no bars, because
    /// its score has no meaning.
    pub of: String,
    /// Number of prompts in each bar, from [`Profile::from`] to [`Profile::until`].
    pub bars: Vec<u64>,
    /// Share on which the gate is more than half open.
    pub open: f64,
    /// Mean opening of the gate, 0 to 1.
    pub opening: f64,
}

/// The behavior of a gate on its training prompts, by held-out scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Block of the gate.
    pub layer: usize,
    /// Position of the token at which the gate opens, as the number of tokens before the last one of a prompt.
    pub before_last: usize,
    /// Prompts on which the gate opens.
    pub opens: Opens,
    /// Threshold θ, where the gate begins to open.
    pub threshold: f64,
    /// θ + Δ, the score from which on the gate is fully open.
    pub open_from: f64,
    /// Score at the left end of the histograms.
    pub from: f64,
    /// Score at the right end of the histograms.
    pub until: f64,
    /// Area under the ROC curve that separates the prompts on which the gate opens from all others.
    pub auroc: f64,
    /// One histogram for each kind of prompts, and one for text.
    pub kinds: Vec<Histogram>,
    /// How often the gate opens in each context; plain prompts come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contexts: Vec<InContext>,
}

/// Shares of the prompts in one context on which a gate is more than half open; `None` for kinds without prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InContext {
    /// Name of the context.
    pub context: String,
    /// Share of harmful prompts.
    pub harmful: Option<f64>,
    /// Share of harmless prompts.
    pub harmless: Option<f64>,
    /// Share of borderline prompts.
    pub borderline: Option<f64>,
}

impl Profile {
    /// Returns the histogram of one kind of prompts, or of `text`.
    pub fn of(&self, kind: &str) -> Option<&Histogram> {
        self.kinds.iter().find(|histogram| histogram.of == kind)
    }
}

/// A gate, with the held-out scores of all training rows.
#[derive(Debug, Clone)]
pub struct LearnedGate {
    /// The gate, learned from all rows.
    pub gate: Gate,
    /// Held-out score of each row, f64 `[n]`.
    pub scores: Vec<f64>,
}

/// Returns u, which is 1 at the token of the examples and 0 elsewhere, as closely as one row can:
///
/// ```text
/// min_u  Σ_examples (uᵀx − 1)²/n  +  Σ_elsewhere (uᵀx)²/m  +  ρ tr(C)/n_embd ‖u‖²,   C the sum of both second moments
/// ```
///
/// # Errors
/// Returns [`NotPositive`] if an input is not finite.
pub fn constant(examples: &Examples) -> Result<Vec<f32>, NotPositive> {
    let n_embd = examples.inputs.ncols();
    let mut moments = Array2::zeros((n_embd, n_embd));
    for x in [&examples.inputs, &examples.elsewhere] {
        let share = (1.0 / (x.nrows().max(1) as f64)).sqrt() as f32;
        linalg::add_outer(&mut moments, (x * share).t());
    }
    let ridge = CONSTANT_RIDGE * moments.diag().sum() / n_embd.max(1) as f64;
    moments.diag_mut().mapv_inplace(|v| v + ridge);
    let mean = linalg::mean_row(examples.inputs.view());
    let mut constant = Array1::from(Cholesky::of(moments)?.solve(mean.to_vec()));
    // The ridge shrinks u slightly; rescale it so that the mean over the examples is 1.
    let at_examples = constant.dot(&mean);
    constant.mapv_inplace(|v| v / at_examples);
    Ok(constant.mapv(|v| v as f32).to_vec())
}

/// Trains the gates of one network at one token.
pub struct Teacher<'a> {
    examples: &'a Examples,
    constant: &'a [f32],
    recipe: Recipe,
}

impl<'a> Teacher<'a> {
    /// Creates a teacher for the gates at one place.
    pub fn new(examples: &'a Examples, constant: &'a [f32], recipe: Recipe) -> Self {
        Self { examples, constant, recipe }
    }

    /// Learns the gate that opens on `opens`.
    ///
    /// # Errors
    /// Returns [`NotPositive`] if an input is not finite.
    pub fn learn(&self, opens: Opens) -> Result<LearnedGate, NotPositive> {
        let labels = &self.examples.labels;
        let is: Vec<bool> = labels.iter().map(|label| label.kind == opens.kind()).collect();
        let weight = |label: &Label| match (opens, label.kind) {
            _ if !label.teaches(opens) => 0.0,
            (Opens::Harmful | Opens::Lookalike, PromptKind::Harmless) => KEPT_APART,
            (Opens::Borderline, PromptKind::Harmless | PromptKind::Harmful) => KEPT_APART,
            _ => 1.0,
        };
        let weights = labels.iter().map(weight).collect();
        let Examples { inputs, other_tokens, .. } = self.examples;
        let design = Design::new(inputs.view(), weights, self.recipe.ridge, other_tokens.view())?;
        // A request is held out in all of its contexts.
        let without = |fold: usize| labels.iter().map(|label| label.request % FOLDS != fold).collect();
        let used: Vec<Vec<bool>> = iter::once(vec![true; is.len()]).chain((0..FOLDS).map(without)).collect();
        let mut fits = vec![Score::default(); used.len()];
        let all = fits.iter_mut().zip(&used);
        linalg::in_parallel(linalg::threads(used.len()), all, |(fit, used)| *fit = design.fit(&is, used));
        let score = fits.remove(0);
        let mut scores = vec![0.0; is.len()];
        for (score, used) in fits.iter().zip(&used[1..]) {
            let held_out = score.of(inputs.view());
            for i in (0..is.len()).filter(|&i| !used[i]) {
                scores[i] = held_out[i];
            }
        }
        let width = self.recipe.width * deviation(&scores);
        let threshold = self.threshold(opens, &scores);
        Ok(LearnedGate { gate: Gate { opens, score, threshold, width }, scores })
    }

    /// Returns a gate's scores of the plain prompts of one kind that it learned from. [`Shut`] refers to these;
    /// [`Profile::contexts`] covers the others.
    fn of(&self, opens: Opens, scores: &[f64], kind: PromptKind) -> Vec<f64> {
        self.of_context(opens, scores, kind, Context::Plain)
    }

    fn of_context(&self, opens: Opens, scores: &[f64], kind: PromptKind, context: Context) -> Vec<f64> {
        let is = |label: &Label| (label.kind, label.context) == (kind, context) && label.teaches(opens);
        self.examples.labels.iter().zip(scores).filter(|(label, _)| is(label)).map(|(_, &s)| s).collect()
    }

    /// Returns the lowest threshold that keeps the gate closed on the shares of prompts that the recipe requires.
    fn threshold(&self, opens: Opens, scores: &[f64]) -> f64 {
        let (shut, other) = match opens {
            Opens::Harmful => (self.recipe.harmful, PromptKind::Borderline),
            Opens::Lookalike => (self.recipe.lookalike, PromptKind::Borderline),
            Opens::Borderline => (self.recipe.borderline, PromptKind::Harmful),
        };
        let kinds = [(PromptKind::Harmless, shut.harmless), (other, shut.other)];
        let least =
            kinds.into_iter().filter_map(|(kind, share)| quantile(self.of(opens, scores, kind), share));
        least.fold(f64::NEG_INFINITY, f64::max)
    }

    /// Returns the share of the prompts on which a gate should open whose score exceeds its threshold.
    pub fn recall(&self, learned: &LearnedGate) -> f64 {
        let opens = learned.gate.opens;
        let own = self.of(opens, &learned.scores, opens.kind());
        own.iter().filter(|&&s| s > learned.gate.threshold).count() as f64 / own.len().max(1) as f64
    }

    /// Returns the profile of a gate in block `layer` that was learned at the token `before_last` tokens before the
    /// last.
    pub fn profile(
        &self,
        learned: &LearnedGate,
        layer: usize,
        before_last: usize,
        activation: Activation,
    ) -> Profile {
        let LearnedGate { gate, scores } = learned;
        let mut sorted = scores.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get((share * sorted.len() as f64) as usize).copied().unwrap_or(0.0);
        let (from, until) = (at(0.002), at(0.998).max(gate.threshold + gate.width));
        let histogram = |kind: PromptKind| {
            let scores = self.of(gate.opens, scores, kind);
            let mut bars = vec![0; BARS];
            for s in &scores {
                let bar = ((s - from) / (until - from) * BARS as f64).clamp(0.0, (BARS - 1) as f64);
                bars[bar as usize] += 1;
            }
            let openings = scores.iter().map(|&s| gate.opening(s, activation)).collect();
            Histogram::of(kind.as_str(), bars, openings)
        };
        let mut kinds = PromptKind::ALL.map(histogram).to_vec();
        let text = gate.openings(self.constant, self.examples.elsewhere.view(), activation);
        kinds.push(Histogram::of("text", Vec::new(), text));
        let mut known: Vec<Context> = self.examples.labels.iter().map(|label| label.context).collect();
        known.sort_unstable();
        known.dedup();
        let contexts =
            known.into_iter().map(|context| self.in_context(learned, context, activation)).collect();
        let own = gate.opens.kind();
        let others = PromptKind::ALL.into_iter().filter(|&kind| kind != own);
        let others: Vec<f64> = others.flat_map(|kind| self.of(gate.opens, scores, kind)).collect();
        Profile {
            layer,
            before_last,
            opens: gate.opens,
            threshold: gate.threshold,
            open_from: gate.threshold + gate.width,
            from,
            until,
            auroc: crate::util::stats::auroc(&self.of(gate.opens, scores, own), &others),
            kinds,
            contexts,
        }
    }

    fn in_context(&self, learned: &LearnedGate, context: Context, activation: Activation) -> InContext {
        let share = |kind: PromptKind| {
            let own = self.of_context(learned.gate.opens, &learned.scores, kind, context);
            let n_open = own.iter().filter(|&&s| learned.gate.opening(s, activation) > OPEN).count();
            (!own.is_empty()).then(|| n_open as f64 / own.len() as f64)
        };
        let [harmful, harmless, borderline] = PromptKind::ALL.map(share);
        InContext { context: context.name().into(), harmful, harmless, borderline }
    }
}

impl Histogram {
    fn of(name: &str, bars: Vec<u64>, openings: Vec<f64>) -> Self {
        let n = openings.len().max(1) as f64;
        Self {
            of: name.into(),
            bars,
            open: openings.iter().filter(|&&o| o > OPEN).count() as f64 / n,
            opening: openings.iter().sum::<f64>() / n,
        }
    }
}

impl Gate {
    /// Returns the opening at the inputs `x`, from the gate's own score and the constant uᵀx of each input, f64 `[n]`.
    pub fn openings(&self, constant: &[f32], x: ArrayView2<'_, f32>, activation: Activation) -> Vec<f64> {
        let scores = self.score.of(x);
        let constants = x.dot(&ArrayView1::from(constant));
        let at = |(s, &u): (f64, &f32)| {
            // With a constant of c, the neurons see wᵀx + (b − θ) c: the score of an input with constant 1, shifted.
            let u = f64::from(u);
            let moved = s + (f64::from(self.score.bias) - self.threshold) * (u - 1.0);
            u * self.opening_with(moved, u, activation)
        };
        scores.into_iter().zip(&constants).map(at).collect()
    }
}

/// Returns the value below which `share` of `values` lie; `None` if `values` is empty.
fn quantile(mut values: Vec<f64>, share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let at = (share * (values.len().checked_sub(1)?) as f64).ceil() as usize;
    values.get(at).copied()
}

fn deviation(values: &[f64]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHUT: Shut = Shut { harmless: 0.95, other: 0.9 };
    const RECIPE: Recipe =
        Recipe { ridge: 0.03, width: 0.7, harmful: SHUT, lookalike: SHUT, borderline: SHUT };

    fn noise(i: usize, j: usize) -> f32 {
        ((i * 7919 + j * 104_729) as f32 * 0.618).sin() + ((i * 31 + j * j) as f32 * 0.377).cos()
    }

    /// Three kinds of prompts around a mean, separated by two directions; other tokens have another mean.
    fn examples() -> Examples {
        let label = |i: usize| Label {
            kind: PromptKind::ALL[i % 3],
            context: Context::Plain,
            request: i,
            lookalike: false,
        };
        let labels: Vec<Label> = (0..360).map(label).collect();
        let inputs = Array2::from_shape_fn((360, 20), |(i, j)| {
            let own = match (labels[i].kind, j) {
                (PromptKind::Harmful, 0) | (PromptKind::Borderline, 1) => 2.5,
                _ => 0.0,
            };
            noise(i, j) + own + f32::from(j == 7) * 6.0
        });
        let elsewhere = Array2::from_shape_fn((300, 20), |(i, j)| noise(i + 1000, j) * 2.0);
        Examples { inputs, labels, other_tokens: elsewhere.clone(), elsewhere }
    }

    #[test]
    fn the_constant_is_one_at_its_token_and_nothing_elsewhere() {
        let examples = examples();
        let u = constant(&examples).unwrap();
        let at = |x: &Array2<f32>| x.dot(&ArrayView1::from(&u));
        let (own, other) = (at(&examples.inputs), at(&examples.elsewhere));
        assert!((own.mean().unwrap() - 1.0).abs() < 1e-3);
        assert!(own.iter().all(|v| (v - 1.0).abs() < 0.6), "{own}");
        assert!(other.iter().all(|v| v.abs() < 0.6), "{other}");
    }

    #[test]
    fn gates_are_as_shut_as_they_were_asked_to_be() {
        let examples = examples();
        let u = constant(&examples).unwrap();
        let teacher = Teacher::new(&examples, &u, RECIPE);
        for opens in [Opens::Harmful, Opens::Borderline] {
            let learned = teacher.learn(opens).unwrap();
            let profile = teacher.profile(&learned, 3, 0, Activation::Silu);
            let of = |name: &str| profile.of(name).unwrap();
            assert!(of("harmless").open <= 0.05, "{profile:?}");
            assert!(of(opens.kind().as_str()).open > 0.4, "{profile:?}");
            assert!(of("text").open == 0.0, "{profile:?}");
            assert!(profile.auroc > 0.9);
            assert_eq!(of("harmful").bars.iter().sum::<u64>(), 120);
            assert!(teacher.recall(&learned) >= of(opens.kind().as_str()).open);
        }
    }

    #[test]
    fn lookalikes_have_a_gate_of_their_own_keep_the_pull_shut_and_leave_the_push_as_it_was() {
        let mut examples = examples();
        let u = constant(&examples).unwrap();
        // Harmful prompts with the mark of borderline ones and a mark of their own.
        let more = Array2::from_shape_fn((80, 20), |(i, j)| {
            noise(i + 2000, j) + if j == 1 || j == 2 { 5.0 } else { 0.0 } + f32::from(j == 7) * 6.0
        });
        let learned = |examples: &Examples, opens| {
            let teacher = Teacher::new(examples, &u, RECIPE);
            let learned = teacher.learn(opens).unwrap();
            let scores = learned.gate.score.of(more.view());
            let n_open = scores.iter().filter(|&&s| s > learned.gate.threshold).count();
            (teacher.recall(&learned), n_open as f64 / 80.0)
        };
        let (push_before, _) = learned(&examples, Opens::Harmful);
        let (_, open_before) = learned(&examples, Opens::Borderline);
        let label =
            |request| Label { kind: PromptKind::Harmful, context: Context::Plain, request, lookalike: true };
        examples.labels.extend((120..200).map(label));
        examples.inputs = ndarray::concatenate![ndarray::Axis(0), examples.inputs, more];
        let (push, _) = learned(&examples, Opens::Harmful);
        let (pull, open) = learned(&examples, Opens::Borderline);
        let (own, open_on_all) = learned(&examples, Opens::Lookalike);
        assert!(own > 0.8 && open_on_all > 0.8, "{own} {open_on_all}");
        assert!((push - push_before).abs() < 0.02, "{push} {push_before}");
        assert!(open_before > 0.8 && open < 0.3 && pull > 0.4, "{open_before} {open} {pull}");
    }

    #[test]
    fn quantiles_leave_their_share_below() {
        assert_eq!(quantile(vec![3.0, 1.0, 2.0, 0.0, 4.0], 0.75), Some(3.0));
        assert_eq!(quantile(vec![], 0.5), None);
    }
}
