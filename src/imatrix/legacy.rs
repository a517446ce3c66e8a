//! The legacy format. Every length is checked against the rest of the file before it is used.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::{ImatrixError, Inputs};

/// Bytes of the shortest entry: name length, one byte of name, n_call, n_val, one value.
const LEAST_ENTRY: u64 = 4 + 1 + 4 + 4 + 4;
/// Longest name, in bytes. ggml's names have at most 63 bytes; those of other tools may be longer.
const MOST_NAME: i32 = 1024;

/// Reads a file of `len` bytes.
pub(super) fn read(path: &Path, len: u64) -> Result<BTreeMap<String, Inputs>, ImatrixError> {
    let file = File::open(path).map_err(|source| ImatrixError::Read { path: path.into(), source })?;
    let mut cursor =
        Cursor { path, reader: BufReader::new(file), left: len, entry: "the number of entries".into() };
    let n_entries = cursor.i32()?;
    let most = cursor.left / LEAST_ENTRY;
    if u64::try_from(n_entries).is_ok_and(|n| n >= 1 && n <= most) {
        return cursor.entries(n_entries);
    }
    // The format has no magic number, so an invalid count means that this is some other file.
    let found =
        format!("it is not GGUF, and read as a legacy file of {len} bytes it would have {n_entries} entries");
    Err(ImatrixError::NotImatrix { path: path.into(), found })
}

struct Cursor<'p, R> {
    path: &'p Path,
    reader: R,
    /// Bytes left up to the end of the file.
    left: u64,
    /// The entry being read, for messages.
    entry: String,
}

impl<R: Read> Cursor<'_, R> {
    fn broken(&self, problem: String) -> ImatrixError {
        ImatrixError::Entry { path: self.path.into(), entry: self.entry.clone(), problem }
    }

    fn bytes(&mut self, n: u64) -> Result<Vec<u8>, ImatrixError> {
        if n > self.left {
            return Err(self.broken(format!("expected {n} more bytes, found {}", self.left)));
        }
        let mut bytes = vec![0; n as usize];
        let read = self.reader.read_exact(&mut bytes);
        read.map_err(|source| ImatrixError::Read { path: self.path.into(), source })?;
        self.left -= n;
        Ok(bytes)
    }

    fn i32(&mut self) -> Result<i32, ImatrixError> {
        let bytes = self.bytes(4)?;
        Ok(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn entries(&mut self, n: i32) -> Result<BTreeMap<String, Inputs>, ImatrixError> {
        let mut entries = BTreeMap::new();
        for index in 0..n {
            self.entry = format!("entry {index}");
            let (name, inputs) = self.one()?;
            if entries.insert(name, inputs).is_some() {
                return Err(self.broken("duplicate entry".into()));
            }
        }
        Ok(entries)
    }

    fn one(&mut self) -> Result<(String, Inputs), ImatrixError> {
        let length = self.i32()?;
        if !(1..=MOST_NAME).contains(&length) {
            return Err(self.broken(format!("expected a name of 1 to {MOST_NAME} bytes, found {length}")));
        }
        let name = self.bytes(length as u64)?;
        let name = String::from_utf8(name)
            .map_err(|_| self.broken("expected a UTF-8 name, found invalid bytes".into()))?;
        self.entry = name.clone();
        let n_call = self.i32()?;
        let n_val = self.i32()?;
        if n_call < 0 || n_val < 1 {
            let problem = format!("expected n_call >= 0 and n_val >= 1, found {n_call} and {n_val}");
            return Err(self.broken(problem));
        }
        let values = self.bytes(n_val as u64 * 4)?;
        let values = values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        // As in llama-quantize: without calls (an older layout), the mean itself is stored.
        let sum_squares = values.map(|v| v / n_call.max(1) as f32).collect();
        let inputs = Inputs { n_in: n_val as usize, counts: vec![1.0], sum_squares, sums: None };
        let inputs = inputs.checked().map_err(|problem| self.broken(problem))?;
        Ok((name, inputs))
    }
}
