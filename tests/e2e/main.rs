//! End-to-end tests on real models and on generated ones, two at a time. `scripts/test` sets the `ROSI_TEST_*` variables.

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
mod thinking;
mod uncensored;
mod undo;
#[cfg(feature = "vulkan")]
mod vulkan;
