//! Checks properties of a file that llama.cpp relies on but does not verify: without them, the process would end in
//! C code.

mod ffi;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use crate::gguf::{GgmlType, Gguf, GgufError, TensorInfo};
use crate::util::hint::Hint;

/// Alignment of ggml's CPU buffers, in bytes.
const BUFFER_STEP: u64 = 32;
/// Bytes that occur in UTF-8, except NUL.
const UTF8_BYTES: [std::ops::RangeInclusive<u8>; 2] = [0x01..=0xbf, 0xc2..=0xf4];
const TOKENS: &str = "tokenizer.ggml.tokens";

/// A well-formed file that llama.cpp cannot run.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// ggml cannot multiply by a matrix of this type.
    #[error(
        "{}: tensor '{tensor}': expected a type that ggml can multiply by ({}), found {found}",
        path.display(),
        expected.join(", ")
    )]
    NoProduct {
        /// Path of the file.
        path: PathBuf,
        /// Name of the matrix.
        tensor: String,
        /// Type of the matrix.
        found: GgmlType,
        /// Types that ggml can multiply by.
        expected: Vec<&'static str>,
    },
    /// The vocabulary contains a token twice.
    #[error(
        "{}: {TOKENS}: expected each token once, found {token:?} as tokens {first} and {second}",
        path.display()
    )]
    TokenTwice {
        /// Path of the file.
        path: PathBuf,
        /// Text of the token.
        token: String,
        /// Id of its first occurrence.
        first: usize,
        /// Id of its second occurrence.
        second: usize,
    },
    /// A llama vocabulary cannot spell characters that it lacks.
    #[error(
        "{}: {TOKENS}: expected a token for every byte, with which a llama vocabulary spells unknown \
         characters, found no token <0x{missing:02X}> ({n_missing} missing)",
        path.display()
    )]
    NoByte {
        /// Path of the file.
        path: PathBuf,
        /// First byte without a token.
        missing: u8,
        /// Number of bytes without a token.
        n_missing: usize,
    },
    /// The file has no vocabulary.
    #[error("{}: tokenizer.ggml.model: expected a vocabulary, found {found:?}", path.display())]
    NoVocabulary {
        /// Path of the file.
        path: PathBuf,
        /// Value of the key.
        found: String,
    },
    /// An rwkv vocabulary cannot read every text.
    #[error(
        "{}: {TOKENS}: expected a token for every single byte, without which an rwkv vocabulary cannot read \
         every text, found none for 0x{missing:02X}",
        path.display()
    )]
    NoSingleByte {
        /// Path of the file.
        path: PathBuf,
        /// First byte without a token.
        missing: u8,
    },
    /// Tensor data is not aligned as llama.cpp requires.
    #[error(
        "{}: expected tensor data at a multiple of {BUFFER_STEP} bytes, where llama.cpp can map it, found \
         it at byte {start} (general.alignment is {alignment})",
        path.display()
    )]
    Alignment {
        /// Path of the file.
        path: PathBuf,
        /// Value of `general.alignment`.
        alignment: u64,
        /// Offset of the tensor data, in bytes.
        start: u64,
    },
    /// The vocabulary could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

impl Hint for HeaderError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Gguf(error) => error.hint(),
            _ => Some("convert or quantize the original model again".into()),
        }
    }
}

/// Checks a header before the file is passed to llama.cpp.
///
/// # Errors
/// Returns [`HeaderError`] if llama.cpp would fail on a key or tensor, or the vocabulary cannot be read.
pub fn check(gguf: &Gguf) -> Result<(), HeaderError> {
    for file in gguf.files() {
        let (alignment, start) = (file.alignment, file.data_start);
        if !file.own_tensors().is_empty() && !start.is_multiple_of(BUFFER_STEP) {
            return Err(HeaderError::Alignment { path: file.path.clone(), alignment, start });
        }
    }
    let unusable = |t: &&TensorInfo| t.ne[1] > 1 && !holds_ids(&t.name) && !ffi::has_product(t.ggml_type);
    if let Some(tensor) = gguf.tensors.iter().find(unusable) {
        let usable = GgmlType::all().filter(|&ggml_type| ffi::has_product(ggml_type));
        return Err(HeaderError::NoProduct {
            path: gguf.path.clone(),
            tensor: tensor.name.clone(),
            found: tensor.ggml_type,
            expected: usable.map(GgmlType::name).collect(),
        });
    }
    check_tokens(gguf)
}

