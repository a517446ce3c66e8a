//! The smallest eigenvalues over a region: a range of layers, with all of their writers or one kind of them.

use std::ops::Range;
use std::sync::Mutex;

use ndarray::Array2;

use super::source::{Group, Site, Source};
use super::{AblationError, GAP_ALONE, GAP_SPARSE};
use crate::util::interrupt;
use crate::util::linalg::{self, NotPositive};

/// Minimum number of coordinates; with fewer, the spectrum is too coarse to judge.
pub const MIN_WIDTH: usize = 64;
/// Columns per coordinate that a region needs: with fewer, there are directions that W cannot write at all.
const MIN_COLUMNS: f64 = 1.5;
/// Maximum number of removed directions that are searched for.
const MAX_RANK: usize = 4;
/// Number of smallest eigenpairs to compute: room for [`MAX_RANK`] directions and for other outliers.
const PAIRS: usize = 8;
/// A vector is dense if its participation ratio is at least this share of all coordinates.
const DENSE: f64 = 1.0 / 30.0;
/// Minimum participation ratio; vectors on fewer coordinates are broken or duplicated rows, not meaningful directions.
const MIN_PARTICIPATION: f64 = 4.0;
/// Cosine with (1, …, 1)/√n from which on a vector is the mean that LayerNorm removes, not an ablated direction.
const MEAN_COSINE: f64 = 0.9;
/// Number of pieces into which the layers are cut; windows consist of whole pieces.
const PIECES: usize = 8;
/// Memory budget in bytes for matrices that are solved at the same time.
const SOLVE_BYTES: usize = 2 << 30;

/// The lowest directions of a region, and how far they lie below all others.
#[derive(Debug, Clone, PartialEq)]
pub struct Lowest {
    /// `ln(λ_{rank+1}/λ_rank)`, the strongest gap among the smallest eigenvalues.
    pub gap: f64,
    /// Number of directions below the gap.
    pub rank: usize,
    /// Whether all directions below the gap are dense.
    pub dense: bool,
    /// Orthonormal basis of these directions, `rank` × `[n_embd]`.
    pub basis: Vec<Vec<f64>>,
}

impl Lowest {
    /// Returns the gap in units of the gap that is sufficient evidence by itself.
    pub fn strength(&self) -> f64 {
        self.gap / if self.dense { GAP_ALONE } else { GAP_SPARSE }
    }

    /// Returns the length of the projection of the unit vector `v` on the directions; |cos| for a single direction.
    pub fn cosine(&self, v: &[f64]) -> f64 {
        let along = |b: &Vec<f64>| b.iter().zip(v).map(|(a, b)| a * b).sum::<f64>().powi(2);
        self.basis.iter().map(along).sum::<f64>().sqrt()
    }
}

/// A range of layers, and the low end of their spectrum.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// The range of layers.
    pub layers: Range<usize>,
    /// Kind of the writers; `None` for all writers.
    pub group: Option<Group>,
    /// The lowest directions.
    pub lowest: Lowest,
}

impl Region {
    /// Returns how well the direction is known: the strength times the square root of the number of writers, because
    /// their noise averages out.
    pub fn clarity(&self) -> f64 {
        let kinds = if self.group.is_some() { 1.0 } else { 2.0 };
        self.lowest.strength() * (self.layers.len() as f64 * kinds).sqrt()
    }
}

/// One eigenpair in the units of W.
struct Pair {
    value: f64,
    participation: f64,
    vector: Vec<f64>,
}

