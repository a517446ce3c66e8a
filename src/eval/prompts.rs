//! Evaluation prompts: the bundled sets, the user's own files, and their splits.
//!
//! There are three kinds of prompts. *Harmful* prompts should be refused.
//! *Harmless* prompts should be answered; they match the harmful ones in form and
//! length. *Borderline* prompts only sound harmful and should be answered, too.
//!
//! # Split rule
//!
//! Duplicates are removed first: two texts are duplicates if they agree after
//! trimming, folding runs of whitespace into one space and lower-casing; the first
//! one stays. The remaining prompts of each kind are numbered from 0 in file
//! order, and the number modulo 4 gives the [`Split`]: 0 and 1 extract, 2 search,
//! 3 report. Half of the prompts go to extract because gates learn from them and
//! generalize better with more of them. No prompt that is used to choose a setting
//! is ever used to report on it. The bundled files keep their topics in contiguous
//! blocks of 12, so each split has the same share (6, 3 and 3) of every topic.
//! A text that appears under two different kinds is an error. Prompts that are added
//! from another set keep the split that they have there.
//!
//! The file formats are described in [`PromptSet::load`].

pub mod contexts;
mod error;
mod json;
mod loader;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use error::PromptError;
pub use loader::without_kind;

/// Maximum size of a prompt file, in bytes.
pub const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Maximum length of a prompt, in bytes of UTF-8.
pub const MAX_PROMPT_BYTES: usize = 8 * 1024;
/// Maximum number of prompts in all files together, including duplicates.
pub const MAX_PROMPTS: usize = 100_000;
/// Minimum number of distinct prompts of a kind for splitting: 6 to extract from, 3 to search on and
/// 3 to report on.
pub const MIN_PER_KIND: usize = 12;

const HARMFUL_JSONL: &str = include_str!("prompts/bundled/harmful.jsonl");
const HARMLESS_JSONL: &str = include_str!("prompts/bundled/harmless.jsonl");
const BORDERLINE_JSONL: &str = include_str!("prompts/bundled/borderline.jsonl");
const TRAINING_JSONL: &str = include_str!("prompts/bundled/training.jsonl");
const LOOKALIKES_JSONL: &str = include_str!("prompts/bundled/lookalikes.jsonl");
const PROSE: &str = include_str!("prompts/bundled/prose.txt");
const SAFETY_SYSTEM_PROMPT: &str = include_str!("prompts/bundled/safety_system_prompt.txt");

/// Returns passages of various kinds (a story, a recipe, a program, a letter, …) that request nothing.
pub fn prose() -> Vec<String> {
    PROSE.split("\n\n").map(|passage| passage.trim().to_owned()).collect()
}

/// Returns the bundled prompts that are used only to train detectors, more varied than [`PromptSet::bundled`].
pub fn training() -> PromptSet {
    training_file("training.jsonl", TRAINING_JSONL)
}

/// Returns the bundled lookalikes, which are used only to train detectors: harmful prompts that sound like ordinary
/// questions, like history or like a figure of speech, each kind with innocent counterparts.
pub fn lookalikes() -> PromptSet {
    training_file("lookalikes.jsonl", LOOKALIKES_JSONL)
}

fn training_file(name: &str, text: &str) -> PromptSet {
    // The data is fixed at build time and checked by a test.
    loader::parse_all(&[(name, text)], "bundled training prompts").expect("they are valid")
}

/// Returns the bundled safety system prompt, without surrounding whitespace.
pub fn safety_system_prompt() -> &'static str {
    SAFETY_SYSTEM_PROMPT.trim()
}

/// What a model should do with a prompt, and why it is in the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptKind {
    /// A request that should be refused.
    Harmful,
    /// An ordinary request that should be answered.
    Harmless,
    /// A harmless request that sounds harmful; it should be answered.
    Borderline,
}

impl PromptKind {
    /// Every kind, in the order of the bundled set.
    pub const ALL: [PromptKind; 3] = [Self::Harmful, Self::Harmless, Self::Borderline];

    /// Returns the lower-case name, as written in files and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Harmful => "harmful",
            Self::Harmless => "harmless",
            Self::Borderline => "borderline",
        }
    }
}

impl fmt::Display for PromptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PromptKind {
    type Err = PromptError;

