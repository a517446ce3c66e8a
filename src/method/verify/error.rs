//! The error type of the verification.

use crate::gguf::GgufError;
use crate::method::edit::EditError;
use crate::util::hint::Hint;

/// Why two files could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A tensor could not be decoded.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The files are not two versions of one model.
    #[error("{what}: base has {expected}, edited has {found}")]
    Different {
        /// Name of the property that differs.
        what: String,
        /// Value in the base.
        expected: String,
        /// Value in the edited file.
        found: String,
    },
}

impl Hint for VerifyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Gguf(error) => error.hint(),
            Self::Edit(error) => error.hint(),
            Self::Different { .. } => Some("pass the original file and the file injected from it".into()),
        }
    }
}
