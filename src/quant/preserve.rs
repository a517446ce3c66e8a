//! Requantization that preserves a rank-one edit: new codes are chosen on the existing grid of each block
//! so that the edit along its left factor is preserved in every column.
//!
//! A small edit is a small fraction of a quantization step, so rounding to nearest discards it. But of the
//! edit `ΔW = l rᵀ`, only `mᵀΔW = rᵀ` must be preserved (mᵀl = 1): one number per column. A column has
//! hundreds of rows that can share it, so it is enough that a few rows move by one whole step. m equals l
//! (‖l‖ = 1) or, if a norm follows the matrix, the factor that measures the push of the residual stream
//! along the direction (`method::post_norm`). **Error diffusion** decides which rows move: the rows are
//! visited in descending order of their share of the edit, m_i l_i, and for every column j the weighted
//! error so far,
//!
//! ```text
//! c_j = Σ_{rows i so far} m_i (moved_ij − l_i r_j)
//! ```
//!
//! is carried into the rounding of the next row. Thus rows move as often as the edit requires, the part
//! that a value at the end of its range cannot take is carried to later rows, and the last rows, with the
//! smallest shares, leave a much smaller error than the first rows would.
//!
//! The moves also add noise `N = moved − ΔW`. Its cost is its effect on real inputs x,
//! `E‖N x‖² = tr(N C Nᵀ)` with `C = E[x xᵀ]`. With `C ≈ diag(D) + Σ_p m_p m_pᵀ` ([`InputModel`]), the walk
//! carries a second error along each row, `e_p = Σ_{columns j so far} m_pj N_ij`, and prefers steps that
//! reduce it. The best move of a single value is
//!
//! ```text
//! argmin_t  A·w_j (t + c_j/m_i)² + w_j (t − l_i r_j)² + 2 t Σ_p e_p m_pj,   w_j = D_j + Σ_p m_pj²
//! ```
//!
//! rounded to the grid, where A is the weight of the edit relative to the noise. A move never increases
//! |c_j| (for codebook types: Σ c_j² over the group), so no column (group) ends up further from its edit
//! than if the tensor were unchanged.
//!
//! Only codes change; scales, offsets, and all other bytes stay the same. The order of the computation
//! depends only on the tensor, so the result does not depend on the number of threads.

mod float;
mod stripe;

use std::marker::PhantomData;

use self::float::{BF16, F16, F32, walk_floats};
use self::stripe::{LANES, RUN, Stripe, WIDE};
use super::QuantError;
use super::codebook::Codebook;
use super::ffi::{self, Work};
use super::grid::{Grid, MAX_SUB, MAX_SUBS, WithGrid, with_grid};
use crate::gguf::GgmlType;

/// A: weight of an error along the edit relative to an error across it.
const ALONG: f32 = 3.0;
/// Rows whose share of the edit, √(m_i l_i), is below this fraction of the mean are not changed: they would move by
/// whole steps to correct an error on which they have hardly any effect.
const LEAST_SHARE: f32 = 0.25;
/// Maximum number of column stripes per tensor, and thus of threads.
const STRIPES: usize = 4;

/// Minimum number of columns per stripe: errors along a row are not carried from one stripe to the next.
const LEAST_STRIPE: usize = 1024;

/// Model of the inputs of a matrix: `E[x xᵀ] ≈ diag(D) + Σ_p m_p m_pᵀ`, in arbitrary units.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputModel {
    /// D, `[n_in]`; if empty, all entries are 1.
    pub diagonal: Vec<f32>,
    /// m_p, each `[n_in]`.
    pub principal: Vec<Vec<f32>>,
}

impl InputModel {
    /// Returns tr C.
    fn trace(&self) -> f64 {
        let principal = self.principal.iter().flatten().map(|&m| f64::from(m).powi(2)).sum::<f64>();
        self.diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() + principal
    }

    /// Returns the mean of two models of the same inputs, each scaled to trace 1. If the diagonals differ in length,
    /// returns `self` scaled to trace 1/2, or `other` if the diagonal of `self` is empty.
    pub fn mixed(mut self, mut other: Self) -> Self {
        for model in [&mut self, &mut other] {
            let scale = 0.5 / model.trace().max(f64::MIN_POSITIVE);
            model.diagonal.iter_mut().for_each(|d| *d = (f64::from(*d) * scale) as f32);
            let root = scale.sqrt();
            model.principal.iter_mut().flatten().for_each(|m| *m = (f64::from(*m) * root) as f32);
        }
        if self.diagonal.len() != other.diagonal.len() {
            return if self.diagonal.is_empty() { other } else { self };
        }
        self.diagonal.iter_mut().zip(&other.diagonal).for_each(|(a, b)| *a += b);
        self.principal.append(&mut other.principal);
        self
    }
}

