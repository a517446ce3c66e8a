//! Tiny random models of every architecture, and what their graphs say of the residual writers.

pub mod child;
pub mod compare;
pub mod edits;
pub mod ffi;
pub mod generate;
pub mod graph;
pub mod neurons;
pub mod seeds;
pub mod table;
pub mod walk;
