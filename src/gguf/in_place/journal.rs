//! The undo journal: the original data of a file and the progress of its change.
//!
//! ```text
//! "ROSIUNDO"  u64 length of the head  head (JSON)  sha256 of the head
//! 2 × record                        progress of the change; the newest valid record counts
//! 2 × batch                         the bytes being moved, one slot per record
//! saved bytes                       of every range in the head, in order
//!
//! record = u64 seq, u64 phase, u64 a, u64 b, sha256 of the batch, sha256 of the record
//! ```
//!
//! A record means: data from `b` on has moved up by `shift` bytes, data before `a` has not moved, and
//! `a..b` is in the batch. Records and batches alternate between two slots, so a torn write leaves the
//! previous record intact, and everything up to its step is on disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{CHUNK, pieces, read_at, write_at};
use super::{Change, UndoError};
use crate::gguf::ffi::{Lock, try_lock, unlock};
use crate::gguf::{AtomicFile, GgufError, Progress};

const MAGIC: &[u8; 8] = b"ROSIUNDO";
const FORMAT: u32 = 1;
/// Maximum length of the head. It lists ranges, not data, so a longer head is damaged.
const MAX_HEAD: u64 = 64 << 20;
const NO_RECORD: &str = "neither of its progress records is valid";
const HASH: usize = 32;
const RECORD: u64 = 4 * 8 + 2 * HASH as u64;

/// Phase of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The file is being changed, or was when the process died.
    Changing,
    /// The change is complete and was accepted.
    Done,
    /// The original was restored.
    Restored,
}

impl Phase {
    const ALL: [Phase; 3] = [Phase::Changing, Phase::Done, Phase::Restored];
}

/// Progress of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    seq: u64,
    pub(super) phase: Phase,
    /// Range that is in the batch, in offsets of the original. Data before it has not moved; data after it has.
    pub(super) moving: Range<u64>,
}

/// The constant part of the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    format: u32,
    /// Version of the program that wrote the journal.
    version: String,
    /// Length of the original in bytes.
    pub(super) bytes: u64,
    /// SHA-256 of the original.
    pub(super) sha256: String,
    /// Number of bytes by which its data moves up.
    pub(super) shift: u64,
    /// Maximum number of bytes moved at a time.
    pub(super) batch: u64,
    /// Ranges of the original saved in the journal, in order; the first is the header.
    pub(super) saved: Vec<Range<u64>>,
}

impl Head {
    pub(super) fn new(change: &Change<'_>, shift: u64) -> Self {
        let source = change.rewrite.source;
        let edited = source.tensors.iter().filter(|t| change.edits(t)).map(|t| t.data.clone());
        let data = source.file_len - source.data_start;
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            bytes: source.file_len,
            sha256: change.sha256.to_owned(),
            shift,
            batch: if shift == 0 { 0 } else { change.batch.clamp(1, data.max(1)) },
            saved: std::iter::once(0..source.data_start).chain(edited.filter(|r| !r.is_empty())).collect(),
        }
    }

    /// Returns the offset of the tensor data in the original.
    pub(super) fn data_start(&self) -> u64 {
        self.saved.first().map_or(0, |header| header.end)
    }

    /// Checks that the fields could have been produced by [`Head::new`].
    fn is_sound(&self) -> bool {
        let mut end = 0;
        let ordered = self.saved.iter().all(|range| {
            let fits = range.start >= end && range.start < range.end && range.end <= self.bytes;
            end = range.end;
            fits
        });
        let small = self.bytes.checked_add(self.shift).is_some_and(|n| n < u64::MAX / 4);
        let batch = self.batch <= self.bytes && (self.batch > 0 || self.shift == 0);
        ordered && small && batch && self.saved.first().is_some_and(|header| header.start == 0)
    }
}

/// Current location of a byte of the original: an offset in the journal or in the model file.
pub(super) enum Place {
    Journal(u64),
    Model(u64),
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) path: PathBuf,
    file: File,
    records_at: u64,
    pub(super) head: Head,
    pub(super) state: State,
}

