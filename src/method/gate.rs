//! The right factors of an edit, learned from the writers' inputs: gates that open on harmful prompts and stay shut on
//! everything else.
//!
//! The published right factor w̄ pushes on every token, with a sign that is left to chance. Gates are learned instead,
//! for all edited writers together, because their sum moves the residual stream. Writer w pushes by `u_wᵀx_w` along ŝ,
//! and at one token all W writers together push by `f = Σ_w u_wᵀx_w / W`. Let m be the log-odds that the model by
//! itself begins a refusal; f should move m to the right side of 0 by a margin M, and no further:
//!
//! ```text
//! min  Σ_harmful ln(1 + e^(M − m − f)) / N  +  κ Σ_others ln(1 + e^(M + m + f)) / N
//!   +  η/2 Σ_harmless f² / N  +  τ/2 E_tokens f²  +  λ/2 Σ_w ‖u_w‖² s_w / W
//! ```
//!
//! The effect of a push on the odds depends on where it is made: later layers turn and amplify the push of an early
//! one. So `f = Σ_w c_w u_wᵀx_w / W` with the effects c_w of the writers ([`effects`]), which are 1 until they are
//! measured. Without them, a prompt is still moved even if its pushes cancel in the sum.
//!
//! The first three sums run over the end tokens of each prompt: the last one and the template tokens before it, which
//! all prompts share. The answer is read from the last token, but pushes at the other tokens reach it through
//! attention, and a gate trained on the last token alone opens on borderline prompts at the others. *Others* are
//! harmless and borderline prompts; the third sum also keeps harmless prompts unchanged. The expectation runs over
//! tokens inside prompts of all kinds. `s_w` is the mean squared input, so that every writer has the same weight. A
//! harmful prompt that the model already refuses and another prompt that it already answers contribute almost nothing.
//!
//! The problem is solved in the dual: u_w = c_w X_wᵀa/s_w with one a `[R]` for all writers, from
//! `K = Σ_w c_w² X_w X_wᵀ/(s_w W)` `[R][R]`. So no `n_in × n_in` matrix is ever built (28,672² floats are 3 GB), and
//! the cost depends only on R, about two thousand tokens. Each logistic term is bounded by a parabola of curvature ¼.
//! The minimum of the bound is found repeatedly with a single Cholesky factor; each step lowers the loss.
//!
//! A mixture of experts is one wide writer whose input is 0 except for the experts that a token is routed to
//! ([`rows`](crate::llama::activations::rows)). Expert e gets `u_e = c_w Σ_i a_i p_ie x_ie / s_w` over the tokens i
//! that were routed to it, with the router weights p. For an expert that received no token, u_e is 0: it stays
//! unchanged.

use ndarray::{Array1, Array2};

use crate::eval::PerKind;
use crate::eval::prompts::PromptKind;
use crate::llama::activations::rows::Rows;
use crate::llama::activations::{Part, WriterInputs};
use crate::method::edit::RightFactors;
use crate::util::hint::Hint;
use crate::util::linalg::{Cholesky, NotPositive};

pub mod effects;

/// Maximum number of minimization steps.
const MAX_STEPS: usize = 200;
/// The minimization stops when no push changes by this much (log-odds) in one step.
const CLOSE: f64 = 2e-3;

/// Hyperparameters of the regression.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct GateOptions {
    /// λ, the ridge penalty.
    pub ridge: f64,
    /// M, the margin in log-odds.
    pub margin: f64,
    /// η, the weight of keeping harmless prompts unchanged.
    pub harmless: f64,
    /// τ, the weight of the tokens inside prompts.
    pub tokens: f64,
}

/// The values that `inject` uses; docs/notebook/linear-gates.md lists the alternatives that were tried.
impl Default for GateOptions {
    fn default() -> Self {
        Self { ridge: 1e-3, margin: 2.0, harmless: 4.0, tokens: 0.5 }
    }
}

/// Inputs for gate training.
#[derive(Debug, Clone, Copy)]
pub struct TrainingSet<'a> {
    /// Inputs of every writer, in the plan's order, for each kind of prompt.
    pub inputs: PerKind<&'a [WriterInputs]>,
    /// m of every prompt: log-odds that the base begins a refusal; 0 if missing.
    pub odds: PerKind<&'a [f64]>,
}

/// Why no gates were learned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No writer has usable inputs, or there are no harmful prompts.
    #[error("expected finite inputs of the {writers} writers to edit, found none")]
    Inputs {
        /// Number of writers to edit.
        writers: usize,
    },
    /// The regression has no solution.
    #[error(transparent)]
    Singular(#[from] NotPositive),
    /// The learned gates do not push harmful prompts.
    #[error("the writers' inputs do not separate harmful prompts from the others")]
    Blind,
}

