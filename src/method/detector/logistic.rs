//! Ridge logistic regression on the inputs of a layer, which yields the scores of detectors.
//!
//! ```text
//! min_w  Σ_i v_i ln(1 + e^(−y_i f_i)) / Σ_i v_i  +  ρ/2 ‖w‖²,   f = Z w,   Z = [(X − μ)/s, 1]
//!                                                                               [    T/s,    0]
//! ```
//!
//! X is f32 `[n][d]`, μ its mean row, s the root mean square of X − μ, y = ±1, and v the weights of the rows. T, f32
//! `[m][d]`, holds the inputs of other tokens, with y = −1. There, the constant of a detector, and with it the bias of
//! its score, is 0, so the neurons see only wᵀx. If wᵀx is large, both neurons of a gate are on and cancel; but each is
//! large compared with the hidden values with which it shares a scale when a runtime rounds them to 8 bits.
//!
//! The logistic loss is bounded by a parabola of curvature ¼, so `A = Zᵀ diag(v) Z / (4 Σ v) + ρ I` is an upper bound
//! of the Hessian. L-BFGS (Nocedal & Wright, Numerical Optimization, algorithm 7.4) uses the same Cholesky factor of A
//! as its initial matrix in each step. About twenty steps are enough, for all rows and for the folds.

use std::collections::VecDeque;

use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use crate::util::linalg::{self, Cholesky, NotPositive, mean_row};

/// Maximum number of L-BFGS steps.
const MAX_STEPS: usize = 100;
/// Number of past steps that L-BFGS keeps.
const MEMORY: usize = 10;
/// L-BFGS stops when no component of the gradient is larger.
const SMALL: f64 = 1e-5;
/// Share of the predicted decrease that a step must reach (Armijo condition).
const ARMIJO: f64 = 1e-4;
/// Maximum number of evaluations in a line search, which halves the step each time.
const MAX_HALVINGS: usize = 30;
/// Number of rows that are summed in f32 before the partial sum is added in f64.
const SUMMED: usize = 256;
/// Total weight of the rows of other tokens, as a share of the total weight of the prompts.
const OTHER_TOKENS: f32 = 0.25;

/// A score `wᵀx + b`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// w, f32 `[d]`.
    pub weights: Vec<f32>,
    /// b, the bias.
    pub bias: f32,
}

impl Score {
    /// Returns the scores of the rows of `x` `[n][d]`.
    pub fn of(&self, x: ArrayView2<'_, f32>) -> Vec<f64> {
        let w = ndarray::ArrayView1::from(&self.weights);
        x.dot(&w).iter().map(|&f| f64::from(f + self.bias)).collect()
    }
}

/// A function that returns a loss and its gradient.
type Loss<'a> = dyn Fn(&Array1<f64>) -> (f64, Array1<f64>) + 'a;

/// Training rows, prepared for any labels.
pub struct Design {
    /// Z, f32 `[n + m][d + 1]`.
    rows: Array2<f32>,
    mean: Array1<f64>,
    scale: f64,
    /// v, `[n + m]`.
    weights: Vec<f32>,
    ridge: f64,
    hessian: Cholesky,
}

impl Design {
    /// Prepares `x` `[n][d]` with the weights v `[n]` and the `ridge` ρ, and the inputs of `other` tokens `[m][d]`.
    ///
    /// # Errors
    /// Returns [`NotPositive`] if a value is not finite.
    pub fn new(
        x: ArrayView2<'_, f32>,
        mut weights: Vec<f32>,
        ridge: f64,
        other: ArrayView2<'_, f32>,
    ) -> Result<Self, NotPositive> {
        let ((n, d), m) = (x.dim(), other.nrows());
        let mean = mean_row(x);
        let mut rows = Array2::ones((n + m, d + 1));
        let mut square = 0.0;
        for (mut row, x) in rows.rows_mut().into_iter().zip(x.rows()) {
            for ((z, &x), m) in row.iter_mut().zip(x).zip(&mean) {
                *z = (f64::from(x) - m) as f32;
                square += f64::from(*z).powi(2);
            }
        }
        let scale = (square / (n * d).max(1) as f64).sqrt();
        rows.slice_mut(s![n.., ..d]).assign(&other);
        rows.slice_mut(s![n.., d]).fill(0.0);
        rows.slice_mut(s![.., ..d]).mapv_inplace(|v| (f64::from(v) / scale) as f32);
        let share = OTHER_TOKENS * weights.iter().sum::<f32>() / m.max(1) as f32;
        weights.resize(n + m, share);
        let total: f64 = weights.iter().map(|&v| f64::from(v)).sum();
        let mut hessian = Array2::zeros((d + 1, d + 1));
        for (part, weights) in rows.axis_chunks_iter(Axis(0), SUMMED).zip(weights.chunks(SUMMED)) {
            let mut weighted = part.to_owned();
            for (mut row, &v) in weighted.rows_mut().into_iter().zip(weights) {
                row *= (f64::from(v) / (4.0 * total)).sqrt() as f32;
            }
            linalg::add_outer(&mut hessian, weighted.t());
        }
        hessian.diag_mut().mapv_inplace(|v| v + ridge);
        Ok(Self { rows, mean, scale, weights, ridge, hessian: Cholesky::of(hessian)? })
    }

