//! Errors of prompt files.

use std::io;

use thiserror::Error;

use super::PromptKind;
use crate::util::hint::Hint;

/// Why a prompt file or set cannot be used.
///
/// The message says what is wrong and where; [`PromptError::hint`] suggests a next step.
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
    /// A directory was given instead of a file.
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
        /// The I/O error.
        source: io::Error,
    },
    /// A file exceeds the size limit.
    #[error("prompt file {file} is too large: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// The path as given.
        file: String,
        /// The limit in bytes.
        limit: u64,
        /// The size in bytes, or the number of bytes read if the size is unknown.
        found: u64,
    },
    /// A file has an unknown extension.
    #[error(
        "prompt file {file} has an unknown format: expected .jsonl, .json, .csv, .tsv or .txt, found .{extension}"
    )]
    UnknownFormat {
        /// The path as given.
        file: String,
        /// The extension, without the dot.
        extension: String,
    },
    /// A file is not UTF-8.
    #[error("{file}:{line}: expected UTF-8 text, found invalid bytes")]
    InvalidUtf8 {
        /// The path as given.
        file: String,
        /// The line of the first invalid byte, starting at 1.
        line: u64,
    },
    /// A file contains no prompts.
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
        /// The line of the record, starting at 1.
        line: u64,
        /// What was expected.
        expected: &'static str,
        /// What was found instead.
        found: String,
    },
    /// A prompt exceeds the length limit.
    #[error("{file}:{line}: prompt too long: expected at most {limit} bytes, found {found}")]
    PromptTooLong {
        /// The path as given.
        file: String,
        /// The line of the record, starting at 1.
        line: u64,
        /// The limit in bytes.
        limit: usize,
        /// The length in bytes.
        found: usize,
    },
    /// There are more prompts than the limit.
    #[error("{file}:{line}: too many prompts: expected at most {limit} in all files, found more")]
    TooMany {
        /// The path of the file that exceeds the limit.
        file: String,
        /// The line of the first prompt above the limit, starting at 1.
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
    /// Neither the record, the argument nor the file name gives the kind of a prompt.
    #[error("{file}:{line}: expected a kind for the prompt, found none")]
    NoKind {
        /// The path as given.
        file: String,
        /// The line of the prompt, starting at 1.
        line: u64,
    },
    /// The kind in a record conflicts with the prefix of the argument.
    #[error("{file}:{line}: expected a prompt of kind {expected}, found one marked {found}")]
    KindConflict {
        /// The path as given, without the prefix.
        file: String,
        /// The line of the record, starting at 1.
        line: u64,
        /// The kind from the prefix.
        expected: PromptKind,
        /// The kind from the record.
        found: PromptKind,
    },
    /// A text appears under two kinds.
    #[error(
        "expected one kind for the prompt {text:?}, found {first} in {first_at} and {second} in {second_at}"
    )]
    TwoKinds {
        /// The text, shortened.
        text: String,
        /// The first kind found.
        first: PromptKind,
        /// Location of the first occurrence, as `file:line` or the name of the set.
        first_at: String,
        /// The other kind.
        second: PromptKind,
        /// Location of the other occurrence.
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
        /// The minimum number.
        expected: usize,
        /// The actual number.
        found: usize,
    },
}

impl Hint for PromptError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotFound { .. } => "check the path; relative paths start at the current directory",
            Self::Directory { .. } => "list the prompt files in it individually",
            Self::Read { .. } => "check the permissions of the file",
            Self::TooLarge { .. } => "use a sample of the file; a few hundred prompts are enough",
            Self::UnknownFormat { .. } => {
                "convert it to .jsonl or .csv, or rename it to .txt if it has one prompt per line"
            }
            Self::InvalidUtf8 { .. } => "save the file as UTF-8",
            Self::Empty { .. } => {
                "write one prompt per line; in plain text, lines that start with # are comments"
            }
            Self::BadRecord { .. } => {
                "a record needs a text field such as prompt, and may have a kind (harmful, harmless or \
                 borderline) and a topic"
            }
            Self::PromptTooLong { .. } => "check for a missing line break or closing quote",
            Self::NoKind { file, .. } => return Some(kind_hint(file)),
            Self::KindConflict { file, .. } => {
                return Some(format!("remove the prefix of {file}, or correct the record"));
            }
            Self::TwoKinds { .. } => "keep the prompt under one kind only",
            Self::TooFew { kind, expected, .. } => {
                return Some(format!(
                    "each kind is split into three parts: provide at least {expected} {kind} prompts, or omit \
                     --no-bundled-prompts"
                ));
            }
            Self::TooMany { .. } => "use a sample of the files; a few hundred prompts are enough",
            Self::UnknownKind { .. } => {
                "unsafe and toxic also mean harmful; benign and safe mean harmless; alarming and \
                 overrefusal mean borderline"
            }
            Self::NoFiles => "give at least one prompt file",
        };
        Some(hint.to_owned())
    }
}

/// Returns a hint on how to specify the kind of the prompts in `file`.
fn kind_hint(file: &str) -> String {
    format!(
        "write harmful:{file}, harmless:{file} or borderline:{file}, add a kind to each record, or \
         use one of these words in the file name"
    )
}

/// Returns the beginning of a text, short enough for a message.
pub(super) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut chars = text.trim().chars();
    let mut short: String = chars.by_ref().take(LONGEST).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}
