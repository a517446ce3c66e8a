//! Restores NaN and ±∞, which JSON writes as `null`. Functions for
//! `#[serde(deserialize_with = "…")]` that read it back as what it was.

use serde::{Deserialize, Deserializer};

/// `null` was not a number.
///
/// # Errors
/// Those of the format.
pub fn or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    number_or(f64::NAN, from)
}

/// `null` was above every number, as the divergence of broken logits is.
///
/// # Errors
/// Those of the format.
pub fn or_infinity<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    number_or(f64::INFINITY, from)
}

/// `null` was below every number, as the use of a broken edit is.
///
/// # Errors
/// Those of the format.
pub fn or_minus_infinity<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    number_or(f64::NEG_INFINITY, from)
}

fn number_or<'de, D: Deserializer<'de>>(null: f64, from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(null))
}
