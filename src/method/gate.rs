//! The right factors of an edit, chosen from what the writers are given to read: gates that open on
//! harmful prompts and stay shut on everything else.
//!
//! The published right factor w̄ pushes on every token, with a sign that nobody controls. Gates are learned
//! instead, those of all edited writers together, because it is their sum that moves the stream. Writer w
//! pushes by `u_wᵀx_w` along ŝ, and at a token all W of them push by `f = Σ_w u_wᵀx_w / W`. f is to move the
//! odds with which the model itself begins a refusal, m, across the line by a margin, and no further:
//!
//! ```text
//! min  Σ_harmful ln(1 + e^(M − m − f)) / N  +  κ Σ_others ln(1 + e^(M + m + f)) / N
//!   +  η/2 Σ_harmless f² / N  +  τ/2 E_tokens f²  +  λ/2 Σ_w ‖u_w‖² s_w / W
//! ```
//!
//! What a push does to the odds depends on where it is made: the one of an early layer is turned and
//! amplified by those after it. So `f = Σ_w c_w u_wᵀx_w / W` with the effects c_w of the writers
//! ([`effects`]), 1 until they were measured. Without them a prompt whose pushes cancel out in the sum is
//! still moved.
//!
//! The first three sums run over the last prompts' tokens (the very last and those of the template before it,
//! which all prompts share): the answer is read off the last, but what is pushed at the others reaches it
//! through attention, and a gate that was only taught the last token opens on borderline prompts there.
//! *Others* are harmless and borderline prompts; only harmless ones are to be left as they are beyond that. The
//! expectation runs over tokens inside prompts of all kinds. `s_w` is the mean squared input, so that every
//! writer counts alike. A harmful prompt that is refused anyway, and another one that is answered anyway,
//! ask for nothing.
//!
//! It is solved in the dual: u_w = c_w X_wᵀa/s_w with one a `[R]` for all writers, from `K = Σ_w c_w² X_w X_wᵀ/(s_w W)`
//! `[R][R]`, so that no `n_in × n_in` matrix is ever made (28,672² floats are 3 GB) and R, some two thousand
//! tokens, is all that counts. The logistic terms are bounded by parabolas of curvature ¼, whose minimum is
//! found again and again with one and the same Cholesky factor; each step lowers the loss.
//!
//! A mixture of experts is one wide writer whose input is 0 but for the experts that a token is routed to
//! ([`rows`](crate::llama::activations::rows)), so that expert e gets `u_e = c_w Σ_i a_i p_ie x_ie / s_w` over the
//! tokens i that it was given, with the weights p of the router. One that was given none gets 0: it is left
//! alone.

use ndarray::{Array1, Array2};

use crate::llama::activations::rows::Rows;
use crate::llama::activations::{Part, WriterInputs};
use crate::method::edit::RightFactors;
use crate::util::hint::Hint;
use crate::util::linalg::{Cholesky, NotPositive};

pub mod effects;

/// Most steps of the minimisation.
const MAX_STEPS: usize = 200;
/// It ends when no push changes by more than this (log-odds).
const CLOSE: f64 = 2e-3;

/// The knobs of the regression.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct GateOptions {
    /// λ.
    pub ridge: f64,
    /// M: log-odds by which refusal and answer are to be clear.
    pub margin: f64,
    /// η: how much it counts that harmless prompts are left as they are.
    pub harmless: f64,
    /// τ: how much the tokens inside prompts count beside the last ones.
    pub tokens: f64,
}

/// As `inject` has them; docs/notebook/linear-gates.md has what else was tried.
impl Default for GateOptions {
    fn default() -> Self {
        Self { ridge: 1e-3, margin: 2.0, harmless: 4.0, tokens: 0.5 }
    }
}

/// What gates learn from: harmful, harmless and borderline prompts.
#[derive(Debug, Clone, Copy)]
pub struct TrainingSet<'a> {
    /// Inputs of every writer, in the plan's order, per kind.
    pub inputs: [&'a [WriterInputs]; 3],
    /// m of every prompt: log-odds that the base begins a refusal; 0 where nothing is known.
    pub odds: [&'a [f64]; 3],
}

/// Why there are no gates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No writer has inputs.
    #[error("the inputs of the {writers} writers to be edited were not captured or are not finite")]
    Inputs {
        /// How many there are.
        writers: usize,
    },
    /// The regression has no solution.
    #[error(transparent)]
    Singular(#[from] NotPositive),
    /// The inputs do not tell harmful prompts from the others.
    #[error("the writers' inputs do not tell harmful prompts from the others")]
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
    /// One of the last of a prompt: its kind, and m.
    End { kind: usize, odds: f64 },
    /// Inside a prompt.
    Inside,
}

const HARMFUL: usize = 0;
const BORDERLINE: usize = 2;

/// What the rows of `writer` are.
fn rows(training_set: &TrainingSet<'_>, writer: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, inputs) in training_set.inputs.iter().enumerate() {
        let (n, tail) = (inputs[writer].last.nrows(), inputs[writer].tail.nrows());
        let end =
            |prompt: usize| Row::End { kind, odds: *training_set.odds[kind].get(prompt).unwrap_or(&0.0) };
        rows.extend((0..n).map(end));
        rows.extend((0..tail).map(|row| end(row / (tail / n.max(1)).max(1))));
    }
    let inside: usize = training_set.inputs.iter().map(|of_kind| of_kind[writer].sample.nrows()).sum();
    rows.resize(rows.len() + inside, Row::Inside);
    rows
}

