//! The right factor of an edit, chosen from what the writer is given to read: a gate that opens on
//! harmful prompts and stays shut on everything else.
//!
//! The published right factor w̄ pushes on every token, with a sign that nobody controls. A gate u is
//! the ridge regression of a target on the writer's inputs x,
//!
//! ```text
//! u = argmin  Σ_last (uᵀx − y)²/N  +  τ·E_tokens (uᵀx)²  +  λ‖u‖²
//! ```
//!
//! over the last prompt tokens, with y = 1 on harmful, y = −κ on alarming-but-harmless and y = 0 on
//! harmless prompts, and over tokens of all positions of the harmless and alarming prompts, where the
//! gate is to do nothing; then scaled so that the mean of uᵀx over harmful last tokens is 1. With κ > 0
//! the edit pushes what only sounds harmful towards an answer.
//!
//! It is solved in the dual: with the rows, weighted, in X `[R][n_in]`, `u = Xᵀ(X Xᵀ + λI)⁻¹y`, so
//! that no `n_in × n_in` matrix is ever made (28,672² floats are 3 GB), and a few hundred rows do for
//! inputs of any width.

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::activations::WriterInputs;
use crate::linalg::{Cholesky, NotPositive};

/// The knobs of the regression.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct GateOptions {
    /// λ over the mean squared input, `tr(X Xᵀ)/n_in`.
    pub ridge: f64,
    /// τ: how much the tokens of all positions count beside the last ones.
    pub tokens: f64,
}

/// The gate of one writer for every κ: u is linear in the targets, so `u ∝ u₁ − κ u₂`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// u₁: target 1 on harmful prompts, `[n_in]`.
    opening: Array1<f32>,
    /// u₂: target 1 on alarming prompts, `[n_in]`.
    turning: Array1<f32>,
    /// Means of u₁ᵀx and u₂ᵀx over the last tokens of harmful prompts.
    means: (f32, f32),
}

impl Gate {
    /// u at κ = `contrast`, scaled so that the mean of uᵀx over harmful last tokens is 1; `None` where
    /// the inputs do not tell harmful prompts from the others.
    pub fn right_factor(&self, contrast: f64) -> Option<Vec<f32>> {
        let kappa = contrast as f32;
        let mean = self.means.0 - kappa * self.means.1;
        let u = (&self.opening - &(&self.turning * kappa)) / mean;
        (mean > 0.0 && u.iter().all(|v| v.is_finite())).then(|| u.to_vec())
    }
}

/// The inputs of one writer on the three kinds of prompts.
#[derive(Debug, Clone, Copy)]
pub struct GateInputs<'a> {
    /// Should be refused.
    pub harmful: &'a WriterInputs,
    /// Should be answered.
    pub harmless: &'a WriterInputs,
    /// Sound harmful and should be answered.
    pub alarming: &'a WriterInputs,
}

/// Why there is no gate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No inputs, or inputs that are not finite.
    #[error("{tensor}: the inputs of this writer were not captured on {rows} prompts or are not finite")]
    Inputs {
        /// The writer.
        tensor: String,
        /// How many prompts there should be.
        rows: usize,
    },
    /// The regression has no solution.
    #[error("{tensor}: {source}")]
    Singular {
        /// The writer.
        tensor: String,
        /// Why.
        source: NotPositive,
    },
}

impl GateError {
    /// A next step for the user.
    pub fn hint(&self) -> Option<String> {
        Some("try --method published, which needs no inputs".into())
    }
}

/// Rows of the regression: inputs, and how much each counts. Harmful prompts come first, alarming ones
/// from `alarming` on.
struct Rows {
    x: Array2<f32>,
    weight: Vec<f32>,
    harmful: Range<usize>,
    alarming: Range<usize>,
}

impl Rows {
    fn new(inputs: &GateInputs<'_>, options: &GateOptions) -> Option<Self> {
        let last = [inputs.harmful, inputs.harmless, inputs.alarming];
        let [n_harmful, n_harmless, n_alarming] = last.map(|set| set.last.nrows());
        let n_last = n_harmful + n_harmless + n_alarming;
        let sampled = [inputs.harmless, inputs.alarming];
        let n_token: usize = sampled.iter().map(|set| set.sample.nrows()).sum();
        let tokens = sampled.iter().map(|set| set.sample.view());
        let views: Vec<ArrayView2<'_, f32>> = last.iter().map(|set| set.last.view()).chain(tokens).collect();
        let x = ndarray::concatenate(Axis(0), &views).ok()?;
        let mut weight = vec![1.0 / n_last.max(1) as f32; n_last];
        weight.resize(x.nrows(), options.tokens as f32 / n_token.max(1) as f32);
        let rows = Self { weight, harmful: 0..n_harmful, alarming: n_harmful + n_harmless..n_last, x };
        (n_harmful > 0 && rows.x.iter().all(|v| v.is_finite())).then_some(rows)
    }

    /// `Xᵀ(X Xᵀ + λI)⁻¹y` for y = 1 on harmful and for y = 1 on alarming prompts, with every row, and
    /// its target, times the root of its weight.
    fn solve(mut self, ridge: f64) -> Result<[Array1<f32>; 2], NotPositive> {
        for (mut row, weight) in self.x.rows_mut().into_iter().zip(&self.weight) {
            row *= weight.sqrt();
        }
        let mut gram = self.x.dot(&self.x.t()).mapv(f64::from);
        let lambda = ridge * gram.diag().sum() / self.x.ncols().max(1) as f64;
        gram.diag_mut().mapv_inplace(|v| v + lambda);
        let factor = Cholesky::of(gram)?;
        let solution = |target: &Range<usize>| {
            let y = |(i, &w): (usize, &f32)| if target.contains(&i) { f64::from(w.sqrt()) } else { 0.0 };
            let dual = factor.solve(self.weight.iter().enumerate().map(y).collect());
            self.x.t().dot(&dual.mapv(|v| v as f32))
        };
        Ok([solution(&self.harmful), solution(&self.alarming)])
    }
}

