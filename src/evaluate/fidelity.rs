//! Whether a file does what the exact edit does: first-token distributions and hidden states of both
//! on the same prompts.

use serde::Serialize;

use super::stats::kl_divergence;
use super::{Questions, chats};
use crate::activations::Activations;
use crate::direction::SafetyDirection;
use crate::llama::{Capture, Engine, LlamaError};

/// What a model showed on harmful and harmless prompts.
pub struct Snapshot {
    /// Logits of the first answer token, `[harmful, harmless][n_prompt][n_vocab]`.
    logits: [Vec<Vec<f32>>; 2],
    /// Hidden states at the last prompt token of the harmful prompts.
    residual: Activations,
}

impl Snapshot {
    /// Of the model as it is now; `capture` names the residual stream.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub fn of(engine: &mut dyn Engine, questions: &Questions, capture: &Capture) -> Result<Self, LlamaError> {
        let mut first = |texts: &[String]| -> Result<Vec<Vec<f32>>, LlamaError> {
            let mut rows = vec![Vec::new(); texts.len()];
            engine.answer(&chats(texts, None), 1, &mut |i, logits| rows[i] = logits.to_vec())?;
            Ok(rows)
        };
        let logits = [first(&questions.harmful)?, first(&questions.harmless)?];
        let residual = engine.collect(&chats(&questions.harmful, None), capture, &mut |_, _| ())?;
        Ok(Self { logits, residual })
    }

    /// Mean of ŝᵀh over the harmful prompts after each layer, `[n_layer]`.
    fn along(&self, direction: &SafetyDirection) -> Vec<f64> {
        let n_layer = self.residual.residual.shape()[1];
        let dot = |mean: &[f64]| mean.iter().zip(direction.unit()).map(|(h, &s)| h * f64::from(s)).sum();
        (0..n_layer).map(|layer| dot(&self.residual.mean(layer))).collect()
    }

    /// Mean KL(self ‖ other) of the first answer token, nats: harmful and harmless prompts.
    fn kl(&self, other: &Self) -> [f64; 2] {
        std::array::from_fn(|kind| {
            let pairs = self.logits[kind].iter().zip(&other.logits[kind]);
            let each = pairs.map(|(a, b)| kl_divergence(a, b).unwrap_or(f64::INFINITY));
            each.sum::<f64>() / self.logits[kind].len().max(1) as f64
        })
    }
}

/// How near a written file comes to the exact edit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fidelity {
    /// Shift of the residual stream along ŝ on harmful prompts, last token, after each layer: the
    /// file's over the exact edit's. 1 = the same; absent where the exact edit shifts by less than a
    /// hundredth of its largest shift.
    pub shift: Vec<Option<f64>>,
    /// Σ shift·exact / Σ exact² over the layers: one figure for all of them.
    pub mean_shift: f64,
    /// Mean first-token KL(exact ‖ file) on harmful prompts, nats.
    pub kl_harmful: f64,
    /// The same on harmless prompts.
    pub kl_harmless: f64,
}

impl Fidelity {
    /// Of `file` against `exact`, both as changes of `base`.
    pub fn of(base: &Snapshot, exact: &Snapshot, file: &Snapshot, direction: &SafetyDirection) -> Self {
        let from_base = |s: &Snapshot| -> Vec<f64> {
            s.along(direction).iter().zip(base.along(direction)).map(|(a, b)| a - b).collect()
        };
        let (wanted, found) = (from_base(exact), from_base(file));
        let largest = wanted.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        let pairs = wanted.iter().zip(&found);
        let shift = pairs.clone().map(|(w, f)| (w.abs() > 0.01 * largest).then(|| f / w)).collect();
        let square: f64 = wanted.iter().map(|w| w * w).sum();
        let [kl_harmful, kl_harmless] = exact.kl(file);
        let mean_shift = pairs.map(|(w, f)| w * f).sum::<f64>() / square.max(f64::MIN_POSITIVE);
        Self { shift, mean_shift, kl_harmful, kl_harmless }
    }
}
