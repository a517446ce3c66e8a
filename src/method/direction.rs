//! Safety directions: the difference in means per layer, and how well it separates the two sets of prompts.

use serde::{Deserialize, Serialize};

use crate::llama::activations::Activations;
use crate::util::null;
use crate::util::stats::{auroc, d_prime};

/// Why there is no usable direction.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum DirectionError {
    /// The vector is zero or not finite.
    #[error("the difference in means at layer {layer} has norm {norm}, expected a positive finite number")]
    NoDirection {
        /// Layer of the direction.
        layer: usize,
        /// Norm of the vector.
        norm: f64,
    },
    /// The vector does not have unit length.
    #[error("the direction of layer {layer} has length {length}, expected 1")]
    NotUnit {
        /// Layer of the direction.
        layer: usize,
        /// Length of the vector.
        length: f64,
    },
    /// A set has fewer than two prompts.
    #[error("expected at least 2 harmful and 2 harmless prompts, found {harmful} and {harmless}")]
    Empty {
        /// Number of harmful prompts.
        harmful: usize,
        /// Number of harmless prompts.
        harmless: usize,
    },
}

/// The unit vector ŝ of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct SafetyDirection {
    layer: usize,
    unit: Vec<f32>,
    norm: f64,
}

impl SafetyDirection {
    /// Normalizes `s` (`[n_embd]`, f64): ŝ = s/‖s‖.
    ///
    /// # Errors
    /// Returns [`DirectionError::NoDirection`] if ‖s‖ is (almost) zero or not finite.
    pub fn new(layer: usize, s: &[f64]) -> Result<Self, DirectionError> {
        let norm = s.iter().map(|v| v * v).sum::<f64>().sqrt();
        if !norm.is_finite() || norm <= f64::from(f32::MIN_POSITIVE) {
            return Err(DirectionError::NoDirection { layer, norm });
        }
        let unit = s.iter().map(|v| (v / norm) as f32).collect();
        Ok(Self { layer, unit, norm })
    }

    /// Creates a direction from ŝ, f32 `[n_embd]`, and the norm of s.
    ///
    /// # Errors
    /// Returns [`DirectionError::NotUnit`] if ‖ŝ‖ is not 1 within 10⁻³, and [`DirectionError::NoDirection`] if `norm`
    /// is not positive and finite.
    pub fn from_unit(layer: usize, unit: Vec<f32>, norm: f64) -> Result<Self, DirectionError> {
        let length = unit.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if !(0.999..=1.001).contains(&length) {
            return Err(DirectionError::NotUnit { layer, length });
        }
        if !norm.is_finite() || norm <= f64::from(f32::MIN_POSITIVE) {
            return Err(DirectionError::NoDirection { layer, norm });
        }
        Ok(Self { layer, unit, norm })
    }

    /// Returns the layer after which the direction was measured, counted from 0.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Returns ŝ, `[n_embd]`; ‖ŝ‖ = 1 up to f32 rounding for [`Self::new`], within 10⁻³ for [`Self::from_unit`].
    pub fn unit(&self) -> &[f32] {
        &self.unit
    }

    /// Returns ‖s‖, in units of the residual stream.
    pub fn norm(&self) -> f64 {
        self.norm
    }
}

/// The directions along which writers are edited: one for all writers, or one per layer.
#[derive(Debug, Clone, Copy)]
pub enum Along<'a> {
    /// The same direction for all writers.
    One(&'a SafetyDirection),
    /// One direction per layer, in order; must not be empty.
    Layers(&'a [SafetyDirection]),
}

impl<'a> Along<'a> {
    /// Returns ŝ for the writers of `layer`; past the last layer, that of the last layer.
    pub fn at(self, layer: usize) -> &'a SafetyDirection {
        match self {
            Self::One(direction) => direction,
            Self::Layers(directions) => &directions[layer.min(directions.len() - 1)],
        }
    }

    /// Returns the direction of `layer` if all layers have the same ŝ, else the directions of all layers.
    pub fn distinct(self, layer: usize) -> Vec<SafetyDirection> {
        match self {
            Self::Layers(all) if all.iter().any(|d| d.unit() != all[0].unit()) => all.to_vec(),
            _ => vec![self.at(layer).clone()],
        }
    }
}

impl<'a> From<&'a SafetyDirection> for Along<'a> {
    fn from(direction: &'a SafetyDirection) -> Self {
        Self::One(direction)
    }
}

