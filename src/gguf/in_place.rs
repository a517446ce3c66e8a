//! Changing a file in place so that it can be restored after a crash at any point.
//!
//! The changed file is byte for byte the copy that [`Rewrite`] would write. The change needs a journal
//! beside the file, `NAME.rosi-undo`, which holds the original header and edited tensors and two buffers
//! of one [`BATCH`] each. The steps, each synced to disk before the next:
//!
//! 1. Write the journal under a temporary name and read it back. The journal and the file together must
//!    reproduce the hash of the original; otherwise the file has changed since it was measured. Then
//!    rename the journal to its final name, provided that the name is free.
//! 2. Grow the file by as much as its header grows (including the padding to the alignment).
//! 3. Overwrite the edited tensors at their original offsets.
//! 4. Move all data up by the growth, starting from the end, batch by batch. Each batch is saved in the
//!    journal before it is written, and the journal records the progress.
//! 5. Write the new header over the old one and over the start of the data that has moved away.
//!
//! Undoing moves the data back from the start, writes the saved ranges, and truncates the file to its
//! original length. The journal can therefore be verified before it is used: [`undo`] first computes the
//! hash of the result, and writes nothing if it is not the hash of the original.
//!
//! The journal is locked while the file is being changed or restored, which distinguishes a running
//! change from an interrupted one. [`Gguf::open`] rejects both.

mod disk;
mod error;
mod journal;
mod model;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{AtomicFile, Gguf, GgufError, Progress, Rewrite, TensorInfo, atomic, reader};
pub use error::UndoError;
pub use journal::Phase;
use journal::{Head, Journal};
use model::Model;

/// Maximum number of bytes moved at a time.
pub const BATCH: u64 = 8 << 20;

/// Callback that computes the new data of an edited tensor from its old data.
pub type NewData<'a> =
    dyn FnMut(&TensorInfo, Vec<u8>) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Description of an in-place change.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// The copy that the file is to become. It must not change the type of any tensor.
    pub rewrite: &'a Rewrite<'a>,
    /// Names of the tensors that get new data.
    pub edited: &'a [&'a str],
    /// SHA-256 of the file when it was measured.
    pub sha256: &'a str,
    /// Maximum number of bytes moved at a time, normally [`BATCH`].
    pub batch: u64,
}

impl Change<'_> {
    fn edits(&self, tensor: &TensorInfo) -> bool {
        self.edited.contains(&tensor.name.as_str())
    }
}

/// Result of [`undo`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Undone {
    /// SHA-256 of the restored file.
    pub sha256: String,
    /// Length of the restored file in bytes.
    pub bytes: u64,
    /// Whether the undone change had been completed.
    pub was_complete: bool,
    /// Whether the journal was kept.
    pub journal_kept: bool,
}

/// Returns the path of the journal for the file at `path`: the path with `.rosi-undo` appended.
pub fn journal_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".rosi-undo");
    name.into()
}

/// Rejects a file with a running or unfinished in-place change.
pub(super) fn refuse_unfinished(path: &Path) -> Result<(), GgufError> {
    let journal = journal_path(path);
    if !journal.exists() {
        return Ok(());
    }
    let journal = Journal::open(&journal, false)?;
    match journal.state.phase {
        Phase::Changing if journal.lock(true) => Err(GgufError::HalfChanged { path: path.into() }),
        Phase::Changing => Err(GgufError::BeingChanged { path: path.into() }),
        Phase::Done | Phase::Restored => Ok(()),
    }
}

/// Checks, before any work is done, whether the file at `path` can be changed in place.
///
/// # Errors
/// Returns [`UndoError`] if the path is a link, a journal exists already, or the file or its directory is
/// not writable.
pub fn check(path: &Path) -> Result<(), UndoError> {
    refuse_links(path)?;
    refuse_unfinished(path)?;
    open_model(path)?;
    if let Some(Phase::Restored) = phase(path)? {
        return Ok(());
    }
    new_journal(path).map(drop)
}

