//! Linear algebra for gates, requantization and the ablated direction: positive definite systems, `W Wᵀ` of a large
//! weight, and the first or last few eigenpairs of a symmetric matrix.
//!
//! Why not a crate: only the eight smallest eigenpairs of a matrix of up to 8192² are needed, dozens of times. A full
//! decomposition (nalgebra, faer) costs at least 4/3 n³ each time, and those crates bring many dependencies. Here a
//! blocked Cholesky factor (n³/3, with the matrix product that ndarray already provides) turns the smallest
//! eigenvalues into the largest ones of the inverse, which Lanczos finds in a few dozen steps of 2n².

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, s};

/// Rows of the product that one thread computes at a time.
const BAND: usize = 128;
/// Columns whose products are summed in f32 before they are added to the f64 sum.
const COLUMNS: usize = 1024;
/// Columns per block of the Cholesky factorization.
const BLOCK: usize = 64;
/// Lanczos steps; several times the number of eigenpairs needed.
const STEPS: usize = 48;
/// Diagonal shifts to try until the factor exists, for a matrix with a unit diagonal: an exact
/// projection leaves an eigenvalue of 0, which the rounding of f32 products moves by about 1e-6.
const SHIFTS: [f64; 4] = [1e-6, 1e-5, 1e-4, 1e-3];

/// The matrix has values that are not finite, or is far from positive definite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a positive definite matrix, found a {n} × {n} matrix that is not")]
pub struct NotPositive {
    /// Number of rows and columns.
    pub n: usize,
}

/// An eigenvalue and its unit vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Eigenpair {
    /// λ plus a shift of at most 1e-3 (usually 1e-6); at least 1e-7.
    pub value: f64,
    /// u, `[n]`, ‖u‖ = 1.
    pub vector: Vec<f64>,
}

/// Maximum number of threads of the computations here; 0 means the available parallelism.
static MAX_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Returns the number of cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Limits the threads of all later computations in this process.
pub fn limit_threads(n_thread: usize) {
    MAX_THREADS.store(n_thread, Relaxed);
}

/// Returns the number of threads to use for `jobs` units of work: at least 1, at most the limit.
pub fn threads(jobs: usize) -> usize {
    let limit = match MAX_THREADS.load(Relaxed) {
        0 => cores(),
        n_thread => n_thread,
    };
    limit.min(jobs).max(1)
}

