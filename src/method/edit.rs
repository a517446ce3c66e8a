//! Rank-one edits of single weights, and the statistics of the weights that they are computed from.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::arch::plan::{Plan, ResidualWriter};
use crate::arch::window::Window;
use crate::gguf::{GgmlType, Gguf, GgufError, TensorInfo};
use crate::llama::LowRank;
use crate::method::direction::{Along, SafetyDirection};
use crate::method::post_norm::PostNorm;
use crate::output::percent;
use crate::quant::{self, QuantError};
use crate::util::hint::Hint;

/// Values converted at a time per thread, which keeps memory close to the tensor's own bytes.
pub(crate) const CHUNK_VALUES: usize = 1 << 20;

/// Why an edit could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The tensor could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Its rows could not be converted.
    #[error("{tensor}: {source}")]
    Quant {
        /// Name of the tensor.
        tensor: String,
        /// Cause.
        source: QuantError,
    },
    /// A weight is not finite.
    #[error("{tensor}: expected finite weights, found NaN or infinity")]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
    },
    /// The plan names a tensor that the file lacks.
    #[error("{tensor} is in the plan but not in the file")]
    Missing {
        /// Name of the tensor.
        tensor: String,
    },
    /// A gain or scale tensor has the wrong size.
    #[error("{tensor}: expected {expected} values, found {found}")]
    Size {
        /// Name of the tensor.
        tensor: String,
        /// Expected number of values.
        expected: usize,
        /// Number of values found.
        found: usize,
    },
    /// The edited tensor cannot be written in the type that it would get.
    #[error("{tensor}: an edit cannot be written as {ggml_type}: {problem}")]
    Unwritable {
        /// Name of the tensor.
        tensor: String,
        /// Type in which the tensor would be written.
        ggml_type: GgmlType,
        /// Reason why it cannot.
        problem: Unwritable,
    },
    /// The type of a writer that should get neurons encodes several values in one code.
    #[error("{tensor}: {ggml_type} encodes several values in one code, so a single neuron cannot be changed")]
    NoSingleCodes {
        /// Name of the tensor.
        tensor: String,
        /// Type in which the tensor would be written.
        ggml_type: GgmlType,
    },
    /// The type of a tensor is too coarse for the row of a neuron.
    #[error(
        "{tensor}: {ggml_type} is too coarse for the row of a neuron: expected a cosine of at least {least} between its products with the inputs and the exact ones, found {cosine:.3}"
    )]
    Row {
        /// Name of the tensor.
        tensor: String,
        /// Type in which the row would be written.
        ggml_type: GgmlType,
        /// Cosine between the products of the rounded row with the inputs and the exact ones.
        cosine: f64,
        /// Least cosine that is accepted.
        least: f64,
    },
    /// No gates were learned for the requested layers and κ.
    #[error("no gates were learned for layers {window} with κ = {contrast}")]
    NoGates {
        /// Requested layers, as shares of the depth.
        window: Window,
        /// Requested κ.
        contrast: f64,
    },
    /// No α gives the requested strength, because the weights or the right factors are all zero.
    #[error("cannot scale the edit: the weights or right factors of all {n} residual writers are zero")]
    ZeroWeights {
        /// Number of writers.
        n: usize,
    },
}

/// Why a tensor cannot be written in a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    /// ggml cannot decode the type of the tensor.
    #[error("ggml cannot decode its type {0}")]
    NoDecoder(GgmlType),
    /// ggml cannot encode the type.
    #[error("ggml cannot encode that type")]
    NoEncoder,
    /// The type requires an importance matrix, which rounding to nearest does not have.
    #[error("ggml requires an importance matrix for that type")]
    NeedsImatrix,
    /// Error diffusion does not support the type.
    #[error("error diffusion does not support that type")]
    NoGrid,
    /// The row length is not a multiple of the block length.
    #[error("expected a multiple of {block} values per row, found {n}")]
    Row {
        /// Values per row.
        n: u64,
        /// Values per block.
        block: u64,
    },
}

