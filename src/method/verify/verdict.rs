//! Whether a file is what it says it is.

use super::{MIN_ALIKE, TensorChange, Verification};
use crate::gguf::GgmlType;

/// Most of the edit that a file may have: rounding adds a few hundredths, in types of two bits.
const MAX_GAIN: f64 = 1.25;
/// Most noise, in 2^−b of the weights' size, b the type's bits per value: where the largest value of a block is four times
/// their root mean square, that is one step of the grid in every value.
const MAX_STEPS: f64 = 8.0;
/// Most noise beside those steps, per size of the edit: in floats, and in blocks, whose codes move by whole steps.
const MAX_NOISE: [f64; 2] = [0.25, 2.0];
/// Most that neurons may write across their column, per what they write along it.
const MAX_ACROSS: f64 = 1.0;

/// Why a file is not the base with the edit that it claims.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Shortfall {
    /// It differs where the edit is not.
    #[error("{first} differs, and no edit that the file claims explains it (tensors of that kind: {found})")]
    Elsewhere {
        /// How many.
        found: usize,
        /// The first one.
        first: String,
    },
    /// Its metadata is not the base's.
    #[error("the metadata of the base was changed")]
    Metadata,
    /// A figure is no number.
    #[error("{name}: the change is not finite")]
    NotFinite {
        /// The tensor, or the block of neurons.
        name: String,
    },
    /// It claims an edit that cannot be measured.
    #[error("the file claims an edit that cannot be read from its rosi.* keys")]
    Unreadable,
    /// Too little or too much of the edit.
    #[error("expected {least} to {MAX_GAIN} of the edit, found {found:.3}")]
    Gain {
        /// The least.
        least: f64,
        /// What arrived.
        found: f64,
    },
    /// The neurons of a network do not compute what was asked for.
    #[error(
        "block {layer}: expected neurons with a gain of {least} to {MAX_GAIN}, a cosine and score of {MIN_ALIKE} or more and noise up to {MAX_ACROSS}, found {gain:.3}, {cosine:.3}, {score:.3} and {noise:.3}"
    )]
    Neurons {
        /// The block.
        layer: usize,
        /// The least gain.
        least: f64,
        /// Share of the push that arrived.
        gain: f64,
        /// Its cosine with the exact one.
        cosine: f64,
        /// Least correlation of a score with the exact one.
        score: f64,
        /// What is written across the column.
        noise: f64,
    },
    /// A tensor changed by more than the edit and the rounding of its type.
    #[error("{name}: expected noise of at most {most:.4} of the weights, found {found:.4}")]
    Noise {
        /// The tensor.
        name: String,
        /// The most that rounding explains.
        most: f64,
        /// What was found.
        found: f64,
    },
}

impl Verification {
    /// Whether the edited file is the base with the edit that it claims, and nothing else; without a claim, whether it is
    /// the base. `least` is the least share of the edit.
    ///
    /// # Errors
    /// [`Shortfall`], the first one that is found.
    pub fn check(&self, claims: bool, least: f64) -> Result<(), Shortfall> {
        if let Some(first) = self.unexpected.first() {
            return Err(Shortfall::Elsewhere { found: self.unexpected.len(), first: first.clone() });
        }
        if !self.metadata_preserved {
            return Err(Shortfall::Metadata);
        }
        if !claims {
            return Ok(());
        }
        for change in &self.tensors {
            check_tensor(change)?;
        }
        let found = self.gain.ok_or(Shortfall::Unreadable)?;
        if !(least..=MAX_GAIN).contains(&found) {
            return Err(Shortfall::Gain { least, found });
        }
        self.check_neurons(least)
    }

    fn check_neurons(&self, least: f64) -> Result<(), Shortfall> {
        let sound = |n: &&super::Arrival| {
            (least..=MAX_GAIN).contains(&n.gain)
                && n.cosine >= MIN_ALIKE
                && n.score >= MIN_ALIKE
                && n.noise <= MAX_ACROSS
        };
        match self.neurons.iter().find(|n| !sound(n)) {
            None => Ok(()),
            Some(&super::Arrival { layer, gain, cosine, score, noise, .. }) => {
                Err(Shortfall::Neurons { layer, least, gain, cosine, score, noise })
            }
        }
    }
}

/// Refuses what is no number, and more noise than the tensor's type explains.
fn check_tensor(change: &TensorChange) -> Result<(), Shortfall> {
    let figures = [Some(change.relative_change), change.gain, change.cosine, change.noise];
    if figures.into_iter().flatten().any(|figure| !figure.is_finite()) {
        return Err(Shortfall::NotFinite { name: change.name.clone() });
    }
    let (Some(asked), Some(noise)) = (change.requested_change, change.noise) else { return Ok(()) };
    let ggml_type = GgmlType::all().find(|t| t.name() == change.ggml_type);
    let beside = MAX_NOISE[usize::from(ggml_type.is_some_and(|t| !t.is_float()))];
    let (most, found) = (ggml_type.map_or(0.0, rounding) + beside * asked, noise * asked);
    match found > most {
        true => Err(Shortfall::Noise { name: change.name.clone(), most, found }),
        false => Ok(()),
    }
}

/// The most that rounding to a type may change a matrix by, as a share of its size: [`MAX_STEPS`] · 2^−b, b the type's bits per
/// value; of floats those of the mantissa.
pub(super) fn rounding(ggml_type: GgmlType) -> f64 {
    let bits = match ggml_type {
        GgmlType::F64 | GgmlType::F32 => 24.0,
        GgmlType::F16 => 11.0,
        GgmlType::BF16 => 8.0,
        blocks => 8.0 * blocks.block_bytes() as f64 / blocks.block_len() as f64,
    };
    MAX_STEPS * (-bits).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ggml_type: &str, asked: f64, noise: f64) -> TensorChange {
        TensorChange {
            name: "w".into(),
            ggml_type: ggml_type.into(),
            relative_change: asked,
            requested_change: Some(asked),
            gain: Some(1.0),
            cosine: Some(1.0),
            noise: Some(noise),
        }
    }

    #[test]
    fn noise_is_measured_by_the_steps_of_the_type() {
        // What docs/requant.md measured of an edit of 4 %, per size of the edit.
        let measured = [("F16", 0.007), ("Q8_0", 0.271), ("Q4_K", 1.69), ("Q2_K", 3.38), ("IQ1_S", 4.4)];
        for (ggml_type, noise) in measured {
            assert_eq!(check_tensor(&of(ggml_type, 0.04, noise)), Ok(()), "{ggml_type}");
        }
        for (ggml_type, noise) in [("F32", 0.3), ("F16", 0.4), ("Q8_0", 3.0), ("Q4_K", 12.0)] {
            let told = check_tensor(&of(ggml_type, 0.04, noise));
            assert!(matches!(told, Err(Shortfall::Noise { .. })), "{ggml_type}: {told:?}");
        }
    }

    #[test]
    fn a_figure_that_is_no_number_is_never_sound() {
        for bad in [f64::NAN, f64::INFINITY] {
            for change in [
                TensorChange { relative_change: bad, ..of("F32", 0.04, 0.0) },
                TensorChange { gain: Some(bad), ..of("F32", 0.04, 0.0) },
                of("F32", 0.04, bad),
            ] {
                assert!(matches!(check_tensor(&change), Err(Shortfall::NotFinite { .. })), "{change:?}");
            }
        }
    }
}
