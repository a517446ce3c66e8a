//! Errors of reading and writing GGUF files.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{GgmlType, ValueType};
use crate::output::shell;
use crate::util::hint::Hint;

/// Error of reading or writing a file. [`GgufError::hint`] suggests a fix.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)] // each message documents its variant and names its fields
pub enum GgufError {
    #[error("no such file: {}", path.display())]
    NotFound { path: PathBuf },
    #[error("{} is a directory, expected a GGUF file", path.display())]
    IsDirectory { path: PathBuf },
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is empty, expected a GGUF file", path.display())]
    Empty { path: PathBuf },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Malformed { path: PathBuf, problem: Box<Malformed> },
    #[error("{} is {kind}, expected a language model", path.display())]
    NotAModel { path: PathBuf, kind: NonModel },
    #[error("{} contains {found} in addition to the language model; llama.cpp cannot load it", path.display())]
    Siblings { path: PathBuf, found: String },
    #[error("{} is file {} of {count} of a split model (split.no = {no}), expected a name ending in \"{expected}\"", path.display(), no + 1)]
    ShardName { path: PathBuf, no: u16, count: u16, expected: String },
    #[error("{} is one of {count} files of a split model, expected {} in the same directory, found {found} of {count}", path.display(), missing.display())]
    MissingShard { path: PathBuf, missing: PathBuf, first: bool, found: usize, count: u16 },
    #[error("{} does not belong to the split model of {}: {what} is {found}, expected {expected}", path.display(), first.display())]
    ForeignShard { path: PathBuf, first: PathBuf, what: &'static str, expected: Box<str>, found: Box<str> },
    #[error("cannot write output {}: the model has {count} files, expected a name ending in \"{expected}\"", path.display())]
    OutputShardName { path: PathBuf, count: usize, expected: String },
    #[error("{} changed while it was being read: expected {expected} bytes, found {found}", path.display())]
    Changed { path: PathBuf, expected: u64, found: u64 },
    #[error("{} changed since it was read: expected sha256 {expected}, found {found}", path.display())]
    Rewritten { path: PathBuf, expected: String, found: String },
    #[error("{}: tensor '{tensor}' ends at byte {end}, past the end of the file at {file_len}", path.display())]
    TensorPastEnd { path: PathBuf, tensor: String, end: u64, file_len: u64 },
    #[error("{}: expected an array of {expected}, found an array of {len} × {found}", path.display())]
    ArrayItems { path: PathBuf, expected: &'static str, found: ValueType, len: u64 },
    #[error("new data for tensor '{tensor}': expected {expected} bytes, found {found}")]
    TensorLength { tensor: String, expected: u64, found: u64 },
    #[error("cannot convert tensor '{tensor}' to {ggml_type}: its rows have {ne0} values, expected a multiple of {}", ggml_type.block_len())]
    Retype { tensor: String, ggml_type: super::GgmlType, ne0: u64 },
    #[error("cannot compute new data for tensor '{tensor}'")]
    Replace { tensor: String, source: Box<dyn Error + Send + Sync> },
    #[error("cannot add key '{key}': {reason}")]
    AddedKey { key: String, reason: &'static str },
    #[error("cannot drop key '{key}': {reason}")]
    DroppedKey { key: String, reason: &'static str },
    #[error("stopped while writing a copy of {}", path.display())]
    Stopped { path: PathBuf, source: io::Error },
    #[error("cannot write the output for {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} already exists", path.display())]
    OutputExists { path: PathBuf },
    #[error("output {} is a directory, expected a file name", path.display())]
    OutputIsDirectory { path: PathBuf },
    #[error("output {} exists and is not a regular file", path.display())]
    OutputNotAFile { path: PathBuf },
    #[error("directory {} of output {} does not exist", directory.display(), path.display())]
    OutputNoDirectory { path: PathBuf, directory: PathBuf },
    #[error("no permission to write output {}", path.display())]
    OutputReadOnly { path: PathBuf, source: io::Error },
    #[error("no space left to write output {}", path.display())]
    OutputNoSpace { path: PathBuf, source: io::Error },
    #[error("{} is only partly changed: `inject --in-place` or `undo` was interrupted", path.display())]
    HalfChanged { path: PathBuf },
    #[error("{} is being changed in place by another run", path.display())]
    BeingChanged { path: PathBuf },
    #[error("undo journal {} is damaged: {problem}", path.display())]
    BadJournal { path: PathBuf, problem: &'static str },
    #[error("cannot {doing} output {}: {source}", path.display())]
    Output { path: PathBuf, doing: &'static str, source: io::Error },
}

/// Defect in a GGUF header.
#[derive(thiserror::Error, Debug)]
#[allow(missing_docs)] // each message documents its variant and names its fields
pub enum Malformed {
    #[error("{part} needs {need} bytes at offset {at}, but the file has only {left} more")]
    Truncated { part: String, at: u64, need: u64, left: u64 },
    #[error("cannot read {part}: {source}")]
    Read { part: String, source: io::Error },
    #[error("not a GGUF file: it starts with \"{}\", expected \"GGUF\"", found.escape_ascii())]
    Magic { found: Vec<u8> },
    #[error("GGUF version is {found}, expected 2 or 3")]
    Version { found: u32 },
    #[error("GGUF version is {found:#010x}: the file is big-endian, expected little-endian")]
    Endianness { found: u32 },
    #[error("number of {what} is {found}, expected 0 or more")]
    NegativeCount { what: &'static str, found: i64 },
    #[error("number of {what} is {found}, but the rest of the file holds at most {max}")]
    TooMany { what: &'static str, found: u64, max: u64 },
    #[error("{part} makes the header need more than {max} bytes of memory, far more than any real model")]
    TooLarge { part: String, max: u64 },
    #[error("{part} is a string of {found} bytes, expected at most {max}")]
    StringLength { part: String, found: u64, max: u64 },
    #[error("key {index} is empty")]
    EmptyKey { index: u64 },
    #[error("{part} has a name with a NUL byte, where llama.cpp would truncate it")]
    Nul { part: String },
    #[error("{part} has a name with the control character {found:?}")]
    Control { part: String, found: char },
    #[error("key {index} has a name of {found} bytes, expected at most {max}")]
    KeyLength { index: u64, found: u64, max: u64 },
    #[error("key '{key}' appears more than once")]
    DuplicateKey { key: String },
    #[error("key '{key}' has value type {found}, expected 0 to 12")]
    ValueType { key: String, found: u32 },
    #[error("key '{key}' is an array of arrays, which GGUF readers do not accept")]
    NestedArray { key: String },
    #[error("key '{key}' is an array of {found} elements, expected at most {max}")]
    ArrayLength { key: String, found: u64, max: u64 },
    #[error("key '{key}' is {found}, expected {expected}")]
    KeyType { key: String, expected: &'static str, found: String },
    #[error("key '{key}' has {found} elements, expected {expected} as in tokenizer.ggml.tokens")]
    TokenCount { key: String, expected: u64, found: u64 },
    #[error(
        "key '{key}' is {found}, expected a multiple of {expected}, which llama.cpp assumes without checking"
    )]
    Step { key: String, expected: u32, found: u32 },
    #[error("key 'general.alignment' is {found}, expected a power of two")]
    Alignment { found: u64 },
    #[error("tensor {index} has a name of {found} bytes, expected fewer than 64")]
    TensorName { index: u64, found: u64 },
    #[error("tensor '{tensor}' appears more than once")]
    DuplicateTensor { tensor: String },
    #[error("tensor '{tensor}' has {found} dimensions, expected at most 4")]
    Dimensions { tensor: String, found: u32 },
    #[error("tensor '{tensor}' has {found} elements along axis {axis}, expected 0 or more")]
    NegativeDimension { tensor: String, axis: u32, found: i64 },
    #[error("tensor '{tensor}' has shape {ne:?}, whose size overflows")]
    ShapeOverflow { tensor: String, ne: [u64; 4] },
    #[error("tensor '{tensor}' has ggml type {found}, which is unknown or was removed")]
    TensorType { tensor: String, found: u32 },
    #[error(
        "tensor '{tensor}' has rows of {found} elements, expected a multiple of {expected} for {ggml_type}"
    )]
    RowLength { tensor: String, ggml_type: GgmlType, expected: u64, found: u64 },
    #[error("tensor '{tensor}' has offset {found}, expected {expected}")]
    Offset { tensor: String, expected: u64, found: u64 },
    #[error("tensor data should start at byte {start}, past the end of the file at {file_len}")]
    DataStart { start: u64, file_len: u64 },
    #[error("tensor '{tensor}' ends at byte {end}, past the end of the file at {file_len}")]
    DataPastEnd { tensor: String, end: u64, file_len: u64 },
}

/// GGUF files that are well-formed but hold something other than a language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are self-explanatory
pub enum NonModel {
    Mmproj,
    Adapter,
    ControlVector,
    Imatrix,
    VocabOnly,
}

impl std::fmt::Display for NonModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NonModel::Mmproj => "a multimodal projector (mmproj)",
            NonModel::Adapter => "a LoRA adapter",
            NonModel::ControlVector => "a control vector",
            NonModel::Imatrix => "an importance matrix (imatrix)",
            NonModel::VocabOnly => "a vocabulary without tensors",
        })
    }
}

impl GgufError {
    /// Classifies an I/O error from writing `path` by what the user can do about it.
    pub(super) fn from_output(path: &Path, doing: &'static str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                GgufError::OutputNoSpace { path, source }
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                GgufError::OutputReadOnly { path, source }
            }
            _ => GgufError::Output { path, doing, source },
        }
    }

    /// Converts an error from a writer; unwraps the [`GgufError`] that [`super::AtomicFile`] put inside.
    pub(super) fn from_write(path: &Path, error: io::Error) -> Self {
        error.downcast::<GgufError>().unwrap_or_else(|source| {
            let path = path.to_path_buf();
            GgufError::Write { path, source }
        })
    }
}

