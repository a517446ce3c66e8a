//! Parsing and validating a header. Every check is either made by llama.cpp or prevents a crash that a
//! crafted file has caused in some GGUF reader. Counts and sizes are bounded before they are used.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::cursor::Cursor;
use super::metadata::value_of;
use super::{ArrayInfo, GgmlType, Gguf, GgufError, KeyValue, Malformed, TensorInfo, Value, ValueType};

/// llama.cpp's `GGUF_MAX_ARRAY_ELEMENTS`.
const MAX_ARRAY: u64 = 1 << 30;
/// Limit in the GGUF specification; llama.cpp applies only its limit for strings.
const MAX_KEY: u64 = (1 << 16) - 1;
/// llama.cpp's `GGML_MAX_NAME`: 63 bytes and a NUL.
const MAX_NAME: u64 = 64;
/// Key length, one byte of key, value type, one byte of value.
const MIN_KEY_VALUE: u64 = 8 + 1 + 4 + 1;
/// Name length, no name, `n_dims`, no `ne`, type, offset.
const MIN_TENSOR_INFO: u64 = 8 + 4 + 4 + 8;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Opens a regular file and reads its header. `used` is the memory already charged for other headers.
pub(super) fn open(path: &Path, used: u64) -> Result<Gguf, GgufError> {
    let owned = || path.to_path_buf();
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => GgufError::NotFound { path: owned() },
        _ => GgufError::Read { path: owned(), source },
    };
    // Checked before opening, because opening a named pipe would block until there is a writer.
    let found = fs::metadata(path).map_err(unreadable)?;
    if found.is_dir() {
        return Err(GgufError::IsDirectory { path: owned() });
    }
    if !found.is_file() {
        return Err(GgufError::NotAFile { path: owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    if len == 0 {
        return Err(GgufError::Empty { path: owned() });
    }
    parse_beside(used, file, len, path)
}

/// Reads the header of a file of `len` bytes; `path` names it in errors.
pub(super) fn parse(reader: impl Read + Seek, len: u64, path: &Path) -> Result<Gguf, GgufError> {
    parse_beside(0, reader, len, path)
}

fn parse_beside(used: u64, reader: impl Read + Seek, len: u64, path: &Path) -> Result<Gguf, GgufError> {
    let cursor = Cursor::new(reader, len).and_then(|mut cursor| cursor.charge(used).map(|()| cursor));
    cursor
        .and_then(|cursor| parse_header(cursor, path.to_path_buf()))
        .map_err(|problem| GgufError::Malformed { path: path.to_path_buf(), problem: Box::new(problem) })
}

fn parse_header<R: Read + Seek>(mut cursor: Cursor<R>, path: PathBuf) -> Result<Gguf, Malformed> {
    let used = cursor.memory();
    cursor.charge(3 * size_of::<Gguf>() as u64 + path.as_os_str().len() as u64)?;
    let version = read_version(&mut cursor)?;
    let n_tensors = read_count(&mut cursor, "tensors", MIN_TENSOR_INFO)?;
    let n_kv = read_count(&mut cursor, "key-value pairs", MIN_KEY_VALUE)?;

    let kv_start = cursor.pos();
    let metadata = read_metadata(&mut cursor, n_kv)?;
    let kv_bytes = kv_start..cursor.pos();
    let alignment = alignment(&metadata)?;
    check_tokenizer(&metadata)?;
    check_split(&metadata)?;
    check_steps(&metadata)?;

    let described = read_tensor_infos(&mut cursor, n_tensors)?;
    let info_bytes = kv_bytes.end..cursor.pos();
    // Without tensors there is no data section, hence no padding before it.
    let data_start = match n_tensors {
        0 => info_bytes.end,
        _ => pad(info_bytes.end, alignment).unwrap_or(u64::MAX),
    };
    let file_len = cursor.len();
    if data_start > file_len {
        let start = data_start;
        return Err(Malformed::DataStart { start, file_len });
    }
    let layout = Layout { data_start, alignment, file_len };
    let tensors = place_tensors(described, &layout)?;
    let by_name = index_by_name(&tensors)?;
    let (n_own, memory) = (tensors.len(), cursor.memory() - used);
    Ok(Gguf {
        path,
        version,
        alignment,
        metadata,
        tensors,
        kv_bytes,
        info_bytes,
        data_start,
        file_len,
        by_name,
        shard: 0,
        n_own,
        others: Vec::new(),
        memory,
    })
}

fn read_version<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<u32, Malformed> {
    let magic: [u8; 4] = cursor.bytes()?;
    if magic != *b"GGUF" {
        let found = magic.to_vec();
        return Err(Malformed::Magic { found });
    }
    match cursor.u32()? {
        version @ 2..=3 => Ok(version),
        // A big-endian version 3 reads as 0x03000000.
        found if found != 0 && found & 0xffff == 0 => Err(Malformed::Endianness { found }),
        found => Err(Malformed::Version { found }),
    }
}

fn read_count<R: Read + Seek>(
    cursor: &mut Cursor<R>,
    what: &'static str,
    min_size: u64,
) -> Result<u64, Malformed> {
    let found = cursor.u64()?;
    let signed = found as i64;
    if signed < 0 {
        let found = signed;
        return Err(Malformed::NegativeCount { what, found });
    }
    let max = cursor.left() / min_size;
    if found > max {
        return Err(Malformed::TooMany { what, found, max });
    }
    Ok(found)
}

fn read_metadata<R: Read + Seek>(cursor: &mut Cursor<R>, n_kv: u64) -> Result<Vec<KeyValue>, Malformed> {
    let mut metadata = Vec::new();
    for index in 0..n_kv {
        let start = cursor.pos();
        cursor.part = format!("key {index}");
        // Three times: while a vector doubles its capacity, the old and new buffers coexist.
        cursor.charge(3 * size_of::<KeyValue>() as u64)?;
        let found = cursor.string_len()?;
        if found > MAX_KEY {
            return Err(Malformed::KeyLength { index, found, max: MAX_KEY });
        }
        let key = cursor.text(found)?;
        if key.is_empty() {
            return Err(Malformed::EmptyKey { index });
        }
        refuse_control(&key, cursor)?;
        cursor.part = format!("key '{key}'");
        let value = read_value(cursor, &key)?;
        let bytes = start..cursor.pos();
        metadata.push(KeyValue { key, value, bytes });
    }
    let mut keys: Vec<&str> = metadata.iter().map(|record| record.key.as_str()).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Malformed::DuplicateKey { key: pair[0].to_string() }),
        None => Ok(metadata),
    }
}

