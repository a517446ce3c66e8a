//! A parsed header and its accessors.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::metadata::value_of;
use super::{ArrayInfo, GgufError, KeyValue, NonModel, TensorInfo, Value, ValueType};

/// Maximum array length for [`Gguf::read_f32_array`] and [`Gguf::read_u64_array`].
const MAX_READ_ARRAY: u64 = 1 << 20;

/// The header of a GGUF file, or of a split model (the first file, with links to the others). Tensor data
/// stays on disk.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// Path of the file.
    pub path: PathBuf,
    /// Format version, 2 or 3.
    pub version: u32,
    /// `general.alignment`, or 32.
    pub alignment: u64,
    /// Key-value records, in file order.
    pub metadata: Vec<KeyValue>,
    /// Tensors in file order, which is also the order of their data. For a split model: the tensors of
    /// all files, file by file.
    pub tensors: Vec<TensorInfo>,
    /// Byte range of the key-value records in the file.
    pub kv_bytes: Range<u64>,
    /// Byte range of the tensor descriptions in the file.
    pub info_bytes: Range<u64>,
    /// File offset of the tensor data.
    pub data_start: u64,
    /// Length of the file in bytes when it was opened.
    pub file_len: u64,
    /// Indices into `tensors`, sorted by tensor name.
    pub(super) by_name: Vec<u32>,
    /// Index of this file within a split model, from 0.
    pub(super) shard: u16,
    /// Number of `tensors` stored in this file; they come first.
    pub(super) n_own: usize,
    /// The other files of a split model, in order; each lists only its own tensors.
    pub(super) others: Vec<Gguf>,
    /// Memory charged for this header in bytes, without the other files.
    pub(super) memory: u64,
}

/// Position of a file within a split model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Index of this file, from 0.
    pub no: u16,
    /// Number of files.
    pub count: u16,
}

impl Gguf {
    /// Opens a file and reads its header. Any file of a split model opens the whole model. Rejects a file
    /// with an unfinished in-place change.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        super::in_place::refuse_unfinished(path)?;
        super::shards::open(path)
    }

    /// Reads a header from a seekable reader of `len` bytes; `path` is set to `<memory>`.
    pub fn parse(reader: impl Read + Seek, len: u64) -> Result<Gguf, GgufError> {
        super::reader::parse(reader, len, Path::new("<memory>"))
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        value_of(&self.metadata, key)
    }

    /// Returns the value of a string key.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// Returns the value of an integer key of any width, or `None` if it is negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// Returns the value of a floating-point key.
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    /// Returns the value of a boolean key.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the description of an array key; the elements stay on disk.
    pub fn array(&self, key: &str) -> Option<&ArrayInfo> {
        match self.get(key)? {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// Returns the tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let at = |i: u32| &self.tensors[i as usize];
        let found = self.by_name.binary_search_by(|&i| at(i).name.as_str().cmp(name));
        Some(at(self.by_name[found.ok()?]))
    }

    /// Reorders the list of tensors to match `other`, since llama-quantize does not keep the order. Leaves
    /// the list unchanged if the two do not have the same tensor names. The location of the data does not
    /// change.
    pub fn listed_as(mut self, other: &Gguf) -> Self {
        let listed = other.tensors.iter().map(|tensor| self.tensor(&tensor.name).cloned());
        let listed: Option<Vec<TensorInfo>> = listed.collect();
        if let Some(listed) = listed.filter(|listed| listed.len() == self.tensors.len()) {
            self.tensors = listed;
            self.by_name.clone_from(&other.by_name);
        }
        self
    }

    /// Iterates over this file and then the other files of a split model.
    pub fn files(&self) -> impl Iterator<Item = &Gguf> {
        std::iter::once(self).chain(&self.others)
    }

    /// Returns the number of files of the model.
    pub fn n_files(&self) -> usize {
        1 + self.others.len()
    }

    /// Returns the total length of all files in bytes.
    pub fn total_len(&self) -> u64 {
        self.files().fold(0, |sum, file| sum.saturating_add(file.file_len))
    }

    /// Returns the tensors whose data is stored in this file.
    pub fn own_tensors(&self) -> &[TensorInfo] {
        &self.tensors[..self.n_own.min(self.tensors.len())]
    }

    /// Returns the file that stores a tensor.
    fn file_of(&self, tensor: &TensorInfo) -> &Gguf {
        self.files().find(|file| file.shard == tensor.shard).unwrap_or(self)
    }

    /// Returns `general.architecture`, such as `llama`.
    pub fn architecture(&self) -> Option<&str> {
        self.str("general.architecture")
    }

    /// Returns the position within a split model, or `None` for a single-file model. (`gguf-split --merge`
    /// leaves `split.count = 0` behind.)
    pub fn split(&self) -> Option<Split> {
        let count = u16::try_from(self.u64("split.count")?).ok()?;
        let no = u16::try_from(self.u64("split.no").unwrap_or(0)).ok()?;
        (count > 1).then_some(Split { no, count })
    }

    /// Rejects files that contain something other than a language model.
    pub fn refuse_non_model(&self) -> Result<(), GgufError> {
        let kind = match (self.architecture(), self.str("general.type")) {
            (Some("clip"), _) | (_, Some("mmproj")) => NonModel::Mmproj,
            (_, Some("adapter")) => NonModel::Adapter,
            (Some("controlvector"), _) => NonModel::ControlVector,
            (Some("imatrix"), _) | (_, Some("imatrix")) => NonModel::Imatrix,
            // The first file of a split model may contain only metadata.
            _ if self.tensors.is_empty() && self.split().is_none() => NonModel::VocabOnly,
            _ => return Ok(()),
        };
        let path = self.path.clone();
        Err(GgufError::NotAModel { path, kind })
    }

    /// Reads the raw bytes of a tensor.
    pub fn read_tensor(&self, tensor: &TensorInfo) -> Result<Vec<u8>, GgufError> {
        self.read_part(tensor, 0..tensor.data.end.saturating_sub(tensor.data.start))
    }

    /// Reads part of the raw bytes of a tensor; the range is relative to its first byte.
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

    /// Reads a byte range of this file, such as [`super::KeyValue::bytes`].
    pub fn read_bytes(&self, range: &std::ops::Range<u64>) -> Result<Vec<u8>, GgufError> {
        self.read_range(range)
    }

    /// Reads a floating-point array of at most 2^20 elements.
    pub fn read_f32_array(&self, array: &ArrayInfo) -> Result<Vec<f32>, GgufError> {
        self.read_array(array, "up to 2^20 floats", |item, bytes| match item {
            ValueType::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?) as f32),
            _ => None,
        })
    }

    /// Reads an array of at most 2^20 non-negative integers; booleans are read as 0 and 1.
    pub fn read_u64_array(&self, array: &ArrayInfo) -> Result<Vec<u64>, GgufError> {
        let expected = "up to 2^20 non-negative integers";
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

    /// Reads a byte range, after checking that the file still has the length it had when it was opened.
    fn read_range(&self, range: &Range<u64>) -> Result<Vec<u8>, GgufError> {
        let mut file = self.reopen()?;
        let len = range.end - range.start;
        // Never reserve more than the length of the file.
        let mut bytes = Vec::with_capacity(len.min(self.file_len) as usize);
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.take(len).read_to_end(&mut bytes))
            .map_err(|source| self.read_error(source))?;
        if bytes.len() as u64 != len {
            return Err(self.changed(range.start + bytes.len() as u64));
        }
        Ok(bytes)
    }

    /// Opens the file again. Fails if its length has changed.
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
