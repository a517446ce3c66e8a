//! General-purpose helpers, independent of models.

pub mod bounded;
pub mod hint;
pub mod interrupt;
pub mod largest;
pub mod leftovers;
pub mod linalg;
pub mod null;
pub mod spread;
pub mod stats;