/// Rank-one edit ΔW = left · rightᵀ of a matrix `[left.len()][right.len()]`.
#[derive(Debug, Clone, Copy)]
pub struct RankOneTarget<'a> {
    /// l, a unit vector, one entry per row.
    pub left: &'a [f32],
    /// m with mᵀl = 1, one entry per row: the contribution of a change of the row by 1 to the edit. Equal to l if no
    /// norm follows the matrix.
    pub along: &'a [f32],
    /// r, including the strength, one entry per column.
    pub right: &'a [f32],
}

/// Returns whether [`preserve`] can write the type.
pub fn can_preserve(ggml_type: GgmlType) -> bool {
    walk_of(ggml_type).is_some()
}

fn walk_of(ggml_type: GgmlType) -> Option<Walk> {
    let codewords = || Codebook::of(ggml_type).map(|_| walk_codewords as Walk);
    with_grid(ggml_type, ScalarWalk).or_else(|| float(ggml_type)).or_else(codewords)
}

/// Function that processes one stripe; takes the bytes of its rows and its parameters.
type Walk = fn(&mut [&mut [u8]], &Stripe<'_>);

/// Selects the walk of a scalar type.
struct ScalarWalk;

impl WithGrid for ScalarWalk {
    type Output = Walk;

    fn with<G: Grid>(self) -> Walk {
        walk::<G>
    }
}

fn float(ggml_type: GgmlType) -> Option<Walk> {
    Some(match ggml_type {
        GgmlType::F32 => walk_floats::<F32>,
        GgmlType::F16 => walk_floats::<F16>,
        GgmlType::BF16 => walk_floats::<BF16>,
        _ => return None,
    })
}

/// Adds `target` to the matrix in `bytes` (rows of `target.right.len()` values of `ggml_type`).
///
/// # Errors
/// Returns [`QuantError`] if the sizes do not match, the type cannot be written, or a factor is not finite.
pub fn preserve(
    ggml_type: GgmlType,
    bytes: &mut [u8],
    target: RankOneTarget<'_>,
    inputs: &InputModel,
    threads: usize,
) -> Result<(), QuantError> {
    let (n_row, n_in) = (target.left.len(), target.right.len());
    super::check_size(ggml_type, n_in, n_row * n_in, bytes.len())?;
    let unsupported = QuantError::Unsupported { ggml_type, direction: "from" };
    let walk = walk_of(ggml_type).ok_or(unsupported)?;
    if target.along.len() != n_row {
        return Err(QuantError::AlongSize { expected: n_row, found: target.along.len() });
    }
    check_finite(ggml_type, target.left)?;
    check_finite(ggml_type, target.along)?;
    check_finite(ggml_type, target.right)?;
    if n_row == 0 {
        return Ok(());
    }
    let order = row_order(target, if ggml_type.is_float() { 0.0 } else { LEAST_SHARE });
    let unit = Units::new(ggml_type, n_in);
    let stripes: Vec<Stripe<'_>> =
        unit.ranges().map(|columns| Stripe::new(ggml_type, target, inputs, columns, &order)).collect();
    let mut rows: Vec<Vec<&mut [u8]>> = stripes.iter().map(|_| Vec::with_capacity(n_row)).collect();
    for row in bytes.chunks_exact_mut(bytes.len() / n_row) {
        for (part, rows) in row.chunks_mut(unit.stripe_bytes()).zip(&mut rows) {
            rows.push(part);
        }
    }
    let jobs = std::sync::Mutex::new(stripes.iter().zip(&mut rows));
    std::thread::scope(|scope| {
        let worker = || {
            while let Some((stripe, rows)) = jobs.lock().ok().and_then(|mut jobs| jobs.next()) {
                walk(rows, stripe);
            }
        };
        (1..threads.min(STRIPES)).for_each(|_| drop(scope.spawn(worker)));
        worker();
    });
    Ok(())
}

fn check_finite(ggml_type: GgmlType, factor: &[f32]) -> Result<(), QuantError> {
    match factor.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(QuantError::NotFinite { ggml_type, index, value: factor[index] }),
        None => Ok(()),
    }
}

