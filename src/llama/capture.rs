//! Capture of hidden states from the running graph: the residual stream at each prompt's last token, and
//! the inputs of the residual writers.

use std::collections::{HashMap, HashSet};

use ndarray::{Array2, Array3, Array4};

use super::LlamaError;
use super::hook::{EvalHook, Node};
use crate::arch::patches::Streams;
use crate::arch::plan::{Plan, ResidualWriter};
use crate::llama::activations::rows::NO_EXPERT;
use crate::llama::activations::{Activations, Part, Routes, WriterInputs};
use routed::Products;

mod routed;

/// Selection of the hidden states to capture, by graph names, and of the tokens at which to keep them.
#[derive(Debug, Clone)]
pub struct Capture {
    n_layer: usize,
    n_embd: usize,
    /// Graph name of the residual after each layer → layer.
    residual: HashMap<String, usize>,
    /// Memory layout of the residual nodes.
    streams: Streams,
    /// Weight name → index of the writer.
    inputs: HashMap<String, usize>,
    /// Shape of each writer's input.
    shapes: Vec<InputShape>,
    /// Number of tokens per collection, at any position, whose inputs are kept.
    n_sample: usize,
    /// Distances from each prompt's last token back to the tail tokens, whose inputs are kept too.
    tail: Vec<usize>,
    /// Layers whose residual is kept at the tail tokens.
    tail_layers: Vec<usize>,
    /// Share of the prompts and of the sample whose inputs are kept.
    share: f64,
}

/// Shape of a writer's input at one token.
#[derive(Debug, Clone, Copy)]
struct InputShape {
    n_in: usize,
    /// Maximum number of experts that a token is routed to; 1 for a dense writer.
    n_used: usize,
    /// Number of experts; 1 for a dense writer and for experts that are not captured.
    n_expert: usize,
}

impl InputShape {
    fn of(writer: &ResidualWriter, n_used: u64) -> Self {
        let routed = is_routed(writer, n_used);
        let (n_used, n_expert) = if routed { (n_used, writer.n_expert) } else { (1, 1) };
        Self { n_in: writer.n_in as usize, n_used: n_used as usize, n_expert: n_expert as usize }
    }

    fn values(self) -> usize {
        self.n_in * self.n_used
    }

    /// Allocates the given numbers of rows for sampled, tail and last tokens.
    fn allocate(self, [sample, tail, last]: [usize; 3]) -> WriterInputs {
        let x = |rows| Array2::from_elem((rows, self.values()), f32::NAN);
        let experts = |rows| Array2::from_elem((rows, self.n_used), NO_EXPERT);
        let routes = (self.n_expert > 1).then(|| Routes {
            n_expert: self.n_expert,
            sample: experts(sample),
            tail: experts(tail),
            last: experts(last),
        });
        WriterInputs { sample: x(sample), tail: x(tail), last: x(last), routes }
    }
}

/// Returns whether `writer` is a mixture of experts that can be captured: a scale would be mistaken for the router's
/// weights. A mixture without captured inputs is edited only by the published methods.
fn is_routed(writer: &ResidualWriter, n_used: u64) -> bool {
    writer.n_expert > 1 && n_used > 0 && writer.scale.is_none()
}

impl Capture {
    /// Captures the residual of every layer and the inputs of every writer of `plan`.
    pub fn new(plan: &Plan) -> Self {
        let residual = (0..plan.n_layer).map(|l| (plan.residual_node(l), l)).collect();
        let n_used = plan.n_expert_used;
        let seen = |w: &ResidualWriter| w.n_expert == 1 || is_routed(w, n_used);
        let writers = plan.writers.iter().enumerate().filter(|(_, w)| seen(w));
        Self {
            n_layer: plan.n_layer,
            n_embd: plan.n_embd as usize,
            residual,
            streams: plan.streams,
            inputs: writers.map(|(i, w)| (w.tensor.clone(), i)).collect(),
            shapes: plan.writers.iter().map(|w| InputShape::of(w, n_used)).collect(),
            n_sample: 0,
            tail: Vec::new(),
            tail_layers: Vec::new(),
            share: 1.0,
        }
    }