impl Journal {
    /// Writes the initial journal of `model` to `out`: everything is saved, nothing has moved. Does not sync it.
    pub(super) fn write(
        head: &Head,
        model: &File,
        out: &mut AtomicFile,
        progress: &mut Progress<'_>,
    ) -> Result<(), UndoError> {
        use io::Write;
        let path = out.path().to_path_buf();
        let failed = |error| UndoError::from(GgufError::from_write(&path, error));
        let json = serde_json::to_vec(head).map_err(|error| failed(error.into()))?;
        let len = json.len() as u64;
        let (len, sum) = (len.to_le_bytes(), Sha256::digest(&json));
        let parts = [&MAGIC[..], &len, &json, &sum];
        parts.iter().try_for_each(|part| out.write_all(part)).map_err(failed)?;
        let state = State { seq: 1, phase: Phase::Changing, moving: head.bytes..head.bytes };
        let first = encode(&state, &[]);
        // Goes into slot 1, the slot for odd numbers; an all-zero record (slot 0) is invalid.
        out.write_all(&vec![0; RECORD as usize]).and_then(|()| out.write_all(&first)).map_err(failed)?;
        let nothing = vec![0; head.batch as usize];
        (0..2).try_for_each(|_| out.write_all(&nothing)).map_err(failed)?;
        let total = head.saved.iter().map(|range| range.end - range.start).sum();
        let mut done = 0;
        for range in head.saved.iter().flat_map(|range| pieces(range.clone(), CHUNK)) {
            let n = range.end - range.start;
            let read = read_at(model, range.start, n);
            let bytes = read.map_err(|source| GgufError::Read { path: path.clone(), source })?;
            out.write_all(&bytes).map_err(failed)?;
            done += n;
            progress(done, total).map_err(|source| UndoError::Stopped { path: path.clone(), source })?;
        }
        out.flush().map_err(failed)
    }

