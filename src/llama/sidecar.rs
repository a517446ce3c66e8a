//! Loads adapters and control vectors from files and applies them to a loaded model.
//!
//! llama.cpp validates adapters only in part: with a wrong number of experts it reads past the end of a tensor,
//! and an adapter for a tied `token_embd` ends the process. Both headers are therefore compared first.

use std::path::Path;

use super::engine::LlamaEngine;
use super::ffi::{Adapter, Model};
use super::{ControlVector, LlamaError};
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::util::bounded;

/// Maximum size of an adapter file, in bytes; well above any practical adapter.
const MAX_BYTES: u64 = 4 << 30;

/// Checks that `adapter` is a LoRA adapter for `model`, covering what llama.cpp leaves unchecked.
///
/// # Errors
/// Returns [`LlamaError::Adapter`] if a key or tensor does not fit the model.
pub fn check_adapter(adapter: &Gguf, model: &Gguf) -> Result<(), LlamaError> {
    let kind = |key: &str| adapter.str(key).unwrap_or("none");
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        if kind(key) != expected {
            return Err(refused(format!("{key}: expected {expected}, found {}", kind(key))));
        }
    }
    let architecture = model.architecture().unwrap_or("none");
    if kind("general.architecture") != architecture {
        let found = kind("general.architecture");
        return Err(refused(format!("expected an adapter for architecture {architecture}, found {found}")));
    }
    if adapter.tensors.is_empty() {
        return Err(refused("expected at least one tensor, found none"));
    }
    adapter.tensors.iter().try_for_each(|tensor| check_pair(adapter, model, tensor))
}

/// Checks one factor, `W.lora_a` ne `[n_in, rank]` or `W.lora_b` ne `[rank, n_out]`, together with the other
/// factor and the weight W.
fn check_pair(adapter: &Gguf, model: &Gguf, tensor: &TensorInfo) -> Result<(), LlamaError> {
    let name = &tensor.name;
    let weight = name.strip_suffix(".lora_a").or_else(|| name.strip_suffix(".lora_b"));
    let weight =
        weight.ok_or_else(|| refused(format!("expected NAME.lora_a or NAME.lora_b, found {name}")))?;
    let half = |end: &str| {
        adapter.tensor(&format!("{weight}{end}")).ok_or_else(|| refused(format!("{weight}{end} is missing")))
    };
    let (a, b) = (half(".lora_a")?, half(".lora_b")?);
    let w = model.tensor(weight).ok_or_else(|| refused(format!("the model has no {weight}")))?;
    if weight == "token_embd.weight" && model.tensor("output.weight").is_none() {
        return Err(refused("it changes token_embd, which is also the output matrix of this model"));
    }
    let rank = b.ne[0];
    // An embedding is a row lookup, not a product, so its factors have their dimensions swapped.
    let sides = if weight == "token_embd.weight" { (w.ne[1], w.ne[0]) } else { (w.ne[0], w.ne[1]) };
    let fits = a.ne == [sides.0, rank, w.ne[2], w.ne[3]] && b.ne == [rank, sides.1, w.ne[2], w.ne[3]];
    if !fits {
        let (a, b, w) = (a.ne, b.ne, w.ne);
        return Err(refused(format!("expected factors that fit {weight} {w:?}, found {a:?} and {b:?}")));
    }
    match [a, b].iter().find(|t| !matches!(t.ggml_type, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)) {
        Some(t) => Err(refused(format!("{}: expected F32, F16 or BF16, found {}", t.name, t.ggml_type))),
        None => Ok(()),
    }
}

/// Loads the adapter at `path` after checking it against `model`, the header of the loaded model.
///
/// # Errors
/// Returns [`LlamaError::Adapter`] if the file cannot be read, is too large, or does not fit the model.
pub fn load_adapter(
    path: &Path,
    loaded: &std::rc::Rc<Model>,
    model: &Gguf,
) -> Result<std::rc::Rc<Adapter>, LlamaError> {
    let at = |reason: String| refused(format!("{}: {reason}", path.display()));
    let gguf = Gguf::open(path).map_err(|error| refused(error.to_string()))?;
    check_adapter(&gguf, model).map_err(|error| match error {
        LlamaError::Adapter { reason } => at(reason),
        other => other,
    })?;
    if gguf.total_len() > MAX_BYTES {
        return Err(at(format!("expected at most {MAX_BYTES} bytes, found {}", gguf.total_len())));
    }
    let read = bounded::read(path, MAX_BYTES).map_err(|error| at(error.to_string()))?;
    let mut bytes = read.ok_or_else(|| at(format!("expected at most {MAX_BYTES} bytes, found more")))?;
    // The file may have changed since it was opened, so the bytes that are loaded are checked again.
    let read = Gguf::parse(std::io::Cursor::new(&bytes), bytes.len() as u64);
    check_adapter(&read.map_err(|error| at(error.to_string()))?, model)?;
    Adapter::from_bytes(loaded, &mut bytes)
}

