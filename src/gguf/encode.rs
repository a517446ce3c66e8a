//! Encoding of header records; identical in versions 2 and 3.

use super::{GgufError, Value, ValueType};

/// Appends a string: its length, then its bytes.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Appends a complete key-value record.
pub(super) fn key_value(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), GgufError> {
    string(out, key);
    out.extend_from_slice(&value.value_type().id().to_le_bytes());
    match value {
        Value::U8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => string(out, v),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Array(_) => {
            return Err(GgufError::AddedKey {
                key: key.to_string(),
                reason: "its array is stored in another file",
            });
        }
    }
    Ok(())
}

/// Appends a key-value record that holds an array of already encoded items.
pub(super) fn array(out: &mut Vec<u8>, key: &str, item: ValueType, len: usize, items: &[u8]) {
    string(out, key);
    out.extend_from_slice(&ValueType::Array.id().to_le_bytes());
    out.extend_from_slice(&item.id().to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
    out.extend_from_slice(items);
}

/// Appends a key-value record that holds an array of floats.
pub(super) fn f32_array(out: &mut Vec<u8>, key: &str, items: &[f32]) {
    let bytes: Vec<u8> = items.iter().flat_map(|v| v.to_le_bytes()).collect();
    array(out, key, ValueType::F32, items.len(), &bytes);
}
