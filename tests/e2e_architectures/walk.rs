//! Walks the graph from a residual back to the matrices whose products are added to it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use super::graph::Graph;

/// An operation between a product and the residual. A way is a list of steps, starting at the residual.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A norm: the name of its gain, and ggml's name of the operation.
    Norm(String, String),
    /// A constant factor, as the bits of an f32, so that it can be ordered and hashed.
    Scale(u32),
    /// A multiplication by this tensor of the file: one number, or one per expert.
    Tensor(String),
    /// A multiplication by this tensor of the file: one number per coordinate.
    Vector(String),
    /// A factor per token, or per token and expert.
    Gate,
    /// A computed factor per coordinate, which changes the direction of what is written.
    Product,
    /// A computed mixture of several streams.
    Mix,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Norm(gain, op) => write!(f, "{op}({gain})"),
            Self::Scale(bits) => write!(f, "×{}", f32::from_bits(*bits)),
            Self::Tensor(name) => write!(f, "×{name}"),
            Self::Vector(name) => write!(f, "⊙{name}"),
            Self::Gate => write!(f, "×gate"),
            Self::Product => write!(f, "⊙computed"),
            Self::Mix => write!(f, "mixed"),
        }
    }
}

/// A residual writer, and every way from it to the residual.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    pub experts: bool,
    pub embedding: bool,
    pub ways: BTreeSet<Vec<Step>>,
}

/// Result of a walk.
#[derive(Debug, Default)]
pub struct Found {
    pub writers: BTreeMap<String, Writer>,
    /// Ways from the residual before the block, or from the embedding.
    pub stream: BTreeSet<Vec<Step>>,
    /// Operations at which the walk ended without a writer.
    pub opaque: BTreeSet<String>,
}

/// A walk back from one node.
pub struct Walk<'a> {
    pub graph: &'a Graph,
    /// Names of the tensors in the file.
    pub tensors: &'a HashSet<String>,
    pub n_embd: i64,
    /// Nodes at which to stop: the residuals of other blocks.
    pub stop: HashSet<usize>,
    pub found: Found,
    seen: HashSet<(usize, Vec<Step>)>,
}

/// Limit on the number of visited states, more than any block needs.
const MAX_SEEN: usize = 100_000;

impl<'a> Walk<'a> {
    pub fn new(graph: &'a Graph, tensors: &'a HashSet<String>, n_embd: i64) -> Self {
        let (stop, seen) = (HashSet::new(), HashSet::new());
        Self { graph, tensors, n_embd, stop, found: Found::default(), seen }
    }

