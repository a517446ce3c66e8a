//! What llama.cpp takes for granted of a file that its own reader accepts: where it is not so, the process would end
//! in C code.

mod ffi;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use crate::gguf::{GgmlType, Gguf, GgufError, TensorInfo};
use crate::util::hint::Hint;

/// Step at which ggml's CPU buffers begin, in bytes.
const BUFFER_STEP: u64 = 32;
/// Bytes that occur in UTF-8.
const UTF8_BYTES: [std::ops::RangeInclusive<u8>; 2] = [0x01..=0xbf, 0xc2..=0xf4];
const TOKENS: &str = "tokenizer.ggml.tokens";

/// A well-formed file that llama.cpp cannot run.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// A matrix cannot be multiplied.
    #[error("{}: tensor '{tensor}' is {found}, expected a type that ggml multiplies by: {}", path.display(), expected.join(", "))]
    NoProduct {
        /// The file.
        path: PathBuf,
        /// The matrix.
        tensor: String,
        /// Its type.
        found: GgmlType,
        /// The types there is a product for.
        expected: Vec<&'static str>,
    },
    /// Two tokens are the same.
    #[error(
        "{}: {TOKENS} has {token:?} as token {first} and as token {second}, expected each token once",
        path.display()
    )]
    TokenTwice {
        /// The file.
        path: PathBuf,
        /// Its text.
        token: String,
        /// Where it is first.
        first: usize,
        /// Where it is again.
        second: usize,
    },
    /// Characters outside the vocabulary cannot be spelled.
    #[error(
        "{}: {TOKENS} has no token <0x{missing:02X}>, expected one for every byte, with which a vocabulary of kind llama \
         spells what it lacks ({n_missing} are missing)",
        path.display()
    )]
    NoByte {
        /// The file.
        path: PathBuf,
        /// The first byte without a token.
        missing: u8,
        /// How many there are.
        n_missing: usize,
    },
    /// There is nothing to put text into.
    #[error("{}: tokenizer.ggml.model is {found:?}, expected a vocabulary", path.display())]
    NoVocabulary {
        /// The file.
        path: PathBuf,
        /// The key's value.
        found: String,
    },
    /// Some texts cannot be read.
    #[error(
        "{}: {TOKENS} has no token for the byte 0x{missing:02X} alone, expected one for every byte, without which a \
         vocabulary of kind rwkv cannot read every text",
        path.display()
    )]
    NoSingleByte {
        /// The file.
        path: PathBuf,
        /// The first byte without a token.
        missing: u8,
    },
    /// The tensors begin where a buffer cannot.
    #[error(
        "{}: general.alignment is {alignment}, which puts tensor data at byte {start}, expected a multiple of \
         {BUFFER_STEP}, where llama.cpp can map it",
        path.display()
    )]
    Alignment {
        /// The file.
        path: PathBuf,
        /// The key's value.
        alignment: u64,
        /// Where tensor data begins.
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

/// Checks a header before llama.cpp is given the file.
///
/// # Errors
/// [`HeaderError`] naming the key or the tensor.
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

/// Whether a tensor tells which expert a token goes to, and is no factor.
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

/// A vocabulary of kind rwkv reads a text by the longest tokens that it begins with, and never ends where there is none.
fn check_single_bytes(gguf: &Gguf, tokens: &[u8]) -> Result<(), HeaderError> {
    let single = |token: &[u8]| <[u8; 1]>::try_from(unescaped(token)).ok().map(|[byte]| byte);
    let known: HashSet<u8> = strings(tokens).filter_map(single).collect();
    match UTF8_BYTES.into_iter().flatten().find(|byte| !known.contains(byte)) {
        Some(missing) => Err(HeaderError::NoSingleByte { path: gguf.path.clone(), missing }),
        None => Ok(()),
    }
}

/// A token of a vocabulary of kind rwkv, which is escaped as Python writes bytes (llama_unescape_rwkv_token).
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

/// A vocabulary of kind llama spells what it lacks with bytes.
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

/// The text of token `id` as llama.cpp knows it: up to a NUL, and with a name where there is none.
fn as_named(token: &[u8], id: usize) -> Vec<u8> {
    let token = token.split(|&byte| byte == 0).next().unwrap_or_default();
    if token.is_empty() { format!("[EMPTY_{id}]").into_bytes() } else { token.to_vec() }
}

/// The strings of an array, each with its length before it.
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
