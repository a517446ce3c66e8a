//! Why an edit file cannot be used.

use std::path::PathBuf;

use super::FORMAT;
use super::fingerprint::Difference;
use crate::method::direction::DirectionError;
use crate::util::hint::Hint;

/// What is wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct StoredError {
    /// The edit file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with an edit file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It cannot be read.
    #[error("{0}")]
    Io(std::io::Error),
    /// It is larger than any edit.
    #[error("not a stored edit: it is larger than {most} bytes")]
    TooLarge {
        /// Most that is read.
        most: u64,
    },
    /// Its frame is damaged, or it is another file.
    #[error("not a stored edit: {reason}")]
    Format {
        /// Why.
        reason: String,
    },
    /// A later version wrote it.
    #[error("stored edit of format {found}, and this version reads {FORMAT}")]
    Version {
        /// Its format.
        found: u64,
    },
    /// Something in it cannot be.
    #[error("{what}: expected {expected}, found {found}")]
    Content {
        /// What.
        what: String,
        /// What may be.
        expected: String,
        /// What is.
        found: String,
    },
    /// Its direction is none.
    #[error(transparent)]
    Direction(#[from] DirectionError),
    /// It is for a model of another shape.
    #[error("the edit is for another model: {}: expected {}, found {}", .0.what, .0.expected, .0.found)]
    Shape(Difference),
    /// It is for a model with other weights.
    #[error("the edit was found on other weights: {}: expected {}, found {}", .0.what, .0.expected, .0.found)]
    Weights(Difference),
}

impl Problem {
    pub(super) fn content(what: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self::Content { what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }
}

impl Hint for StoredError {
    fn hint(&self) -> Option<String> {
        let hint = match &self.problem {
            Problem::Io(_) => return None,
            Problem::TooLarge { .. } | Problem::Format { .. } => {
                "--edit takes what `rosi-gguf search MODEL -o FILE` wrote"
            }
            Problem::Version { .. } => "use the version of rosi-gguf that wrote it, or a later one",
            Problem::Content { .. } | Problem::Direction(_) => {
                "the file is damaged or was tampered with; make it again with `rosi-gguf search`"
            }
            Problem::Shape(_) => {
                "an edit fits the quantizations of one model only: make one for this model with `rosi-gguf search`"
            }
            Problem::Weights(_) => {
                "another fine-tune has another direction: make one for this model with `rosi-gguf search`; --allow-other-weights takes this one all the same"
            }
        };
        Some(hint.into())
    }
}