/// All rows of `writer`, kind by kind: last tokens, those before them, tokens inside. `None` where one is
/// missing.
fn features<'a>(training_set: &TrainingSet<'a>, writer: usize, n_row: usize) -> Option<Rows<'a>> {
    let inputs = training_set.inputs.map(|of_kind| &of_kind[writer]);
    let ends = inputs.iter().flat_map(|i| [i.rows(Part::Last), i.rows(Part::Tail)]);
    let rows = Rows::concatenated(ends.chain(inputs.iter().map(|i| i.rows(Part::Sample))).collect())?;
    (rows.x.nrows() == n_row && rows.x.iter().all(|v| v.is_finite())).then_some(rows)
}

/// What the regression knows of a set of writers.
pub struct Kernel<'a> {
    training_set: TrainingSet<'a>,
    rows: Vec<Row>,
    /// Writers with inputs, and c_w/s_w.
    writers: Vec<(usize, f64)>,
    /// K in the lower triangle.
    gram: Array2<f64>,
}

impl<'a> Kernel<'a> {
    /// Of `writers` (indices into the plan); those whose rows are not all there (the last layer, of
    /// which llama.cpp computes the last tokens only) are left out. `effects` has c_w of every writer of
    /// the plan; without it all are 1. `step` hears of each.
    ///
    /// # Errors
    /// [`GateError::Inputs`] when none is left.
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

    /// The right factor of each of `n_writer` writers at κ = `contrast`, all on one scale: their sum over
    /// harmful last tokens is 1 in the mean. With κ = 0 all other prompts are to be left alone. A writer whose
    /// pushes do nothing (c_w = 0) has none.
    ///
    /// # Errors
    /// [`GateError`].
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
            let harmful = self.training_set.inputs[HARMFUL][writer].rows(Part::Last);
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

    /// a `[R]`: with curvatures h and parabolas' minima t, `(S K S + λI) y = S t`, S = diag(√h); then
    /// `a = S y` and `f = K a = t − λ y/S`.
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

    /// What each row asks for.
    fn terms(&self, contrast: f64, options: &GateOptions) -> Vec<Term> {
        let n_end = self.rows.iter().filter(|r| **r != Row::Inside).count().max(1) as f64;
        let n_inside = (self.rows.len() as f64 - n_end).max(1.0);
        let term = |row: &Row| match *row {
            Row::End { kind: HARMFUL, odds } => Term::logistic(1.0, odds, options.margin, 1.0 / n_end),
            Row::End { kind, odds } if contrast > 0.0 => {
                let term = Term::logistic(-1.0, odds, options.margin, contrast / n_end);
                if kind == BORDERLINE { term } else { term.and_quiet(options.harmless / n_end) }
            }
            Row::End { .. } => Term::quiet(options.harmless / n_end),
            Row::Inside => Term::quiet(options.tokens / n_inside),
        };
        self.rows.iter().map(term).collect()
    }
}

fn is_harmful(row: &Row) -> bool {
    matches!(row, Row::End { kind: HARMFUL, .. })
}

/// One term of the loss, as the parabola that bounds it.
struct Term {
    /// Its curvature.
    curvature: f64,
    /// +1 to be refused, −1 to be answered, 0 to be left alone.
    side: f64,
    /// `M − side·m`: what is missing.
    missing: f64,
    /// Share of the curvature that is the logistic term's.
    logistic: f64,
}

impl Term {
    fn logistic(side: f64, odds: f64, margin: f64, weight: f64) -> Self {
        Self { curvature: weight / 4.0, side, missing: margin - side * odds, logistic: 1.0 }
    }

    fn quiet(weight: f64) -> Self {
        Self { curvature: weight, side: 0.0, missing: 0.0, logistic: 0.0 }
    }

    /// The same, and `weight/2 f²`.
    fn and_quiet(self, weight: f64) -> Self {
        let curvature = self.curvature + weight;
        Self { curvature, logistic: self.curvature / curvature, ..self }
    }

    /// Where the parabola that touches the term at `push` is least.
    fn minimum(&self, push: f64) -> f64 {
        let lacking = self.missing - self.side * push;
        self.logistic * (push + 4.0 * self.side / (1.0 + (-lacking).exp()))
    }
}

#[cfg(test)]
mod tests;