/// Runs `work` on every item on `threads` threads, in no particular order.
pub fn in_parallel<T: Send>(threads: usize, items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let queue = Mutex::new(items);
    let worker = || {
        while let Some(item) = queue.lock().ok().and_then(|mut items| items.next()) {
            work(item);
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
}

/// Computes `G ← G + W Wᵀ` in the lower triangle, including the diagonal (the upper triangle is undefined), with W f32
/// `[n, columns]` and G f64 `[n, n]`. Products are summed in f32 over 1024 columns and in f64 beyond. The order of
/// summation does not depend on the number of threads.
pub fn add_outer(gram: &mut Array2<f64>, w: ArrayView2<'_, f32>) {
    let mut bands: Vec<_> = gram.axis_chunks_iter_mut(Axis(0), BAND).enumerate().collect();
    bands.reverse(); // longest first, so that the threads finish together
    in_parallel(threads(bands.len()), bands.into_iter(), |(k, band)| add_band(k * BAND, band, w));
}

fn add_band(first: usize, mut band: ArrayViewMut2<'_, f64>, w: ArrayView2<'_, f32>) {
    let end = first + band.nrows();
    let mut product = Array2::<f32>::zeros((band.nrows(), end));
    for columns in w.axis_chunks_iter(Axis(1), COLUMNS) {
        let (rows, all) = (columns.slice(s![first..end, ..]), columns.slice(s![..end, ..]));
        general_mat_mul(1.0, &rows, &all.t(), 0.0, &mut product);
        band.slice_mut(s![.., ..end]).zip_mut_with(&product, |g, &p| *g += f64::from(p));
    }
}

/// Returns the `count` smallest eigenpairs of `a`, in ascending order. `a` is symmetric and positive semidefinite, with
/// a unit diagonal; only its lower triangle is read. Deterministic.
///
/// # Errors
/// Returns [`NotPositive`] if `a` has no Cholesky factor even with the largest shift, 1e-3.
pub fn smallest(a: &Array2<f64>, count: usize) -> Result<Vec<Eigenpair>, NotPositive> {
    let n = a.nrows();
    for shift in SHIFTS {
        let mut factor = a.clone();
        factor.diag_mut().iter_mut().for_each(|d| *d += shift);
        if cholesky(&mut factor) {
            return Ok(lanczos(&factor, count));
        }
    }
    Err(NotPositive { n })
}

/// Replaces the lower triangle of `a` by L with `a = L Lᵀ`; returns false if there is no such L. Left-looking, in
/// blocks of columns: nearly all the work is one matrix product per block.
fn cholesky(a: &mut Array2<f64>) -> bool {
    let n = a.nrows();
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        let (done, rest) = a.view_mut().split_at(Axis(1), from);
        let mut target = rest.split_at(Axis(1), to - from).0.slice_move(s![from.., ..]);
        let (below, here) = (done.slice(s![from.., ..]), done.slice(s![from..to, ..]));
        general_mat_mul(-1.0, &below, &here.t(), 1.0, &mut target);
        let mut corner: Vec<Vec<f64>> = Vec::with_capacity(to - from);
        for row in target.axis_iter_mut(Axis(0)) {
            let Some(row) = row.into_slice() else { return false };
            let known = corner.len();
            for c in 0..known {
                row[c] = (row[c] - dot(&row[..c], &corner[c][..c])) / corner[c][c];
            }
            if known == row.len() {
                continue; // below the diagonal block
            }
            let pivot = row[known] - dot(&row[..known], &row[..known]);
            if pivot.is_nan() || pivot <= 0.0 {
                return false;
            }
            row[known] = pivot.sqrt();
            corner.push(row.to_vec());
        }
    }
    true
}

/// Returns the mean of the rows of x f32 `[n][d]`, summed in f64; zeros if there are no rows.
pub fn mean_row(x: ArrayView2<'_, f32>) -> Array1<f64> {
    x.fold_axis(Axis(0), 0.0f64, |sum, &v| sum + f64::from(v)) / x.nrows().max(1) as f64
}

/// Returns the Pearson correlation of two series of equal length; 0 if either is constant.
pub fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().min(b.len()).max(1) as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let pairs = || a.iter().zip(b).map(|(a, b)| (a - mean_a, b - mean_b));
    let product: f64 = pairs().map(|(a, b)| a * b).sum();
    let norms = pairs().map(|(a, _)| a * a).sum::<f64>() * pairs().map(|(_, b)| b * b).sum::<f64>();
    if norms > 0.0 { product / norms.sqrt() } else { 0.0 }
}

/// Returns the cosine between two vectors of equal length; 0 if either is the zero vector.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norms = dot(a, a) * dot(b, b);
    if norms > 0.0 { dot(a, b) / norms.sqrt() } else { 0.0 }
}

/// The Cholesky factor L of a symmetric positive definite matrix, `A = L Lᵀ`, f64 `[n][n]`.
pub struct Cholesky(Array2<f64>);

impl Cholesky {
    /// Factors `a`; reads only its lower triangle.
    ///
    /// # Errors
    /// Returns [`NotPositive`] if `a` is not positive definite or has values that are not finite.
    pub fn of(mut a: Array2<f64>) -> Result<Self, NotPositive> {
        let n = a.nrows();
        if cholesky(&mut a) { Ok(Self(a)) } else { Err(NotPositive { n }) }
    }

    /// Solves `A x = b`, b `[n]`.
    pub fn solve(&self, mut b: Vec<f64>) -> Vec<f64> {
        if let Some(factor) = self.0.as_slice() {
            solve(factor, &mut b);
        }
        b
    }
}

/// Returns `Σ a_i b_i`, in eight partial sums that the compiler can keep in vector registers.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (mut sums, n) = ([0.0; 8], a.len().min(b.len()) / 8 * 8);
    for (x, y) in a[..n].chunks_exact(8).zip(b[..n].chunks_exact(8)) {
        for k in 0..8 {
            sums[k] += x[k] * y[k];
        }
    }
    let rest: f64 = a[n..].iter().zip(&b[n..]).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

/// Computes `x ← x + f·y`.
fn add(x: &mut [f64], f: f64, y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, &y)| *x += f * y);
}

/// Scales `x` to unit length, unless it is zero, and returns its original length.
pub fn normalize(x: &mut [f64]) -> f64 {
    let norm = dot(x, x).sqrt();
    if norm > 0.0 {
        x.iter_mut().for_each(|v| *v /= norm);
    }
    norm
}

