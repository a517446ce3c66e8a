//! Compares every grid with ggml's decoder.

use super::*;
use crate::gguf::GgmlType;
use crate::quant::dequantize;

/// Returns a block of pseudo-random bytes with small positive F16 scales at the offsets `scales`.
fn random_block(bytes: usize, scales: &[usize], seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut block: Vec<u8> = (0..bytes).map(|_| next()).collect();
    for (i, &at) in scales.iter().enumerate() {
        let scale = half::f16::from_f32(0.01 * (1.0 + i as f32) + f32::from(next()) * 1e-4);
        block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
    }
    block
}

fn decoded<G: Grid>(ggml_type: GgmlType, block: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; G::LEN];
    dequantize(ggml_type, G::LEN, block, &mut values).unwrap();
    values
}

fn worth(levels: Levels, q: i32) -> f32 {
    match levels {
        Levels::Integers(..) => q as f32,
        Levels::Table(values) => values[q as usize],
    }
}

/// Checks that codes, steps, and levels match what ggml decodes, and that `set` changes only one value.
fn check<G: Grid>(ggml_type: GgmlType, scales: &[usize]) {
    assert_eq!((G::LEN as u64, G::BYTES as u64), (ggml_type.block_len(), ggml_type.block_bytes()));
    assert!(G::LEN / G::SUB <= MAX_SUBS && G::SUB <= MAX_SUB);
    let codes = match G::LEVELS {
        Levels::Integers(first, last) => first..=last,
        Levels::Table(_) => 0..=15,
    };
    for seed in 0..8 {
        let mut block = random_block(G::BYTES, scales, seed);
        let mut steps = [0.0; MAX_SUBS];
        G::steps(&block, &mut steps);
        // Clamp unused codes (such as code 3 of a ternary type) into the range.
        for j in 0..G::LEN {
            let q = G::get(&block, j).clamp(*codes.start(), *codes.end());
            G::set(&mut block, j, q);
            assert_eq!(G::get(&block, j), q, "{ggml_type} {j}");
        }
        let before = decoded::<G>(ggml_type, &block);
        for j in 0..G::LEN {
            let mut changed = block.clone();
            let (old, new) = (
                G::get(&block, j),
                *codes.start() + (j as i32 * 7 + seed as i32) % codes.clone().count() as i32,
            );
            G::set(&mut changed, j, new);
            let after = decoded::<G>(ggml_type, &changed);
            let expected = steps[j / G::SUB] * (worth(G::LEVELS, new) - worth(G::LEVELS, old));
            let found = after[j] - before[j];
            let size = before[j].abs() + after[j].abs() + expected.abs();
            assert!((found - expected).abs() <= 1e-6 * size, "{ggml_type} {j}: {found} {expected}");
            assert!((0..G::LEN).all(|i| i == j || before[i] == after[i]), "{ggml_type} {j}");
            G::set(&mut changed, j, old);
            assert_eq!(changed, block, "{ggml_type} {j}");
        }
    }
}

#[test]
fn grids_are_what_ggml_decodes() {
    check::<Q4_0>(GgmlType::Q4_0, &[0]);
    check::<Q4_1>(GgmlType::Q4_1, &[0, 2]);
    check::<Q5_0>(GgmlType::Q5_0, &[0]);
    check::<Q5_1>(GgmlType::Q5_1, &[0, 2]);
    check::<Q8_0>(GgmlType::Q8_0, &[0]);
    check::<Q1_0>(GgmlType::Q1_0, &[0]);
    check::<Q2_0>(GgmlType::Q2_0, &[0]);
    check::<Q2K>(GgmlType::Q2_K, &[80, 82]);
    check::<Q3K>(GgmlType::Q3_K, &[108]);
    check::<Q4K>(GgmlType::Q4_K, &[0, 2]);
    check::<Q5K>(GgmlType::Q5_K, &[0, 2]);
    check::<Q6K>(GgmlType::Q6_K, &[208]);
    check::<IQ4NL>(GgmlType::IQ4_NL, &[0]);
    check::<IQ4XS>(GgmlType::IQ4_XS, &[0]);
    check::<NVFP4>(GgmlType::NVFP4, &[]);
    check::<TQ2_0>(GgmlType::TQ2_0, &[64]);
}

#[test]
fn ternary_bytes_of_ggml_come_back_unchanged() {
    // Random bytes may be invalid packed numbers, so the block comes from ggml's encoder.
    let values: Vec<f32> = (0..256).map(|i| (i * 37 % 11) as f32 - 5.0).collect();
    let mut block = vec![0; TQ1_0::BYTES];
    crate::quant::quantize(GgmlType::TQ1_0, 256, &values, &mut block).unwrap();
    let whole = block.clone();
    for j in 0..TQ1_0::LEN {
        let q = TQ1_0::get(&block, j);
        TQ1_0::set(&mut block, j, q);
        assert_eq!(block, whole, "{j}");
        TQ1_0::set(&mut block, j, (q + 1) % 3);
        let (before, after) =
            (decoded::<TQ1_0>(GgmlType::TQ1_0, &whole), decoded::<TQ1_0>(GgmlType::TQ1_0, &block));
        let changed: Vec<usize> = (0..256).filter(|&i| before[i] != after[i]).collect();
        assert_eq!(changed, [j]);
        TQ1_0::set(&mut block, j, q);
    }
}

#[test]
fn mxfp4_has_the_scale_of_every_exponent() {
    // 0xFF is NaN in the format, and ggml does not write it.
    for e in 0..=254u8 {
        let mut block = vec![0x11; MXFP4::BYTES];
        block[0] = e;
        let mut steps = [0.0; MAX_SUBS];
        MXFP4::steps(&block, &mut steps);
        assert_eq!(decoded::<MXFP4>(GgmlType::MXFP4, &block)[0], steps[0], "{e}");
    }
    check_set_of_mxfp4();
}

fn check_set_of_mxfp4() {
    let mut block = vec![0; MXFP4::BYTES];
    block[0] = 128;
    for j in 0..32 {
        MXFP4::set(&mut block, j, j as i32 % 16);
    }
    let values = decoded::<MXFP4>(GgmlType::MXFP4, &block);
    for (j, value) in values.iter().enumerate() {
        assert_eq!(*value, worth(MXFP4::LEVELS, j as i32 % 16));
    }
}

#[test]
fn moves_stay_within_range_direction_and_bound() {
    let integers = Levels::Integers(0, 15);
    assert_eq!(integers.moved(3, 1.4, 9.0), (4, 1.0));
    assert_eq!(integers.moved(3, 1.6, 1.2), (4, 1.0));
    assert_eq!(integers.moved(15, 1.0, 9.0), (15, 0.0));
    assert_eq!(integers.moved(1, -1e30, 1e30), (0, -1.0));
    assert_eq!(integers.moved(16, 1.0, 9.0), (16, 0.0));
    let table = IQ4NL::LEVELS;
    assert_eq!(table.gap(), 11.0);
    assert_eq!(table.moved(8, 12.0, 20.0), (9, 12.0));
    assert_eq!(table.moved(8, 12.0, 11.0), (8, 0.0));
    assert_eq!(table.moved(8, -500.0, 500.0), (0, -128.0));
    assert_eq!(table.moved(0, -5.0, 500.0), (0, 0.0));
    assert_eq!(MXFP4::LEVELS.gap(), 1.0);
}