    /// Captures the residual of every layer and the inputs of `tensors`, in that order. Each is a dense matrix or a
    /// writer of `plan`, given by its name and the length of its input.
    pub fn of_inputs(plan: &Plan, tensors: &[(String, usize)]) -> Self {
        let shape = |(name, n_in): &(String, usize)| {
            let routed = plan.writers.iter().find(|writer| writer.tensor == *name && writer.n_expert > 1);
            let dense = InputShape { n_in: *n_in, n_used: 1, n_expert: 1 };
            routed.map_or(dense, |writer| InputShape::of(writer, plan.n_expert_used))
        };
        Self {
            inputs: tensors.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect(),
            shapes: tensors.iter().map(shape).collect(),
            ..Self::residual_only(plan)
        }
    }

    /// Restricts the capture to inputs. Decoding stops after the last of them, so there are no logits.
    pub fn inputs_only(self) -> Self {
        Self { n_layer: 0, residual: HashMap::new(), ..self }
    }

    /// Returns whether only inputs are captured, so that logits are not needed.
    pub(super) fn is_inputs_only(&self) -> bool {
        self.residual.is_empty() && !self.inputs.is_empty()
    }

    /// Captures only the residual of every layer.
    pub fn residual_only(plan: &Plan) -> Self {
        Self { inputs: HashMap::new(), shapes: Vec::new(), ..Self::new(plan) }
    }

    /// Restricts the captured inputs to those of `writers` (indices into the plan).
    pub fn only(mut self, writers: &[usize]) -> Self {
        self.inputs.retain(|_, writer| writers.contains(writer));
        for (writer, shape) in self.shapes.iter_mut().enumerate() {
            shape.n_in = if writers.contains(&writer) { shape.n_in } else { 0 };
        }
        self
    }

    /// Captures nothing.
    #[cfg(test)]
    pub(super) fn nothing() -> Self {
        let (residual, inputs) = (HashMap::new(), HashMap::new());
        let streams = Streams::One;
        let (shapes, share) = (Vec::new(), 1.0);
        let (tail, tail_layers) = (Vec::new(), Vec::new());
        Self {
            n_layer: 0,
            n_embd: 0,
            residual,
            streams,
            inputs,
            shapes,
            n_sample: 0,
            tail,
            tail_layers,
            share,
        }
    }

    /// Also keeps the inputs of `n` tokens spread over all positions of the prompts.
    pub fn with_sample(self, n: usize) -> Self {
        Self { n_sample: n, ..self }
    }

    /// Also keeps the inputs of the tail tokens: those at the distances `tail` before each prompt's last token.
    pub fn with_tail(self, tail: &[usize]) -> Self {
        Self { tail: tail.to_vec(), ..self }
    }

    /// Also keeps the residual after `layers` at the tail tokens.
    pub fn with_tail_layers(self, layers: &[usize]) -> Self {
        Self { tail_layers: layers.to_vec(), ..self }
    }

    /// Limits the writers' inputs to `bytes`, given that all collections together would keep those of `n_token` tokens.
    /// Every collection keeps the same share; of the prompts, the first ones.
    pub fn within(self, bytes: u64, n_token: u64) -> Self {
        let wanted = self.token_bytes().saturating_mul(n_token);
        Self { share: if wanted > bytes { bytes as f64 / wanted as f64 } else { 1.0 }, ..self }
    }

    /// Returns the size of all writers' inputs at one token, in bytes.
    pub fn token_bytes(&self) -> u64 {
        (self.shapes.iter().map(|s| s.values()).sum::<usize>() * size_of::<f32>()) as u64
    }

    /// Returns the share of the prompts and of the sample whose inputs are kept.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Returns how many of `n` are kept.
    fn shared(&self, n: usize) -> usize {
        (n as f64 * self.share) as usize
    }

    /// Returns the distances of the tail tokens before each prompt's last token.
    pub(super) fn tail(&self) -> &[usize] {
        &self.tail
    }

    /// Returns the number of tokens to sample from `available`.
    pub(super) fn n_sample(&self, available: usize) -> usize {
        self.shared(self.n_sample).min(available)
    }

    /// Allocates arrays for `n_prompt` prompts and `n_sample` sampled tokens. They are filled with NaN so that
    /// rows that are never captured can be detected.
    pub fn allocate(&self, n_prompt: usize, n_sample: usize) -> Activations {
        let keep = self.shared(n_prompt);
        let n_tail = self.tail.len();
        let inputs = self.shapes.iter().map(|s| s.allocate([n_sample, keep * n_tail, keep]));
        let tail = (n_prompt, n_tail, self.tail_layers.len(), self.n_embd);
        Activations {
            residual: Array3::from_elem((n_prompt, self.n_layer, self.n_embd), f32::NAN),
            residual_tail: Array4::from_elem(tail, f32::NAN),
            inputs: inputs.collect(),
        }
    }
}

