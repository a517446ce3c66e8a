//! Copies preserve every byte that is not explicitly changed.

use super::super::Rewrite;
use super::*;
use crate::util::hint::Hint;

fn rewrite(
    bytes: &[u8],
    added: Vec<(String, Value)>,
    drop_prefix: Option<&str>,
) -> Result<Vec<u8>, GgufError> {
    let (_directory, path) = on_disk(bytes);
    let source = Gguf::open(&path).unwrap();
    let rewrite = Rewrite { added, drop_prefix, ..Rewrite::copy(&source) };
    let mut out = Vec::new();
    let mut last = (0, 0);
    let n = rewrite.write_to(&mut out, &mut |_| Ok(None), &mut |done, total| {
        assert!(done >= last.0 && done <= total);
        last = (done, total);
        Ok(())
    })?;
    assert_eq!((n, n), last);
    assert_eq!(n, out.len() as u64);
    Ok(out)
}

fn text(key: &str, value: &str) -> (String, Value) {
    (key.to_string(), Value::String(value.to_string()))
}

/// Unusual layouts that a rewriter must not normalize.
fn odd_files() -> Vec<Vec<u8>> {
    let mut files = vec![to_bytes(&sample()), to_bytes(&sample().version(2))];
    files.extend([1, 8, 64].map(|alignment| to_bytes(&sample().alignment(alignment))));
    // Unusual boolean, nonzero padding, missing final padding.
    let raw = Raw::header(3, 2, 2)
        .kv("b", 7, &[0xfe])
        .string(b"s")
        .u32(8)
        .string(b"a\xffb")
        .tensor("a", &[1], 0, 0)
        .tensor("b", &[2], 1, 32);
    let padding = 32 - raw.0.len() % 32;
    let raw = raw.bytes(&vec![0xaa; padding]).bytes(&[7; 32 + 4]);
    files.push(raw.0.clone());
    // A trailer after the data.
    files.push(raw.bytes(&[9; 100]).0);
    // No tensors, with and without a trailer.
    files.push(Raw::header(2, 0, 1).kv("k", 0, &[1]).0);
    files.push(Raw::header(3, 0, 1).kv("k", 0, &[1]).bytes(b"xyz").0);
    files.push(Raw::header(3, 0, 0).0);
    files
}

#[test]
fn nothing_changed_is_identical() {
    for bytes in odd_files() {
        assert!(rewrite(&bytes, Vec::new(), None).unwrap() == bytes);
    }
}

#[test]
fn added_keys_leave_the_rest_alone() {
    for bytes in odd_files() {
        let added = vec![text("rosi.note", "n"), ("rosi.n".into(), Value::U64(5))];
        let out = rewrite(&bytes, added, None).unwrap();
        let (old, new) = (parse(&bytes).unwrap(), parse(&out).unwrap());
        assert_eq!(new.str("rosi.note"), Some("n"));
        assert_eq!(new.u64("rosi.n"), Some(5));
        assert_eq!(new.version, old.version);
        let kv = old.kv_bytes.start as usize..old.kv_bytes.end as usize;
        assert_eq!(out[kv.clone()], bytes[kv]);
        assert!(out[new.data_start as usize..] == bytes[old.data_start as usize..]);
        for (old, new) in old.tensors.iter().zip(&new.tensors) {
            assert_eq!((&old.name, old.ne, old.ggml_type), (&new.name, new.ne, new.ggml_type));
        }
    }
}

#[test]
fn prefixed_keys_are_replaced() {
    let bytes = to_bytes(&sample());
    let out = rewrite(&bytes, vec![text("rosi.version", "new")], Some("rosi.")).unwrap();
    let (old, new) = (parse(&bytes).unwrap(), parse(&out).unwrap());
    assert_eq!(new.str("rosi.version"), Some("new"));
    assert_eq!(new.metadata.len(), old.metadata.len());
    assert_eq!(new.metadata.last().unwrap().key, "rosi.version");
    // The rewrite is idempotent.
    assert!(rewrite(&out, vec![text("rosi.version", "new")], Some("rosi.")).unwrap() == out);
}