impl Unwritable {
    fn hint(self) -> &'static str {
        match self {
            Self::NoDecoder(_) | Self::NoEncoder | Self::NoGrid => {
                "start from another quantization of the model, for example Q4_K_M or Q8_0"
            }
            Self::NeedsImatrix => {
                "omit --requant nearest, or give edited tensors a wider type with --promote Q8_0"
            }
            Self::Row { .. } => "types with 32 values per block fit most models: Q8_0, Q5_1, Q4_0",
        }
    }
}

impl Hint for EditError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Gguf(error) => error.hint(),
            Self::Quant { source, .. } => source.hint(),
            Self::Unwritable { problem, .. } => Some(problem.hint().into()),
            Self::NoSingleCodes { .. } | Self::Row { .. } => {
                Some("give it a wider type with --promote Q4_K, or use --method contrast".into())
            }
            Self::NotFinite { .. } | Self::ZeroWeights { .. } => {
                Some("the file is damaged or was converted incorrectly; download or convert it again".into())
            }
            _ => None,
        }
    }
}

/// Largest accepted κ: beyond it, the edit acts almost only on harmless and borderline prompts.
pub const MAX_CONTRAST: f64 = 100.0;

/// How the weights are edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Detector neurons: some open on harmful prompts, others on prompts that only sound harmful.
    Detector,
    /// A rank-one term in each writer, with a linear gate that opens on harmful prompts and pushes the other way on
    /// prompts that only sound harmful.
    Contrast,
    /// A rank-one term in each writer, with the mean row of the weight as right factor (arXiv 2508.20766, Eq. 6).
    Published,
}

impl Method {
    /// Returns the name used on the command line, in reports, and in provenance keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detector => "detector",
            Self::Contrast => "contrast",
            Self::Published => "published",
        }
    }

    /// Formats a strength for display: `strength 1.2 %`, or `push 5.0` for detectors.
    pub fn size(self, strength: f64) -> String {
        match self {
            Self::Detector => format!("push {strength:.1}"),
            Self::Contrast | Self::Published => format!("strength {}", percent(strength)),
        }
    }

    /// Returns the largest accepted strength: beyond it, no measured model still writes text.
    pub fn max_strength(self) -> f64 {
        match self {
            Self::Detector => 64.0,
            Self::Contrast | Self::Published => 1.0,
        }
    }

    /// Returns whether the right factor of a writer is a gate, learned from its inputs.
    pub fn is_gated(self) -> bool {
        self == Self::Contrast
    }
}

/// The right factor of every writer, in the plan's order, f32 `[n_expert][n_in]`; `None` leaves the writer unchanged.
pub type RightFactors = Vec<Option<Vec<f32>>>;

/// Returns w̄ of every writer.
pub fn mean_rows(weights: &[WriterWeights]) -> RightFactors {
    weights.iter().map(|w| Some(w.mean_row.clone())).collect()
}

/// Statistics from one pass over the weights of a writer. W is the effective matrix: the one in the file, times its
/// scale if it has one.
#[derive(Debug, Clone)]
pub struct WriterWeights {
    /// w̄: mean of the rows of W per expert, f32 `[n_expert][n_in]`, f64 accumulators.
    pub mean_row: Vec<f32>,
    /// ‖W‖_F², f64.
    pub norm_sq: f64,
    /// Scale s of each expert, f32 `[n_expert]`: llama.cpp computes s·(W_file x). Empty means all 1.
    pub scale: Vec<f32>,
    /// Gain of the norm between W and the residual stream, or the product of the gains of two norms, f32 `[n_embd]`.
    pub post_norm: Option<Vec<f32>>,
}

