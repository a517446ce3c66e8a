//! The steps of an injection, as a library for the commands and the benchmarks.

pub mod detectors;
pub mod direction_sources;
pub mod dry_run;
pub mod edit_search;
pub mod error;
pub mod estimate;
pub mod evaluate;
pub mod facts;
pub mod features;
pub mod guard;
pub mod in_place;
pub mod inject;
pub mod journal;
pub mod judge;
pub mod options;
pub mod outputs;
pub mod provenance;
pub mod reproduce;
pub mod run_facts;
pub mod session;
pub mod stored;
pub mod types;
pub mod write;

use crate::arch::plan::Plan;
use crate::gguf::Gguf;
use error::Error;

/// Resolves the plan of a model from the embedded patches, for library users.
///
/// # Errors
/// Returns [`Error`] if the architecture is unknown or a writer is missing.
pub fn plan_of(gguf: &Gguf) -> Result<Plan, Error> {
    session::plan(gguf, None)
}
