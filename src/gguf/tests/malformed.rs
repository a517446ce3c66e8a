//! One test per kind of malformed header.

use super::super::NonModel;
use super::*;
use crate::util::hint::Hint;

/// Checks that the message contains `expected` and has no full stop at the end.
fn says(raw: &Raw, expected: &str) {
    let message = raw.problem().to_string();
    assert!(message.contains(expected), "{message}");
    assert!(!message.ends_with('.'), "{message}");
}

fn one_kv(value_type: u32, value: &[u8]) -> Raw {
    Raw::header(3, 0, 1).kv("k", value_type, value)
}

fn one_tensor(ne: &[u64], ggml_type: u32) -> Raw {
    Raw::header(3, 1, 0).tensor("w", ne, ggml_type, 0).pad(32)
}

#[test]
fn missing_file() {
    let error = Gguf::open("/nonexistent/m.gguf".as_ref()).unwrap_err();
    assert!(matches!(error, GgufError::NotFound { .. }));
    assert!(error.to_string().contains("/nonexistent/m.gguf"));
}

#[test]
fn directory() {
    let error = Gguf::open(&std::env::temp_dir()).unwrap_err();
    assert!(matches!(error, GgufError::IsDirectory { .. }));
    assert!(error.hint().is_some());
}

#[test]
fn empty_file() {
    let (_directory, path) = on_disk(b"");
    let error = Gguf::open(&path).unwrap_err();
    assert!(matches!(error, GgufError::Empty { .. }));
}

#[cfg(unix)]
#[test]
fn device() {
    let error = Gguf::open("/dev/zero".as_ref()).unwrap_err();
    assert!(matches!(error, GgufError::NotAFile { .. }));
}

#[test]
fn short_file() {
    let whole = to_bytes(&sample());
    for n in 0..whole.len() - 32 {
        let error = parse(&whole[..n]).unwrap_err();
        assert!(matches!(error, GgufError::Malformed { .. }), "{n}: {error}");
    }
    says(&Raw(b"GGUF\x03\0".to_vec()), "needs 4 bytes at offset 4");
}