#[test]
fn unfit_keys_are_refused() {
    let bytes = to_bytes(&sample());
    let refuse = |added, prefix| rewrite(&bytes, added, prefix).unwrap_err();
    for key in ["general.architecture", "general.alignment", "", "a\0b"] {
        let error = refuse(vec![text(key, "x")], None);
        assert!(matches!(error, GgufError::AddedKey { .. }), "{error}");
    }
    refuse(vec![text("a", "1"), text("a", "2")], None);
    let array = parse(&bytes).unwrap().get("tokenizer.ggml.tokens").unwrap().clone();
    refuse(vec![("a".into(), array)], None);
    let aligned = to_bytes(&sample().alignment(64));
    let error = rewrite(&aligned, Vec::new(), Some("general.")).unwrap_err();
    assert!(matches!(error, GgufError::DroppedKey { .. }));
}

#[test]
fn float_arrays_are_added_and_checked_too() {
    let (_directory, path) = on_disk(&to_bytes(&sample()));
    let source = Gguf::open(&path).unwrap();
    let with = |keys: &[&str]| {
        let rewrite = Rewrite {
            added: vec![text("rosi.note", "n")],
            added_f32: keys.iter().map(|&key| (key.into(), vec![0.5, -2.0])).collect(),
            ..Rewrite::copy(&source)
        };
        let mut out = Vec::new();
        rewrite.write_to(&mut out, &mut |_| Ok(None), &mut |_, _| Ok(()))?;
        Ok::<_, GgufError>(out)
    };
    let (_directory, path) = on_disk(&with(&["rosi.direction"]).unwrap());
    let new = Gguf::open(&path).unwrap();
    let array = new.array("rosi.direction").unwrap();
    assert_eq!(new.read_f32_array(array).unwrap(), [0.5, -2.0]);
    for keys in [&["rosi.note"][..], &["a", "a"], &[""], &["general.architecture"]] {
        assert!(matches!(with(keys), Err(GgufError::AddedKey { .. })), "{keys:?}");
    }
}

#[test]
fn one_tensor_replaced() {
    let bytes = to_bytes(&sample());
    let (_directory, path) = on_disk(&bytes);
    let source = Gguf::open(&path).unwrap();
    let rewrite = Rewrite::copy(&source);
    let mut asked = Vec::new();
    let mut out = Vec::new();
    let mut replace = |tensor: &super::super::TensorInfo| {
        asked.push(tensor.name.clone());
        Ok((tensor.name == "q").then(|| vec![0xee; 68]))
    };
    rewrite.write_to(&mut out, &mut replace, &mut |_, _| Ok(())).unwrap();
    assert_eq!(asked, ["norm", "q", "h"]);
    let mut expected = bytes.clone();
    let q = source.tensor("q").unwrap().data.clone();
    expected[q.start as usize..q.end as usize].fill(0xee);
    assert!(out == expected);
}

#[test]
fn failures_name_the_tensor() {
    let (_directory, path) = on_disk(&to_bytes(&sample()));
    let source = Gguf::open(&path).unwrap();
    let rewrite = Rewrite::copy(&source);
    let run = |bytes: Option<Vec<u8>>| {
        let mut replace = |_: &_| Ok(Some(bytes.clone().ok_or("boom")?));
        rewrite.write_to(&mut Vec::new(), &mut replace, &mut |_, _| Ok(())).unwrap_err()
    };
    let error = run(Some(vec![0; 11]));
    assert!(matches!(&error, GgufError::TensorLength { expected: 12, found: 11, .. }));
    assert!(error.to_string().contains("'norm'"));
    let error = run(None);
    assert!(matches!(&error, GgufError::Replace { tensor, .. } if tensor == "norm"));
}

#[test]
fn progress_can_stop_it() {
    let (_directory, path) = on_disk(&to_bytes(&sample()));
    let source = Gguf::open(&path).unwrap();
    let rewrite = Rewrite::copy(&source);
    let mut stop = |_, _| Err(std::io::ErrorKind::Interrupted.into());
    let error = rewrite.write_to(&mut Vec::new(), &mut |_| Ok(None), &mut stop);
    assert!(matches!(error, Err(GgufError::Stopped { .. })));
}

