//! The tables of tensor and value types.

use super::super::{ValueType, sha256_file, sha256_hex};
use super::*;

#[test]
fn ids_round_trip() {
    assert_eq!(GgmlType::all().count(), 35);
    for ggml_type in GgmlType::all() {
        assert_eq!(GgmlType::from_id(ggml_type.id()), Some(ggml_type));
        assert_eq!(format!("{ggml_type:?}"), ggml_type.name());
    }
    for id in [4, 5, 31, 32, 33, 36, 37, 38, 43] {
        assert_eq!(GgmlType::from_id(id), None);
    }
    for id in 0..13 {
        assert_eq!(ValueType::from_id(id).unwrap().id(), id);
    }
    assert_eq!(ValueType::from_id(13), None);
}

#[test]
fn geometry() {
    assert_eq!(GgmlType::Q4_K.row_bytes(512), Some(288));
    assert_eq!(GgmlType::Q4_K.row_bytes(511), None);
    assert_eq!(GgmlType::F32.row_bytes(u64::MAX), None);
    assert_eq!(GgmlType::Q8_K.row_bytes(256), Some(4 + 256 + 32));
}

#[test]
fn what_ggml_can_do() {
    let no: Vec<_> = GgmlType::all().filter(|t| !t.can_quantize()).map(GgmlType::name).collect();
    assert_eq!(no, ["Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"]);
    let imatrix: Vec<_> = GgmlType::all().filter(|t| t.needs_imatrix()).map(GgmlType::name).collect();
    assert_eq!(imatrix, ["IQ2_XXS", "IQ2_XS", "IQ1_S"]);
}

#[test]
fn digests() {
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256_hex(b"abc"), expected);
    let (_directory, path) = on_disk(b"abc");
    let mut seen = Vec::new();
    let digest = sha256_file(&path, &mut |done, total| {
        seen.push((done, total));
        Ok(())
    });
    assert_eq!(digest.unwrap(), expected);
    assert_eq!(seen, [(3, 3)]);
    assert!(sha256_file(&path, &mut |_, _| Err(std::io::Error::other("stop"))).is_err());
}
