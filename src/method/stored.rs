//! A chosen edit in one file, to be applied to any quantization of the model that it was found on.
//!
//! The file is a safetensors file, read and written by the crate of that name: a format that everything
//! in the field opens, made to be read from strangers (the crate checks every length, offset and overlap
//! in its header), and one that nobody takes for a model or an adapter, as they might a GGUF of ours.
//!
//! ```text
//! __metadata__.rosi   Facts as JSON. One key, for the crate keeps keys in no fixed order and the
//!                     same run is to give the same bytes
//! direction           ŝ, F32 [n_embd]; [n_layer, n_embd] where layers have their own, along an ablated direction and with detectors
//! right.TENSOR        right factor of a writer that the edit uses, F32 [n_expert, n_in]
//! mean.TENSOR         its mean input at the last token of harmful prompts, F32 [n_in]; of a mixture
//!                     [n_expert, n_in], what was routed to an expert times the router's weight, and
//!                     0 where it was not; missing where that was not seen
//! diagonal.TENSOR     what is known of its inputs (InputModel), F32 [n_in]
//! principal.TENSOR    the same, F32 [k, n_in]
//! scoresT.TENSOR      w of the gates of the network that TENSOR ends, T tokens before the last, F32 [n_gate, n_embd]
//! constantT.TENSOR    their u, F32 [n_embd]
//! towardT.TENSOR      what they push along, where that is not the direction, F32 [n_embd]
//! network_inputsT.TENSOR  inputs for which its rows are rounded, F32 [n, n_embd]
//! sketch.TENSOR       of the fingerprint, F32 [512]
//! ```
//!
//! The input models are stored although they make up most of the file (5 MB beside the 400 MB of a model
//! of 0.5 billion weights; the share falls with size), because requantization is better with them and
//! they are the same for all quantizations of a model: so the file that is written from a stored edit is,
//! tensor by tensor, the one that the search itself would have written.
//!
//! A file may come from anywhere, so nothing in it is trusted: every number must be finite and of a
//! sensible size, the strength positive, every name and size that of a writer of the shape in it.

mod error;
mod file;
pub mod fingerprint;
pub mod network;

use serde::{Deserialize, Serialize};

use crate::method::direction::{SafetyDirection, Separation};
use crate::method::edit::Method;
use crate::method::search::Candidate;
use crate::quant::preserve::InputModel;

pub use error::{Problem, StoredError};
use fingerprint::Fingerprint;
use network::{NetworkFacts, StoredNetwork};

/// Version of the format.
pub const FORMAT: u32 = 1;

/// What an edit file says in words and numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the tool that wrote it.
    pub version: String,
    /// Version of its llama.cpp.
    pub llama_cpp: String,
    /// How the right factors were chosen.
    pub method: Method,
    /// `none`, `safety` or `user`: the system prompt while the direction was extracted.
    pub system_prompt: String,
    /// Direction source, layer, window and contrast that were chosen.
    pub chosen: Candidate,
    /// Relative Frobenius change that was chosen; of detectors, how far they push.
    pub strength: f64,
    /// ‖s‖ of each direction, in units of the residual stream.
    pub norms: Vec<f64>,
    /// Σ over writers of α·rightᵀ mean(x_harmful), in units of ‖s‖.
    pub push: f64,
    /// Hash of the prompt set.
    pub prompts_sha256: String,
    /// Hash of the model file that it was found on.
    pub input_sha256: String,
    /// Separation per layer.
    pub separation: Vec<Separation>,
    /// Networks with gates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkFacts>,
    /// What model it is for.
    pub model: Fingerprint,
}

impl Facts {
    /// How strong it is, for people.
    pub fn size(&self) -> String {
        self.method.size(self.strength)
    }

    /// What the edit is along, for people.
    pub fn along(&self) -> String {
        self.chosen.direction_source.along(self.chosen.layer, &self.system_prompt)
    }
}

/// What the edit has of one writer.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredWriter {
    /// Name of the tensor.
    pub tensor: String,
    /// Right factor, f32 `[n_expert][n_in]`.
    pub right: Vec<f32>,
    /// Mean input at the last token of harmful prompts, f32 `[n_expert][n_in]`, with the router's weights;
    /// empty for experts that were not looked at.
    pub mean: Vec<f32>,
    /// What is known of its inputs; may be empty.
    pub inputs: InputModel,
}

/// A stored edit.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEdit {
    /// Words and numbers.
    pub facts: Facts,
    /// ŝ: one, or one per layer in order.
    pub directions: Vec<SafetyDirection>,
    /// The writers that the edit uses, in the plan's order; none where it has gates of networks.
    pub writers: Vec<StoredWriter>,
    /// The networks with gates, by block.
    pub networks: Vec<StoredNetwork>,
}

#[cfg(test)]
mod tests;
