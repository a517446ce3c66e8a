//! Which matrices of an architecture write into the residual stream, and where they are in a file.

pub mod patches;
pub mod plan;