/// Computes `x ← (L Lᵀ)⁻¹ x`.
fn solve(factor: &[f64], x: &mut [f64]) {
    let n = x.len();
    for i in 0..n {
        let row = &factor[i * n..i * n + i];
        x[i] = (x[i] - dot(row, &x[..i])) / factor[i * n + i];
    }
    for i in (0..n).rev() {
        let value = x[i] / factor[i * n + i];
        x[i] = value;
        add(&mut x[..i], -value, &factor[i * n..i * n + i]);
    }
}

/// Runs Lanczos with full reorthogonalization on `(L Lᵀ)⁻¹`, whose largest eigenvalues are the reciprocals of
/// the smallest ones of `L Lᵀ`.
fn lanczos(factor: &Array2<f64>, count: usize) -> Vec<Eigenpair> {
    let n = factor.nrows();
    let Some(factor) = factor.as_slice() else { return Vec::new() };
    let steps = STEPS.min(n);
    let mut basis = vec![start(n)];
    let mut tridiagonal = Array2::<f64>::zeros((steps, steps));
    let mut made = 0;
    for k in 0..steps {
        let mut next = basis[k].clone();
        solve(factor, &mut next);
        tridiagonal[[k, k]] = dot(&basis[k], &next);
        for _twice in 0..2 {
            for q in &basis {
                let along = dot(q, &next);
                add(&mut next, -along, q);
            }
        }
        made = k + 1;
        let norm = normalize(&mut next);
        if made == steps || norm <= 1e-13 * tridiagonal[[k, k]].abs() {
            break;
        }
        tridiagonal[[k, k + 1]] = norm;
        tridiagonal[[k + 1, k]] = norm;
        basis.push(next);
    }
    let (values, vectors) = jacobi(tridiagonal.slice(s![..made, ..made]).to_owned());
    let mut order: Vec<usize> = (0..made).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let pair = |&k: &usize| {
        let mut vector = vec![0.0; n];
        basis.iter().enumerate().for_each(|(i, q)| add(&mut vector, vectors[[i, k]], q));
        normalize(&mut vector);
        Eigenpair { value: 1.0 / values[k].clamp(1e-7, 1e7), vector }
    };
    order.iter().take(count).map(pair).collect()
}

/// Returns a fixed pseudorandom unit vector, unlikely to be orthogonal to any eigenvector of a weight.
fn start(n: usize) -> Vec<f64> {
    let scrambled = (1..=n as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31));
    let mut vector: Vec<f64> = scrambled
        .map(|i| (i.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
        .collect();
    normalize(&mut vector);
    vector
}

/// Returns all eigenvalues of a small symmetric matrix, and the eigenvectors as columns, by Jacobi rotations.
pub fn jacobi(mut a: Array2<f64>) -> (Vec<f64>, Array2<f64>) {
    let n = a.nrows();
    let mut vectors = Array2::<f64>::eye(n);
    for _sweep in 0..64 {
        let size: f64 = a.iter().map(|v| v * v).sum();
        let off: f64 = size - a.diag().iter().map(|v| v * v).sum::<f64>();
        if off.is_nan() || off <= 1e-26 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, p, q);
            }
        }
    }
    (a.diag().to_vec(), vectors)
}

/// Rotates in the plane of coordinates p and q so that `a[p, q]` becomes zero.
fn rotate(a: &mut Array2<f64>, vectors: &mut Array2<f64>, p: usize, q: usize) {
    if a[[p, q]] == 0.0 {
        return;
    }
    let theta = (a[[q, q]] - a[[p, p]]) / (2.0 * a[[p, q]]);
    let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = tangent * cosine;
    let mix = |x: f64, y: f64| (cosine * x - sine * y, sine * x + cosine * y);
    for k in 0..a.nrows() {
        (a[[k, p]], a[[k, q]]) = mix(a[[k, p]], a[[k, q]]);
    }
    for k in 0..a.nrows() {
        (a[[p, k]], a[[q, k]]) = mix(a[[p, k]], a[[q, k]]);
        (vectors[[k, p]], vectors[[k, q]]) = mix(vectors[[k, p]], vectors[[k, q]]);
    }
}

/// Rounds of subspace iteration: the gaps between the first few eigenvalues of a second-moment matrix
/// are wide, and two digits of the later ones are enough.
const ROUNDS: usize = 40;

