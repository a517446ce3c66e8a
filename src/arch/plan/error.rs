//! Why no plan can be made, and what to know of one that was.

use std::fmt;

use super::shape_text;
use crate::arch::patches::PatchError;
use crate::gguf::{Gguf, TensorInfo};
use crate::util::hint::Hint;

/// Why no plan can be made.
#[allow(missing_docs)] // of fields: the names say it
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No patch file for the architecture.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The model is split over several files.
    #[error("the model is split over {count} files, and this is one of them")]
    Split { count: u16 },
    /// A key is missing, or its value makes no sense.
    #[error("key `{key}`: expected {expected}, found {found}")]
    Key { key: String, expected: String, found: String },
    /// A block lacks a writer.
    #[error("block {layer}: expected tensor {}, found none ({family})", alternatives(candidates))]
    MissingWriter { layer: usize, candidates: Vec<String>, family: String },
    /// The norm between a writer and the residual is missing.
    #[error("tensor `{norm}`: expected the gain of the norm after `{writer}`, found none")]
    MissingNorm { norm: String, writer: String },
    /// A tensor has another shape or type than its place demands.
    #[error("tensor `{tensor}`: expected {expected}, found {found}")]
    Shape { tensor: String, expected: String, found: String },
    /// The patch file leaves nothing to edit.
    #[error("{family}: expected at least one writer in the model, found none")]
    NoWriters { family: String },
}

impl PlanError {
    pub(super) fn key_missing(key: &str) -> Self {
        Self::key_value(key, "a value", Some("none"))
    }

    /// Of a key that must be a string.
    pub(super) fn no_string(gguf: &Gguf, key: &str) -> Self {
        Self::key_value(key, "a string", if gguf.get(key).is_none() { Some("none") } else { None })
    }

    pub(super) fn key_value<T: fmt::Display>(key: &str, expected: &str, found: Option<T>) -> Self {
        let found = found.map(|value| value.to_string());
        let found = found.unwrap_or("a value of another type".to_string());
        let (key, expected) = (key.to_string(), expected.to_string());
        Self::Key { key, expected, found }
    }

    pub(super) fn shape(tensor: &TensorInfo, expected: &str) -> Self {
        let (name, ne) = (tensor.ggml_type.name(), shape_text(tensor.ne, None));
        let (found, expected) = (format!("{name} {ne}"), expected.to_string());
        let tensor = tensor.name.clone();
        Self::Shape { tensor, expected, found }
    }
}

impl Hint for PlanError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Patch(error) => return error.hint(),
            Self::Split { .. } => "keep all its files in one folder and name any of them",
            Self::Key { .. } => "the file is damaged, or no language model",
            _ => "if llama.cpp loads this file, correct a copy of the patch file and pass --patches DIR",
        };
        Some(hint.to_string())
    }
}

fn alternatives(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(" or ")
}

/// What the user should know before trusting a plan.
#[allow(missing_docs)] // of fields: the names say it
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanWarning {
    /// A tensor looks like a writer and no pattern covers it: it stays as it is.
    Uncovered { tensor: String, family: String },
    /// llama.cpp applies no LoRA to this writer: only the edited file shows the whole effect.
    NoLora { tensor: String },
}

impl fmt::Display for PlanWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uncovered { tensor, family } => {
                write!(f, "tensor `{tensor}` looks like a residual writer, but {family} does not name it")
            }
            Self::NoLora { tensor } => {
                write!(f, "llama.cpp applies no LoRA to `{tensor}`: trial runs leave it out")
            }
        }
    }
}

impl Hint for PlanWarning {
    fn hint(&self) -> Option<String> {
        let hint = "pass --patches DIR with a file that lists it as a writer or under not_writers";
        matches!(self, Self::Uncovered { .. }).then(|| hint.to_string())
    }
}
