//! Detector neurons: gates that really close.
//!
//! A linear gate `uᵀx` is never exactly 0, and its cost grows with the square of the leak. A neuron of a feed-forward
//! network, in contrast, has a threshold. In the network of a block, `z = W_down (φ(W_gate x) ⊙ (W_up x))`, a neuron j
//! that contributes almost nothing is overwritten:
//!
//! ```text
//! W_gate[j] := g    W_up[j] := a u    W_down[:, j] := d       z += a φ(gᵀx) (uᵀx) d
//! ```
//!
//! In `W_down` this is still ROSI's rank-one term, `W ← W + (d − W e_j) e_jᵀ` (arXiv 2508.20766, Eq. 6), but its right
//! factor is exactly 0 wherever the neuron is.
//!
//! * **Constant.** uᵀx is 1 at one token of the chat template after a message and close to 0 at every other token
//!   ([`train::constant`]). So inside prompts, prose, code, and answers a gate is closed whatever its score, and adding
//!   c·u to g shifts a threshold by c. If the model has biases, they are subtracted.
//! * **Score.** `s = wᵀx + b`, from ridge logistic regression ([`logistic`]).
//! * **Gate.** A single neuron grows without bound, so several neurons of one score form a gate that opens between θ
//!   and θ + Δ and then stays constant. With k = [`SHARPNESS`]/Δ and `g = k (w + (b − θ − mΔ) u)` for the neurons
//!   m = 0, 1, …:
//!
//!   ```text
//!   [φ(k(s − θ)) − φ(k(s − θ − Δ))] / kΔ                                    φ ≈ max(x, 0)
//!   [φ(k(s − θ)) − 2 φ(k(s − θ − Δ/2)) + φ(k(s − θ − Δ))] / (k² Δ²/2)          φ = max(x, 0)²
//!   ```
//! * **Three gates per place.** One opens on harmful prompts and pushes along the safety direction of this block and
//!   token, one does the same on harmful prompts that look like innocent ones, and one opens on prompts that only sound
//!   harmful and pushes the other way. A single score for all harmful prompts would miss more of the first sort.
//! * **One column.** All neurons of a place share d; their signs and sizes are in a. They lie in one run of
//!   [`COLUMNS_ALIKE`](crate::quant::neuron::COLUMNS_ALIKE) columns with the same quantization grid, so their columns
//!   are rounded identically and cancel to the last bit above θ + Δ. (Without `W_up`, sign and size are in the
//!   columns.)
//!
//! Related work: Transformer-Patcher (arXiv 2301.09785) adds neurons for single facts; CAST (arXiv 2409.05907) applies
//! a steering vector conditionally at run time. Detectors add nothing to the model and need no support from the
//! runtime.

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

/// kΔ, the sharpness of the bends at both ends of a gate.
pub const SHARPNESS: f64 = 6.0;

/// The prompts on which a gate opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opens {
    /// Harmful prompts; the gate pushes toward refusal.
    Harmful,
    /// Harmful prompts that look like innocent ones; the gate pushes toward refusal.
    Lookalike,
    /// Prompts that only sound harmful; the gate pushes away from refusal.
    Borderline,
}

impl Opens {
    /// All gates of a place, in the order of their neurons.
    pub const ALL: [Self; 3] = [Self::Harmful, Self::Lookalike, Self::Borderline];

    /// Returns the name, as written in files and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Harmful => "harmful",
            Self::Lookalike => "lookalike",
            Self::Borderline => "borderline",
        }
    }

    /// Returns the kind of prompts on which the gate opens.
    pub fn kind(self) -> PromptKind {
        match self {
            Self::Harmful | Self::Lookalike => PromptKind::Harmful,
            Self::Borderline => PromptKind::Borderline,
        }
    }
}

/// A bounded gate on the inputs of one network.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Prompts on which the gate opens.
    pub opens: Opens,
    /// Score s.
    pub score: Score,
    /// Threshold θ, where the gate begins to open.
    pub threshold: f64,
    /// Width Δ; the gate is fully open from θ + Δ on.
    pub width: f64,
}

impl Gate {
    /// Returns the opening of the gate at the score `s` where uᵀx = 1, from about 0 to about 1, as its neurons compute
    /// it.
    pub fn opening(&self, s: f64, activation: Activation) -> f64 {
        self.opening_with(s, 1.0, activation)
    }

    /// Returns the opening where uᵀx = `constant`; `s` must already include the shift of θ that this causes.
    fn opening_with(&self, s: f64, constant: f64, activation: Activation) -> f64 {
        let terms = Terms::of(activation, self.width, SHARPNESS / self.width);
        let at = |(offset, factor): &(f64, f64)| {
            factor * activation.at(terms.sharpness * (s - self.threshold - offset * constant))
        };
        terms.neurons.iter().map(at).sum()
    }
}

/// The neurons of one gate.
struct Terms {
    /// Sharpness k.
    sharpness: f64,
    /// Offset from θ and weight of each neuron.
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

/// Returns the number of neurons per gate.
pub fn neurons_per_gate(activation: Activation) -> usize {
    Terms::of(activation, 1.0, 1.0).neurons.len()
}

/// The gates of one network at one token, and the direction of their push.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    /// The network whose neurons are overwritten.
    pub network: Network,
    /// Indices of the neurons to overwrite, ascending.
    pub slots: Vec<usize>,
    /// u, f32 `[n_embd]`.
    pub constant: Vec<f32>,
    /// d at a push of 1, f32 `[n_embd]`: what the network must write for the residual stream to move by s, the
    /// unnormalized direction.
    pub column: Vec<f32>,
    /// Gain of the norm between the network and the residual stream, f32 `[n_embd]`; `None` without a norm.
    pub post_norm: Option<Vec<f32>>,
    /// The gates and their pushes; a positive push is along d.
    pub gates: Vec<(Gate, f64)>,
}

/// Target rows and column of one neuron, before rounding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Neuron {
    pub gate: Vec<f32>,
    /// `None` if the network has no second factor.
    pub up: Option<Vec<f32>>,
    pub column: Vec<f32>,
}

impl Bank {
    /// Returns the neurons with columns scaled by `size` and the other parts scaled so that the output is the same.
    pub(crate) fn neurons(&self, size: f64) -> Vec<Neuron> {
        let mut neurons = Vec::new();
        let gated = self.network.is_gated();
        for (gate, push) in &self.gates {
            // Without a second factor, a longer column needs a less sharp neuron.
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

    /// Returns the exact effect of the gates at the inputs `x` in units of [`Self::column`], with uᵀx computed from
    /// each input, f64 `[n]`.
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
