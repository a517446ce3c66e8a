//! The little linear algebra that directions and gates need, on `ndarray`'s matrix products.

use ndarray::{Array1, Array2, ArrayView2, s};

/// The matrix is not positive definite, or holds values that are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a matrix of size {n} is not positive definite")]
pub struct NotPositive {
    /// Its size.
    pub n: usize,
}

/// Cholesky's factor L of a symmetric positive definite matrix, `A = L Lᵀ`, f64 `[n][n]`.
pub struct Cholesky(Array2<f64>);

impl Cholesky {
    /// Factors `a`.
    ///
    /// # Errors
    /// [`NotPositive`].
    pub fn of(mut a: Array2<f64>) -> Result<Self, NotPositive> {
        let n = a.nrows();
        // Row i of the factor takes the place of row i of A: both dot products run along rows.
        for i in 0..n {
            for j in 0..=i {
                let known = a.slice(s![i, ..j]).dot(&a.slice(s![j, ..j]));
                let rest = a[[i, j]] - known;
                a[[i, j]] = if i == j { rest.sqrt() } else { rest / a[[j, j]] };
            }
            if !(a[[i, i]].is_finite() && a[[i, i]] > 0.0) {
                return Err(NotPositive { n });
            }
        }
        Ok(Self(a))
    }

    /// Solves `A x = b`, b `[n]`.
    pub fn solve(&self, mut b: Array1<f64>) -> Array1<f64> {
        let l = &self.0;
        for i in 0..b.len() {
            b[i] = (b[i] - l.slice(s![i, ..i]).dot(&b.slice(s![..i]))) / l[[i, i]];
        }
        for i in (0..b.len()).rev() {
            b[i] /= l[[i, i]];
            let solved = b[i];
            b.slice_mut(s![..i]).scaled_add(-solved, &l.slice(s![i, ..i]));
        }
        b
    }
}

/// Rounds of subspace iteration: the gaps between the first few eigenvalues of a second-moment matrix
/// are wide, and nothing here needs more than two digits of the later ones.
const ROUNDS: usize = 40;

/// The first `k` eigenpairs of a symmetric positive semidefinite matrix `[n][n]`, largest first:
/// eigenvalues `[k]` and orthonormal eigenvectors as rows `[k][n]`. Subspace iteration from a fixed
/// start, so the same matrix gives the same result. `k` is cut to n.
pub fn top_eigen(matrix: ArrayView2<'_, f32>, k: usize) -> (Vec<f32>, Array2<f32>) {
    let n = matrix.nrows();
    let k = k.min(n);
    // Powers of a fixed irrational angle: no symmetry that an eigenvector could be orthogonal to.
    let start = |i: usize, j: usize| ((i * (j + 1)) as f32 * 0.618_034).sin() + 0.1;
    let mut basis = Array2::from_shape_fn((n, k), |(i, j)| start(i + 1, j));
    orthonormalise(&mut basis);
    for _ in 0..ROUNDS {
        basis = matrix.dot(&basis);
        orthonormalise(&mut basis);
    }
    let image = matrix.dot(&basis);
    let values: Vec<f32> = (0..k).map(|p| basis.column(p).dot(&image.column(p)).max(0.0)).collect();
    (values, basis.reversed_axes().as_standard_layout().into_owned())
}

/// Modified Gram-Schmidt over the columns, twice for stability; a column that vanishes becomes zero.
fn orthonormalise(basis: &mut Array2<f32>) {
    for p in 0..basis.ncols() {
        for _ in 0..2 {
            let mut column: Array1<f32> = basis.column(p).to_owned();
            for before in 0..p {
                let along = basis.column(before).dot(&column);
                column.scaled_add(-along, &basis.column(before));
            }
            let norm = column.dot(&column).sqrt();
            let scale = if norm > f32::MIN_POSITIVE { 1.0 / norm } else { 0.0 };
            basis.column_mut(p).assign(&(column * scale));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positive_systems_are_solved_and_others_refused() {
        let root = Array2::from_shape_fn((6, 6), |(i, j)| {
            ((i * 7 + j * 3) as f64).sin() + 2.0 * f64::from(u8::from(i == j))
        });
        let a = root.dot(&root.t());
        let x = Array1::from_shape_fn(6, |i| i as f64 - 2.5);
        let found = Cholesky::of(a.clone()).unwrap().solve(a.dot(&x));
        assert!((&found - &x).iter().all(|d| d.abs() < 1e-9), "{found}");
        assert_eq!(Cholesky::of(-a).err(), Some(NotPositive { n: 6 }));
        assert!(Cholesky::of(Array2::from_elem((6, 6), f64::NAN)).is_err());
    }

    #[test]
    fn eigenpairs_of_a_known_matrix() {
        // diag(5, 3, 1, 0) turned by a reflection I − 2vvᵀ.
        let v = [0.5f32, 0.5, 0.5, 0.5];
        let reflect = |i: usize, j: usize| f32::from(i == j) - 2.0 * v[i] * v[j];
        let values = [5.0, 3.0, 1.0, 0.0];
        let matrix = Array2::from_shape_fn((4, 4), |(i, j)| {
            (0..4).map(|k| reflect(i, k) * values[k] * reflect(j, k)).sum::<f32>()
        });
        let (found, vectors) = top_eigen(matrix.view(), 3);
        for k in 0..3 {
            assert!((found[k] - values[k]).abs() < 1e-4, "{found:?}");
            let cosine: f32 = (0..4).map(|i| reflect(i, k) * vectors[[k, i]]).sum();
            assert!(cosine.abs() > 0.9999, "{cosine}");
        }
        assert_eq!(top_eigen(matrix.view(), 9).0.len(), 4);
    }
}
