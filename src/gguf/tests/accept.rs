//! Unusual but valid files, and the accessors of a header.

use super::super::{Split, ValueType};
use super::*;

#[test]
fn accessors() {
    let gguf = parse(&to_bytes(&sample())).unwrap();
    assert_eq!(gguf.architecture(), Some("llama"));
    assert_eq!(gguf.u64("llama.block_count"), Some(2));
    assert_eq!(gguf.u64("x.i8"), None);
    assert_eq!(gguf.u64("x.i64"), Some(7));
    assert_eq!(gguf.f32("x.f32"), Some(1.5));
    assert_eq!(gguf.f32("x.f64"), Some(2.5));
    assert_eq!(gguf.bool("x.bool"), Some(true));
    assert_eq!(gguf.str("x.bool"), None);
    assert_eq!(gguf.get("absent"), None);
    let tokens = gguf.array("tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.item, tokens.len), (ValueType::String, 3));
    assert_eq!(gguf.tensor("q").unwrap().row_bytes(), 34);
    assert_eq!(gguf.tensor("q").unwrap().n_elements(), 64);
    assert!(gguf.tensor("absent").is_none());
}

#[test]
fn arrays_and_tensors_are_read_from_disk() {
    let (_directory, path) = on_disk(&to_bytes(&sample()));
    let gguf = Gguf::open(&path).unwrap();
    let array = |key| gguf.array(key).unwrap();
    let scores = gguf.read_f32_array(array("tokenizer.ggml.scores")).unwrap();
    assert_eq!(scores, [0.0, -1.0, -2.0]);
    let types = gguf.read_u64_array(array("tokenizer.ggml.token_type")).unwrap();
    assert_eq!(types, [1, 1, 3]);
    let error = gguf.read_u64_array(array("tokenizer.ggml.scores")).unwrap_err();
    assert!(matches!(error, GgufError::ArrayItems { .. }));
    assert!(gguf.read_f32_array(array("tokenizer.ggml.tokens")).is_err());
    let bytes = gguf.read_tensor(gguf.tensor("h").unwrap()).unwrap();
    assert_eq!(bytes, (100..110).collect::<Vec<u8>>());
}

#[test]
fn negative_integers_and_booleans_in_arrays() {
    let raw = Raw::header(3, 0, 2).kv_array("signed", 5, 1, &(-1i32).to_le_bytes()).kv_array(
        "flags",
        7,
        3,
        &[0, 1, 2],
    );
    let (_directory, path) = on_disk(&raw.0);
    let gguf = Gguf::open(&path).unwrap();
    assert!(gguf.read_u64_array(gguf.array("signed").unwrap()).is_err());
    let flags = gguf.read_u64_array(gguf.array("flags").unwrap()).unwrap();
    assert_eq!(flags, [0, 1, 1]);
}

#[test]
fn array_beyond_the_cap_is_not_read() {
    let raw = Raw::header(3, 0, 1).kv_array("k", 0, (1 << 20) + 1, &vec![0; (1 << 20) + 1]);
    let (_directory, path) = on_disk(&raw.0);
    let gguf = Gguf::open(&path).unwrap();
    assert!(gguf.read_u64_array(gguf.array("k").unwrap()).is_err());
}

#[test]
fn hand_made_ranges_are_checked() {
    let (_directory, path) = on_disk(&to_bytes(&sample()));
    let gguf = Gguf::open(&path).unwrap();
    let mut tensor = gguf.tensor("q").unwrap().clone();
    tensor.data.end = u64::MAX;
    assert!(matches!(gguf.read_tensor(&tensor), Err(GgufError::TensorPastEnd { .. })));
    let mut array = gguf.array("tokenizer.ggml.scores").unwrap().clone();
    array.bytes = u64::MAX - 12..u64::MAX;
    assert!(gguf.read_f32_array(&array).is_err());
}

#[test]
fn file_that_shrank_is_noticed() {
    let bytes = to_bytes(&sample());
    let (_directory, path) = on_disk(&bytes);
    let gguf = Gguf::open(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
    let error = gguf.read_tensor(gguf.tensor("norm").unwrap()).unwrap_err();
    assert!(matches!(error, GgufError::Changed { .. }));
}

#[test]
fn no_dimensions_is_one_element() {
    let raw = Raw::header(3, 1, 0).tensor("w", &[], 0, 0).pad(32).bytes(&[0; 4]);
    let gguf = raw.parse().unwrap();
    assert_eq!(gguf.tensors[0].ne, [1; 4]);
    assert_eq!(gguf.tensors[0].n_bytes(), 4);
}

#[test]
fn empty_tensor() {
    let raw = Raw::header(3, 2, 0)
        .tensor("a", &[0, 1 << 40, 1 << 40], 0, 0)
        .tensor("b", &[1], 0, 0)
        .pad(32)
        .bytes(&[0; 4]);
    let gguf = raw.parse().unwrap();
    assert_eq!(gguf.tensors[0].n_elements(), 0);
    assert_eq!(gguf.tensors[0].data, 128..128);
}

#[test]
fn no_tensors_no_padding() {
    let raw = Raw::header(2, 0, 1).kv("k", 0, &[1]).bytes(b"trailer");
    let gguf = raw.parse().unwrap();
    assert_eq!((gguf.version, gguf.data_start, gguf.file_len), (2, 38, 45));
}

#[test]
fn missing_padding_after_the_last_tensor() {
    let raw = Raw::header(3, 1, 0).tensor("w", &[1], 0, 0).pad(32).bytes(&[0; 4]);
    assert_eq!(raw.parse().unwrap().file_len, raw.0.len() as u64);
}

#[test]
fn alignments() {
    for alignment in [1, 2, 8, 64, 4096] {
        let bytes = to_bytes(&sample().alignment(alignment));
        let gguf = parse(&bytes).unwrap();
        assert_eq!(gguf.alignment, u64::from(alignment));
        assert!(gguf.data_start.is_multiple_of(gguf.alignment));
        let norm = gguf.tensor("norm").unwrap().data.clone();
        assert_eq!(bytes[norm.start as usize..][..4], 1f32.to_le_bytes());
    }
}

#[test]
fn odd_booleans_and_text() {
    let raw = Raw::header(3, 0, 2).kv("b", 7, &[0xff]).string(b"s").u32(8).string(b"a\xffb");
    let gguf = raw.parse().unwrap();
    assert_eq!(gguf.bool("b"), Some(true));
    assert_eq!(gguf.str("s"), Some("a\u{fffd}b"));
}

#[test]
fn split() {
    let with = |no, count| {
        let builder = GgufBuilder::new().kv("split.no", Value::U16(no)).kv("split.count", Value::U16(count));
        parse(&to_bytes(&builder)).unwrap().split()
    };
    assert_eq!(with(1, 3), Some(Split { no: 1, count: 3 }));
    assert_eq!(with(0, 1), None);
    assert_eq!(with(0, 0), None);
}

#[test]
fn builder_refuses_what_the_reader_would() {
    let refuse = |builder: GgufBuilder| builder.write_to(&mut Vec::new()).unwrap_err();
    let error = refuse(GgufBuilder::new().f32_tensor("w", &[2], &[0.0]));
    assert!(matches!(error, GgufError::Malformed { .. } | GgufError::TensorLength { .. }));
    let error = refuse(sample().f32_tensor("q", &[1], &[0.0]));
    assert!(error.to_string().contains("'q' appears more than once"));
    let array = parse(&to_bytes(&sample())).unwrap();
    let array = array.get("tokenizer.ggml.tokens").unwrap().clone();
    assert!(matches!(refuse(sample().kv("k", array)), GgufError::AddedKey { .. }));
    refuse(sample().alignment(0));
    refuse(sample().version(1));
}
