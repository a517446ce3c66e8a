//! Model files whose header suffices for a plan, but which cannot be run.

use rosi_gguf::gguf::{GgufBuilder, Value};

/// Returns a file with nothing but the name of its architecture.
pub fn arch(name: &str) -> GgufBuilder {
    GgufBuilder::new().string("general.architecture", name)
}

/// Returns a llama model of one block and width 4.
pub fn tiny_llama() -> GgufBuilder {
    with_tiny_llama(arch("llama"))
}

/// Adds the other keys and the tensors of [`tiny_llama`] to `file`. The keys keep their order, because snapshots contain
/// hashes of such files.
pub fn with_tiny_llama(file: GgufBuilder) -> GgufBuilder {
    file.kv("llama.block_count", Value::U32(1))
        .kv("llama.embedding_length", Value::U32(4))
        .f32_tensor("token_embd.weight", &[4, 2], &[0.5; 8])
        .f32_tensor("blk.0.attn_output.weight", &[4, 4], &[0.5; 16])
        .f32_tensor("blk.0.ffn_down.weight", &[8, 4], &[0.5; 32])
}