/// Division of the columns into stripes of whole blocks.
struct Units {
    n_in: usize,
    /// Columns per stripe.
    stripe: usize,
    /// Columns and bytes per block.
    block: (usize, usize),
}

impl Units {
    fn new(ggml_type: GgmlType, n_in: usize) -> Self {
        let block = (ggml_type.block_len() as usize, ggml_type.block_bytes() as usize);
        let stripes = (n_in / LEAST_STRIPE).clamp(1, STRIPES);
        let blocks = (n_in / block.0).div_ceil(stripes).max(1);
        Self { n_in, stripe: blocks * block.0, block }
    }

    fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        (0..self.n_in).step_by(self.stripe).map(|first| first..(first + self.stripe).min(self.n_in))
    }

    fn stripe_bytes(&self) -> usize {
        self.stripe / self.block.0 * self.block.1
    }
}

/// Returns the rows in descending order of their share of the edit, without those below `share` of the mean; ties by
/// index. (Ordering by |m_i| increases the noise after a norm by half: rows with large gains come first, and their
/// moves are large steps in the residual stream.)
fn row_order(target: RankOneTarget<'_>, share: f32) -> Vec<usize> {
    let RankOneTarget { left, along, .. } = target;
    let part = |i: usize| f64::from(along[i]) * f64::from(left[i]);
    let mean = ((0..left.len()).map(part).sum::<f64>() / left.len() as f64).sqrt();
    let least = (mean * f64::from(share)) as f32;
    let takes = |i: &usize| part(*i) > 0.0 && part(*i).sqrt() as f32 >= least;
    let mut order: Vec<usize> = (0..left.len()).filter(takes).collect();
    order.sort_by(|&a, &b| part(b).total_cmp(&part(a)).then(a.cmp(&b)));
    order
}

/// State of the walk over one row.
struct Row<'a, 's> {
    stripe: &'s Stripe<'a>,
    /// l_i.
    left: f32,
    /// m_i.
    along: f32,
    /// c_j.
    carry: &'s mut [f32],
    /// e_p, padded with zeros to a multiple of [`WIDE`].
    error: &'s mut [f32],
    /// Half the smallest distance between two levels; a smaller desired move has no effect.
    least: f32,
}

/// Adds by · m_p to e_p, [`WIDE`] elements at a time. Uses arrays, because the compiler optimizes loops over
/// slices for long slices.
#[inline(always)]
fn add(error: &mut [f32], by: f32, m: &[f32]) {
    for (e, m) in error.as_chunks_mut::<WIDE>().0.iter_mut().zip(m.as_chunks::<WIDE>().0) {
        *e = std::array::from_fn(|k| e[k] + by * m[k]);
    }
}

impl<'a, 's> Row<'a, 's> {
    /// Starts row `i` of the stripe, with the errors along the columns (`carry`) and along the row (`error`).
    fn new(stripe: &'s Stripe<'a>, i: usize, carry: &'s mut [f32], error: &'s mut [f32], least: f32) -> Self {
        Self { stripe, left: stripe.left[i], along: stripe.along[i], carry, error, least }
    }

    /// Computes `Σ_p e_p m_pj` for the N columns from `first` on, which must be contiguous in `lanes`.
    #[inline(always)]
    fn pull<const N: usize>(&self, first: usize, pull: &mut [f32]) {
        let len = self.stripe.n_principal * LANES;
        let lanes = &self.stripe.lanes[first / LANES * len..][..len];
        let mut sum = [0.0; N];
        for (m, &e) in lanes.chunks_exact(LANES).zip(self.error.iter()) {
            if let Some(m) = m[first % LANES..].first_chunk::<N>() {
                sum = std::array::from_fn(|k| sum[k] + e * m[k]);
            }
        }
        pull.copy_from_slice(&sum);
    }

