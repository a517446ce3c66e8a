//! Applies an [`ArchPatch`] to a [`Gguf`] file to get a [`Plan`]: the tensors that write into its residual stream.

use std::collections::HashSet;
use std::ops::Range;

use crate::arch::patches::{
    ArchPatch, EmbeddingPolicy, Patches, ResidualAxis, ShapeFactor, Streams, WriterKind, WriterPattern,
    in_block,
};
use crate::arch::window::Window;
use crate::gguf::{GgmlType, Gguf, TensorInfo, Value};

mod error;
mod ffn;
#[cfg(test)]
mod tests;

pub use error::{PlanError, PlanWarning};
pub use ffn::Ffn;

/// Upper bounds on blocks, width and experts, beyond any model (llama.cpp: 512 blocks, 1024 experts).
pub(crate) const MAX_LAYERS: u64 = 4096;
const MAX_EMBD: u64 = 1 << 20;
const MAX_EXPERTS: u64 = 1 << 16;

const ARCHITECTURE: &str = "general.architecture";

type Result<T> = std::result::Result<T, PlanError>;

/// Every matrix of one file that writes into the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Value of `general.architecture`.
    pub architecture: String,
    /// Name of the patch file that the plan is based on, e.g. `llama.toml`.
    pub family: String,
    /// Number of blocks that take part in a decode, excluding NextN blocks.
    pub n_layer: usize,
    /// Number of NextN blocks, which are only used for drafting; they follow the others in the file.
    pub n_layer_nextn: usize,
    /// Width of the residual stream.
    pub n_embd: u64,
    /// Experts per block, 0 for a dense model.
    pub n_expert: u64,
    /// Number of experts that a token is routed to; 0 if the file does not state it.
    pub n_expert_used: u64,
    /// Whether `token_embd` is also the output matrix.
    pub tied_embeddings: bool,
    /// Name of the residual stream after a block, without `-N`.
    pub residual_name: String,
    /// Name of the stream after the last block, if the others are numbered by the block that reads them.
    pub residual_last: Option<String>,
    /// Memory layout of the residual node.
    pub streams: Streams,
    /// The writers, by block, then in the order in which they write.
    pub writers: Vec<ResidualWriter>,
    /// The writers of NextN blocks, which are edited in the file but never in an adapter.
    pub nextn_writers: Vec<ResidualWriter>,
    /// The dense feed-forward networks, by block.
    pub ffns: Vec<Ffn>,
    /// What the user should know before trusting the plan.
    pub warnings: Vec<PlanWarning>,
}

/// One tensor `W [n_out, n_in]` (per expert) that writes `h ← h + r · norm(s · W x)`, where `r` is `residual_scale`,
/// `s` is `scale`, and `norm` is the RMS norm with gain `post_norm`, if any.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidualWriter {
    /// Block; 0 for a tensor outside the blocks.
    pub layer: usize,
    /// Name of the tensor.
    pub tensor: String,
    /// Position in the block.
    pub kind: WriterKind,
    /// Axis that is the coordinate of the residual stream.
    pub axis: ResidualAxis,
    /// Length of `x`; for [`ResidualAxis::Cols`], the number of rows to look up.
    pub n_in: u64,
    /// Length of the output, `n_embd`.
    pub n_out: u64,
    /// Number of matrices in the tensor, 1 if dense.
    pub n_expert: u64,
    /// Quantization type of the weights.
    pub ggml_type: GgmlType,
    /// Gain tensor (the factor itself, F32 or F16 `[n_embd]`) of the norm between `W x` and the residual stream.
    pub post_norm: Option<String>,
    /// Gain tensor of a second norm, between the first and the residual stream.
    pub outer_norm: Option<String>,
    /// Tensor F32 `[1]` or `[n_expert]` that multiplies `W x`; an edit of the file must be divided by it.
    pub scale: Option<String>,
    /// Whether `scale` also multiplies the contribution of a LoRA, so that an adapter must be divided by it as well.
    pub scale_after_lora: bool,
    /// Factor of the writer's contribution, after norm and scale.
    pub residual_scale: f64,
    /// Whether llama.cpp can apply a LoRA to the tensor.
    pub lora: bool,
}

impl Plan {
    /// Returns the matrices that read the inputs and the hidden values of `ffn`, each with the length of its input.
    pub fn readers(&self, ffn: &Ffn) -> [(String, usize); 2] {
        let input = ffn.router.as_ref().unwrap_or(&ffn.up);
        [(input.clone(), self.n_embd as usize), (self.writers[ffn.writer].tensor.clone(), ffn.n_ff)]
    }

