//! The gates of one network in a stored edit.

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::file::{Array, Arrays};
use super::{Facts, Problem};
use crate::method::detector::ffn::Activation;
use crate::method::detector::logistic::Score;
use crate::method::detector::{Gate, Opens, neurons_per_gate};

/// Maximum number of inputs of a network; fewer are ever kept.
const MAX_INPUTS: usize = 4096;
/// Maximum number of gates of a network; there are never as many.
const MAX_GATES: usize = 16;

/// The metadata of a network with gates: everything except arrays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkFacts {
    /// Tensor name of the network's writer.
    pub writer: String,
    /// Block of the network.
    pub layer: usize,
    /// Activation function φ.
    pub activation: Activation,
    /// Whether the gate's rows are the second half of a fused tensor.
    pub gate_second: bool,
    /// Position of the token at which the gates open, as the number of tokens before the last one of a prompt.
    pub before_last: usize,
    /// Indices of the overwritten neurons, ascending.
    pub slots: Vec<usize>,
    /// Output of the network that moves the residual stream by 1, apart from the gain of a norm after the network.
    pub per_unit: f64,
    /// The gates of the network.
    pub gates: Vec<GateFacts>,
}

/// One gate, without its weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GateFacts {
    /// Prompts on which the gate opens.
    pub opens: Opens,
    /// Bias b of the score.
    pub bias: f32,
    /// Threshold θ, where the gate begins to open.
    pub threshold: f64,
    /// Width Δ; the gate is fully open from θ + Δ on.
    pub width: f64,
}

/// A network with its arrays.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredNetwork {
    /// Metadata of the network.
    pub facts: NetworkFacts,
    /// w of each gate, f32 `[n_embd]`.
    pub scores: Vec<Vec<f32>>,
    /// u, f32 `[n_embd]`.
    pub constant: Vec<f32>,
    /// Direction along which early gates push, f32 `[n_embd]`; empty for late gates, those at the last token.
    pub direction: Vec<f32>,
    /// Inputs for which rows are rounded, f32 `[n][n_embd]`.
    pub inputs: Array2<f32>,
}

impl NetworkFacts {
    /// Returns the name of an array; a writer has one array of each kind for every token at which it has gates.
    fn name(&self, kind: &str) -> String {
        format!("{kind}{}.{}", self.before_last, self.writer)
    }
}

impl StoredNetwork {
    /// Returns the gates with their weights.
    pub fn gates(&self) -> Vec<Gate> {
        let gate = |(facts, weights): (&GateFacts, &Vec<f32>)| Gate {
            opens: facts.opens,
            score: Score { weights: weights.clone(), bias: facts.bias },
            threshold: facts.threshold,
            width: facts.width,
        };
        self.facts.gates.iter().zip(&self.scores).map(gate).collect()
    }

    /// Returns all arrays of the network.
    pub(super) fn arrays(&self) -> Vec<Array> {
        let name = |kind: &str| self.facts.name(kind);
        let mut arrays = vec![
            Array::row(name("toward"), &self.direction),
            Array::row(name("constant"), &self.constant),
            Array {
                name: name("network_inputs"),
                shape: vec![self.inputs.nrows(), self.inputs.ncols()],
                values: self.inputs.iter().copied().collect(),
            },
        ];
        let scores = self.scores.concat();
        arrays.push(Array {
            name: name("scores"),
            shape: vec![self.scores.len(), self.constant.len()],
            values: scores,
        });
        arrays
    }

    /// Checks `facts`, and reads and checks the arrays of their network.
    pub(super) fn read(arrays: &Arrays<'_>, all: &Facts, facts: &NetworkFacts) -> Result<Self, Problem> {
        let n_embd = all.model.shape.n_embd as usize;
        check(all, facts)?;
        let name = |kind: &str| facts.name(kind);
        let scores = arrays.exactly(&name("scores"), &[facts.gates.len(), n_embd])?;
        let inputs = arrays.rows(&name("network_inputs"), n_embd, MAX_INPUTS)?;
        let inputs = Array2::from_shape_vec((inputs.len() / n_embd.max(1), n_embd), inputs);
        Ok(Self {
            facts: facts.clone(),
            scores: scores.chunks_exact(n_embd.max(1)).map(<[f32]>::to_vec).collect(),
            constant: arrays.exactly(&name("constant"), &[n_embd])?,
            direction: arrays.maybe(&name("toward"), &[n_embd])?.unwrap_or_default(),
            inputs: inputs.map_err(|error| Problem::Format { reason: error.to_string() })?,
        })
    }
}

/// Checks every number of `facts`.
fn check(all: &Facts, facts: &NetworkFacts) -> Result<(), Problem> {
    let name = |what: &str| format!("{what} of {}", facts.writer);
    let writer = all.model.shape.writers.iter().find(|w| w.tensor == facts.writer);
    let Some(writer) = writer.filter(|_| facts.layer < all.model.shape.n_layer) else {
        let expected = format!("a writer of the model in a block below {}", all.model.shape.n_layer);
        return Err(Problem::content(name("network"), expected, format!("block {}", facts.layer)));
    };
    let neurons = facts.gates.len() * neurons_per_gate(facts.activation);
    let ascending = facts.slots.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = facts.slots.last().is_some_and(|&last| (last as u64) < writer.n_in);
    if facts.gates.len() > MAX_GATES || facts.slots.len() != neurons || !ascending || !inside {
        let expected = format!("{neurons} neurons below {}, ascending", writer.n_in);
        return Err(Problem::content(name("slots"), expected, format!("{:?}", facts.slots)));
    }
    if !facts.per_unit.is_finite() {
        return Err(Problem::content(name("per_unit"), "a finite number", facts.per_unit));
    }
    for gate in &facts.gates {
        let finite = gate.bias.is_finite() && gate.threshold.is_finite() && gate.width.is_finite();
        if !finite || gate.width <= 0.0 {
            let expected = "finite numbers and a positive width";
            return Err(Problem::content(name("gate"), expected, format!("{gate:?}")));
        }
    }
    Ok(())
}
