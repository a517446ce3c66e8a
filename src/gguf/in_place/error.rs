//! Errors of changing a file in place and of undoing the change.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use super::journal_path;
use crate::gguf::GgufError;
use crate::output::shell;
use crate::util::hint::Hint;

/// Error of changing a file in place or undoing the change. [`UndoError::hint`] suggests a fix.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)] // each message documents its variant and names its fields
pub enum UndoError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("{} was already changed in place: {} holds the original data", path.display(), journal_path(path).display())]
    Journaled { path: PathBuf },
    #[error("{} not found: {} was not changed in place, or was renamed since", journal_path(path).display(), path.display())]
    NoJournal { path: PathBuf },
    #[error("{} {problem}: an in-place change would affect its other names too", path.display())]
    Linked { path: PathBuf, problem: String },
    #[error("{} does not belong to {}: expected {expected}, found {found}", path.display(), journal_path(path).display())]
    Stranger { path: PathBuf, expected: String, found: String },
    #[error("{}: {problem}, which cannot be done in place", path.display())]
    Layout { path: PathBuf, problem: &'static str },
    #[error("{} is one of {files} files of a split model, which cannot be changed in place", path.display())]
    Split { path: PathBuf, files: usize },
    #[error("cannot compute new data for tensor '{tensor}'")]
    Replace { tensor: String, source: Box<dyn Error + Send + Sync> },
    #[error("stopped while changing {}", path.display())]
    Stopped { path: PathBuf, source: io::Error },
    #[error("{} could not be restored ({source}) after: {after}", path.display())]
    NotRestored { path: PathBuf, after: String, source: Box<UndoError> },
}

impl Hint for UndoError {
    fn hint(&self) -> Option<String> {
        let undo = |path: &Path| format!("`rosi-gguf undo {}`", shell(path));
        Some(match self {
            Self::Gguf(error) => return error.hint(),
            Self::Journaled { path } => format!(
                "put the original back with {}, or delete {} to keep the file as it is",
                undo(path),
                journal_path(path).display()
            ),
            Self::NoJournal { .. } => {
                "pass the file that `inject --in-place` changed, under its original name and \
                                       with its journal beside it"
                    .into()
            }
            Self::Linked { .. } => "copy it to a separate file, or write a copy with -o".into(),
            Self::Stranger { path, .. } => format!(
                "nothing was written; if {} was replaced on purpose, delete {}",
                path.display(),
                journal_path(path).display()
            ),
            Self::Layout { .. } | Self::Split { .. } => "write a copy instead: leave out --in-place".into(),
            Self::NotRestored { path, .. } => {
                format!("its journal is intact: fix the cause, then run {}", undo(path))
            }
            Self::Replace { .. } | Self::Stopped { .. } => return None,
        })
    }
}