/// The gate of the module's head for the writer `tensor`.
///
/// # Errors
/// [`GateError`] when the inputs are missing or the regression has no solution.
pub fn gate(tensor: &str, inputs: &GateInputs<'_>, options: &GateOptions) -> Result<Gate, GateError> {
    let tensor = || tensor.to_owned();
    let rows = Rows::new(inputs, options);
    let rows =
        rows.ok_or_else(|| GateError::Inputs { tensor: tensor(), rows: inputs.harmful.last.nrows() })?;
    let solved = rows.solve(options.ridge);
    let [opening, turning] = solved.map_err(|source| GateError::Singular { tensor: tensor(), source })?;
    let mean = |u: &Array1<f32>| inputs.harmful.last.dot(u).mean().unwrap_or(0.0);
    Ok(Gate { means: (mean(&opening), mean(&turning)), opening, turning })
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_IN: usize = 40;

    /// Rows of noise around `centre`, the same for the same seed.
    fn inputs(centre: &[f32], n: usize, seed: u64) -> WriterInputs {
        let noise = |rows: usize, seed| {
            let unit = crate::direction::random(0, rows * N_IN, seed).unwrap();
            let scale = ((rows * N_IN) as f32).sqrt() * 0.3;
            Array2::from_shape_vec((rows, N_IN), unit.unit().iter().map(|v| v * scale).collect()).unwrap()
        };
        let centre = Array1::from(centre.to_vec());
        WriterInputs { last: noise(n, seed) + &centre, sample: noise(2 * n, seed + 100) }
    }

    fn centre(at: usize) -> Vec<f32> {
        (0..N_IN).map(|j| if j == at { 3.0 } else { f32::from(j == 30) }).collect()
    }

    #[test]
    fn a_gate_opens_on_harmful_and_turns_on_alarming_prompts() {
        let (harmful, harmless, alarming) =
            (inputs(&centre(0), 32, 1), inputs(&centre(1), 32, 2), inputs(&centre(2), 32, 3));
        let sets = GateInputs { harmful: &harmful, harmless: &harmless, alarming: &alarming };
        for (contrast, expected) in [(0.0, 0.0), (0.7, -0.7)] {
            let gate = gate("w", &sets, &GateOptions { ridge: 0.05, tokens: 1.0 }).unwrap();
            let u = Array1::from(gate.right_factor(contrast).unwrap());
            // New prompts of the same kinds.
            let mean = |at, seed| inputs(&centre(at), 64, seed).last.dot(&u).mean().unwrap();
            assert!((mean(0, 11) - 1.0).abs() < 0.15, "{}", mean(0, 11));
            assert!(mean(1, 12).abs() < 0.2, "{}", mean(1, 12));
            assert!((mean(2, 13) - expected).abs() < 0.25, "{}", mean(2, 13));
        }
    }

    #[test]
    fn the_dual_solution_is_the_primal_one() {
        let (harmful, harmless, alarming) =
            (inputs(&centre(0), 9, 1), inputs(&centre(1), 7, 2), inputs(&centre(2), 8, 3));
        let sets = GateInputs { harmful: &harmful, harmless: &harmless, alarming: &alarming };
        let options = GateOptions { ridge: 0.1, tokens: 0.7 };
        let rows = Rows::new(&sets, &options).unwrap();
        let (x, weight) = (rows.x.mapv(f64::from), rows.weight.clone());
        let [opening, turning] = rows.solve(options.ridge).unwrap().map(|u| u.mapv(f64::from));
        let u = opening - 0.5 * turning;
        let y: Vec<f32> = (0..x.nrows())
            .map(|i| {
                if i < 9 {
                    1.0
                } else if (16..24).contains(&i) {
                    -0.5
                } else {
                    0.0
                }
            })
            .collect();
        // Gradient of the objective: Σ_r w_r (uᵀx_r − y_r) x_r + λu = 0.
        let trace: f64 = x.rows().into_iter().zip(&weight).map(|(r, &w)| f64::from(w) * r.dot(&r)).sum();
        let mut gradient = &u * (options.ridge * trace / N_IN as f64);
        for ((row, y), w) in x.rows().into_iter().zip(&y).zip(&weight) {
            gradient.scaled_add(f64::from(*w) * (row.dot(&u) - f64::from(*y)), &row);
        }
        assert!(gradient.dot(&gradient).sqrt() < 1e-4 * u.dot(&u).sqrt(), "{gradient}");
    }

    #[test]
    fn inputs_that_tell_nothing_apart_give_no_gate() {
        let same = WriterInputs { last: Array2::zeros((4, N_IN)), sample: Array2::zeros((0, N_IN)) };
        let sets = GateInputs { harmful: &same, harmless: &same, alarming: &same };
        let options = GateOptions { ridge: 0.05, tokens: 1.0 };
        let blind = gate("w", &sets, &options).ok().and_then(|gate| gate.right_factor(0.7));
        assert_eq!(blind, None);
        let missing = WriterInputs { last: Array2::from_elem((4, N_IN), f32::NAN), ..same.clone() };
        let sets = GateInputs { harmful: &missing, ..sets };
        assert!(matches!(gate("w", &sets, &options), Err(GateError::Inputs { .. })));
    }
}
