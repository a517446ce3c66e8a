//! Copying a file byte for byte, except for replaced tensors and added keys.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use super::{GgmlType, Gguf, GgufError, Progress, TensorInfo, Value, encode, reader};

const CHUNK: u64 = 4 << 20;
/// Offset of `n_kv`, the only count that changes; preceded by magic, version, and `n_tensors`.
const N_KV_AT: u64 = 4 + 4 + 8;

/// Callback that returns new data for a tensor, or `None` to leave it unchanged.
type Replace<'a> = dyn FnMut(&TensorInfo) -> Result<Option<Vec<u8>>, Box<dyn Error + Send + Sync>> + 'a;

/// Description of a copy of `source`, to be written with [`Rewrite::write_to`].
pub struct Rewrite<'a> {
    /// The file to copy; for a split model, one of its files (see [`Gguf::files`]).
    pub source: &'a Gguf,
    /// Records to append to the existing ones; for arrays, see `added_f32`.
    pub added: Vec<(String, Value)>,
    /// Arrays of floats to append after `added`.
    pub added_f32: Vec<(String, Vec<f32>)>,
    /// Prefix of existing keys to drop, so that `added` can replace them.
    pub drop_prefix: Option<&'a str>,
    /// New types by tensor name. If not empty, all tensor offsets are recomputed. The data of each of these
    /// tensors must be replaced.
    pub types: HashMap<String, GgmlType>,
}

impl<'a> Rewrite<'a> {
    /// Creates a plain copy, with nothing added, dropped, or retyped.
    pub fn copy(source: &'a Gguf) -> Self {
        Self { source, added: Vec::new(), added_f32: Vec::new(), drop_prefix: None, types: HashMap::new() }
    }

    /// Returns the type that `tensor` has in the copy.
    pub fn type_of(&self, tensor: &TensorInfo) -> GgmlType {
        self.types.get(&tensor.name).copied().unwrap_or(tensor.ggml_type)
    }

