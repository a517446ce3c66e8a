//! Parses `patches/*.toml` into [`ArchPatch`]: which tensors of an architecture write into the residual stream.
#![doc = include_str!("../../patches/README.md")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::util::bounded;
use crate::util::hint::Hint;

mod check;
mod embedded;
#[cfg(all(test, not(target_env = "msvc")))]
mod ffi;
mod table;
#[cfg(test)]
mod tests;

use check::parse;
use embedded::EMBEDDED;
pub use table::{ArchitectureRow, markdown};

/// Maximum size of a patch file, in bytes; the built-in ones have a few kilobytes.
const MAX_BYTES: u64 = 1 << 20;
/// Maximum number of similar names in an error.
const MAX_CLOSE_NAMES: usize = 3;

/// The residual writers of one family of architectures: the contents of one `patches/*.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchPatch {
    /// Name of the patch file, e.g. `llama.toml`.
    #[serde(skip)]
    pub file: String,
    /// Values of `general.architecture` that the file covers.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Name of the residual stream in llama.cpp's graph, without `-N`.
    #[serde(default)]
    pub residual: String,
    /// Name of the stream after the last block, if `residual` is numbered by the block that reads it. Then
    /// `{residual}-{N+1}` is the stream after block N.
    pub residual_last: Option<String>,
    /// Memory layout of the residual streams; most graphs have a single one.
    #[serde(default)]
    pub streams: Streams,
    /// How to treat the token embedding.
    #[serde(default)]
    pub embedding: EmbeddingPolicy,
    /// Tensors that look like writers but are not.
    #[serde(default)]
    pub not_writers: Vec<String>,
    /// Architectures whose feed-forward networks compute a function that detector neurons do not support.
    #[serde(default)]
    pub no_detectors: Vec<String>,
    /// Architectures whose models cannot be edited, each with the reason.
    #[serde(default)]
    pub refused: BTreeMap<String, String>,
    /// Note on the family for the table of architectures.
    pub note: Option<String>,
    /// Patterns of the residual writers.
    #[serde(default, rename = "writer")]
    pub writers: Vec<WriterPattern>,
}

impl ArchPatch {
    /// Returns every architecture in the file, including refused ones.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.architectures.iter().chain(self.refused.keys()).map(String::as_str)
    }
}

/// One kind of matrix that writes into the residual stream.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterPattern {
    /// Name of the tensor, with `{i}` for the block.
    pub tensor: String,
    /// Position in the block.
    pub kind: WriterKind,
    /// Axis that is the coordinate of the residual stream.
    pub axis: ResidualAxis,
    /// Whether every block in `layers` must have the tensor.
    #[serde(default)]
    pub required: bool,
    /// Label of a group of patterns; every block must have a tensor of at least one of them.
    pub any_of: Option<String>,
    /// Whether the tensor holds one matrix per expert.
    #[serde(default)]
    pub experts: bool,
    /// Blocks that may have the tensor.
    #[serde(default)]
    pub layers: LayerRange,
    /// Tensor that a block must have for the pattern to apply.
    pub with: Option<String>,
    /// Tensor that a block must not have for the pattern to apply.
    pub without: Option<String>,
    /// Metadata key of the number of experts that share one matrix.
    pub experts_per_key: Option<String>,
    /// Gain tensor of the norm between the matrix and the residual stream.
    pub post_norm: Option<String>,
    /// Whether that norm may be absent.
    #[serde(default)]
    pub post_norm_optional: bool,
    /// Boolean metadata key that must be `true` for the norm to exist.
    pub post_norm_key: Option<String>,
    /// Gain tensor of a second norm, after the first.
    pub outer_norm: Option<String>,
    /// Tensor that llama.cpp multiplies the product by, if the file has it.
    pub scale: Option<String>,
    /// Whether that scale also multiplies the contribution of a LoRA.
    #[serde(default)]
    pub scale_after_lora: bool,
    /// Whether llama.cpp can apply a LoRA to the tensor.
    #[serde(default = "default_true")]
    pub lora: bool,
    /// Metadata key of the factor that multiplies the matrix's contribution.
    pub residual_scale_key: Option<String>,
    /// The factor if no key provides one.
    pub residual_scale: Option<f64>,
    /// Additional factor of `residual_scale` that depends on the model's shape.
    pub residual_scale_times: Option<ShapeFactor>,
}

