//! The measurements of a search so far, in a file next to its output, from which an interrupted search can resume.
//!
//! The format is JSON lines. The first line is the [`Head`], everything that the measurements depend on. Each further
//! line is a [`Row`], written and synced as soon as its step is done. A row holds the request and the measurement, but
//! nothing derived from them: a resumed search computes utilities, limits, and the choice again, so it takes the same
//! path as without the interruption. Numbers are printed so that they are read back to the last bit.
//!
//! The file is created with its first row. Its last line may be incomplete; such a line is dropped and written again.
//! If a journal cannot be written, the search continues with a warning.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Candidate, DirectionSource};
use crate::eval::{FirstTokenScore, Score};
use crate::gguf::LockFile;
use crate::llama::offload::FlashAttn;
use crate::util::bounded;
use crate::util::hint::Hint;

/// Maximum size of a journal that is read; a normal one has a few kilobytes.
const MAX_BYTES: u64 = 64 << 20;

/// The inputs on which the measurements of a search depend. The number of trials, the limit on false refusals, the
/// layer, and κ are not part of it: they determine which steps are made, not what a step measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Version of this tool.
    pub version: String,
    /// Version of llama.cpp.
    pub llama_cpp: String,
    /// CPU features that llama.cpp uses, and the type of our products; kernels differ in their rounding.
    pub cpu: String,
    /// Hash of the model file.
    pub input_sha256: String,
    /// Hash of the prompt set.
    pub prompts_sha256: String,
    /// Hash of the names of the writers, which `--patches` may change.
    pub writers_sha256: String,
    /// [`crate::method::edit::Method::name`]; `auto` if the user chose no method.
    pub method: String,
    /// `auto`, `off`, or the hash of the user's text.
    pub system_prompt: String,
    /// Hash of the system prompts under which the model will run.
    pub contexts_sha256: String,
    /// Thinking mode: `auto`, `on` or `off`.
    pub thinking: String,
    /// Maximum tokens of a thought.
    pub think: usize,
    /// The only direction source to try, if the user chose one; with others, the search also learns how refusals begin
    /// from them.
    pub direction_source: Option<DirectionSource>,
    /// The user's fixed strength, if any.
    pub strength: Option<f64>,
    /// The user's KL budget, nats; `None` for the default of the model.
    pub max_kl: Option<f64>,
    /// Maximum number of bytes for the writers' inputs; with fewer inputs, different gates are learned.
    pub memory: u64,
    /// Number of CPU threads, which can change the order of sums.
    pub threads: usize,
    /// Number of layers on devices; -1 for all.
    pub gpu_layers: i32,
    /// Names of the devices; each kind rounds differently.
    pub devices: Vec<String>,
    /// Flash attention setting.
    pub flash_attn: FlashAttn,
}

/// The measurement of a candidate in a probe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// The given strength, or the one that uses up the KL budget.
    pub strength: f64,
    /// Score of the first tokens, if the base has refusal openings.
    pub first_tokens: Option<FirstTokenScore>,
    /// Score of the answers, if the base has no refusal openings.
    pub score: Option<Score>,
}

/// One finished step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Row {
    /// A probe of a candidate.
    Probe {
        /// The probed candidate.
        candidate: Candidate,
        /// Strength at which the probe began.
        start: f64,
        /// The measurement.
        look: Look,
    },
    /// The determination of a candidate's strength before its trial.
    Strength {
        /// The measured candidate.
        candidate: Candidate,
        /// Strength at which the measurement began.
        start: f64,
        /// Strength that uses up the KL budget on all prompts.
        strength: f64,
    },
    /// A trial of a candidate.
    Trial {
        /// The judged candidate.
        candidate: Candidate,
        /// Strength of the edit.
        strength: f64,
        /// Score of the answers.
        score: Score,
    },
}

/// Why a journal cannot be resumed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The journal could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the journal.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A line is not part of a journal of this version.
    #[error("{}: line {line} is not part of a search journal", path.display())]
    Malformed {
        /// Path of the journal.
        path: PathBuf,
        /// Number of the line, counted from 1.
        line: usize,
    },
    /// The journal belongs to another search.
    #[error("{}: {what} was {journal} in the interrupted search and is {now} now", path.display())]
    Differs {
        /// Path of the journal.
        path: PathBuf,
        /// Key of the [`Head`] that differs.
        what: String,
        /// Value in the journal.
        journal: String,
        /// Value in this run.
        now: String,
    },
}

impl Hint for JournalError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Io { .. } => None,
            Self::Malformed { .. } => Some("omit --resume to start a new search".into()),
            Self::Differs { .. } => {
                Some("use the same file and flags as that run, or omit --resume to start a new search".into())
            }
        }
    }
}

/// The journal of one search.
#[derive(Debug, Default)]
pub struct Journal {
    /// Path and first line; `None` for a journal that is not kept in a file.
    place: Option<(PathBuf, Head)>,
    rows: Vec<Row>,
    /// The open file, from the first row on.
    file: Option<File>,
    /// Whether a row could not be written.
    failed: bool,
    /// Prevents other runs from writing to the file.
    _lock: Option<LockFile>,
}

impl Journal {
    /// Creates a journal without a file.
    pub fn off() -> Self {
        Self::default()
    }

    /// Creates a journal at `path`. The first row creates the file and replaces any existing one.
    pub fn begin(path: &Path, head: Head) -> Self {
        Self { place: Some((path.to_path_buf(), head)), ..Self::default() }
    }