impl Hint for GgufError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            GgufError::NotFound { .. } => "check the spelling, or use an absolute path",
            GgufError::IsDirectory { .. } => "pass the .gguf file inside it",
            GgufError::NotAFile { .. } => "copy it to a regular file first: it is read more than once",
            GgufError::Empty { .. } => "the download or copy probably failed; fetch it again",
            GgufError::Read { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                "check the file's permissions"
            }
            GgufError::Malformed { problem, .. } => return problem.hint().map(str::to_string),
            GgufError::NotAModel { kind, .. } => kind.hint(),
            GgufError::Siblings { .. } => {
                "get a version of the model made for llama.cpp, with the encoders in a separate mmproj file, \
                 for example from Hugging Face: hf:OWNER/REPO-GGUF"
            }
            GgufError::Changed { .. } | GgufError::Rewritten { .. } => {
                "wait until nothing is writing to the file, then run again"
            }
            GgufError::ShardName { .. } => {
                "restore the original name: llama.cpp derives the names of the other files from it"
            }
            GgufError::MissingShard { first: true, .. } => {
                "the first file of a split model is written last: if this is an output, the run that wrote \
                 it was interrupted; write it again with `--overwrite`"
            }
            GgufError::MissingShard { .. } => "put all files of the model in the same directory",
            GgufError::ForeignShard { .. } => "download all files of the model again from the same source",
            GgufError::OutputShardName { path, expected, .. } => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                return Some(format!("-o {}", shell(Path::new(&format!("{stem}{expected}")))));
            }
            GgufError::Write { source, .. } if source.kind() == ErrorKind::StorageFull => {
                "free some space, or write to another disk"
            }
            GgufError::Retype { .. } => "types with blocks of 32 values fit most models: Q8_0, Q5_1, Q4_0",
            GgufError::OutputExists { .. } => "choose another name, or overwrite it with `--overwrite`",
            GgufError::OutputIsDirectory { .. } => "pass the name of a file inside the directory",
            GgufError::OutputNotAFile { .. } => "choose another name",
            GgufError::OutputNoDirectory { directory, .. } => {
                return Some(format!("create it with `mkdir -p {}`", shell(directory)));
            }
            GgufError::OutputReadOnly { .. } => "write to a directory that you own",
            GgufError::OutputNoSpace { .. } => "free some space, or write to another disk",
            GgufError::HalfChanged { path } => {
                return Some(format!(
                    "put the original back with `rosi-gguf undo {}`; if {1} was replaced since, delete {1}.rosi-undo",
                    shell(path),
                    path.display()
                ));
            }
            GgufError::BeingChanged { .. } => "wait for it to finish",
            GgufError::BadJournal { .. } => {
                "download the model again, or delete the journal if you know that the model is intact"
            }
            _ => return None,
        };
        Some(hint.to_string())
    }
}

