//! Why two files could not be compared.

use crate::gguf::GgufError;
use crate::method::edit::EditError;
use crate::util::hint::Hint;

/// Why two files could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// One of them could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A tensor could not be decoded.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// They are not two versions of one model.
    #[error("{what}: base has {expected}, edited has {found}")]
    Different {
        /// What differs.
        what: String,
        /// In the base.
        expected: String,
        /// In the edited file.
        found: String,
    },
}

impl Hint for VerifyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Gguf(error) => error.hint(),
            Self::Edit(error) => error.hint(),
            Self::Different { .. } => Some("give the file that was injected and the file it became".into()),
        }
    }
}