/// ΔW = α · left · rightᵀ per expert of one writer: W `[n_expert][n_embd][n_in]`, left `[n_embd]` (a unit vector),
/// right `[n_expert][n_in]`. W is the effective matrix: where llama.cpp multiplies the matrix in the file by a scale s,
/// the file gets ΔW/s ([`Edit::right_in_file`]).
#[derive(Debug, Clone)]
pub struct Edit {
    /// Index of the writer in the plan.
    pub writer: usize,
    /// Name of the tensor.
    pub tensor: String,
    /// Number of experts; 1 for a dense matrix.
    pub n_expert: u64,
    /// Left factor, a unit vector, f32 `[n_embd]`.
    pub left: Vec<f32>,
    /// Right factor, f32 `[n_expert][n_in]`.
    pub right: Vec<f32>,
    /// α, the same for all writers.
    pub alpha: f64,
    /// ‖W‖_F², from which relative sizes are computed.
    pub weight_norm_sq: f64,
    /// Scale s of each expert, f32 `[n_expert]`; empty means all 1.
    pub scale: Vec<f32>,
    /// Whether s also multiplies the output of an adapter.
    pub scales_adapter: bool,
    /// The norm between W and the residual stream, if there is one.
    pub post_norm: Option<PostNorm>,
}

impl Edit {
    /// Returns the right factor for the matrix in the file: that of each expert divided by the expert's scale.
    pub fn right_in_file(&self) -> Cow<'_, [f32]> {
        if self.scale.is_empty() {
            return Cow::Borrowed(&self.right);
        }
        let n_in = (self.right.len() / self.scale.len()).max(1);
        let over = |(right, &s): (&[f32], &f32)| {
            right.iter().map(|&r| if r == 0.0 { 0.0 } else { r / s }).collect::<Vec<_>>()
        };
        Cow::Owned(self.right.chunks(n_in).zip(&self.scale).flat_map(over).collect())
    }

    /// Returns m, with which `mᵀΔ` is the push of a change Δ along ŝ, per column; for ΔW it is α·right. Without a norm,
    /// m is the left factor.
    pub fn along(&self) -> &[f32] {
        self.post_norm.as_ref().map_or(&self.left, |norm| &norm.along)
    }

    /// Returns ‖ΔW‖_F² = α² ‖right‖², since ‖left‖ = 1.
    pub fn norm_sq(&self) -> f64 {
        self.alpha * self.alpha * self.right.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>()
    }

    /// Returns for each expert whether the edit leaves it unchanged, that is, whether its right factor is 0.
    pub fn spared(&self) -> impl Iterator<Item = bool> {
        spared(&self.right, self.n_expert)
    }

    /// Returns the edit as an adapter of rank one, with α in the left factor.
    pub fn to_low_rank(&self) -> LowRank {
        let b: Vec<f32> = self.left.iter().map(|&v| (f64::from(v) * self.alpha) as f32).collect();
        LowRank {
            tensor: self.tensor.clone(),
            n_expert: self.n_expert,
            rank: 1,
            a: if self.scales_adapter { self.right_in_file().into_owned() } else { self.right.clone() },
            b: b.repeat(self.n_expert as usize),
        }
    }
}

fn spared(right: &[f32], n_expert: u64) -> impl Iterator<Item = bool> {
    let n_in = right.len() / (n_expert as usize).max(1);
    right.chunks(n_in.max(1)).map(|right| right.iter().all(|&r| r == 0.0))
}

/// Counts the experts of mixtures that the right factors leave unchanged (no training prompt was routed to them), and
/// all experts of mixtures. `writers` yields the number of experts and the right factor of each writer.
pub fn experts_spared<'a>(writers: impl Iterator<Item = (u64, &'a [f32])>) -> (usize, usize) {
    let mixtures = writers.filter(|(n_expert, _)| *n_expert > 1);
    mixtures.fold((0, 0), |(alone, all), (n_expert, right)| {
        (alone + spared(right, n_expert).filter(|&s| s).count(), all + n_expert as usize)
    })
}

