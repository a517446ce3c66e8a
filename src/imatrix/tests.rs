use proptest::prelude::*;

use super::*;
use crate::gguf::{GgufBuilder, Value};
use crate::util::hint::Hint;

const WEIGHT: &str = "blk.0.attn_output.weight";

fn read(bytes: &[u8]) -> Result<Imatrix, ImatrixError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix");
    std::fs::write(&path, bytes).unwrap();
    Imatrix::open(&path)
}

fn message(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

fn builder() -> GgufBuilder {
    GgufBuilder::new().string("general.type", "imatrix").kv("imatrix.chunk_count", Value::U32(2))
}

fn written(builder: &GgufBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write_to(&mut bytes).unwrap();
    bytes
}

/// Two experts of four inputs; the first saw 2 x, the second 6.
fn two_experts() -> GgufBuilder {
    builder()
        .f32_tensor(&format!("{WEIGHT}.in_sum2"), &[4, 2], &[2.0, 8.0, 0.0, 2.0, 6.0, 0.0, 24.0, 6.0])
        .f32_tensor(&format!("{WEIGHT}.counts"), &[1, 2], &[2.0, 6.0])
}

fn entry(name: &[u8], n_call: i32, values: &[f32]) -> Vec<u8> {
    let mut bytes = (name.len() as i32).to_le_bytes().to_vec();
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&n_call.to_le_bytes());
    bytes.extend_from_slice(&(values.len() as i32).to_le_bytes());
    values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
    bytes
}

fn legacy(entries: &[Vec<u8>]) -> Vec<u8> {
    [(entries.len() as i32).to_le_bytes().to_vec(), entries.concat()].concat()
}

#[test]
fn experts_count_as_often_as_they_were_used() {
    let imatrix = read(&written(&two_experts())).unwrap();
    assert_eq!((imatrix.len(), imatrix.is_empty()), (1, false));
    assert_eq!(imatrix.get(WEIGHT).unwrap().mean_square().unwrap(), [1.0, 1.0, 3.0, 1.0]);
    let model = imatrix.input_model(WEIGHT, 4, 2).unwrap().unwrap();
    assert_eq!(model, InputModel { diagonal: vec![1.0, 1.0, 3.0, 1.0], principal: vec![] });
    assert_eq!(imatrix.input_model("output.weight", 4, 1).unwrap(), None);
}

#[test]
fn a_known_mean_is_a_principal_direction() {
    let sums = builder()
        .f32_tensor(&format!("{WEIGHT}.in_sum2"), &[3, 1], &[4.0, 36.0, 4.0])
        .f32_tensor(&format!("{WEIGHT}.in_sum"), &[3, 1], &[0.0, -12.0, 2.0])
        .f32_tensor(&format!("{WEIGHT}.counts"), &[1, 1], &[4.0]);
    let model = read(&written(&sums)).unwrap().input_model(WEIGHT, 3, 1).unwrap().unwrap();
    assert_eq!(model.principal, [[0.0, -3.0, 0.5]]);
    // The second input always equals its mean, so only the minimum share of 0.01 remains.
    assert_eq!(model.diagonal, [1.0, 0.09, 0.75]);
}

#[test]
fn the_legacy_format_is_read_and_its_trailer_left() {
    let mut bytes = legacy(&[entry(WEIGHT.as_bytes(), 4, &[4.0, 8.0]), entry(b"w", 0, &[0.5, 2.0])]);
    for _ in 0..2 {
        let imatrix = read(&bytes).unwrap();
        let model =
            |name, n_in, n_expert| imatrix.input_model(name, n_in, n_expert).unwrap().unwrap().diagonal;
        assert_eq!(model(WEIGHT, 2, 1), [1.0, 2.0]);
        assert_eq!(model("w", 2, 1), [0.5, 2.0]);
        // Two experts of one input each.
        assert_eq!(model("w", 1, 2), [1.25]);
        bytes.extend([7, 0, 0, 0, 4, 0, 0, 0, b't', b'e', b'x', b't']);
    }
}

#[test]
fn a_weight_that_was_never_used_tells_nothing() {
    let unused = builder().f32_tensor(&format!("{WEIGHT}.in_sum2"), &[2, 1], &[0.0, 0.0]).f32_tensor(
        &format!("{WEIGHT}.counts"),
        &[1, 1],
        &[0.0],
    );
    assert_eq!(read(&written(&unused)).unwrap().input_model(WEIGHT, 2, 1).unwrap(), None);
}

#[test]
fn another_models_matrix_is_an_error() {
    let imatrix = read(&written(&two_experts())).unwrap();
    for (n_in, n_expert) in [(4, 1), (8, 2), (8, 1), (2, 4), (usize::MAX, 2)] {
        let error = imatrix.input_model(WEIGHT, n_in, n_expert).unwrap_err();
        assert!(matches!(error, ImatrixError::OtherModel { .. }), "{error}");
        assert!(error.to_string().contains("2 × 4 inputs") && error.hint().is_some(), "{error}");
    }
}

