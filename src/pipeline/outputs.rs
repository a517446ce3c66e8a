//! Checks a command's output paths before it does any work.

use std::path::Path;

use crate::gguf::AtomicFile;
use crate::pipeline::error::Error;

/// Checks that a file can be created at each path: the directory exists and is writable, the system accepts the name,
/// and the name is free, unless `overwrite`.
///
/// # Errors
/// Returns [`Error::Gguf`] for the first path where no file can be created.
pub fn check<'a>(paths: impl IntoIterator<Item = &'a Path>, overwrite: bool) -> Result<(), Error> {
    Ok(paths.into_iter().try_for_each(|path| AtomicFile::create(path, overwrite).map(drop))?)
}

/// Like [`check`], but without creating temporary files, so that it finds fewer problems.
///
/// # Errors
/// Returns [`Error::Gguf`] for the first path with a problem.
pub fn look<'a>(paths: impl IntoIterator<Item = &'a Path>, overwrite: bool) -> Result<(), Error> {
    Ok(paths.into_iter().try_for_each(|path| AtomicFile::look(path, overwrite))?)
}