    /// Returns the name of the tensor of the file that `index` refers to, if any.
    fn weight(&self, index: usize) -> Option<&'a str> {
        let root = self.graph.root(index);
        let name = root.name.as_str();
        (root.op == "NONE" && self.tensors.contains(name)).then_some(name)
    }

    fn writer(&mut self, name: &str, experts: bool, embedding: bool, way: Vec<Step>) {
        let writer = self.found.writers.entry(name.to_string()).or_default();
        writer.experts |= experts;
        writer.embedding |= embedding;
        writer.ways.insert(way);
    }

    /// Walks back from `index`; `way` leads from there to the residual.
    pub fn back(&mut self, index: usize, way: &[Step]) {
        let fresh = self.seen.insert((index, way.to_vec()));
        if !fresh || self.seen.len() > MAX_SEEN {
            return;
        }
        if self.stop.contains(&index) {
            self.found.stream.insert(way.to_vec());
            return;
        }
        let node = &self.graph.nodes[index];
        let src = node.src.as_slice();
        match node.op.as_str() {
            "NONE" => {}
            "ADD" | "SUB" | "ACC" | "CONCAT" | "SET" | "SET_ROWS" => {
                src.iter().take(2).for_each(|&s| self.back(s, way));
            }
            "ADD_ID" | "ADD1" | "VIEW" | "RESHAPE" | "TRANSPOSE" | "PERMUTE" | "CONT" | "CPY" | "DUP"
            | "REPEAT" | "SUM_ROWS" | "MEAN" | "PAD" => self.back(src[0], way),
            "SCALE" => {
                let factor = node.scale.unwrap_or(1.0);
                self.further(src[0], way, (factor != 1.0).then(|| Step::Scale(factor.to_bits())));
            }
            "MUL" | "DIV" => self.product(src, way),
            "RMS_NORM" | "NORM" | "L2_NORM" | "GROUP_NORM" => {
                self.further(src[0], way, Some(Step::Norm(String::new(), node.op.clone())));
            }
            "GET_ROWS" => match self.weight(src[0]) {
                Some(name) => {
                    self.found.stream.insert(way.to_vec());
                    self.writer(name, false, true, way.to_vec());
                }
                None => self.back(src[0], way),
            },
            "MUL_MAT" | "MUL_MAT_ID" => match self.weight(src[0]) {
                // A product narrower than `n_embd` is a mixture coefficient.
                Some(name) if node.ne[0] == self.n_embd => {
                    self.writer(name, node.op == "MUL_MAT_ID", false, way.to_vec());
                }
                Some(_) => {}
                None => src.iter().take(2).for_each(|&s| self.further(s, way, Some(Step::Mix))),
            },
            "DSV4_HC_PRE" | "DSV4_HC_POST" => src.iter().for_each(|&s| self.further(s, way, Some(Step::Mix))),
            _ if way.iter().any(|step| matches!(step, Step::Product | Step::Gate | Step::Mix)) => {}
            opaque => {
                self.found.opaque.insert(opaque.to_string());
            }
        }
    }

    fn further(&mut self, index: usize, way: &[Step], step: Option<Step>) {
        let mut way = way.to_vec();
        way.extend(step);
        self.back(index, &way);
    }

    fn product(&mut self, src: &[usize], way: &[Step]) {
        let (a, b) = (src[0], src[1]);
        if let Some(name) = self.weight(b).or_else(|| self.weight(a)) {
            let (value, weight) = if self.weight(b).is_some() { (a, b) } else { (b, a) };
            return self.times_tensor(value, name, weight, way);
        }
        if let Some(name) = self.gathered(b) {
            return self.further(a, way, Some(Step::Tensor(name.to_string())));
        }
        let full = |index: usize| self.graph.nodes[index].ne[0] == self.n_embd;
        match (full(a), full(b)) {
            (true, false) => self.further(a, way, Some(Step::Gate)),
            (false, true) => self.further(b, way, Some(Step::Gate)),
            _ => [a, b].into_iter().for_each(|s| self.further(s, way, Some(Step::Product))),
        }
    }

    /// Follows a multiplication of `value` by a tensor of the file: the gain of a norm, or otherwise a scale.
    fn times_tensor(&mut self, value: usize, name: &str, weight: usize, way: &[Step]) {
        let node = self.graph.root(value);
        if let "RMS_NORM" | "NORM" | "L2_NORM" | "GROUP_NORM" = node.op.as_str() {
            let step = Step::Norm(name.to_string(), node.op.clone());
            return self.further(node.src[0], way, Some(step));
        }
        let step = match self.graph.root(weight).ne[0] == self.n_embd {
            true => Step::Vector(name.to_string()),
            false => Step::Tensor(name.to_string()),
        };
        self.further(value, way, Some(step));
    }

    /// Returns the tensor of the file from which `index` gathers one number per chosen expert, if any.
    fn gathered(&self, mut index: usize) -> Option<&'a str> {
        if self.graph.nodes[index].ne[0] != 1 {
            return None;
        }
        while let ("REPEAT" | "GET_ROWS" | "VIEW" | "RESHAPE" | "CONT", Some(&src)) =
            (self.graph.nodes[index].op.as_str(), self.graph.nodes[index].src.first())
        {
            index = src;
        }
        self.weight(index)
    }
}

impl Found {
    /// Removes the steps next to the residual that the stream passes through as well and that preserve directions.
    fn without_common_steps(mut self) -> Self {
        let ways = |found: &Self| -> Vec<Vec<Step>> {
            let of_writers = found.writers.values().flat_map(|w| w.ways.iter().cloned());
            of_writers.chain(found.stream.iter().cloned()).collect()
        };
        let harmless =
            |step: &Step| matches!(step, Step::Scale(_) | Step::Tensor(_) | Step::Gate | Step::Mix);
        loop {
            let all = ways(&self);
            let Some(first) = all.first().and_then(|way| way.first()).filter(|step| harmless(step)) else {
                break;
            };
            if self.stream.is_empty() || all.iter().any(|way| way.first() != Some(first)) {
                break;
            }
            let shorter = |ways: &BTreeSet<Vec<Step>>| ways.iter().map(|way| way[1..].to_vec()).collect();
            self.stream = shorter(&self.stream);
            self.writers.values_mut().for_each(|writer| writer.ways = shorter(&writer.ways));
        }
        self
    }
}

/// Returns the writers of every block, whose residuals have the names `residuals`, and the writers of all blocks
/// together, found by walking back from the final norm. A block is `None` if the graph has no node of its name; the
/// second value is `None` if the graph has no final norm.
pub fn writers(
    graph: &Graph,
    tensors: &HashSet<String>,
    n_embd: i64,
    residuals: &[String],
) -> (Vec<Option<Found>>, Option<Found>) {
    let at: Vec<Option<usize>> = residuals.iter().map(|name| graph.named(name)).collect();
    let of_block = |index: usize| {
        let mut walk = Walk::new(graph, tensors, n_embd);
        walk.stop = at.iter().flatten().copied().filter(|&other| other != index).collect();
        walk.back(index, &[]);
        walk.found.without_common_steps()
    };
    let blocks = at.iter().map(|index| index.map(of_block)).collect();
    let end = graph.named("result_norm").map(|index| {
        let mut walk = Walk::new(graph, tensors, n_embd);
        walk.back(index, &[]);
        walk.found
    });
    (blocks, end)
}
