//! Rank-one safety injection (ROSI, arXiv 2508.20766) for GGUF models: makes a quantized language model refuse more
//! harmful requests by editing the weights in its file. The program `rosi-gguf` runs all steps; this library provides
//! them individually.
//!
//! The modules, in the order of a run:
//!
//! | | |
//! |---|---|
//! | [`open`] | opens a model file and checks its header |
//! | [`plan`] | finds the matrices that write into the residual stream, and the networks that can hold detectors |
//! | [`collect`] | runs the model on prompts with llama.cpp and collects its hidden states |
//! | [`direction`] | computes the direction of refusal from the hidden states |
//! | [`detector`] | trains neurons that detect harmful and borderline prompts |
//! | [`edit`] | computes weight edits and applies them to quantized tensors |
//! | [`write`](mod@write) | writes complete copies atomically, and reverts in-place changes |
//! | [`verify`] | compares two files |
//!
//! Example: the paper's edit along a direction that you supply:
//!
//! ```
//! use rosi_gguf::direction::SafetyDirection;
//! use rosi_gguf::edit::{InputModel, Requant, apply, edits, mean_rows, read_weights};
//! use rosi_gguf::open::{Gguf, TensorInfo};
//! use rosi_gguf::plan::plan_of;
//! use rosi_gguf::verify::verify;
//! use rosi_gguf::write::{AtomicFile, Rewrite};
//!
//! # use rosi_gguf::gguf::{GgufBuilder, Value};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (model, copy) = (dir.path().join("model.gguf"), dir.path().join("model-rosi.gguf"));
//! # let weights: Vec<f32> = (0..64).map(|i| ((i * 37) % 17) as f32 - 8.0).collect();
//! # let tiny = GgufBuilder::new()
//! #     .string("general.architecture", "llama")
//! #     .kv("llama.block_count", Value::U32(1))
//! #     .kv("llama.embedding_length", Value::U32(8))
//! #     .f32_tensor("token_embd.weight", &[8, 2], &[0.5; 16])
//! #     .f32_tensor("blk.0.attn_output.weight", &[8, 8], &weights)
//! #     .f32_tensor("blk.0.ffn_down.weight", &[8, 8], &weights);
//! # tiny.write_to(&mut std::fs::File::create(&model)?)?;
//! # let s = [0.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0];
//! // Check the header, and find the matrices that write into the residual stream.
//! let base = Gguf::open(&model)?;
//! let plan = plan_of(&base)?;
//!
//! // Edit along s, the difference in means of your activations after layer 0, by 2 % of the weights' norm.
//! // To use an edit stored by `rosi-gguf search`, call `edit::StoredEdit::open`.
//! let direction = SafetyDirection::new(0, &s)?;
//! let weights = plan.writers.iter().map(|writer| read_weights(&base, writer));
//! let weights = weights.collect::<Result<Vec<_>, _>>()?;
//! let edits = edits(&plan, &weights, &mean_rows(&weights), &direction, 0.02)?;
//!
//! // The copy gets its final name when it is complete; tensors outside the edit keep their bytes.
//! let mut file = AtomicFile::create(&copy, false)?;
//! let mut replace = |tensor: &TensorInfo| {
//!     let Some(edit) = edits.iter().find(|edit| edit.tensor == tensor.name) else { return Ok(None) };
//!     let bytes = base.read_tensor(tensor)?;
//!     Ok(Some(apply(edit, tensor, bytes, Requant::Preserve, &InputModel::default())?))
//! };
//! Rewrite::copy(&base).write_to(&mut file, &mut replace, &mut |_, _| Ok(()))?;
//! file.commit()?;
//!
//! let found = verify(&base, &Gguf::open(&copy)?, &edits.into(), &mut |_, _| ())?;
//! assert!(found.untouched_identical && found.gain.is_some_and(|gain| gain > 0.9));
//! # Ok(())
//! # }
//! ```

// Only `output` may print, and nothing in a file, a model or user input may cause a panic.
#![warn(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used)]

/// Opens model files.
///
/// [`Gguf::open`](open::Gguf::open) reads the header and checks every number in it against the file's size before using
/// it to allocate memory. To open a split model, pass its first file.
pub mod open {
    pub use crate::gguf::{GgmlType, Gguf, GgufError, KeyValue, Malformed, TensorInfo, Value};
    pub use crate::util::hint::Hint;
}

/// Finds the editable parts of a model.
///
/// A [`Plan`](plan::Plan) applies the description of an architecture ([`Patches`](plan::Patches), from
/// `patches/*.toml`) to one file.
pub mod plan {
    pub use crate::arch::patches::{ArchPatch, PatchError, Patches, ResidualAxis};
    pub use crate::arch::plan::{Ffn, Plan, PlanError, PlanWarning, ResidualWriter};
    pub use crate::arch::window::Window;
    pub use crate::pipeline::plan_of;
}