/// The axis of a GGUF matrix that is the coordinate of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResidualAxis {
    /// `ne[1] = n_embd`: one GGUF row is one coordinate of the output, as in every projection.
    Rows,
    /// `ne[0] = n_embd`: one GGUF row is a whole residual vector, as in `token_embd`.
    Cols,
}

/// Memory layout of a block's residual node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Streams {
    /// `[n_embd, n_tokens]`: a single stream.
    #[default]
    One,
    /// `[n_embd, n_streams, n_tokens]`: hyper-connections. The mean of the streams is used.
    Inner,
    /// `[n_embd, n_tokens, n_streams]`: the first stream is used.
    Outer,
}

/// Position of a writer, ordered by when it writes within a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriterKind {
    /// Token embedding, before the first block.
    Embedding,
    /// Output projection of an attention layer.
    Attention,
    /// Output projection of a state space, convolution or other recurrent mixer.
    Recurrent,
    /// Down projection of a feed-forward network, dense, expert or shared expert.
    Ffn,
    /// Anything else, written after the feed-forward network.
    Other,
}

/// How to treat writers of kind [`WriterKind::Embedding`]. Their rows are looked up, so there is no input for an edit
/// to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddingPolicy {
    /// Leave them out of the plan.
    #[default]
    Leave,
}

/// A factor that depends on the model's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapeFactor {
    /// `√n_embd`, the embedding scale of gemma.
    SqrtNEmbd,
    /// `1/√n_layer`, the depth scale of minicpm.
    RsqrtNLayer,
}

/// The range of blocks `from..until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRange {
    /// First block; 0 if absent.
    #[serde(default)]
    pub from: u32,
    /// First block after the range; unbounded if absent.
    pub until: Option<u32>,
}

impl LayerRange {
    /// Returns whether block `layer` is in the range.
    pub fn contains(&self, layer: usize) -> bool {
        layer >= self.from as usize && self.until.is_none_or(|until| layer < until as usize)
    }
}

impl WriterPattern {
    /// Returns the name of the tensor in block `layer`.
    pub fn tensor_in(&self, layer: usize) -> String {
        in_block(&self.tensor, layer)
    }

    /// Returns whether no block can match both patterns.
    fn excludes(&self, other: &Self) -> bool {
        let apart = |with: &Option<String>, without| with.is_some() && with == without;
        apart(&self.with, &other.without) || apart(&other.with, &self.without)
    }

    /// Returns whether each block has its own tensor, i.e. the name contains `{i}`.
    pub fn per_block(&self) -> bool {
        self.tensor.contains("{i}")
    }
}

/// Returns `pattern` with `{i}` replaced by `layer`.
pub fn in_block(pattern: &str, layer: usize) -> String {
    pattern.replace("{i}", &layer.to_string())
}

/// All known families; each architecture is in exactly one.
#[derive(Debug, Clone)]
pub struct Patches {
    patches: Vec<ArchPatch>,
}

impl Patches {
    /// Parses the patch files in the binary.
    pub fn embedded() -> Result<Self, PatchError> {
        let own = |(name, text): &(&str, &str)| (name.to_string(), text.to_string());
        Self::from_files(EMBEDDED.iter().map(own))
    }

    /// Parses `text` as the only patch file, with the name `file`.
    ///
    /// # Errors
    /// Returns [`PatchError`] if the text is not a valid patch file.
    pub fn from_text(file: &str, text: &str) -> Result<Self, PatchError> {
        Self::from_files(std::iter::once((file.to_string(), text.to_string())))
    }

    /// Parses the patch files in the binary and every `*.toml` in `dir`, which takes precedence.
    pub fn with_dir(dir: &Path) -> Result<Self, PatchError> {
        let own = Self::from_files(read_dir(dir)?.into_iter())?;
        let mut patches = Self::embedded()?.patches;
        for patch in &mut patches {
            patch.architectures.retain(|arch| own.named(arch).is_none());
            patch.refused.retain(|arch, _| own.named(arch).is_none());
        }
        patches.retain(|patch| patch.names().next().is_some());
        patches.extend(own.patches);
        Ok(Self { patches })
    }

    /// Returns the family of `arch`, a value of `general.architecture`.
    pub fn find(&self, arch: &str) -> Result<&ArchPatch, PatchError> {
        let Some(patch) = self.named(arch) else {
            return Err(PatchError::Unknown {
                architecture: arch.to_string(),
                close: self.close_names(arch),
            });
        };
        match patch.refused.get(arch) {
            None => Ok(patch),
            Some(reason) => {
                Err(PatchError::Refused { architecture: arch.to_string(), reason: reason.clone() })
            }
        }
    }

