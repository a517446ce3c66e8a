//! Finds the matrices of a model that write into the residual stream, from descriptions of its architecture.

pub mod patches;
pub mod plan;
pub mod window;
