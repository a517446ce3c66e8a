//! Removal of unfinished files when the process ends without running destructors: neither an abort in C code
//! nor a second Ctrl-C unwinds.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, TryLockError};
use std::time::Duration;

use crate::output::tell;

static PATHS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Marks a file or directory as unfinished until dropped. Dropping it removes nothing.
#[derive(Debug)]
pub struct Leftover(PathBuf);

impl Leftover {
    /// Registers `path` for removal by [`remove_all`].
    pub fn new(path: &Path) -> Self {
        // Absolute, so that a later change of the current directory does not matter.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        with_paths(|paths| paths.push(path.clone()));
        Self(path)
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        with_paths(|paths| paths.retain(|path| *path != self.0));
    }
}

/// Removes all unfinished files and directories. The caller must then end the process.
pub fn remove_all() {
    with_paths(|paths| paths.drain(..).for_each(|path| remove(&path)));
}

fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed.or_else(only_if_there) {
        tell(format_args!("warning: could not remove {}: {error}", path.display()));
    }
}

fn only_if_there(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Calls `change` with the list of paths. Gives up after 100 attempts (about 100 ms): the thread that holds the lock
/// may no longer run.
fn with_paths(change: impl FnOnce(&mut Vec<PathBuf>)) {
    for _ in 0..100 {
        match PATHS.try_lock() {
            Ok(mut paths) => return change(&mut paths),
            Err(TryLockError::Poisoned(paths)) => return change(&mut paths.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(path: &Path) -> bool {
        let mut found = false;
        with_paths(|paths| found = paths.iter().any(|p| p == path));
        found
    }

    #[test]
    fn what_is_unfinished_is_listed_until_it_is_finished() {
        // `remove_all` would remove what other tests of this process are writing.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let held = Leftover::new(&path);
        assert!(listed(&path));
        drop(held);
        assert!(!listed(&path));
    }

    #[test]
    fn files_and_folders_are_removed_and_what_is_gone_already_is_no_matter() {
        let folder = tempfile::tempdir().unwrap();
        let (file, staging) = (folder.path().join("file"), folder.path().join("staging"));
        fs::write(&file, "x").unwrap();
        fs::create_dir(&staging).unwrap();
        fs::write(staging.join("shard"), "x").unwrap();
        for path in [&file, &staging, &folder.path().join("never made")] {
            remove(path);
            assert!(!path.exists());
        }
        assert!(folder.path().exists());
    }
}