/// Returns a random unit vector for controls, from standard normal coordinates (Box-Muller over SplitMix64).
///
/// # Errors
/// Returns [`DirectionError::NoDirection`] if `n_embd` is 0.
pub fn random(layer: usize, n_embd: usize, seed: u64) -> Result<SafetyDirection, DirectionError> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut normal = || (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    SafetyDirection::new(layer, &(0..n_embd).map(|_| normal()).collect::<Vec<_>>())
}

/// How well one layer separates harmful from harmless prompts along its own ŝ. Each prompt is projected on the
/// direction computed without it, so that no prompt is measured on a direction that it helped to make.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Separation {
    /// Layer, counted from 0.
    pub layer: usize,
    /// ‖s‖, in units of the residual stream.
    pub norm: f64,
    /// ‖s‖ divided by the mean norm of the residual stream on harmless prompts, a scale-free size.
    pub relative_norm: f64,
    /// Area under the ROC curve of the projections.
    #[serde(deserialize_with = "null::or_nan")]
    pub auroc: f64,
    /// d′ of the projections, in standard deviations.
    #[serde(deserialize_with = "null::or_nan")]
    pub d_prime: f64,
}

/// Directions and separations of all layers.
#[derive(Debug, Clone)]
pub struct Directions {
    /// ŝ per layer, in order; a layer without a direction has that of the next layer.
    pub by_layer: Vec<SafetyDirection>,
    /// Statistics per layer, in order.
    pub separation: Vec<Separation>,
}

/// Computes `s(l) = mean_harmful(h_l) − mean_harmless(h_l)` at the last prompt token of every layer `l`;
/// h f32 `[n_prompt][n_layer][n_embd]`, f64 accumulators; arXiv 2508.20766 Eq. 3.
///
/// If `s(l)` is zero, the direction of the next layer replaces it: initial blocks that are short convolutions see the
/// end of the template, never the prompt.
///
/// # Errors
/// Returns [`DirectionError`] if a set has fewer than two prompts, the last difference is zero, or one is not finite.
pub fn difference_in_means(
    harmful: &Activations,
    harmless: &Activations,
) -> Result<Directions, DirectionError> {
    if harmful.n_prompt() < 2 || harmless.n_prompt() < 2 {
        return Err(DirectionError::Empty { harmful: harmful.n_prompt(), harmless: harmless.n_prompt() });
    }
    let mut directions = Directions { by_layer: Vec::new(), separation: Vec::new() };
    // From the last layer down, so that a layer without a direction finds that of the next one.
    for layer in (0..harmful.residual.shape()[1]).rev() {
        let (mean_a, mean_b) = (harmful.mean(layer), harmless.mean(layer));
        let s: Vec<f64> = mean_a.iter().zip(&mean_b).map(|(a, b)| a - b).collect();
        let direction = match (SafetyDirection::new(layer, &s), directions.by_layer.last()) {
            (Err(DirectionError::NoDirection { norm, .. }), Some(next)) if norm.is_finite() => {
                SafetyDirection { layer, ..SafetyDirection::clone(next) }
            }
            (own, _) => own?,
        };
        directions.separation.push(separation(harmful, harmless, &direction, &mean_a, &mean_b));
        directions.by_layer.push(direction);
    }
    directions.separation.reverse();
    directions.by_layer.reverse();
    Ok(directions)
}

/// Returns the projections of one set on the directions computed without the projected prompt: for prompt i of n, the
/// mean of its own set without it is `(n·m − x_i)/(n − 1)`, so `s_i = ±(m_without_i − m_other)`.
fn held_out_projections(set: &Activations, layer: usize, own: &[f64], other: &[f64], sign: f64) -> Vec<f64> {
    let n = set.n_prompt() as f64;
    (0..set.n_prompt())
        .map(|i| {
            let (mut dot, mut norm) = (0.0, 0.0);
            for ((&x, &m), &o) in set.at(i, layer).iter().zip(own).zip(other) {
                let x = f64::from(x);
                let s = sign * ((n * m - x) / (n - 1.0) - o);
                dot += s * (x - 0.5 * (m + o));
                norm += s * s;
            }
            dot / norm.sqrt().max(f64::MIN_POSITIVE)
        })
        .collect()
}

