//! Compares a written file with the exact edit: first-token distributions and hidden states of both on the same
//! prompts.

use serde::{Deserialize, Serialize};

use crate::eval::prompts::PromptKind;
use crate::eval::{PerKind, Questions, chats};
use crate::llama::activations::Activations;
use crate::llama::{Capture, Engine, LlamaError};
use crate::method::direction::SafetyDirection;
use crate::util::null;
use crate::util::stats::kl_divergence;

/// First-token logits and hidden states of a model on the prompts of each kind.
pub struct Snapshot {
    /// Logits of the first answer token, `[n_prompt][n_vocab]`; none of borderline prompts, whose KL is not measured.
    logits: PerKind<Vec<Vec<f32>>>,
    /// Hidden states at the last token of the prompts.
    residual: PerKind<Activations>,
}

impl Snapshot {
    /// Takes a snapshot of the model in its current state; `capture` must name the residual stream.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if the model cannot evaluate the prompts.
    pub fn of(engine: &mut dyn Engine, questions: &Questions, capture: &Capture) -> Result<Self, LlamaError> {
        let mut logits = questions.as_ref().map(|texts| vec![Vec::new(); texts.len()]);
        logits.borderline.clear();
        let residual = PerKind::try_from_fn(|kind| {
            let rows = &mut logits[kind];
            let mut first = |i: usize, row: &[f32]| {
                if let Some(kept) = rows.get_mut(i) {
                    *kept = row.to_vec();
                }
            };
            engine.collect(&chats(&questions[kind], None), capture, &mut first)
        })?;
        Ok(Self { logits, residual })
    }

    /// Returns the mean of ŝᵀh over the prompts of one kind after each layer, `[n_layer]`; empty if there are no
    /// prompts.
    fn along(&self, kind: PromptKind, direction: &SafetyDirection) -> Vec<f64> {
        let states = &self.residual[kind];
        if states.n_prompt() == 0 {
            return Vec::new();
        }
        (0..states.residual.shape()[1]).map(|layer| dot(states.mean(layer), direction)).collect()
    }

    /// Returns the mean KL(self ‖ other) of the first answer token on the prompts of one kind, in nats.
    fn kl(&self, other: &Self, kind: PromptKind) -> f64 {
        let pairs = self.logits[kind].iter().zip(&other.logits[kind]);
        let each = pairs.map(|(a, b)| kl_divergence(a, b).unwrap_or(f64::INFINITY));
        each.sum::<f64>() / self.logits[kind].len().max(1) as f64
    }
}

/// Returns ŝᵀh, with f64 accumulators.
fn dot(h: impl IntoIterator<Item = f64>, direction: &SafetyDirection) -> f64 {
    h.into_iter().zip(direction.unit()).map(|(h, &s)| h * f64::from(s)).sum()
}

/// How closely a written file matches the exact edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Shift of the residual stream along ŝ at the last token of harmful prompts, after each layer: the file's shift
    /// divided by the exact edit's. 1 means no difference; `None` where the exact edit shifts by at most a hundredth of
    /// its largest shift.
    pub shift: Vec<Option<f64>>,
    /// Summary over all layers: Σ file·exact / Σ exact², where both are shifts.
    #[serde(deserialize_with = "null::or_nan")]
    pub mean_shift: f64,
    /// Mean first-token KL(exact ‖ file) on harmful prompts, nats.
    #[serde(deserialize_with = "null::or_infinity")]
    pub kl_harmful: f64,
    /// Mean first-token KL(exact ‖ file) on harmless prompts, nats.
    #[serde(deserialize_with = "null::or_infinity")]
    pub kl_harmless: f64,
}

impl Fidelity {
    /// Compares `file` with `exact`, both as changes of `base`.
    pub fn of(base: &Snapshot, exact: &Snapshot, file: &Snapshot, direction: &SafetyDirection) -> Self {
        let harmful = |s: &Snapshot| s.along(PromptKind::Harmful, direction);
        let from_base =
            |s: &Snapshot| -> Vec<f64> { harmful(s).iter().zip(harmful(base)).map(|(a, b)| a - b).collect() };
        let (wanted, found) = (from_base(exact), from_base(file));
        let largest = wanted.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        let pairs = wanted.iter().zip(&found);
        let shift = pairs.clone().map(|(w, f)| (w.abs() > 0.01 * largest).then(|| f / w)).collect();
        let square: f64 = wanted.iter().map(|w| w * w).sum();
        let [kl_harmful, kl_harmless] =
            [PromptKind::Harmful, PromptKind::Harmless].map(|kind| exact.kl(file, kind));
        let mean_shift = pairs.map(|(w, f)| w * f).sum::<f64>() / square.max(f64::MIN_POSITIVE);
        Self { shift, mean_shift, kl_harmful, kl_harmless }
    }
}