/// Rejects control characters, since names appear in messages and must not control the terminal.
fn refuse_control<R>(name: &str, cursor: &Cursor<R>) -> Result<(), Malformed> {
    let part = || cursor.part.clone();
    if name.contains('\0') {
        return Err(Malformed::Nul { part: part() });
    }
    match name.chars().find(|c| c.is_control()) {
        Some(found) => Err(Malformed::Control { part: part(), found }),
        None => Ok(()),
    }
}

fn read_type<R: Read + Seek>(cursor: &mut Cursor<R>, key: &str) -> Result<ValueType, Malformed> {
    let found = cursor.u32()?;
    ValueType::from_id(found).ok_or_else(|| Malformed::ValueType { key: key.to_string(), found })
}

fn read_value<R: Read + Seek>(cursor: &mut Cursor<R>, key: &str) -> Result<Value, Malformed> {
    Ok(match read_type(cursor, key)? {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.bytes()?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.bytes()?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.bytes()?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.bytes()?)),
        ValueType::U32 => Value::U32(cursor.u32()?),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.bytes()?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.bytes()?)),
        // As in llama.cpp, any nonzero byte is true.
        ValueType::Bool => Value::Bool(cursor.bytes::<1>()? != [0]),
        ValueType::String => Value::String(cursor.string()?),
        ValueType::Array => Value::Array(skip_array(cursor, key)?),
        ValueType::U64 => Value::U64(cursor.u64()?),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.bytes()?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.bytes()?)),
    })
}

fn skip_array<R: Read + Seek>(cursor: &mut Cursor<R>, key: &str) -> Result<ArrayInfo, Malformed> {
    let item = read_type(cursor, key)?;
    if item == ValueType::Array {
        let key = key.to_string();
        return Err(Malformed::NestedArray { key });
    }
    let len = cursor.u64()?;
    if len > MAX_ARRAY {
        return Err(Malformed::ArrayLength { key: key.to_string(), found: len, max: MAX_ARRAY });
    }
    let start = cursor.pos();
    match item.size() {
        Some(size) => cursor.skip(len * size)?,
        None => {
            // A string takes at least 8 bytes; reject an impossible count before the loop.
            cursor.need(len * 8)?;
            for _ in 0..len {
                let n = cursor.string_len()?;
                cursor.skip(n)?;
            }
        }
    }
    let bytes = start..cursor.pos();
    Ok(ArrayInfo { item, len, bytes })
}

