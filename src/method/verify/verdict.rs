//! Decides whether a file is what it claims to be.

use super::{MIN_ALIKE, TensorChange, Verification};
use crate::gguf::GgmlType;

/// Maximum share of the edit in a file: rounding adds a few hundredths in two-bit types.
const MAX_GAIN: f64 = 1.25;
/// Maximum noise in units of 2^−b of the weights' size, where b is the type's bits per value. If the largest value of a
/// block is four times the root mean square, this is one step of the grid in every value.
const MAX_STEPS: f64 = 8.0;
/// Maximum noise in addition to those steps, relative to the size of the edit: in float types, and in block types,
/// whose codes move by whole steps.
const MAX_NOISE: [f64; 2] = [0.25, 2.0];
/// Maximum output of neurons orthogonal to their column, relative to their output along it.
const MAX_ACROSS: f64 = 1.0;

/// Why a file is not the base with the edit that it claims.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Shortfall {
    /// The file differs outside the edit.
    #[error("{first} differs outside the edit that the file claims (number of such tensors: {found})")]
    Elsewhere {
        /// Number of tensors that differ outside the edit.
        found: usize,
        /// Name of the first such tensor.
        first: String,
    },
    /// The metadata of the base was changed.
    #[error("the metadata of the base was changed")]
    Metadata,
    /// A measured figure is NaN or infinite.
    #[error("{name}: the change is not finite")]
    NotFinite {
        /// Name of the tensor.
        name: String,
    },
    /// The file claims an edit that cannot be measured.
    #[error("the edit that the file claims cannot be read from its rosi.* keys")]
    Unreadable,
    /// The file contains too little or too much of the edit.
    #[error("expected {least} to {MAX_GAIN} of the edit, found {found:.3}")]
    Gain {
        /// Minimum share of the edit.
        least: f64,
        /// Share of the edit in the file.
        found: f64,
    },
    /// The neurons of a network do not compute the requested function.
    #[error(
        "block {layer}: expected neurons with a gain of {least} to {MAX_GAIN}, a cosine and score of at least {MIN_ALIKE}, and noise up to {MAX_ACROSS}, found {gain:.3}, {cosine:.3}, {score:.3}, and {noise:.3}"
    )]
    Neurons {
        /// Block of the network.
        layer: usize,
        /// Minimum gain.
        least: f64,
        /// Share of the push in the file.
        gain: f64,
        /// Cosine of the output with the exact one.
        cosine: f64,
        /// Lowest correlation of a score with the exact one.
        score: f64,
        /// Output orthogonal to the column, relative to that along it.
        noise: f64,
    },
    /// A tensor changed by more than the edit and the rounding of its type.
    #[error("{name}: expected noise of at most {most:.4} of the weights, found {found:.4}")]
    Noise {
        /// Name of the tensor.
        name: String,
        /// Maximum noise that rounding explains, relative to the weights.
        most: f64,
        /// Measured noise, relative to the weights.
        found: f64,
    },
}

impl Verification {
    /// Checks that the edited file is the base with the claimed edit and nothing else; without a claim, that it is the
    /// base. `least` is the minimum share of the edit.
    ///
    /// # Errors
    /// Returns the first [`Shortfall`] found.
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

/// Rejects figures that are not finite, and more noise than the tensor's type explains.
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

/// Returns the maximum change of a matrix by rounding to a type, as a share of its size: [`MAX_STEPS`] · 2^−b, where b
/// is the type's bits per value; for floats, those of the mantissa.
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
        // Noise from docs/requant.md for an edit of 4 %, relative to the size of the edit.
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
