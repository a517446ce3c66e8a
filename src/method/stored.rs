//! Stores a chosen edit in a file, from which it can be applied to any quantization of the model that it was found on.
//!
//! The file is a safetensors file, read and written by the crate of that name. This format is widely supported and
//! designed for untrusted files (the crate checks every length, offset, and overlap in the header). Unlike a custom
//! GGUF file, it cannot be mistaken for a model or an adapter.
//!
//! ```text
//! __metadata__.rosi   Facts as JSON; a single key, because the crate does not keep keys in a fixed order and the same
//!                     run must give the same bytes
//! direction           ŝ, F32 [n_embd]; [n_layer, n_embd] for an ablated direction or detectors with one per layer
//! right.TENSOR        right factor of a writer that the edit uses, F32 [n_expert, n_in]
//! mean.TENSOR         its mean input at the last token of harmful prompts, F32 [n_in]; for a mixture
//!                     [n_expert, n_in], the inputs routed to an expert times the router weight, 0 for other
//!                     tokens; missing if experts were not captured
//! diagonal.TENSOR     model of its inputs (InputModel), diagonal, F32 [n_in]
//! principal.TENSOR    model of its inputs, principal components, F32 [k, n_in]
//! scoresT.TENSOR      w of the gates T tokens before the last one, in the network whose writer is TENSOR,
//!                     F32 [n_gate, n_embd]
//! constantT.TENSOR    u of these gates, F32 [n_embd]
//! towardT.TENSOR      direction of their push, if it differs from `direction`, F32 [n_embd]
//! network_inputsT.TENSOR  inputs for which the network's rows are rounded, F32 [n, n_embd]
//! sketch.TENSOR       sketch of the fingerprint, F32 [512]
//! ```
//!
//! The input models make up most of the file (5 MB for the 400 MB of a model with 0.5 billion weights; the share falls
//! with size). They are stored because they improve requantization and are the same for all quantizations of a model.
//! So a file written from a stored edit is, tensor by tensor, the one that the search itself would have written.
//!
//! Edit files can come from untrusted sources, so everything is checked: every number must be finite and of plausible
//! size, the strength must be positive, and every name and size must match a writer of the shape in the file.

mod error;
mod file;
pub mod fingerprint;
pub mod network;

use serde::{Deserialize, Serialize};

use crate::method::direction::{SafetyDirection, Separation};
use crate::method::edit::Method;
use crate::method::search::{Candidate, ExtractionPrompt};
use crate::quant::preserve::InputModel;

pub use error::{Problem, StoredError};
use fingerprint::Fingerprint;
use network::{NetworkFacts, StoredNetwork};

/// Version of the format.
pub const FORMAT: u32 = 1;

/// The metadata of an edit file: everything except arrays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Version of the file format, [`FORMAT`].
    pub format: u32,
    /// Version of the tool that wrote the file.
    pub version: String,
    /// Version of llama.cpp in that tool.
    pub llama_cpp: String,
    /// How the weights are edited.
    pub method: Method,
    /// System prompt under which the direction was extracted.
    pub system_prompt: ExtractionPrompt,
    /// Chosen direction source, layer, window, and contrast.
    pub chosen: Candidate,
    /// Chosen relative Frobenius change; the push for detectors.
    pub strength: f64,
    /// ‖s‖ of each direction, in units of the residual stream.
    pub norms: Vec<f64>,
    /// Σ over writers of α·rightᵀ mean(x_harmful), in units of ‖s‖.
    pub push: f64,
    /// Hash of the prompt set.
    pub prompts_sha256: String,
    /// Hash of the model file on which the edit was found.
    pub input_sha256: String,
    /// Separation of harmful and harmless prompts, per layer.
    pub separation: Vec<Separation>,
    /// Networks with gates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkFacts>,
    /// Fingerprint of the model for which the edit was made.
    pub model: Fingerprint,
}

impl Facts {
    /// Formats the strength for display.
    pub fn size(&self) -> String {
        self.method.size(self.strength)
    }

    /// Describes the direction of the edit for display.
    pub fn along(&self) -> String {
        self.chosen.direction_source.along(self.chosen.layer, self.system_prompt)
    }
}

/// The part of an edit that belongs to one writer.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredWriter {
    /// Name of the tensor.
    pub tensor: String,
    /// Right factor, f32 `[n_expert][n_in]`.
    pub right: Vec<f32>,
    /// Mean input at the last token of harmful prompts, f32 `[n_expert][n_in]`, weighted by the router; empty if the
    /// inputs of the experts were not captured.
    pub mean: Vec<f32>,
    /// Model of the writer's inputs; can be empty.
    pub inputs: InputModel,
}

/// A stored edit.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEdit {
    /// Metadata of the edit.
    pub facts: Facts,
    /// ŝ: a single direction, or one per layer in order.
    pub directions: Vec<SafetyDirection>,
    /// Edited writers, in the plan's order; empty for detectors.
    pub writers: Vec<StoredWriter>,
    /// Networks with gates, by block; empty without detectors.
    pub networks: Vec<StoredNetwork>,
}

#[cfg(test)]
mod tests;
