//! Input of the walk over a range of columns.

use super::{InputModel, RankOneTarget};
use crate::gguf::GgmlType;

/// A range of columns, with the data in the layouts that the walk needs.
pub(super) struct Stripe<'a> {
    pub(super) ggml_type: GgmlType,
    pub(super) order: &'a [usize],
    pub(super) left: &'a [f32],
    pub(super) along: &'a [f32],
    /// 1/Σ m_i l_i over `order`: scales the shares of these rows up to the whole edit, since other rows do not change.
    pub(super) inverse_reach: f32,
    pub(super) right: &'a [f32],
    /// Number of m_p.
    pub(super) n_principal: usize,
    /// m_p of these columns, `[n/LANES][n_principal][LANES]`, zero beyond the last column; the layout for
    /// computing Σ_p e_p m_pj of many columns at once.
    pub(super) lanes: Vec<f32>,
    /// m_p as `[n][n_padded]`, padded to a multiple of [`WIDE`]; the layout for adding one column to all e_p.
    pub(super) columns: Vec<f32>,
    /// Σ_j m_pj r_j for each run of [`RUN`] columns, `[n_run][n_padded]`.
    pub(super) drift: Vec<f32>,
    /// 1/w_j.
    pub(super) inverse_weight: Vec<f32>,
}

/// Columns per entry of [`Stripe::drift`]; the size of the smallest group.
pub(super) const RUN: usize = 4;
/// Columns whose m_p are stored together: enough independent sums to hide latency. A sub-block has 16 or
/// 32 columns, a codeword group 4 or 8.
pub(super) const LANES: usize = 16;

/// Number of e_p updated at once.
pub(super) const WIDE: usize = 8;

impl<'a> Stripe<'a> {
    pub(super) fn new(
        ggml_type: GgmlType,
        target: RankOneTarget<'a>,
        inputs: &'a InputModel,
        columns: std::ops::Range<usize>,
        order: &'a [usize],
    ) -> Self {
        let right = &target.right[columns.clone()];
        let usable = inputs.principal.iter().filter(|m| m.len() == target.right.len());
        let principal: Vec<&[f32]> = usable.map(|m| &m[columns.clone()]).collect();
        let weight = |j: usize| -> f64 {
            let own = inputs.diagonal.get(columns.start + j).map_or(1.0, |&d| f64::from(d));
            own + principal.iter().map(|m| f64::from(m[j]).powi(2)).sum::<f64>()
        };
        let weights: Vec<f64> = (0..right.len()).map(weight).collect();
        // Without a floor, an input that is always zero would have weight 0, and its inverse would be infinite.
        let floor = 1e-3 * weights.iter().sum::<f64>() / weights.len().max(1) as f64;
        let inverse_weight = weights.iter().map(|w| (1.0 / w.max(floor).max(1e-30)) as f32).collect();
        let run = |m: &[f32], run: usize| {
            m[run * RUN..].iter().zip(right[run * RUN..].iter().take(RUN)).map(|(m, r)| m * r).sum::<f32>()
        };
        let drift = padded(&principal, right.len().div_ceil(RUN), run);
        let reach: f64 = order.iter().map(|&i| f64::from(target.along[i]) * f64::from(target.left[i])).sum();
        let inverse_reach = (1.0 / reach.max(f64::from(f32::MIN_POSITIVE))) as f32;
        let n_principal = principal.len();
        let columns = padded(&principal, right.len(), |m, j| m[j]);
        Self {
            ggml_type,
            order,
            left: target.left,
            along: target.along,
            inverse_reach,
            right,
            n_principal,
            lanes: in_lanes(&principal, right.len()),
            columns,
            drift,
            inverse_weight,
        }
    }
}

/// Returns `of(m_p, i)` as `[n][n_padded]`.
fn padded(principal: &[&[f32]], n: usize, of: impl Fn(&[f32], usize) -> f32) -> Vec<f32> {
    let zeros = principal.len().next_multiple_of(WIDE) - principal.len();
    let mut all = Vec::with_capacity(n * (principal.len() + zeros));
    for i in 0..n {
        all.extend(principal.iter().map(|m| of(m, i)));
        all.extend(std::iter::repeat_n(0.0, zeros));
    }
    all
}

/// Returns m_p in the layout of [`Stripe::lanes`].
fn in_lanes(principal: &[&[f32]], n: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(n.next_multiple_of(LANES) * principal.len());
    for first in (0..n).step_by(LANES) {
        for m in principal {
            all.extend((first..first + LANES).map(|j| m.get(j).copied().unwrap_or(0.0)));
        }
    }
    all
}
