use proptest::prelude::*;

use super::*;
use crate::method::noise::normal as noise;
use crate::method::post_norm::PostNorm;
use crate::quant::{dequantize, grid, quantize_weighted};

fn encoded(ggml_type: GgmlType, n_in: usize, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; ggml_type.row_bytes(n_in as u64).unwrap() as usize * (values.len() / n_in)];
    quantize_weighted(ggml_type, n_in, values, &vec![1.0; n_in], &mut bytes).unwrap();
    bytes
}

fn decoded(ggml_type: GgmlType, n_in: usize, n_row: usize, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; n_in * n_row];
    dequantize(ggml_type, n_in, bytes, &mut values).unwrap();
    values
}

/// Returns lᵀ(after − before) per column.
fn arrived(left: &[f32], n_in: usize, before: &[f32], after: &[f32]) -> Vec<f64> {
    let mut along = vec![0.0; n_in];
    for (i, (old, new)) in before.chunks_exact(n_in).zip(after.chunks_exact(n_in)).enumerate() {
        for (a, (o, n)) in along.iter_mut().zip(old.iter().zip(new)) {
            *a += f64::from(left[i]) * (f64::from(*n) - f64::from(*o));
        }
    }
    along
}

/// Returns gain and cosine of a 1 % edit of a random matrix.
fn survival(ggml_type: GgmlType, inputs: &InputModel) -> (f64, f64) {
    let (n_row, n_in) = (512, 512);
    let left: Vec<f32> = noise(n_row, 1).iter().map(|v| v / (n_row as f32).sqrt()).collect();
    let right: Vec<f32> = noise(n_in, 2).iter().map(|v| v * 0.01 * (n_row as f32).sqrt()).collect();
    let mut bytes = encoded(ggml_type, n_in, &noise(n_row * n_in, 3));
    let before = decoded(ggml_type, n_in, n_row, &bytes);
    preserve(ggml_type, &mut bytes, RankOneTarget { left: &left, along: &left, right: &right }, inputs, 2)
        .unwrap();
    let along = arrived(&left, n_in, &before, &decoded(ggml_type, n_in, n_row, &bytes));
    let dot: f64 = along.iter().zip(&right).map(|(a, r)| a * f64::from(*r)).sum();
    let (found, asked) =
        (along.iter().map(|a| a * a).sum::<f64>(), right.iter().map(|r| f64::from(*r).powi(2)).sum::<f64>());
    (dot / asked, dot / (found * asked).sqrt())
}

#[test]
fn a_small_edit_arrives_whole() {
    let model = InputModel { diagonal: vec![1.0; 512], principal: vec![noise(512, 5), noise(512, 6)] };
    for ggml_type in GgmlType::all().filter(|&t| can_preserve(t)) {
        for inputs in [&InputModel::default(), &model] {
            let (gain, cosine) = survival(ggml_type, inputs);
            eprintln!("{ggml_type}: gain {gain:.4} cosine {cosine:.4}");
            assert!((0.99..1.02).contains(&gain) && cosine > 0.998, "{ggml_type}: {gain} {cosine}");
        }
    }
}

/// Returns gain, cosine, and noise of a 1 % edit in the residual stream, after a norm with these gains.
fn survival_behind(gain: &[f32], ggml_type: GgmlType) -> (f64, f64, f64) {
    let (n_row, n_in) = (gain.len(), 512);
    let s: Vec<f32> = noise(n_row, 1).iter().map(|v| v / (n_row as f32).sqrt()).collect();
    let (left, norm) = PostNorm::meet(&s, gain);
    let right: Vec<f32> = noise(n_in, 2).iter().map(|v| v * 0.01 * (n_row as f32).sqrt()).collect();
    let mut bytes = encoded(ggml_type, n_in, &noise(n_row * n_in, 3));
    let before = decoded(ggml_type, n_in, n_row, &bytes);
    let target = RankOneTarget { left: &left, along: &norm.along, right: &right };
    preserve(ggml_type, &mut bytes, target, &InputModel::default(), 2).unwrap();
    let after = decoded(ggml_type, n_in, n_row, &bytes);
    // The change of the stream along ŝ, per column, and its total square, both relative to the push ŝᵀ(g ⊙ l).
    let push: f64 = (0..n_row).map(|i| f64::from(s[i] * gain[i]) * f64::from(left[i])).sum();
    let (mut reached, mut all) = (vec![0.0; n_in], 0.0);
    for (i, (old, new)) in before.chunks_exact(n_in).zip(after.chunks_exact(n_in)).enumerate() {
        for (j, (o, n)) in old.iter().zip(new).enumerate() {
            let by = f64::from(gain[i]) * (f64::from(*n) - f64::from(*o));
            reached[j] += f64::from(s[i]) * by / push;
            all += by * by / (push * push);
        }
    }
    let dot: f64 = reached.iter().zip(&right).map(|(a, r)| a * f64::from(*r)).sum();
    let (found, asked): (f64, f64) =
        (reached.iter().map(|a| a * a).sum(), right.iter().map(|r| f64::from(*r).powi(2)).sum());
    (dot / asked, dot / (found * asked).sqrt(), ((all - found) / asked).sqrt())
}

