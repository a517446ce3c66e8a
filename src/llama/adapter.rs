//! Rank-one edits as a LoRA adapter: how an edit is previewed without writing the model, and the
//! sidecar that `llama-server --lora` loads.

use super::LlamaError;
use crate::gguf::{GgufBuilder, Value};

/// ΔW = b aᵀ of one weight, per expert. llama.cpp computes `y += (alpha/rank) · b (aᵀ x)` where it
/// multiplies with the weight, before any norm that follows: exactly where an edit of W sits.
#[derive(Debug, Clone, PartialEq)]
pub struct RankOne {
    /// Name of the weight, `….weight`.
    pub tensor: String,
    /// Number of experts, 1 for a dense weight.
    pub n_expert: u64,
    /// Right factor, f32 `[n_expert][n_in]`.
    pub a: Vec<f32>,
    /// Left factor with the strength in it, f32 `[n_expert][n_embd]`.
    pub b: Vec<f32>,
}

impl RankOne {
    /// Checks the factors against the weight's shape `[n_expert][n_out][n_in]`, which llama.cpp
    /// leaves partly unchecked (a wrong expert count ends the process).
    ///
    /// # Errors
    /// [`LlamaError::EditShape`].
    pub fn check(&self, n_in: u64, n_out: u64) -> Result<(), LlamaError> {
        for (what, expected, found) in [
            ("right factor", n_in.saturating_mul(self.n_expert), self.a.len() as u64),
            ("left factor", n_out.saturating_mul(self.n_expert), self.b.len() as u64),
        ] {
            if expected != found || found == 0 {
                return Err(LlamaError::EditShape { tensor: self.tensor.clone(), what, expected, found });
            }
        }
        Ok(())
    }
}

/// Lays `edits` out as a LoRA GGUF for models of `architecture`: `<weight>.lora_a` ne `[n_in, 1]`
/// and `<weight>.lora_b` ne `[1, n_embd]` in F32 (experts as third dimension), `alpha` 1, rank 1, so
/// that scale 1 is the edit itself.
///
/// # Errors
/// [`LlamaError::Adapter`] when a name or size does not make a valid file.
pub fn to_gguf(architecture: &str, edits: &[RankOne]) -> Result<Vec<u8>, LlamaError> {
    let mut file = GgufBuilder::new()
        .string("general.type", "adapter")
        .string("general.architecture", architecture)
        .string("general.name", "rosi-gguf safety edit")
        .string("adapter.type", "lora")
        .kv("adapter.lora.alpha", Value::F32(1.0));
    for edit in edits {
        let n_expert = edit.n_expert.max(1);
        let shape = |len: usize, first: bool| {
            let n = len as u64 / n_expert;
            let mut ne = if first { vec![n, 1] } else { vec![1, n] };
            if n_expert > 1 {
                ne.push(n_expert);
            }
            ne
        };
        file = file
            .f32_tensor(&format!("{}.lora_a", edit.tensor), &shape(edit.a.len(), true), &edit.a)
            .f32_tensor(&format!("{}.lora_b", edit.tensor), &shape(edit.b.len(), false), &edit.b);
    }
    let mut bytes = Vec::new();
    file.write_to(&mut bytes).map_err(|error| LlamaError::Adapter { reason: error.to_string() })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;

    #[test]
    fn layout_is_what_llama_cpp_reads() {
        let edit =
            RankOne { tensor: "blk.0.ffn_down.weight".into(), n_expert: 1, a: vec![1.0; 8], b: vec![2.0; 4] };
        edit.check(8, 4).unwrap();
        let bytes = to_gguf("llama", &[edit]).unwrap();
        let file = Gguf::parse(std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap();
        assert_eq!(file.str("general.type"), Some("adapter"));
        assert_eq!(file.tensor("blk.0.ffn_down.weight.lora_a").unwrap().ne, [8, 1, 1, 1]);
        assert_eq!(file.tensor("blk.0.ffn_down.weight.lora_b").unwrap().ne, [1, 4, 1, 1]);
    }

    #[test]
    fn experts_are_the_third_dimension() {
        let edit = RankOne {
            tensor: "blk.0.ffn_down_exps.weight".into(),
            n_expert: 3,
            a: vec![1.0; 24],
            b: vec![2.0; 12],
        };
        edit.check(8, 4).unwrap();
        let bytes = to_gguf("llama", &[edit]).unwrap();
        let file = Gguf::parse(std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap();
        assert_eq!(file.tensor("blk.0.ffn_down_exps.weight.lora_a").unwrap().ne, [8, 1, 3, 1]);
        assert_eq!(file.tensor("blk.0.ffn_down_exps.weight.lora_b").unwrap().ne, [1, 4, 3, 1]);
    }

    #[test]
    fn wrong_shapes_are_caught_before_c() {
        let edit = RankOne { tensor: "w".into(), n_expert: 2, a: vec![1.0; 8], b: vec![2.0; 4] };
        assert!(matches!(
            edit.check(8, 4),
            Err(LlamaError::EditShape { what: "right factor", expected: 16, found: 8, .. })
        ));
    }
}