#[test]
fn not_gguf() {
    says(&Raw(b"PK\x03\x04....".to_vec()), r#"starts with "PK\x03\x04", expected "GGUF""#);
    let error = parse(b"version https://git-lfs.github.com/spec/v1").unwrap_err();
    assert!(error.hint().unwrap().contains("git lfs pull"));
    let error = parse(b"<!DOCTYPE html>").unwrap_err();
    assert!(error.hint().unwrap().contains("web page"));
}

#[test]
fn version_0_1_4() {
    for version in [0, 1, 4, 0x10003] {
        let raw = Raw::header(version, 0, 0);
        assert!(matches!(raw.problem(), Malformed::Version { found } if found == version));
    }
}

#[test]
fn wrong_endianness() {
    let raw = Raw(b"GGUF\0\0\0\x03".to_vec()).pad(64);
    assert!(matches!(raw.problem(), Malformed::Endianness { found: 0x0300_0000 }));
}

#[test]
fn negative_counts() {
    says(&Raw::header(3, u64::MAX, 0), "number of tensors is -1");
    says(&Raw::header(3, 0, 1 << 63), "number of key-value pairs is -9223372036854775808");
}

#[test]
fn counts_beyond_the_file() {
    // llama.cpp #15711: n_tensors times the per-tensor overhead.
    says(&Raw::header(3, i64::MAX as u64, 0), "holds at most 0");
    says(&Raw::header(3, 0, 3).pad(64), "holds at most 2");
}

#[test]
fn empty_key() {
    let raw = Raw::header(3, 0, 1).kv("", 0, &[0, 0]);
    assert!(matches!(raw.problem(), Malformed::EmptyKey { index: 0 }));
}

#[test]
fn duplicate_key() {
    let raw = Raw::header(3, 0, 3).kv("a", 0, &[1]).kv("b", 0, &[1]).kv("a", 0, &[2]);
    says(&raw, "key 'a' appears more than once");
}

#[test]
fn nul_in_names() {
    says(&Raw::header(3, 0, 1).kv("a\0b", 0, &[1]), "key 0 has a name with a NUL");
    let raw = Raw::header(3, 1, 0).tensor("w\0", &[], 0, 0).pad(32);
    says(&raw, "tensor 0 has a name with a NUL");
}

#[test]
fn control_characters_in_names() {
    says(
        &Raw::header(3, 0, 1).kv("a\x1b[2J", 0, &[1]),
        r"key 0 has a name with the control character '\u{1b}'",
    );
    let raw = Raw::header(3, 1, 0).tensor("w\n", &[], 0, 0).pad(32);
    says(&raw, r"tensor 0 has a name with the control character '\n'");
}

#[test]
fn key_too_long() {
    let raw = Raw::header(3, 0, 1).kv(&"k".repeat(65536), 0, &[1]);
    says(&raw, "key 0 has a name of 65536 bytes, expected at most 65535");
    assert!(Raw::header(3, 0, 1).kv(&"k".repeat(65535), 0, &[1]).parse().is_ok());
}

#[test]
fn split_keys_of_wrong_type() {
    // llama.cpp reads split.no of later files without checking its type, and aborts.
    let raw = Raw::header(3, 0, 1).kv("split.no", 4, &[0; 4]);
    says(&raw, "key 'split.no' is uint32, expected uint16");
    let raw = Raw::header(3, 0, 1).kv("split.tensors.count", 10, &[0; 8]);
    says(&raw, "key 'split.tensors.count' is uint64, expected int32");
}

#[test]
fn unknown_value_type() {
    says(&one_kv(13, &[0; 8]), "key 'k' has value type 13");
    says(&one_kv(u32::MAX, &[0; 8]), "value type 4294967295");
    let raw = Raw::header(3, 0, 1).kv_array("k", 13, 0, &[]);
    says(&raw, "value type 13");
}

#[test]
fn nested_array() {
    let raw = Raw::header(3, 0, 1).kv_array("k", 9, 1, &[0; 16]);
    assert!(matches!(raw.problem(), Malformed::NestedArray { .. }));
}

#[test]
fn string_too_long() {
    let raw = one_kv(8, &((1u64 << 30) + 1).to_le_bytes());
    assert!(matches!(raw.problem(), Malformed::StringLength { .. }));
    let raw = one_kv(8, &u64::MAX.to_le_bytes());
    assert!(matches!(raw.problem(), Malformed::StringLength { .. }));
}

#[test]
fn string_past_the_end() {
    says(&one_kv(8, &9u64.to_le_bytes()), "key 'k' needs 9 bytes");
    let raw = Raw::header(3, 0, 1).u64(1 << 15).pad(64);
    says(&raw, "key 0 needs 32768 bytes");
}

#[test]
fn array_too_long() {
    let raw = Raw::header(3, 0, 1).kv_array("k", 0, (1 << 30) + 1, &[]);
    assert!(matches!(raw.problem(), Malformed::ArrayLength { .. }));
}

#[test]
fn array_past_the_end() {
    says(&Raw::header(3, 0, 1).kv_array("k", 4, 3, &[0; 11]), "key 'k' needs 12 bytes");
    says(&Raw::header(3, 0, 1).kv_array("k", 8, 2, &[0; 15]), "key 'k' needs 16 bytes");
    let mut items = 5u64.to_le_bytes().to_vec();
    items.extend([0; 4]);
    says(&Raw::header(3, 0, 1).kv_array("k", 8, 1, &items), "key 'k' needs 5 bytes");
}

#[test]
fn header_too_large() {
    // Records that are small in the file but large in memory.
    let n = 400_000;
    let mut raw = Raw::header(3, 0, n);
    for i in 0..n {
        raw = raw.kv(&format!("{i:x}"), 0, &[0]);
    }
    assert!(matches!(raw.problem(), Malformed::TooLarge { .. }));
}

#[test]
fn huge_string_is_not_loaded() {
    let raw = one_kv(8, &(65u64 << 20).to_le_bytes()).pad(66 << 20);
    assert!(matches!(raw.problem(), Malformed::TooLarge { .. }));
}

#[test]
fn alignment_of_wrong_type() {
    let raw = Raw::header(3, 0, 1).kv("general.alignment", 10, &[0; 8]);
    says(&raw, "key 'general.alignment' is uint64, expected uint32");
}

#[test]
fn alignment_not_a_power_of_two() {
    for n in [0u32, 3, 33, u32::MAX] {
        let raw = Raw::header(3, 0, 1).kv("general.alignment", 4, &n.to_le_bytes());
        assert!(matches!(raw.problem(), Malformed::Alignment { .. }));
    }
}

#[test]
fn alignment_huge() {
    // llama.cpp #24997.
    let raw = Raw::header(3, 1, 1)
        .kv("general.alignment", 4, &(1u32 << 31).to_le_bytes())
        .tensor("w", &[], 0, 0)
        .pad(256);
    assert!(matches!(raw.problem(), Malformed::DataStart { start, .. } if start == 1 << 31));
}

#[test]
fn tensor_name_too_long() {
    let raw = Raw::header(3, 1, 0).tensor(&"n".repeat(64), &[], 0, 0).pad(32);
    assert!(matches!(raw.problem(), Malformed::TensorName { found: 64, .. }));
}

#[test]
fn duplicate_tensor() {
    let raw = Raw::header(3, 2, 0).tensor("w", &[0], 0, 0).tensor("w", &[0], 0, 0).pad(32);
    assert!(matches!(raw.problem(), Malformed::DuplicateTensor { .. }));
}

#[test]
fn five_dimensions() {
    assert!(matches!(one_tensor(&[1; 5], 0).problem(), Malformed::Dimensions { found: 5, .. }));
}

#[test]
fn negative_dimension() {
    let raw = one_tensor(&[1, u64::MAX], 0);
    says(&raw, "tensor 'w' has -1 elements along axis 1");
}

#[test]
fn element_count_overflow() {
    // CVE-2026-33298 and similar: the product wraps to a small number.
    for ne in [[1 << 62, 4, 1, 1], [1 << 32, 1 << 32, 1, 1], [1 << 62, 4, 0, 1]] {
        assert!(matches!(one_tensor(&ne, 0).problem(), Malformed::ShapeOverflow { .. }));
    }
}

#[test]
fn byte_count_overflow() {
    for (ne, ggml_type) in [([1 << 62], 0), ([i64::MAX as u64], 28), ([1 << 61], 28)] {
        assert!(matches!(one_tensor(&ne, ggml_type).problem(), Malformed::ShapeOverflow { .. }));
    }
}

#[test]
fn padding_overflow() {
    // llama.cpp #24759: ne0 = SIZE_MAX / 4 elements of 4 bytes pad to 0.
    let raw = one_tensor(&[u64::MAX / 4], 0);
    assert!(matches!(raw.problem(), Malformed::ShapeOverflow { .. }));
}

#[test]
fn accumulated_size_overflow() {
    // CVE-2025-53630, CVE-2026-27940: sizes that wrap when summed.
    let raw = Raw::header(3, 2, 0).tensor("a", &[1 << 60], 0, 0).tensor("b", &[1 << 60], 0, 1 << 62).pad(32);
    assert!(matches!(raw.problem(), Malformed::DataPastEnd { .. }));
}

#[test]
fn unknown_tensor_type() {
    for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
        let raw = one_tensor(&[256], id);
        assert!(matches!(raw.problem(), Malformed::TensorType { found, .. } if found == id));
    }
}

