//! Errors of evaluation data.

use std::io;
use std::path::PathBuf;

use crate::llama::LlamaError;
use crate::util::hint::Hint;

/// Why evaluation data could not be used, or an evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A file exceeds the size limit.
    #[error("{} is too large: expected at most {limit} bytes, found {found}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
        /// The number of bytes read, one above the limit.
        found: u64,
    },
    /// A file is not UTF-8.
    #[error("{}:{line}: expected UTF-8 text, found invalid bytes", path.display())]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// The line of the first invalid byte, starting at 1.
        line: usize,
    },
    /// A multiple-choice record does not have the expected form.
    #[error("{file}:{line}: expected {expected}, found {found}")]
    BadItem {
        /// The file.
        file: String,
        /// The line of the record, starting at 1.
        line: usize,
        /// What was expected.
        expected: &'static str,
        /// What was found instead.
        found: String,
    },
    /// A file of multiple-choice questions contains none.
    #[error("{file} is empty: expected one multiple-choice question per line, found none")]
    NoItems {
        /// The file.
        file: String,
    },
    /// A text has too few tokens for one chunk.
    #[error("text too short: expected at least one chunk of {expected} tokens, found {found} tokens")]
    TextTooShort {
        /// Tokens per chunk.
        expected: usize,
        /// Tokens in the text.
        found: usize,
    },
    /// The model failed.
    #[error(transparent)]
    Llama(#[from] LlamaError),
}

impl Hint for EvalError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } => "check the path; relative paths start at the current directory",
            Self::TooLarge { .. } => "use a sample of the file; a few hundred questions or pages are enough",
            Self::InvalidUtf8 { .. } => "save the file as UTF-8",
            Self::BadItem { .. } | Self::NoItems { .. } => {
                "a record is a JSON object on one line with question, choices and answer (or ARC's \
                 answerKey, or HellaSwag's ctx, endings and label)"
            }
            Self::TextTooShort { .. } => "use a longer text or a smaller --ctx-size",
            Self::Llama(error) => return error.hint(),
        };
        Some(hint.to_owned())
    }
}