    /// Returns the indices of the writers whose layers are in `window`.
    pub fn writers_in(&self, window: Window) -> Vec<usize> {
        let inside = |w: &ResidualWriter| window.contains(w.layer, self.n_layer);
        self.writers.iter().enumerate().filter(|(_, w)| inside(w)).map(|(i, _)| i).collect()
    }

    /// Finds the writers of `gguf`.
    pub fn resolve(gguf: &Gguf, patches: &Patches) -> Result<Self> {
        if let Some(split) = gguf.split().filter(|split| gguf.n_files() != usize::from(split.count)) {
            return Err(PlanError::Split { count: split.count });
        }
        let architecture = gguf.architecture().ok_or_else(|| PlanError::no_string(gguf, ARCHITECTURE))?;
        let patch = patches.find(architecture)?;
        let model = Model::read(gguf, architecture, patch)?;
        let n_block = model.n_layer + model.n_layer_nextn;
        let mut writers = model.writers(0..model.n_layer)?;
        let nextn_writers = model.writers(model.n_layer..n_block)?;
        let tied_embeddings = gguf.tensor("output.weight").is_none();
        match patch.embedding {
            EmbeddingPolicy::Leave => writers.retain(|writer| writer.kind != WriterKind::Embedding),
        }
        if writers.is_empty() {
            let family = patch.file.clone();
            return Err(PlanError::NoWriters { family });
        }
        let known = !patch.no_detectors.iter().any(|name| name == architecture);
        let ffns = if known { Ffn::all(gguf, &writers, model.n_embd) } else { Vec::new() };
        let used = gguf.u64(&format!("{architecture}.expert_used_count"));
        let mut warnings = model.uncovered(&writers, &nextn_writers);
        for ResidualWriter { tensor, .. } in writers.iter().filter(|writer| !writer.lora) {
            let tensor = tensor.clone();
            warnings.push(PlanWarning::NoLora { tensor });
        }
        Ok(Self {
            architecture: architecture.to_string(),
            family: patch.file.clone(),
            n_layer: model.n_layer,
            n_layer_nextn: model.n_layer_nextn,
            n_embd: model.n_embd,
            n_expert: model.n_expert,
            n_expert_used: used.unwrap_or(0).min(model.n_expert),
            tied_embeddings,
            residual_name: patch.residual.clone(),
            residual_last: patch.residual_last.clone(),
            streams: patch.streams,
            writers,
            nextn_writers,
            ffns,
            warnings,
        })
    }

    /// Returns the name of the residual stream after block `layer` in llama.cpp's graph, e.g. `l_out-3`.
    pub fn residual_node(&self, layer: usize) -> String {
        match &self.residual_last {
            None => format!("{}-{layer}", self.residual_name),
            Some(last) if layer + 1 == self.n_layer => last.clone(),
            Some(_) => format!("{}-{}", self.residual_name, layer + 1),
        }
    }
}

/// A model file with its shape and its family.
struct Model<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    patch: &'a ArchPatch,
    n_layer: usize,
    n_layer_nextn: usize,
    n_embd: u64,
    n_expert: u64,
}

impl<'a> Model<'a> {
    fn read(gguf: &'a Gguf, architecture: &'a str, patch: &'a ArchPatch) -> Result<Self> {
        let optional = |name: &str, most| integer(gguf, &format!("{architecture}.{name}"), 0, most);
        let required = |name: &str, most| {
            let key = format!("{architecture}.{name}");
            integer(gguf, &key, 1, most)?.ok_or_else(|| PlanError::key_missing(&key))
        };
        let n_block = required("block_count", MAX_LAYERS)?;
        // `block_count` includes the NextN blocks, which come last (llama_hparams::n_layer).
        let n_nextn = optional("nextn_predict_layers", n_block - 1)?.unwrap_or(0);
        Ok(Self {
            gguf,
            architecture,
            patch,
            n_layer: (n_block - n_nextn) as usize,
            n_layer_nextn: n_nextn as usize,
            n_embd: required("embedding_length", MAX_EMBD)?,
            n_expert: optional("expert_count", MAX_EXPERTS)?.unwrap_or(0),
        })
    }

    /// Returns the writers in `layers`; block 0 includes those outside the blocks. A NextN block may lack any of them.
    fn writers(&self, layers: Range<usize>) -> Result<Vec<ResidualWriter>> {
        let mut writers = Vec::new();
        for layer in layers {
            for pattern in self.patch.writers.iter().filter(|pattern| self.in_use(pattern, layer)) {
                let slot = Slot { model: self, pattern, layer };
                match self.gguf.tensor(&pattern.tensor_in(layer)) {
                    Some(tensor) => writers.push(slot.writer(tensor)?),
                    None if layer < self.n_layer => slot.check_absent()?,
                    None => {}
                }
            }
        }
        writers.sort_by_key(|writer| (writer.layer, writer.kind));
        Ok(writers)
    }

