//! The program on real models, and on generated ones that llama.cpp runs. `scripts/test` sets the `ROSI_TEST_*` variables and
//! runs one module after the other: each takes all cores.

#[path = "../common/mod.rs"]
mod common;

mod abliteration;
mod chat;
mod detector;
mod eval;
mod export;
mod generated;
mod inject;
mod memory;
mod ollama;
mod quant;
mod release;
mod rpc;
mod search;
mod split;
mod thinking;
mod uncensored;
mod undo;
#[cfg(feature = "vulkan")]
mod vulkan;
