//! A parsed header and the questions one may ask of it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::metadata::value_of;
use super::{ArrayInfo, GgufError, KeyValue, NonModel, TensorInfo, Value, ValueType};

/// Most elements [`Gguf::read_f32_array`] and [`Gguf::read_u64_array`] will read.
const MAX_READ_ARRAY: u64 = 1 << 20;

/// The header of a GGUF file, or of the first file of a split model, which knows the others; tensor
/// data stays on disk.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// Where the file is.
    pub path: PathBuf,
    /// Format version, 2 or 3.
    pub version: u32,
    /// `general.alignment`, or 32.
    pub alignment: u64,
    /// Key-value records in file order.
    pub metadata: Vec<KeyValue>,
    /// Tensors in file order, which is also the order of their data; of a split model those of all
    /// files, one file after the other.
    pub tensors: Vec<TensorInfo>,
    /// The key-value records in the file.
    pub kv_bytes: Range<u64>,
    /// The tensor descriptions in the file.
    pub info_bytes: Range<u64>,
    /// Where tensor data starts, from the start of the file.
    pub data_start: u64,
    /// Length of the file when it was opened.
    pub file_len: u64,
    /// Indices into `tensors`, by name.
    pub(super) by_name: Vec<u32>,
    /// Which file of a split model this is, from 0.
    pub(super) shard: u16,
    /// How many of `tensors` lie in this file; they come first.
    pub(super) n_own: usize,
    /// The other files of a split model, in order, each with its own tensors only.
    pub(super) others: Vec<Gguf>,
    /// Memory that the header was charged for, other files not counted.
    pub(super) memory: u64,
}

/// Which part of a split model a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Index of this file, from 0.
    pub no: u16,
    /// Number of files.
    pub count: u16,
}

