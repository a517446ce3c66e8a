//! Options of `export`.

use std::path::PathBuf;

use super::apart;
use super::search::parse_strength;
use crate::cli::ExportArgs;
use crate::pipeline::error::Error;
use crate::sources::Source;

/// Options of `export`.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The file of the stored edit.
    pub edit: PathBuf,
    /// The model file.
    pub model: PathBuf,
    /// Path of the LoRA adapter.
    pub lora: Option<PathBuf>,
    /// Path of the control vector.
    pub control_vector: Option<PathBuf>,
    /// Strength to use instead of the stored one.
    pub strength: Option<f64>,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether to overwrite existing outputs.
    pub overwrite: bool,
    /// Whether to accept an edit that was found on different weights.
    pub allow_other_weights: bool,
    /// Directory of additional patch files.
    pub patches: Option<PathBuf>,
}

impl ExportOptions {
    /// Validates the flags.
    ///
    /// # Errors
    /// Returns [`Error::Option`] naming the invalid flag.
    pub fn new(args: ExportArgs, source: Source) -> Result<Self, Error> {
        let outputs = [("--control-vector", &args.control_vector), ("--lora", &args.lora)];
        apart(&outputs, &[&args.edit, &source.path])?;
        Ok(Self {
            strength: parse_strength(&args.strength)?,
            edit: args.edit,
            model: source.path,
            lora: args.lora,
            control_vector: args.control_vector,
            json: args.json,
            overwrite: args.overwrite,
            allow_other_weights: args.allow_other_weights,
            patches: args.patches,
        })
    }
}