    /// Reads a kind or one of its aliases, ignoring case and treating `_` and
    /// spaces as `-`: `harmful`, `unsafe`, `toxic`; `harmless`, `benign`,
    /// `safe`; `borderline`, `alarming`, `benign-alarming`, `overrefusal`,
    /// `over-refusal`.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let name = s.trim().to_lowercase().replace(['_', ' '], "-");
        match name.as_str() {
            "harmful" | "unsafe" | "toxic" => Ok(Self::Harmful),
            "harmless" | "benign" | "safe" => Ok(Self::Harmless),
            "borderline" | "alarming" | "benign-alarming" | "overrefusal" | "over-refusal" => {
                Ok(Self::Borderline)
            }
            _ => Err(PromptError::UnknownKind { found: error::excerpt(s) }),
        }
    }
}

/// The three disjoint parts of each kind; see the [module](self) for the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Position 0 or 1 modulo 4: the refusal direction and the gates are computed from these.
    Extract,
    /// Position 2 modulo 4: layers and strengths are chosen on these.
    Search,
    /// Position 3 modulo 4: held out for reporting only.
    Report,
}

impl Split {
    /// Every split, in the order of its remainders modulo 4.
    pub const ALL: [Split; 3] = [Self::Extract, Self::Search, Self::Report];

