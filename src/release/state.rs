//! The journal of a release, `release.json` in its directory: the completed files and their inputs.
//!
//! A file's row is written before the file gets its final name, so a release that is killed at any moment can continue:
//! a file whose hash matches its row is complete, any other is made again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ReleaseError;
use crate::eval::{Score, Tally};
use crate::gguf::{AtomicFile, GgufError};
use crate::util::bounded;

/// Version of the journal format.
const FORMAT: u32 = 1;
/// Maximum size of a journal, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// All inputs that determine a file, by name.
pub type Recipe = BTreeMap<String, String>;

/// One file of the release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// File name.
    pub file: String,
    /// Quantization type.
    pub label: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the quantization that the edit was applied to.
    pub base_sha256: String,
    /// Inputs that determine the file.
    pub recipe: Recipe,
    /// Share of the edit that is in the file; 1 is all of it.
    pub gain: Option<f64>,
    /// Cosine between the intended and the actual edit along the direction.
    pub cosine: Option<f64>,
    /// Number of tensors that differ from the base.
    pub changed: usize,
    /// Scores of the base and of the file on the report split; `None` with `--no-score`.
    pub scores: Option<[Score; 2]>,
    /// Tallies of the base and of the file on bundled harmful prompts.
    pub guard: [Tally; 2],
    /// Seconds taken.
    pub seconds: f64,
}

/// The edit that was searched for the release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Searched {
    /// File name of the edit.
    pub file: String,
    /// Inputs that determine the edit.
    pub recipe: Recipe,
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// The edit, if this release searched it.
    pub searched: Option<Searched>,
    /// The files, in the order in which they were made.
    pub files: Vec<Row>,
    #[serde(skip)]
    path: PathBuf,
}

impl State {
    /// Reads the journal in `folder`; returns `None` if there is none.
    ///
    /// # Errors
    /// Returns [`ReleaseError::State`] if the journal cannot be read, is invalid or has another format version.
    pub fn read(folder: &Path) -> Result<Option<Self>, ReleaseError> {
        let path = folder.join("release.json");
        let fail = |problem: String| ReleaseError::State { path: path.clone(), problem };
        let text = match bounded::read_text(&path, MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error.to_string())),
        };
        let state: Self =
            serde_json::from_str(&text).map_err(|error| fail(format!("invalid release journal: {error}")))?;
        if state.format != FORMAT {
            return Err(fail(format!("expected format {FORMAT}, found {}", state.format)));
        }
        Ok(Some(Self { path, ..state }))
    }

    /// Creates an empty journal for `folder`, without writing it.
    pub fn new(folder: &Path) -> Self {
        Self { format: FORMAT, searched: None, files: Vec::new(), path: folder.join("release.json") }
    }

    /// Writes the journal atomically.
    ///
    /// # Errors
    /// Returns [`GgufError`] if the journal cannot be written.
    pub fn save(&self) -> Result<(), GgufError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        AtomicFile::write_whole(&self.path, text.as_bytes(), true)
    }

    /// Returns the row of the file named `file`.
    pub fn row(&self, file: &str) -> Option<&Row> {
        self.files.iter().find(|row| row.file == file)
    }

    /// Adds a row, replacing any row of the same file.
    pub fn put(&mut self, row: Row) {
        match self.files.iter_mut().find(|old| old.file == row.file) {
            Some(old) => *old = row,
            None => self.files.push(row),
        }
    }
}

/// Checks that a file was made from the same inputs.
///
/// # Errors
/// Returns [`ReleaseError::Changed`] with the first input that differs.
pub fn same_recipe(file: &str, before: &Recipe, now: &Recipe) -> Result<(), ReleaseError> {
    let keys = before.keys().chain(now.keys());
    let different = keys.into_iter().find(|key| before.get(*key) != now.get(*key));
    match different {
        None => Ok(()),
        Some(key) => {
            let value = |recipe: &Recipe| recipe.get(key).map_or("none", String::as_str).to_owned();
            let (before, now) = (value(before), value(now));
            Err(ReleaseError::Changed { file: file.into(), key: key.clone(), before, now })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(pairs: &[(&str, &str)]) -> Recipe {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_journal_is_read_back_and_a_row_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(State::read(folder.path()).unwrap(), None);
        let mut state = State::new(folder.path());
        let row = |sha256: &str| Row {
            file: "a-Q8_0.gguf".into(),
            label: "Q8_0".into(),
            sha256: sha256.into(),
            bytes: 1,
            base_sha256: "b".into(),
            recipe: recipe(&[("type", "Q8_0")]),
            gain: Some(1.0),
            cosine: None,
            changed: 2,
            scores: None,
            guard: [Tally::default(); 2],
            seconds: 1.0,
        };
        state.put(row("x"));
        state.put(row("y"));
        state.save().unwrap();
        assert_eq!(State::read(folder.path()).unwrap(), Some(state));
        std::fs::write(folder.path().join("release.json"), "{}").unwrap();
        assert!(State::read(folder.path()).unwrap_err().to_string().contains("invalid release journal"));
    }

    #[test]
    fn a_changed_recipe_is_told_by_its_key() {
        let before = recipe(&[("edit", "a"), ("type", "Q8_0")]);
        same_recipe("f", &before, &before).unwrap();
        let now = recipe(&[("edit", "a"), ("imatrix", "c"), ("type", "Q8_0")]);
        let error = same_recipe("f", &before, &now).unwrap_err().to_string();
        assert_eq!(error, "f was made with a different imatrix: none, now c");
    }
}
