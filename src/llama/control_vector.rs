//! Edits as control vectors, which `llama-server --control-vector` adds to the residual stream at every token,
//! regardless of the prompt.
//!
//! llama.cpp reads `general.architecture = controlvector` and F32 tensors `direction.N` ne `[n_embd]`, and
//! adds the N-th to the residual stream after block N (counted from 0), before the next block reads it.
//! There is no slot for block 0; llama.cpp rejects a file with a tensor of that name.
//!
//! Such a file cannot contain gates. It holds the mean, over harmful prompts, of what the edit adds in each
//! block, so harmless prompts are pushed just as much. Prefer an adapter wherever one can be loaded.

use std::collections::BTreeMap;

use super::LlamaError;
use super::ffi::Context;
use crate::gguf::{Gguf, GgufBuilder, Value};

/// Value of `general.architecture`.
const ARCHITECTURE: &str = "controlvector";

/// Mean push of an edit in each block.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlVector {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks of the model.
    pub n_layer: usize,
    /// Vector of each pushed block, f32 `[n_embd]`; never includes block 0.
    pub by_layer: BTreeMap<usize, Vec<f32>>,
    /// Edited tensors whose push cannot be included, with the reason.
    pub left_out: Vec<(String, &'static str)>,
}

impl ControlVector {
    /// Returns the first and last pushed block, counted as in `--control-vector-layer-range`.
    pub fn range(&self) -> (usize, usize) {
        let first = self.by_layer.keys().next().copied().unwrap_or(0);
        (first, self.by_layer.keys().next_back().copied().unwrap_or(0))
    }

    /// Returns the bytes of the GGUF file; `model_hint` is the model's architecture.
    ///
    /// # Errors
    /// Returns [`LlamaError::ControlVector`] if the contents are not valid in a GGUF file.
    pub fn to_gguf(&self, model_hint: &str) -> Result<Vec<u8>, LlamaError> {
        let count = u32::try_from(self.by_layer.len()).unwrap_or(u32::MAX);
        let mut file = GgufBuilder::new()
            .string("general.architecture", ARCHITECTURE)
            .string("general.name", "rosi-gguf safety edit, mean push")
            .string("controlvector.model_hint", model_hint)
            .kv("controlvector.layer_count", Value::U32(count));
        for (layer, v) in &self.by_layer {
            file = file.f32_tensor(&format!("direction.{layer}"), &[v.len() as u64], v);
        }
        let mut bytes = Vec::new();
        file.write_to(&mut bytes).map_err(refused)?;
        Ok(bytes)
    }

    /// Reads a control vector for a model of `n_layer` blocks of width `n_embd`, as strictly as llama.cpp's
    /// loader does.
    ///
    /// # Errors
    /// Returns [`LlamaError::ControlVector`] if the file is not a control vector or has another width.
    pub fn read(gguf: &Gguf, n_layer: usize, n_embd: usize) -> Result<Self, LlamaError> {
        if gguf.architecture() != Some(ARCHITECTURE) {
            let found = gguf.architecture().unwrap_or("none");
            return Err(refused(format!("general.architecture: expected {ARCHITECTURE}, found {found}")));
        }
        let mut by_layer = BTreeMap::new();
        for tensor in &gguf.tensors {
            let number = tensor.name.strip_prefix("direction.").and_then(|n| n.parse::<usize>().ok());
            let layer = number.filter(|&n| n > 0);
            let layer = layer
                .ok_or_else(|| refused(format!("expected direction.N from 1, found {}", tensor.name)))?;
            if tensor.ggml_type != crate::gguf::GgmlType::F32 || tensor.ne != [n_embd as u64, 1, 1, 1] {
                let (name, found, ne) = (&tensor.name, tensor.ggml_type, tensor.ne);
                return Err(refused(format!("{name}: expected F32 [{n_embd}], found {found} {ne:?}")));
            }
            let bytes = gguf.read_tensor(tensor).map_err(refused)?;
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            by_layer.insert(layer, values.collect());
        }
        Ok(Self { n_embd, n_layer, by_layer, left_out: Vec::new() })
    }

    /// Adds the vector to the residual stream of all later decodes.
    pub(super) fn apply(&self, context: &mut Context) -> Result<(), LlamaError> {
        // llama.cpp's layout: block 1 first, no block 0.
        let mut data = vec![0.0; self.n_embd * self.n_layer.saturating_sub(1)];
        for (&layer, v) in &self.by_layer {
            let slot =
                layer.checked_sub(1).and_then(|l| data.get_mut(l * self.n_embd..(l + 1) * self.n_embd));
            if let Some(slot) = slot {
                slot.copy_from_slice(v);
            }
        }
        context.set_control_vector(Some(&data), self.n_embd)
    }
}

fn refused(reason: impl ToString) -> LlamaError {
    LlamaError::ControlVector { reason: reason.to_string() }
}