impl Hint for GateError {
    fn hint(&self) -> Option<String> {
        Some("try --method published, which needs no inputs".into())
    }
}

/// One row of the regression: a token.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Row {
    /// A token at the end of a prompt: the prompt's kind, and m.
    End { kind: PromptKind, odds: f64 },
    /// A token inside a prompt.
    Inside,
}

/// Returns the description of each row of `writer`.
fn rows(training_set: &TrainingSet<'_>, writer: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, inputs) in training_set.inputs.iter() {
        let (n, tail) = (inputs[writer].last.nrows(), inputs[writer].tail.nrows());
        let end =
            |prompt: usize| Row::End { kind, odds: *training_set.odds[kind].get(prompt).unwrap_or(&0.0) };
        rows.extend((0..n).map(end));
        rows.extend((0..tail).map(|row| end(row / (tail / n.max(1)).max(1))));
    }
    let inside: usize =
        training_set.inputs.values().into_iter().map(|of_kind| of_kind[writer].sample.nrows()).sum();
    rows.resize(rows.len() + inside, Row::Inside);
    rows
}

/// Returns all rows of `writer`: for each kind of prompt the last tokens and those before them, then the tokens inside
/// prompts of each kind. `None` if a row is missing or not finite.
fn features<'a>(training_set: &TrainingSet<'a>, writer: usize, n_row: usize) -> Option<Rows<'a>> {
    let inputs = training_set.inputs.values().map(|of_kind| &of_kind[writer]);
    let ends = inputs.iter().flat_map(|i| [i.rows(Part::Last), i.rows(Part::Tail)]);
    let rows = Rows::concatenated(ends.chain(inputs.iter().map(|i| i.rows(Part::Sample))).collect())?;
    (rows.x.nrows() == n_row && rows.x.iter().all(|v| v.is_finite())).then_some(rows)
}

/// The kernel of the regression for a set of writers.
pub struct Kernel<'a> {
    training_set: TrainingSet<'a>,
    rows: Vec<Row>,
    /// Index and c_w/s_w of each writer with usable inputs.
    writers: Vec<(usize, f64)>,
    /// K, in the lower triangle.
    gram: Array2<f64>,
}

impl<'a> Kernel<'a> {
    /// Builds the kernel of `writers` (indices into the plan).
    ///
    /// Writers with missing rows are left out, such as those of the last layer, of which llama.cpp computes only the
    /// last tokens. `effects` holds c_w of every writer of the plan; without it, all are 1. `step` is called after each
    /// writer.
    ///
    /// # Errors
    /// Returns [`GateError::Inputs`] if no writer is left or there are no harmful prompts.
    pub fn of(
        training_set: TrainingSet<'a>,
        writers: &[usize],
        effects: Option<&[f64]>,
        step: &mut dyn FnMut(),
    ) -> Result<Self, GateError> {
        let rows = writers.iter().map(|&w| rows(&training_set, w)).max_by_key(Vec::len).unwrap_or_default();
        let n_row = rows.len();
        let mut kernel =
            Self { training_set, rows, writers: Vec::new(), gram: Array2::zeros((n_row, n_row)) };
        for &writer in writers {
            if let Some(x) = features(&training_set, writer, n_row) {
                let mut own = Array2::zeros((n_row, n_row));
                x.add_outer(&mut own);
                let mean = own.diag().sum() / n_row.max(1) as f64;
                let effect = effects.and_then(|e| e.get(writer)).map_or(1.0, |&c| c);
                if mean > 0.0 {
                    kernel.gram.scaled_add(effect * effect / mean, &own);
                    kernel.writers.push((writer, effect / mean));
                }
            }
            step();
        }
        if kernel.writers.is_empty() || !kernel.rows.iter().any(is_harmful) {
            return Err(GateError::Inputs { writers: writers.len() });
        }
        kernel.gram /= kernel.writers.len() as f64;
        Ok(kernel)
    }

