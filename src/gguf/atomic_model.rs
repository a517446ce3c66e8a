//! The files of a model that appear under their names when all of them are complete.
//!
//! The files of a split model are written into a hidden folder beside their final place, under their
//! final names, by which llama.cpp can load them before they are published. [`AtomicModel::commit`]
//! makes all of them durable, and only then, in this order,
//!
//! 1. marks the folder as complete,
//! 2. removes the first file of an earlier model that is overwritten,
//! 3. gives the files their names from the last to the second,
//! 4. gives the first file its name, and removes the folder.
//!
//! A model is loaded by its first file. So a process that is killed, or a machine that loses power, in
//! between leaves files without a first one, which neither llama.cpp nor [`super::Gguf::open`] takes for
//! a model, never old and new files together. What else is left then is the hidden folder: one that is complete has all
//! the files that lack their names, and [`super::recover`] or the next try gives them these, unless the earlier model
//! is still whole (step 2 was not reached); any other is removed.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::atomic::{AtomicFile, Finished, directory_of, sync_directory};
use super::{Gguf, GgufError, ShardName, stale};
use crate::util::leftovers::Leftover;

/// A model's files, written under temporary names. Dropped before [`AtomicModel::commit`], all are
/// removed.
#[derive(Debug)]
pub struct AtomicModel {
    files: Vec<AtomicFile>,
    overwrite: bool,
    /// Where the files of a split model are until they are published; removed when dropped, hence
    /// after the files.
    staging: Option<Staging>,
}

/// A folder that is locked for as long as it is there.
#[derive(Debug)]
struct Staging {
    folder: TempDir,
    _lock: Option<fs::File>,
    _leftover: Option<Leftover>,
}

impl Staging {
    /// From now on the folder stays, whatever happens to this process.
    fn keep(&mut self) {
        self._leftover = None;
        self.folder.disable_cleanup(true);
    }

    /// Removes the folder, whose files have all got their names.
    fn remove(mut self) {
        self.folder.disable_cleanup(false);
    }
}

impl AtomicModel {
    /// Starts as many files as `like` has. For a split model `path` is the name of any of them.
    ///
    /// # Errors
    /// As [`AtomicFile::create`]; [`GgufError::OutputShardName`] when the name is not that of a file of
    /// as many.
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
        // Before anything is judged by it.
        super::recover(&name.path(0));
        AtomicFile::check(&name.path(0), overwrite)?;
        let staging = stage(&name.path(0), directory)?;
        let create = |no| AtomicFile::staged(&name.path(no), staging.folder.path(), overwrite);
        let files = (0..count).map(create).collect::<Result<_, _>>()?;
        Ok(Self { files, overwrite, staging: Some(staging) })
    }

    /// The name that the first file will have, which is that of the model.
    pub fn path(&self) -> &Path {
        self.files[0].path()
    }

    /// The name that the first file has until [`AtomicModel::commit`]; the model can be opened and
    /// loaded by it once its files are flushed.
    pub fn temporary_path(&self) -> &Path {
        self.files[0].temporary_path()
    }

    /// The files, in order.
    pub fn files_mut(&mut self) -> &mut [AtomicFile] {
        &mut self.files
    }

    /// Makes all files durable, then gives them their names.
    ///
    /// # Errors
    /// [`GgufError`]; without `overwrite` nothing bears a final name then. With it, files of a split
    /// model may, but not the first, and [`super::recover`] gives the others theirs.
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

/// A hidden folder beside the file that will be called `first`.
fn stage(first: &Path, directory: &Path) -> Result<Staging, GgufError> {
    stale::sweep(first);
    let prefix = stale::prefix(first.file_name().unwrap_or_default());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(stale::SUFFIX);
    let failed = |error| GgufError::from_output(first, "create", error);
    if !cfg!(unix) {
        // A folder cannot be opened like a file there, and there is no lock to take.
        let folder = builder.tempdir_in(directory).map_err(failed)?;
        return Ok(Staging { _leftover: Some(Leftover::new(folder.path())), folder, _lock: None });
    }
    let open = |made: &TempDir| Ok((made.path().to_path_buf(), fs::File::open(made.path())?));
    let (folder, lock) = stale::locked(|| builder.tempdir_in(directory), open).map_err(failed)?;
    Ok(Staging { _leftover: Some(Leftover::new(folder.path())), folder, _lock: Some(lock) })
}

/// Gives the files their names, from the last to the first.
fn publish_all(files: Vec<Finished>, overwrite: bool) -> Result<(), GgufError> {
    let mut published: Vec<PathBuf> = Vec::new();
    for file in files.into_iter().rev() {
        let path = file.path().to_path_buf();
        if let Err(error) = file.publish() {
            if !overwrite {
                // Ours, and no model without the first: nobody can miss them.
                published.iter().for_each(|path| drop(fs::remove_file(path)));
            }
            return Err(error);
        }
        published.push(path);
    }
    Ok(())
}

/// Takes the name of an earlier model's first file away, for good before anything else is renamed.
fn retire(first: &Path) -> Result<(), GgufError> {
    let failed = |doing| move |error| GgufError::from_output(first, doing, error);
    match fs::remove_file(first) {
        Ok(()) => sync_directory(directory_of(first)).map_err(failed("sync the directory of")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("replace")(error)),
    }
}