fn alignment(metadata: &[KeyValue]) -> Result<u64, Malformed> {
    const KEY: &str = "general.alignment";
    match value_of(metadata, KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(value)) if value.is_power_of_two() => Ok(value.into()),
        Some(&Value::U32(value)) => Err(Malformed::Alignment { found: value.into() }),
        Some(value) => Err(Malformed::KeyType {
            key: KEY.to_string(),
            expected: "uint32",
            found: value.value_type().to_string(),
        }),
    }
}

/// Checks tokenizer arrays that C++ readers index by token: a narrower element type than expected, or
/// fewer elements than tokens, has made them read out of bounds.
fn check_tokenizer(metadata: &[KeyValue]) -> Result<(), Malformed> {
    use ValueType::{F32, I8, I32, String, U8, U32};
    const ARRAYS: [(&str, &[ValueType], &str); 5] = [
        ("tokens", &[String], "an array of string"),
        ("merges", &[String], "an array of string"),
        ("scores", &[F32, I32], "an array of float32 or int32"),
        ("token_type", &[I32, U32], "an array of int32"),
        ("precompiled_charsmap", &[U8, I8], "an array of uint8"),
    ];
    let mut lengths = HashMap::new();
    for (name, items, expected) in ARRAYS {
        let key = format!("tokenizer.ggml.{name}");
        let Some(value) = value_of(metadata, &key) else {
            continue;
        };
        let found = match value {
            Value::Array(array) if items.contains(&array.item) => {
                lengths.insert(name, array.len);
                continue;
            }
            Value::Array(array) => format!("an array of {}", array.item),
            value => value.value_type().to_string(),
        };
        return Err(Malformed::KeyType { key, expected, found });
    }
    let Some(&expected) = lengths.get("tokens") else {
        return Ok(());
    };
    for name in ["scores", "token_type"] {
        let found = lengths.get(name).copied().unwrap_or(expected);
        if found != expected {
            let key = format!("tokenizer.ggml.{name}");
            return Err(Malformed::TokenCount { key, expected, found });
        }
    }
    Ok(())
}

/// Checks the types of the split keys: with any other type, llama.cpp aborts the process.
fn check_split(metadata: &[KeyValue]) -> Result<(), Malformed> {
    let keys = [
        ("split.no", ValueType::U16),
        ("split.count", ValueType::U16),
        ("split.tensors.count", ValueType::I32),
    ];
    for (key, expected) in keys {
        let found = value_of(metadata, key).map(Value::value_type);
        if let Some(found) = found.filter(|&found| found != expected) {
            let (key, expected, found) = (key.to_string(), expected.name(), found.to_string());
            return Err(Malformed::KeyType { key, expected, found });
        }
    }
    Ok(())
}

/// Checks sizes that llama.cpp uses without validation: with AVX-512 it reads and writes the states of
/// RWKV-7 heads 64 numbers at a time, out of bounds for smaller heads, and it divides by the head size.
fn check_steps(metadata: &[KeyValue]) -> Result<(), Malformed> {
    const EXPECTED: u32 = 64;
    for key in ["rwkv7.wkv.head_size", "arwkv7.wkv.head_size"] {
        if let Some(&Value::U32(found)) = value_of(metadata, key)
            && (found == 0 || found % EXPECTED != 0)
        {
            return Err(Malformed::Step { key: key.to_string(), expected: EXPECTED, found });
        }
    }
    Ok(())
}

/// A tensor whose `data` is still `0..n_bytes`, and its offset according to the file.
type Described = (TensorInfo, u64);

fn read_tensor_infos<R: Read + Seek>(
    cursor: &mut Cursor<R>,
    n_tensors: u64,
) -> Result<Vec<Described>, Malformed> {
    let mut described = Vec::new();
    for index in 0..n_tensors {
        cursor.part = format!("tensor {index}");
        // Three times for a doubling vector, once for the list without offsets, and once for the combined
        // list of a split model.
        cursor.charge(5 * size_of::<Described>() as u64)?;
        described.push(read_tensor_info(cursor, index)?);
    }
    Ok(described)
}

