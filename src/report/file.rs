//! Reads a report that `inject --report` stored.

use std::io;
use std::path::{Path, PathBuf};

use super::Report;
use crate::util::bounded;
use crate::util::hint::Hint;

/// Maximum size of a report, in bytes. One with full answers of a large model has a few MiB.
const MAX_BYTES: u64 = 64 << 20;

/// Errors of reading a report or making its page.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is too large to be a report.
    #[error("{} is not a report: expected at most {MAX_BYTES} bytes, found more", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a report.
    #[error("{} is not a report of `inject`: {source}", path.display())]
    NotReport {
        /// The file.
        path: PathBuf,
        /// The parser's error, with its position.
        source: serde_json::Error,
    },
    /// The page's template failed to render.
    #[error("cannot render the page: {0}")]
    Page(#[from] minijinja::Error),
}

impl Hint for ReportError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => None,
            Self::TooLarge { .. } | Self::NotReport { .. } => {
                Some("pass a file written by `rosi-gguf inject … --report FILE.json`".into())
            }
            Self::Page(_) => Some("this is a bug; please report it and attach the JSON file".into()),
        }
    }
}

impl Report {
    /// Reads the report at `path`.
    ///
    /// # Errors
    /// Returns [`ReportError`] if the file cannot be read or is not a report.
    pub fn open(path: &Path) -> Result<Self, ReportError> {
        let read = bounded::read(path, MAX_BYTES);
        let bytes = read.map_err(|source| ReportError::Read { path: path.into(), source })?;
        let bytes = bytes.ok_or_else(|| ReportError::TooLarge { path: path.into() })?;
        serde_json::from_slice(&bytes).map_err(|source| ReportError::NotReport { path: path.into(), source })
    }
}
