//! Locks that prevent two runs from writing the same output.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::atomic::directory_of;
use super::ffi::{Lock, try_lock, unlock};
use super::stale;
use crate::util::hint::Hint;
use crate::util::leftovers::Leftover;

/// Suffix of the lock file's name.
const SUFFIX: &str = "lock";
/// Maximum attempts; each fails only if another run removes its lock file at that moment.
const TRIES: usize = 32;

/// A hidden lock file beside an output, locked until dropped. The system releases the lock of a killed
/// process, and the next run reuses its file.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    file: File,
    _leftover: Leftover,
}

/// Error of taking a lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another run holds the lock.
    #[error("another run is writing {}", path.display())]
    Busy {
        /// The locked output.
        path: PathBuf,
    },
    /// The lock file could not be created.
    #[error("{}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Cause of the failure.
        source: io::Error,
    },
}

impl Hint for LockError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => Some("wait for it to finish, or choose another output with -o".into()),
            Self::Io { .. } => None,
        }
    }
}

impl LockFile {
    /// Locks the path `of`, whether or not the file exists. On filesystems without locks, the lock has no
    /// effect.
    ///
    /// # Errors
    /// Returns [`LockError`] if another run holds the lock or the lock file cannot be created.
    pub fn take(of: &Path) -> Result<Self, LockError> {
        let mut name = stale::prefix(of.file_name().unwrap_or_default());
        name.push(SUFFIX);
        let path = directory_of(of).join(name);
        for _ in 0..TRIES {
            let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
            let file = opened.map_err(|source| LockError::Io { path: path.clone(), source })?;
            match try_lock(&file, false) {
                Lock::Theirs => break,
                // Otherwise, its holder has just removed it, and another run may have locked a new file.
                _ if stale::is_at(&file, &path) => {
                    let leftover = Leftover::new(&path);
                    return Ok(Self { path, file, _leftover: leftover });
                }
                _ => {}
            }
        }
        Err(LockError::Busy { path: of.to_path_buf() })
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("{}: {error}", self.path.display());
        }
        unlock(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let of = folder.path().join("m.search.jsonl");
        let held = LockFile::take(&of).unwrap();
        assert!(matches!(LockFile::take(&of), Err(LockError::Busy { path }) if path == of));
        drop(LockFile::take(&folder.path().join("other")).unwrap());
        drop(held);
        // Left behind by a killed run.
        fs::write(folder.path().join(".m.search.jsonl.lock"), b"").unwrap();
        drop(LockFile::take(&of).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays behind");
        let missing = LockFile::take(&folder.path().join("none").join("x")).unwrap_err();
        assert!(matches!(missing, LockError::Io { .. }));
    }
}
