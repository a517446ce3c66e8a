//! Hidden states that a model showed on a set of prompts.

use ndarray::{Array2, Array3, Array4, ArrayView1, Axis, CowArray, s};

use crate::quant::preserve::InputModel;
use crate::util::linalg;
use rows::{Route, Rows};

pub mod rows;

/// Inputs of one residual writer. A row of a mixture of experts holds the inputs of all experts that the
/// token was routed to, each times its weight: see [`rows`].
#[derive(Debug, Clone)]
pub struct WriterInputs {
    /// x at tokens spread evenly over all prompts and positions but the last ones, f32
    /// `[n_sample][n_in]`; what all prompts begin with is taken once. Empty where llama.cpp computes the
    /// last tokens only (the FFN of the last layer).
    pub sample: Array2<f32>,
    /// x at the tokens before each prompt's last one, nearest first, f32 `[n_kept·n_tail][n_in]`; empty
    /// where it was not asked for or not seen.
    pub tail: Array2<f32>,
    /// x at the last token of each prompt, f32 `[n_kept][n_in]`; `n_kept ≤ n_prompt` where memory
    /// is short.
    pub last: Array2<f32>,
    /// Of a mixture of experts: where each row went.
    pub routes: Option<Routes>,
}

/// The experts that the rows of [`WriterInputs`] went to, u32 `[rows][n_used]`.
#[derive(Debug, Clone)]
pub struct Routes {
    /// Number of experts.
    pub n_expert: usize,
    /// Of [`WriterInputs::sample`].
    pub sample: Array2<u32>,
    /// Of [`WriterInputs::tail`].
    pub tail: Array2<u32>,
    /// Of [`WriterInputs::last`].
    pub last: Array2<u32>,
}

/// Which of the kept tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// [`WriterInputs::last`].
    Last,
    /// [`WriterInputs::tail`].
    Tail,
    /// [`WriterInputs::sample`].
    Sample,
}

impl Routes {
    fn part(&self, part: Part) -> &Array2<u32> {
        match part {
            Part::Last => &self.last,
            Part::Tail => &self.tail,
            Part::Sample => &self.sample,
        }
    }

    /// Where the rows of `part` went.
    pub fn part_mut(&mut self, part: Part) -> &mut Array2<u32> {
        match part {
            Part::Last => &mut self.last,
            Part::Tail => &mut self.tail,
            Part::Sample => &mut self.sample,
        }
    }
}

impl WriterInputs {
    /// The rows of `part`.
    pub fn rows(&self, part: Part) -> Rows<'_> {
        let x = match part {
            Part::Last => &self.last,
            Part::Tail => &self.tail,
            Part::Sample => &self.sample,
        };
        let route = self.routes.as_ref().map(|routes| Route {
            experts: CowArray::from(routes.part(part).slice(s![..x.nrows(), ..])),
            n_expert: routes.n_expert,
        });
        Rows { x: CowArray::from(x.view()), route }
    }

    /// What is kept of `part`.
    pub fn part_mut(&mut self, part: Part) -> &mut Array2<f32> {
        match part {
            Part::Last => &mut self.last,
            Part::Tail => &mut self.tail,
            Part::Sample => &mut self.sample,
        }
    }

    /// Forgets sample and tail where some of it was never seen (NaN).
    pub fn drop_unseen(&mut self) {
        for part in [Part::Sample, Part::Tail] {
            let x = self.part_mut(part);
            if x.iter().any(|v| v.is_nan()) {
                *x = Array2::zeros((0, x.ncols()));
            }
        }
    }

    /// Mean input over the last tokens that were kept, `[n_expert·n_in]`.
    pub fn mean_last(&self) -> Vec<f64> {
        self.rows(Part::Last).mean()
    }
}

/// Fits `E[x xᵀ] ≈ diag(D) + Σ_p m_p m_pᵀ` to the inputs of one writer in several sets of prompts, each
/// scaled to length 1 (the few tokens with enormous inputs have a residual as enormous, to which noise
/// does nothing): m_p are the first `k` principal components (not centred) of all rows, D what these
/// leave of each input's own second moment, at least a hundredth of it. Of a token that went to several
/// experts one input is taken.
pub fn input_model(sets: &[&WriterInputs], k: usize) -> InputModel {
    let parts: Vec<_> = sets.iter().flat_map(|s| [s.rows(Part::Last), s.rows(Part::Sample)]).collect();
    let inputs: Vec<_> = parts.iter().map(Rows::one_each).collect();
    let views: Vec<_> = inputs.iter().map(|x| x.view()).collect();
    let Ok(mut rows) = ndarray::concatenate(Axis(0), &views) else { return InputModel::default() };
    let n = rows.nrows();
    if rows.is_empty() || rows.iter().any(|v| !v.is_finite()) {
        return InputModel::default();
    }
    for mut row in rows.rows_mut() {
        let norm = row.dot(&row).sqrt();
        row *= if norm > 0.0 { 1.0 / norm } else { 0.0 };
    }
    // The eigenvectors a of X Xᵀ/n are a few hundred long; those of Xᵀ X/n are Xᵀa, scaled.
    let gram = rows.dot(&rows.t()) / n as f32;
    let (_, vectors) = linalg::top_eigen(gram.view(), k);
    let components = vectors.dot(&rows) / (n as f32).sqrt();
    let square = |j: usize| rows.column(j).iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n as f64;
    let diagonal = (0..rows.ncols()).map(|j| {
        let (own, known) =
            (square(j), components.column(j).iter().map(|&m| f64::from(m).powi(2)).sum::<f64>());
        (own - known).max(0.01 * own) as f32
    });
    InputModel {
        diagonal: diagonal.collect(),
        principal: components.rows().into_iter().map(|row| row.to_vec()).collect(),
    }
}