#[test]
fn row_not_whole_blocks() {
    let raw = one_tensor(&[33], GgmlType::Q8_0.id());
    says(&raw, "tensor 'w' has rows of 33 elements, expected a multiple of 32 for Q8_0");
}

#[test]
fn wrong_offset() {
    // CVE-2026-7482 relied on an offset that was not checked against the layout.
    for offset in [1, 32, u64::MAX] {
        let raw = Raw::header(3, 1, 0).tensor("w", &[1], 0, offset).pad(128);
        assert!(matches!(raw.problem(), Malformed::Offset { expected: 0, .. }));
    }
    let raw = Raw::header(3, 2, 0).tensor("a", &[1], 0, 0).tensor("b", &[1], 0, 4).pad(256);
    assert!(matches!(raw.problem(), Malformed::Offset { expected: 32, found: 4, .. }));
}

#[test]
fn data_past_the_end() {
    let raw = Raw::header(3, 1, 0).tensor("w", &[3], 0, 0).pad(32).bytes(&[0; 11]);
    assert!(matches!(raw.problem(), Malformed::DataPastEnd { .. }));
    assert!(raw.bytes(&[0]).parse().is_ok());
}

#[test]
fn missing_header_padding() {
    let raw = Raw::header(3, 1, 0).tensor("w", &[0], 0, 0);
    assert!(matches!(raw.problem(), Malformed::DataStart { .. }));
}

