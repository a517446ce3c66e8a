//! Identifies the activation function of a feed-forward network.
//!
//! GGUF files do not store φ, and names mislead, so φ is measured: inputs x and hidden values h are captured from the
//! running graph, and the φ is chosen for which `h = φ(W_gate x + b) ⊙ (W_up x + b)` holds. Hidden values of a mixture
//! are captured after multiplication by the router weight p of their expert; p is the factor of the best fit,
//! `p = Σ_j h_j c_j / Σ_j c_j²`, with the computed values c.

use ndarray::{Array1, ArrayView2, Axis};

use super::ffn::{Activation, Network, Place, read_row};
use crate::arch::plan::Ffn;
use crate::gguf::Gguf;
use crate::llama::activations::rows::Rows;
use crate::method::edit::EditError;

/// Number of neurons that are compared to identify φ.
const ASKED: usize = 96;
/// Largest error ‖h − φ(…)‖/‖h‖ of the right φ, which is not 0 because ggml rounds activations to 8 bits. Wrong
/// functions have errors of .1 or more.
const MOST_OFF: f64 = 0.06;

/// The tokens that are routed to one expert.
struct Reading {
    expert: usize,
    /// For each token, its row and the offset of its hidden values in that row.
    tokens: Vec<(usize, usize)>,
}

/// How well a candidate φ explains the hidden values.
#[derive(Default, Clone, Copy)]
struct Fit {
    /// Σ (h − p c)².
    off: f64,
    /// Σ h².
    all: f64,
    /// Σ p over all tokens and their experts.
    routed: f64,
}

impl Fit {
    /// Returns the relative error ‖h − p c‖/‖h‖.
    fn part_off(self) -> f64 {
        (self.off / self.all.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// Adds one token, with its captured and computed hidden values.
    fn add(&mut self, found: &[f64], computed: &[f64], routed: bool) {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let p =
            if routed { dot(found, computed) / dot(computed, computed).max(f64::MIN_POSITIVE) } else { 1.0 };
        self.off += found.iter().zip(computed).map(|(h, c)| (h - p * c).powi(2)).sum::<f64>();
        self.all += dot(found, found);
        self.routed += p;
    }
}

impl Network {
    /// Identifies φ from inputs `x` `[n][n_embd]` and hidden values `h` of the same tokens, which for a mixture include
    /// the router weights. `None` if no known φ explains them.
    ///
    /// # Errors
    /// Returns [`EditError`] if a tensor cannot be read.
    pub fn identify(
        gguf: &Gguf,
        ffn: &Ffn,
        x: ArrayView2<'_, f32>,
        h: &Rows<'_>,
    ) -> Result<Option<Self>, EditError> {
        let n = x.nrows().min(h.x.nrows());
        let readings = readings(ffn, h, n);
        if readings.is_empty() || x.iter().chain(h.x.iter()).any(|v| !v.is_finite()) {
            return Ok(None);
        }
        let mut network = Self::known(gguf, ffn, Activation::Silu, false)?;
        let mut best: Option<(Fit, Activation, bool)> = None;
        for gate_second in [false, true].into_iter().take(if ffn.fused { 2 } else { 1 }) {
            network.gate_second = gate_second;
            for (fit, activation) in network.fits(gguf, x, h, &readings)? {
                if best.is_none_or(|(least, ..)| fit.part_off() < least.part_off()) {
                    best = Some((fit, activation, gate_second));
                }
            }
        }
        let found = best.filter(|(fit, ..)| fit.part_off() <= MOST_OFF);
        Ok(found.map(|(fit, activation, gate_second)| {
            let routed = if ffn.n_expert > 1 { fit.routed / n as f64 } else { 1.0 };
            Self { activation, gate_second, routed, ..network }
        }))
    }

    /// Returns how well each φ explains the hidden values of a sample of neurons.
    fn fits(
        &self,
        gguf: &Gguf,
        x: ArrayView2<'_, f32>,
        h: &Rows<'_>,
        readings: &[Reading],
    ) -> Result<Vec<(Fit, Activation)>, EditError> {
        let n_ff = self.ffn.n_ff;
        let asked: Vec<usize> = (0..ASKED.min(n_ff)).map(|i| i * n_ff / ASKED.min(n_ff)).collect();
        let mut fits: Vec<(Fit, Activation)> = Activation::ALL.map(|a| (Fit::default(), a)).to_vec();
        for Reading { expert, tokens } in readings {
            let rows: Vec<usize> = tokens.iter().map(|&(row, _)| row).collect();
            let x = x.select(Axis(0), &rows);
            let factors = asked.iter().map(|&j| self.factors(gguf, *expert, j, x.view()));
            let factors = factors.collect::<Result<Vec<_>, _>>()?;
            for (i, &(row, from)) in tokens.iter().enumerate() {
                let found: Vec<f64> = asked.iter().map(|&j| f64::from(h.x[[row, from + j]])).collect();
                for (fit, activation) in &mut fits {
                    let computed = factors.iter().map(|(gate, up)| activation.at(gate[i]) * up[i]);
                    fit.add(&found, &computed.collect::<Vec<_>>(), self.ffn.n_expert > 1);
                }
            }
        }
        Ok(fits)
    }

    /// Returns both factors of one expert's neuron at every row of `x`, before φ; the second is 1 if there is none.
    fn factors(
        &self,
        gguf: &Gguf,
        expert: usize,
        j: usize,
        x: ArrayView2<'_, f32>,
    ) -> Result<(Vec<f64>, Vec<f64>), EditError> {
        let (gate_bias, up_bias) = self.biases(j);
        let product = |place: Place, bias: f32| -> Result<Vec<f64>, EditError> {
            let row = Array1::from(read_row(gguf, &place, expert)?);
            Ok(x.dot(&row).iter().map(|&v| f64::from(v + bias)).collect())
        };
        let up = self.up_place(j).map(|place| product(place, up_bias)).transpose()?;
        Ok((product(self.gate_place(j), gate_bias)?, up.unwrap_or_else(|| vec![1.0; x.nrows()])))
    }
}

/// Returns the experts to which the first `n` tokens are routed.
fn readings(ffn: &Ffn, h: &Rows<'_>, n: usize) -> Vec<Reading> {
    let mut readings: Vec<Reading> =
        (0..ffn.n_expert).map(|expert| Reading { expert, tokens: Vec::new() }).collect();
    match &h.route {
        None if ffn.n_expert == 1 && h.x.ncols() == ffn.n_ff => {
            readings[0].tokens.extend((0..n).map(|row| (row, 0)));
        }
        Some(route) if h.x.ncols() == route.experts.ncols() * ffn.n_ff => {
            for (row, experts) in route.experts.rows().into_iter().take(n).enumerate() {
                for (slot, &expert) in experts.iter().enumerate() {
                    if let Some(reading) = readings.get_mut(expert as usize) {
                        reading.tokens.push((row, slot * ffn.n_ff));
                    }
                }
            }
        }
        _ => {}
    }
    readings.retain(|reading| !reading.tokens.is_empty());
    readings
}