#[test]
fn source_that_shrinks_meanwhile_is_noticed() {
    let bytes = to_bytes(&sample());
    let (_directory, path) = on_disk(&bytes);
    let source = Gguf::open(&path).unwrap();
    let rewrite = Rewrite::copy(&source);
    let mut shrink = |_: &_| {
        let file = std::fs::OpenOptions::new().write(true).open(&path)?;
        file.set_len(bytes.len() as u64 - 100)?;
        Ok(None)
    };
    let error = rewrite.write_to(&mut Vec::new(), &mut shrink, &mut |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, GgufError::Changed { .. }), "{error}");
    assert!(rewrite.write_to(&mut Vec::new(), &mut |_| Ok(None), &mut |_, _| Ok(())).is_err());
}

#[test]
fn copies_larger_than_a_chunk() {
    let values = (0..5 << 20).map(|i| (i % 251) as u8).collect();
    let builder = sample().tensor("big", &[5 << 20], GgmlType::I8, values);
    let bytes = to_bytes(&builder.f32_tensor("last", &[1], &[4.0]));
    assert!(rewrite(&bytes, Vec::new(), None).unwrap() == bytes);
}

#[test]
fn full_disk_is_told_apart() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let error = sample().write_to(&mut Full).unwrap_err();
    assert!(error.hint().unwrap().contains("free some space"));
}

#[test]
fn a_retyped_tensor_moves_the_others_and_changes_none_of_them() {
    let values: Vec<f32> = (0..64).map(|i| i as f32 - 30.0).collect();
    let mut q4 = vec![0; 36];
    crate::quant::quantize(GgmlType::Q4_0, 64, &values, &mut q4).unwrap();
    let builder = GgufBuilder::new()
        .string("general.architecture", "llama")
        .f32_tensor("first", &[3], &[1.0, 2.0, 3.0])
        .tensor("middle", &[64], GgmlType::Q4_0, q4)
        .f32_tensor("last", &[64], &values);
    let (_directory, path) = on_disk(&to_bytes(&builder));
    let source = Gguf::open(&path).unwrap();
    let mut q8 = vec![0; 68];
    crate::quant::quantize(GgmlType::Q8_0, 64, &values, &mut q8).unwrap();
    let with = |ggml_type, data: &[u8]| {
        let types = [("middle".to_string(), ggml_type)].into();
        let rewrite = Rewrite { types, added: vec![text("rosi.note", "n")], ..Rewrite::copy(&source) };
        let mut out = Vec::new();
        let mut replace = |t: &crate::gguf::TensorInfo| Ok((t.name == "middle").then(|| data.to_vec()));
        let length = rewrite.write_to(&mut out, &mut replace, &mut |done, all| {
            assert!(done <= all);
            Ok(())
        })?;
        assert_eq!(length, out.len() as u64);
        Ok::<_, GgufError>(out)
    };
    let (_directory, path) = on_disk(&with(GgmlType::Q8_0, &q8).unwrap());
    let new = Gguf::open(&path).unwrap();
    for name in ["first", "last"] {
        let (a, b) = (source.tensor(name).unwrap(), new.tensor(name).unwrap());
        assert_eq!(source.read_tensor(a).unwrap(), new.read_tensor(b).unwrap(), "{name}");
        assert_eq!((a.ne, a.ggml_type, a.n_dims), (b.ne, b.ggml_type, b.n_dims));
    }
    let middle = new.tensor("middle").unwrap();
    assert_eq!(middle.ggml_type, GgmlType::Q8_0);
    assert_eq!(new.read_tensor(middle).unwrap(), q8);
    // Data of the old type, and a type whose block length does not divide the row length.
    assert!(matches!(
        with(GgmlType::Q8_0, &[0; 36]),
        Err(GgufError::TensorLength { expected: 68, found: 36, .. })
    ));
    assert!(matches!(with(GgmlType::Q4_K, &q8), Err(GgufError::Retype { ne0: 64, .. })));
}