    /// Returns the right factor of each of `n_writer` writers at κ = `contrast`, on a common scale: the mean of their
    /// summed push over harmful last tokens is 1.
    ///
    /// With κ = 0, the gates are only trained to leave all other prompts unchanged. A writer whose pushes have no
    /// effect (c_w = 0) gets `None`.
    ///
    /// # Errors
    /// Returns [`GateError::Singular`] if the regression has no solution, and [`GateError::Blind`] if the gates do not
    /// push harmful prompts.
    pub fn right_factors(
        &self,
        contrast: f64,
        options: &GateOptions,
        n_writer: usize,
    ) -> Result<RightFactors, GateError> {
        let dual = self.solve(contrast, options)?;
        let mut rights: RightFactors = vec![None; n_writer];
        let mut push = 0.0;
        for &(writer, scale) in self.writers.iter().filter(|(_, scale)| *scale > 0.0) {
            let x = features(&self.training_set, writer, self.rows.len());
            let weights: Array1<f32> = dual.iter().map(|a| (a * scale) as f32).collect();
            let Some(u) = x.map(|x| x.combined(&weights)) else { continue };
            let harmful = self.training_set.inputs.harmful[writer].rows(Part::Last);
            push += f64::from(harmful.pushes(&u).mean().unwrap_or(0.0));
            rights[writer] = Some(u);
        }
        if !(push > 0.0 && push.is_finite()) {
            return Err(GateError::Blind);
        }
        for value in rights.iter_mut().flatten().flatten() {
            *value = (f64::from(*value) / push) as f32;
        }
        Ok(rights)
    }

    /// Returns the dual solution a `[R]`. With the curvatures h and the minima t of the parabolas,
    /// `(S K S + λI) y = S t`, S = diag(√h); then `a = S y` and `f = K a = t − λ y/S`.
    fn solve(&self, contrast: f64, options: &GateOptions) -> Result<Vec<f64>, GateError> {
        let terms = self.terms(contrast, options);
        let root: Vec<f64> = terms.iter().map(|t| t.curvature.sqrt()).collect();
        let mut system = self.gram.clone();
        for (i, mut row) in system.rows_mut().into_iter().enumerate() {
            row.iter_mut().zip(&root).for_each(|(v, r)| *v *= root[i] * r);
        }
        system.diag_mut().mapv_inplace(|v| v + options.ridge);
        let factor = Cholesky::of(system)?;
        let mut push = vec![0.0; terms.len()];
        let mut solution = Vec::new();
        for _ in 0..MAX_STEPS {
            let minima: Vec<f64> = terms.iter().zip(&push).map(|(t, &f)| t.minimum(f)).collect();
            solution = factor.solve(minima.iter().zip(&root).map(|(t, r)| t * r).collect());
            let mut change = 0.0f64;
            for (i, f) in push.iter_mut().enumerate() {
                let next = minima[i] - options.ridge * solution[i] / root[i];
                change = change.max((next - *f).abs());
                *f = next;
            }
            if change < CLOSE {
                break;
            }
        }
        Ok(solution.iter().zip(&root).map(|(y, r)| y * r).collect())
    }

    /// Returns the loss term of each row.
    fn terms(&self, contrast: f64, options: &GateOptions) -> Vec<Term> {
        let n_end = self.rows.iter().filter(|r| **r != Row::Inside).count().max(1) as f64;
        let n_inside = (self.rows.len() as f64 - n_end).max(1.0);
        let term = |row: &Row| match *row {
            Row::End { kind: PromptKind::Harmful, odds } => {
                Term::logistic(1.0, odds, options.margin, 1.0 / n_end)
            }
            Row::End { kind, odds } if contrast > 0.0 => {
                let term = Term::logistic(-1.0, odds, options.margin, contrast / n_end);
                if kind == PromptKind::Borderline { term } else { term.and_quiet(options.harmless / n_end) }
            }
            Row::End { .. } => Term::quiet(options.harmless / n_end),
            Row::Inside => Term::quiet(options.tokens / n_inside),
        };
        self.rows.iter().map(term).collect()
    }
}

fn is_harmful(row: &Row) -> bool {
    matches!(row, Row::End { kind: PromptKind::Harmful, .. })
}

/// One term of the loss, as the parabola that bounds it.
struct Term {
    /// Curvature of the parabola.
    curvature: f64,
    /// +1 for a prompt to refuse, −1 for one to answer, 0 for one to leave unchanged.
    side: f64,
    /// `M − side·m`, the log-odds that are missing to reach the margin.
    missing: f64,
    /// Share of the curvature that comes from the logistic term.
    logistic: f64,
}

impl Term {
    fn logistic(side: f64, odds: f64, margin: f64, weight: f64) -> Self {
        Self { curvature: weight / 4.0, side, missing: margin - side * odds, logistic: 1.0 }
    }

    fn quiet(weight: f64) -> Self {
        Self { curvature: weight, side: 0.0, missing: 0.0, logistic: 0.0 }
    }

    /// Adds `weight/2 f²`.
    fn and_quiet(self, weight: f64) -> Self {
        let curvature = self.curvature + weight;
        Self { curvature, logistic: self.curvature / curvature, ..self }
    }

    /// Returns where the parabola that touches the term at `push` has its minimum.
    fn minimum(&self, push: f64) -> f64 {
        let lacking = self.missing - self.side * push;
        self.logistic * (push + 4.0 * self.side / (1.0 + (-lacking).exp()))
    }
}

#[cfg(test)]
mod tests;
