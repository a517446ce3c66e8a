//! Errors of a release.

use std::path::PathBuf;

use crate::util::hint::Hint;

/// Why a release failed.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The configuration is missing or invalid.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The requested files cannot be made from these sources.
    #[error("{problem}")]
    Plan {
        /// What is wrong.
        problem: String,
        /// A next step.
        hint: &'static str,
    },
    /// llama.cpp could not quantize.
    #[error("llama.cpp could not quantize {} to {to}: {reason}", from.display())]
    Quantize {
        /// The source.
        from: PathBuf,
        /// The type.
        to: String,
        /// The reason given by llama.cpp.
        reason: String,
    },
    /// The journal of the release is damaged, or of another format version.
    #[error("{}: {problem}", path.display())]
    State {
        /// The journal.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file was made from different inputs.
    #[error("{file} was made with a different {key}: {before}, now {now}")]
    Changed {
        /// The file.
        file: String,
        /// Name of the input that differs.
        key: String,
        /// Its value when the file was made.
        before: String,
        /// The requested value.
        now: String,
    },
    /// The directory contains a file that the release would overwrite.
    #[error("{} already exists and does not belong to a release", path.display())]
    InTheWay {
        /// The existing file.
        path: PathBuf,
    },
}

impl Hint for ReleaseError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Config { .. } => "see `rosi-gguf release --help` and the example in the documentation",
            Self::Plan { hint, .. } => hint,
            Self::Quantize { .. } => "run with -vv to see llama.cpp's log",
            Self::State { .. } => "use an empty directory",
            Self::Changed { .. } => "use another directory, or pass --overwrite to make the file again",
            Self::InTheWay { .. } => "use an empty directory, or pass --overwrite",
        };
        Some(hint.into())
    }
}
