//! The effect of each writer's push on the answer, measured by the model's log-odds of refusal without and with gates.
//!
//! ```text
//! d_i = Σ_w c_w f_iw,   f_iw = u_wᵀx_iw at the last token of prompt i, d_i = change of its log-odds
//! min_c  Σ_i (d_i − Σ_w c_w f_iw)² + ν t Σ_w (c_w − g)²,   t = Σ_iw f_iw² / W
//! ```
//!
//! g is the best common c. Only the relative effects of the writers matter, so the c are divided by g.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

use crate::llama::activations::{Part, WriterInputs};
use crate::method::edit::RightFactors;
use crate::util::linalg::Cholesky;

/// ν, the ridge penalty.
const RIDGE: f64 = 0.1;
/// Largest plausible effect; larger ones come from noise.
const MOST: f64 = 3.0;
/// Log-odds from which on a harmful prompt is refused so surely that a push hardly shows.
const SURE: f64 = 1.0;
/// Minimum number of prompts per writer.
const PROMPTS_PER_WRITER: usize = 3;

/// Returns f of every writer with a right factor at the last token of each prompt, f64 `[n_prompt][W]`.
pub fn pushes(inputs: &[WriterInputs], rights: &RightFactors) -> Array2<f64> {
    let with = inputs.iter().zip(rights).filter_map(|(i, right)| Some((i, right.as_ref()?)));
    let columns: Vec<Array1<f64>> =
        with.map(|(inputs, right)| inputs.rows(Part::Last).pushes(right).mapv(f64::from)).collect();
    let views: Vec<_> = columns.iter().map(|c| c.view()).collect();
    ndarray::stack(Axis(1), &views).unwrap_or_else(|_| Array2::zeros((0, 0)))
}

/// Pushes on prompts, and the resulting changes of their log-odds.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    pushes: Vec<Array1<f64>>,
    changes: Vec<f64>,
}

impl Moved {
    /// Adds a prompt with `pushes` `[W]` whose log-odds changed from `before` to `now`.
    ///
    /// Skips prompts that carry no information: log-odds at ±`limit`, where they are clipped, and `harmful` prompts
    /// that were already refused so surely that a push hardly shows.
    pub fn add(&mut self, pushes: ArrayView1<'_, f64>, before: f64, now: f64, harmful: bool, limit: f64) {
        if now.abs().max(before.abs()) < limit && !(harmful && before >= SURE) {
            self.pushes.push(pushes.to_owned());
            self.changes.push(now - before);
        }
    }

    /// Returns the effect of every writer: the measured one for writers with a right factor, 1 for the others. `None`
    /// if the prompts do not determine the effects.
    pub fn effects(&self, rights: &RightFactors) -> Option<Vec<f64>> {
        let views: Vec<_> = self.pushes.iter().map(|r| r.view()).collect();
        let found = effects(ndarray::stack(Axis(0), &views).ok()?.view(), &self.changes)?;
        let mut all = vec![1.0; rights.len()];
        let edited = (0..rights.len()).filter(|&w| rights[w].is_some());
        edited.zip(found).for_each(|(writer, effect)| all[writer] = effect);
        Some(all)
    }
}

/// Returns c/g of each column of `pushes` `[n][W]`, fitted to the `changes` `[n]` of the log-odds; `None` if there are
/// too few prompts, or if the pushes do not raise the odds.
fn effects(pushes: ArrayView2<'_, f64>, changes: &[f64]) -> Option<Vec<f64>> {
    let (n, n_writer) = pushes.dim();
    if n < PROMPTS_PER_WRITER * n_writer || n != changes.len() || n_writer == 0 {
        return None;
    }
    let changes = Array1::from(changes.to_vec());
    let sums = pushes.sum_axis(Axis(1));
    let common = sums.dot(&changes) / sums.dot(&sums);
    if !(common > 0.0 && common.is_finite()) {
        return None;
    }
    let unexplained = &changes - &(&sums * common);
    let mut system = pushes.t().dot(&pushes);
    let ridge = RIDGE * system.diag().sum() / n_writer as f64;
    system.diag_mut().mapv_inplace(|v| v + ridge);
    let own = Cholesky::of(system).ok()?.solve(pushes.t().dot(&unexplained).to_vec());
    Some(own.iter().map(|c| (1.0 + c / common).clamp(0.0, MOST)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudorandom numbers around 0.
    fn noise(i: usize) -> f64 {
        let bits = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (bits >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    }

    #[test]
    fn effects_are_found_and_noise_is_shrunk() {
        let (n, truth) = (200, [0.2, 1.0, 1.8]);
        let pushes = Array2::from_shape_fn((n, 3), |(i, w)| 0.4 + noise(3 * i + w));
        let change =
            |i: usize| 1.5 * (0..3).map(|w| truth[w] * pushes[[i, w]]).sum::<f64>() + 0.1 * noise(7 * i);
        let found = effects(pushes.view(), &(0..n).map(change).collect::<Vec<_>>()).unwrap();
        for (found, truth) in found.iter().zip(truth) {
            assert!((found - truth).abs() < 0.25, "{found} {truth}");
        }
        let same = |i: usize| 1.5 * pushes.row(i).sum();
        let found = effects(pushes.view(), &(0..n).map(same).collect::<Vec<_>>()).unwrap();
        assert!(found.iter().all(|c| (c - 1.0).abs() < 1e-9), "{found:?}");
    }

    #[test]
    fn what_tells_nothing_gives_none() {
        let pushes = Array2::from_shape_fn((30, 3), |(i, w)| noise(3 * i + w));
        let against: Vec<f64> = pushes.rows().into_iter().map(|r| -r.sum()).collect();
        assert_eq!(effects(pushes.view(), &against), None);
        assert_eq!(effects(pushes.slice(ndarray::s![..5, ..]), &[1.0; 5]), None);
        assert_eq!(effects(pushes.view(), &[1.0; 29]), None);
    }

    #[test]
    fn pushes_are_those_of_writers_with_gates() {
        let inputs = |v: f32| WriterInputs {
            last: Array2::from_elem((2, 3), v),
            tail: Array2::zeros((0, 3)),
            sample: Array2::zeros((0, 3)),
            routes: None,
        };
        let found = pushes(&[inputs(1.0), inputs(2.0)], &vec![None, Some(vec![1.0, 0.5, 0.0])]);
        assert_eq!(found, ndarray::array![[3.0], [3.0]]);
    }
}
