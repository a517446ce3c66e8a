//! Why a release stopped.

use std::path::PathBuf;

use crate::util::hint::Hint;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The configuration cannot be read.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What is asked for cannot be made from these sources.
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
        /// What it said.
        reason: String,
    },
    /// The journal of the release is damaged, or of a later version.
    #[error("{}: {problem}", path.display())]
    State {
        /// The journal.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file was made from something else.
    #[error("{file} was made with another {key}: {before}, now {now}")]
    Changed {
        /// The file.
        file: String,
        /// What differs.
        key: String,
        /// As it was.
        before: String,
        /// As it is asked for.
        now: String,
    },
    /// Something in the folder is in the way.
    #[error("{} is in the way: it does not belong to a release", path.display())]
    InTheWay {
        /// What.
        path: PathBuf,
    },
}

impl Hint for ReleaseError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Config { .. } => "see `rosi-gguf release --help` and the example in docs",
            Self::Plan { hint, .. } => hint,
            Self::Quantize { .. } => "run with -vv to see llama.cpp's log",
            Self::State { .. } => "release into an empty folder",
            Self::Changed { .. } => "release into another folder, or pass --overwrite to make it again",
            Self::InTheWay { .. } => "release into an empty folder, or pass --overwrite",
        };
        Some(hint.into())
    }
}