/// Returns the smallest eigenpairs of `D^{-1/2} G D^{-1/2}`, D = diag(G), mapped back by v = D^{-1/2}u/‖·‖.
///
/// If rᵀW = 0 for every writer, then G r = 0, and this holds under any D. But D removes the main source of small
/// eigenvalues in honest weights, rows that are small as a whole: the measured gap of a direction that was removed with
/// weight 0.8 grows from 2.0 to 2.5.
fn pairs(gram: &Array2<f64>) -> Result<Vec<Pair>, NotPositive> {
    let n = gram.nrows();
    let mean = gram.diag().sum() / n as f64;
    let alive: Vec<usize> = (0..n).filter(|&i| gram[[i, i]] > 1e-9 * mean).collect();
    if alive.len() < MIN_WIDTH {
        return Ok(Vec::new());
    }
    let inverse: Vec<f64> = alive.iter().map(|&i| gram[[i, i]].sqrt().recip()).collect();
    let mut scaled = Array2::zeros((alive.len(), alive.len()));
    for (a, (&i, x)) in alive.iter().zip(&inverse).enumerate() {
        for (b, (&j, y)) in alive.iter().zip(&inverse).take(a + 1).enumerate() {
            scaled[[a, b]] = gram[[i, j]] * x * y;
        }
    }
    let to_pair = |pair: linalg::Eigenpair| {
        let mut vector = vec![0.0; n];
        for ((&i, x), u) in alive.iter().zip(&inverse).zip(&pair.vector) {
            vector[i] = u * x;
        }
        linalg::normalize(&mut vector);
        let fourth: f64 = pair.vector.iter().map(|u| u.powi(4)).sum();
        Pair { value: pair.value, participation: fourth.recip(), vector }
    };
    Ok(linalg::smallest(&scaled, PAIRS)?.into_iter().map(to_pair).collect())
}

/// Returns the lowest directions of a sum of [`Source::gram`] matrices; `None` if the spectrum is too small to judge.
///
/// # Errors
/// Returns [`NotPositive`] if `gram` is not a sum of Gram matrices.
pub fn lowest(gram: &Array2<f64>) -> Result<Option<Lowest>, NotPositive> {
    let n = gram.nrows() as f64;
    let mut pairs = pairs(gram)?;
    pairs.retain(|p| {
        let mean = p.vector.iter().sum::<f64>().abs() / n.sqrt();
        p.participation >= MIN_PARTICIPATION && mean < MEAN_COSINE
    });
    let dense: Vec<&Pair> = pairs.iter().filter(|p| p.participation >= DENSE * n).collect();
    let all: Vec<&Pair> = pairs.iter().collect();
    let (all, dense) = (widest(&all, DENSE * n), widest(&dense, DENSE * n));
    Ok(all.into_iter().chain(dense).max_by(|a, b| a.strength().total_cmp(&b.strength())))
}

/// Returns the strongest gap after the first one to [`MAX_RANK`] of the pairs.
fn widest(pairs: &[&Pair], dense: f64) -> Option<Lowest> {
    let at = |rank: usize| Lowest {
        gap: (pairs[rank].value / pairs[rank - 1].value).ln(),
        rank,
        dense: pairs[..rank].iter().all(|p| p.participation >= dense),
        basis: Vec::new(),
    };
    let ranks = 1..pairs.len().min(MAX_RANK + 1);
    let mut best = ranks.map(at).max_by(|a, b| a.strength().total_cmp(&b.strength()))?;
    for pair in &pairs[..best.rank] {
        let mut vector = pair.vector.clone();
        for b in &best.basis {
            let along: f64 = b.iter().zip(&vector).map(|(a, b)| a * b).sum();
            vector.iter_mut().zip(b).for_each(|(v, b)| *v -= along * b);
        }
        linalg::normalize(&mut vector);
        best.basis.push(vector);
    }
    Some(best)
}

/// Sums of Gram matrices by piece of the model and kind of writer, from which windows are assembled.
struct Sums {
    pieces: Vec<Range<usize>>,
    /// For each piece and group: the lower triangle in f32, and the number of columns in it.
    grams: Vec<[(Array2<f32>, usize); 2]>,
}

impl Sums {
    fn new(n_layer: usize, n_embd: usize) -> Self {
        let n = n_layer.min(PIECES);
        let pieces = (0..n).map(|p| p * n_layer / n..(p + 1) * n_layer / n).collect();
        let empty = || [(); 2].map(|()| (Array2::zeros((n_embd, n_embd)), 0));
        Self { pieces, grams: (0..n).map(|_| empty()).collect() }
    }

    fn add(&mut self, site: &Site, gram: &Array2<f64>) {
        let piece = self.pieces.iter().position(|p| p.contains(&site.layer));
        let Some(sum) = piece.map(|p| &mut self.grams[p][site.group as usize]) else { return };
        sum.0.zip_mut_with(gram, |s, &g| *s += g as f32);
        sum.1 += site.columns;
    }

