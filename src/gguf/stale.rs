//! Temporary files and folders: how they are called, that a living writer holds their lock, and how those are
//! removed that killed runs left behind.
//!
//! A writer takes the lock right after it has made the file, and then looks whether the file still has its name.
//! Whoever sweeps takes the lock before it removes the file. So neither can lose a file that is in use to the other
//! (but for two machines that write one output at once over a network mount without shared locks).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::ShardName;
use super::atomic::{directory_of, sync_directory};
use super::ffi::{Lock, try_lock};

/// After the random part of a temporary name.
pub(super) const SUFFIX: &str = ".tmp";
/// In a folder whose files are whole and on disk, and are to replace those of their names beside the folder.
const COMPLETE: &str = "complete";
/// Random letters and digits, as `tempfile` makes them.
const N_RANDOM: usize = 6;
/// More tries than sweepers could spoil.
const TRIES: usize = 32;

/// What the temporary names of a file called `name` begin with.
pub(super) fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    // Leaves room under the usual limit of 255 bytes for what is put around the name.
    match name.len() {
        ..=200 => prefix.push(name),
        _ => prefix.push(name.to_string_lossy().chars().take(50).collect::<String>()),
    }
    prefix.push(".");
    prefix
}

/// Something new that has a temporary name, made by `make` and opened by `open`, with its lock.
pub(super) fn locked<T>(
    make: impl Fn() -> io::Result<T>,
    open: impl Fn(&T) -> io::Result<(PathBuf, File)>,
) -> io::Result<(T, File)> {
    for _ in 0..TRIES {
        let made = make()?;
        let (path, file) = open(&made)?;
        // Theirs: somebody sweeps it away.
        if try_lock(&file, false) != Lock::Theirs && is_at(&file, &path) {
            return Ok((made, file));
        }
    }
    Err(io::Error::other("temporary files are removed as soon as they are made"))
}

/// Whether `file` is what bears the name `path`.
#[cfg(unix)]
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |found: &fs::Metadata| (found.dev(), found.ino());
    matches!((file.metadata(), fs::symlink_metadata(path)), (Ok(a), Ok(b)) if place(&a) == place(&b))
}

/// Nobody sweeps where there are no locks.
#[cfg(not(unix))]
pub(super) fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Says, for good, that all files of a folder are whole and on disk.
pub(super) fn mark(folder: &Path) -> io::Result<()> {
    File::create(folder.join(COMPLETE))?.sync_all()?;
    sync_directory(folder)
}

/// Ends the writing of the split model that `path` is a file of, where the run that replaced an earlier one by it was stopped
/// before its first file had its name.
pub fn recover(path: &Path) {
    if let Some(first) = ShardName::parse(path).map(|name| name.path(0)).filter(|first| !first.exists()) {
        sweep(&first);
    }
}

/// Removes the temporary files and folders of outputs called `path` whose writers are no more, and says so in the
/// log; the files of a folder that is complete get their names first, where the model that they replace has lost its first
/// file already. What cannot be removed stays: it is in nobody's way.
pub fn sweep(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let prefix = prefix(name);
    let Ok(entries) = fs::read_dir(directory_of(path)) else { return };
    for entry in entries.flatten().filter(|entry| is_temporary(&entry.file_name(), &prefix)) {
        let path = entry.path();
        match remove(&path) {
            Ok(true) => tracing::warn!("removed {}, which a run that was killed left behind", path.display()),
            Ok(false) => {}
            Err(error) => tracing::debug!("{} cannot be removed: {error}", path.display()),
        }
    }
}

fn is_temporary(name: &OsStr, prefix: &OsStr) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
    let random = rest.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
    random.is_some_and(|random| random.len() == N_RANDOM && random.iter().all(u8::is_ascii_alphanumeric))
}

/// Whether nobody held it; then it is gone.
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
    // The files of a split model; a folder in it would not be ours.
    for entry in fs::read_dir(path)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(path).map(|()| true)
}

/// Gives the files of a complete folder their names, the first of the model last, as `AtomicModel::commit` does. Does
/// nothing while an earlier model's first file is there: that model is still whole, and stays.
fn publish(folder: &Path) -> io::Result<()> {
    let target = directory_of(folder);
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    let mut names: Vec<OsString> = names.into_iter().filter(|name| name != COMPLETE).collect();
    names.sort();
    let first = names.first().map(|name| target.join(name));
    let Some(first) = first.filter(|first| !first.exists()) else { return Ok(()) };
    names.iter().rev().try_for_each(|name| fs::rename(folder.join(name), target.join(name)))?;
    sync_directory(target)?;
    tracing::warn!("{}: ended the writing, which a run that was stopped had begun", first.display());
    Ok(())
}
