//! Building a new file from keys and tensors, for adapters and small test models.

use std::io::{Cursor, Write};
use std::path::Path;

use super::{GgmlType, GgufError, Value, ValueType, encode, reader};

/// Collects keys and tensors and writes them in insertion order. The output is deterministic.
#[derive(Clone, Debug, Default)]
pub struct GgufBuilder {
    version: Option<u32>,
    alignment: Option<u32>,
    n_kv: u64,
    kv: Vec<u8>,
    tensors: Vec<NewTensor>,
    refused: Option<String>,
}

#[derive(Clone, Debug)]
struct NewTensor {
    name: String,
    ne: Vec<u64>,
    ggml_type: GgmlType,
    bytes: Vec<u8>,
}

impl GgufBuilder {
    /// Creates an empty file of version 3 with the default alignment of 32.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the format version, 2 or 3.
    pub fn version(mut self, version: u32) -> Self {
        self.version = Some(version);
        self
    }

    /// Sets the alignment of tensor data, a power of two, and records it as `general.alignment`.
    pub fn alignment(self, alignment: u32) -> Self {
        self.kv("general.alignment", Value::U32(alignment))
    }

    /// Adds a key. For arrays, use the methods below, because [`Value::Array`] does not hold elements.
    pub fn kv(mut self, key: &str, value: Value) -> Self {
        if encode::key_value(&mut self.kv, key, &value).is_err() {
            self.refused.get_or_insert(key.to_string());
        }
        if let ("general.alignment", Value::U32(alignment)) = (key, value) {
            self.alignment = Some(alignment);
        }
        self.n_kv += 1;
        self
    }

    /// Adds a string.
    pub fn string(self, key: &str, text: &str) -> Self {
        self.kv(key, Value::String(text.to_string()))
    }

    /// Adds an array of strings.
    pub fn string_array(self, key: &str, items: &[&str]) -> Self {
        let mut bytes = Vec::new();
        for item in items {
            encode::string(&mut bytes, item);
        }
        self.array(key, ValueType::String, items.len(), &bytes)
    }

    /// Adds an array of floats.
    pub fn f32_array(mut self, key: &str, items: &[f32]) -> Self {
        encode::f32_array(&mut self.kv, key, items);
        self.n_kv += 1;
        self
    }

    /// Adds an array of signed integers.
    pub fn i32_array(self, key: &str, items: &[i32]) -> Self {
        let bytes: Vec<u8> = items.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, ValueType::I32, items.len(), &bytes)
    }

    fn array(mut self, key: &str, item: ValueType, len: usize, items: &[u8]) -> Self {
        encode::array(&mut self.kv, key, item, len, items);
        self.n_kv += 1;
        self
    }

    /// Adds a tensor from bytes in the layout of its type, `ne[0]` fastest.
    pub fn tensor(mut self, name: &str, ne: &[u64], ggml_type: GgmlType, bytes: Vec<u8>) -> Self {
        self.tensors.push(NewTensor { name: name.to_string(), ne: ne.to_vec(), ggml_type, bytes });
        self
    }

    /// Adds an F32 tensor, `ne[0]` fastest.
    pub fn f32_tensor(self, name: &str, ne: &[u64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, ne, GgmlType::F32, bytes)
    }

    /// Writes the file and returns its length. Fails if [`super::Gguf::open`] would reject the file.
    pub fn write_to(&self, out: &mut impl Write) -> Result<u64, GgufError> {
        let path = Path::new("<new file>");
        let (header, total) = self.encode_header()?;
        let parsed = reader::parse(Cursor::new(&header), total, path)?;
        for (tensor, info) in self.tensors.iter().zip(&parsed.tensors) {
            if tensor.bytes.len() as u64 != info.n_bytes() {
                return Err(GgufError::TensorLength {
                    tensor: tensor.name.clone(),
                    expected: info.n_bytes(),
                    found: tensor.bytes.len() as u64,
                });
            }
        }
        let failed = |error| GgufError::from_write(path, error);
        out.write_all(&header).map_err(failed)?;
        for tensor in &self.tensors {
            let padding = self.padding(tensor.bytes.len() as u64);
            out.write_all(&tensor.bytes).map_err(failed)?;
            out.write_all(&padding).map_err(failed)?;
        }
        out.flush().map_err(failed)?;
        Ok(total)
    }

    /// Returns the header with its padding, and the length of the whole file.
    fn encode_header(&self) -> Result<(Vec<u8>, u64), GgufError> {
        if let Some(key) = &self.refused {
            return Err(GgufError::AddedKey {
                key: key.clone(),
                reason: "its array is stored in another file",
            });
        }
        let mut header = b"GGUF".to_vec();
        header.extend_from_slice(&self.version.unwrap_or(3).to_le_bytes());
        header.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&self.n_kv.to_le_bytes());
        header.extend_from_slice(&self.kv);
        let mut offset = 0;
        for tensor in &self.tensors {
            encode::string(&mut header, &tensor.name);
            header.extend_from_slice(&(tensor.ne.len() as u32).to_le_bytes());
            for n in &tensor.ne {
                header.extend_from_slice(&n.to_le_bytes());
            }
            header.extend_from_slice(&tensor.ggml_type.id().to_le_bytes());
            header.extend_from_slice(&u64::to_le_bytes(offset));
            let len = tensor.bytes.len() as u64;
            offset += len + self.padding(len).len() as u64;
        }
        if !self.tensors.is_empty() {
            header.extend_from_slice(&self.padding(header.len() as u64));
        }
        let total = header.len() as u64 + offset;
        Ok((header, total))
    }

    fn padding(&self, len: u64) -> Vec<u8> {
        let alignment = u64::from(self.alignment.unwrap_or(32)).max(1);
        vec![0; (len.next_multiple_of(alignment) - len) as usize]
    }
}
