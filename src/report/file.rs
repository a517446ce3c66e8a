//! A report that `inject --report` stored, read back.

use std::io;
use std::path::{Path, PathBuf};

use super::Report;
use crate::util::bounded;
use crate::util::hint::Hint;

/// Most bytes of a report. One with whole answers of a large model has a few.
const MAX_BYTES: u64 = 64 << 20;

/// Why there is no report, or no page of it.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is larger than any report.
    #[error("{} is not a report: expected at most {MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It says something else.
    #[error("{} is not a report of `inject`: {source}", path.display())]
    NotReport {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// The template of the page failed.
    #[error("the page cannot be made: {0}")]
    Page(#[from] minijinja::Error),
}

impl Hint for ReportError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => None,
            Self::TooLarge { .. } | Self::NotReport { .. } => {
                Some("give the file that `rosi-gguf inject … --report FILE.json` wrote".into())
            }
            Self::Page(_) => Some("this is a bug: please report it with the report".into()),
        }
    }
}

impl Report {
    /// Reads the report at `path`.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn open(path: &Path) -> Result<Self, ReportError> {
        let read = bounded::read(path, MAX_BYTES);
        let bytes = read.map_err(|source| ReportError::Read { path: path.into(), source })?;
        let bytes = bytes.ok_or_else(|| ReportError::TooLarge { path: path.into() })?;
        serde_json::from_slice(&bytes).map_err(|source| ReportError::NotReport { path: path.into(), source })
    }
}