fn read_tensor_info<R: Read + Seek>(cursor: &mut Cursor<R>, index: u64) -> Result<Described, Malformed> {
    let found = cursor.string_len()?;
    if found >= MAX_NAME {
        return Err(Malformed::TensorName { index, found });
    }
    let name = cursor.text(found)?;
    // Charged again for the combined list of a split model.
    cursor.charge(found)?;
    refuse_control(&name, cursor)?;
    cursor.part = format!("tensor '{name}'");

    let n_dims = cursor.u32()?;
    let ne = read_shape(cursor, &name, n_dims)?;
    let found = cursor.u32()?;
    let Some(ggml_type) = GgmlType::from_id(found) else {
        let tensor = name;
        return Err(Malformed::TensorType { tensor, found });
    };
    let mut info = TensorInfo { name, n_dims, ne, ggml_type, data: 0..0, shard: 0 };
    info.data.end = byte_size(&info)?;
    Ok((info, cursor.u64()?))
}

fn read_shape<R: Read + Seek>(
    cursor: &mut Cursor<R>,
    tensor: &str,
    n_dims: u32,
) -> Result<[u64; 4], Malformed> {
    let tensor = || tensor.to_string();
    let mut ne = [1; 4];
    if n_dims > 4 {
        return Err(Malformed::Dimensions { tensor: tensor(), found: n_dims });
    }
    for axis in 0..n_dims {
        let n = cursor.u64()?;
        let found = n as i64;
        if found < 0 {
            return Err(Malformed::NegativeDimension { tensor: tensor(), axis, found });
        }
        ne[axis as usize] = n;
    }
    Ok(ne)
}

/// Returns the size of a tensor in bytes. ggml counts elements in an i64 and bytes in a 64-bit `size_t`.
fn byte_size(info: &TensorInfo) -> Result<u64, Malformed> {
    let overflow = || Malformed::ShapeOverflow { tensor: info.name.clone(), ne: info.ne };
    let mut elements: i64 = 1;
    for n in info.ne {
        elements = i64::try_from(n).ok().and_then(|n| elements.checked_mul(n)).ok_or_else(overflow)?;
    }
    let block = info.ggml_type.block_len();
    if !info.ne[0].is_multiple_of(block) {
        return Err(Malformed::RowLength {
            tensor: info.name.clone(),
            ggml_type: info.ggml_type,
            expected: block,
            found: info.ne[0],
        });
    }
    let row = info.ggml_type.row_bytes(info.ne[0]).ok_or_else(overflow)?;
    if elements == 0 {
        return Ok(0);
    }
    row.checked_mul(info.n_rows()).ok_or_else(overflow)
}

struct Layout {
    data_start: u64,
    alignment: u64,
    file_len: u64,
}

/// Checks each offset against the padded sum of the preceding sizes and converts it to a file range.
fn place_tensors(described: Vec<Described>, layout: &Layout) -> Result<Vec<TensorInfo>, Malformed> {
    let file_len = layout.file_len;
    let mut expected = 0;
    let mut tensors = Vec::with_capacity(described.len());
    for (mut info, found) in described {
        if found != expected {
            return Err(Malformed::Offset { tensor: info.name, expected, found });
        }
        let end = place(&info.data, found, layout.data_start);
        let next = end.and(pad(info.data.end, layout.alignment));
        let (Some(end), Some(padded)) = (end, next) else {
            return Err(Malformed::ShapeOverflow { tensor: info.name, ne: info.ne });
        };
        if end > file_len {
            return Err(Malformed::DataPastEnd { tensor: info.name, end, file_len });
        }
        info.data = end - info.data.end..end;
        // Cannot overflow: both terms are below 2^63, and the first is an offset within the file.
        expected = found + padded;
        tensors.push(info);
    }
    Ok(tensors)
}

fn place(data: &Range<u64>, offset: u64, data_start: u64) -> Option<u64> {
    data_start.checked_add(offset)?.checked_add(data.end)
}

/// Rounds `n` up to a multiple of `alignment`, a power of two. Returns `None` on overflow.
pub(super) fn pad(n: u64, alignment: u64) -> Option<u64> {
    n.checked_next_multiple_of(alignment)
}

pub(super) fn index_by_name(tensors: &[TensorInfo]) -> Result<Vec<u32>, Malformed> {
    // The memory limit keeps the count far below u32::MAX.
    let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
    let name = |i: u32| tensors[i as usize].name.as_str();
    by_name.sort_unstable_by_key(|&i| name(i));
    match by_name.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        Some(pair) => Err(Malformed::DuplicateTensor { tensor: name(pair[0]).to_string() }),
        None => Ok(by_name),
    }
}
