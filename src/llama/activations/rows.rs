//! Inputs of a writer, row by row: dense, or routed to the experts of a mixture.
//!
//! A mixture adds `Σ_k p_k W_{e_k} x_k` to the residual stream, where k runs over the experts that a token was
//! routed to and the p_k are the router's weights. This equals one wide writer `[W_0 W_1 …]` with the input φ
//! `[n_expert·n_in]`, which is `p_k x_k` in the slices of the chosen experts and 0 elsewhere. φ is never
//! materialized: only its nonzero slices and their expert indices are stored.

use ndarray::{Array1, Array2, ArrayView1, Axis, CowArray, Ix2, s};

use crate::util::linalg;

/// Expert index of an empty slot in a row.
pub const NO_EXPERT: u32 = u32::MAX;

/// Inputs of one writer at R tokens, one row per token.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    /// x, f32 `[R][n_in]`; for a routed writer, the weighted inputs of all slots in sequence, `[R][n_used·n_in]`.
    pub x: CowArray<'a, f32, Ix2>,
    /// Expert routing; `None` for a dense writer.
    pub route: Option<Route<'a>>,
}

/// Expert routing of [`Rows`].
#[derive(Debug, Clone)]
pub struct Route<'a> {
    /// Chosen experts, `[R][n_used]`; [`NO_EXPERT`] in empty slots.
    pub experts: CowArray<'a, u32, Ix2>,
    /// Number of experts.
    pub n_expert: usize,
}