    /// Charges the columns from `first` on with the row's share of the edit, as if nothing moved, and writes
    /// to `pull` the cost per unit of move due to the errors along the row, Σ_p e_p m_pj.
    #[inline(always)]
    fn charge(&mut self, first: usize, pull: &mut [f32]) {
        let (n, left) = (pull.len(), self.left);
        for (k, pull) in pull.chunks_mut(LANES).enumerate() {
            match pull.len() {
                LANES => self.pull::<LANES>(first + k * LANES, pull),
                8 => self.pull::<8>(first, pull),
                _ => self.pull::<4>(first, pull),
            }
        }
        let right = &self.stripe.right[first..first + n];
        let share = self.along * left * self.stripe.inverse_reach;
        self.carry[first..first + n].iter_mut().zip(right).for_each(|(c, r)| *c -= share * r);
        let n = self.error.len();
        let runs = &self.stripe.drift[first / RUN * n..(first + pull.len()) / RUN * n];
        // `max` avoids a chunk size of 0 if there are no m_p.
        runs.chunks_exact(n.max(1)).for_each(|drift| add(self.error, -left, drift));
    }

    /// Replaces `pull` with the optimal move of each value; returns the largest magnitude.
    #[inline(always)]
    fn wishes(&self, first: usize, pull: &mut [f32]) -> f32 {
        let n = pull.len();
        let right = &self.stripe.right[first..first + n];
        let carry = &self.carry[first..first + n];
        let inverse_weight = &self.stripe.inverse_weight[first..first + n];
        let along = -ALONG / self.along / (ALONG + 1.0);
        let (own, across) = (self.left / (ALONG + 1.0), 1.0 / (ALONG + 1.0));
        for j in 0..n {
            pull[j] = along * carry[j] + own * right[j] - across * pull[j] * inverse_weight[j];
        }
        // One maximum per lane, so that the compiler can vectorize the loop.
        let mut largest = [0.0f32; RUN];
        for pull in pull.chunks_exact(RUN) {
            largest.iter_mut().zip(pull).for_each(|(l, p)| *l = if p.abs() > *l { p.abs() } else { *l });
        }
        largest.into_iter().fold(0.0, f32::max)
    }

    /// Updates the errors after value `j` has moved by `by`.
    #[inline(always)]
    fn moved(&mut self, j: usize, by: f32) {
        self.carry[j] += self.along * by;
        let n = self.error.len();
        add(self.error, by, &self.stripe.columns[j * n..][..n]);
    }

    /// Processes the sub-block of `G::SUB` values from column `first` on, with step `step`.
    #[inline(always)]
    fn sub_block<G: Grid>(&mut self, first: usize, block: &mut [u8], at: usize, step: f32) {
        let mut wish = [0.0; MAX_SUB];
        let wish = &mut wish[..G::SUB];
        self.charge(first, wish);
        let largest = self.wishes(first, wish);
        let least = self.least * step.abs();
        if !(step.is_finite() && step != 0.0 && largest >= least) {
            return;
        }
        for (j, &wish) in wish.iter().enumerate().filter(|(_, w)| w.abs() >= least) {
            // At most twice the distance to c_j = 0, so that |c_j| does not grow.
            let most = -2.0 * self.carry[first + j] / (self.along * step);
            if most * wish * step <= 0.0 {
                continue;
            }
            let q = G::get(block, at + j);
            let (to, levels) = G::LEVELS.moved(q, wish / step, most.abs());
            if to != q {
                G::set(block, at + j, to);
                self.moved(first + j, levels * step);
            }
        }
    }
}

/// The walk over the rows of a stripe of a scalar type, as [`Work`].
struct OverLevels<'a, 's, G> {
    rows: &'s mut [&'a mut [u8]],
    stripe: &'s Stripe<'s>,
    grid: PhantomData<G>,
}

impl<G: Grid> Work for OverLevels<'_, '_, G> {
    #[inline(always)]
    fn run(self) {
        walk_levels::<G>(self.rows, self.stripe);
    }
}

fn walk<G: Grid>(rows: &mut [&mut [u8]], stripe: &Stripe<'_>) {
    ffi::vectorized(OverLevels { rows, stripe, grid: PhantomData::<G> });
}

#[inline(always)]
fn walk_levels<G: Grid>(rows: &mut [&mut [u8]], stripe: &Stripe<'_>) {
    let mut carry = vec![0.0; stripe.right.len()];
    let mut error = vec![0.0; stripe.n_principal.next_multiple_of(WIDE)];
    let mut steps = [0.0; MAX_SUBS];
    let least = 0.5 * G::LEVELS.gap();
    for &i in stripe.order {
        error.fill(0.0);
        let mut row = Row::new(stripe, i, &mut carry, &mut error, least);
        for (b, block) in rows[i].chunks_exact_mut(G::BYTES).enumerate() {
            G::steps(block, &mut steps);
            for (sub, &step) in steps[..G::LEN / G::SUB].iter().enumerate() {
                let at = sub * G::SUB;
                row.sub_block::<G>(b * G::LEN + at, block, at, step);
            }
        }
    }
}