#[test]
fn behind_a_norm_the_edit_arrives_in_the_stream() {
    let gain: Vec<f32> = noise(640, 8).iter().map(|v| (1.2 * v).exp()).collect();
    for ggml_type in GgmlType::all().filter(|&t| can_preserve(t)) {
        let (share, cosine, noise) = survival_behind(&gain, ggml_type);
        eprintln!("{ggml_type}: gain {share:.4} cosine {cosine:.4} noise {noise:.2}");
        assert!((0.98..1.02).contains(&share) && cosine > 0.99, "{ggml_type}: {share} {cosine}");
    }
}

#[test]
fn weights_of_other_rows_are_refused() {
    let (left, right, n_in) = ([1.0f32, 0.0], [0.1f32; 32], 32);
    let mut bytes = encoded(GgmlType::Q8_0, n_in, &noise(2 * n_in, 3));
    let target = RankOneTarget { left: &left, along: &left[..1], right: &right };
    let error = preserve(GgmlType::Q8_0, &mut bytes, target, &InputModel::default(), 1).unwrap_err();
    assert_eq!(error, QuantError::AlongSize { expected: 2, found: 1 });
}

#[test]
fn no_edit_changes_no_byte_and_threads_change_nothing() {
    let (n_row, n_in) = (64, 1024);
    let left: Vec<f32> = noise(n_row, 1).iter().map(|v| v / 8.0).collect();
    let right = noise(n_in, 2);
    for ggml_type in GgmlType::all().filter(|&t| can_preserve(t)) {
        let mut values = noise(n_row * n_in, 3);
        (0..n_in).for_each(|j| values[j * 7] = -0.0);
        let bytes = encoded(ggml_type, n_in, &values);
        let with = |right: &[f32], threads| {
            let mut bytes = bytes.clone();
            let inputs = InputModel { diagonal: vec![], principal: vec![noise(n_in, 4)] };
            preserve(
                ggml_type,
                &mut bytes,
                RankOneTarget { left: &left, along: &left, right },
                &inputs,
                threads,
            )
            .unwrap();
            bytes
        };
        assert_eq!(with(&vec![0.0; n_in], 2), bytes, "{ggml_type}");
        assert_eq!(with(&vec![-0.0; n_in], 2), bytes, "{ggml_type}");
        let edited = with(&right, 1);
        assert_ne!(edited, bytes, "{ggml_type}");
        assert_eq!(edited, with(&right, 3), "{ggml_type}");
    }
}

/// Returns Σ_j (lᵀΔ_j − r_j)² and its value for an unchanged tensor, Σ_j r_j².
fn weighted_error(right: &[f32], along: &[f64]) -> (f64, f64) {
    let square = |(a, r): (&f64, &f32)| (a - f64::from(*r)).powi(2);
    let alone: f64 = right.iter().map(|r| f64::from(*r).powi(2)).sum();
    (along.iter().zip(right).map(square).sum(), alone)
}

