//! `patches/*.toml` → [`ArchPatch`]: what writes into the residual stream of an architecture.
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

/// Longest patch file, in bytes; ours have some kilobytes.
const MAX_BYTES: u64 = 1 << 20;
/// More close names than this are noise.
const MAX_CLOSE_NAMES: usize = 3;

/// What one family of architectures writes into the residual stream with. One `patches/*.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchPatch {
    /// Name of the file that says so, e.g. `llama.toml`.
    #[serde(skip)]
    pub file: String,
    /// Values of `general.architecture`.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Name of the residual stream in the graph, without `-N`.
    #[serde(default)]
    pub residual: String,
    /// Name of that stream after the last block, where `residual` names it by the block that reads it:
    /// then `{residual}-{N+1}` is the stream after block N.
    pub residual_last: Option<String>,
    /// Where the graph keeps several residual streams side by side; most have one.
    #[serde(default)]
    pub streams: Streams,
    /// What becomes of the token embedding.
    #[serde(default)]
    pub embedding: EmbeddingPolicy,
    /// Tensors that look like writers and are none.
    #[serde(default)]
    pub not_writers: Vec<String>,
    /// Architectures whose feed-forward networks compute something that detector neurons do not know.
    #[serde(default)]
    pub no_detectors: Vec<String>,
    /// Architectures whose models cannot be edited, and why.
    #[serde(default)]
    pub refused: BTreeMap<String, String>,
    /// What the table of architectures says about the family.
    pub note: Option<String>,
    /// The patterns.
    #[serde(default, rename = "writer")]
    pub writers: Vec<WriterPattern>,
}

impl ArchPatch {
    /// Every architecture that the file speaks of, refused or not.
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
    /// Where in the block it sits.
    pub kind: WriterKind,
    /// Which of its two axes is the residual's.
    pub axis: ResidualAxis,
    /// Whether every block of `layers` must have it.
    #[serde(default)]
    pub required: bool,
    /// Group of which every block must have at least one.
    pub any_of: Option<String>,
    /// Whether it holds one matrix per expert.
    #[serde(default)]
    pub experts: bool,
    /// Blocks that it may be in.
    #[serde(default)]
    pub layers: LayerRange,
    /// Tensor without which a block has no use for the pattern.
    pub with: Option<String>,
    /// Tensor that makes the pattern useless in the block that has it.
    pub without: Option<String>,
    /// Key of the number of experts that share one matrix.
    pub experts_per_key: Option<String>,
    /// Gain of the norm between the matrix and the residual.
    pub post_norm: Option<String>,
    /// Whether that norm may be absent.
    #[serde(default)]
    pub post_norm_optional: bool,
    /// Key without whose `true` there is no such norm.
    pub post_norm_key: Option<String>,
    /// Gain of a second norm, after the first.
    pub outer_norm: Option<String>,
    /// Tensor by which llama.cpp multiplies the product, when the file has it.
    pub scale: Option<String>,
    /// Whether that scale multiplies a LoRA's contribution too.
    #[serde(default)]
    pub scale_after_lora: bool,
    /// Whether llama.cpp applies a LoRA to it.
    #[serde(default = "default_true")]
    pub lora: bool,
    /// Key of the factor that multiplies what it writes.
    pub residual_scale_key: Option<String>,
    /// The factor when no key gives one.
    pub residual_scale: Option<f64>,
    /// Further factor of `residual_scale`, from the model's shape.
    pub residual_scale_times: Option<ShapeFactor>,
}

/// Which axis of a GGUF matrix is the coordinate of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResidualAxis {
    /// `ne[1] = n_embd`: one GGUF row is one coordinate of the output, as in every projection.
    Rows,
    /// `ne[0] = n_embd`: one GGUF row is a whole residual vector, as in `token_embd`.
    Cols,
}

/// How the residual node of a block lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Streams {
    /// `[n_embd, n_tokens]`.
    #[default]
    One,
    /// `[n_embd, n_streams, n_tokens]`: hyper-connections. Their mean is taken.
    Inner,
    /// `[n_embd, n_tokens, n_streams]`: the first one is taken.
    Outer,
}

/// Where a writer sits; the order is the order of writing within a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriterKind {
    /// Before the first block.
    Embedding,
    /// Output projection of an attention.
    Attention,
    /// Output projection of a state space, convolution or other recurrent mixer.
    Recurrent,
    /// Down projection of a feed-forward network, dense, expert or shared expert.
    Ffn,
    /// Anything else, written after the feed-forward network.
    Other,
}

/// What becomes of the writers of kind [`WriterKind::Embedding`]: rows that are looked up have no inputs for an edit to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddingPolicy {
    /// They stay out of the plan.
    #[default]
    Leave,
}

