//! Locks that keep a second run away from what a first one writes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::atomic::directory_of;
use super::ffi::{Lock, try_lock, unlock};
use super::stale;
use crate::util::hint::Hint;
use crate::util::leftovers::Leftover;

/// After the prefix of the file that is locked.
const SUFFIX: &str = "lock";
/// More tries than other runs could spoil by removing theirs.
const TRIES: usize = 32;

/// A hidden file beside another one, locked for as long as this lives. The system drops the lock of a process that was
/// killed, and the next run takes over its file.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    file: File,
    _leftover: Leftover,
}

/// Why a lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("another run is writing {}", path.display())]
    Busy {
        /// What is locked.
        path: PathBuf,
    },
    /// Its file could not be made.
    #[error("{}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Hint for LockError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => Some("wait until it is done, or write somewhere else with -o".into()),
            Self::Io { .. } => None,
        }
    }
}

impl LockFile {
    /// Locks the name `of`, whether or not a file bears it. On filesystems without locks nobody is kept away.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(of: &Path) -> Result<Self, LockError> {
        let mut name = stale::prefix(of.file_name().unwrap_or_default());
        name.push(SUFFIX);
        let path = directory_of(of).join(name);
        for _ in 0..TRIES {
            let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
            let file = opened.map_err(|source| LockError::Io { path: path.clone(), source })?;
            match try_lock(&file, false) {
                Lock::Theirs => break,
                // Else whoever had it has just removed it, and another run may hold its successor.
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
        // Left by a run that was killed.
        fs::write(folder.path().join(".m.search.jsonl.lock"), b"").unwrap();
        drop(LockFile::take(&of).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays behind");
        let missing = LockFile::take(&folder.path().join("none").join("x")).unwrap_err();
        assert!(matches!(missing, LockError::Io { .. }));
    }
}
