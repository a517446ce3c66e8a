//! The journal of a release, `release.json` in its folder: what is done, and from what it was made.
//!
//! A file's row is written before the file gets its name, so a release that was killed at any moment goes
//! on: a file with the hash of its row is done, any other is made again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ReleaseError;
use crate::eval::{Score, Tally};
use crate::gguf::{AtomicFile, GgufError};
use crate::util::bounded;

/// Version of the format.
const FORMAT: u32 = 1;
/// More bytes than a journal has.
const MAX_BYTES: u64 = 64 << 20;

/// Everything that a file follows from, by name.
pub type Recipe = BTreeMap<String, String>;

/// One file of the release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub file: String,
    /// Its type.
    pub label: String,
    /// Hash of its bytes.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// Hash of the quantization that the edit was put into.
    pub base_sha256: String,
    /// What it follows from.
    pub recipe: Recipe,
    /// Share of the edit that arrived.
    pub gain: Option<f64>,
    /// Cosine along the direction.
    pub cosine: Option<f64>,
    /// Tensors that differ from the base.
    pub changed: usize,
    /// Scores of the base and of the file on the report split; none with `--no-score`.
    pub scores: Option<[Score; 2]>,
    /// Bundled harmful prompts: the base and the file.
    pub guard: [Tally; 2],
    /// Seconds that it took.
    pub seconds: f64,
}

/// The edit that was searched for the release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Searched {
    /// Its file.
    pub file: String,
    /// What it follows from.
    pub recipe: Recipe,
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// The edit, when it was searched here.
    pub searched: Option<Searched>,
    /// The files, in the order in which they were made.
    pub files: Vec<Row>,
    #[serde(skip)]
    path: PathBuf,
}

impl State {
    /// Reads the journal in `folder`; `None` when there is none.
    ///
    /// # Errors
    /// [`ReleaseError::State`].
    pub fn read(folder: &Path) -> Result<Option<Self>, ReleaseError> {
        let path = folder.join("release.json");
        let fail = |problem: String| ReleaseError::State { path: path.clone(), problem };
        let text = match bounded::read_text(&path, MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error.to_string())),
        };
        let state: Self = serde_json::from_str(&text)
            .map_err(|error| fail(format!("not the journal of a release: {error}")))?;
        if state.format != FORMAT {
            return Err(fail(format!("format {}, and this version reads {FORMAT}", state.format)));
        }
        Ok(Some(Self { path, ..state }))
    }

    /// An empty journal in `folder`, not written yet.
    pub fn new(folder: &Path) -> Self {
        Self { format: FORMAT, searched: None, files: Vec::new(), path: folder.join("release.json") }
    }

    /// Writes the journal as a whole.
    ///
    /// # Errors
    /// [`GgufError`] when it cannot be written.
    pub fn save(&self) -> Result<(), GgufError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        AtomicFile::write_whole(&self.path, text.as_bytes(), true)
    }

    /// The row of a file.
    pub fn row(&self, file: &str) -> Option<&Row> {
        self.files.iter().find(|row| row.file == file)
    }

    /// Puts a row in, in place of that of the same file.
    pub fn put(&mut self, row: Row) {
        match self.files.iter_mut().find(|old| old.file == row.file) {
            Some(old) => *old = row,
            None => self.files.push(row),
        }
    }
}

/// Refuses to go on with what was made from something else.
///
/// # Errors
/// [`ReleaseError::Changed`] with the first difference.
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
        assert!(State::read(folder.path()).unwrap_err().to_string().contains("not the journal of a release"));
    }

    #[test]
    fn a_changed_recipe_is_told_by_its_key() {
        let before = recipe(&[("edit", "a"), ("type", "Q8_0")]);
        same_recipe("f", &before, &before).unwrap();
        let now = recipe(&[("edit", "a"), ("imatrix", "c"), ("type", "Q8_0")]);
        let error = same_recipe("f", &before, &now).unwrap_err().to_string();
        assert_eq!(error, "f was made with another imatrix: none, now c");
    }
}
