//! Low-rank edits as LoRA adapters, for previewing an edit without writing the model and for the sidecar
//! file that `llama-server --lora` loads.

use super::LlamaError;
use crate::gguf::{GgufBuilder, Value};

/// Low-rank edit ΔW = B A of one weight, per expert. llama.cpp computes `y += (alpha/rank) · B (A x)` where it
/// multiplies by the weight, before any norm that follows: exactly where an edit of W takes effect.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Name of the edited weight, `….weight`.
    pub tensor: String,
    /// Number of experts, 1 for a dense weight.
    pub n_expert: u64,
    /// Rank of ΔW.
    pub rank: u64,
    /// A, f32 `[n_expert][rank][n_in]`.
    pub a: Vec<f32>,
    /// B, including the strength, f32 `[n_expert][n_out][rank]`.
    pub b: Vec<f32>,
}

impl LowRank {
    /// Adds `other`, an edit of the same weight, by concatenating the factors; the ranks add up.
    pub fn join(&mut self, other: Self) {
        let (own, others) = (self.rank as usize, other.rank as usize);
        let n_expert = self.n_expert.max(1) as usize;
        let of_expert = |a: &[f32]| a.len().div_ceil(n_expert).max(1);
        let experts = self.a.chunks(of_expert(&self.a)).zip(other.a.chunks(of_expert(&other.a)));
        self.a = experts.flat_map(|(own, other)| [own, other].concat()).collect();
        let rows = self.b.chunks(own.max(1)).zip(other.b.chunks(others.max(1)));
        self.b = rows.flat_map(|(own, other)| own.iter().chain(other).copied().collect::<Vec<_>>()).collect();
        self.rank += other.rank;
    }

    /// Checks the factors against the weight's shape `[n_expert][n_out][n_in]`, which llama.cpp checks only in
    /// part (a wrong expert count ends the process).
    ///
    /// # Errors
    /// Returns [`LlamaError::EditShape`] if a factor is empty or has the wrong number of values.
    pub fn check(&self, n_in: u64, n_out: u64) -> Result<(), LlamaError> {
        for (what, expected, found) in
            [("right factor", n_in, self.a.len() as u64), ("left factor", n_out, self.b.len() as u64)]
        {
            let expected = expected.saturating_mul(self.n_expert).saturating_mul(self.rank);
            if expected != found || found == 0 {
                return Err(LlamaError::EditShape { tensor: self.tensor.clone(), what, expected, found });
            }
        }
        Ok(())
    }
}

/// Writes `edits` as a LoRA GGUF for models of `architecture`: `<weight>.lora_a` ne `[n_in, rank]` and
/// `<weight>.lora_b` ne `[rank, n_out]` in F32, with experts as the third dimension.
///
/// A scale of 1 applies the edits exactly: `alpha` is the rank if all edits have the same rank. If ranks differ,
/// `alpha` is omitted, which llama.cpp treats as a factor of 1.
///
/// # Errors
/// Returns [`LlamaError::Adapter`] if a name or size is not valid in a GGUF file.
pub fn to_gguf(architecture: &str, edits: &[LowRank]) -> Result<Vec<u8>, LlamaError> {
    let mut file = GgufBuilder::new()
        .string("general.type", "adapter")
        .string("general.architecture", architecture)
        .string("general.name", "rosi-gguf safety edit")
        .string("adapter.type", "lora");
    let rank = edits.first().map_or(1, |edit| edit.rank);
    if edits.iter().all(|edit| edit.rank == rank) {
        file = file.kv("adapter.lora.alpha", Value::F32(rank as f32));
    }
    for edit in edits {
        let n_expert = edit.n_expert.max(1);
        let rank = edit.rank.max(1);
        let shape = |len: usize, first: bool| {
            let n = len as u64 / n_expert / rank;
            let mut ne = if first { vec![n, rank] } else { vec![rank, n] };
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

    fn parsed(edits: &[LowRank]) -> Gguf {
        let bytes = to_gguf("llama", edits).unwrap();
        Gguf::parse(std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap()
    }

    #[test]
    fn layout_is_what_llama_cpp_reads() {
        let edit = LowRank {
            tensor: "blk.0.ffn_down.weight".into(),
            n_expert: 1,
            rank: 1,
            a: vec![1.0; 8],
            b: vec![2.0; 4],
        };
        edit.check(8, 4).unwrap();
        let file = parsed(&[edit]);
        assert_eq!(file.str("general.type"), Some("adapter"));
        assert_eq!(file.tensor("blk.0.ffn_down.weight.lora_a").unwrap().ne, [8, 1, 1, 1]);
        assert_eq!(file.tensor("blk.0.ffn_down.weight.lora_b").unwrap().ne, [1, 4, 1, 1]);
    }

    #[test]
    fn a_rank_is_the_inner_dimension() {
        let edit = LowRank {
            tensor: "blk.0.ffn_gate.weight".into(),
            n_expert: 1,
            rank: 2,
            a: vec![1.0; 16],
            b: vec![2.0; 8],
        };
        edit.check(8, 4).unwrap();
        let file = parsed(std::slice::from_ref(&edit));
        assert_eq!(file.tensor("blk.0.ffn_gate.weight.lora_a").unwrap().ne, [8, 2, 1, 1]);
        assert_eq!(file.tensor("blk.0.ffn_gate.weight.lora_b").unwrap().ne, [2, 4, 1, 1]);
        assert_eq!(file.f32("adapter.lora.alpha"), Some(2.0));
        let tensor = "blk.0.ffn_up.weight".into();
        let other = LowRank { tensor, rank: 1, a: vec![1.0; 8], b: vec![2.0; 4], ..edit.clone() };
        let file = parsed(&[edit, other]);
        assert_eq!(file.f32("adapter.lora.alpha"), None);
    }

    #[test]
    fn experts_are_the_third_dimension() {
        let edit = LowRank {
            tensor: "blk.0.ffn_down_exps.weight".into(),
            n_expert: 3,
            rank: 1,
            a: vec![1.0; 24],
            b: vec![2.0; 12],
        };
        edit.check(8, 4).unwrap();
        let file = parsed(&[edit]);
        assert_eq!(file.tensor("blk.0.ffn_down_exps.weight.lora_a").unwrap().ne, [8, 1, 3, 1]);
        assert_eq!(file.tensor("blk.0.ffn_down_exps.weight.lora_b").unwrap().ne, [1, 4, 3, 1]);
    }

    #[test]
    fn wrong_shapes_are_caught_before_c() {
        let edit = LowRank { tensor: "w".into(), n_expert: 2, rank: 1, a: vec![1.0; 8], b: vec![2.0; 4] };
        assert!(matches!(
            edit.check(8, 4),
            Err(LlamaError::EditShape { what: "right factor", expected: 16, found: 8, .. })
        ));
    }
}