/// Returns whether a tensor maps tokens to experts, in which case it is never multiplied.
fn holds_ids(tensor: &str) -> bool {
    tensor.contains("ffn_gate_tid2eid")
}

fn check_tokens(gguf: &Gguf) -> Result<(), HeaderError> {
    if let Some(found) = gguf.str("tokenizer.ggml.model").filter(|kind| matches!(*kind, "none" | "no_vocab"))
    {
        return Err(HeaderError::NoVocabulary { path: gguf.path.clone(), found: found.to_owned() });
    }
    let Some(array) = gguf.array(TOKENS) else { return Ok(()) };
    let bytes = gguf.read_bytes(&array.bytes)?;
    let mut places = HashMap::with_capacity(array.len as usize);
    for (second, token) in strings(&bytes).enumerate() {
        let token = as_named(token, second);
        if let Some(first) = places.insert(token.clone(), second) {
            let token = String::from_utf8_lossy(&token).into_owned();
            return Err(HeaderError::TokenTwice { path: gguf.path.clone(), token, first, second });
        }
    }
    match gguf.str("tokenizer.ggml.model") {
        Some("llama") => check_bytes(gguf, &places),
        Some("rwkv") => check_single_bytes(gguf, &bytes),
        _ => Ok(()),
    }
}

/// Checks that an rwkv vocabulary has a token for every single byte: llama.cpp reads a text by longest matching tokens
/// and loops forever where none matches.
fn check_single_bytes(gguf: &Gguf, tokens: &[u8]) -> Result<(), HeaderError> {
    let single = |token: &[u8]| <[u8; 1]>::try_from(unescaped(token)).ok().map(|[byte]| byte);
    let known: HashSet<u8> = strings(tokens).filter_map(single).collect();
    match UTF8_BYTES.into_iter().flatten().find(|byte| !known.contains(byte)) {
        Some(missing) => Err(HeaderError::NoSingleByte { path: gguf.path.clone(), missing }),
        None => Ok(()),
    }
}

/// Decodes a token of an rwkv vocabulary, escaped like a Python bytes literal (see `llama_unescape_rwkv_token`).
fn unescaped(token: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), token);
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'\\', [b'x', hex @ ..]) if hex.len() >= 2 => {
                let digits = std::str::from_utf8(&hex[..2]).unwrap_or_default();
                (u8::from_str_radix(digits, 16).unwrap_or_default(), &hex[2..])
            }
            (b'\\', [b't', after @ ..]) => (b'\t', after),
            (b'\\', [b'n', after @ ..]) => (b'\n', after),
            (b'\\', [b'r', after @ ..]) => (b'\r', after),
            (b'\\', [other, after @ ..]) => (*other, after),
            (byte, after) => (*byte, after),
        };
        out.push(byte);
        rest = after;
    }
    out
}

/// Checks that a llama vocabulary has a token for every byte: it spells unknown characters as bytes.
fn check_bytes(gguf: &Gguf, places: &HashMap<Vec<u8>, usize>) -> Result<(), HeaderError> {
    let spelled = |byte: &u8| {
        places.contains_key(format!("<0x{byte:02X}>").as_bytes()) || places.contains_key([*byte].as_slice())
    };
    let missing: Vec<u8> = UTF8_BYTES.into_iter().flatten().filter(|byte| !spelled(byte)).collect();
    match missing.first() {
        Some(&first) => {
            Err(HeaderError::NoByte { path: gguf.path.clone(), missing: first, n_missing: missing.len() })
        }
        None => Ok(()),
    }
}

/// Returns the text of token `id` as llama.cpp sees it: cut at the first NUL, and given a name if empty.
fn as_named(token: &[u8], id: usize) -> Vec<u8> {
    let token = token.split(|&byte| byte == 0).next().unwrap_or_default();
    if token.is_empty() { format!("[EMPTY_{id}]").into_bytes() } else { token.to_vec() }
}

/// Iterates over the strings of an array, each of which is preceded by its length.
fn strings(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = bytes.split_first_chunk::<8>()?;
        let (token, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        bytes = rest;
        Some(token)
    })
}

#[cfg(test)]
mod tests;