/// Tokens of a batch to keep.
#[derive(Debug, Default)]
pub struct Keep {
    /// Number of tokens in the batch.
    pub n_tokens: usize,
    /// Index of the batch's first prompt among all prompts.
    pub first: usize,
    /// Batch index of each prompt's last token.
    pub last: Vec<usize>,
    /// Batch index of each sampled token, and its row in [`WriterInputs::sample`].
    pub sample: Vec<(usize, usize)>,
    /// Batch index of each tail token, and its row in [`WriterInputs::tail`].
    pub tail: Vec<(usize, usize)>,
}

impl Keep {
    fn is_empty(&self) -> bool {
        self.last.is_empty() && self.sample.is_empty() && self.tail.is_empty()
    }
}

/// Hook that copies what a [`Capture`] selects out of one batch.
pub struct CaptureHook<'a> {
    capture: &'a Capture,
    activations: &'a mut Activations,
    keep: Keep,
    /// Buffer with the rows that were read last.
    rows: Vec<f32>,
    /// Products of mixtures that have appeared in the graph so far.
    products: Products,
    /// Dense writers whose inputs have been captured.
    taken: HashSet<usize>,
}

impl<'a> CaptureHook<'a> {
    /// Creates a hook for one batch.
    pub fn new(capture: &'a Capture, activations: &'a mut Activations, keep: Keep) -> Self {
        Self {
            capture,
            activations,
            keep,
            rows: Vec::new(),
            products: Products::new(),
            taken: HashSet::new(),
        }
    }

    /// Checks that every selected residual was captured.
    ///
    /// # Errors
    /// Returns [`LlamaError::NotCaptured`] if a residual is missing for a prompt.
    pub fn finish(self) -> Result<(), LlamaError> {
        for (name, &layer) in &self.capture.residual {
            let rows = self.keep.first..self.keep.first + self.keep.last.len();
            let missing = rows.filter(|&p| self.activations.residual[[p, layer, 0]].is_nan()).count();
            if missing > 0 {
                return Err(LlamaError::NotCaptured { name: name.clone(), count: missing });
            }
        }
        Ok(())
    }

