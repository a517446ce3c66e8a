//! Temporary files and directories: their names, the lock that their live writer holds, and the removal of those
//! that killed runs left behind.
//!
//! A writer locks the file right after creating it and then checks that the file still has its name. A sweeper locks
//! the file before removing it. Therefore a file in use is never removed (except if two machines write the same
//! output at once over a network mount without shared locks).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::ShardName;
use super::atomic::{directory_of, sync_directory};
use super::ffi::{Lock, try_lock};

/// Suffix of a temporary name, after its random part.
pub(super) const SUFFIX: &str = ".tmp";
/// Marker in a staging directory whose files are complete, synced, and ready to be moved to their destination.
const COMPLETE: &str = "complete";
/// Number of random letters and digits that `tempfile` generates.
const N_RANDOM: usize = 6;
/// Maximum attempts; each fails only if a sweeper removes the file at that moment.
const TRIES: usize = 32;

/// Returns the prefix of temporary names for a file called `name`.
pub(super) fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    // Leaves room for the rest of the temporary name under the usual limit of 255 bytes.
    match name.len() {
        ..=200 => prefix.push(name),
        _ => prefix.push(name.to_string_lossy().chars().take(50).collect::<String>()),
    }
    prefix.push(".");
    prefix
}

/// Creates a temporary file or directory with `make`, opens it with `open`, and locks it.
pub(super) fn locked<T>(
    make: impl Fn() -> io::Result<T>,
    open: impl Fn(&T) -> io::Result<(PathBuf, File)>,
) -> io::Result<(T, File)> {
    for _ in 0..TRIES {
        let made = make()?;
        let (path, file) = open(&made)?;
        // If another process holds the lock, a sweeper is removing the file.
        if try_lock(&file, false) != Lock::Theirs && is_at(&file, &path) {
            return Ok((made, file));
        }
    }
    Err(io::Error::other("temporary files are removed as soon as they are created"))
}

/// Returns whether `path` refers to the open file `file`.
#[cfg(unix)]
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |found: &fs::Metadata| (found.dev(), found.ino());
    matches!((file.metadata(), fs::symlink_metadata(path)), (Ok(a), Ok(b)) if place(&a) == place(&b))
}

/// Always true: without locks, nothing is swept.
#[cfg(not(unix))]
pub(super) fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Marks a staging directory as complete, durably: all its files are complete and synced.
pub(super) fn mark(folder: &Path) -> io::Result<()> {
    File::create(folder.join(COMPLETE))?.sync_all()?;
    sync_directory(folder)
}

/// Completes the split model that `path` belongs to, if a run that was overwriting an earlier model was interrupted
/// before it moved the first file.
pub fn recover(path: &Path) {
    if let Some(first) = ShardName::parse(path).map(|name| name.path(0)).filter(|first| !first.exists()) {
        sweep(&first);
    }
}

/// Removes temporary files and directories of the output `path` whose writers no longer run, and logs it. The files
/// of a complete staging directory are moved to their destination first, if the model they replace has already lost
/// its first file. Leftovers that cannot be removed are harmless and stay.
pub fn sweep(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let prefix = prefix(name);
    let Ok(entries) = fs::read_dir(directory_of(path)) else { return };
    for entry in entries.flatten().filter(|entry| is_temporary(&entry.file_name(), &prefix)) {
        let path = entry.path();
        match remove(&path) {
            Ok(true) => tracing::warn!("removed {}, left behind by a killed run", path.display()),
            Ok(false) => {}
            Err(error) => tracing::debug!("cannot remove {}: {error}", path.display()),
        }
    }
}

fn is_temporary(name: &OsStr, prefix: &OsStr) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
    let random = rest.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
    random.is_some_and(|random| random.len() == N_RANDOM && random.iter().all(u8::is_ascii_alphanumeric))
}

/// Removes `path` unless another process holds its lock; returns whether it was removed.
fn remove(path: &Path) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_file() && !found.is_dir() {
        return Ok(false);
    }
    let file = File::open(path)?;
    if try_lock(&file, false) != Lock::Ours || !is_at(&file, path) {
        return Ok(false);
    }
    if found.is_file() {
        return fs::remove_file(path).map(|()| true);
    }
    if path.join(COMPLETE).exists() {
        publish(path)?;
    }
    // Holds only the files of a split model; fails on a subdirectory, which is not ours.
    for entry in fs::read_dir(path)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(path).map(|()| true)
}

/// Moves the files of a complete staging directory to their destination, the first file last, as
/// `AtomicModel::commit` does. Does nothing if the first file of an earlier model exists: that model is still intact.
fn publish(folder: &Path) -> io::Result<()> {
    let target = directory_of(folder);
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    let mut names: Vec<OsString> = names.into_iter().filter(|name| name != COMPLETE).collect();
    names.sort();
    let first = names.first().map(|name| target.join(name));
    let Some(first) = first.filter(|first| !first.exists()) else { return Ok(()) };
    names.iter().rev().try_for_each(|name| fs::rename(folder.join(name), target.join(name)))?;
    sync_directory(target)?;
    tracing::warn!("{}: completed the output of an interrupted run", first.display());
    Ok(())
}