    /// Returns the lower-case name, as written in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Extract => "extract",
            Self::Search => "search",
            Self::Report => "report",
        }
    }

    /// Returns the split of the prompt at `position` within its kind.
    pub fn of_position(position: usize) -> Split {
        match position % 4 {
            0 | 1 => Self::Extract,
            2 => Self::Search,
            _ => Self::Report,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One evaluation prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prompt {
    /// The request itself, without surrounding whitespace.
    pub text: String,
    /// What a model should do with it.
    pub kind: PromptKind,
    /// A free label that groups prompts in reports.
    pub topic: Option<String>,
}

/// An ordered set of distinct prompts and its origin.
#[derive(Debug, Clone)]
pub struct PromptSet {
    prompts: Vec<Prompt>,
    /// Split of each prompt.
    splits: Vec<Split>,
    source: String,
}

impl PromptSet {
    /// Returns the bundled set: 288 harmful, 384 harmless and 384 borderline prompts.
    pub fn bundled() -> PromptSet {
        let files = [
            ("harmful.jsonl", HARMFUL_JSONL),
            ("harmless.jsonl", HARMLESS_JSONL),
            ("borderline.jsonl", BORDERLINE_JSONL),
        ];
        // The data is fixed at build time and checked by a test, so a failure
        // here is a broken build rather than something a caller could handle.
        loader::parse_all(&files, "bundled").expect("the bundled prompts are valid")
    }

    /// Reads and concatenates prompt files.
    ///
    /// The format follows the file extension:
    ///
    /// * `.jsonl`, `.ndjson`, `.json`: one JSON object per line; or, in any layout, objects,
    ///   arrays of objects or strings, or objects that contain one such array.
    /// * `.csv`, `.tsv`, `.tab`: fields separated by commas or tabs, with a header row.
    /// * `.txt`, `.text` or no extension: one prompt per line; blank lines and
    ///   lines that start with `#` are skipped.
    ///
    /// Field and column names are case-insensitive. The text is the first present
    /// field of `prompt`, `text`, `instruction`, `goal`, `behavior`, `question`,
    /// `query` and `input`. The kind is the value of `kind`, which must be a valid
    /// kind, or else that of `label` or `category`, if all values of that field in
    /// the file are kinds; a field with other values (numbers, subjects) does not
    /// determine the kind. The topic is `topic`, or else a `category` that is not
    /// the kind. All other fields are ignored.
    ///
    /// A record without a kind takes it from an explicit prefix of the argument
    /// (`harmful:PATH`, `harmless:PATH`, `borderline:PATH`), which also overrides
    /// `category` and an invalid `kind`, or else from the file name: `borderline`,
    /// `alarming` or `overrefusal` in it mean borderline; `harmless`, `benign` or
    /// `safe` harmless; `harmful`, `unsafe` or `toxic` harmful. A name that fits
    /// both of the last two or negates one (`non-toxic`) determines nothing, nor
    /// does `safety`. A prefix may narrow a record's `harmless` to `borderline`;
    /// any other conflict with `kind` or `label` is an error.
    ///
    /// # Errors
    ///
    /// Returns [`PromptError`] if a file cannot be read, is too large, is not UTF-8,
    /// contains no prompts or contains a malformed record, or if a prompt has no kind or
    /// two kinds. Too few prompts of a kind are not an error: see [`PromptSet::require`].
    pub fn load(paths: &[PathBuf]) -> Result<PromptSet, PromptError> {
        loader::load(paths)
    }

    /// Builds a set; drops duplicates and rejects texts of two kinds.
    fn from_located(located: Vec<Located>, source: String) -> Result<PromptSet, PromptError> {
        let mut seen: HashMap<String, (PromptKind, String)> = HashMap::new();
        let mut prompts = Vec::with_capacity(located.len());
        for Located { prompt, at } in located {
            let key = fold(&prompt.text);
            match seen.get(&key) {
                None => {
                    seen.insert(key, (prompt.kind, at));
                    prompts.push(prompt);
                }
                Some((kind, _)) if *kind == prompt.kind => {}
                Some((kind, first_at)) => {
                    return Err(PromptError::TwoKinds {
                        text: error::excerpt(&prompt.text),
                        first: *kind,
                        first_at: first_at.clone(),
                        second: prompt.kind,
                        second_at: at,
                    });
                }
            }
        }
        let mut counts = HashMap::<PromptKind, usize>::new();
        let split = |prompt: &Prompt| {
            let position = counts.entry(prompt.kind).or_default();
            *position += 1;
            Split::of_position(*position - 1)
        };
        let splits = prompts.iter().map(split).collect();
        Ok(PromptSet { prompts, splits, source })
    }

    /// Returns the prompts of one kind and split, in order.
    pub fn select(&self, kind: PromptKind, split: Split) -> Vec<&Prompt> {
        let all = self.prompts.iter().zip(&self.splits);
        all.filter(|(prompt, of)| prompt.kind == kind && **of == split).map(|(prompt, _)| prompt).collect()
    }

    /// Returns all prompts of one kind, in order.
    pub fn of_kind(&self, kind: PromptKind) -> Vec<&Prompt> {
        self.prompts.iter().filter(|p| p.kind == kind).collect()
    }

    /// Returns the texts of the prompts of one kind, in order: those of `split`, or all.
    pub fn texts(&self, kind: PromptKind, split: Option<Split>) -> Vec<String> {
        let chosen = split.map_or_else(|| self.of_kind(kind), |split| self.select(kind, split));
        chosen.into_iter().map(|prompt| prompt.text.clone()).collect()
    }

    /// Returns the number of prompts of one kind.
    pub fn count(&self, kind: PromptKind) -> usize {
        self.prompts.iter().filter(|p| p.kind == kind).count()
    }

    /// Returns all prompts, in order.
    pub fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }

    /// Returns the number of prompts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Returns whether there are no prompts.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Returns the origin of the prompts: `bundled` or the file names, and those of
    /// sets that were added.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the SHA-256 in lower-case hex over `kind \0 text \n` of every prompt in order.
    ///
    /// Topics and file names do not count, so the same prompts from another file
    /// have the same digest.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for prompt in &self.prompts {
            hasher.update(prompt.kind.as_str());
            hasher.update([0]);
            hasher.update(&prompt.text);
            hasher.update(b"\n");
        }
        let digest = hasher.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Adds the prompts of `other` whose texts this set lacks, under any kind. They keep their splits.
    pub fn add(&mut self, other: &PromptSet) {
        let known: HashSet<String> = self.prompts.iter().map(|prompt| fold(&prompt.text)).collect();
        let added = other.prompts.iter().zip(&other.splits);
        for (prompt, &split) in added.filter(|(prompt, _)| !known.contains(&fold(&prompt.text))) {
            self.prompts.push(prompt.clone());
            self.splits.push(split);
        }
        self.source = format!("{} + {}", self.source, other.source);
    }

    /// Checks that there are at least [`MIN_PER_KIND`] prompts of each of `kinds`.
    ///
    /// # Errors
    ///
    /// Returns [`PromptError::TooFew`] for the first kind that has too few.
    pub fn require(&self, kinds: &[PromptKind]) -> Result<(), PromptError> {
        for &kind in kinds {
            let found = self.count(kind);
            if found < MIN_PER_KIND {
                return Err(PromptError::TooFew {
                    source_name: self.source.clone(),
                    kind,
                    expected: MIN_PER_KIND,
                    found,
                });
            }
        }
        Ok(())
    }
}

/// A prompt and its location, for messages.
struct Located {
    prompt: Prompt,
    at: String,
}

/// Normalizes a text so that duplicates compare equal.
fn fold(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").to_lowercase()
}
