//! Capture of mixtures of experts: the experts that a token is routed to, their inputs, and the weights with which
//! the router sums their outputs.
//!
//! ```text
//! y = MUL_MAT_ID(W, x, ids)   x [n_in, n_used or 1, n_tokens], ids I32 [n_used, n_tokens]
//! z = MUL(y, p)               p [1, n_used, n_tokens]; y may include a bias or LoRA terms by then
//! ```
//!
//! x may no longer exist when z is computed, and p cannot be matched to y earlier, so x is captured at y and multiplied
//! by p at z. Where no such z follows (llama4 weights the inputs instead), p is 1.
//!
//! y is tracked by name, not by following z's inputs: if y and z are computed on different devices, z reads a copy,
//! which has the name but no inputs.

use std::collections::HashMap;

use ndarray::s;

use super::{Capture, CaptureHook};
use crate::llama::LlamaError;
use crate::llama::activations::rows::NO_EXPERT;
use crate::llama::hook::Node;

/// Role of a node in a mixture, with the data to capture.
pub(super) enum Routed<'n> {
    /// The product y of the chosen experts with their inputs.
    Product { writer: usize, x: Node<'n>, ids: Node<'n> },
    /// The product z of y with the router's weights.
    Weighed { writer: usize, weights: Node<'n> },
}

/// Writers by the names of their products in this graph, and of the sums computed from these.
pub(super) type Products = HashMap<String, usize>;

impl Capture {
    /// Adds `node` to `products` if it is a product of experts or a sum computed from one.
    pub(super) fn follow(&self, node: Node<'_>, products: &mut Products) {
        let writer = match (node.op(), node.src(0)) {
            ("ADD" | "ADD_ID", Some(from)) if from.ne() == node.ne() => {
                products.get(from.original_name()).copied()
            }
            ("MUL_MAT_ID", _) => match self.routed(node, products) {
                Some(Routed::Product { writer, .. }) => Some(writer),
                _ => None,
            },
            _ => None,
        };
        products.extend(writer.map(|writer| (node.name().to_owned(), writer)));
    }

    /// Returns the role of `node` in a captured mixture, if it has one.
    pub(super) fn routed<'n>(&self, node: Node<'n>, products: &Products) -> Option<Routed<'n>> {
        match node.op() {
            "MUL_MAT_ID" => {
                let writer = *self.inputs.get(node.src(0)?.original_name())?;
                let (x, ids, shape) = (node.src(1)?, node.src(2)?, self.shapes[writer]);
                let fits = shape.n_expert > 1
                    && x.ne()[0] == shape.n_in as i64
                    && (1..=shape.n_used as i64).contains(&ids.ne()[0]);
                fits.then_some(Routed::Product { writer, x, ids })
            }
            "MUL" => {
                let (from, weights) = (node.src(0)?, node.src(1)?);
                let [_, n_used, n_tokens, _] = node.ne();
                let weighs = weights.ne() == [1, n_used, n_tokens, 1] && from.ne() == node.ne();
                let writer = weighs.then(|| products.get(from.original_name())).flatten();
                writer.map(|&writer| Routed::Weighed { writer, weights })
            }
            _ => None,
        }
    }
}

impl CaptureHook<'_> {
    pub(super) fn take_routed(&mut self, routed: Routed<'_>) -> Result<(), LlamaError> {
        match routed {
            Routed::Product { writer, x, ids } => self.take_product(writer, x, ids),
            Routed::Weighed { writer, weights } => self.weigh(writer, weights),
        }
    }

    fn take_product(&mut self, writer: usize, x: Node<'_>, ids: Node<'_>) -> Result<(), LlamaError> {
        let (n_in, n_expert) = (self.capture.shapes[writer].n_in, self.capture.shapes[writer].n_expert);
        let [n_used, n_x] = [ids.ne()[0], x.ne()[1]].map(|n| n as usize);
        let kept = self.kept(ids, writer, ids.ne()[1])?;
        let tokens: Vec<usize> = kept.iter().map(|&(token, ..)| token).collect();
        let mut all = Vec::new();
        ids.read_ids(&tokens, &mut all).ok_or_else(|| shape_error(ids))?;
        let slots = |token: &usize| (0..n_used).map(move |slot| token * n_x + slot % n_x).collect::<Vec<_>>();
        let rows: Vec<usize> = tokens.iter().flat_map(slots).collect();
        self.read(x, &rows)?;
        let read = all.chunks_exact(n_used).zip(self.rows.chunks_exact(n_used * n_in));
        for (&(_, part, at), (chosen, read)) in kept.iter().zip(read) {
            let inputs = &mut self.activations.inputs[writer];
            let Some(routes) = &mut inputs.routes else { return Ok(()) };
            let mut experts = routes.part_mut(part).row_mut(at);
            experts.fill(NO_EXPERT);
            for (place, &id) in experts.iter_mut().zip(chosen) {
                *place = u32::try_from(id).ok().filter(|&e| (e as usize) < n_expert).unwrap_or(NO_EXPERT);
            }
            let mut target = inputs.part_mut(part).row_mut(at);
            target.fill(0.0);
            super::copy(read, target);
        }
        Ok(())
    }

    fn weigh(&mut self, writer: usize, weights: Node<'_>) -> Result<(), LlamaError> {
        let (n_in, n_used) = (self.capture.shapes[writer].n_in, weights.ne()[1] as usize);
        let kept = self.kept(weights, writer, weights.ne()[2])?;
        let rows: Vec<usize> = kept.iter().flat_map(|&(t, ..)| t * n_used..(t + 1) * n_used).collect();
        self.read(weights, &rows)?;
        for (&(_, part, at), weights) in kept.iter().zip(self.rows.chunks_exact(n_used)) {
            let mut row = self.activations.inputs[writer].part_mut(part).row_mut(at);
            for (slot, weight) in weights.iter().enumerate() {
                row.slice_mut(s![slot * n_in..(slot + 1) * n_in]).mapv_inplace(|v| v * weight);
            }
        }
        Ok(())
    }
}

fn shape_error(node: Node<'_>) -> LlamaError {
    LlamaError::NodeShape { name: node.name().into(), expected: node.ne()[0] as usize, found: node.ne() }
}
