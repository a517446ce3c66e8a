//! Sources of weights, read one writer at a time: a model file, or synthetic weights in tests.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2};

use crate::arch::patches::{ResidualAxis, WriterKind};
use crate::arch::plan::{Plan, ResidualWriter};
use crate::gguf::Gguf;
use crate::method::edit::{self, EditError};
use crate::util::linalg;

/// Number of columns to keep, in multiples of `n_embd`. A projected direction is missing from every column of a weight,
/// so a part of the columns is enough to show it. More columns are thinned out evenly; only experts have that many.
const ENOUGH_COLUMNS: usize = 8;

/// The two kinds of writers that abliteration tools treat separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Attention and other mixers of tokens.
    Mixer,
    /// Feed-forward networks and all other writers.
    FeedForward,
}

/// One writer in the search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Name of the tensor.
    pub tensor: String,
    /// Block of the writer.
    pub layer: usize,
    /// Kind of the writer.
    pub group: Group,
    /// Number of columns of W that are used, over all experts.
    pub columns: usize,
}

/// Provides the Gram matrices of writers, ordered by block.
pub trait Source {
    /// Returns the width of the residual stream.
    fn n_embd(&self) -> usize;

    /// Returns the writers, in ascending order of their layers.
    fn sites(&self) -> &[Site];

    /// Returns `n_embd · W Wᵀ / ‖W‖_F²` in the lower triangle, f64 `[n_embd, n_embd]`.
    ///
    /// The diagonal is 1 on average, as is `rᵀ G r` for a random unit vector r. In a post-norm model, W is the matrix
    /// before the norm, because that is what abliteration projects. All zeros if W is zero.
    ///
    /// # Errors
    /// Returns an [`EditError`] that names the tensor if it is missing, unreadable, or not finite.
    fn gram(&self, site: usize) -> Result<Array2<f64>, EditError>;

    /// Returns `n_embd · ‖rᵀW‖² / ‖W‖_F²` for each row r of `units` (f32 `[k, n_embd]`): how much W writes along r,
    /// where 1 is the value for a random direction. 1 if W is zero.
    ///
    /// # Errors
    /// Returns an [`EditError`] that names the tensor if it is missing, unreadable, or not finite.
    fn energies(&self, site: usize, units: &Array2<f32>) -> Result<Vec<f64>, EditError>;
}

/// The writers of a file except the embedding, which only some abliteration tools edit.
pub struct FileSource<'a> {
    gguf: &'a Gguf,
    writers: Vec<&'a ResidualWriter>,
    sites: Vec<Site>,
    n_embd: usize,
}

impl<'a> FileSource<'a> {
    /// Creates a source from the writers of `plan`.
    pub fn new(gguf: &'a Gguf, plan: &'a Plan) -> Self {
        let n_embd = plan.n_embd as usize;
        let rows = |w: &&ResidualWriter| w.axis == ResidualAxis::Rows && w.kind != WriterKind::Embedding;
        let writers: Vec<_> = plan.writers.iter().filter(rows).collect();
        let site = |w: &&ResidualWriter| Site {
            tensor: w.tensor.clone(),
            layer: w.layer,
            group: match w.kind {
                WriterKind::Embedding | WriterKind::Attention | WriterKind::Recurrent => Group::Mixer,
                WriterKind::Ffn | WriterKind::Other => Group::FeedForward,
            },
            columns: all_columns(w).div_ceil(stride(w, n_embd)),
        };
        let sites = writers.iter().map(site).collect();
        Self { gguf, writers, sites, n_embd }
    }

    /// Decodes a writer and passes each expert to `see`, as f32 `[n_embd, columns]`. Returns ‖W‖_F² over the columns
    /// that were passed.
    fn for_each_expert(
        &self,
        site: usize,
        mut see: impl FnMut(ArrayView2<'_, f32>),
    ) -> Result<f64, EditError> {
        let (writer, n_embd) = (self.writers[site], self.n_embd);
        let missing = || EditError::Missing { tensor: writer.tensor.clone() };
        let info = self.gguf.tensor(&writer.tensor).ok_or_else(missing)?;
        let (n_in, stride) = (writer.n_in as usize, stride(writer, n_embd));
        let (mut kept, mut norm_sq) = (Vec::new(), 0.0);
        edit::for_each_run(info, &self.gguf.read_tensor(info)?, |first_row, values| {
            for (i, row) in values.chunks_exact(n_in).enumerate() {
                // Column j of expert e is column e·n_in + j of the whole writer.
                let from = (stride - (first_row + i) / n_embd * n_in % stride) % stride;
                kept.extend(row.iter().skip(from).step_by(stride));
                if (first_row + i + 1).is_multiple_of(n_embd) {
                    norm_sq += kept.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
                    if let Ok(w) = ArrayView2::from_shape((n_embd, kept.len() / n_embd), &kept) {
                        see(w);
                    }
                    kept.clear();
                }
            }
        })?;
        if norm_sq.is_finite() {
            return Ok(norm_sq);
        }
        Err(EditError::NotFinite { tensor: writer.tensor.clone() })
    }
}

fn all_columns(writer: &ResidualWriter) -> usize {
    (writer.n_in * writer.n_expert) as usize
}

fn stride(writer: &ResidualWriter, n_embd: usize) -> usize {
    all_columns(writer).div_ceil(ENOUGH_COLUMNS * n_embd).max(1)
}

impl Source for FileSource<'_> {
    fn n_embd(&self) -> usize {
        self.n_embd
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn gram(&self, site: usize) -> Result<Array2<f64>, EditError> {
        let mut gram = Array2::zeros((self.n_embd, self.n_embd));
        let norm_sq = self.for_each_expert(site, |w| linalg::add_outer(&mut gram, w))?;
        if norm_sq > 0.0 {
            gram *= self.n_embd as f64 / norm_sq;
        }
        Ok(gram)
    }

    fn energies(&self, site: usize, units: &Array2<f32>) -> Result<Vec<f64>, EditError> {
        let mut sums = vec![0.0; units.nrows()];
        let norm_sq = self.for_each_expert(site, |w| {
            let mut along = Array2::zeros((units.nrows(), w.ncols()));
            general_mat_mul(1.0, units, &w, 0.0, &mut along);
            for (sum, row) in sums.iter_mut().zip(along.rows()) {
                *sum += row.iter().map(|&v: &f32| f64::from(v).powi(2)).sum::<f64>();
            }
        })?;
        let scale = self.n_embd as f64 / norm_sq;
        Ok(sums.iter().map(|s| if norm_sq > 0.0 { s * scale } else { 1.0 }).collect())
    }
}
