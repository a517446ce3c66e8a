//! Restores NaN and ±∞, which JSON writes as `null`. The functions are for `#[serde(deserialize_with = "…")]`.

use serde::{Deserialize, Deserializer};

/// Reads a number; `null` becomes NaN.
///
/// # Errors
/// Returns the deserializer's error if the value is neither a number nor `null`.
pub fn or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    number_or(f64::NAN, from)
}

/// Reads a number; `null` becomes +∞, such as the KL divergence of logits that are not finite.
///
/// # Errors
/// Returns the deserializer's error if the value is neither a number nor `null`.
pub fn or_infinity<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    number_or(f64::INFINITY, from)
}

/// Reads a number; `null` becomes −∞, such as the utility of an edit that breaks the model.
///
/// # Errors
/// Returns the deserializer's error if the value is neither a number nor `null`.
pub fn or_minus_infinity<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    number_or(f64::NEG_INFINITY, from)
}

fn number_or<'de, D: Deserializer<'de>>(null: f64, from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(null))
}
