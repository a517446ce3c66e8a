//! A release: one edit in several quantizations, with a model card for Hugging Face.
//!
//! ```text
//! source (F16, BF16, Q8_0) ── llama_model_quantize ──▶ base quantization ──┐
//! existing quantization ───────────────────────────────────────────────────┤
//!                                     stored edit, edit-preserving ────────┴─▶ NAME-TYPE.gguf
//! ```
//!
//! The base is always quantized first, and the edit injected into the result: a 1 % edit is a fraction of a
//! quantization step, and rounding to nearest loses most of it (docs/requant.md). All files therefore have the same
//! edit, and each is verified against its own base.
//!
//! [`plan`] determines the files to make, [`quantize`] quantizes from full precision, [`state`] tracks completed files,
//! and [`card`] writes the model card.

pub mod card;
mod error;
mod ffi;
pub mod plan;
pub mod quantize;
pub mod state;

pub use error::ReleaseError;