    /// Writes the copy and returns its length in bytes. Calls `replace` for each tensor in file order; new
    /// data must have the size of the tensor in the copy. Holds at most one tensor in memory.
    ///
    /// With nothing added, dropped, or replaced, the copy is identical to the source.
    pub fn write_to(
        &self,
        out: &mut impl Write,
        replace: &mut Replace<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<u64, GgufError> {
        let header = self.plan_header()?;
        let mut copier = self.copier(&header, out, progress)?;
        copier.write_header(&header)?;
        match header.info {
            None => copier.copy_data(replace)?,
            Some(_) => copier.lay_data(self, replace)?,
        }
        copier.flush()?;
        Ok(copier.done)
    }

    /// Returns the bytes of the copy that precede its tensor data.
    pub fn header(&self) -> Result<Vec<u8>, GgufError> {
        let header = self.plan_header()?;
        let mut bytes = Vec::new();
        self.copier(&header, &mut bytes, &mut |_, _| Ok(()))?.write_header(&header)?;
        Ok(bytes)
    }

    fn copier<'c, 'p, W>(
        &self,
        header: &Header,
        out: &'c mut W,
        progress: &'c mut Progress<'p>,
    ) -> Result<Copier<'c, 'p, W>, GgufError>
    where
        'a: 'c,
    {
        Ok(Copier {
            source: self.source,
            file: self.source.reopen()?,
            out,
            progress,
            buffer: Vec::new(),
            done: 0,
            total: header.data_start + header.data_len,
        })
    }

    fn plan_header(&self) -> Result<Header, GgufError> {
        let source = self.source;
        let mut kept: Vec<Range<u64>> = Vec::new();
        let mut n_kv = (self.added.len() + self.added_f32.len()) as u64;
        for record in &source.metadata {
            if self.drops(&record.key)? {
                continue;
            }
            n_kv += 1;
            match kept.last_mut() {
                Some(last) if last.end == record.bytes.start => last.end = record.bytes.end,
                _ => kept.push(record.bytes.clone()),
            }
        }
        let added = self.encode_added()?;
        let kept_len: u64 = kept.iter().map(|range| range.end - range.start).sum();
        let info_len = source.info_bytes.end - source.info_bytes.start;
        let end = source.kv_bytes.start + kept_len + added.len() as u64 + info_len;
        let data_start = match source.own_tensors().len() {
            0 => end,
            // Cannot overflow: alignment is below 2^32, and `end` is close to the length of a file.
            _ => reader::pad(end, source.alignment).unwrap_or(end),
        };
        let (info, data_len) = match self.types.is_empty() {
            true => (None, source.file_len - source.data_start),
            false => self.lay_out().map(|(info, len)| (Some(info), len))?,
        };
        Ok(Header { n_kv, kept, added, info, data_start, data_len })
    }

    /// Returns the tensor descriptions with new types and offsets, and the length of the data. The length
    /// of a description does not change, so the layout of the header stays the same.
    fn lay_out(&self) -> Result<(Vec<u8>, u64), GgufError> {
        let source = self.source;
        let mut info = source.read_bytes(&source.info_bytes)?;
        let (mut at, mut offset) = (0usize, 0u64);
        for tensor in source.own_tensors() {
            let ggml_type = self.type_of(tensor);
            let row = ggml_type.row_bytes(tensor.ne[0]);
            let bytes = row.and_then(|row| row.checked_mul(tensor.n_rows()));
            let bytes = bytes.ok_or_else(|| GgufError::Retype {
                tensor: tensor.name.clone(),
                ggml_type,
                ne0: tensor.ne[0],
            })?;
            at += 8 + tensor.name.len() + 4 + 8 * tensor.n_dims as usize;
            info[at..at + 4].copy_from_slice(&ggml_type.id().to_le_bytes());
            info[at + 4..at + 12].copy_from_slice(&offset.to_le_bytes());
            at += 12;
            offset =
                offset.checked_add(bytes).and_then(|end| reader::pad(end, source.alignment)).ok_or_else(
                    || GgufError::Retype { tensor: tensor.name.clone(), ggml_type, ne0: tensor.ne[0] },
                )?;
        }
        Ok((info, offset))
    }

    fn drops(&self, key: &str) -> Result<bool, GgufError> {
        let drops = self.drop_prefix.is_some_and(|prefix| key.starts_with(prefix));
        if drops && key == "general.alignment" {
            return Err(GgufError::DroppedKey {
                key: key.to_string(),
                reason: "tensor offsets depend on it",
            });
        }
        Ok(drops)
    }

    fn encode_added(&self) -> Result<Vec<u8>, GgufError> {
        let mut bytes = Vec::new();
        let mut seen = HashSet::new();
        for (key, value) in &self.added {
            self.check_added(key, &mut seen)?;
            encode::key_value(&mut bytes, key, value)?;
        }
        for (key, items) in &self.added_f32 {
            self.check_added(key, &mut seen)?;
            encode::f32_array(&mut bytes, key, items);
        }
        Ok(bytes)
    }

    /// Rejects a key that would make the copy unreadable.
    fn check_added<'k>(&self, key: &'k str, seen: &mut HashSet<&'k str>) -> Result<(), GgufError> {
        let reason = if key.is_empty() {
            "it is empty"
        } else if key.contains('\0') {
            "it contains a NUL byte"
        } else if key == "general.alignment" {
            "tensor offsets depend on it"
        } else if !seen.insert(key) {
            "it is given twice"
        } else if self.source.get(key).is_some() && !self.drops(key)? {
            "the file already has it"
        } else {
            return Ok(());
        };
        let key = key.to_string();
        Err(GgufError::AddedKey { key, reason })
    }
}

/// The header of the copy, planned before anything is written.
struct Header {
    n_kv: u64,
    kept: Vec<Range<u64>>,
    added: Vec<u8>,
    /// Tensor descriptions; `None` if they are copied from the source.
    info: Option<Vec<u8>>,
    data_start: u64,
    data_len: u64,
}

struct Copier<'a, 'p, W> {
    source: &'a Gguf,
    file: File,
    out: &'a mut W,
    progress: &'a mut Progress<'p>,
    buffer: Vec<u8>,
    done: u64,
    total: u64,
}

