//! Rank-one safety injection (ROSI, arXiv 2508.20766) for GGUF models. Modules from the ground up; each uses those above it in
//! this list, and none below:
//!
//! | | |
//! |---|---|
//! | [`output`], [`util`] | what is printed, and helpers that know nothing of models |
//! | [`gguf`], [`quant`], [`imatrix`] | the file byte for byte, rows of its types, importance matrices |
//! | [`arch`] | which matrices of an architecture write into the residual stream |
//! | [`llama`] | llama.cpp runs the model, shows hidden states, and takes edits in memory |
//! | [`sources`] | from what a user calls a model to a file: paths, Ollama's store, the hub |
//! | [`eval`] | prompts, and what answers to them are worth |
//! | [`method`] | the direction of refusal, detectors, edits, how they get into the bytes, what of them is there |
//! | [`report`], [`release`] | what is said about an edit; the same edit in every quantization |
//! | [`pipeline`] | what `inject` does, in order |
//! | [`cli`] | flags and commands |
//!
//! ```
//! use rosi_gguf::pipeline::plan_of;
//! use rosi_gguf::method::direction::SafetyDirection;
//! use rosi_gguf::method::edit;
//! use rosi_gguf::gguf::{AtomicFile, Gguf, Rewrite, TensorInfo};
//! use rosi_gguf::quant::preserve::InputModel;
//! use rosi_gguf::method::requant::{self, Requant};
//! use rosi_gguf::method::verify::verify;
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
//! // What `rosi-gguf search` stored is read by `method::stored::StoredEdit::open`.
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

pub mod arch;
pub mod cli;
pub mod eval;
pub mod gguf;
pub mod imatrix;
pub mod llama;
pub mod method;
pub mod output;
pub mod pipeline;
pub mod quant;
pub mod release;
pub mod report;
pub mod sources;
pub mod util;