fn factor(n: usize) -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        proptest::collection::vec(-1f32..1.0, n),
        Just(vec![0.0; n]),
        (0..n).prop_map(move |i| (0..n).map(|j| f32::from(i == j)).collect()),
        proptest::collection::vec(-1e-30f32..1e-30, n),
        proptest::collection::vec(-1e4f32..1e4, n),
        proptest::collection::vec(-1e30f32..1e30, n),
    ]
}

/// Bytes of `n_row` blocks: any codes, and scales from zero and subnormal numbers up to large F16 values.
fn raw(ggml_type: GgmlType, n_row: usize) -> impl Strategy<Value = Vec<u8>> {
    let n = ggml_type.block_bytes() as usize * n_row;
    prop_oneof![
        proptest::collection::vec(any::<u8>(), n),
        Just(vec![0; n]),
        Just(vec![0x7B; n]),
        Just(vec![1; n])
    ]
}

fn check_raw(ggml_type: GgmlType, bytes: &[u8], left: &[f32], right: &[f32]) -> Result<(), TestCaseError> {
    let (n_in, n_row) = (ggml_type.block_len() as usize, left.len());
    let norm = left.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let left: Vec<f32> =
        left.iter().map(|v| if norm > 0.0 { (f64::from(*v) / norm) as f32 } else { 0.0 }).collect();
    let before = decoded(ggml_type, n_in, n_row, bytes);
    prop_assume!(before.iter().all(|v| v.is_finite()));
    let mut after = bytes.to_vec();
    let inputs = InputModel { diagonal: vec![], principal: vec![noise(n_in, 4)] };
    preserve(ggml_type, &mut after, RankOneTarget { left: &left, along: &left, right }, &inputs, 1).unwrap();
    let values = decoded(ggml_type, n_in, n_row, &after);
    prop_assert!(values.iter().all(|v| v.is_finite()), "{}", ggml_type);
    let along = arrived(&left, n_in, &before, &values);
    let (error, alone) = weighted_error(right, &along);
    let scale: f64 = before.iter().chain(&values).map(|v| f64::from(*v).powi(2)).sum();
    prop_assert!(error <= alone * (1.0 + 1e-4) + 1e-10 * scale, "{}: {} > {}", ggml_type, error, alone);
    Ok(())
}

/// A type, three rows of one block, the left factor, and the right factor.
fn hostile() -> impl Strategy<Value = (GgmlType, Vec<u8>, Vec<f32>, Vec<f32>)> {
    let types: Vec<GgmlType> = GgmlType::all().filter(|&t| can_preserve(t)).collect();
    prop::sample::select(types)
        .prop_flat_map(|t| (Just(t), raw(t, 3), factor(3), factor(t.block_len() as usize)))
}

#[test]
fn wider_vectors_change_no_byte() {
    let (n_row, n_in) = (48, 1024);
    let left: Vec<f32> = noise(n_row, 1).iter().map(|v| v / 7.0).collect();
    let right: Vec<f32> = noise(n_in, 2).iter().map(|v| v * 0.1).collect();
    let inputs = InputModel { diagonal: vec![], principal: vec![noise(n_in, 4), noise(n_in, 5)] };
    for ggml_type in GgmlType::all().filter(|&t| can_preserve(t) && !t.is_float()) {
        let bytes = encoded(ggml_type, n_in, &noise(n_row * n_in, 3));
        let target = RankOneTarget { left: &left, along: &left, right: &right };
        let order = row_order(target, LEAST_SHARE);
        let stripe = Stripe::new(ggml_type, target, &inputs, 0..n_in, &order);
        let with = |walk: Walk| {
            let mut bytes = bytes.clone();
            let row = bytes.len() / n_row;
            let mut rows: Vec<&mut [u8]> = bytes.chunks_exact_mut(row).collect();
            walk(&mut rows, &stripe);
            bytes
        };
        let plain: Walk = match ggml_type {
            GgmlType::Q3_K => walk_levels::<grid::Q3K>,
            GgmlType::Q6_K => walk_levels::<grid::Q6K>,
            GgmlType::MXFP4 => walk_levels::<grid::MXFP4>,
            GgmlType::Q8_0 => walk_levels::<grid::Q8_0>,
            t if Codebook::of(t).is_some() => {
                |rows, stripe| walk_groups(Codebook::of(stripe.ggml_type).unwrap(), rows, stripe)
            }
            _ => continue,
        };
        assert_ne!(with(plain), bytes, "{ggml_type}");
        assert_eq!(with(plain), with(walk_of(ggml_type).unwrap()), "{ggml_type}");
    }
}

