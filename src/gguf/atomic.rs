//! Output files that get their final name only when they are complete.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, PersistError};

use super::{GgufError, stale};
use crate::util::leftovers::Leftover;

/// A file written under a hidden temporary name in the directory of its final name.
/// [`AtomicFile::commit`] renames it; dropping it before that removes it.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    overwrite: bool,
    temporary: BufWriter<NamedTempFile>,
    leftover: Leftover,
}

impl AtomicFile {
    /// Creates a temporary file whose final name will be `path`. Fails immediately if the name is taken,
    /// unless `overwrite` is set; a directory, device, or pipe is never overwritten, and a symbolic link
    /// is replaced rather than followed, since other names may refer to its target. Also removes
    /// temporary files of killed runs that wrote to the same path.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, GgufError> {
        let name = Self::check(path, overwrite)?;
        stale::sweep(path);
        let prefix = stale::prefix(name);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(stale::SUFFIX);
        Self::start(path, overwrite, builder, directory_of(path))
    }

    /// Like [`AtomicFile::create`], but writes under the final file name in the directory `staging`.
    pub(super) fn staged(path: &Path, staging: &Path, overwrite: bool) -> Result<Self, GgufError> {
        let name = Self::check(path, overwrite)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(name).rand_bytes(0);
        Self::start(path, overwrite, builder, staging)
    }

    /// Runs those checks of [`AtomicFile::create`] that do not create anything.
    ///
    /// # Errors
    /// Returns the same errors as [`AtomicFile::create`].
    pub fn look(path: &Path, overwrite: bool) -> Result<(), GgufError> {
        Self::check(path, overwrite).map(drop)
    }

    /// Checks the target without creating anything; returns the file name of `path`.
    pub(super) fn check(path: &Path, overwrite: bool) -> Result<&OsStr, GgufError> {
        // `file_name` also returns `nodir` for `nodir/` and `nodir/.`.
        let named = |name: &&OsStr| path.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes());
        let name = path
            .file_name()
            .filter(named)
            .ok_or_else(|| GgufError::OutputIsDirectory { path: path.to_path_buf() })?;
        check_target(path, overwrite)?;
        let directory = directory_of(path);
        if !directory.is_dir() {
            return Err(GgufError::OutputNoDirectory {
                path: path.to_path_buf(),
                directory: directory.to_path_buf(),
            });
        }
        Ok(name)
    }

    fn start(
        path: &Path,
        overwrite: bool,
        mut builder: tempfile::Builder<'_, '_>,
        directory: &Path,
    ) -> Result<Self, GgufError> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // tempfile defaults to 0600; a model is not secret, so let the umask decide.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let open = |made: &NamedTempFile| Ok((made.path().to_path_buf(), made.as_file().try_clone()?));
        // The cloned handle shares the lock, which lasts until the last handle is closed.
        let (temporary, _) = stale::locked(|| builder.tempfile_in(directory), open)
            .map_err(|error| GgufError::from_output(path, "create", error))?;
        Ok(AtomicFile {
            path: path.to_path_buf(),
            overwrite,
            leftover: Leftover::new(temporary.path()),
            temporary: BufWriter::with_capacity(1 << 20, temporary),
        })
    }

    /// The final path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the file until [`AtomicFile::commit`].
    pub fn temporary_path(&self) -> &Path {
        self.temporary.get_ref().path()
    }

    /// Flushes and duplicates the file handle. The duplicate shares the file position and the lock.
    pub(super) fn handle(&mut self) -> Result<File, GgufError> {
        let handle = self.temporary.flush().and_then(|()| self.temporary.get_ref().as_file().try_clone());
        handle.map_err(|error| GgufError::from_output(&self.path, "write", error))
    }

    /// Writes a whole file atomically.
    ///
    /// # Errors
    /// Returns [`GgufError`] if the file cannot be created, written, or renamed. A partially written file
    /// never has the name `path`.
    pub fn write_whole(path: &Path, bytes: &[u8], overwrite: bool) -> Result<(), GgufError> {
        let mut file = Self::create(path, overwrite)?;
        file.write_all(bytes).map_err(|error| GgufError::from_write(path, error))?;
        file.commit()
    }

    /// Syncs the file to disk and renames it to its final name. Without `overwrite`, fails if the name
    /// has been taken since [`AtomicFile::create`].
    pub fn commit(self) -> Result<(), GgufError> {
        self.finish()?.publish()
    }

    /// Syncs the file to disk under its temporary name.
    pub(super) fn finish(self) -> Result<Finished, GgufError> {
        let AtomicFile { path, overwrite, temporary, leftover } = self;
        let failed = |doing| {
            let path = &path;
            move |error| GgufError::from_output(path, doing, error)
        };
        let temporary = temporary.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        temporary.as_file().sync_all().map_err(failed("sync"))?;
        Ok(Finished { path, overwrite, temporary, leftover: Some(leftover) })
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        if kind == ErrorKind::Interrupted {
            return error;
        }
        io::Error::new(kind, GgufError::from_output(&self.path, "write", error))
    }
}

