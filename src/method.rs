//! The mathematics of an injection: directions, detectors, edits, requantization, and verification.

pub mod abliteration;
pub mod detector;
pub mod direction;
pub mod edit;
pub mod edits;
pub mod fidelity;
pub mod gate;
pub mod mean_push;
#[cfg(test)]
pub mod noise;
pub mod post_norm;
pub mod requant;
pub mod search;
pub mod stored;
pub mod verify;

pub use edits::Edits;