/// Decodes `bytes` in runs of rows, in order, and calls `see(first_row, values)` for each run.
///
/// # Errors
/// Returns [`EditError::Quant`] if the rows cannot be decoded.
pub fn for_each_run(
    info: &TensorInfo,
    bytes: &[u8],
    mut see: impl FnMut(usize, &[f32]),
) -> Result<(), EditError> {
    let n_in = info.ne[0] as usize;
    let row_bytes = info.row_bytes() as usize;
    let rows_per_run = (CHUNK_VALUES / n_in.max(1)).max(1);
    let mut values = Vec::new();
    for (run, source) in bytes.chunks(rows_per_run * row_bytes).enumerate() {
        values.resize(source.len() / row_bytes * n_in, 0.0);
        quant::dequantize(info.ggml_type, n_in, source, &mut values)
            .map_err(|source| EditError::Quant { tensor: info.name.clone(), source })?;
        see(run * rows_per_run, &values);
    }
    Ok(())
}

fn info<'g>(gguf: &'g Gguf, name: &str) -> Result<&'g TensorInfo, EditError> {
    gguf.tensor(name).ok_or_else(|| EditError::Missing { tensor: name.into() })
}

/// Reads the weights of one writer: `w̄ = (1/n_embd) Σ_i W_i` per expert, and ‖W‖_F², for `W = s · W_file`.
///
/// # Errors
/// Returns an [`EditError`] that names the tensor if one is missing, unreadable, not finite, or of the wrong size.
pub fn read_weights(gguf: &Gguf, writer: &ResidualWriter) -> Result<WriterWeights, EditError> {
    let tensor = info(gguf, &writer.tensor)?;
    let (n_in, n_embd) = (writer.n_in as usize, writer.n_out as usize);
    let mut sum = vec![0.0f64; n_in * writer.n_expert as usize];
    let scale = read_scale(gguf, writer)?;
    let factor = |expert: usize| scale.get(expert).map_or(1.0, |&s| f64::from(s));
    let mut norm_sq = 0.0;
    for_each_run(tensor, &gguf.read_tensor(tensor)?, |first_row, values| {
        for (i, row) in values.chunks_exact(n_in).enumerate() {
            let expert = (first_row + i) / n_embd;
            let factor = factor(expert);
            for (s, &v) in sum[expert * n_in..].iter_mut().zip(row) {
                let v = f64::from(v) * factor;
                *s += v;
                norm_sq += v * v;
            }
        }
    })?;
    if !norm_sq.is_finite() {
        return Err(EditError::NotFinite { tensor: writer.tensor.clone() });
    }
    let mean_row = sum.iter().map(|s| (s / n_embd as f64) as f32).collect();
    let post_norm = read_gains(gguf, writer)?;
    Ok(WriterWeights { mean_row, norm_sq, scale, post_norm })
}

/// Reads the scale of each expert of a writer, F32 `[1]` or `[n_expert]` in the file; empty if there is none.
fn read_scale(gguf: &Gguf, writer: &ResidualWriter) -> Result<Vec<f32>, EditError> {
    let Some(name) = &writer.scale else { return Ok(Vec::new()) };
    let mut scale = read_vector(gguf, name)?;
    if scale.len() == 1 {
        scale = scale.repeat(writer.n_expert as usize);
    }
    if scale.len() as u64 != writer.n_expert {
        let expected = writer.n_expert as usize;
        return Err(EditError::Size { tensor: name.clone(), expected, found: scale.len() });
    }
    if scale.iter().any(|s| !s.is_finite()) {
        return Err(EditError::NotFinite { tensor: name.clone() });
    }
    Ok(scale)
}

fn read_vector(gguf: &Gguf, name: &str) -> Result<Vec<f32>, EditError> {
    let tensor = info(gguf, name)?;
    let mut vector = Vec::new();
    for_each_run(tensor, &gguf.read_tensor(tensor)?, |_, values| vector.extend_from_slice(values))?;
    Ok(vector)
}

