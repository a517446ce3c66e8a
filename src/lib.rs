//! Rank-one safety injection (ROSI, arXiv 2508.20766) for GGUF models, in the order of its flow:
//!
//! [`source`] finds the model by what a user calls it, in [`ollama`]'s store or on the [`hub`],
//! [`gguf`] reads and writes the file byte for byte, [`quant`] converts rows, [`patches`] and
//! [`plan`] say which matrices write into the residual stream, [`llama`] runs the model,
//! [`prompts`] are what it is asked, [`activations`] what it showed, [`direction`] along what it
//! refuses, [`edit`] the change to a weight, [`requant`] how it gets into quantized bytes, [`evaluate`] and [`search`] how much of it is best, [`stored`] the choice in a file of its own,
//! [`verify`] what really changed in the written file, [`report`] what is said about it, [`release`] the same for
//! every quantization of a model.

pub mod activations;
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
pub mod ollama;
pub mod options;
pub mod output;
pub mod patches;
pub mod plan;
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