impl Row<'_, '_> {
    /// Returns the bound on ‖step‖² beyond which no codeword can lower the cost. With the optimal move of value j,
    /// `v_j = (l r_j − A c_j/m − p_j/w_j)/(1 + A)`, a step costs `(1 + A) Σ w_j (step_j² − 2 step_j v_j)`, which is
    /// negative only if `Σ w_j step_j² < 4 Σ w_j v_j²`. The bound is 1 % larger to allow for rounding.
    #[inline(always)]
    fn reach(&self, first: usize, pull: &[f32]) -> f32 {
        let mut wish = [0.0; 8];
        let wish = &mut wish[..pull.len()];
        wish.copy_from_slice(pull);
        self.wishes(first, wish);
        let inverse_weight = &self.stripe.inverse_weight[first..first + pull.len()];
        let wanted: f32 = wish.iter().zip(inverse_weight).map(|(v, iw)| v * v / iw).sum();
        4.04 * wanted * inverse_weight.iter().fold(0.0, |max: f32, &iw| max.max(iw))
    }

    /// Replaces the codeword of the group of values from column `first` on if another one costs less. The cost
    /// is that of the module documentation, summed over the group; Σ c_j² must not grow.
    #[inline(always)]
    fn group(&mut self, book: &Codebook, first: usize, block: &mut [u8], g: usize) {
        let mut pull = [0.0; 8];
        let pull = &mut pull[..book.dim()];
        self.charge(first, pull);
        let (scale, own) = (book.scale(block, g), book.read(block, g));
        let now = book.values_at(scale, own);
        let carry = &self.carry[first..first + pull.len()];
        let carried: f32 = carry.iter().map(|c| c * c).sum();
        let right = &self.stripe.right[first..first + pull.len()];
        let inverse_weight = &self.stripe.inverse_weight[first..first + pull.len()];
        let along = ALONG / (self.along * self.along);
        let mut best = (0.0f32, own);
        for candidate in book.neighbours_within(own, self.reach(first, pull) / (scale.factor * scale.factor))
        {
            let values = book.values_at(scale, candidate);
            let (mut cost, mut left_over) = (0.0f32, 0.0f32);
            for (j, (&c, &r)) in carry.iter().zip(right).enumerate() {
                let step = values[j] - now[j];
                let after = c + self.along * step;
                let edit = along * (after * after - c * c) + step * (step - 2.0 * self.left * r);
                cost += edit / inverse_weight[j] + 2.0 * step * pull[j];
                left_over += after * after;
            }
            if cost < best.0 && left_over <= carried {
                best = (cost, candidate);
            }
        }
        if best.1 != own {
            let values = book.values_at(scale, best.1);
            book.write(block, g, best.1);
            (0..pull.len()).for_each(|j| self.moved(first + j, values[j] - now[j]));
        }
    }
}

/// The walk over the rows of a stripe of a codebook type, as [`Work`].
struct OverGroups<'a, 's> {
    book: &'s Codebook,
    rows: &'s mut [&'a mut [u8]],
    stripe: &'s Stripe<'s>,
}

impl Work for OverGroups<'_, '_> {
    #[inline(always)]
    fn run(self) {
        walk_groups(self.book, self.rows, self.stripe);
    }
}

fn walk_codewords(rows: &mut [&mut [u8]], stripe: &Stripe<'_>) {
    if let Some(book) = Codebook::of(stripe.ggml_type) {
        ffi::vectorized(OverGroups { book, rows, stripe });
    }
}

#[inline(always)]
fn walk_groups(book: &Codebook, rows: &mut [&mut [u8]], stripe: &Stripe<'_>) {
    let mut carry = vec![0.0; stripe.right.len()];
    let mut error = vec![0.0; stripe.n_principal.next_multiple_of(WIDE)];
    for &i in stripe.order {
        error.fill(0.0);
        let mut row = Row::new(stripe, i, &mut carry, &mut error, 0.0);
        for (b, block) in rows[i].chunks_exact_mut(book.block_bytes()).enumerate() {
            for g in 0..book.groups_per_block() {
                row.group(book, b * book.block_len() + g * book.dim(), block, g);
            }
        }
    }
}

#[cfg(test)]
mod tests;