impl<'a> Rows<'a> {
    /// Stacks `parts` vertically; `None` if there are none or their shapes or kinds differ.
    pub fn concatenated(parts: Vec<Self>) -> Option<Rows<'a>> {
        let views: Vec<_> = parts.iter().map(|p| p.x.view()).collect();
        let x = CowArray::from(ndarray::concatenate(Axis(0), &views).ok()?);
        let routes: Vec<&Route<'_>> = parts.iter().filter_map(|p| p.route.as_ref()).collect();
        let Some(first) = routes.first() else { return Some(Rows { x, route: None }) };
        let views: Vec<_> = routes.iter().map(|r| r.experts.view()).collect();
        let experts = CowArray::from(ndarray::concatenate(Axis(0), &views).ok()?);
        let alike = routes.iter().all(|r| r.n_expert == first.n_expert) && experts.nrows() == x.nrows();
        alike.then(|| Rows { x, route: Some(Route { experts, n_expert: first.n_expert }) })
    }

    /// Returns the length of φ.
    pub fn len_wide(&self) -> usize {
        self.x.ncols() / self.n_used() * self.route.as_ref().map_or(1, |route| route.n_expert)
    }

    /// Returns the number of expert slots per row, 1 for a dense writer.
    fn n_used(&self) -> usize {
        self.route.as_ref().map_or(1, |route| route.experts.ncols().max(1))
    }

    /// Calls `see` with each nonzero slice of each row, in order: row index, offset in φ, values `[n_in]`.
    fn for_each_piece(&self, mut see: impl FnMut(usize, usize, ArrayView1<'_, f32>)) {
        let n_in = self.x.ncols() / self.n_used();
        for (i, row) in self.x.rows().into_iter().enumerate() {
            let Some(route) = &self.route else {
                see(i, 0, row);
                continue;
            };
            for (slot, &expert) in route.experts.row(i).iter().enumerate() {
                if (expert as usize) < route.n_expert {
                    let values = row.slice(s![slot * n_in..(slot + 1) * n_in]);
                    see(i, expert as usize * n_in, values);
                }
            }
        }
    }

    /// Returns `uᵀφ` for every row, f32 `[R]`, where u = `right` `[n_expert·n_in]`.
    pub fn pushes(&self, right: &[f32]) -> Array1<f32> {
        let right = ArrayView1::from(right);
        if self.route.is_none() {
            return self.x.dot(&right);
        }
        let mut pushes = Array1::zeros(self.x.nrows());
        self.for_each_piece(|i, at, values| pushes[i] += values.dot(&right.slice(s![at..at + values.len()])));
        pushes
    }

    /// Returns `Σ_i a_i φ_i`, f32 `[n_expert·n_in]`.
    pub fn combined(&self, a: &Array1<f32>) -> Vec<f32> {
        if self.route.is_none() {
            return self.x.t().dot(a).to_vec();
        }
        let mut sum = Array1::zeros(self.len_wide());
        self.for_each_piece(|i, at, values| {
            sum.slice_mut(s![at..at + values.len()]).scaled_add(a[i], &values);
        });
        sum.to_vec()
    }

    /// Returns the mean of φ over all rows, f64 `[n_expert·n_in]`.
    pub fn mean(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.len_wide()];
        self.for_each_piece(|_, at, values| {
            mean[at..].iter_mut().zip(values).for_each(|(m, &v)| *m += f64::from(v));
        });
        let n = self.x.nrows().max(1) as f64;
        mean.iter_mut().for_each(|m| *m /= n);
        mean
    }

    /// Adds Φ Φᵀ to the lower triangle of `gram`, f64 `[R][R]`: the sum over all experts of the inner products
    /// of the rows routed to them.
    pub fn add_outer(&self, gram: &mut Array2<f64>) {
        let Some(route) = &self.route else {
            linalg::add_outer(gram, self.x.view());
            return;
        };
        let n_in = self.x.ncols() / self.n_used();
        let mut of_expert: Vec<(Vec<usize>, Vec<f32>)> = vec![Default::default(); route.n_expert];
        self.for_each_piece(|i, at, values| {
            let (rows, x) = &mut of_expert[at / n_in.max(1)];
            if rows.last() == Some(&i) {
                // A row was routed to the same expert twice: outputs add up, so the inputs can be added.
                let start = x.len() - n_in;
                x[start..].iter_mut().zip(values).for_each(|(x, v)| *x += v);
            } else {
                rows.push(i);
                x.extend(values);
            }
        });
        for (rows, x) in of_expert {
            let Ok(x) = Array2::from_shape_vec((rows.len(), n_in), x) else { continue };
            let mut own = Array2::zeros((rows.len(), rows.len()));
            linalg::add_outer(&mut own, x.view());
            for (a, &i) in rows.iter().enumerate() {
                rows[..=a].iter().enumerate().for_each(|(b, &j)| gram[[i, j]] += own[[a, b]]);
            }
        }
    }

    /// Returns one input per row, `[R][n_in]`. Routed rows take their slots in turn: row i uses slot i mod `n_used`.
    pub fn one_each(&self) -> CowArray<'_, f32, Ix2> {
        let n_used = self.n_used();
        if n_used == 1 {
            return CowArray::from(self.x.view());
        }
        let n_in = self.x.ncols() / n_used;
        let value = |(i, j): (usize, usize)| self.x[[i, i % n_used * n_in + j]];
        CowArray::from(Array2::from_shape_fn((self.x.nrows(), n_in), value))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Pseudorandom rows with `n_used` slots over `n_expert` experts; some slots repeat an expert or are empty.
    pub(crate) fn routed([n, n_in, n_used, n_expert]: [usize; 4], seed: usize) -> Rows<'static> {
        let bits =
            |i: usize| (((i + 7919 * seed) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize;
        let value = |(i, j): (usize, usize)| (bits(i * 977 + j) % 1000) as f32 / 500.0 - 1.0;
        let expert = |(i, k): (usize, usize)| match bits(i * 31 + k + 7) % (n_expert + 1) {
            none if none == n_expert => NO_EXPERT,
            expert => expert as u32,
        };
        Rows {
            x: CowArray::from(Array2::from_shape_fn((n, n_used * n_in), value)),
            route: Some(Route {
                experts: CowArray::from(Array2::from_shape_fn((n, n_used), expert)),
                n_expert,
            }),
        }
    }

    /// Converts `rows` to those of a dense writer by writing out φ.
    pub(crate) fn wide(rows: &Rows<'_>) -> Rows<'static> {
        let mut x = Array2::zeros((rows.x.nrows(), rows.len_wide()));
        rows.for_each_piece(|i, at, values| {
            let mut target = x.slice_mut(s![i, at..at + values.len()]);
            target += &values;
        });
        Rows { x: CowArray::from(x), route: None }
    }

    #[test]
    fn routed_rows_are_wide_ones() {
        let rows = routed([50, 6, 3, 5], 0);
        let wide = wide(&rows);
        assert_eq!(rows.len_wide(), 30);
        let right: Vec<f32> = (0..30).map(|j| (j as f32 * 0.7).sin()).collect();
        let a = Array1::from_shape_fn(50, |i| (i as f32 * 1.3).cos());
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-4, "{a} {b}");
        rows.pushes(&right).iter().zip(wide.pushes(&right)).for_each(|(a, b)| close((*a).into(), b.into()));
        rows.combined(&a).iter().zip(wide.combined(&a)).for_each(|(a, b)| close((*a).into(), b.into()));
        rows.mean().iter().zip(wide.mean()).for_each(|(a, b)| close(*a, b));
        let (mut own, mut other) = (Array2::zeros((50, 50)), Array2::zeros((50, 50)));
        rows.add_outer(&mut own);
        wide.add_outer(&mut other);
        for i in 0..50 {
            (0..=i).for_each(|j| close(own[[i, j]], other[[i, j]]));
        }
    }

    #[test]
    fn one_of_each_row_goes_round() {
        let rows = routed([4, 2, 3, 5], 0);
        let one = rows.one_each();
        assert_eq!(one.dim(), (4, 2));
        assert_eq!([one[[0, 0]], one[[1, 1]], one[[2, 0]]], [rows.x[[0, 0]], rows.x[[1, 3]], rows.x[[2, 4]]]);
    }
}