    /// Returns the dense writer whose product is `node`, and the node of its input.
    fn writer_input<'n>(&self, node: Node<'n>) -> Option<(usize, Node<'n>)> {
        let weight = node.is_mul_mat().then(|| node.src(0)).flatten()?;
        let writer = *self.capture.inputs.get(weight.original_name())?;
        let dense = self.capture.shapes[writer].n_expert == 1;
        dense.then(|| Some((writer, node.src(1)?))).flatten()
    }

    /// Lists the tokens of `node`, which has `n_tokens`, at which inputs of `writer` are kept: token, part and row.
    fn kept(
        &self,
        node: Node<'_>,
        writer: usize,
        n_tokens: i64,
    ) -> Result<Vec<(usize, Part, usize)>, LlamaError> {
        let row_len = node.ne()[0] as usize;
        let inputs = &self.activations.inputs[writer];
        let last = self.last_tokens(node, row_len, n_tokens)?.into_iter().enumerate();
        let last = last.map(|(i, token)| (token, Part::Last, self.keep.first + i));
        let mut kept: Vec<_> = last.filter(|&(_, _, at)| at < inputs.last.nrows()).collect();
        if n_tokens == self.keep.n_tokens as i64 {
            // In the last layer, llama.cpp computes only the last tokens.
            kept.extend(self.keep.sample.iter().map(|&(token, at)| (token, Part::Sample, at)));
            let tail = self.keep.tail.iter().map(|&(token, at)| (token, Part::Tail, at));
            kept.extend(tail.filter(|&(_, _, at)| at < inputs.tail.nrows()));
        }
        Ok(kept)
    }

    /// Returns which of the `n` tokens of `node` are last tokens; in the last layer, llama.cpp computes only those.
    fn last_tokens(&self, node: Node<'_>, row_len: usize, n: i64) -> Result<Vec<usize>, LlamaError> {
        let ne = node.ne();
        if ne[0] == row_len as i64 && n == self.keep.n_tokens as i64 {
            return Ok(self.keep.last.clone());
        }
        if ne[0] == row_len as i64 && n == self.keep.last.len() as i64 {
            return Ok((0..self.keep.last.len()).collect());
        }
        Err(LlamaError::NodeShape { name: node.name().into(), expected: row_len, found: ne })
    }

    /// Reads `rows` of `node` into `self.rows`, in this order.
    fn read(&mut self, node: Node<'_>, rows: &[usize]) -> Result<(), LlamaError> {
        let expected = node.ne()[0] as usize;
        node.read_rows(rows, &mut self.rows).ok_or_else(|| LlamaError::NodeShape {
            name: node.name().into(),
            expected,
            found: node.ne(),
        })
    }

    fn take_residual(&mut self, node: Node<'_>, layer: usize) -> Result<(), LlamaError> {
        let ne = node.ne();
        let (n_tokens, n_streams) = match self.capture.streams {
            Streams::One => (ne[1] * ne[2] * ne[3], 1),
            Streams::Inner => (ne[2] * ne[3], ne[1]),
            Streams::Outer => (ne[1], 1), // the first stream comes first
        };
        let (n_streams, n_embd) = (n_streams as usize, self.capture.n_embd);
        let tokens = self.last_tokens(node, n_embd, n_tokens)?;
        for (i, mean) in self.stream_means(node, &tokens, n_streams)?.into_iter().enumerate() {
            let at = ndarray::s![self.keep.first + i, layer, ..];
            copy(&mean, self.activations.residual.slice_mut(at));
        }
        let kept = self.capture.tail_layers.iter().position(|&kept| kept == layer);
        let Some(slot) = kept.filter(|_| n_tokens == self.keep.n_tokens as i64) else { return Ok(()) };
        let (tokens, rows): (Vec<usize>, Vec<usize>) = self.keep.tail.iter().copied().unzip();
        let n_tail = self.capture.tail.len().max(1);
        for (row, mean) in rows.into_iter().zip(self.stream_means(node, &tokens, n_streams)?) {
            let at = ndarray::s![row / n_tail, row % n_tail, slot, ..];
            copy(&mean, self.activations.residual_tail.slice_mut(at));
        }
        Ok(())
    }

    /// Returns the residual of `node` at `tokens`, averaged over the streams.
    fn stream_means(
        &mut self,
        node: Node<'_>,
        tokens: &[usize],
        n_streams: usize,
    ) -> Result<Vec<Vec<f32>>, LlamaError> {
        let n_embd = self.capture.n_embd;
        let rows: Vec<usize> = tokens.iter().flat_map(|t| t * n_streams..(t + 1) * n_streams).collect();
        self.read(node, &rows)?;
        let mean = |streams: &[f32]| {
            let mut mean = vec![0.0f32; n_embd];
            for row in streams.chunks_exact(n_embd) {
                mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / n_streams as f32);
            }
            mean
        };
        Ok(self.rows.chunks_exact(n_streams * n_embd).map(mean).collect())
    }

    fn take_input(&mut self, node: Node<'_>, writer: usize) -> Result<(), LlamaError> {
        let (ne, n_in) = (node.ne(), self.capture.shapes[writer].n_in);
        if ne[0] != n_in as i64 {
            return Err(LlamaError::NodeShape { name: node.name().into(), expected: n_in, found: ne });
        }
        let kept = self.kept(node, writer, ne[1..].iter().product())?;
        self.read(node, &kept.iter().map(|&(token, ..)| token).collect::<Vec<_>>())?;
        for (&(_, part, at), row) in kept.iter().zip(self.rows.chunks_exact(n_in)) {
            copy(row, self.activations.inputs[writer].part_mut(part).row_mut(at));
        }
        Ok(())
    }
}

fn copy(row: &[f32], mut target: ndarray::ArrayViewMut1<'_, f32>) {
    target.iter_mut().zip(row).for_each(|(t, v)| *t = *v);
}

impl EvalHook for CaptureHook<'_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        // A device must synchronize at every node that is observed.
        if self.keep.is_empty() {
            return false;
        }
        self.capture.follow(node, &mut self.products);
        self.capture.residual.contains_key(node.name())
            || self.writer_input(node).is_some()
            || self.capture.routed(node, &self.products).is_some()
    }

    fn take(&mut self, node: Node<'_>) -> Result<(), LlamaError> {
        if let Some(&layer) = self.capture.residual.get(node.name()) {
            self.take_residual(node, layer)?;
        }
        if let Some((writer, input)) = self.writer_input(node) {
            self.take_input(input, writer)?;
            self.taken.insert(writer);
        }
        if let Some(routed) = self.capture.routed(node, &self.products) {
            self.take_routed(routed)?;
        }
        Ok(())
    }

    fn has_all(&self) -> bool {
        self.capture.is_inputs_only() && self.taken.len() == self.capture.inputs.len()
    }
}

#[cfg(test)]
mod tests;
