//! The files that a command is to write, looked at before its work.

use std::path::Path;

use crate::gguf::AtomicFile;
use crate::pipeline::error::Error;

/// Whether a file can be made under each of these names: the folder is there and can be written to, the name is none that the
/// system refuses, and nothing bears it unless `overwrite`.
///
/// # Errors
/// [`Error::Gguf`] for the first name under which none can.
pub fn check<'a>(paths: impl IntoIterator<Item = &'a Path>, overwrite: bool) -> Result<(), Error> {
    Ok(paths.into_iter().try_for_each(|path| AtomicFile::create(path, overwrite).map(drop))?)
}

/// As [`check`], as far as it shows without creating anything.
///
/// # Errors
/// As [`check`].
pub fn look<'a>(paths: impl IntoIterator<Item = &'a Path>, overwrite: bool) -> Result<(), Error> {
    Ok(paths.into_iter().try_for_each(|path| AtomicFile::look(path, overwrite))?)
}