    /// Learns the score that separates rows of X for which `is` holds from the others, using the rows for which `used`
    /// holds and the other tokens.
    pub fn fit(&self, is: &[bool], used: &[bool]) -> Score {
        let solution = self.minimise(&|w: &Array1<f64>| self.loss(w, is, used));
        let d = self.mean.len();
        let weights: Vec<f64> = solution.iter().take(d).map(|w| w / self.scale).collect();
        let offset: f64 = weights.iter().zip(&self.mean).map(|(w, m)| w * m).sum();
        Score {
            bias: (solution[d] - offset) as f32,
            weights: weights.into_iter().map(|w| w as f32).collect(),
        }
    }

    /// Returns the loss at `w` and its gradient, reading each row once for both.
    fn loss(&self, w: &Array1<f64>, is: &[bool], used: &[bool]) -> (f64, Array1<f64>) {
        let of_rows = w.mapv(|v| v as f32);
        let (mut loss, mut total) = (0.0, 0.0);
        let mut gradient = Array1::<f64>::zeros(w.len());
        for (part, rows) in self.rows.axis_chunks_iter(Axis(0), SUMMED).enumerate() {
            let mut of_part = Array1::<f32>::zeros(w.len());
            for (i, row) in (part * SUMMED..).zip(rows.rows()) {
                if !used.get(i).is_none_or(|used| *used) {
                    continue;
                }
                let y = if is.get(i).is_some_and(|is| *is) { 1.0 } else { -1.0 };
                let v = f64::from(self.weights[i]);
                let margin = y * f64::from(row.dot(&of_rows));
                // ln(1 + e^−m) without overflow.
                loss += v * ((-margin.abs()).exp().ln_1p() + (-margin).max(0.0));
                of_part.scaled_add((-v * y / (1.0 + margin.exp())) as f32, &row);
                total += v;
            }
            gradient.zip_mut_with(&of_part, |sum, &g| *sum += f64::from(g));
        }
        let total = total.max(f64::MIN_POSITIVE);
        (loss / total + 0.5 * self.ridge * w.dot(w), gradient / total + w * self.ridge)
    }

    fn minimise(&self, loss: &Loss<'_>) -> Array1<f64> {
        let mut w = Array1::zeros(self.rows.ncols());
        let (mut value, mut gradient) = loss(&w);
        let mut pairs: VecDeque<(Array1<f64>, Array1<f64>)> = VecDeque::new();
        for _ in 0..MAX_STEPS {
            if gradient.iter().all(|g| g.abs() <= SMALL) {
                break;
            }
            let step = -self.inverse_hessian(&pairs, &gradient);
            let promised = step.dot(&gradient);
            let mut length = 1.0;
            let found = (0..MAX_HALVINGS).find_map(|_| {
                let next = &w + &(&step * length);
                let (lower, slope) = loss(&next);
                let enough = lower <= value + ARMIJO * length * promised;
                length *= 0.5;
                enough.then_some((next, lower, slope))
            });
            // The precision of the f32 products allows no lower value.
            let Some((next, lower, slope)) = found else { break };
            let (moved, turned) = (&next - &w, &slope - &gradient);
            if moved.dot(&turned) > 0.0 {
                pairs.push_back((moved, turned));
            }
            if pairs.len() > MEMORY {
                pairs.pop_front();
            }
            (w, value, gradient) = (next, lower, slope);
        }
        w
    }