/// What was captured on a set of prompts.
#[derive(Debug, Clone)]
pub struct Activations {
    /// Residual stream after each layer at the last prompt token, f32 `[n_prompt][n_layer][n_embd]`.
    pub residual: Array3<f32>,
    /// The same at the tokens before it that were asked for, after the layers that were, f32
    /// `[n_prompt][n_tail][n_tail_layer][n_embd]`.
    pub residual_tail: Array4<f32>,
    /// Inputs of each writer, in the plan's order.
    pub inputs: Vec<WriterInputs>,
}

impl Activations {
    /// Adds the sampled tokens of `other`, of the same model and capture, to its own.
    pub fn add_sample(&mut self, other: &Self) {
        for (own, other) in self.inputs.iter_mut().zip(&other.inputs) {
            let parts = vec![own.rows(Part::Sample), other.rows(Part::Sample)];
            let Some(both) = Rows::concatenated(parts) else { continue };
            let (x, experts) = (both.x.into_owned(), both.route.map(|route| route.experts.into_owned()));
            own.sample = x;
            if let Some((routes, experts)) = own.routes.as_mut().zip(experts) {
                routes.sample = experts;
            }
        }
    }

    /// The residuals of some prompts of several sets, without the writers' inputs.
    pub fn residuals_of<'a>(parts: impl Iterator<Item = (&'a Self, Vec<usize>)>) -> Self {
        let chosen: Vec<Array3<f32>> =
            parts.map(|(set, prompts)| set.residual.select(Axis(0), &prompts)).collect();
        let views: Vec<_> = chosen.iter().map(|c| c.view()).collect();
        let residual = ndarray::concatenate(Axis(0), &views).unwrap_or_else(|_| Array3::zeros((0, 0, 0)));
        Self::of_residual(residual)
    }

    /// Those that have the residual at the last token only.
    pub fn of_residual(residual: Array3<f32>) -> Self {
        Self { residual, residual_tail: Array4::zeros((0, 0, 0, 0)), inputs: Vec::new() }
    }

    /// Number of prompts.
    pub fn n_prompt(&self) -> usize {
        self.residual.shape()[0]
    }

    /// Residual of `prompt` after `layer`, `[n_embd]`.
    pub fn at(&self, prompt: usize, layer: usize) -> ArrayView1<'_, f32> {
        self.residual.slice(s![prompt, layer, ..])
    }

    /// Mean residual after `layer` over all prompts, f64 `[n_embd]`.
    pub fn mean(&self, layer: usize) -> Vec<f64> {
        let mut mean = vec![0.0; self.residual.shape()[2]];
        for prompt in 0..self.n_prompt() {
            mean.iter_mut().zip(self.at(prompt, layer)).for_each(|(m, &v)| *m += f64::from(v));
        }
        let n = self.n_prompt().max(1) as f64;
        mean.iter_mut().for_each(|m| *m /= n);
        mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_has_the_second_moments_of_its_rows() {
        // Two strong directions and a little of everything else.
        let row = |i: usize, j: usize| {
            let (a, b) = ((i as f32).sin() * 3.0, (i as f32 * 2.3).cos());
            a + b * f32::from(j.is_multiple_of(2)) + ((i * 31 + j * 17) % 13) as f32 * 0.01
        };
        let inputs = WriterInputs {
            sample: Array2::from_shape_fn((40, 24), |(i, j)| row(i, j)),
            last: Array2::from_shape_fn((8, 24), |(i, j)| row(i + 40, j)),
            tail: Array2::zeros((0, 24)),
            routes: None,
        };
        let model = input_model(&[&inputs], 3);
        assert_eq!(model.principal.len(), 3);
        for j in 0..24 {
            let square = |i: usize| row(i, j).powi(2) / (0..24).map(|k| row(i, k).powi(2)).sum::<f32>();
            let own = (0..48).map(square).sum::<f32>() / 48.0;
            let known: f32 = model.principal.iter().map(|m| m[j] * m[j]).sum();
            assert!((model.diagonal[j] + known - own).abs() < 0.02 * own, "{j}");
            assert!(known > 0.9 * own, "{j}: {known} of {own}");
        }
        let none = || Array2::zeros((0, 24));
        let empty = WriterInputs { sample: none(), last: none(), tail: none(), routes: None };
        assert_eq!(input_model(&[&empty], 3), InputModel::default());
    }
}