    fn total(&self, window: &Window) -> (Array2<f64>, usize) {
        let groups = window.group.map_or(0..2, |g| g as usize..g as usize + 1);
        let n = self.grams[0][0].0.raw_dim();
        let parts = self.grams[window.pieces.clone()].iter().flat_map(|g| &g[groups.clone()]);
        parts.fold((Array2::zeros(n), 0), |(mut sum, columns), (gram, more)| {
            sum.zip_mut_with(gram, |s, &g| *s += f64::from(g));
            (sum, columns + more)
        })
    }

    /// Returns windows over the whole model, halves, and quarters, each overlapping the next by half; single kinds of
    /// writers only for the whole and for quarters. Windows of one layer are left out.
    fn windows(&self) -> Vec<Window> {
        let n = self.pieces.len();
        let mut windows = Vec::new();
        for (share, groups) in [(1, true), (2, false), (4, true)] {
            let size = (n / share).max(1);
            for from in (0..=n - size).step_by((size / 2).max(1)) {
                let pieces = from..from + size;
                let layers = self.pieces[from].start..self.pieces[from + size - 1].end;
                let both = [Some(Group::Mixer), Some(Group::FeedForward)];
                for group in both.into_iter().filter(|_| groups).chain([None]) {
                    let window = Window { pieces: pieces.clone(), layers: layers.clone(), group };
                    if layers.len() > 1 && !windows.contains(&window) {
                        windows.push(window);
                    }
                }
            }
        }
        windows
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Window {
    pieces: Range<usize>,
    layers: Range<usize>,
    group: Option<Group>,
}

/// Solves each layer by itself, then the windows. A layer that is too small to judge is `None`; such windows are
/// omitted.
///
/// # Errors
/// Returns [`AblationError`] if a weight cannot be read, a spectrum cannot be computed, or the user interrupts.
pub fn all_regions(
    source: &dyn Source,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Vec<Option<Region>>, Vec<Region>), AblationError> {
    let (n_embd, sites) = (source.n_embd(), source.sites());
    let n_layer = sites.iter().map(|s| s.layer + 1).max().unwrap_or(0);
    if n_embd < MIN_WIDTH || n_layer == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut sums = Sums::new(n_layer, n_embd);
    let windows = sums.windows();
    let steps = sites.len() + windows.len();
    let solvers = linalg::threads(SOLVE_BYTES / (3 * 8 * n_embd * n_embd));
    let (mut layers, mut next) = (Vec::new(), 0);
    while layers.len() < n_layer {
        let mut batch = Vec::new();
        for layer in layers.len()..(layers.len() + solvers).min(n_layer) {
            let (mut total, mut columns) = (Array2::zeros((n_embd, n_embd)), 0);
            while next < sites.len() && sites[next].layer <= layer {
                interrupt::check()?;
                let gram = source.gram(next)?;
                sums.add(&sites[next], &gram);
                total += &gram;
                columns += sites[next].columns;
                next += 1;
                progress(next, steps);
            }
            batch.push((layer..layer + 1, None, (total, columns)));
        }
        layers.extend(solve(solvers, batch, |sum| sum)?);
    }
    let jobs = windows.iter().map(|w| (w.layers.clone(), w.group, w)).collect::<Vec<_>>();
    let mut solved = Vec::new();
    for some in jobs.chunks(solvers) {
        interrupt::check()?;
        solved.extend(solve(solvers, some.to_vec(), |w| sums.total(w))?.into_iter().flatten());
        progress(sites.len() + solved.len(), steps);
    }
    Ok((layers, solved))
}

type Job<T> = (Range<usize>, Option<Group>, T);

fn solve<T: Send>(
    solvers: usize,
    jobs: Vec<Job<T>>,
    gram: impl Fn(T) -> (Array2<f64>, usize) + Sync,
) -> Result<Vec<Option<Region>>, AblationError> {
    let results = Mutex::new(vec![Ok(None); jobs.len()]);
    linalg::in_parallel(solvers, jobs.into_iter().enumerate(), |(i, (layers, group, job))| {
        let (gram, columns) = gram(job);
        let enough = columns as f64 >= MIN_COLUMNS * gram.nrows() as f64;
        let lowest = if enough { lowest(&gram) } else { Ok(None) };
        let region = lowest.map(|lowest| lowest.map(|lowest| Region { layers, group, lowest }));
        if let Ok(mut results) = results.lock() {
            results[i] = region;
        }
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(results.into_iter().collect::<Result<_, NotPositive>>()?)
}