impl LlamaEngine {
    /// Applies the adapter at `path` to all later calls; `model` is the header of the loaded model.
    ///
    /// # Errors
    /// Returns [`LlamaError::Adapter`] if the file is not a LoRA adapter for this model.
    pub fn apply_adapter_file(&mut self, path: &Path, model: &Gguf) -> Result<(), LlamaError> {
        let adapter = load_adapter(path, &self.model, model)?;
        self.context.set_adapter(Some(adapter), 1.0)
    }

    /// Applies `vector` to all later calls, or removes the current control vector if `vector` is `None`.
    ///
    /// # Errors
    /// Returns [`LlamaError::ControlVector`] if the vector does not fit the model.
    pub fn apply_control_vector(&mut self, vector: Option<&ControlVector>) -> Result<(), LlamaError> {
        match vector {
            Some(vector) => vector.apply(&mut self.context),
            None => self.context.set_control_vector(None, self.model.n_embd()),
        }
    }
}

fn refused(reason: impl ToString) -> LlamaError {
    LlamaError::Adapter { reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufBuilder;

    fn parsed(file: GgufBuilder) -> Gguf {
        let mut bytes = Vec::new();
        file.write_to(&mut bytes).unwrap();
        Gguf::parse(std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap()
    }

    fn model() -> Gguf {
        let file = GgufBuilder::new().string("general.architecture", "llama");
        parsed(
            file.f32_tensor("token_embd.weight", &[4, 6], &[0.0; 24])
                .f32_tensor("blk.0.ffn_down.weight", &[8, 4], &[0.0; 32])
                .f32_tensor("blk.0.ffn_down_exps.weight", &[8, 4, 3], &[0.0; 96]),
        )
    }

    fn lora(architecture: &str, weight: &str, a: &[u64], b: &[u64]) -> Gguf {
        let zeros = |ne: &[u64]| vec![0.0; ne.iter().product::<u64>() as usize];
        let file = GgufBuilder::new()
            .string("general.type", "adapter")
            .string("general.architecture", architecture)
            .string("adapter.type", "lora");
        parsed(file.f32_tensor(&format!("{weight}.lora_a"), a, &zeros(a)).f32_tensor(
            &format!("{weight}.lora_b"),
            b,
            &zeros(b),
        ))
    }

    #[test]
    fn adapters_are_checked_before_llama_cpp_sees_them() {
        let model = model();
        let check = |file: Gguf| check_adapter(&file, &model).map_err(|error| error.to_string());
        let (dense, experts) = ("blk.0.ffn_down.weight", "blk.0.ffn_down_exps.weight");
        check(lora("llama", dense, &[8, 2], &[2, 4])).unwrap();
        check(lora("llama", experts, &[8, 1, 3], &[1, 4, 3])).unwrap();
        for (file, why) in [
            (lora("qwen2", dense, &[8, 1], &[1, 4]), "an adapter for architecture llama, found qwen2"),
            (lora("llama", dense, &[7, 1], &[1, 4]), "expected factors that fit"),
            (lora("llama", dense, &[8, 2], &[1, 4]), "expected factors that fit"),
            (lora("llama", experts, &[8, 1, 2], &[1, 4, 2]), "expected factors that fit"),
            (
                lora("llama", "blk.9.ffn_down.weight", &[8, 1], &[1, 4]),
                "the model has no blk.9.ffn_down.weight",
            ),
            (lora("llama", "token_embd.weight", &[6, 1], &[1, 4]), "which is also the output matrix"),
        ] {
            let error = check(file).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let error = check(parsed(GgufBuilder::new().string("general.architecture", "llama"))).unwrap_err();
        assert!(error.contains("general.type: expected adapter, found none"), "{error}");
    }
}
