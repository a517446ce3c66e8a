//! The gates of one network at one token: their training inputs, and their effect on the network's output.

use ndarray::{Array2, ArrayView1};

use super::collect::stacked;
use super::{Spot, Toward};
use crate::arch::plan::ResidualWriter;
use crate::gguf::TensorInfo;
use crate::method::detector::ffn::{Network, Place, read_row};
use crate::method::detector::train::{self, Examples, Profile, Recipe, Shut, Teacher};
use crate::method::detector::{Gate, Opens};
use crate::method::edit;
use crate::method::post_norm;
use crate::pipeline::error::Error;
use crate::pipeline::session::Opened;
use crate::util::spread::spread_rows;

/// Training recipes of early and late gates: above all, the shares of prompts on which they stay shut.
pub(super) const EARLY_RECIPE: Recipe = Recipe {
    ridge: 0.03,
    width: 0.7,
    harmful: Shut { harmless: 0.953, other: 0.775 },
    lookalike: Shut { harmless: 0.99, other: 0.95 },
    borderline: Shut { harmless: 0.91, other: 0.895 },
};
const LATE_RECIPE: Recipe = Recipe {
    ridge: 0.03,
    width: 0.7,
    harmful: Shut { harmless: 0.965, other: 0.785 },
    lookalike: Shut { harmless: 0.99, other: 0.95 },
    borderline: Shut { harmless: 0.945, other: 0.925 },
};

/// Number of inputs of a network that row rounding is optimized for.
const ROUNDED_FOR: usize = 512;

/// The gates of one network at one token.
pub struct Site {
    /// The network.
    pub network: Network,
    /// Distance, in tokens, before the last token of a prompt; 0 for late gates.
    pub before_last: usize,
    /// Indices of the neurons to overwrite, ascending.
    pub slots: Vec<usize>,
    /// The constant vector u of [`crate::method::detector`].
    pub constant: Vec<f32>,
    /// The trained gates.
    pub gates: Vec<Gate>,
    /// Profiles of the gates on their training inputs.
    pub profiles: Vec<Profile>,
    /// Output that the network must write to move the residual stream by one unit, before the gain of a norm.
    pub per_unit: f64,
    /// Gain of the norm between the network and the residual stream, f32 `[n_embd]`.
    pub post_norm: Option<Vec<f32>>,
    /// Direction of early gates, f32 `[n_embd]`; empty for late gates, which use that of the direction source.
    pub direction: Vec<f32>,
    /// Inputs that row rounding is optimized for, f32 `[n][n_embd]`.
    pub inputs: Array2<f32>,
}

pub(super) fn not_finite(error: crate::util::linalg::NotPositive) -> Error {
    crate::method::gate::GateError::from(error).into()
}

impl Site {
    pub(super) fn new(
        opened: &Opened,
        network: &Network,
        slots: Vec<usize>,
        spot: &Spot,
        examples: &Examples,
    ) -> Result<Self, Error> {
        let writer = &opened.plan.writers[network.ffn.writer];
        let mut site = Self {
            per_unit: per_unit(opened, network, writer, examples)?,
            post_norm: edit::read_gains(&opened.gguf, writer)?,
            network: network.clone(),
            before_last: spot.before_last,
            slots,
            constant: train::constant(examples).map_err(not_finite)?,
            gates: Vec::new(),
            profiles: Vec::new(),
            direction: spot.direction.clone(),
            inputs: examples.sample(),
        };
        site.learn(examples)?;
        Ok(site)
    }

    /// Returns whether the gates open before the last token of a prompt.
    pub(super) fn is_early(&self) -> bool {
        self.before_last > 0
    }