fn separation(
    harmful: &Activations,
    harmless: &Activations,
    direction: &SafetyDirection,
    mean_harmful: &[f64],
    mean_harmless: &[f64],
) -> Separation {
    let layer = direction.layer();
    let positive = held_out_projections(harmful, layer, mean_harmful, mean_harmless, 1.0);
    let negative = held_out_projections(harmless, layer, mean_harmless, mean_harmful, -1.0);
    let norms = (0..harmless.n_prompt())
        .map(|i| harmless.at(i, layer).iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt());
    let mean_norm = norms.sum::<f64>() / harmless.n_prompt() as f64;
    Separation {
        layer,
        norm: direction.norm(),
        relative_norm: direction.norm() / mean_norm.max(f64::MIN_POSITIVE),
        auroc: auroc(&positive, &negative),
        d_prime: d_prime(&positive, &negative),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    fn activations(rows: &[[f32; 2]]) -> Activations {
        let flat = rows.iter().flatten().copied().collect();
        Activations::of_residual(Array3::from_shape_vec((rows.len(), 1, 2), flat).unwrap())
    }

    #[test]
    fn direction_is_the_unit_difference() {
        let a = activations(&[[3.0, 5.0], [3.0, 3.0]]);
        let b = activations(&[[0.0, 0.0], [0.0, 0.0]]);
        let d = difference_in_means(&a, &b).unwrap();
        assert!((d.by_layer[0].norm() - 5.0).abs() < 1e-12);
        assert_eq!(d.by_layer[0].unit(), &[0.6, 0.8]);
        assert_eq!(d.separation[0].auroc, 1.0);
    }

    /// Regression test from a generated LFM2, whose first block convolves three tokens, all from the template.
    #[test]
    fn a_layer_that_sees_no_prompt_has_the_next_layers_direction() {
        let of = |rows: [[f32; 4]; 2]| {
            Activations::of_residual(Array3::from_shape_vec((2, 2, 2), rows.concat()).unwrap())
        };
        let harmful = of([[1.0, 2.0, 3.0, 5.0], [1.0, 2.0, 3.0, 3.0]]);
        let d = difference_in_means(&harmful, &of([[1.0, 2.0, 0.0, 0.0]; 2])).unwrap();
        assert_eq!((d.by_layer[0].layer(), d.by_layer[1].layer()), (0, 1));
        assert_eq!(d.by_layer[0].unit(), &[0.6, 0.8]);
        assert_eq!((d.separation[0].auroc, d.separation[1].auroc), (0.5, 1.0));
        assert_eq!(d.separation[0].layer, 0);
        let none = of([[1.0, 2.0, 0.0, 0.0]; 2]);
        assert!(matches!(difference_in_means(&none, &none), Err(DirectionError::NoDirection { .. })));
    }

    #[test]
    fn separation_of_noise_is_not_flattered() {
        // Two sets from one high-dimensional distribution, for which the in-sample AUROC would be near 1.
        let mut seed = 1u32;
        let mut noise = |n: usize| -> Activations {
            let mut next = || {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            let data = (0..n * 256).map(|_| next()).collect();
            Activations::of_residual(Array3::from_shape_vec((n, 1, 256), data).unwrap())
        };
        let (a, b) = (noise(32), noise(32));
        let auroc = difference_in_means(&a, &b).unwrap().separation[0].auroc;
        assert!(auroc < 0.75, "{auroc}");
    }

    #[test]
    fn no_difference_is_an_error() {
        let a = activations(&[[1.0, 1.0], [1.0, 1.0]]);
        assert!(matches!(difference_in_means(&a, &a), Err(DirectionError::NoDirection { .. })));
        assert!(SafetyDirection::new(0, &[f64::NAN]).is_err());
        for (unit, norm) in
            [([0.6, 0.7], 1.0), ([0.6, f32::NAN], 1.0), ([0.6, 0.8], 0.0), ([0.6, 0.8], f64::NAN)]
        {
            assert!(SafetyDirection::from_unit(0, unit.to_vec(), norm).is_err(), "{unit:?} {norm}");
        }
        assert_eq!(SafetyDirection::from_unit(0, vec![0.6, 0.8], 5.0), SafetyDirection::new(0, &[3.0, 4.0]));
        let one = activations(&[[1.0, 1.0]]);
        assert!(matches!(difference_in_means(&one, &a), Err(DirectionError::Empty { .. })));
    }
}
