//! Errors of finding and downloading models of the hub.

use std::io;
use std::path::PathBuf;

use crate::util::hint::Hint;

/// Errors of finding and downloading models of the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is invalid.
    #[error("invalid hub model name {name:?}: {problem}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The hub cannot be reached, and the cache lacks the model.
    #[error("{repo} is not in the cache, and {endpoint} cannot be reached: {problem}")]
    Unreachable {
        /// The repository.
        repo: String,
        /// Address of the hub.
        endpoint: String,
        /// The network error.
        problem: String,
    },
    /// `HF_HUB_OFFLINE` is set, and the cache lacks the model.
    #[error("{repo} is not in the cache, and HF_HUB_OFFLINE is set")]
    Offline {
        /// The repository.
        repo: String,
    },
    /// The hub denies access.
    #[error("the hub denies {whom} access to {what} (status {status})")]
    Denied {
        /// The repository or file.
        what: String,
        /// Whether the user has a token, in words.
        whom: &'static str,
        /// HTTP status, 401 or 403.
        status: u16,
    },
    /// The hub has no such repository or file.
    #[error("the hub has no {what} (status 404)")]
    Missing {
        /// The repository or file.
        what: String,
    },
    /// The hub answered with an unexpected status.
    #[error("the hub answered the request for {what} with status {status}")]
    Status {
        /// The repository or file.
        what: String,
        /// HTTP status.
        status: u16,
    },
    /// The hub's answer is invalid.
    #[error("invalid answer from the hub for {what}: {problem}")]
    Answer {
        /// The repository or file.
        what: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The repository has no GGUF file.
    #[error("{repo} has no GGUF model file")]
    NoGguf {
        /// The repository.
        repo: String,
    },
    /// The repository has no matching GGUF file.
    #[error("{repo} has no GGUF file for {wanted}")]
    NoMatch {
        /// The repository.
        repo: String,
        /// The requested quantization or file.
        wanted: String,
        /// The available files.
        there: Vec<String>,
    },
    /// More than one GGUF file matches.
    #[error("expected one GGUF file in {repo}, found {} {of}", there.len())]
    Several {
        /// The repository.
        repo: String,
        /// What they match, in words.
        of: String,
        /// The matching files.
        there: Vec<String>,
    },
    /// A file of a split model is missing.
    #[error("{repo} has no {missing}, which is part of the split model")]
    NoPart {
        /// The repository.
        repo: String,
        /// The first missing file.
        missing: String,
    },
    /// The download failed.
    #[error("cannot download {file}: {problem}")]
    Download {
        /// The file.
        file: String,
        /// The cause.
        problem: String,
    },
    /// Another program is downloading the file.
    #[error("another program is downloading {file}")]
    Busy {
        /// The file.
        file: String,
    },
    /// The downloaded file does not match its sha256.
    #[error("removed {file}, which was damaged in transit: expected sha256 {expected}, found {found}")]
    Damaged {
        /// The file.
        file: String,
        /// The expected sha256.
        expected: String,
        /// The sha256 of the download.
        found: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}", path.display())]
    Cache {
        /// The cache, or the file in it.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No location for the cache is known.
    #[error(
        "no location for the hub's cache: expected HF_HOME, XDG_CACHE_HOME or a home directory, found none"
    )]
    NoHome,
    /// The user stopped the operation.
    #[error("stopped while {file}: the same command resumes it")]
    Stopped {
        /// The interrupted step, e.g. `downloading FILE`.
        file: String,
    },
}

impl Hint for HubError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Name { .. } => Some("use OWNER/REPO or OWNER/REPO:Q4_K_M, as for llama.cpp's -hf".into()),
            Self::Unreachable { .. } => {
                Some("check the network and HF_ENDPOINT; for a file on this machine, pass its path".into())
            }
            Self::Denied { .. } => Some(
                "set HF_TOKEN to a token with access (`hf auth login` stores one); for a gated model, \
                 request access on its page first"
                    .into(),
            ),
            Self::Missing { .. } => Some("check the spelling; for a private repository, set HF_TOKEN".into()),
            Self::NoGguf { .. } => Some("find a repository with GGUF files, often named …-GGUF".into()),
            Self::NoMatch { there, .. } | Self::Several { there, .. } => {
                Some(format!("choose one as OWNER/REPO:FILE.gguf; available: {}", there.join(", ")))
            }
            Self::Download { .. } => Some("rerun the same command to resume the download".into()),
            Self::Cache { source, .. } if is_full(source) => {
                Some("free some space, or set HF_HOME to a larger disk; the same command resumes".into())
            }
            Self::NoHome => Some("set HF_HOME to a directory for the hub's cache".into()),
            Self::Damaged { .. } => Some("run the same command again".into()),
            Self::Offline { .. } => Some("unset HF_HUB_OFFLINE to download it".into()),
            Self::Status { .. }
            | Self::Answer { .. }
            | Self::NoPart { .. }
            | Self::Busy { .. }
            | Self::Cache { .. }
            | Self::Stopped { .. } => None,
        }
    }
}

/// Returns whether the error means that the disk or the user's quota is full, or that the file is too large.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
