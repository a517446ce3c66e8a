//! Parsing arbitrary bytes returns a header or an error.

use proptest::prelude::*;

use super::*;

/// Checks the invariants of an accepted header.
fn check(gguf: &Gguf, len: u64) {
    assert!(gguf.kv_bytes.end <= gguf.info_bytes.end && gguf.info_bytes.end <= gguf.data_start);
    assert!(gguf.data_start <= len);
    let mut at = gguf.data_start;
    for tensor in &gguf.tensors {
        assert!(at <= tensor.data.start && tensor.data.start <= tensor.data.end);
        assert!(tensor.data.end <= len);
        assert_eq!(tensor.n_bytes(), tensor.row_bytes() * tensor.n_rows());
        at = tensor.data.end;
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn arbitrary_after_the_magic(
        version in 2u32..4,
        n_tensors in 0u64..4,
        n_kv in 0u64..4,
        bytes in prop::collection::vec(prop_oneof![Just(0u8), 0u8..16, any::<u8>()], 0..512),
    ) {
        let raw = Raw::header(version, n_tensors, n_kv).bytes(&bytes);
        if let Ok(gguf) = raw.parse() {
            check(&gguf, raw.0.len() as u64);
        }
    }

    #[test]
    fn flipped_bits(flips in prop::collection::vec((0usize..10_000, 0u8..8), 1..8)) {
        let mut bytes = to_bytes(&sample());
        for (at, bit) in flips {
            let n = bytes.len();
            bytes[at % n] ^= 1 << bit;
        }
        if let Ok(gguf) = parse(&bytes) {
            check(&gguf, bytes.len() as u64);
        }
    }

    #[test]
    fn overwritten_words(at in 0usize..10_000, word in prop_oneof![
        any::<u64>(), Just(u64::MAX), Just(u64::MAX / 4), Just(1 << 62), Just(1 << 31), Just(0),
    ]) {
        let mut bytes = to_bytes(&sample());
        let at = at % (bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        if let Ok(gguf) = parse(&bytes) {
            check(&gguf, bytes.len() as u64);
        }
    }

    #[test]
    fn built_files_round_trip(
        version in 2u32..4,
        alignment in (0u32..10).prop_map(|n| 1 << n),
        lengths in prop::collection::vec(0usize..200, 0..6),
        texts in prop::collection::vec("\\PC*", 0..6),
    ) {
        let mut builder = GgufBuilder::new().version(version).alignment(alignment);
        for (i, text) in texts.iter().enumerate() {
            builder = builder.string(&format!("k{i}"), text);
        }
        for (i, &n) in lengths.iter().enumerate() {
            let name = format!("t{i}");
            builder = builder.tensor(&name, &[n as u64], GgmlType::I8, vec![i as u8; n]);
        }
        let bytes = to_bytes(&builder);
        let gguf = parse(&bytes).unwrap();
        check(&gguf, bytes.len() as u64);
        for (i, text) in texts.iter().enumerate() {
            prop_assert_eq!(gguf.str(&format!("k{i}")), Some(text.as_str()));
        }
        for (i, &n) in lengths.iter().enumerate() {
            let data = gguf.tensor(&format!("t{i}")).unwrap().data.clone();
            prop_assert_eq!(&bytes[data.start as usize..data.end as usize], vec![i as u8; n]);
        }
    }
}
