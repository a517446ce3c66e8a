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
    /// The stored edit.
    pub edit: PathBuf,
    /// The model.
    pub model: PathBuf,
    /// Where the adapter goes.
    pub lora: Option<PathBuf>,
    /// Where the control vector goes.
    pub control_vector: Option<PathBuf>,
    /// Strength in place of the stored one.
    pub strength: Option<f64>,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether to overwrite.
    pub overwrite: bool,
    /// Whether an edit of other weights is taken.
    pub allow_other_weights: bool,
    /// Folder of further patches.
    pub patches: Option<PathBuf>,
}

impl ExportOptions {
    /// Checks the flags.
    ///
    /// # Errors
    /// [`Error::Option`] naming the flag.
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
