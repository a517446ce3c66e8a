//! What a search has measured so far, in a file beside its output, so that a search that was stopped
//! can go on where it was.
//!
//! JSON lines. The first is the [`Head`]: everything that the measurements depend on. Each further one
//! is a [`Row`], written and synced as soon as its step is done. A row holds what was asked and what
//! was measured, nothing that follows from it: a search that goes on derives utilities, limits and the
//! choice anew, and so takes the path that it would have taken without the stop. Numbers are printed
//! so that they are read back to the last bit.
//!
//! The file appears with its first row, and its last line may be torn: what is not whole is left out
//! and written anew. A journal that cannot be written is no reason to end a search; that is only said.

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

/// A journal has some kilobytes.
const MAX_BYTES: u64 = 64 << 20;

/// What the measurements of a search depend on. How many trials there are, the limits, the layer and κ are
/// not in it: they decide which steps are made, not what a step measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Version of this tool.
    pub version: String,
    /// Version of llama.cpp.
    pub llama_cpp: String,
    /// What of the CPU llama.cpp uses: kernels round in their own ways.
    pub cpu: String,
    /// Hash of the model file.
    pub input_sha256: String,
    /// Hash of the prompt set.
    pub prompts_sha256: String,
    /// Hash of the names of the writers, which `--patches` may change.
    pub writers_sha256: String,
    /// [`crate::method::edit::Method::name`]; `auto` where the user named none.
    pub method: String,
    /// `auto`, `off`, or the hash of the user's text.
    pub system_prompt: String,
    /// Hash of the system prompts under which the model will run.
    pub contexts_sha256: String,
    /// Most tokens of thoughts from which detectors learn too; `None` where they are not to.
    pub thoughts: Option<usize>,
    /// The only direction source that is tried, if there is but one: others teach how refusals begin, too.
    pub direction_source: Option<DirectionSource>,
    /// The strength that is fixed, if any.
    pub strength: Option<f64>,
    /// The KL budget that is given, nats; if none is, what the model needs.
    pub max_kl: Option<f64>,
    /// Most bytes of the writers' inputs: with fewer of them other gates are learned.
    pub memory: u64,
    /// CPU threads: sums may be taken in another order.
    pub threads: usize,
    /// Layers on devices; -1 = all.
    pub gpu_layers: i32,
    /// Names of those devices: each kind rounds in its own way.
    pub devices: Vec<String>,
    /// How attention is computed.
    pub flash_attn: FlashAttn,
}

/// What was measured of a candidate in a probe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// The strength that spends the KL budget.
    pub strength: f64,
    /// Its first tokens, where the base has refusal openings.
    pub first_tokens: Option<FirstTokenScore>,
    /// Its answers, where it has none.
    pub score: Option<Score>,
}

/// One finished step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Row {
    /// A probe.
    Probe {
        /// What was edited.
        candidate: Candidate,
        /// The strength that it began with.
        start: f64,
        /// What was seen.
        look: Look,
    },
    /// How strong a candidate may be before its trial.
    Strength {
        /// What was edited.
        candidate: Candidate,
        /// The strength that it began with.
        start: f64,
        /// The strength that spends the KL budget on all prompts.
        strength: f64,
    },
    /// A trial.
    Trial {
        /// What was edited.
        candidate: Candidate,
        /// How much.
        strength: f64,
        /// What was seen.
        score: Score,
    },
}

/// Why a journal could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The journal.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what this version writes.
    #[error("{}: line {line} is not part of a search journal", path.display())]
    Malformed {
        /// The journal.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// It is of another search.
    #[error("{}: {what} was {journal} in the search that was stopped and is {now} now", path.display())]
    Differs {
        /// The journal.
        path: PathBuf,
        /// What differs.
        what: String,
        /// What the journal has.
        journal: String,
        /// What this run has.
        now: String,
    },
}

impl Hint for JournalError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Io { .. } => None,
            Self::Malformed { .. } => Some("leave out --resume to search anew".into()),
            Self::Differs { .. } => {
                Some("repeat the file and the flags of that run, or leave out --resume to search anew".into())
            }
        }
    }
}

/// The journal of one search.
#[derive(Debug, Default)]
pub struct Journal {
    /// Where it is kept and what its first line is.
    place: Option<(PathBuf, Head)>,
    rows: Vec<Row>,
    /// Open from the first row on.
    file: Option<File>,
    /// Whether a row could not be written.
    failed: bool,
    /// Keeps other runs away from the file.
    _lock: Option<LockFile>,
}

impl Journal {
    /// Keeps nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// A new one at `path`, in place of any that is there, as soon as there is a row.
    pub fn begin(path: &Path, head: Head) -> Self {
        Self { place: Some((path.to_path_buf(), head)), ..Self::default() }
    }

    /// The same, which no other run writes as long as it lives.
    pub fn locked(self, lock: LockFile) -> Self {
        Self { _lock: Some(lock), ..self }
    }

    /// The one at `path`, which must have the same head; a new one where there is none.
    ///
    /// # Errors
    /// [`JournalError`].
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

    /// Number of steps that it holds.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds no step.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Where it is kept, once it is there.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().and(self.place.as_ref()).map(|(path, _)| path.as_path())
    }

    /// Removes the file: the search has led to its end.
    pub fn remove(self) {
        if let Some(path) = self.path()
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!("{}: {error}", path.display());
        }
    }

    /// What a probe of `candidate` that began with the strength `start` saw.
    pub(super) fn probe(&self, candidate: &Candidate, start: f64) -> Option<Look> {
        self.rows.iter().find_map(|row| match row {
            Row::Probe { candidate: c, start: s, look } if c == candidate && *s == start => Some(*look),
            _ => None,
        })
    }

    /// The strength of `candidate` that spends the budget, where `start` was the first guess.
    pub(super) fn strength(&self, candidate: &Candidate, start: f64) -> Option<f64> {
        self.rows.iter().find_map(|row| match row {
            Row::Strength { candidate: c, start: s, strength } if c == candidate && *s == start => {
                Some(*strength)
            }
            _ => None,
        })
    }

    /// What a trial of `candidate` at `strength` saw: the last one, since one that was stopped may have been made again.
    pub(super) fn trial(&self, candidate: &Candidate, strength: f64) -> Option<Score> {
        self.rows.iter().rev().find_map(|row| match row {
            Row::Trial { candidate: c, strength: s, score } if c == candidate && *s == strength => {
                Some(*score)
            }
            _ => None,
        })
    }

    /// Keeps a finished step.
    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
        if let (false, Err(error)) = (self.failed, self.write(&row)) {
            let path = self.place.as_ref().map(|(path, _)| path.display().to_string()).unwrap_or_default();
            tracing::warn!("{path}: {error}; the search goes on, but not all of it can be resumed");
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

/// Compares the first line with `head`, key by key, so that another version's is told by what differs.
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

/// The rows of whole lines and their length in bytes; the last one may be damaged (a power cut leaves
/// zeros), an earlier one is an error: its index.
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
