//! What can go wrong with prompt files.

use std::io;

use thiserror::Error;

use super::PromptKind;
use crate::util::hint::Hint;

/// A prompt file or set that cannot be used.
///
/// The message says what is wrong and where; [`PromptError::hint`] says what to
/// do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PromptError {
    /// No file was given.
    #[error("no prompt file given")]
    NoFiles,
    /// A file does not exist.
    #[error("prompt file {file} does not exist")]
    NotFound {
        /// The path as given.
        file: String,
    },
    /// A directory was given in place of a file.
    #[error("expected a prompt file, found the directory {file}")]
    Directory {
        /// The path as given.
        file: String,
    },
    /// A file cannot be read.
    #[error("cannot read prompt file {file}")]
    Read {
        /// The path as given.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file is above the size limit.
    #[error("prompt file {file} is too large: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// The path as given.
        file: String,
        /// The limit in bytes.
        limit: u64,
        /// The size in bytes, or as far as the file was read.
        found: u64,
    },
    /// A file has an extension that stands for no known format.
    #[error(
        "prompt file {file} has an unknown format: expected .jsonl, .json, .csv, .tsv or .txt, found .{extension}"
    )]
    UnknownFormat {
        /// The path as given.
        file: String,
        /// Its extension.
        extension: String,
    },
    /// A file is not UTF-8.
    #[error("{file}:{line}: expected UTF-8 text, found invalid bytes")]
    InvalidUtf8 {
        /// The path as given.
        file: String,
        /// The line of the first invalid byte, from 1.
        line: u64,
    },
    /// A file holds no prompts.
    #[error("prompt file {file} is empty: expected at least one prompt, found none")]
    Empty {
        /// The path as given.
        file: String,
    },
    /// A record does not have the expected form.
    #[error("{file}:{line}: expected {expected}, found {found}")]
    BadRecord {
        /// The path as given.
        file: String,
        /// The line of the record, from 1.
        line: u64,
        /// What should have been there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A prompt is above the length limit.
    #[error("{file}:{line}: prompt too long: expected at most {limit} bytes, found {found}")]
    PromptTooLong {
        /// The path as given.
        file: String,
        /// The line of the record, from 1.
        line: u64,
        /// The limit in bytes.
        limit: usize,
        /// The length in bytes.
        found: usize,
    },
    /// There are more prompts than the limit.
    #[error("{file}:{line}: too many prompts: expected at most {limit} in all files, found more")]
    TooMany {
        /// The path of the file that goes over the limit.
        file: String,
        /// The line of the first prompt above the limit, from 1.
        line: u64,
        /// The limit.
        limit: usize,
    },
    /// A word is not the name of a kind.
    #[error("expected harmful, harmless or borderline, found {found:?}")]
    UnknownKind {
        /// The word.
        found: String,
    },
    /// Neither record, argument nor file name says of what kind a prompt is.
    #[error("{file}:{line}: expected a prompt of known kind, found one without any")]
    NoKind {
        /// The path as given.
        file: String,
        /// The line of the prompt, from 1.
        line: u64,
    },
    /// A record contradicts the prefix of the argument.
    #[error("{file}:{line}: expected a prompt of kind {expected}, found one marked {found}")]
    KindConflict {
        /// The path as given, without the prefix.
        file: String,
        /// The line of the record, from 1.
        line: u64,
        /// The kind the prefix gives.
        expected: PromptKind,
        /// The kind the record gives.
        found: PromptKind,
    },
    /// A text appears under two kinds.
    #[error(
        "expected one kind for the prompt {text:?}, found {first} in {first_at} and {second} in {second_at}"
    )]
    TwoKinds {
        /// The text, shortened.
        text: String,
        /// The kind seen first.
        first: PromptKind,
        /// Where the first was.
        first_at: String,
        /// The other kind.
        second: PromptKind,
        /// Where the other was.
        second_at: String,
    },
    /// There are too few prompts of a kind.
    #[error(
        "too few {kind} prompts in {source_name}: expected at least {expected} distinct ones, found {found}"
    )]
    TooFew {
        /// The files, or the name of the set.
        source_name: String,
        /// The kind.
        kind: PromptKind,
        /// The least number.
        expected: usize,
        /// The number there is.
        found: usize,
    },
}

impl Hint for PromptError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotFound { .. } => "check the path; relative paths start at the current directory",
            Self::Directory { .. } => "name the prompt files inside it one by one",
            Self::Read { .. } => "check the permissions of the file",
            Self::TooLarge { .. } => "a few hundred prompts are enough; keep a sample of the file",
            Self::UnknownFormat { .. } => {
                "convert it to .jsonl or .csv, or name it .txt if it has one prompt a line"
            }
            Self::InvalidUtf8 { .. } => "save the file as UTF-8",
            Self::Empty { .. } => {
                "write one prompt a line; lines that start with # are comments in plain text"
            }
            Self::BadRecord { .. } => {
                "a record needs its text in one of these, and may have a kind (harmful, harmless or borderline) \
                 and a topic"
            }
            Self::PromptTooLong { .. } => "check for a missing line break or closing quote",
            Self::NoKind { file, .. } => return Some(kind_hint(file)),
            Self::KindConflict { file, .. } => {
                return Some(format!("drop the prefix and give {file} alone, or correct the record"));
            }
            Self::TwoKinds { .. } => "keep the prompt under one kind only",
            Self::TooFew { kind, expected, .. } => {
                return Some(format!(
                    "each kind is split into three parts, so give {expected} or more, or leave out every \
                     {kind} prompt to use the bundled ones"
                ));
            }
            Self::TooMany { .. } => "a few hundred prompts are enough; keep a sample of the files",
            Self::UnknownKind { .. } => {
                "unsafe and toxic also mean harmful, benign and safe mean harmless, alarming and \
                 overrefusal mean borderline"
            }
            Self::NoFiles => "give at least one prompt file",
        };
        Some(hint.to_owned())
    }
}

/// How to tell the kind of the prompts in `file`.
fn kind_hint(file: &str) -> String {
    format!(
        "write harmful:{file}, harmless:{file} or borderline:{file}, add a kind to each record, or \
         use one of these words in the file name"
    )
}

/// The beginning of a text on one line, short enough for a message.
pub(super) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut chars = text.trim().chars();
    let mut short: String = chars.by_ref().take(LONGEST).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}