    /// Opens the journal at `path`, with write access if `write` is set.
    ///
    /// # Errors
    /// Returns [`GgufError::BadJournal`] if the file is not a valid journal, and other errors if it cannot
    /// be opened.
    pub(super) fn open(path: &Path, write: bool) -> Result<Self, GgufError> {
        // Opening a pipe would block.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(GgufError::BadJournal { path: path.into(), problem: "it is not a regular file" });
        }
        let opened = OpenOptions::new().read(true).write(write).open(path);
        let file = opened.map_err(|source| match write {
            true => GgufError::from_output(path, "open", source),
            false => GgufError::Read { path: path.into(), source },
        })?;
        Self::of_file(path, file)
    }

    /// Like [`Self::open`], for a file that is already open.
    pub(super) fn of_file(path: &Path, file: File) -> Result<Self, GgufError> {
        let bad = |problem: &'static str| GgufError::BadJournal { path: path.into(), problem };
        let truncated = |_| bad("it is truncated");
        let start = read_at(&file, 0, 16).map_err(truncated)?;
        let (magic, len) = start.split_at(8);
        let len = number(len, 0);
        if magic != MAGIC || len > MAX_HEAD {
            return Err(bad("its first bytes are not those of a journal"));
        }
        let json = read_at(&file, 16, len).map_err(truncated)?;
        let sum = read_at(&file, 16 + len, HASH as u64).map_err(truncated)?;
        if sum != Sha256::digest(&json)[..] {
            return Err(bad("its header checksum does not match"));
        }
        let head: Head =
            serde_json::from_slice(&json).map_err(|_| bad("its header has unexpected fields"))?;
        if head.format != FORMAT {
            return Err(bad("it was written by another version of this program"));
        }
        if !head.is_sound() {
            return Err(bad("its ranges are invalid"));
        }
        let state = State { seq: 0, phase: Phase::Changing, moving: 0..0 };
        let mut journal = Self { path: path.into(), file, records_at: 16 + len + HASH as u64, head, state };
        journal.refresh()?;
        Ok(journal)
    }

    /// Rereads the records.
    pub(super) fn refresh(&mut self) -> Result<(), GgufError> {
        let bad = || GgufError::BadJournal { path: self.path.clone(), problem: NO_RECORD };
        self.state = self.newest().ok_or_else(bad)?;
        Ok(())
    }

    /// Returns the newest valid record.
    fn newest(&self) -> Option<State> {
        let states = (0..2).filter_map(|place| self.read_state(place));
        states.max_by_key(|state| state.seq)
    }

    fn read_state(&self, place: u64) -> Option<State> {
        let record = read_at(&self.file, self.records_at + place * RECORD, RECORD).ok()?;
        let (body, sum) = record.split_at(RECORD as usize - HASH);
        let phase = usize::try_from(number(body, 8)).ok().and_then(|i| Phase::ALL.get(i).copied())?;
        let state = State { seq: number(body, 0), phase, moving: number(body, 16)..number(body, 24) };
        let Range { start, end } = state.moving;
        let fits = start <= end && end <= self.head.bytes && end - start <= self.head.batch;
        if sum != &Sha256::digest(body)[..] || !fits || state.seq % 2 != place {
            return None;
        }
        let batch = read_at(&self.file, self.batch_at(state.seq), end - start).ok()?;
        (body[32..] == Sha256::digest(batch)[..]).then_some(state)
    }

    /// Tries to take the lock; returns `false` if another process holds it.
    pub(super) fn lock(&self, shared: bool) -> bool {
        // Without file locks, the name of the journal still prevents two changes at once.
        try_lock(&self.file, shared) != Lock::Theirs
    }

    /// Records `phase` and that the range `moving`, with the data `batch`, is being moved. Syncs the journal.
    pub(super) fn record(&mut self, phase: Phase, moving: Range<u64>, batch: &[u8]) -> Result<(), UndoError> {
        let state = State { seq: self.state.seq + 1, phase, moving };
        let record_at = self.records_at + (state.seq % 2) * RECORD;
        write_at(&self.file, self.batch_at(state.seq), batch)
            .and_then(|()| write_at(&self.file, record_at, &encode(&state, batch)))
            .and_then(|()| self.file.sync_data())
            .map_err(|error| GgufError::from_output(&self.path, "write", error))?;
        self.state = state;
        Ok(())
    }

    /// Reads the bytes being moved.
    pub(super) fn batch(&self) -> Result<Vec<u8>, GgufError> {
        let Range { start, end } = self.state.moving;
        self.read(self.batch_at(self.state.seq), end - start)
    }

    pub(super) fn read(&self, at: u64, len: u64) -> Result<Vec<u8>, GgufError> {
        let path = || self.path.clone();
        read_at(&self.file, at, len).map_err(|source| GgufError::Read { path: path(), source })
    }

    fn batch_at(&self, seq: u64) -> u64 {
        self.records_at + 2 * RECORD + (seq % 2) * self.head.batch
    }

    /// Returns the location of byte `at` of the original, and the end of the contiguous run that contains it.
    pub(super) fn locate(&self, at: u64) -> (Place, u64) {
        let mut saved_at = self.batch_at(0) + 2 * self.head.batch;
        let mut limit = self.head.bytes;
        for range in &self.head.saved {
            if range.contains(&at) {
                return (Place::Journal(saved_at + at - range.start), range.end);
            }
            if range.start > at {
                limit = range.start;
                break;
            }
            saved_at += range.end - range.start;
        }
        let Range { start, end } = self.state.moving;
        match at {
            _ if at < start => (Place::Model(at), limit.min(start)),
            _ if at < end => (Place::Journal(self.batch_at(self.state.seq) + at - start), limit.min(end)),
            _ => (Place::Model(at + self.head.shift), limit),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// Reads the little-endian number at byte `at` of a record; 0 past its end.
fn number(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    found.map_or(0, u64::from_le_bytes)
}

fn encode(state: &State, batch: &[u8]) -> Vec<u8> {
    let phase = Phase::ALL.iter().position(|p| *p == state.phase).unwrap_or(0) as u64;
    let numbers = [state.seq, phase, state.moving.start, state.moving.end];
    let mut body: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    body.extend_from_slice(&Sha256::digest(batch));
    let sum = Sha256::digest(&body);
    body.extend_from_slice(&sum);
    body
}