/// A file that is complete and synced to disk but still has its temporary name.
#[derive(Debug)]
pub(super) struct Finished {
    path: PathBuf,
    overwrite: bool,
    temporary: NamedTempFile,
    leftover: Option<Leftover>,
}

impl Finished {
    /// The final path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the final name is still available.
    pub(super) fn check(&self) -> Result<(), GgufError> {
        check_target(&self.path, self.overwrite)
    }

    /// Keeps the temporary file even if this process is killed or the value is dropped.
    pub(super) fn keep(&mut self) {
        self.leftover = None;
        self.temporary.disable_cleanup(true);
    }

    /// Renames the file to its final name.
    pub(super) fn publish(self) -> Result<(), GgufError> {
        let Finished { path, overwrite, temporary, leftover } = self;
        let failed = |doing| {
            let path = &path;
            move |error| GgufError::from_output(path, doing, error)
        };
        let renamed = match overwrite {
            true => check_target(&path, true).and_then(|()| {
                let renamed = temporary.persist(&path);
                renamed.map_err(|error| failed("rename")(error.error))
            }),
            false => persist_new(temporary, &path).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => GgufError::OutputExists { path: path.clone() },
                _ => failed("rename")(error),
            }),
        };
        drop(renamed?);
        drop(leftover);
        sync_directory(directory_of(&path)).map_err(failed("sync the directory of"))
    }
}

/// I/O errors (except interruptions) wrap a [`GgufError`] that names the output.
impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.temporary.write(bytes);
        written.map_err(|error| self.explain(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.temporary.flush();
        flushed.map_err(|error| self.explain(error))
    }
}

pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn check_target(path: &Path, overwrite: bool) -> Result<(), GgufError> {
    let owned = || path.to_path_buf();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        // For example, the name is too long.
        Err(error) => return Err(GgufError::from_output(path, "create", error)),
    };
    if found.is_dir() {
        return Err(GgufError::OutputIsDirectory { path: owned() });
    }
    if !overwrite {
        return Err(GgufError::OutputExists { path: owned() });
    }
    if !found.is_file() && !found.is_symlink() {
        return Err(GgufError::OutputNotAFile { path: owned() });
    }
    Ok(())
}

/// Renames without replacing an existing file.
fn persist_new(temporary: NamedTempFile, path: &Path) -> io::Result<File> {
    let PersistError { error, file } = match temporary.persist_noclobber(path) {
        Ok(file) => return Ok(file),
        Err(failed) => failed,
    };
    if error.kind() == ErrorKind::AlreadyExists {
        return Err(error);
    }
    // Filesystems such as exFAT have neither an exclusive rename nor hard links. Reserve the name by
    // creating an empty file exclusively, then replace that file.
    OpenOptions::new().write(true).create_new(true).open(path)?;
    file.persist(path).map_err(|failed| {
        // This is our own empty placeholder; report the error of the rename.
        let _ = fs::remove_file(path);
        failed.error
    })
}

/// Syncs a directory, so that a rename survives a power failure. Does nothing where directories cannot be synced.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        Err(error) if !matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Err(error),
        _ => Ok(()),
    }
}
