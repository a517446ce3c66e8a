//! Tiny random models of every architecture that llama.cpp knows.

pub mod ffi;
pub mod generate;
pub mod seeds;
