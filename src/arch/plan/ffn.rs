//! Feed-forward networks that detectors can be added to.

use super::ResidualWriter;
use crate::arch::patches::{ResidualAxis, WriterKind};
use crate::gguf::Gguf;

/// A feed-forward network `W_down (φ(W_gate x) ⊙ (W_up x))` that every token passes through: a dense network, the
/// shared expert of a mixture or, without either, all experts of a mixture together if each of them gets the same
/// neuron. φ is not recorded in the file; it is determined from the running graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ffn {
    /// Index of the block.
    pub layer: usize,
    /// Index of the writer `W_down` `[n_embd, n_ff]` in [`Plan::writers`](super::Plan::writers).
    pub writer: usize,
    /// `W_gate` `[n_ff, n_embd]`; `None` if gate and up are one tensor, or if there is no gate.
    pub gate: Option<String>,
    /// `W_up` `[n_ff, n_embd]`, or gate and up together `[2 n_ff, n_embd]`.
    pub up: String,
    /// Whether `up` holds both gate and up.
    pub fused: bool,
    /// Number of neurons, per expert.
    pub n_ff: usize,
    /// Number of experts; 1 for a dense network.
    pub n_expert: usize,
    /// The routing matrix, which reads the same inputs as the experts; `None` for a dense network.
    pub router: Option<String>,
}

impl Ffn {
    /// Returns the matrices that hold one row per neuron.
    pub fn rows(&self) -> impl Iterator<Item = &String> {
        self.gate.iter().chain([&self.up])
    }

    /// Returns the networks that `writers` are the outputs of. The mixture of a block is included only if the block has
    /// no other network.
    pub(super) fn all(gguf: &Gguf, writers: &[ResidualWriter], n_embd: u64) -> Vec<Self> {
        let network = |(index, writer)| Self::of(gguf, index, writer, n_embd);
        let mut ffns: Vec<Self> = writers.iter().enumerate().filter_map(network).collect();
        let dense: Vec<usize> = ffns.iter().filter(|ffn| ffn.n_expert == 1).map(|ffn| ffn.layer).collect();
        ffns.retain(|ffn| ffn.n_expert == 1 || !dense.contains(&ffn.layer));
        ffns
    }

    /// Returns the network that `writer` is the output of, if none of its weights has a scale or, in a mixture, a bias.
    fn of(gguf: &Gguf, index: usize, writer: &ResidualWriter, n_embd: u64) -> Option<Self> {
        let routed = writer.n_expert > 1;
        let plain = writer.kind == WriterKind::Ffn
            && writer.axis == ResidualAxis::Rows
            && writer.lora
            && writer.scale.is_none();
        let names = match routed {
            true => ["ffn_down_exps.weight"].as_slice(),
            false => ["ffn_down.weight", "ffn_down_shexp.weight"].as_slice(),
        };
        let (stem, suffix) = names.iter().find_map(|name| {
            let suffix = name.strip_prefix("ffn_down")?;
            Some((writer.tensor.strip_suffix(name)?, suffix)).filter(|_| plain)
        })?;
        let n_ff = writer.n_in;
        let has = |weight: &str, part: &str| gguf.tensor(&weight.replace(".weight", part)).is_some();
        let rows = |name: &str| {
            let tensor = gguf.tensor(&format!("{stem}{name}{suffix}"))?;
            let more = has(&tensor.name, ".scale") || routed && has(&tensor.name, ".bias");
            (!more && tensor.ne == [n_embd, tensor.ne[1], writer.n_expert, 1])
                .then_some((tensor.name.clone(), tensor.ne[1]))
        };
        let (gate, (up, up_rows)) = (rows("ffn_gate"), rows("ffn_up")?);
        let fused = gate.is_none() && up_rows == 2 * n_ff;
        let right = (fused || up_rows == n_ff) && gate.as_ref().is_none_or(|(_, rows)| *rows == n_ff);
        // A gate that exists but has another shape or a scale is not supported.
        let absent = gguf.tensor(&format!("{stem}ffn_gate{suffix}")).is_none();
        let router = gguf.tensor(&format!("{stem}ffn_gate_inp.weight"));
        let router = router.filter(|router| router.ne == [n_embd, writer.n_expert, 1, 1]);
        // With a norm after the sum, the contribution of one expert would depend on all of them.
        let summed = router.is_some() && writer.post_norm.is_none() && !has(&writer.tensor, ".bias");
        (right && gate.is_some() != absent && (!routed || summed)).then(|| Self {
            layer: writer.layer,
            writer: index,
            gate: gate.map(|(name, _)| name),
            up,
            fused,
            n_ff: n_ff as usize,
            n_expert: writer.n_expert as usize,
            router: router.filter(|_| routed).map(|router| router.name.clone()),
        })
    }
}