    /// Returns whether the pattern applies to block `layer`.
    fn in_use(&self, pattern: &WriterPattern, layer: usize) -> bool {
        let has = |name: &String| self.gguf.tensor(&in_block(name, layer)).is_some();
        let placed = match pattern.per_block() {
            true => pattern.layers.contains(layer),
            false => layer == 0,
        };
        placed && pattern.with.as_ref().is_none_or(has) && !pattern.without.as_ref().is_some_and(has)
    }

    /// Returns the number of matrices in a tensor of experts.
    fn experts(&self, pattern: &WriterPattern) -> Result<u64> {
        let Some(key) = &pattern.experts_per_key else {
            return Ok(self.n_expert);
        };
        let key = key.replace("{arch}", self.architecture);
        let shared = integer(self.gguf, &key, 1, MAX_EXPERTS)?;
        shared.map(|shared| self.n_expert / shared).ok_or_else(|| PlanError::key_missing(&key))
    }

    /// Returns a warning for every tensor that looks like a writer but is neither in `writers` nor in `nextn`.
    fn uncovered(&self, writers: &[ResidualWriter], nextn: &[ResidualWriter]) -> Vec<PlanWarning> {
        let known = writers.iter().chain(nextn);
        let known: HashSet<&str> = known.map(|writer| writer.tensor.as_str()).collect();
        let mut warnings = Vec::new();
        for tensor in &self.gguf.tensors {
            let Some(layer) = self.looks_like_writer(tensor) else {
                continue;
            };
            let drafting = (self.n_layer..self.n_layer + self.n_layer_nextn).contains(&layer);
            let mut denied = self.patch.not_writers.iter();
            let denied = denied.any(|name| in_block(name, layer) == tensor.name);
            if !drafting && !denied && !known.contains(tensor.name.as_str()) {
                let (tensor, family) = (tensor.name.clone(), self.patch.file.clone());
                warnings.push(PlanWarning::Uncovered { tensor, family });
            }
        }
        warnings
    }

    /// Returns the block of `tensor` if it has the name and shape of a writer.
    fn looks_like_writer(&self, tensor: &TensorInfo) -> Option<usize> {
        let (layer, name) = tensor.name.strip_prefix("blk.")?.split_once('.')?;
        let mut parts = ["out", "down", "proj"].iter();
        let part = parts.any(|part| name.contains(part));
        let shape = tensor.ne[0] > 1 && tensor.ne[1] == self.n_embd;
        let layer = layer.parse().ok()?;
        (part && name.ends_with("weight") && shape).then_some(layer)
    }
}

/// A pattern applied to one block.
struct Slot<'a> {
    model: &'a Model<'a>,
    pattern: &'a WriterPattern,
    layer: usize,
}