const FETCH_AGAIN: &str = "the file is incomplete or damaged; download it again and compare its \
                           size and SHA-256 with the publisher's";

impl Malformed {
    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Malformed::Magic { found } => match found.as_slice() {
                b"vers" => "this looks like a Git LFS pointer; fetch the file with `git lfs pull`",
                [b'<', ..] => "this looks like a web page; download the file itself",
                b"ggml" | b"lmgg" | b"ggjt" | b"tjgg" | b"ggla" => {
                    "this format predates GGUF; convert the original model again"
                }
                _ => "convert the model with llama.cpp's `convert_hf_to_gguf.py`",
            },
            Malformed::Version { found: 1 } => {
                "version 1 is no longer supported; convert the original model again"
            }
            Malformed::Version { .. } => "a newer version of this program may support it",
            Malformed::Endianness { .. } => "swap the bytes with llama.cpp's `gguf_convert_endian.py`",
            Malformed::TensorType { found, .. } => match found {
                4 | 5 | 31..=33 | 36..=38 => "llama.cpp removed this type; quantize the original model again",
                _ => "a newer version of this program may support it",
            },
            Malformed::Truncated { .. }
            | Malformed::TooMany { .. }
            | Malformed::DataStart { .. }
            | Malformed::DataPastEnd { .. } => FETCH_AGAIN,
            Malformed::Read { .. } => return None,
            _ => "llama.cpp would refuse or misread this file too; get it from another source",
        })
    }
}

impl NonModel {
    fn hint(self) -> &'static str {
        match self {
            NonModel::Mmproj => "pass the language model it belongs to; the projector needs no change",
            NonModel::Adapter => "pass the base model, or merge the adapter first with `llama-export-lora`",
            NonModel::ControlVector => "pass the model it steers",
            NonModel::Imatrix => "pass the model, and pass this file with `--imatrix`",
            NonModel::VocabOnly => "pass the file that contains the model's weights",
        }
    }
}
