//! Rank-one safety injection (ROSI, arXiv 2508.20766) for GGUF models, in the order of its flow:
//!
//! [`source`] finds the model by what a user calls it, in [`ollama`]'s store or on the [`hub`],
//! [`gguf`] reads and writes the file byte for byte, [`quant`] converts rows, [`patches`] and
//! [`plan`] say which matrices write into the residual stream, [`llama`] runs the model,
//! [`prompts`] are what it is asked, [`activations`] what it showed, [`direction`] along what it
//! refuses, [`edit`] the change to a weight, [`post_norm`] how it passes a norm behind it, [`requant`] how it gets into quantized bytes, [`evaluate`] and [`search`] how much of it is best, [`stored`] the choice in a file of its own,
//! [`verify`] what really changed in the written file, [`report`] what is said about it, [`release`] the same for
//! every quantization of a model.
//!
//! ```
//! use rosi_gguf::pipeline::plan_of;
//! use rosi_gguf::direction::SafetyDirection;
//! use rosi_gguf::edit;
//! use rosi_gguf::gguf::{AtomicFile, Gguf, Rewrite, TensorInfo};
//! use rosi_gguf::quant::preserve::InputModel;
//! use rosi_gguf::requant::{self, Requant};
//! use rosi_gguf::verify::verify;
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
//! // The header is checked, and the matrices that write into the residual stream are found.
//! let base = Gguf::open(&model)?;
//! let plan = plan_of(&base)?;
//!
//! // Along s, the difference in means of your own activations after layer 0, by 2 % of the weights' norm.
//! // What `rosi-gguf direction` stored is read by `stored::StoredEdit::open`.
//! let direction = SafetyDirection::new(0, &s)?;
//! let weights = plan.writers.iter().map(|writer| edit::read_weights(&base, writer));
//! let weights = weights.collect::<Result<Vec<_>, _>>()?;
//! let edits = edit::edits(&plan, &weights, &edit::mean_rows(&weights), &direction, 0.02)?;
//!
//! // The copy gets its name when it is complete; tensors outside the edit keep their bytes.
//! let mut file = AtomicFile::create(&copy, false)?;
//! let mut replace = |tensor: &TensorInfo| {
//!     let Some(edit) = edits.iter().find(|edit| edit.tensor == tensor.name) else { return Ok(None) };
//!     let bytes = base.read_tensor(tensor)?;
//!     Ok(Some(requant::apply(edit, (tensor, bytes), Requant::Preserve, &InputModel::default())?))
//! };
//! Rewrite::copy(&base).write_to(&mut file, &mut replace, &mut |_, _| Ok(()))?;
//! file.commit()?;
//!
//! let found = verify(&base, &Gguf::open(&copy)?, &edits.into(), &mut |_, _| ())?;
//! assert!(found.untouched_identical && found.gain.is_some_and(|gain| gain > 0.9));
//! # Ok(())
//! # }
//! ```

pub mod activations;
pub mod bounded;
pub mod cli;
pub mod commands;
pub mod direction;
pub mod edit;
pub mod error;
pub mod evaluate;
pub mod gate;
pub mod gguf;
pub mod hub;
pub mod imatrix;
pub mod interrupt;
pub mod leftovers;
pub mod linalg;
pub mod llama;
pub mod method;
pub mod ollama;
pub mod options;
pub mod output;
pub mod patches;
pub mod pipeline;
pub mod plan;
pub mod post_norm;
pub mod prompts;
pub mod quant;
pub mod release;
pub mod report;
pub mod requant;
pub mod scar;
pub mod search;
pub mod source;
pub mod stored;
pub mod verify;
