//! A model file and its journal: locating original bytes, and moving data up and back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::disk::{CHUNK, pieces, read_at, reserve, write_at};
use super::journal::{Head, Journal, Phase, Place};
use super::{UndoError, journal_path};
use crate::gguf::{GgufError, Progress, digest};

/// Attempts to take the lock, which another process may hold briefly just to inspect the journal.
const LOCK_TRIES: u32 = 20;

/// A model file and its journal.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) journal: Journal,
}

impl Model {
    fn wrote(&self, result: io::Result<()>) -> Result<(), UndoError> {
        Ok(result.map_err(|error| GgufError::from_output(&self.path, "change", error))?)
    }

    pub(super) fn sync(&self) -> Result<(), UndoError> {
        self.wrote(self.file.sync_data())
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), UndoError> {
        self.wrote(write_at(&self.file, at, bytes))
    }

    /// Extends the file by the shift and syncs it.
    pub(super) fn grow(&self) -> Result<(), UndoError> {
        let Head { bytes, shift, .. } = self.journal.head;
        self.wrote(reserve(&self.file, bytes..bytes + shift))?;
        self.sync()
    }

    pub(super) fn tell(&self, progress: &mut Progress<'_>, done: u64) -> Result<(), UndoError> {
        progress(done, self.journal.head.bytes)
            .map_err(|source| UndoError::Stopped { path: self.path.clone(), source })
    }

    pub(super) fn lock(&self) -> Result<(), UndoError> {
        for _ in 0..LOCK_TRIES {
            if self.journal.lock(false) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(GgufError::BeingChanged { path: self.path.clone() }.into())
    }

    fn read(&self, at: u64, len: u64) -> Result<Vec<u8>, GgufError> {
        let path = self.path.clone();
        read_at(&self.file, at, len).map_err(|source| GgufError::Read { path, source })
    }

    /// Reads bytes of the original, wherever they are now.
    pub(super) fn read_original(&self, range: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        let mut bytes = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (place, end) = self.journal.locate(at);
            let len = end.min(range.end) - at;
            bytes.append(&mut match place {
                Place::Journal(from) => self.journal.read(from, len)?,
                Place::Model(from) => self.read(from, len)?,
            });
            at += len;
        }
        Ok(bytes)
    }

    pub(super) fn hash_original(&self, progress: &mut Progress<'_>) -> Result<String, UndoError> {
        let mut hash = Sha256::new();
        for range in pieces(0..self.journal.head.bytes, CHUNK) {
            hash.update(self.read_original(&range)?);
            self.tell(progress, range.end)?;
        }
        Ok(digest::hex(&hash.finalize()))
    }

    /// Verifies that the file and the journal together reproduce the original.
    pub(super) fn prove(&self, progress: &mut Progress<'_>) -> Result<(), UndoError> {
        let Head { bytes, shift, sha256, .. } = &self.journal.head;
        let stranger = |expected, found| UndoError::Stranger { path: self.path.clone(), expected, found };
        let len = self.len()?;
        // Once data has moved, the file must have its full new length; while it grows or shrinks, it may be shorter.
        let moved = self.journal.state.moving.start < *bytes;
        if len > bytes + shift || len < if moved { bytes + shift } else { *bytes } {
            let expected = match self.journal.state.phase {
                Phase::Restored => format!("{bytes} bytes"),
                _ => format!("{} bytes", bytes + shift),
            };
            return Err(stranger(expected, format!("{len}")));
        }
        match self.hash_original(progress)? {
            found if found == *sha256 => Ok(()),
            found => Err(stranger(format!("sha256 {sha256} after undoing"), found)),
        }
    }

    fn len(&self) -> Result<u64, UndoError> {
        let path = self.path.clone();
        Ok(self.file.metadata().map_err(|source| GgufError::Read { path, source })?.len())
    }

    /// Moves the data up by the shift, starting from the end.
    pub(super) fn shift_up(&mut self, progress: &mut Progress<'_>) -> Result<(), UndoError> {
        let Head { shift, batch, bytes, .. } = self.journal.head;
        let start = self.journal.head.data_start();
        if shift == 0 {
            return Ok(());
        }
        while self.journal.state.moving.start > start {
            let end = self.journal.state.moving.start;
            let range = end.saturating_sub(batch).max(start)..end;
            let moving = self.read(range.start, range.end - range.start)?;
            self.journal.record(Phase::Changing, range.clone(), &moving)?;
            self.write(range.start + shift, &moving)?;
            self.sync()?;
            self.tell(progress, bytes - range.start)?;
        }
        self.journal.record(Phase::Changing, start..start, &[])
    }

    /// Moves the data back, starting at the recorded position.
    fn shift_back(&mut self, progress: &mut Progress<'_>) -> Result<(), UndoError> {
        let Head { shift, batch, bytes, .. } = self.journal.head;
        if shift == 0 {
            return Ok(());
        }
        let moving = self.journal.batch()?;
        self.write(self.journal.state.moving.start, &moving)?;
        self.sync()?;
        for range in pieces(self.journal.state.moving.end..bytes, batch) {
            let moving = self.read(range.start + shift, range.end - range.start)?;
            self.journal.record(Phase::Changing, range.clone(), &moving)?;
            self.write(range.start, &moving)?;
            self.sync()?;
            self.tell(progress, range.end)?;
        }
        self.journal.record(Phase::Changing, bytes..bytes, &[])
    }

    /// Restores the original and verifies it by reading it back.
    pub(super) fn put_back(&mut self, progress: &mut Progress<'_>) -> Result<(), UndoError> {
        self.shift_back(progress)?;
        let Head { bytes, saved, sha256, .. } = self.journal.head.clone();
        for range in saved.into_iter().flat_map(|range| pieces(range, CHUNK)) {
            self.write(range.start, &self.read_original(&range)?)?;
        }
        self.wrote(self.file.set_len(bytes))?;
        self.wrote(self.file.sync_all())?;
        let mut hash = Sha256::new();
        for range in pieces(0..bytes, CHUNK) {
            hash.update(self.read(range.start, range.end - range.start)?);
        }
        let found = digest::hex(&hash.finalize());
        if found != sha256 {
            return Err(GgufError::Rewritten { path: self.path.clone(), expected: sha256, found }.into());
        }
        self.journal.record(Phase::Restored, bytes..bytes, &[])
    }

    pub(super) fn remove_journal(&self) -> Result<(), UndoError> {
        super::remove(&journal_path(&self.path))
    }
}
