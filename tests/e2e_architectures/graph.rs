//! Records the graph of one decode.

use std::collections::HashMap;

use rosi_gguf::llama::LlamaError;
use rosi_gguf::llama::hook::{EvalHook, Node};

/// One node of the graph.
#[derive(Debug)]
pub struct Op {
    pub name: String,
    pub op: String,
    pub ne: [i64; 4],
    pub src: Vec<usize>,
    pub scale: Option<f32>,
}

/// All computed nodes and their inputs.
#[derive(Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Op>,
    known: HashMap<usize, usize>,
}

impl Graph {
    fn add(&mut self, node: Node<'_>) -> usize {
        if let Some(&index) = self.known.get(&node.id()) {
            return index;
        }
        // Registered before its inputs, because a node may be among its own inputs.
        let index = self.nodes.len();
        self.known.insert(node.id(), index);
        let (name, op) = (node.name().to_string(), node.op().to_string());
        self.nodes.push(Op { name, op, ne: node.ne(), src: Vec::new(), scale: node.scale() });
        self.nodes[index].src = (0..10).filter_map(|i| node.src(i)).map(|src| self.add(src)).collect();
        index
    }

    /// Returns the index of the last node of this name.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().rposition(|node| node.name == name)
    }

    /// Returns the node that `index` is a view, reshape or copy of.
    pub fn root(&self, mut index: usize) -> &Op {
        for _ in 0..self.nodes.len() {
            let ("VIEW" | "RESHAPE" | "TRANSPOSE" | "PERMUTE" | "CONT" | "CPY", Some(&src)) =
                (self.nodes[index].op.as_str(), self.nodes[index].src.first())
            else {
                break;
            };
            index = src;
        }
        &self.nodes[index]
    }
}

impl EvalHook for Graph {
    fn wants(&mut self, node: Node<'_>) -> bool {
        self.add(node);
        false
    }

    fn take(&mut self, _: Node<'_>) -> Result<(), LlamaError> {
        Ok(())
    }
}
