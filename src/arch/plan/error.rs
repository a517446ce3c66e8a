//! Errors and warnings of making a plan.

use std::fmt;

use super::shape_text;
use crate::arch::patches::PatchError;
use crate::gguf::{Gguf, TensorInfo};
use crate::util::hint::Hint;

/// Errors of making a plan.
#[allow(missing_docs)] // of fields: the names say it
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The architecture has no usable patch file.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// Some files of a split model are missing.
    #[error("the model is split into {count} files, but not all of them were found")]
    Split { count: u16 },
    /// A metadata key is missing or has an invalid value.
    #[error("key `{key}`: expected {expected}, found {found}")]
    Key { key: String, expected: String, found: String },
    /// A block lacks a writer.
    #[error("block {layer}: expected tensor {}, found none ({family})", alternatives(candidates))]
    MissingWriter { layer: usize, candidates: Vec<String>, family: String },
    /// The norm between a writer and the residual stream is missing.
    #[error("tensor `{norm}`: expected the gain of the norm after `{writer}`, found none")]
    MissingNorm { norm: String, writer: String },
    /// A tensor has an unexpected shape or type.
    #[error("tensor `{tensor}`: expected {expected}, found {found}")]
    Shape { tensor: String, expected: String, found: String },
    /// The patch file matches no writer in the model.
    #[error("{family}: expected at least one writer in the model, found none")]
    NoWriters { family: String },
}

impl PlanError {
    pub(super) fn key_missing(key: &str) -> Self {
        Self::key_value(key, "a value", Some("none"))
    }

    /// Returns the error for a missing key, or one that is not a string.
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
            Self::Split { .. } => "keep all its files in one folder and pass any of them",
            Self::Key { .. } => "the file is damaged or is not a language model",
            _ => "if llama.cpp loads this file, correct a copy of the patch file and pass --patches DIR",
        };
        Some(hint.to_string())
    }
}

fn alternatives(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(" or ")
}

/// Warnings that the user should consider before trusting a plan.
#[allow(missing_docs)] // of fields: the names say it
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanWarning {
    /// A tensor looks like a writer, but no pattern covers it, so it is not edited.
    Uncovered { tensor: String, family: String },
    /// llama.cpp cannot apply a LoRA to this writer, so only the edited file has the full effect.
    NoLora { tensor: String },
}

impl fmt::Display for PlanWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uncovered { tensor, family } => {
                write!(f, "tensor `{tensor}` looks like a residual writer, but {family} does not list it")
            }
            Self::NoLora { tensor } => {
                write!(f, "llama.cpp cannot apply a LoRA to `{tensor}`: trial runs leave it out")
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
