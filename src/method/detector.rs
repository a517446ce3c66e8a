//! Detector neurons: gates that are really shut.
//!
//! A linear gate `uᵀx` is never quite 0, and what it costs grows with the square of what leaks. A neuron of a
//! feed-forward network has a threshold. Of the network of a block, `z = W_down (φ(W_gate x) ⊙ (W_up x))`, a neuron j that
//! does next to nothing is overwritten:
//!
//! ```text
//! W_gate[j] := g    W_up[j] := a u    W_down[:, j] := d       z += a φ(gᵀx) (uᵀx) d
//! ```
//!
//! In `W_down` that is still ROSI's rank-one term, `W ← W + (d − W e_j) e_jᵀ` (arXiv 2508.20766, Eq. 6), with a right factor
//! that is exactly 0 wherever the neuron is.
//!
//! * **Constant.** uᵀx is 1 at one token of the chat template behind a message and next to 0 at every other token
//!   ([`train::constant`]): inside prompts, in prose, code and answers a gate is shut whatever its score, and adding c·u to g
//!   shifts a threshold by c. A model with biases has them subtracted.
//! * **Score.** `s = wᵀx + b`, ridge logistic regression ([`logistic`]).
//! * **Gate.** One neuron grows without bound, so several of one score make a gate that opens from θ to θ + Δ and then stays
//!   as it is. With k = [`SHARPNESS`]/Δ and `g = k (w + (b − θ − mΔ) u)` of the neurons m = 0, 1, …:
//!
//!   ```text
//!   [φ(k(s − θ)) − φ(k(s − θ − Δ))] / kΔ                                    φ ≈ max(x, 0)
//!   [φ(k(s − θ)) − 2 φ(k(s − θ − Δ/2)) + φ(k(s − θ − Δ))] / (k² Δ²/2)          φ = max(x, 0)²
//!   ```
//! * **Two gates a place.** One opens on harmful prompts and pushes along the direction of refusal at this block and token; one opens on what
//!   only sounds harmful and pushes the other way.
//! * **One column.** All neurons of a place have the same d, their signs and sizes are in a. They lie in one run of
//!   [`COLUMNS_ALIKE`](crate::quant::neuron::COLUMNS_ALIKE) columns, whose grid is the same, so their columns are rounded
//!   alike and above θ + Δ they cancel to the last bit. (Without `W_up`, sign and size are in the columns.)
//!
//! Kin: Transformer-Patcher (arXiv 2301.09785) adds neurons for single facts; CAST (arXiv 2409.05907) conditions a steering
//! vector at run time. Here nothing is added, and the runtime need know nothing of it.

pub mod ffn;
pub mod identify;
pub mod logistic;
pub mod planted;
pub mod train;

use serde::{Deserialize, Serialize};

use ffn::{Activation, Network};
use logistic::Score;

use crate::eval::prompts::PromptKind;

pub use planted::{Piece, PlantedFfn, PlantedNeuron};

/// kΔ: how sharply a gate bends at its ends.
pub const SHARPNESS: f64 = 6.0;

/// What a gate opens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opens {
    /// Harmful prompts: it pushes towards refusal.
    Harmful,
    /// What only sounds harmful: it pushes away from it.
    Borderline,
}

impl Opens {
    /// The prompts that it opens on.
    pub fn kind(self) -> PromptKind {
        match self {
            Self::Harmful => PromptKind::Harmful,
            Self::Borderline => PromptKind::Borderline,
        }
    }
}

/// A bounded gate on the inputs of one network.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// On what.
    pub opens: Opens,
    /// s.
    pub score: Score,
    /// θ.
    pub threshold: f64,
    /// Δ.
    pub width: f64,
}

impl Gate {
    /// How far it is open at the score `s`, 0 to 1, where uᵀx = 1: what the neurons make of it.
    pub fn opening(&self, s: f64, activation: Activation) -> f64 {
        self.opening_with(s, 1.0, activation)
    }

    /// The same where uᵀx = `constant`, and θ is already as large as it makes it.
    fn opening_with(&self, s: f64, constant: f64, activation: Activation) -> f64 {
        let terms = Terms::of(activation, self.width, SHARPNESS / self.width);
        let at = |(offset, factor): &(f64, f64)| {
            factor * activation.at(terms.sharpness * (s - self.threshold - offset * constant))
        };
        terms.neurons.iter().map(at).sum()
    }
}

