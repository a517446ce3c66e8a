//! Tests of the GGUF module. Files are assembled manually or with the builder, which is thus tested too.

mod accept;
mod atomic;
mod fuzz;
mod malformed;
mod rewrite;
mod types;

use std::io::Cursor;
use std::path::PathBuf;

use super::{GgmlType, Gguf, GgufBuilder, GgufError, Malformed, Value};

/// Assembles header fields as laid out in the file, valid or not.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(version: u32, n_tensors: u64, n_kv: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).u64(n_tensors).u64(n_kv)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, n: u32) -> Raw {
        self.bytes(&n.to_le_bytes())
    }

    fn u64(self, n: u64) -> Raw {
        self.bytes(&n.to_le_bytes())
    }

    fn string(self, text: &[u8]) -> Raw {
        self.u64(text.len() as u64).bytes(text)
    }

    fn kv(self, key: &str, value_type: u32, value: &[u8]) -> Raw {
        self.string(key.as_bytes()).u32(value_type).bytes(value)
    }

    fn kv_array(self, key: &str, item: u32, len: u64, items: &[u8]) -> Raw {
        self.string(key.as_bytes()).u32(9).u32(item).u64(len).bytes(items)
    }

    fn tensor(self, name: &str, ne: &[u64], ggml_type: u32, offset: u64) -> Raw {
        let mut raw = self.string(name.as_bytes()).u32(ne.len() as u32);
        for &n in ne {
            raw = raw.u64(n);
        }
        raw.u32(ggml_type).u64(offset)
    }

    fn pad(mut self, alignment: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }

    fn parse(&self) -> Result<Gguf, GgufError> {
        parse(&self.0)
    }

    fn problem(&self) -> Malformed {
        match self.parse() {
            Err(GgufError::Malformed { problem, .. }) => *problem,
            other => panic!("expected a malformed header, got {other:?}"),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::parse(Cursor::new(bytes), bytes.len() as u64)
}

/// Builds a small model with various value types, arrays, and tensors of several types.
fn sample() -> GgufBuilder {
    GgufBuilder::new()
        .string("general.architecture", "llama")
        .kv("llama.block_count", Value::U32(2))
        .kv("rosi.version", Value::String("old".into()))
        .kv("x.bool", Value::Bool(true))
        .kv("x.i8", Value::I8(-3))
        .kv("x.f32", Value::F32(1.5))
        .kv("x.f64", Value::F64(2.5))
        .kv("x.i64", Value::I64(7))
        .string_array("tokenizer.ggml.tokens", &["a", "bc", ""])
        .f32_array("tokenizer.ggml.scores", &[0.0, -1.0, -2.0])
        .i32_array("tokenizer.ggml.token_type", &[1, 1, 3])
        .f32_tensor("norm", &[3], &[1.0, 2.0, 3.0])
        .tensor("q", &[32, 2], GgmlType::Q8_0, (0..68).collect())
        .tensor("h", &[5], GgmlType::F16, (100..110).collect())
}

fn to_bytes(builder: &GgufBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    let n = builder.write_to(&mut bytes).unwrap();
    assert_eq!(n, bytes.len() as u64);
    bytes
}

/// Writes bytes to a file in a temporary directory, which is removed when the first value is dropped.
fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}