impl<W: Write> Copier<'_, '_, W> {
    /// Writes everything before the tensor data.
    fn write_header(&mut self, header: &Header) -> Result<(), GgufError> {
        self.copy(0..N_KV_AT)?;
        self.write(&header.n_kv.to_le_bytes())?;
        header.kept.iter().try_for_each(|kept| self.copy(kept.clone()))?;
        self.write(&header.added)?;
        match &header.info {
            None => self.copy(self.source.info_bytes.clone())?,
            Some(info) => self.write(info)?,
        }
        self.pad_to(header.data_start)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        let path = &self.source.path;
        self.out.write_all(bytes).map_err(|error| GgufError::from_write(path, error))?;
        self.done += bytes.len() as u64;
        (self.progress)(self.done, self.total).map_err(|source| {
            let path = path.clone();
            GgufError::Stopped { path, source }
        })
    }

    fn flush(&mut self) -> Result<(), GgufError> {
        let path = &self.source.path;
        self.out.flush().map_err(|error| GgufError::from_write(path, error))
    }

    /// Copies a range of the source.
    fn copy(&mut self, range: Range<u64>) -> Result<(), GgufError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = range.start;
        while at < range.end {
            let n = CHUNK.min(range.end - at);
            buffer.resize(n as usize, 0);
            self.file
                .seek(SeekFrom::Start(at))
                .and_then(|_| self.file.read_exact(&mut buffer))
                .map_err(|error| self.shrunk_or(error))?;
            self.write(&buffer)?;
            at += n;
        }
        self.buffer = buffer;
        Ok(())
    }

    fn shrunk_or(&self, error: io::Error) -> GgufError {
        match (error.kind(), self.file.metadata()) {
            (io::ErrorKind::UnexpectedEof, Ok(now)) => self.source.changed(now.len()),
            _ => self.source.read_error(error),
        }
    }

    /// Pads the header up to `data_start`; keeps the source's padding if it has the right length.
    fn pad_to(&mut self, data_start: u64) -> Result<(), GgufError> {
        let found = self.source.info_bytes.end..self.source.data_start;
        if data_start - self.done == found.end - found.start {
            return self.copy(found);
        }
        self.zeros(data_start - self.done)
    }

    fn zeros(&mut self, mut n: u64) -> Result<(), GgufError> {
        let zeros = vec![0; CHUNK.min(n) as usize];
        while n > 0 {
            let now = CHUNK.min(n);
            self.write(&zeros[..now as usize])?;
            n -= now;
        }
        Ok(())
    }

    /// Writes new data of `expected` bytes.
    fn write_tensor(&mut self, tensor: &TensorInfo, bytes: &[u8], expected: u64) -> Result<(), GgufError> {
        let found = bytes.len() as u64;
        if found != expected {
            return Err(GgufError::TensorLength { tensor: tensor.name.clone(), expected, found });
        }
        bytes.chunks(CHUNK as usize).try_for_each(|chunk| self.write(chunk))
    }

    /// Writes all tensors at their new offsets, each padded to the alignment.
    fn lay_data(&mut self, rewrite: &Rewrite<'_>, replace: &mut Replace<'_>) -> Result<(), GgufError> {
        for tensor in self.source.own_tensors() {
            let replaced = replaced(tensor, replace)?;
            let row = rewrite.type_of(tensor).row_bytes(tensor.ne[0]).unwrap_or(0);
            let expected = row * tensor.n_rows();
            match replaced {
                Some(bytes) => self.write_tensor(tensor, &bytes, expected)?,
                None if rewrite.type_of(tensor) == tensor.ggml_type => self.copy(tensor.data.clone())?,
                None => self.write_tensor(tensor, &[], expected)?,
            }
            let padded = reader::pad(expected, self.source.alignment).unwrap_or(expected);
            self.zeros(padded - expected)?;
        }
        Ok(())
    }

    fn copy_data(&mut self, replace: &mut Replace<'_>) -> Result<(), GgufError> {
        let source = self.source;
        let mut at = source.data_start;
        for tensor in source.own_tensors() {
            self.copy(at..tensor.data.start)?;
            match replaced(tensor, replace)? {
                None => self.copy(tensor.data.clone())?,
                Some(bytes) => self.write_tensor(tensor, &bytes, tensor.n_bytes())?,
            }
            at = tensor.data.end;
        }
        self.copy(at..source.file_len)
    }
}

fn replaced(tensor: &TensorInfo, replace: &mut Replace<'_>) -> Result<Option<Vec<u8>>, GgufError> {
    replace(tensor).map_err(|source| GgufError::Replace { tensor: tensor.name.clone(), source })
}