/// Collects hidden states on prompts.
///
/// A [`Capture`](collect::Capture) selects tensors of the compute graph, and an [`Engine`](collect::Engine) collects
/// them as [`Activations`](collect::Activations). [`PromptSet::bundled`](collect::PromptSet::bundled) returns the
/// bundled prompts.
pub mod collect {
    pub use crate::eval::chats;
    pub use crate::eval::prompts::{PromptKind, PromptSet, Split};
    pub use crate::llama::activations::{Activations, WriterInputs};
    pub use crate::llama::offload::Offload;
    pub use crate::llama::{Capture, Chat, Engine, EngineOptions, LlamaEngine, LlamaError};
}

/// Computes the direction of refusal in the residual stream.
///
/// [`difference_in_means`](direction::difference_in_means) computes it from the hidden states of harmful and harmless
/// prompts.
pub mod direction {
    pub use crate::method::direction::{
        Along, DirectionError, Directions, SafetyDirection, Separation, difference_in_means,
    };
}

/// Trains detector neurons.
///
/// A [`Teacher`](detector::Teacher) trains a [`Gate`](detector::Gate) on [`Examples`](detector::Examples) of a
/// network's inputs. Gates and their pushes form a [`Bank`](detector::Bank), which
/// [`PlantedFfn::fit`](detector::PlantedFfn::fit) turns into neurons for the quantization types of a file.
///
/// ```
/// use ndarray::Array2;
/// use rosi_gguf::collect::PromptKind;
/// use rosi_gguf::detector::{Activation, Context, Examples, Label, Opens, Recipe, Shut, Teacher, constant};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Synthetic inputs of 16 values. The first value marks harmful prompts, the last one the ends of prompts.
/// let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) as f32 * 0.618).sin();
/// let labels: Vec<Label> = (0..300)
///     .map(|i| Label { kind: PromptKind::ALL[i % 3], context: Context::Plain, request: i, lookalike: false })
///     .collect();
/// let inputs = Array2::from_shape_fn((300, 16), |(i, j)| match j {
///     0 if labels[i].kind == PromptKind::Harmful => noise(i, j) + 3.0,
///     15 => noise(i, j) + 6.0,
///     _ => noise(i, j),
/// });
/// let elsewhere = Array2::from_shape_fn((200, 16), |(i, j)| noise(i + 1000, j));
/// let examples = Examples { inputs, labels, other_tokens: elsewhere.clone(), elsewhere };
///
/// let shut = Shut { harmless: 0.97, other: 0.95 };
/// let recipe = Recipe { ridge: 0.03, width: 0.7, harmful: shut, lookalike: shut, borderline: shut };
/// let u = constant(&examples)?;
/// let gate = Teacher::new(&examples, &u, recipe).learn(Opens::Harmful)?.gate;
/// let open = gate.openings(&u, examples.inputs.view(), Activation::Silu);
/// let mean = |kind: usize| open.iter().skip(kind).step_by(3).sum::<f64>() / 100.0;
/// assert!(mean(0) > 0.5 && mean(1) < 0.05 && mean(2) < 0.05);
/// # Ok(())
/// # }
/// ```
pub mod detector {
    pub use crate::eval::prompts::contexts::Context;
    pub use crate::method::detector::ffn::{Activation, Network, Place};
    pub use crate::method::detector::train::{
        Examples, Histogram, Label, LearnedGate, Profile, Recipe, Shut, Teacher, constant,
    };
    pub use crate::method::detector::{Bank, Gate, Opens, PlantedFfn};
}

/// Computes weight edits and applies them to quantized tensors.
///
/// [`edits`](edit::edits) makes one [`Edit`](edit::Edit) per residual writer; [`apply`](edit::apply) requantizes a
/// tensor so that the edit survives. `rosi-gguf search` saves its result as a [`StoredEdit`](edit::StoredEdit).
pub mod edit {
    pub use crate::method::Edits;
    pub use crate::method::edit::{Edit, EditError, WriterWeights, edits, mean_rows, read_weights};
    pub use crate::method::requant::{Requant, apply};
    pub use crate::method::stored::{StoredEdit, StoredError};
    pub use crate::quant::preserve::InputModel;
}

/// Writes files atomically.
///
/// An [`AtomicFile`](write::AtomicFile) gets its final name when it is complete. A [`Rewrite`](write::Rewrite) copies a
/// model byte for byte, except for replaced data.
pub mod write {
    pub use crate::gguf::in_place::{UndoError, undo};
    pub use crate::gguf::{AtomicFile, AtomicModel, Rewrite};
}

/// Compares two files without running the models.
pub mod verify {
    pub use crate::method::verify::{Shortfall, TensorChange, Verification, VerifyError, verify};
}

// Internal modules for the program, tests and benchmarks, without stability guarantees. tests/integration/layers.rs
// defines which of them may import each other.
#[doc(hidden)]
pub mod arch;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod eval;
#[doc(hidden)]
pub mod gguf;
#[doc(hidden)]
pub mod imatrix;
#[doc(hidden)]
pub mod llama;
#[doc(hidden)]
pub mod method;
#[doc(hidden)]
pub mod output;
#[doc(hidden)]
pub mod pipeline;
#[doc(hidden)]
pub mod quant;
#[doc(hidden)]
pub mod release;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod sources;
#[doc(hidden)]
pub mod util;