/// Positions of prompts along ŝ before and after the edit: ŝᵀh of the residual stream at the last prompt token, in
/// units of the residual stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Projections {
    /// Layer after which [`Moved::before`] and [`Moved::after`] were taken: the last edited one, after which the
    /// residual stream holds the whole push.
    pub layer: usize,
    /// Prompts that should be refused.
    pub harmful: Moved,
    /// Prompts that should be answered.
    pub harmless: Moved,
    /// Prompts that only sound harmful.
    pub borderline: Moved,
}

/// Projections of the prompts of one kind, in f32 to keep the JSON short.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Moved {
    /// Projection of each prompt in the base.
    pub before: Vec<f32>,
    /// Projection of each prompt in the written file.
    pub after: Vec<f32>,
    /// Mean projection after each layer in the base.
    pub mean_before: Vec<f32>,
    /// Mean projection after each layer in the written file.
    pub mean_after: Vec<f32>,
}

impl Projections {
    /// Projects `base` and `file` on `direction`, with single prompts after `layer`, which the model must have.
    pub fn of(base: &Snapshot, file: &Snapshot, direction: &SafetyDirection, layer: usize) -> Self {
        let prompts = |s: &Snapshot, kind: PromptKind| -> Vec<f32> {
            let states = &s.residual[kind];
            let at = |prompt| states.at(prompt, layer).mapv(f64::from);
            (0..states.n_prompt()).map(|prompt| dot(at(prompt), direction) as f32).collect()
        };
        let mean = |s: &Snapshot, kind: PromptKind| -> Vec<f32> {
            s.along(kind, direction).into_iter().map(|v| v as f32).collect()
        };
        let PerKind { harmful, harmless, borderline } = PerKind::from_fn(|kind| Moved {
            before: prompts(base, kind),
            after: prompts(file, kind),
            mean_before: mean(base, kind),
            mean_after: mean(file, kind),
        });
        Self { layer, harmful, harmless, borderline }
    }

    /// Returns the projections by kind.
    pub fn by_kind(&self) -> PerKind<&Moved> {
        let Self { harmful, harmless, borderline, .. } = self;
        PerKind { harmful, harmless, borderline }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    /// One layer before the edit and one after; along the second of two coordinates.
    fn snapshot(harmful: [[f32; 2]; 2], harmless: [f32; 2]) -> Snapshot {
        let of = |prompts: &[[f32; 2]]| {
            Activations::of_residual(Array3::from_shape_fn((prompts.len(), 2, 2), |(prompt, layer, j)| {
                if j == 0 { 9.0 } else { prompts[prompt][layer] }
            }))
        };
        let logits = |n: usize| vec![vec![0.0, 1.0]; n];
        Snapshot {
            logits: PerKind { harmful: logits(2), harmless: logits(1), borderline: logits(0) },
            residual: PerKind { harmful: of(&harmful), harmless: of(&[harmless]), borderline: of(&[]) },
        }
    }

    #[test]
    fn a_file_is_measured_by_what_it_adds_to_the_base() {
        let base = snapshot([[1.0, 2.0], [3.0, 2.0]], [0.0, 1.0]);
        let exact = snapshot([[1.0, 4.0], [3.0, 4.0]], [0.0, 1.0]);
        let file = snapshot([[1.0, 3.0], [3.0, 3.5]], [0.0, 1.5]);
        let direction = SafetyDirection::new(0, &[0.0, 7.0]).unwrap();
        let fidelity = Fidelity::of(&base, &exact, &file, &direction);
        assert_eq!(fidelity.shift, [None, Some(0.625)]);
        assert_eq!((fidelity.mean_shift, fidelity.kl_harmful, fidelity.kl_harmless), (0.625, 0.0, 0.0));

        let moved = Projections::of(&base, &file, &direction, 1);
        assert_eq!((&moved.harmful.before, &moved.harmful.after), (&vec![2.0, 2.0], &vec![3.0, 3.5]));
        assert_eq!(
            (&moved.harmful.mean_before, &moved.harmless.mean_after),
            (&vec![2.0; 2], &vec![0.0, 1.5])
        );
        assert_eq!(moved.borderline, Moved::default());
    }
}