impl Gguf {
    /// Opens a file and reads its header; any file of a split model stands for all of it. Refuses a file
    /// whose change in place was never finished.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        super::in_place::refuse_unfinished(path)?;
        super::shards::open(path)
    }

    /// Reads a header from anything seekable whose length is `len`; `path` is then `<memory>`.
    pub fn parse(reader: impl Read + Seek, len: u64) -> Result<Gguf, GgufError> {
        super::reader::parse(reader, len, Path::new("<memory>"))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        value_of(&self.metadata, key)
    }

    /// The value of a string key.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The value of an integer key of any width, unless negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// The value of a floating-point key.
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    /// The value of a boolean key.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Where the array under a key lies.
    pub fn array(&self, key: &str) -> Option<&ArrayInfo> {
        match self.get(key)? {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let at = |i: u32| &self.tensors[i as usize];
        let found = self.by_name.binary_search_by(|&i| at(i).name.as_str().cmp(name));
        Some(at(self.by_name[found.ok()?]))
    }

    /// The same file with its tensors in the order in which `other` lists them, which llama-quantize does not keep; as
    /// it is where the two do not name the same tensors. Only the list changes, not where the bytes lie.
    pub fn listed_as(mut self, other: &Gguf) -> Self {
        let listed = other.tensors.iter().map(|tensor| self.tensor(&tensor.name).cloned());
        let listed: Option<Vec<TensorInfo>> = listed.collect();
        if let Some(listed) = listed.filter(|listed| listed.len() == self.tensors.len()) {
            self.tensors = listed;
            self.by_name.clone_from(&other.by_name);
        }
        self
    }

    /// This file, and after it the other files of a split model.
    pub fn files(&self) -> impl Iterator<Item = &Gguf> {
        std::iter::once(self).chain(&self.others)
    }

    /// Number of files that the model was read from.
    pub fn n_files(&self) -> usize {
        1 + self.others.len()
    }

    /// Length of all files together.
    pub fn total_len(&self) -> u64 {
        self.files().fold(0, |sum, file| sum.saturating_add(file.file_len))
    }

    /// The tensors whose data lies in this very file.
    pub fn own_tensors(&self) -> &[TensorInfo] {
        &self.tensors[..self.n_own.min(self.tensors.len())]
    }

    /// The file that holds a tensor.
    fn file_of(&self, tensor: &TensorInfo) -> &Gguf {
        self.files().find(|file| file.shard == tensor.shard).unwrap_or(self)
    }

    /// `general.architecture`, such as `llama`.
    pub fn architecture(&self) -> Option<&str> {
        self.str("general.architecture")
    }

    /// Which part of a split model this is; `None` for a model in one file. `gguf-split --merge`
    /// leaves `split.count = 0` behind.
    pub fn split(&self) -> Option<Split> {
        let count = u16::try_from(self.u64("split.count")?).ok()?;
        let no = u16::try_from(self.u64("split.no").unwrap_or(0)).ok()?;
        (count > 1).then_some(Split { no, count })
    }

    /// Refuses files that hold something other than a language model.
    pub fn refuse_non_model(&self) -> Result<(), GgufError> {
        let kind = match (self.architecture(), self.str("general.type")) {
            (Some("clip"), _) | (_, Some("mmproj")) => NonModel::Mmproj,
            (_, Some("adapter")) => NonModel::Adapter,
            (Some("controlvector"), _) => NonModel::ControlVector,
            (Some("imatrix"), _) | (_, Some("imatrix")) => NonModel::Imatrix,
            // The first file of a split model may hold nothing but metadata.
            _ if self.tensors.is_empty() && self.split().is_none() => NonModel::VocabOnly,
            _ => return Ok(()),
        };
        let path = self.path.clone();
        Err(GgufError::NotAModel { path, kind })
    }

    /// The raw bytes of a tensor.
    pub fn read_tensor(&self, tensor: &TensorInfo) -> Result<Vec<u8>, GgufError> {
        self.read_part(tensor, 0..tensor.data.end.saturating_sub(tensor.data.start))
    }

    /// Some of the raw bytes of a tensor, counted from its first.
    pub fn read_part(&self, tensor: &TensorInfo, part: Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.file_of(tensor).read_own(tensor, part)
    }

    fn read_own(&self, tensor: &TensorInfo, part: Range<u64>) -> Result<Vec<u8>, GgufError> {
        if tensor.data.start > tensor.data.end || tensor.data.end > self.file_len {
            return Err(GgufError::TensorPastEnd {
                path: self.path.clone(),
                tensor: tensor.name.clone(),
                end: tensor.data.end.max(tensor.data.start),
                file_len: self.file_len,
            });
        }
        let start = tensor.data.start.saturating_add(part.start).min(tensor.data.end);
        self.read_range(&(start..tensor.data.start.saturating_add(part.end).clamp(start, tensor.data.end)))
    }

    /// The bytes of a record of this file, as [`super::KeyValue::bytes`] names it.
    pub fn read_bytes(&self, range: &std::ops::Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.read_range(range)
    }

    /// The elements of a floating-point array, at most 2^20 of them.
    pub fn read_f32_array(&self, array: &ArrayInfo) -> Result<Vec<f32>, GgufError> {
        self.read_array(array, "up to 2^20 floats", |item, bytes| match item {
            ValueType::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?) as f32),
            _ => None,
        })
    }

    /// The elements of an integer array without negative ones, at most 2^20 of them; booleans
    /// count as 0 and 1.
    pub fn read_u64_array(&self, array: &ArrayInfo) -> Result<Vec<u64>, GgufError> {
        let expected = "up to 2^20 integers of 0 or more";
        self.read_array(array, expected, |item, bytes| {
            let mut wide = [0; 8];
            wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
            let value = u64::from_le_bytes(wide);
            let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
            match item {
                ValueType::U8 | ValueType::U16 | ValueType::U32 | ValueType::U64 => Some(value),
                ValueType::I8 | ValueType::I16 | ValueType::I32 | ValueType::I64 => {
                    (!negative).then_some(value)
                }
                ValueType::Bool => Some(u64::from(value != 0)),
                _ => None,
            }
        })
    }

    fn read_array<T>(
        &self,
        array: &ArrayInfo,
        expected: &'static str,
        decode: impl Fn(ValueType, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, GgufError> {
        let refuse =
            || GgufError::ArrayItems { path: self.path.clone(), expected, found: array.item, len: array.len };
        let size = array.item.size().ok_or_else(refuse)?;
        let bytes = array.bytes.end.checked_sub(array.bytes.start);
        if array.len > MAX_READ_ARRAY || bytes != Some(array.len * size) {
            return Err(refuse());
        }
        let bytes = self.read_range(&array.bytes)?;
        let items = bytes.chunks_exact(size as usize);
        items.map(|item| decode(array.item, item).ok_or_else(refuse)).collect()
    }

    /// Reads a range after checking, against the file as it is now, that it can be there.
    fn read_range(&self, range: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        let mut file = self.reopen()?;
        let len = range.end - range.start;
        // The range was held against the file, so this is no more than what is there to be read.
        let mut bytes = Vec::with_capacity(len.min(self.file_len) as usize);
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.take(len).read_to_end(&mut bytes))
            .map_err(|source| self.read_error(source))?;
        if bytes.len() as u64 != len {
            return Err(self.changed(range.start + bytes.len() as u64));
        }
        Ok(bytes)
    }

    /// Opens the file again, refusing it when it is no longer as long as it was.
    pub(super) fn reopen(&self) -> Result<File, GgufError> {
        let file = File::open(&self.path).map_err(|source| self.read_error(source))?;
        let found = file.metadata().map_err(|source| self.read_error(source))?.len();
        if found == self.file_len { Ok(file) } else { Err(self.changed(found)) }
    }

    pub(super) fn read_error(&self, source: std::io::Error) -> GgufError {
        let path = self.path.clone();
        GgufError::Read { path, source }
    }

    pub(super) fn changed(&self, found: u64) -> GgufError {
        GgufError::Changed { path: self.path.clone(), expected: self.file_len, found }
    }
}
