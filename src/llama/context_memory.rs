//! Estimates of the memory that llama.cpp allocates in addition to the mapped file, from the header alone, and the
//! longest prompt that fits.

use serde::Serialize;

use super::engine::{N_BATCH, N_CTX, N_SEQ};
use super::ffi::Model;
use crate::arch::plan::MAX_LAYERS;
use crate::gguf::Gguf;

/// Size of an F32 value, in bytes.
const F32: u64 = 4;
/// Size of a value in the KV cache, which is F16, in bytes.
const CACHED: u64 = 2;
/// Number of vectors per token, as wide as the residual stream or all heads together, that attention holds at a time.
/// Chosen to approximate what llama.cpp reserves for three models (docs/llama-cpp.md).
const WIDTHS: u64 = 7;
/// Number of vectors per token that the feed-forward network holds at a time: gate, up and their product.
const FFN_WIDTHS: u64 = 3;

/// Estimated size, in bytes, of the context that answers prompts and captures hidden states. The exact size is known
/// only when the graph is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ContextMemory {
    /// KV cache and recurrent states.
    pub cache: u64,
    /// Scratch memory of one micro-batch.
    pub compute: u64,
    /// Logits, one row per sequence.
    pub output: u64,
}

impl ContextMemory {
    /// Estimates the context that [`super::LlamaEngine::load`] creates for this model.
    pub fn of(gguf: &Gguf) -> Self {
        let shape = Shape::read(gguf);
        let output = shape.n_vocab.saturating_mul(N_SEQ as u64 * F32);
        Self { cache: shape.cache(), compute: shape.compute().max(output), output }
    }

    /// Returns the sum of all parts, in bytes.
    pub fn total(&self) -> u64 {
        self.cache.saturating_add(self.compute).saturating_add(self.output)
    }
}

/// Model sizes that the estimate depends on, named after llama.cpp's keys.
struct Shape {
    n_embd: u64,
    n_vocab: u64,
    head_count: u64,
    /// Number of key-value heads of each block.
    head_count_kv: Vec<u64>,
    key_length: u64,
    value_length: u64,
    /// Width of the widest feed-forward network for a token, summed over its experts.
    feed_forward: u64,
    /// Number of values in the recurrent state of one block and sequence.
    state: u64,
    /// Number of attention masks: 2 with sliding windows, otherwise 1.
    n_mask: u64,
}

impl Shape {
    fn read(gguf: &Gguf) -> Self {
        let arch = gguf.architecture().unwrap_or_default();
        let numbers = |key: &str| numbers(gguf, &format!("{arch}.{key}"));
        let largest = |key: &str| numbers(key).into_iter().max();
        let n_embd = largest("embedding_length").unwrap_or(0);
        let n_layer = largest("block_count").unwrap_or(0).min(MAX_LAYERS) as usize;
        let head_count = largest("attention.head_count").unwrap_or(0);
        let mut head_count_kv = numbers("attention.head_count_kv");
        if head_count_kv.len() <= 1 {
            head_count_kv = vec![head_count_kv.first().copied().unwrap_or(head_count); n_layer];
        }
        let by_head = n_embd.checked_div(head_count).unwrap_or(0);
        let used = largest("expert_used_count").unwrap_or(0);
        let experts = largest("expert_feed_forward_length").or(largest("feed_forward_length")).unwrap_or(0);
        let dense = largest("feed_forward_length").unwrap_or(0);
        let inner = largest("ssm.inner_size").unwrap_or(0);
        let (state, conv) = (largest("ssm.state_size"), largest("ssm.conv_kernel"));
        let (state, conv) = (state.unwrap_or(0), conv.unwrap_or(0).saturating_sub(1));
        let groups = largest("ssm.group_count").unwrap_or(0);
        let convolved = inner.saturating_add(groups.saturating_mul(2).saturating_mul(state));
        Self {
            n_embd,
            n_vocab: gguf.tensor("token_embd.weight").map_or(0, |t| t.ne[1]),
            head_count,
            head_count_kv,
            key_length: largest("attention.key_length").unwrap_or(by_head),
            value_length: largest("attention.value_length").unwrap_or(by_head),
            feed_forward: dense.max(used.saturating_mul(experts)),
            state: state.saturating_mul(inner).saturating_add(conv.saturating_mul(convolved)),
            n_mask: if largest("attention.sliding_window").unwrap_or(0) > 0 { 2 } else { 1 },
        }
    }

    /// Returns the size of the keys and values of all cells and blocks in F16, plus, for every sequence, the recurrent
    /// states of the blocks without attention (of all blocks if the header does not distinguish them).
    fn cache(&self) -> u64 {
        let width = self.key_length.saturating_add(self.value_length);
        let heads = self.head_count_kv.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
        let kv = heads.saturating_mul(width).saturating_mul(N_CTX as u64 * CACHED);
        let without = self.head_count_kv.iter().filter(|&&n| n == 0).count();
        let recurrent = if without > 0 { without } else { self.head_count_kv.len() } as u64;
        kv.saturating_add(self.state.saturating_mul(recurrent).saturating_mul(N_SEQ as u64 * F32))
    }

    /// Returns the larger of the scratch memory of attention (the scores of all heads at once, as without flash
    /// attention) and of the feed-forward network.
    fn compute(&self) -> u64 {
        let width = self.n_embd.max(self.head_count.saturating_mul(self.key_length));
        let scores = self.head_count.saturating_add(self.n_mask).saturating_mul(N_CTX as u64);
        let attention = scores.saturating_add(width.saturating_mul(WIDTHS));
        let ffn = self.feed_forward.saturating_add(self.n_embd).saturating_mul(FFN_WIDTHS);
        attention.max(ffn).saturating_mul(N_BATCH as u64 * F32)
    }
}

/// Returns the maximum number of tokens in a prompt: limited by the model's training context and by free memory, but
/// never less than a new context has room for, unless the model lacks positions for them.
pub(super) fn longest_prompt(model: &Model) -> usize {
    let fits = cells(model).min(model.n_ctx_train());
    fits.max(N_BATCH.min(N_CTX / 2)).min(model.n_positions().unwrap_or(usize::MAX))
}

/// Returns the number of cache cells that currently fit in free memory, together with the scratch memory of attention
/// over them; `usize::MAX` if the system does not report its free memory.
fn cells(model: &Model) -> usize {
    let Some(free) = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)) else {
        return usize::MAX;
    };
    let (heads, own) = model.n_head();
    let width = (model.n_embd() / heads.max(1)) * own * 2;
    let cached = (model.n_layer() * width) as u64 * CACHED;
    let scores = (heads as u64 + 2) * N_BATCH as u64 * F32;
    usize::try_from(free / (cached + scores)).unwrap_or(usize::MAX)
}

/// Returns the available memory that Linux reports in `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Reads the value of `key`: a single number, or one per block.
fn numbers(gguf: &Gguf, key: &str) -> Vec<u64> {
    match (gguf.u64(key), gguf.array(key)) {
        (Some(number), _) => vec![number],
        (None, Some(array)) => gguf.read_u64_array(array).unwrap_or_default(),
        (None, None) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_that_is_available_is_read() {
        let text = "MemTotal:       8052016 kB\nMemFree:         123 kB\nMemAvailable:    6912340 kB\n";
        assert_eq!(available(text), Some(6_912_340 * 1024));
        assert_eq!(available("MemTotal: 1 kB"), None);
    }
}