    /// Holds `lock` for the lifetime of the journal, so that no other run writes it.
    pub fn locked(self, lock: LockFile) -> Self {
        Self { _lock: Some(lock), ..self }
    }

    /// Opens the journal at `path`, which must have the same head, or creates one if there is none.
    ///
    /// # Errors
    /// Returns [`JournalError`] if the file cannot be read, is damaged, or belongs to another search.
    pub fn resume(path: &Path, head: Head) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Io { path: path.to_path_buf(), source };
        let text = match bounded::read(path, MAX_BYTES) {
            Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Ok(None) => return Err(JournalError::Malformed { path: path.to_path_buf(), line: 1 }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::begin(path, head)),
            Err(error) => return Err(failed(error)),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let Some((first, rest)) = whole.split_once('\n') else { return Ok(Self::begin(path, head)) };
        check_head(path, first, &head)?;
        let (rows, len) = parse_rows(rest)
            .map_err(|line| JournalError::Malformed { path: path.to_path_buf(), line: line + 2 })?;
        let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        let end = (first.len() + 1 + len) as u64;
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(failed)?;
        Ok(Self {
            place: Some((path.to_path_buf(), head)),
            rows,
            file: Some(file),
            failed: false,
            _lock: None,
        })
    }

    /// Returns the number of steps in the journal.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether the journal has no steps.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the path of the file, if it exists.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().and(self.place.as_ref()).map(|(path, _)| path.as_path())
    }

    /// Removes the file after the search has completed.
    pub fn remove(self) {
        if let Some(path) = self.path()
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!("{}: {error}", path.display());
        }
    }

    /// Returns the recorded probe of `candidate` that began at the strength `start`.
    pub(super) fn probe(&self, candidate: &Candidate, start: f64) -> Option<Look> {
        self.rows.iter().find_map(|row| match row {
            Row::Probe { candidate: c, start: s, look } if c == candidate && *s == start => Some(*look),
            _ => None,
        })
    }

    /// Returns the recorded strength of `candidate` that uses up the budget, for a measurement that began at `start`.
    pub(super) fn strength(&self, candidate: &Candidate, start: f64) -> Option<f64> {
        self.rows.iter().find_map(|row| match row {
            Row::Strength { candidate: c, start: s, strength } if c == candidate && *s == start => {
                Some(*strength)
            }
            _ => None,
        })
    }

    /// Returns the score of the last recorded trial of `candidate` at `strength`; a trial that was stopped may have
    /// been repeated.
    pub(super) fn trial(&self, candidate: &Candidate, strength: f64) -> Option<Score> {
        self.rows.iter().rev().find_map(|row| match row {
            Row::Trial { candidate: c, strength: s, score } if c == candidate && *s == strength => {
                Some(*score)
            }
            _ => None,
        })
    }

    /// Records a finished step.
    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
        if let (false, Err(error)) = (self.failed, self.write(&row)) {
            let path = self.place.as_ref().map(|(path, _)| path.display().to_string()).unwrap_or_default();
            tracing::warn!("{path}: {error}; the search continues, but cannot be fully resumed");
            self.failed = true;
        }
    }

    fn write(&mut self, row: &Row) -> io::Result<()> {
        let Some((path, head)) = self.place.as_ref().filter(|_| !self.failed) else { return Ok(()) };
        let mut lines = String::new();
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                lines = serde_json::to_string(head)? + "\n";
                self.file.insert(File::create(path)?)
            }
        };
        lines += &(serde_json::to_string(row)? + "\n");
        file.write_all(lines.as_bytes())?;
        file.sync_data()
    }
}

/// Compares the first line with `head`, key by key, so that the error for a journal of another version names the
/// difference.
fn check_head(path: &Path, line: &str, head: &Head) -> Result<(), JournalError> {
    let path = path.to_path_buf();
    let malformed = || JournalError::Malformed { path: path.clone(), line: 1 };
    let Ok(Value::Object(journal)) = serde_json::from_str(line) else { return Err(malformed()) };
    let Ok(Value::Object(now)) = serde_json::to_value(head) else { return Err(malformed()) };
    if !journal.contains_key("version") {
        return Err(malformed());
    }
    let shown = |value: Option<&Value>| match value {
        None => "unknown".to_owned(),
        Some(Value::Null) => "not given".to_owned(),
        Some(value) => value.to_string(),
    };
    match now.keys().chain(journal.keys()).find(|&key| now.get(key) != journal.get(key)) {
        None => Ok(()),
        Some(key) => Err(JournalError::Differs {
            path,
            what: key.clone(),
            journal: shown(journal.get(key)),
            now: shown(now.get(key)),
        }),
    }
}

/// Parses rows, and returns them with their length in bytes. A damaged last line is dropped (a power cut leaves zeros);
/// for an earlier one, the error is its index.
fn parse_rows(lines: &str) -> Result<(Vec<Row>, usize), usize> {
    let (mut rows, mut len) = (Vec::new(), 0);
    let all: Vec<&str> = lines.split_inclusive('\n').collect();
    for (i, line) in all.iter().enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            Err(_) if i + 1 == all.len() => break,
            Err(_) => return Err(i),
        }
        len += line.len();
    }
    Ok((rows, len))
}

#[cfg(test)]
pub(super) mod tests;
