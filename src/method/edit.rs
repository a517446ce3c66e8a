//! The change to one weight: which rank-one matrix is added to it, and how it is written.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::arch::plan::{Plan, ResidualWriter};
use crate::gguf::{GgmlType, Gguf, GgufError, TensorInfo};
use crate::llama::LowRank;
use crate::method::direction::{Along, SafetyDirection};
use crate::method::post_norm::PostNorm;
use crate::output::percent;
use crate::quant::{self, QuantError};
use crate::util::hint::Hint;

/// Values converted at a time and per thread, so that memory is bounded by the tensor's own bytes.
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
        /// The tensor.
        tensor: String,
        /// Why.
        source: QuantError,
    },
    /// A weight is not finite.
    #[error("{tensor} holds weights that are not finite")]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// The plan names a tensor that the file lacks.
    #[error("{tensor} is in the plan but not in the file")]
    Missing {
        /// The tensor.
        tensor: String,
    },
    /// A gain tensor has the wrong size.
    #[error("{tensor} has {found} values, expected {expected}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Expected number of values.
        expected: usize,
        /// Found number of values.
        found: usize,
    },
    /// What is to be written of a tensor cannot be.
    #[error("{tensor}: an edit cannot be written as {ggml_type}: {problem}")]
    Unwritable {
        /// The tensor.
        tensor: String,
        /// The type that it would get.
        ggml_type: GgmlType,
        /// Why not.
        problem: Unwritable,
    },
    /// The type of a tensor that neurons write with has no codes of single values.
    #[error("{tensor}: {ggml_type} keeps several values in one code, so a neuron cannot be changed alone")]
    NoSingleCodes {
        /// The tensor.
        tensor: String,
        /// Its type.
        ggml_type: GgmlType,
    },
    /// The type of a tensor does not hold the row of a neuron.
    #[error(
        "{tensor}: {ggml_type} does not hold the row of a neuron: its products with the inputs are the exact ones by {cosine:.3}, expected {least} at least"
    )]
    Row {
        /// The tensor.
        tensor: String,
        /// Its type.
        ggml_type: GgmlType,
        /// Cosine between the products.
        cosine: f64,
        /// What it must be.
        least: f64,
    },
    /// No gates were learned for what is asked for.
    #[error("no gates were learned for the layers {window:?} with κ = {contrast}")]
    NoGates {
        /// Layers, as shares of the depth.
        window: (f64, f64),
        /// κ.
        contrast: f64,
    },
    /// Every weight that would be edited is zero, so strength has no meaning.
    #[error("all {n} residual writers are zero: there is nothing to scale the edit by")]
    ZeroWeights {
        /// Number of writers.
        n: usize,
    },
}

/// Why a tensor cannot be written in a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    /// ggml does not decode the type that it has.
    #[error("ggml does not decode its type {0}")]
    NoDecoder(GgmlType),
    /// ggml does not encode the type.
    #[error("ggml does not encode that type")]
    NoEncoder,
    /// Rounding to the type takes an importance matrix, which rounding to nearest has not.
    #[error("ggml rounds to that type only with an importance matrix")]
    NeedsImatrix,
    /// No code of the type can be moved on its own grid.
    #[error("the codes of that type cannot be moved")]
    NoGrid,
    /// Rows are no whole number of blocks.
    #[error("a row has {n} values, expected a multiple of {block}")]
    Row {
        /// Values of a row.
        n: u64,
        /// Values of a block.
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
                "leave out --requant nearest, or give edited tensors a wider type with --promote Q8_0"
            }
            Self::Row { .. } => "types of 32 values a block fit most models: Q8_0, Q5_1, Q4_0",
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
                Some("give it a wider type with --promote Q4_K, or take --method contrast".into())
            }
            Self::NotFinite { .. } | Self::ZeroWeights { .. } => {
                Some("the file is damaged or was converted wrongly; get it again".into())
            }
            _ => None,
        }
    }
}

/// Largest κ that is taken: beyond it hardly anything but harmless and borderline prompts is pushed.
pub const MAX_CONTRAST: f64 = 100.0;

/// What is done to the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Neurons that open on harmful prompts, and others on what only sounds harmful.
    Detector,
    /// A rank-one term in each writer, with a linear gate that opens on harmful prompts and turns the other way on those
    /// that only sound harmful.
    Contrast,
    /// A rank-one term in each writer with w̄, the mean of the weight's rows, as arXiv 2508.20766 Eq. 6 has it.
    Published,
}

impl Method {
    /// The name on the command line, in reports and in provenance keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detector => "detector",
            Self::Contrast => "contrast",
            Self::Published => "published",
        }
    }

    /// A strength, for people: `strength 1.2 %`, or of detectors `push 5.0`.
    pub fn size(self, strength: f64) -> String {
        match self {
            Self::Detector => format!("push {strength:.1}"),
            Self::Contrast | Self::Published => format!("strength {}", percent(strength)),
        }
    }

    /// Largest strength that is taken: beyond it no model that was measured still writes text.
    pub fn max_strength(self) -> f64 {
        match self {
            Self::Detector => 64.0,
            Self::Contrast | Self::Published => 1.0,
        }
    }

    /// Whether the right factor of a writer is a gate, learned from its inputs.
    pub fn is_gated(self) -> bool {
        self == Self::Contrast
    }
}

/// The right factor of every writer, in the plan's order, f32 `[n_expert][n_in]`; `None` = the writer
/// is left alone.
pub type RightFactors = Vec<Option<Vec<f32>>>;