/// Rejects split models: a journal covers one file, and a crash between two files would leave neither the
/// old model nor the new one.
///
/// # Errors
/// Returns [`UndoError::Split`] if the model has more than one file.
pub fn refuse_split(gguf: &Gguf) -> Result<(), UndoError> {
    match gguf.n_files() {
        1 => Ok(()),
        files => Err(UndoError::Split { path: gguf.path.clone(), files }),
    }
}

/// Returns the phase of the change of the file at `path`, or `None` if there is no journal.
///
/// # Errors
/// Returns [`UndoError`] if the journal cannot be read.
pub fn phase(path: &Path) -> Result<Option<Phase>, UndoError> {
    let journal = journal_path(path);
    if !journal.exists() {
        return Ok(None);
    }
    Ok(Some(Journal::open(&journal, false)?.state.phase))
}

/// A change in progress; see the module documentation. [`InPlace::accept`] or [`InPlace::restore`] ends it.
/// Dropping it leaves the file partly changed, as after a crash.
#[derive(Debug)]
pub struct InPlace {
    model: Model,
    header: Vec<u8>,
}

impl InPlace {
    /// Writes the journal without changing the file.
    ///
    /// # Errors
    /// Returns [`UndoError`] if the journal cannot be written or the file is not the measured one. No new
    /// journal is left behind.
    pub fn begin(change: &Change<'_>, progress: &mut Progress<'_>) -> Result<Self, UndoError> {
        let source = change.rewrite.source;
        let path = &source.path;
        refuse_split(source)?;
        refuse_links(path)?;
        let header = change.rewrite.header()?;
        let shift = (header.len() as u64).checked_sub(source.data_start);
        let layout = |problem| UndoError::Layout { path: path.clone(), problem };
        let shift = shift.ok_or_else(|| layout("the new header is shorter"))?;
        if !change.rewrite.types.is_empty() {
            return Err(layout("tensor types would change"));
        }
        let file = open_model(path)?;
        remove_restored(path)?;
        let mut out = new_journal(path)?;
        Journal::write(&Head::new(change, shift), &file, &mut out, progress)?;
        // Reuse the open file, which holds the lock; a newly opened handle could not acquire it.
        let handle = out.handle()?;
        let journal = Journal::of_file(out.temporary_path(), handle)?;
        let mut model = Model { path: path.clone(), file, journal };
        let found = model.hash_original(progress)?;
        if found != change.sha256 {
            let expected = change.sha256.to_owned();
            return Err(GgufError::Rewritten { path: path.clone(), expected, found }.into());
        }
        // Lock first: once the journal has its final name, other processes can see it.
        model.lock()?;
        out.commit().map_err(|error| taken(path, error))?;
        model.journal.path = journal_path(path);
        Ok(Self { model, header })
    }