/// A factor that the model's shape gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapeFactor {
    /// `√n_embd`, the embedding scale of gemma.
    SqrtNEmbd,
    /// `1/√n_layer`, the depth scale of minicpm.
    RsqrtNLayer,
}

/// Blocks `from..until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRange {
    /// First block; 0 when absent.
    #[serde(default)]
    pub from: u32,
    /// First block after the range; none when absent.
    pub until: Option<u32>,
}

impl LayerRange {
    /// Whether block `layer` is in the range.
    pub fn contains(&self, layer: usize) -> bool {
        layer >= self.from as usize && self.until.is_none_or(|until| layer < until as usize)
    }
}

impl WriterPattern {
    /// Name of the tensor in block `layer`.
    pub fn tensor_in(&self, layer: usize) -> String {
        in_block(&self.tensor, layer)
    }

    /// Whether no block can have a use for both patterns.
    fn excludes(&self, other: &Self) -> bool {
        let apart = |with: &Option<String>, without| with.is_some() && with == without;
        apart(&self.with, &other.without) || apart(&other.with, &self.without)
    }

    /// Whether every block has its own: the name holds `{i}`.
    pub fn per_block(&self) -> bool {
        self.tensor.contains("{i}")
    }
}

/// `pattern` with `{i}` replaced by `layer`.
pub fn in_block(pattern: &str, layer: usize) -> String {
    pattern.replace("{i}", &layer.to_string())
}

/// Every known family; each architecture is in exactly one.
#[derive(Debug, Clone)]
pub struct Patches {
    patches: Vec<ArchPatch>,
}

impl Patches {
    /// The files in the binary.
    pub fn embedded() -> Result<Self, PatchError> {
        let own = |(name, text): &(&str, &str)| (name.to_string(), text.to_string());
        Self::from_files(EMBEDDED.iter().map(own))
    }

    /// What `text` says alone, as a file named `file` would.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn from_text(file: &str, text: &str) -> Result<Self, PatchError> {
        Self::from_files(std::iter::once((file.to_string(), text.to_string())))
    }

    /// The files in the binary and every `*.toml` in `dir`, which is right where both speak.
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

    /// The family of `arch`, the value of `general.architecture`.
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

    /// Every architecture that can be edited, sorted.
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

/// What is wrong with a patch file, or with asking for an architecture.
#[allow(missing_docs)] // of fields: the names say it
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// A file or directory cannot be read.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// A directory has no patch file.
    #[error("no *.toml file in {dir}")]
    NoFiles { dir: PathBuf },
    /// A file is not TOML, or has a field that the format lacks, or one of another type.
    #[error("{file}, line {line}: {message}")]
    Syntax { file: String, line: usize, message: String },
    /// A field has a value that makes no sense.
    #[error("{file}: `{field}`: expected {expected}, found {found}")]
    Field { file: String, field: String, expected: String, found: String },
    /// Two files name the same architecture, or one names it twice.
    #[error("architecture `{architecture}` is named twice: in {first} and in {second}")]
    Duplicate { architecture: String, first: String, second: String },
    /// No file names the architecture.
    #[error("no patch file names architecture `{architecture}`{}", name_list(close))]
    Unknown { architecture: String, close: Vec<String> },
    /// Models of this architecture cannot be edited.
    #[error("models of architecture `{architecture}` cannot be edited: {reason}")]
    Refused { architecture: String, reason: String },
}

impl Hint for PatchError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } | Self::Refused { .. } => return None,
            Self::NoFiles { .. } => "--patches takes a directory of files like those in patches/",
            Self::Syntax { .. } | Self::Field { .. } => "patches/README.md describes the format",
            Self::Duplicate { .. } => "take it out of one of the two files",
            Self::Unknown { .. } => {
                "write DIR/NAME.toml with the tensors that write into the residual stream \
                 (patches/README.md describes the format) and pass --patches DIR"
            }
        };
        Some(hint.to_string())
    }
}

fn name_list(close: &[String]) -> String {
    match close {
        [] => String::new(),
        names => format!(", close names: {}", names.join(", ")),
    }
}

fn default_true() -> bool {
    true
}

/// Name and text of every `*.toml` in `dir`, sorted by name.
fn read_dir(dir: &Path) -> Result<Vec<(String, String)>, PatchError> {
    let unreadable = |path: &Path, source| {
        let path = path.to_path_buf();
        PatchError::Read { path, source }
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| unreadable(dir, error))? {
        let path = entry.map_err(|error| unreadable(dir, error))?.path();
        if path.extension() == Some(OsStr::new("toml")) {
            // A pipe would be waited for.
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

/// Levenshtein distance in bytes.
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