/// Returns the first `k` eigenpairs of a symmetric positive semidefinite matrix `[n][n]`, largest first:
/// eigenvalues `[k]` and orthonormal eigenvectors as rows `[k][n]`. Uses subspace iteration from a fixed
/// start, so the result is deterministic. A `k` above n is treated as n.
pub fn top_eigen(matrix: ArrayView2<'_, f32>, k: usize) -> (Vec<f32>, Array2<f32>) {
    let n = matrix.nrows();
    let k = k.min(n);
    // Sines of multiples of an irrational angle: no symmetry that could make an eigenvector orthogonal to them.
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

/// Orthonormalizes the columns by modified Gram-Schmidt, twice for stability; a column that vanishes becomes zero.
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

    /// Returns an orthogonal matrix, a product of reflections along fixed vectors.
    fn rotation(n: usize) -> Array2<f64> {
        let mut q = Array2::<f64>::eye(n);
        for k in 0..3 {
            let mut v: Vec<f64> = (0..n).map(|i| ((i * (k + 3) + 1) as f64).sin()).collect();
            normalize(&mut v);
            let v = Array2::from_shape_vec((n, 1), v).unwrap();
            q = &q - &(v.dot(&v.t().dot(&q)) * 2.0);
        }
        q
    }

    fn with_spectrum(values: &[f64]) -> (Array2<f64>, Array2<f64>) {
        let q = rotation(values.len());
        let scaled = &q * &ndarray::Array1::from(values.to_vec());
        (scaled.dot(&q.t()), q)
    }

    #[test]
    fn the_smallest_pairs_of_a_known_spectrum() {
        for n in [3, 64, 150, 300] {
            let values: Vec<f64> = (0..n).map(|i| 0.3 + 0.02 * i as f64).collect();
            let (a, q) = with_spectrum(&values);
            let found = smallest(&a, 3).unwrap();
            for (k, pair) in found.iter().enumerate() {
                assert!((pair.value - values[k]).abs() < 1e-4, "{n} {k} {}", pair.value);
                let cosine: f64 = q.column(k).iter().zip(&pair.vector).map(|(a, b)| a * b).sum();
                assert!(cosine.abs() > 0.999, "{n} {k} {cosine}");
            }
        }
    }

    #[test]
    fn a_plane_of_zeros_gives_two_vectors() {
        let mut values = vec![0.5; 100];
        (values[0], values[1]) = (1e-8, 3e-8);
        let (a, q) = with_spectrum(&values);
        let found = smallest(&a, 3).unwrap();
        assert!(found[1].value < 1e-5 && found[2].value > 0.4, "{found:?}");
        for pair in &found[..2] {
            let inside: f64 = (0..2)
                .map(|k| q.column(k).iter().zip(&pair.vector).map(|(a, b)| a * b).sum::<f64>().powi(2))
                .sum();
            assert!(inside > 0.999_999, "{inside}");
        }
    }

    #[test]
    fn what_is_no_covariance_is_an_error() {
        let (a, _) = with_spectrum(&[-1.0, 1.0, 2.0]);
        assert_eq!(smallest(&a, 1), Err(NotPositive { n: 3 }));
        assert!(smallest(&Array2::from_elem((70, 70), f64::NAN), 1).is_err());
    }

    #[test]
    fn the_product_is_the_one_of_the_definition() {
        let w = Array2::from_shape_fn((200, 1500), |(i, j)| ((i * 31 + j * 17) % 23) as f32 / 11.0 - 1.0);
        let mut gram = Array2::zeros((200, 200));
        add_outer(&mut gram, w.view());
        let exact = w.mapv(f64::from).dot(&w.mapv(f64::from).t());
        for i in 0..200 {
            for j in 0..=i {
                assert!((gram[[i, j]] - exact[[i, j]]).abs() < 1e-2, "{i} {j}");
            }
        }
    }

    #[test]
    fn positive_systems_are_solved_and_others_refused() {
        let root = Array2::from_shape_fn((6, 6), |(i, j)| {
            ((i * 7 + j * 3) as f64).sin() + 2.0 * f64::from(u8::from(i == j))
        });
        let a = root.dot(&root.t());
        let x = Array1::from_shape_fn(6, |i| i as f64 - 2.5);
        let found = Cholesky::of(a.clone()).unwrap().solve(a.dot(&x).to_vec());
        assert!(found.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        assert_eq!(Cholesky::of(-a).err(), Some(NotPositive { n: 6 }));
        assert!(Cholesky::of(Array2::from_elem((6, 6), f64::NAN)).is_err());
    }

    #[test]
    fn eigenpairs_of_a_known_matrix() {
        // diag(5, 3, 1, 0) conjugated by the reflection I − 2vvᵀ.
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