    /// Changes the file. After a failure the file is partly changed; call [`InPlace::restore`].
    ///
    /// # Errors
    /// Returns [`UndoError`] if reading or writing fails, or if `new_data` or `progress` returns an error.
    pub fn apply(
        &mut self,
        change: &Change<'_>,
        new_data: &mut NewData<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<(), UndoError> {
        self.model.grow()?;
        for tensor in change.rewrite.source.tensors.iter().filter(|t| change.edits(t)) {
            let old = self.read_original(&tensor.data)?;
            let name = || tensor.name.clone();
            let new =
                new_data(tensor, old).map_err(|source| UndoError::Replace { tensor: name(), source })?;
            let (expected, found) = (tensor.n_bytes(), new.len() as u64);
            if expected != found {
                return Err(GgufError::TensorLength { tensor: name(), expected, found }.into());
            }
            self.model.write(tensor.data.start, &new)?;
            self.model.tell(progress, tensor.data.end)?;
        }
        self.model.sync()?;
        self.model.shift_up(progress)?;
        self.model.write(0, &self.header)?;
        self.model.sync()
    }

    /// Opens the changed file.
    ///
    /// # Errors
    /// Returns [`GgufError`] if the file cannot be read.
    pub fn open_changed(&self) -> Result<Gguf, GgufError> {
        reader::open(&self.model.path, 0)
    }

    /// Reads a byte range of the original file.
    ///
    /// # Errors
    /// Returns [`GgufError`] if the file or the journal cannot be read.
    pub fn read_original(&self, range: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.model.read_original(range)
    }

    /// Verifies that the original can be restored, and thus that nothing outside the edited tensors and
    /// the header has changed.
    ///
    /// # Errors
    /// Returns [`UndoError::Stranger`] if the original cannot be restored.
    pub fn prove(&self, progress: &mut Progress<'_>) -> Result<(), UndoError> {
        self.model.prove(progress)
    }

    /// Marks the change as complete; the journal is kept for [`undo`].
    ///
    /// # Errors
    /// Returns [`UndoError`] if the journal cannot be written.
    pub fn accept(&mut self) -> Result<(), UndoError> {
        let at = self.model.journal.state.moving.start;
        self.model.journal.record(Phase::Done, at..at, &[])
    }

    /// Restores the original and removes the journal.
    ///
    /// # Errors
    /// Returns [`UndoError`] if the original cannot be restored; the journal is then kept.
    pub fn restore(mut self) -> Result<(), UndoError> {
        self.model.put_back(&mut |_, _| Ok(()))?;
        self.model.remove_journal()
    }
}

/// Restores the file at `path` to its state before the in-place change, after a crash at any point, and
/// removes the journal unless `keep_journal` is set. An interrupted undo can be repeated.
///
/// # Errors
/// Returns [`UndoError`] if there is no valid journal or the file cannot be restored. Nothing is written
/// unless the result would have the original's hash.
pub fn undo(path: &Path, keep_journal: bool, progress: &mut Progress<'_>) -> Result<Undone, UndoError> {
    let journal = journal_path(path);
    if !journal.exists() {
        return Err(UndoError::NoJournal { path: path.into() });
    }
    let journal = Journal::open(&journal, true)?;
    let was_complete = journal.state.phase == Phase::Done;
    let mut model = Model { path: path.into(), file: open_model(path)?, journal };
    model.lock()?;
    // Another process may have changed or removed the journal before it was locked.
    if !journal_path(path).exists() {
        return Err(UndoError::NoJournal { path: path.into() });
    }
    model.journal.refresh()?;
    model.prove(progress)?;
    model.put_back(progress)?;
    let Head { sha256, bytes, .. } = model.journal.head.clone();
    if !keep_journal {
        model.remove_journal()?;
    }
    Ok(Undone { sha256, bytes, was_complete, journal_kept: keep_journal })
}

fn remove(journal: &Path) -> Result<(), UndoError> {
    fs::remove_file(journal)
        .and_then(|()| atomic::sync_directory(atomic::directory_of(journal)))
        .map_err(|error| GgufError::from_output(journal, "remove", error).into())
}

/// Removes a journal that was kept after an undo, to make room for a new one.
fn remove_restored(path: &Path) -> Result<(), UndoError> {
    match phase(path)? {
        Some(Phase::Restored) => remove(&journal_path(path)),
        _ => Ok(()),
    }
}

fn new_journal(path: &Path) -> Result<AtomicFile, UndoError> {
    AtomicFile::create(&journal_path(path), false).map_err(|error| taken(path, error))
}

fn taken(path: &Path, error: GgufError) -> UndoError {
    match error {
        GgufError::OutputExists { .. } => match refuse_unfinished(path) {
            Ok(()) => UndoError::Journaled { path: path.into() },
            Err(error) => error.into(),
        },
        error => error.into(),
    }
}

fn open_model(path: &Path) -> Result<File, UndoError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    Ok(opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => GgufError::NotFound { path: path.into() },
        _ => GgufError::from_output(path, "open", error),
    })?)
}

/// Rejects links, since a change would also affect the file's other names.
fn refuse_links(path: &Path) -> Result<(), UndoError> {
    let linked = |problem: String| UndoError::Linked { path: path.into(), problem };
    if let Ok(target) = fs::read_link(path) {
        return Err(linked(format!("is a link to {}", target.display())));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let names = fs::metadata(path).map_or(1, |found| found.nlink());
        if names > 1 {
            return Err(linked(format!("has {names} names (hard links)")));
        }
    }
    Ok(())
}