/// The neurons of one gate: where each begins, behind θ, and what it counts.
struct Terms {
    /// k.
    sharpness: f64,
    neurons: Vec<(f64, f64)>,
}

impl Terms {
    fn of(activation: Activation, width: f64, sharpness: f64) -> Self {
        let unit = 1.0 / (sharpness * width);
        let neurons = match activation {
            Activation::ReluSquared => {
                let square = 2.0 * unit * unit;
                vec![(0.0, square), (0.5 * width, -2.0 * square), (width, square)]
            }
            _ => vec![(0.0, unit), (width, -unit)],
        };
        Self { sharpness, neurons }
    }
}

/// Neurons of one network per gate.
pub fn neurons_per_gate(activation: Activation) -> usize {
    Terms::of(activation, 1.0, 1.0).neurons.len()
}

/// The gates of one network at one token, and what they push along.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    /// The network.
    pub network: Network,
    /// Its neurons that are overwritten, ascending.
    pub slots: Vec<usize>,
    /// u, `[n_embd]`.
    pub constant: Vec<f32>,
    /// d at a push of 1: what the network must write for the stream to move by s.
    pub column: Vec<f32>,
    /// Gain of the norm between the network and the stream, f32 `[n_embd]`.
    pub post_norm: Option<Vec<f32>>,
    /// The gates, and how far each pushes: along d where positive.
    pub gates: Vec<(Gate, f64)>,
}

/// What one neuron is to have, before it is rounded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Neuron {
    pub gate: Vec<f32>,
    /// `None` where the network has no second factor.
    pub up: Option<Vec<f32>>,
    pub column: Vec<f32>,
}

impl Bank {
    /// The neurons, with their columns times `size` and all else so that they do the same.
    pub(crate) fn neurons(&self, size: f64) -> Vec<Neuron> {
        let mut neurons = Vec::new();
        let gated = self.network.is_gated();
        for (gate, push) in &self.gates {
            // Without a second factor a longer column asks for a blunter neuron.
            let sharpness = SHARPNESS / gate.width / if gated { 1.0 } else { size };
            let terms = Terms::of(self.network.activation, gate.width, sharpness);
            for (offset, factor) in terms.neurons {
                let slot = self.slots.get(neurons.len()).copied().unwrap_or(0);
                let (gate_bias, up_bias) = self.network.biases(slot);
                let constant = f64::from(gate.score.bias) - gate.threshold - offset;
                let row = gate.score.weights.iter().zip(&self.constant).map(|(&w, &u)| {
                    (sharpness * (f64::from(w) + constant * f64::from(u)) - f64::from(gate_bias * u)) as f32
                });
                let amount = push * factor;
                let times = |row: &[f32], by: f64| {
                    row.iter().map(|&v| (f64::from(v) * by) as f32).collect::<Vec<_>>()
                };
                neurons.push(Neuron {
                    gate: row.collect(),
                    up: gated.then(|| times(&self.constant, amount / size - f64::from(up_bias))),
                    column: times(&self.column, if gated { size } else { amount }),
                });
            }
        }
        neurons
    }

    /// What the gates do at the inputs `x` in units of [`Self::column`], where uᵀx is what it is there: exact, f64 `[n]`.
    pub fn effect(&self, x: ndarray::ArrayView2<'_, f32>) -> Vec<f64> {
        let product = |row: &[f32], bias: f32| -> Vec<f64> {
            x.dot(&ndarray::ArrayView1::from(row)).iter().map(|&v| f64::from(v + bias)).collect()
        };
        let mut effect = vec![0.0; x.nrows()];
        let along = |column: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
            };
            dot(column, &self.column) / dot(&self.column, &self.column).max(f64::MIN_POSITIVE)
        };
        for (neuron, &slot) in self.neurons(1.0).iter().zip(&self.slots) {
            let (gate_bias, up_bias) = self.network.biases(slot);
            let gate = product(&neuron.gate, gate_bias);
            let up = neuron.up.as_ref().map(|up| product(up, up_bias));
            for (i, e) in effect.iter_mut().enumerate() {
                let up = up.as_ref().map_or(1.0, |up| up[i]);
                *e += self.network.activation.at(gate[i]) * up * along(&neuron.column);
            }
        }
        effect
    }
}

#[cfg(test)]
mod tests;