/// Reads the product of the gains between the writer and the residual stream, f32 `[n_embd]`; `None` without a norm.
///
/// # Errors
/// Returns an [`EditError`] that names the tensor if a gain is missing, unreadable, or of the wrong size.
pub fn read_gains(gguf: &Gguf, writer: &ResidualWriter) -> Result<Option<Vec<f32>>, EditError> {
    let (Some(name), n_embd) = (&writer.post_norm, writer.n_out as usize) else { return Ok(None) };
    let mut gain = read_gain(gguf, name, n_embd)?;
    if let Some(name) = &writer.outer_norm {
        let outer = read_gain(gguf, name, n_embd)?;
        gain.iter_mut().zip(outer).for_each(|(g, o)| *g *= o);
    }
    Ok(Some(gain))
}

fn read_gain(gguf: &Gguf, name: &str, n_embd: usize) -> Result<Vec<f32>, EditError> {
    let gain = read_vector(gguf, name)?;
    if gain.len() == n_embd {
        return Ok(gain);
    }
    Err(EditError::Size { tensor: name.into(), expected: n_embd, found: gain.len() })
}

/// Returns the left factor of a writer, a unit vector: ŝ, or the vector that pushes along ŝ through a norm with `gain`.
pub fn left_factor(direction: &SafetyDirection, gain: Option<&[f32]>) -> (Vec<f32>, Option<PostNorm>) {
    let Some(gain) = gain else { return (direction.unit().to_vec(), None) };
    let (left, norm) = PostNorm::meet(direction.unit(), gain);
    (left, Some(norm))
}

/// Zeroes the right factor of each expert whose scale is zero or subnormal.
fn heard(mut right: Vec<f32>, scale: &[f32]) -> Vec<f32> {
    let n_in = (right.len() / scale.len().max(1)).max(1);
    let silent = right.chunks_mut(n_in).zip(scale).filter(|(_, s)| s.abs() < f32::MIN_POSITIVE);
    silent.for_each(|(right, _)| right.fill(0.0));
    right
}

/// Returns every writer's edit at `strength`: `W ← W + α ŝ rᵀ`, with its right factor r and one α for all writers.
/// With r = w̄ this is arXiv 2508.20766 Eq. 6.
///
/// The paper does not give α, and since `‖w̄‖ ≈ ‖W‖_F/n_embd`, a raw α is not comparable across models. Therefore
/// `strength` is the relative size of the whole change, `√(Σ‖ΔW‖_F² / Σ‖W‖_F²)` over the writers that have a right
/// factor, and `α = strength · √(Σ‖W‖_F² / Σ‖r‖²)`.
///
/// # Errors
/// Returns [`EditError::ZeroWeights`] if α is not finite.
pub fn edits<'a>(
    plan: &Plan,
    weights: &[WriterWeights],
    rights: &RightFactors,
    along: impl Into<Along<'a>>,
    strength: f64,
) -> Result<Vec<Edit>, EditError> {
    let along = along.into();
    let used = || weights.iter().zip(rights).filter_map(|(w, r)| r.as_ref().map(|r| (w, r)));
    let weight_sq: f64 = used().map(|(w, _)| w.norm_sq).sum();
    let right_sq: f64 = used().flat_map(|(_, r)| r).map(|&v| f64::from(v).powi(2)).sum();
    let alpha = strength * (weight_sq / right_sq).sqrt();
    if !alpha.is_finite() {
        return Err(EditError::ZeroWeights { n: weights.len() });
    }
    let parts = plan.writers.iter().zip(weights.iter().zip(rights)).enumerate();
    let edits = parts.filter_map(|(index, (writer, (w, right)))| {
        let right = heard(right.clone()?, &w.scale);
        let (left, post_norm) = left_factor(along.at(writer.layer), w.post_norm.as_deref());
        Some(Edit {
            writer: index,
            tensor: writer.tensor.clone(),
            n_expert: writer.n_expert,
            left,
            right,
            alpha,
            weight_norm_sq: w.norm_sq,
            scale: w.scale.clone(),
            scales_adapter: writer.scale_after_lora,
            post_norm,
        })
    });
    Ok(edits.collect())
}
