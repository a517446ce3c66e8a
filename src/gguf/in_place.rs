//! Changing a file in place, so that it can be put back from whatever state a crash leaves.
//!
//! The changed file is byte for byte the copy that [`Rewrite`] would write. What it needs beside the
//! file is a journal, `NAME.rosi-undo`: the header and the edited tensors as they were, and twice a
//! [`BATCH`]. In order, each step on disk before the next:
//!
//! 1. the journal is written under a temporary name, and read back: with it and the file as it is, the
//!    hash of the original must come out, or the file is another one than was measured. Then it gets
//!    its name, which it only gets when nothing else has it;
//! 2. the file grows by as much as its header does (the padding to the alignment included);
//! 3. the edited tensors are overwritten where they stand;
//! 4. all data moves by the growth, from the end, batch by batch; each batch is in the journal before
//!    it is written, and the journal says how far the move has come;
//! 5. the new header is written over the old one, and over the start of the data that has moved away.
//!
//! Putting back is the same move from the start, then everything that was saved, then the old length.
//! A journal can therefore be judged before it is used: [`undo`] first computes the hash of what it
//! would put back, and writes nothing when that is not the original.
//!
//! The journal is locked while the file is being changed or put back, so a stopped change can be told
//! from one that runs; [`Gguf::open`] refuses both.

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

/// Most bytes that are on the move at a time.
pub const BATCH: u64 = 8 << 20;

/// Computes the new data of an edited tensor from the old.
pub type NewData<'a> =
    dyn FnMut(&TensorInfo, Vec<u8>) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// What is to be changed.
#[derive(Clone, Copy)]
pub struct Change<'a> {
    /// The copy that the file is to become; no tensor may get another type.
    pub rewrite: &'a Rewrite<'a>,
    /// Names of the tensors that get new data.
    pub edited: &'a [&'a str],
    /// Hash of the file, as it was when the change was decided on.
    pub sha256: &'a str,
    /// Most bytes that are on the move at a time, [`BATCH`].
    pub batch: u64,
}

impl Change<'_> {
    fn edits(&self, tensor: &TensorInfo) -> bool {
        self.edited.contains(&tensor.name.as_str())
    }
}

/// What [`undo`] did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Undone {
    /// Hash of the file, which is again the original.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
    /// Whether the change that was undone had been completed.
    pub was_complete: bool,
    /// Whether the journal is still there.
    pub journal_kept: bool,
}

/// The journal of the file at `path`: its name with `.rosi-undo` after it.
pub fn journal_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".rosi-undo");
    name.into()
}

/// Refuses a file whose change is going on or was never finished.
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

/// Tells at once, before any work, what would keep the file at `path` from being changed in place.
///
/// # Errors
/// [`UndoError`]: a link, a journal that is there already, no permission for the file or beside it.
pub fn check(path: &Path) -> Result<(), UndoError> {
    refuse_links(path)?;
    refuse_unfinished(path)?;
    open_model(path)?;
    if let Some(Phase::Restored) = phase(path)? {
        return Ok(());
    }
    new_journal(path).map(drop)
}

/// Refuses a model of several files: a journal is for one, and a crash between two would leave neither the
/// old model nor the new one.
///
/// # Errors
/// [`UndoError::Split`].
pub fn refuse_split(gguf: &Gguf) -> Result<(), UndoError> {
    match gguf.n_files() {
        1 => Ok(()),
        files => Err(UndoError::Split { path: gguf.path.clone(), files }),
    }
}

/// How far the change of the file at `path` has come; `None` without a journal.
///
/// # Errors
/// [`UndoError`] when the journal cannot be read.
pub fn phase(path: &Path) -> Result<Option<Phase>, UndoError> {
    let journal = journal_path(path);
    if !journal.exists() {
        return Ok(None);
    }
    Ok(Some(Journal::open(&journal, false)?.state.phase))
}

/// A change that is under way; see the module. [`InPlace::accept`] or [`InPlace::restore`] ends it; one
/// that is dropped is half-done, as after a crash.
#[derive(Debug)]
pub struct InPlace {
    model: Model,
    header: Vec<u8>,
}

impl InPlace {
    /// Writes the journal; the file itself stays as it is.
    ///
    /// # Errors
    /// [`UndoError`]; then there is no journal that was not there before.
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
            return Err(layout("tensors would get other types"));
        }
        let file = open_model(path)?;
        remove_restored(path)?;
        let mut out = new_journal(path)?;
        Journal::write(&Head::new(change, shift), &file, &mut out, progress)?;
        // The same open file, which has the lock already; opened anew it would be locked out by itself.
        let handle = out.handle()?;
        let journal = Journal::of_file(out.temporary_path(), handle)?;
        let mut model = Model { path: path.clone(), file, journal };
        let found = model.hash_original(progress)?;
        if found != change.sha256 {
            let expected = change.sha256.to_owned();
            return Err(GgufError::Rewritten { path: path.clone(), expected, found }.into());
        }
        // The lock first: from its name on, the journal is seen by others.
        model.lock()?;
        out.commit().map_err(|error| taken(path, error))?;
        model.journal.path = journal_path(path);
        Ok(Self { model, header })
    }

    /// Changes the file. On failure it is half-changed: call [`InPlace::restore`].
    ///
    /// # Errors
    /// [`UndoError`] of the disk, of `new_data`, or of `progress`.
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

    /// The changed file.
    ///
    /// # Errors
    /// [`GgufError`] when it cannot be read.
    pub fn open_changed(&self) -> Result<Gguf, GgufError> {
        reader::open(&self.model.path, 0)
    }

    /// Bytes of the file as it was before.
    ///
    /// # Errors
    /// [`GgufError`] when the file or the journal cannot be read.
    pub fn read_original(&self, range: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.model.read_original(range)
    }

    /// Proves that the original can be put back, and with it that nothing outside the edited tensors and
    /// the header has changed.
    ///
    /// # Errors
    /// [`UndoError::Stranger`] when it cannot.
    pub fn prove(&self, progress: &mut Progress<'_>) -> Result<(), UndoError> {
        self.model.prove(progress)
    }

    /// Ends the change; the journal stays for [`undo`].
    ///
    /// # Errors
    /// [`UndoError`] when that cannot be recorded.
    pub fn accept(&mut self) -> Result<(), UndoError> {
        let at = self.model.journal.state.moving.start;
        self.model.journal.record(Phase::Done, at..at, &[])
    }

    /// Puts the original back and removes the journal.
    ///
    /// # Errors
    /// [`UndoError`]; then the journal is still there.
    pub fn restore(mut self) -> Result<(), UndoError> {
        self.model.put_back(&mut |_, _| Ok(()))?;
        self.model.remove_journal()
    }
}

/// Puts back what the file at `path` was before it was changed in place, from whatever state a crash
/// left, and removes the journal unless `keep_journal`. May itself be stopped and called again.
///
/// # Errors
/// [`UndoError`]. Nothing is written unless what the journal would put back has the original's hash.
pub fn undo(path: &Path, keep_journal: bool, progress: &mut Progress<'_>) -> Result<Undone, UndoError> {
    let journal = journal_path(path);
    if !journal.exists() {
        return Err(UndoError::NoJournal { path: path.into() });
    }
    let journal = Journal::open(&journal, true)?;
    let was_complete = journal.state.phase == Phase::Done;
    let mut model = Model { path: path.into(), file: open_model(path)?, journal };
    model.lock()?;
    // What was read before the lock may have been another's to change, or to remove.
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

/// A journal whose work was undone, and which was kept, makes way for a new one.
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

/// Whoever shares the bytes under another name has not asked for the change.
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
