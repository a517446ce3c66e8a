//! A release: one edit in every quantization that people ask for, with what Hugging Face shows of it.
//!
//! ```text
//! source (F16, BF16, Q8_0) ── llama_model_quantize ──▶ base quantization ──┐
//! existing quantization ───────────────────────────────────────────────────┤
//!                                     stored edit, edit-preserving ────────┴─▶ NAME-TYPE.gguf
//! ```
//!
//! The base is quantized first and the edit injected into the result, never the other way round: a 1 %
//! edit is a fraction of a quantization step, and rounding to nearest loses most of it (docs/requant.md).
//! So all files have the same edit, and each of them is verified against its own base, from the files.
//!
//! [`plan`] are the files that follow from what is asked for, [`quantize`] the way from
//! full precision, [`state`] what is done already, [`card`] what is told.

pub mod card;
mod error;
mod ffi;
pub mod plan;
pub mod quantize;
pub mod state;

pub use error::ReleaseError;
