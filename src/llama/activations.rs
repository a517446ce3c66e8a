//! Hidden states captured from a model on a set of prompts.

use ndarray::{Array2, Array3, Array4, ArrayView1, Axis, CowArray, s};

use crate::quant::preserve::InputModel;
use crate::util::linalg;
use rows::{Route, Rows};

pub mod rows;

/// Inputs x of one residual writer. For a mixture of experts, a row holds the inputs of all experts that the
/// token was routed to, each multiplied by its router weight: see [`rows`].
#[derive(Debug, Clone)]
pub struct WriterInputs {
    /// x at tokens spread evenly over all prompts and positions except the last ones, f32
    /// `[n_sample][n_in]`; the prefix that all prompts share counts once. Empty where llama.cpp computes
    /// only the last tokens (the FFN of the last layer).
    pub sample: Array2<f32>,
    /// x at the requested tokens before each prompt's last one, in the order of the capture's offsets, f32
    /// `[n_kept·n_tail][n_in]`; empty if not requested or not captured.
    pub tail: Array2<f32>,
    /// x at the last token of each prompt, f32 `[n_kept][n_in]`; `n_kept < n_prompt` if memory
    /// is limited.
    pub last: Array2<f32>,
    /// Expert routing of each row; `None` for a dense writer.
    pub routes: Option<Routes>,
}

/// The experts that the rows of [`WriterInputs`] were routed to, u32 `[rows][n_used]`.
#[derive(Debug, Clone)]
pub struct Routes {
    /// Number of experts.
    pub n_expert: usize,
    /// Routing of [`WriterInputs::sample`].
    pub sample: Array2<u32>,
    /// Routing of [`WriterInputs::tail`].
    pub tail: Array2<u32>,
    /// Routing of [`WriterInputs::last`].
    pub last: Array2<u32>,
}

/// Selects one set of rows in [`WriterInputs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The rows of [`WriterInputs::last`].
    Last,
    /// The rows of [`WriterInputs::tail`].
    Tail,
    /// The rows of [`WriterInputs::sample`].
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

    /// Returns the routing of `part`.
    pub fn part_mut(&mut self, part: Part) -> &mut Array2<u32> {
        match part {
            Part::Last => &mut self.last,
            Part::Tail => &mut self.tail,
            Part::Sample => &mut self.sample,
        }
    }
}

impl WriterInputs {
    /// Returns the rows of `part` with their routing.
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

    /// Returns the stored inputs of `part`.
    pub fn part_mut(&mut self, part: Part) -> &mut Array2<f32> {
        match part {
            Part::Last => &mut self.last,
            Part::Tail => &mut self.tail,
            Part::Sample => &mut self.sample,
        }
    }

    /// Empties `sample` or `tail` if it contains values that were never captured (NaN).
    pub fn drop_unseen(&mut self) {
        for part in [Part::Sample, Part::Tail] {
            let x = self.part_mut(part);
            if x.iter().any(|v| v.is_nan()) {
                *x = Array2::zeros((0, x.ncols()));
            }
        }
    }

    /// Returns the mean input over the kept last tokens, `[n_expert·n_in]`.
    pub fn mean_last(&self) -> Vec<f64> {
        self.rows(Part::Last).mean()
    }
}

/// Fits `E[x xᵀ] ≈ diag(D) + Σ_p m_p m_pᵀ` to the last and sampled inputs of one writer over several sets of
/// prompts. The m_p are the first `k` principal components (not centered) of all rows; D is what they leave of
/// each input's second moment, but at least one hundredth of that moment.
///
/// Each input is scaled to length 1: the few tokens with enormous inputs also have an enormous residual, on
/// which noise has no effect. A token that was routed to several experts contributes one of its inputs. The
/// model is empty if there are no inputs or one is not finite.
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
    // X Xᵀ/n has only a few hundred rows; its eigenvectors a yield those of Xᵀ X/n as Xᵀa, up to scale.
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

/// Hidden states captured on a set of prompts.
#[derive(Debug, Clone)]
pub struct Activations {
    /// Residual stream after each layer at the last prompt token, f32 `[n_prompt][n_layer][n_embd]`.
    pub residual: Array3<f32>,
    /// Residual stream at the requested tokens before the last one, after the requested layers, f32
    /// `[n_prompt][n_tail][n_tail_layer][n_embd]`.
    pub residual_tail: Array4<f32>,
    /// Inputs of each captured writer, in the order of the plan or of the requested tensors.
    pub inputs: Vec<WriterInputs>,
}

impl Activations {
    /// Appends the sampled tokens of `other`, captured from the same model with the same capture settings.
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

    /// Collects the residuals of selected prompts from several sets, without the writers' inputs.
    pub fn residuals_of<'a>(parts: impl Iterator<Item = (&'a Self, Vec<usize>)>) -> Self {
        let chosen: Vec<Array3<f32>> =
            parts.map(|(set, prompts)| set.residual.select(Axis(0), &prompts)).collect();
        let views: Vec<_> = chosen.iter().map(|c| c.view()).collect();
        let residual = ndarray::concatenate(Axis(0), &views).unwrap_or_else(|_| Array3::zeros((0, 0, 0)));
        Self::of_residual(residual)
    }

    /// Wraps `residual`, taken at the last prompt tokens, without any other hidden states.
    pub fn of_residual(residual: Array3<f32>) -> Self {
        Self { residual, residual_tail: Array4::zeros((0, 0, 0, 0)), inputs: Vec::new() }
    }

    /// Returns the number of prompts.
    pub fn n_prompt(&self) -> usize {
        self.residual.shape()[0]
    }

    /// Returns the residual of `prompt` after `layer`, `[n_embd]`.
    pub fn at(&self, prompt: usize, layer: usize) -> ArrayView1<'_, f32> {
        self.residual.slice(s![prompt, layer, ..])
    }

    /// Returns the mean residual after `layer` over all prompts, f64 `[n_embd]`.
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