    /// Returns the names of all editable architectures, sorted.
    pub fn architectures(&self) -> Vec<&str> {
        let names = self.patches.iter().flat_map(|patch| &patch.architectures);
        let mut names: Vec<&str> = names.map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    fn named(&self, arch: &str) -> Option<&ArchPatch> {
        self.patches.iter().find(|patch| patch.names().any(|name| name == arch))
    }

    fn from_files(files: impl Iterator<Item = (String, String)>) -> Result<Self, PatchError> {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        let mut patches = Vec::new();
        for (file, text) in files {
            let patch = parse(&file, &text)?;
            for arch in patch.names() {
                if let Some(first) = seen.insert(arch.to_string(), file.clone()) {
                    let architecture = arch.to_string();
                    return Err(PatchError::Duplicate { architecture, first, second: file });
                }
            }
            patches.push(patch);
        }
        Ok(Self { patches })
    }

    fn close_names(&self, arch: &str) -> Vec<String> {
        let names = self.architectures().into_iter();
        let mut close: Vec<_> = names.map(|name| (edit_distance(arch, name), name)).collect();
        close.retain(|(distance, _)| *distance <= (arch.len() / 3).max(2));
        close.sort_unstable();
        close.truncate(MAX_CLOSE_NAMES);
        close.iter().map(|(_, name)| name.to_string()).collect()
    }
}

/// Errors of parsing patch files and finding architectures in them.
#[allow(missing_docs)] // of fields: the names say it
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// A file or directory cannot be read.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// A directory has no patch file.
    #[error("no *.toml file in {dir}")]
    NoFiles { dir: PathBuf },
    /// A file is not valid TOML, or has a field that is unknown or of the wrong type.
    #[error("{file}, line {line}: {message}")]
    Syntax { file: String, line: usize, message: String },
    /// A field has an invalid value.
    #[error("{file}: `{field}`: expected {expected}, found {found}")]
    Field { file: String, field: String, expected: String, found: String },
    /// Two files contain the same architecture, or one contains it twice.
    #[error("architecture `{architecture}` is defined twice: in {first} and in {second}")]
    Duplicate { architecture: String, first: String, second: String },
    /// No file contains the architecture.
    #[error("unknown architecture `{architecture}`: no patch file contains it{}", name_list(close))]
    Unknown { architecture: String, close: Vec<String> },
    /// Models of this architecture cannot be edited.
    #[error("models of architecture `{architecture}` cannot be edited: {reason}")]
    Refused { architecture: String, reason: String },
}

impl Hint for PatchError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } | Self::Refused { .. } => return None,
            Self::NoFiles { .. } => "pass --patches a directory of files like those in patches/",
            Self::Syntax { .. } | Self::Field { .. } => "see patches/README.md for the format",
            Self::Duplicate { .. } => "remove it from one of the two files",
            Self::Unknown { .. } => {
                "describe the tensors that write into the residual stream in DIR/NAME.toml \
                 (see patches/README.md for the format) and pass --patches DIR"
            }
        };
        Some(hint.to_string())
    }
}

fn name_list(close: &[String]) -> String {
    match close {
        [] => String::new(),
        names => format!(", similar names: {}", names.join(", ")),
    }
}

fn default_true() -> bool {
    true
}

/// Reads every `*.toml` in `dir`. Returns pairs of name and text, sorted by name.
fn read_dir(dir: &Path) -> Result<Vec<(String, String)>, PatchError> {
    let unreadable = |path: &Path, source| {
        let path = path.to_path_buf();
        PatchError::Read { path, source }
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| unreadable(dir, error))? {
        let path = entry.map_err(|error| unreadable(dir, error))?.path();
        if path.extension() == Some(OsStr::new("toml")) {
            // Checked before reading, because reading a pipe would wait for a writer.
            if !fs::metadata(&path).is_ok_and(|found| found.is_file()) {
                return Err(unreadable(&path, io::Error::other("expected a regular file")));
            }
            let text = bounded::read_text(&path, MAX_BYTES).map_err(|error| unreadable(&path, error))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((name.into_owned(), text));
        }
    }
    if files.is_empty() {
        let dir = dir.to_path_buf();
        return Err(PatchError::NoFiles { dir });
    }
    files.sort();
    Ok(files)
}

/// Returns the Levenshtein distance, in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, byte_a) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, byte_b) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(byte_a != byte_b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
