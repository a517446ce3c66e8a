//! Why an edit file cannot be used.

use std::path::PathBuf;

use super::FORMAT;
use super::fingerprint::Difference;
use crate::method::direction::DirectionError;
use crate::util::hint::Hint;

/// An edit file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct StoredError {
    /// Path of the edit file.
    pub path: PathBuf,
    /// Reason why the file cannot be used.
    pub problem: Problem,
}

/// Why an edit file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("{0}")]
    Io(std::io::Error),
    /// The file is larger than any edit.
    #[error("not a stored edit: it is larger than {most} bytes")]
    TooLarge {
        /// Maximum size that is read, in bytes.
        most: u64,
    },
    /// The safetensors structure is damaged, or the file is of another kind.
    #[error("not a stored edit: {reason}")]
    Format {
        /// Description of the defect.
        reason: String,
    },
    /// Another version wrote the file.
    #[error("expected a stored edit of format {FORMAT}, found format {found}")]
    Version {
        /// Format of the file.
        found: u64,
    },
    /// A value in the file is invalid.
    #[error("{what}: expected {expected}, found {found}")]
    Content {
        /// Name of the value.
        what: String,
        /// Description of valid values.
        expected: String,
        /// Value found.
        found: String,
    },
    /// The direction in the file is invalid.
    #[error(transparent)]
    Direction(#[from] DirectionError),
    /// The edit is for a model of another shape.
    #[error("the edit is for another model: {}: expected {}, found {}", .0.what, .0.expected, .0.found)]
    Shape(Difference),
    /// The edit is for a model with other weights.
    #[error("the edit is for other weights: {}: expected {}, found {}", .0.what, .0.expected, .0.found)]
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
                "--edit expects a file written by `rosi-gguf search MODEL -o FILE`"
            }
            Problem::Version { .. } => "use the version of rosi-gguf that wrote it, or a later one",
            Problem::Content { .. } | Problem::Direction(_) => {
                "the file is damaged or was modified; create it again with `rosi-gguf search`"
            }
            Problem::Shape(_) => {
                "an edit fits only quantizations of one model; create one for this model with `rosi-gguf search`"
            }
            Problem::Weights(_) => {
                "each fine-tune has its own direction; create an edit for this model with `rosi-gguf search`, or use this one anyway with --allow-other-weights"
            }
        };
        Some(hint.into())
    }
}
