//! Model files that get their final names only when all of them are complete.
//!
//! The files of a split model are written under their final file names into a hidden staging directory
//! beside their destination, so that llama.cpp can load them before they are published.
//! [`AtomicModel::commit`] syncs all files to disk and then, in this order,
//!
//! 1. marks the staging directory as complete (only with `overwrite`),
//! 2. removes the first file of the model being overwritten (only with `overwrite`),
//! 3. moves the files to their destination, from the last to the second,
//! 4. moves the first file and removes the staging directory.
//!
//! A model is loaded through its first file. If the process is killed or the machine loses power during
//! these steps, the destination lacks a first file, and neither llama.cpp nor [`super::Gguf::open`]
//! accepts the rest as a model; old and new files are never mixed. A staging directory that is marked
//! complete still holds every file that has not been moved: [`super::recover`] or the next run moves
//! them, unless the earlier model is still intact (step 2 was not reached). Any other leftover staging
//! directory is removed.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::atomic::{AtomicFile, Finished, directory_of, sync_directory};
use super::{Gguf, GgufError, ShardName, stale};
use crate::util::leftovers::Leftover;

/// The files of a model, written under temporary names. Dropping it before [`AtomicModel::commit`]
/// removes them all.
#[derive(Debug)]
pub struct AtomicModel {
    files: Vec<AtomicFile>,
    overwrite: bool,
    /// Staging directory of a split model. Declared after `files`, because dropping it removes the
    /// directory.
    staging: Option<Staging>,
}

/// A directory that stays locked while it exists.
#[derive(Debug)]
struct Staging {
    folder: TempDir,
    _lock: Option<fs::File>,
    _leftover: Option<Leftover>,
}

impl Staging {
    /// Keeps the directory even if this process is killed or the value is dropped.
    fn keep(&mut self) {
        self._leftover = None;
        self.folder.disable_cleanup(true);
    }

    /// Removes the directory, after all its files have been moved.
    fn remove(mut self) {
        self.folder.disable_cleanup(false);
    }
}

impl AtomicModel {
    /// Creates as many files as `like` has. For a split model, `path` may name any of them.
    ///
    /// # Errors
    /// Returns the errors of [`AtomicFile::create`], and [`GgufError::OutputShardName`] if `path` does
    /// not name a file of a split model with the same number of files.
    pub fn create(path: &Path, like: &Gguf, overwrite: bool) -> Result<Self, GgufError> {
        let n = like.n_files();
        if n == 1 {
            let files = vec![AtomicFile::create(path, overwrite)?];
            return Ok(Self { files, overwrite, staging: None });
        }
        let count = n as u16; // `n` was read from a u16
        let name = ShardName::parse(path).filter(|name| name.count == count);
        let name = name.ok_or_else(|| GgufError::OutputShardName {
            path: path.to_path_buf(),
            count: n,
            expected: ShardName::ending(0, count),
        })?;
        let directory = directory_of(path);
        // Recover first: the checks below depend on which files exist.
        super::recover(&name.path(0));
        AtomicFile::check(&name.path(0), overwrite)?;
        let staging = stage(&name.path(0), directory)?;
        let create = |no| AtomicFile::staged(&name.path(no), staging.folder.path(), overwrite);
        let files = (0..count).map(create).collect::<Result<_, _>>()?;
        Ok(Self { files, overwrite, staging: Some(staging) })
    }

    /// The final path of the first file, which is the path of the model.
    pub fn path(&self) -> &Path {
        self.files[0].path()
    }

    /// The path of the first file until [`AtomicModel::commit`]; the model can be loaded from it once its
    /// files are flushed.
    pub fn temporary_path(&self) -> &Path {
        self.files[0].temporary_path()
    }

    /// The files, in order.
    pub fn files_mut(&mut self) -> &mut [AtomicFile] {
        &mut self.files
    }

    /// Syncs all files to disk, then renames them to their final names.
    ///
    /// # Errors
    /// Returns [`GgufError`] if a file cannot be synced or renamed. Without `overwrite`, no file of a split
    /// model keeps a final name then. With `overwrite`, files other than the first may, and
    /// [`super::recover`] moves the rest.
    pub fn commit(self) -> Result<(), GgufError> {
        let mut finished: Vec<Finished> =
            self.files.into_iter().map(AtomicFile::finish).collect::<Result<_, _>>()?;
        finished.iter().try_for_each(Finished::check)?;
        let Some(mut staging) = self.staging else {
            return finished.into_iter().try_for_each(Finished::publish);
        };
        if self.overwrite {
            let first = finished[0].path().to_path_buf();
            stale::mark(staging.folder.path())
                .map_err(|error| GgufError::from_output(&first, "sync", error))?;
            staging.keep();
            finished.iter_mut().for_each(Finished::keep);
            retire(&first)?;
        }
        publish_all(finished, self.overwrite)?;
        staging.remove();
        Ok(())
    }
}

/// Creates a hidden staging directory in `directory` for the model whose first file is `first`.
fn stage(first: &Path, directory: &Path) -> Result<Staging, GgufError> {
    stale::sweep(first);
    let prefix = stale::prefix(first.file_name().unwrap_or_default());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(stale::SUFFIX);
    let failed = |error| GgufError::from_output(first, "create", error);
    if !cfg!(unix) {
        // Elsewhere, a directory cannot be opened as a file, and there are no locks.
        let folder = builder.tempdir_in(directory).map_err(failed)?;
        return Ok(Staging { _leftover: Some(Leftover::new(folder.path())), folder, _lock: None });
    }
    let open = |made: &TempDir| Ok((made.path().to_path_buf(), fs::File::open(made.path())?));
    let (folder, lock) = stale::locked(|| builder.tempdir_in(directory), open).map_err(failed)?;
    Ok(Staging { _leftover: Some(Leftover::new(folder.path())), folder, _lock: Some(lock) })
}

/// Renames the files to their final names, from the last to the first.
fn publish_all(files: Vec<Finished>, overwrite: bool) -> Result<(), GgufError> {
    let mut published: Vec<PathBuf> = Vec::new();
    for file in files.into_iter().rev() {
        let path = file.path().to_path_buf();
        if let Err(error) = file.publish() {
            if !overwrite {
                // This run created them, and without the first file they are not a model: safe to remove.
                published.iter().for_each(|path| drop(fs::remove_file(path)));
            }
            return Err(error);
        }
        published.push(path);
    }
    Ok(())
}

/// Removes the first file of an earlier model and syncs the directory, before anything is renamed.
fn retire(first: &Path) -> Result<(), GgufError> {
    let failed = |doing| move |error| GgufError::from_output(first, doing, error);
    match fs::remove_file(first) {
        Ok(()) => sync_directory(directory_of(first)).map_err(failed("sync the directory of")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("replace")(error)),
    }
}
