//! The mathematics of an injection.

pub mod detector;
pub mod edits;

pub use edits::Edits;