    /// Trains the gates on `examples`, replacing any existing ones.
    pub(super) fn learn(&mut self, examples: &Examples) -> Result<(), Error> {
        let recipe = if self.is_early() { EARLY_RECIPE } else { LATE_RECIPE };
        let teacher = Teacher::new(examples, &self.constant, recipe);
        let layer = self.network.ffn.layer;
        (self.gates, self.profiles) = (Vec::new(), Vec::new());
        for opens in Opens::ALL {
            let learned = teacher.learn(opens).map_err(not_finite)?;
            self.profiles.push(teacher.profile(&learned, layer, self.before_last, self.network.activation));
            self.gates.push(learned.gate);
        }
        Ok(())
    }

    /// Returns the output that the network must write to move the residual stream by `s`, f32 `[n_embd]`.
    pub(super) fn column(&self, s: &[f64]) -> Vec<f32> {
        let Some(gain) = &self.post_norm else {
            return s.iter().map(|v| (v * self.per_unit) as f32).collect();
        };
        let (left, push) = post_norm::through(s, gain);
        let length = s.iter().map(|v| v * v).sum::<f64>().sqrt();
        let size = if push > 0.0 { self.per_unit * length / push } else { 0.0 };
        left.iter().map(|l| (l * size) as f32).collect()
    }

    /// Returns the direction s of this site's gates, with its length, f64 `[n_embd]`.
    pub(super) fn toward(&self, toward: Toward<'_>) -> Vec<f64> {
        let direction = match toward {
            Toward::Refusal(_) if self.is_early() => {
                return self.direction.iter().map(|&v| v.into()).collect();
            }
            Toward::Refusal(along) => along.at(self.network.ffn.layer),
            Toward::Same(direction) => direction,
        };
        direction.unit().iter().map(|&v| f64::from(v) * direction.norm()).collect()
    }
}

impl Examples {
    /// Returns the inputs that row rounding is optimized for: three quarters from the token where gates open, a
    /// quarter from elsewhere.
    pub(super) fn sample(&self) -> Array2<f32> {
        let (open, shut) = (ROUNDED_FOR * 3 / 4, ROUNDED_FOR / 4);
        stacked(vec![spread_rows(&self.inputs, open), spread_rows(&self.elsewhere, shut)])
    }

    /// Projects `direction` out of the inputs that scores are trained on, so that scores have no component along it.
    pub(super) fn blind_to(mut self, direction: &[f32]) -> Self {
        let direction = ArrayView1::from(direction);
        let square = direction.dot(&direction);
        if square > 0.0 && square.is_finite() {
            for mut row in self.inputs.rows_mut().into_iter().chain(self.other_tokens.rows_mut()) {
                let along = row.dot(&direction) / square;
                row.scaled_add(-along, &direction);
            }
        }
        self
    }
}

/// Returns the output that a network must write to move the residual stream by one unit. Accounts for the residual
/// scale, the router's weights and, averaged over the ends of prompts, the gate of a shared expert and the divisor of
/// the following norm.
fn per_unit(
    opened: &Opened,
    network: &Network,
    writer: &ResidualWriter,
    examples: &Examples,
) -> Result<f64, Error> {
    let n_embd = opened.plan.n_embd as usize;
    let ends = spread_rows(&examples.inputs, ROUNDED_FOR / 2);
    let mut factor = 1.0 / (writer.residual_scale * network.routed.max(0.01));
    let expert_gate = writer.tensor.replace("ffn_down_shexp", "ffn_gate_inp_shexp");
    let is_gate =
        |tensor: &&TensorInfo| tensor.name != writer.tensor && tensor.ne == [n_embd as u64, 1, 1, 1];
    if let Some(tensor) = opened.gguf.tensor(&expert_gate).filter(is_gate) {
        let row = read_row(&opened.gguf, &Place { tensor: tensor.name.clone(), index: 0 }, 0)?;
        let open = ends.dot(&ArrayView1::from(&row)).mapv(|v| 1.0 / (1.0 + f64::from(-v).exp()));
        factor /= open.mean().unwrap_or(1.0).max(0.01);
    }
    if writer.post_norm.is_some() {
        factor *= network.written_rms(&opened.gguf, writer, ends.view())?;
    }
    Ok(factor)
}