#[test]
fn tokenizer_arrays_of_wrong_type() {
    // llama.cpp #26690.
    let cases = [("scores", 0), ("token_type", 7), ("tokens", 4), ("merges", 0)];
    for (name, item) in cases {
        let key = format!("tokenizer.ggml.{name}");
        let raw = Raw::header(3, 0, 1).kv_array(&key, item, 1, &[0; 8]);
        let problem = raw.problem();
        assert!(matches!(problem, Malformed::KeyType { .. }), "{problem}");
        assert!(problem.to_string().contains(&key));
        let raw = Raw::header(3, 0, 1).kv(&key, 4, &[0; 4]);
        says(&raw, "is uint32, expected an array of");
    }
}

#[test]
fn tokenizer_arrays_of_wrong_length() {
    for name in ["scores", "token_type"] {
        let item = if name == "scores" { 6 } else { 5 };
        let raw = Raw::header(3, 0, 2).kv_array("tokenizer.ggml.tokens", 8, 2, &[0; 16]).kv_array(
            &format!("tokenizer.ggml.{name}"),
            item,
            1,
            &[0; 4],
        );
        says(&raw, "has 1 elements, expected 2");
    }
}

#[test]
fn heads_that_llama_cpp_would_write_past() {
    for key in ["rwkv7.wkv.head_size", "arwkv7.wkv.head_size"] {
        for found in [0u32, 32, 100] {
            let raw = Raw::header(3, 0, 1).kv(key, 4, &found.to_le_bytes());
            says(&raw, &format!("key '{key}' is {found}, expected a multiple of 64"));
        }
        let fits = GgufBuilder::new().kv(key, Value::U32(128));
        assert!(parse(&to_bytes(&fits)).is_ok());
    }
}

#[test]
fn non_models() {
    let with = |key: &str, value: &str| {
        let builder = GgufBuilder::new().string(key, value).f32_tensor("w", &[1], &[0.0]);
        parse(&to_bytes(&builder)).unwrap().refuse_non_model()
    };
    let cases = [
        ("general.architecture", "clip", NonModel::Mmproj),
        ("general.type", "mmproj", NonModel::Mmproj),
        ("general.type", "adapter", NonModel::Adapter),
        ("general.architecture", "controlvector", NonModel::ControlVector),
        ("general.type", "imatrix", NonModel::Imatrix),
    ];
    for (key, value, expected) in cases {
        let error = with(key, value).unwrap_err();
        assert!(matches!(error, GgufError::NotAModel { kind, .. } if kind == expected));
        assert!(error.hint().is_some());
    }
    assert!(with("general.architecture", "llama").is_ok());
}

#[test]
fn vocabulary_only() {
    let vocabulary = GgufBuilder::new().string("general.architecture", "llama");
    let error = parse(&to_bytes(&vocabulary)).unwrap().refuse_non_model().unwrap_err();
    assert!(matches!(error, GgufError::NotAModel { kind: NonModel::VocabOnly, .. }));
    // The first file of a split model may contain only metadata.
    let first = vocabulary.kv("split.no", Value::U16(0)).kv("split.count", Value::U16(2));
    assert!(parse(&to_bytes(&first)).unwrap().refuse_non_model().is_ok());
}