impl Slot<'_> {
    fn writer(&self, tensor: &TensorInfo) -> Result<ResidualWriter> {
        let (pattern, n_embd) = (self.pattern, self.model.n_embd);
        let n_expert = match pattern.experts {
            true => self.model.experts(pattern)?,
            false => 1,
        };
        let (free, n_in) = match pattern.axis {
            ResidualAxis::Rows => (0, tensor.ne[0]),
            ResidualAxis::Cols => (1, tensor.ne[1]),
        };
        let mut expected = [n_embd, n_embd, n_expert, 1];
        expected[free] = n_in;
        if tensor.ne != expected || n_in == 0 || n_expert == 0 {
            return Err(PlanError::shape(tensor, &shape_text(expected, Some(free))));
        }
        let (scale, normed) = (self.scale(n_expert)?, self.is_normed());
        // llama.cpp would abort: GGML_ASSERT in llm_graph_context::build_ffn.
        let nvfp4 = tensor.ggml_type == GgmlType::NVFP4;
        let aborts = nvfp4 && scale.is_some() && pattern.scale_after_lora;
        Ok(ResidualWriter {
            layer: self.layer,
            tensor: tensor.name.clone(),
            kind: pattern.kind,
            axis: pattern.axis,
            n_in,
            n_out: n_embd,
            n_expert,
            ggml_type: tensor.ggml_type,
            post_norm: self.norm(pattern.post_norm.as_ref().filter(|_| normed))?,
            outer_norm: self.norm(pattern.outer_norm.as_ref().filter(|_| normed))?,
            scale,
            scale_after_lora: pattern.scale_after_lora,
            residual_scale: self.residual_scale()?,
            lora: pattern.lora && !aborts && self.layer < self.model.n_layer,
        })
    }

    /// Returns an error if the tensor is absent, unless the patch allows it.
    fn check_absent(&self) -> Result<()> {
        let (pattern, layer) = (self.pattern, self.layer);
        let mut candidates = vec![pattern.tensor_in(layer)];
        if pattern.any_of.is_some() {
            let group = self.model.patch.writers.iter();
            let group = group.filter(|other| other.any_of == pattern.any_of);
            let group = group.filter(|other| self.model.in_use(other, layer));
            candidates = group.map(|other| other.tensor_in(layer)).collect();
        } else if !pattern.required {
            return Ok(());
        }
        if candidates.iter().any(|name| self.model.gguf.tensor(name).is_some()) {
            return Ok(());
        }
        let family = self.model.patch.file.clone();
        Err(PlanError::MissingWriter { layer, candidates, family })
    }

    /// Returns whether the graph has the norm: if the norm has a key, the key must be true.
    fn is_normed(&self) -> bool {
        let Model { gguf, architecture, .. } = self.model;
        let key = self.pattern.post_norm_key.as_ref().map(|key| key.replace("{arch}", architecture));
        key.is_none_or(|key| gguf.get(&key) == Some(&Value::Bool(true)))
    }

    fn norm(&self, pattern: Option<&String>) -> Result<Option<String>> {
        let Some(pattern) = pattern else {
            return Ok(None);
        };
        let norm = in_block(pattern, self.layer);
        match self.model.gguf.tensor(&norm) {
            Some(tensor) => {
                check_vector(tensor, &[GgmlType::F32, GgmlType::F16], self.model.n_embd)?;
                Ok(Some(norm))
            }
            None if self.pattern.post_norm_optional => Ok(None),
            None => {
                let writer = self.pattern.tensor_in(self.layer);
                Err(PlanError::MissingNorm { norm, writer })
            }
        }
    }

    fn scale(&self, n_expert: u64) -> Result<Option<String>> {
        let name = self.pattern.scale.as_ref();
        let name = name.map(|name| in_block(name, self.layer));
        let Some(scale) = name.as_ref().and_then(|name| self.model.gguf.tensor(name)) else {
            return Ok(None);
        };
        check_vector(scale, &[GgmlType::F32], n_expert)?;
        Ok(name)
    }

    fn residual_scale(&self) -> Result<f64> {
        let Model { gguf, architecture, n_embd, n_layer, .. } = self.model;
        let key = self.pattern.residual_scale_key.as_ref();
        let key = key.map(|key| key.replace("{arch}", architecture));
        if let Some(key) = key.filter(|key| gguf.get(key).is_some()) {
            return match gguf.f32(&key) {
                Some(0.0) => Ok(1.0),
                Some(value) if value.is_finite() => Ok(value.into()),
                value => Err(PlanError::key_value(&key, "a finite float", value)),
            };
        }
        let times = match self.pattern.residual_scale_times {
            None => 1.0,
            Some(ShapeFactor::SqrtNEmbd) => (*n_embd as f64).sqrt(),
            Some(ShapeFactor::RsqrtNLayer) => (*n_layer as f64).sqrt().recip(),
        };
        Ok(self.pattern.residual_scale.unwrap_or(1.0) * times)
    }
}

/// Returns an unsigned integer of the metadata, or `None` if the key is absent.
fn integer(gguf: &Gguf, key: &str, least: u64, most: u64) -> Result<Option<u64>> {
    let value = gguf.u64(key);
    let ok = value.is_some_and(|value| (least..=most).contains(&value));
    if ok || gguf.get(key).is_none() {
        return Ok(value);
    }
    let expected = format!("an integer from {least} to {most}");
    Err(PlanError::key_value(key, &expected, value))
}

/// Returns an error unless the tensor is a vector `[len]` of one of `types`.
fn check_vector(tensor: &TensorInfo, types: &[GgmlType], len: u64) -> Result<()> {
    if types.contains(&tensor.ggml_type) && tensor.ne == [len, 1, 1, 1] {
        return Ok(());
    }
    let names: Vec<&str> = types.iter().map(|one| one.name()).collect();
    let expected = format!("{} [{len}]", names.join(" or "));
    Err(PlanError::shape(tensor, &expected))
}

/// Formats a shape, e.g. `[2048, 512]`; the axis `free`, which may have any length, becomes `n`.
fn shape_text(ne: [u64; 4], free: Option<usize>) -> String {
    let used = ne.iter().rposition(|len| *len != 1).unwrap_or(0);
    let mut names = ne.map(|len| len.to_string());
    if let Some(free) = free {
        names[free] = "n".to_string();
    }
    format!("[{}]", names[..=used.max(free.unwrap_or(0))].join(", "))
}