/// w̄ of every writer.
pub fn mean_rows(weights: &[WriterWeights]) -> RightFactors {
    weights.iter().map(|w| Some(w.mean_row.clone())).collect()
}

/// What one pass over a writer's weights tells: of W as it acts, which is the file's times its scale where
/// there is one.
#[derive(Debug, Clone)]
pub struct WriterWeights {
    /// w̄: mean of the rows of W per expert, f32 `[n_expert][n_in]`, f64 accumulators.
    pub mean_row: Vec<f32>,
    /// ‖W‖_F², f64.
    pub norm_sq: f64,
    /// The factor s of each expert, f32 `[n_expert]`: llama.cpp writes s·(W_file x). Empty = all 1.
    pub scale: Vec<f32>,
    /// Gain of the norm between W and the stream, or the product of both, f32 `[n_embd]`.
    pub post_norm: Option<Vec<f32>>,
}

/// ΔW = α · left · rightᵀ per expert of one writer: W `[n_expert][n_embd][n_in]`, left `[n_embd]` a
/// unit vector, right `[n_expert][n_in]`. W is the matrix as it acts; where llama.cpp multiplies the file's by a
/// scale s, the file gets ΔW/s ([`Edit::right_in_file`]).
#[derive(Debug, Clone)]
pub struct Edit {
    /// Index of the writer in the plan.
    pub writer: usize,
    /// Name of the tensor.
    pub tensor: String,
    /// Number of experts, 1 when dense.
    pub n_expert: u64,
    /// Left factor.
    pub left: Vec<f32>,
    /// Right factor.
    pub right: Vec<f32>,
    /// α.
    pub alpha: f64,
    /// ‖W‖_F², for relative sizes.
    pub weight_norm_sq: f64,
    /// s of each expert, f32 `[n_expert]`; empty = all 1.
    pub scale: Vec<f32>,
    /// Whether s multiplies what an adapter adds too.
    pub scales_adapter: bool,
    /// The norm between W and the stream.
    pub post_norm: Option<PostNorm>,
}

impl Edit {
    /// The right factor for the file's bytes: that of each expert over its scale.
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

    /// m: `mᵀΔ` is how far a change Δ pushes the stream along ŝ, per column, where ΔW pushes by α·right: left itself
    /// without a norm.
    pub fn along(&self) -> &[f32] {
        self.post_norm.as_ref().map_or(&self.left, |norm| &norm.along)
    }

    /// ‖ΔW‖_F² = α² ‖right‖², since ‖left‖ = 1.
    pub fn norm_sq(&self) -> f64 {
        self.alpha * self.alpha * self.right.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>()
    }

    /// Of each expert, whether it is left alone: its right factor is 0.
    pub fn spared(&self) -> impl Iterator<Item = bool> {
        spared(&self.right, self.n_expert)
    }

    /// The same edit as an adapter of rank one, α in the left factor.
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

/// How many experts the right factors of mixtures leave alone, as no prompt that a gate learned from was
/// routed to them, and how many there are. Takes the number of experts and the right factor of each writer.
pub fn experts_spared<'a>(writers: impl Iterator<Item = (u64, &'a [f32])>) -> (usize, usize) {
    let mixtures = writers.filter(|(n_expert, _)| *n_expert > 1);
    mixtures.fold((0, 0), |(alone, all), (n_expert, right)| {
        (alone + spared(right, n_expert).filter(|&s| s).count(), all + n_expert as usize)
    })
}

/// Decodes `bytes` run by run, in order: `see(first_row, values)`.
///
/// # Errors
/// [`EditError`] naming the tensor.
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

/// Reads one writer's weights: `w̄ = (1/n_embd) Σ_i W_i` per expert and ‖W‖_F², of `W = s · W_file`.
///
/// # Errors
/// [`EditError`] naming the tensor.
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

/// The scale of each expert of a writer, F32 `[1]` or `[n_expert]` in the file; empty where there is none.
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

/// The product of the gains between the writer and the stream, f32 `[n_embd]`; `None` without a norm.
///
/// # Errors
/// [`EditError`] naming the tensor.
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

/// The left factor of a writer, a unit vector: ŝ, or where a norm with that gain follows what pushes along ŝ through it.
pub fn left_factor(direction: &SafetyDirection, gain: Option<&[f32]>) -> (Vec<f32>, Option<PostNorm>) {
    let Some(gain) = gain else { return (direction.unit().to_vec(), None) };
    let (left, norm) = PostNorm::meet(direction.unit(), gain);
    (left, Some(norm))
}

/// The right factors, 0 for experts whose scale lets nothing through.
fn heard(mut right: Vec<f32>, scale: &[f32]) -> Vec<f32> {
    let n_in = (right.len() / scale.len().max(1)).max(1);
    let silent = right.chunks_mut(n_in).zip(scale).filter(|(_, s)| s.abs() < f32::MIN_POSITIVE);
    silent.for_each(|(right, _)| right.fill(0.0));
    right
}

/// Every writer's edit at `strength`: `W ← W + α ŝ rᵀ`, r its right factor and one α for all; with
/// r = w̄ this is arXiv 2508.20766 Eq. 6.
///
/// The paper never prints α, and `‖w̄‖ ≈ ‖W‖_F/n_embd` makes a raw α mean nothing across models;
/// so `strength` is the relative size of the whole change, `√(Σ‖ΔW‖_F² / Σ‖W‖_F²)` over the writers
/// that have a right factor, and `α = strength · √(Σ‖W‖_F² / Σ‖r‖²)`.
///
/// # Errors
/// [`EditError::ZeroWeights`] when there is nothing to scale by.
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