    /// Applies the L-BFGS two-loop recursion around A⁻¹ to `gradient`.
    fn inverse_hessian(
        &self,
        pairs: &VecDeque<(Array1<f64>, Array1<f64>)>,
        gradient: &Array1<f64>,
    ) -> Array1<f64> {
        let mut q = gradient.clone();
        let mut shares = Vec::with_capacity(pairs.len());
        for (moved, turned) in pairs.iter().rev() {
            let share = moved.dot(&q) / moved.dot(turned);
            q.scaled_add(-share, turned);
            shares.push(share);
        }
        let mut r = Array1::from(self.hessian.solve(q.to_vec()));
        for ((moved, turned), share) in pairs.iter().zip(shares.into_iter().rev()) {
            let back = turned.dot(&r) / moved.dot(turned);
            r.scaled_add(share - back, moved);
        }
        r
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two overlapping clouds, in coordinates of very different scales.
    fn clouds(n: usize, d: usize) -> (Array2<f32>, Vec<bool>) {
        let is: Vec<bool> = (0..n).map(|i| i % 3 == 0).collect();
        let x = Array2::from_shape_fn((n, d), |(i, j)| {
            let noise = ((i * 37 + j * 101) as f32 * 0.618).sin() + ((i * i + 7 * j) as f32 * 0.377).cos();
            let apart = if is[i] { 0.6 } else { -0.3 } * f32::from(j.is_multiple_of(4));
            (noise + apart) * (1.0 + 20.0 * f32::from(j == 5)) + 3.0
        });
        (x, is)
    }

    fn none(d: usize) -> Array2<f32> {
        Array2::zeros((0, d))
    }

    #[test]
    fn the_gradient_is_zero_where_it_ends() {
        let (x, is) = clouds(240, 30);
        let weights: Vec<f32> = is.iter().map(|&is| if is { 2.0 } else { 1.0 }).collect();
        let design = Design::new(x.view(), weights, 0.03, none(30).view()).unwrap();
        let score = design.fit(&is, &[true; 240]);
        let d = score.weights.len();
        let scaled = score.weights.iter().map(|&w| f64::from(w) * design.scale);
        let offset: f64 = score.weights.iter().zip(&design.mean).map(|(&w, m)| f64::from(w) * m).sum();
        let w: Array1<f64> = scaled.chain([f64::from(score.bias) + offset]).collect();
        assert_eq!(w.len(), d + 1);
        let (_, gradient) = design.loss(&w, &is, &[true; 240]);
        assert!(gradient.iter().all(|g| g.abs() < 1e-4), "{gradient}");
        let scores = score.of(x.view());
        let right = scores.iter().zip(&is).filter(|(s, is)| (**s > 0.0) == **is).count();
        assert!(right > 180, "{right} of 240");
    }

    #[test]
    fn other_tokens_get_no_product_above_zero() {
        let (x, is) = clouds(240, 30);
        let other = Array2::from_shape_fn((90, 30), |(i, j)| {
            ((i * 53 + j * 17) as f32 * 0.618).sin() * 4.0 + f32::from(j.is_multiple_of(4)) * 2.0
        });
        let products = |other: &Array2<f32>, taught: &Array2<f32>| -> f64 {
            let design = Design::new(x.view(), vec![1.0; 240], 0.03, taught.view()).unwrap();
            let score = Score { bias: 0.0, ..design.fit(&is, &[true; 240]) };
            score.of(other.view()).into_iter().map(|s| s.max(0.0)).sum::<f64>() / 90.0
        };
        let (untaught, taught) = (products(&other, &none(30)), products(&other, &other));
        assert!(taught < 0.5 * untaught, "{taught} {untaught}");
    }

    #[test]
    fn rows_that_are_not_used_teach_nothing() {
        let (x, is) = clouds(120, 12);
        let used: Vec<bool> = (0..120).map(|i| i < 90).collect();
        let design = Design::new(x.view(), vec![1.0; 120], 0.03, none(12).view()).unwrap();
        let mut lies = is.clone();
        lies[90..].iter_mut().for_each(|is| *is = !*is);
        assert_eq!(design.fit(&is, &used), design.fit(&lies, &used));
        assert_ne!(design.fit(&is, &used), design.fit(&lies, &[true; 120]));
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let x = Array2::from_elem((4, 2), f32::NAN);
        assert!(Design::new(x.view(), vec![1.0; 4], 0.03, x.view()).is_err());
    }
}