#[test]
fn broken_gguf_entries_are_named() {
    let name = |suffix| format!("{WEIGHT}.{suffix}");
    let with = |squares: &[f32], counts: &[f32]| {
        let shape = |n: usize| [n as u64, 1];
        let file = builder().f32_tensor(&name("in_sum2"), &shape(squares.len()), squares).f32_tensor(
            &name("counts"),
            &[1, counts.len() as u64],
            counts,
        );
        message(&written(&file))
    };
    for (found, expected) in [
        (with(&[1.0, f32::NAN], &[1.0]), "found NaN"),
        (with(&[1.0, -1.0], &[1.0]), "found -1"),
        (with(&[1.0, 1.0], &[-2.0]), "found -2"),
        (with(&[1.0, 1.0], &[1.0, 1.0]), "expected 2 × 2 sums, found 2"),
        (with(&[], &[]), "sums, found 0"),
        (message(&written(&builder().f32_tensor(&name("in_sum2"), &[1, 1], &[1.0]))), "counts are missing"),
        (
            message(&written(&builder().f32_tensor(&name("in_sum2"), &[1, 1], &[1.0]).tensor(
                &name("counts"),
                &[1, 1],
                GgmlType::F16,
                vec![0, 0x3C],
            ))),
            "expected F32, found F16",
        ),
        (
            message(&written(&two_experts().f32_tensor(&name("in_sum"), &[4, 1], &[0.0; 4]))),
            "expected 4 × 2 sums, found 4",
        ),
        (
            message(&written(&two_experts().f32_tensor(&name("in_sum"), &[4, 2], &[f32::INFINITY; 8]))),
            "expected a finite sum, found inf",
        ),
    ] {
        assert!(found.contains(WEIGHT) && found.contains(expected), "{found:?} lacks {expected:?}");
    }
    let model = message(&written(&GgufBuilder::new().string("general.architecture", "llama")));
    assert!(model.contains("not an importance matrix") && model.contains("llama"), "{model}");
}

/// Found by fuzzing: such a file was read as a matrix without weights and then silently had no effect.
#[test]
fn a_gguf_matrix_of_no_weights_is_an_error() {
    for file in [builder(), builder().f32_tensor("w.in_sum1", &[4], &[0.0; 4])] {
        let found = message(&written(&file));
        assert!(found.contains("is not an importance matrix: it contains no weights"), "{found}");
    }
}

#[test]
fn broken_legacy_entries_are_named() {
    let good = entry(b"first", 1, &[1.0]);
    let with = |broken: &[u8]| message(&legacy(&[good.clone(), broken.to_vec()]));
    let number = |n: i32| n.to_le_bytes().to_vec();
    let padded = |start: Vec<u8>| [start, vec![0; 64]].concat();
    for (found, expected) in [
        (with(&padded(number(-5))), "entry 1: expected a name of 1 to 1024 bytes, found -5"),
        (with(&padded(number(0))), "entry 1: expected a name of 1 to 1024 bytes, found 0"),
        (with(&padded(number(i32::MAX))), "entry 1: expected a name of 1 to 1024 bytes, found 2147483647"),
        (with(&padded([number(1), vec![0xFF]].concat())), "entry 1: expected a UTF-8 name"),
        (
            with(&padded([number(1), vec![b'w'], number(1), number(-1)].concat())),
            "w: expected n_call >= 0 and n_val >= 1, found 1 and -1",
        ),
        (
            with(&padded([number(1), vec![b'w'], number(-1), number(1)].concat())),
            "w: expected n_call >= 0 and n_val >= 1, found -1 and 1",
        ),
        (
            with(&padded([number(1), vec![b'w'], number(1), number(i32::MAX)].concat())),
            "w: expected 8589934588 more bytes, found 64",
        ),
        (with(&entry(b"w", 1, &[f32::NAN])), "w: expected finite counts and sums of squares >= 0, found NaN"),
        (with(&entry(b"w", 1, &[-1.0])), "w: expected finite counts and sums of squares >= 0, found -1"),
        (with(&good), "first: duplicate entry"),
    ] {
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
    for bytes in [vec![], vec![1], padded(number(-1)), padded(number(0)), padded(number(i32::MAX))] {
        assert!(message(&bytes).contains("is not an importance matrix"), "{bytes:?}");
    }
    assert!(Imatrix::open(std::env::temp_dir().as_path()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_damage_makes_it_panic(
        gguf in any::<bool>(),
        cut in 0usize..400,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = match gguf {
            true => written(&two_experts()),
            false => legacy(&[entry(WEIGHT.as_bytes(), 2, &[1.0; 8]), entry(b"w", 1, &[1.0; 4])]),
        };
        bytes.truncate(bytes.len().min(cut.max(1)));
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(imatrix) = read(&bytes) {
            for n_in in [0, 1, 4, 8] {
                let _ = imatrix.input_model(WEIGHT, n_in, 8 / n_in.max(1));
            }
        }
    }
}