/// A matrix, an edit, and an input model, of arbitrary sizes.
#[derive(Debug, Clone)]
struct Shape {
    ggml_type: GgmlType,
    n_row: usize,
    bytes: Vec<u8>,
    left: Vec<f32>,
    right: Vec<f32>,
    inputs: InputModel,
}

/// Up to 5 rows of up to 9 blocks (several stripes, if the blocks are large).
fn shaped() -> impl Strategy<Value = Shape> {
    let types: Vec<GgmlType> = GgmlType::all().filter(|&t| can_preserve(t)).collect();
    let shape = (prop::sample::select(types), 1usize..6, 1usize..10);
    shape.prop_flat_map(|(ggml_type, n_row, n_block)| {
        let n_in = ggml_type.block_len() as usize * n_block;
        let diagonal =
            prop_oneof![Just(vec![]), factor(n_in).prop_map(|d| d.iter().map(|v| v.abs()).collect())];
        let principal = proptest::collection::vec(prop_oneof![factor(n_in), factor(n_in + 1)], 0..3);
        let inputs =
            (diagonal, principal).prop_map(|(diagonal, principal)| InputModel { diagonal, principal });
        let parts = (raw(ggml_type, n_row * n_block), factor(n_row), factor(n_in), inputs);
        parts.prop_map(move |(bytes, left, right, inputs)| Shape {
            ggml_type,
            n_row,
            bytes,
            left,
            right,
            inputs,
        })
    })
}

fn check_shape(shape: &Shape) -> Result<(), TestCaseError> {
    let Shape { ggml_type, n_row, bytes, left, right, inputs } = shape;
    let norm = left.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let unit = |v: &f32| if norm > 0.0 { (f64::from(*v) / norm) as f32 } else { 0.0 };
    let left: Vec<f32> = left.iter().map(unit).collect();
    let before = decoded(*ggml_type, right.len(), *n_row, bytes);
    prop_assume!(before.iter().all(|v| v.is_finite()));
    let with = |threads| {
        let mut after = bytes.clone();
        preserve(*ggml_type, &mut after, RankOneTarget { left: &left, along: &left, right }, inputs, threads)
            .unwrap();
        after
    };
    let after = with(1);
    prop_assert_eq!(&after, &with(4));
    let values = decoded(*ggml_type, right.len(), *n_row, &after);
    prop_assert!(values.iter().all(|v| v.is_finite()), "{}", ggml_type);
    let (error, alone) = weighted_error(right, &arrived(&left, right.len(), &before, &values));
    let scale: f64 = before.iter().chain(&values).map(|v| f64::from(*v).powi(2)).sum();
    prop_assert!(error <= alone * (1.0 + 1e-4) + 1e-10 * scale, "{}: {} > {}", ggml_type, error, alone);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn hostile_blocks_give_no_nan_and_are_never_worse_than_left_alone((t, bytes, left, right) in hostile()) {
        check_raw(t, &bytes, &left, &right)?;
    }

    #[test]
    fn all_shapes_and_inputs_are_survived_alike_by_any_number_of_threads(shape in shaped()) {
        check_shape(&shape)?;
    }
}

#[test]
fn mixed_models_are_the_mean_of_both() {
    let a = InputModel { diagonal: vec![2.0, 0.0], principal: vec![vec![1.0, 1.0]] };
    let b = InputModel { diagonal: vec![0.0, 8.0], principal: vec![] };
    let mixed = a.clone().mixed(b);
    let second = |j: usize| mixed.diagonal[j] + mixed.principal.iter().map(|m| m[j] * m[j]).sum::<f32>();
    assert!(
        (second(0) - 0.5 * 3.0 / 4.0).abs() < 1e-6 && (second(1) - 0.5 * (1.0 / 4.0 + 1.0)).abs() < 1e-6,
        "{mixed:?}"
    );
    assert_eq!(a.clone().mixed(InputModel::default()).diagonal.len(), 2);
}
