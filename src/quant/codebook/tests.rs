//! Compares every codebook with ggml's decoder on random blocks.

use std::collections::HashSet;

use super::layout::half;
use super::*;
use crate::quant::dequantize;

const TYPES: [GgmlType; 7] = [
    GgmlType::IQ1_S,
    GgmlType::IQ1_M,
    GgmlType::IQ2_XXS,
    GgmlType::IQ2_XS,
    GgmlType::IQ2_S,
    GgmlType::IQ3_XXS,
    GgmlType::IQ3_S,
];

fn book(ggml_type: GgmlType) -> &'static Codebook {
    Codebook::of(ggml_type).unwrap()
}

/// Generator of random blocks with a finite block scale.
struct Blocks(u64);

impl Blocks {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }

    fn next(&mut self, ggml_type: GgmlType) -> Vec<u8> {
        let mut block: Vec<u8> = (0..ggml_type.block_bytes()).map(|_| self.byte()).collect();
        // The F16's highest exponent bit.
        block[if ggml_type == GgmlType::IQ1_M { 55 } else { 1 }] &= 0xbf;
        block
    }
}

fn decode(ggml_type: GgmlType, block: &[u8]) -> [f32; BLOCK_LEN] {
    let mut values = [0.0; BLOCK_LEN];
    dequantize(ggml_type, BLOCK_LEN, block, &mut values).unwrap();
    assert!(values.iter().all(|v| v.is_finite()));
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn distance(a: [f32; 8], b: [f32; 8]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

#[test]
fn only_the_codebook_types_have_one() {
    let found: Vec<GgmlType> = GgmlType::all().filter(|t| Codebook::of(*t).is_some()).collect();
    assert_eq!(found.len(), TYPES.len());
    for ggml_type in TYPES {
        let book = book(ggml_type);
        assert_eq!(book.ggml_type(), ggml_type);
        assert_eq!(book.block_len() as u64, ggml_type.block_len());
        assert_eq!(book.block_bytes() as u64, ggml_type.block_bytes());
        assert_eq!(book.groups_per_block() * book.dim(), book.block_len());
    }
}

#[test]
fn half_precision_is_ggmls() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = all.iter().flat_map(|h| h.to_le_bytes()).collect();
    let mut expected = vec![0.0; all.len()];
    dequantize(GgmlType::F16, all.len(), &bytes, &mut expected).unwrap();
    for (h, expected) in all.into_iter().zip(expected) {
        let found = half(h);
        assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{h:#x}");
    }
}

#[test]
fn points_are_whole_distinct_and_signed_only_where_signs_are_not_stored() {
    for ggml_type in TYPES {
        let book = book(ggml_type);
        let distinct: HashSet<Vec<u32>> = book.points.iter().map(|p| bits(p)).collect();
        assert_eq!(distinct.len(), book.layout.len(), "{ggml_type}");
        for point in &book.points {
            let (used, rest) = point.split_at(book.dim());
            assert!(used.iter().all(|v| v.fract() == 0.0 && v.abs() < 64.0), "{ggml_type}: {point:?}");
            assert!(used.iter().all(|v| *v > 0.0 || !book.has_signs()), "{ggml_type}: {point:?}");
            assert!(used.iter().all(|v| v.abs() <= 1.0 || book.has_signs()), "{ggml_type}: {point:?}");
            assert!(rest.iter().all(|v| *v == 0.0), "{ggml_type}: {point:?}");
        }
    }
}

#[test]
fn values_are_what_ggml_decodes_and_writing_what_was_read_changes_nothing() {
    let mut blocks = Blocks(1);
    for ggml_type in TYPES {
        let book = book(ggml_type);
        let mut seen = HashSet::new();
        for _ in 0..2000 {
            let block = blocks.next(ggml_type);
            let expected = decode(ggml_type, &block);
            let mut copy = block.clone();
            for g in 0..book.groups_per_block() {
                let codeword = book.read(&block, g);
                let found = book.values(&block, g, codeword);
                let expected = &expected[g * book.dim()..][..book.dim()];
                assert_eq!(bits(&found[..book.dim()]), bits(expected), "{ggml_type} group {g}");
                book.write(&mut copy, g, codeword);
                seen.insert(codeword.index());
            }
            assert_eq!(copy, block, "{ggml_type}");
        }
        assert_eq!(seen.len(), book.layout.len(), "{ggml_type}");
    }
}

#[test]
fn a_written_neighbour_is_decoded_as_its_values_and_touches_no_other_group() {
    let mut blocks = Blocks(2);
    for ggml_type in TYPES {
        let book = book(ggml_type);
        for _ in 0..20 {
            let block = blocks.next(ggml_type);
            let before = decode(ggml_type, &block);
            for g in 0..book.groups_per_block() {
                let old = book.read(&block, g);
                for new in book.neighbours(old) {
                    let mut edited = block.clone();
                    book.write(&mut edited, g, new);
                    let mut expected = before;
                    expected[g * book.dim()..][..book.dim()]
                        .copy_from_slice(&book.values(&block, g, new)[..book.dim()]);
                    assert_eq!(bits(&decode(ggml_type, &edited)), bits(&expected), "{ggml_type} group {g}");
                    assert_eq!(book.read(&edited, g), new, "{ggml_type} group {g}");
                    assert_eq!(book.scale(&edited, g), book.scale(&block, g), "{ggml_type} group {g}");
                    book.write(&mut edited, g, old);
                    assert_eq!(edited, block, "{ggml_type} group {g}");
                }
            }
        }
    }
}

#[test]
fn neighbours_are_distinct_legal_and_sorted() {
    for ggml_type in TYPES {
        let book = book(ggml_type);
        for index in 0..book.layout.len() as u16 {
            let signs = if book.has_signs() { 0b0101 } else { 0 };
            let codeword = Codeword { index, signs };
            let list: Vec<Codeword> = book.neighbours(codeword).collect();
            assert_eq!(list.len(), if book.has_signs() { 40 } else { 24 });
            assert_eq!(list.iter().filter(|c| c.signs == signs).count(), 24);
            let distinct: HashSet<Codeword> = list.iter().copied().chain([codeword]).collect();
            assert_eq!(distinct.len(), list.len() + 1);
            let odd = |signs: u8| signs.count_ones() % 2;
            if book.layout.signs() == Signs::Even {
                assert!(list.iter().all(|c| odd(c.signs) == odd(signs)));
            }
            let distances: Vec<f32> =
                list.iter().map(|c| distance(book.units(*c), book.units(codeword))).collect();
            assert!(distances[0] > 0.0 && distances.is_sorted(), "{ggml_type} {index}: {distances:?}");
        }
    }
}

/// Compares with an exhaustive search, for a few codewords.
#[test]
fn nothing_nearer_is_left_out() {
    for ggml_type in TYPES {
        let book = book(ggml_type);
        let masks: Vec<u8> = (0..=u8::MAX >> (8 - book.dim()))
            .filter(|mask| match book.layout.signs() {
                Signs::None => *mask == 0,
                Signs::Free => mask.count_ones() <= 2,
                Signs::Even => [0, 2].contains(&mask.count_ones()),
            })
            .collect();
        for index in [0, 1, 77, 130, 255] {
            let from = Codeword { index, signs: 0 };
            let away = |to: &Codeword| distance(book.units(from), book.units(*to)) as u32;
            let everything =
                masks.iter().flat_map(|&signs| (0..book.layout.len()).map(move |i| (i as u16, signs)));
            let everything =
                everything.map(|(index, signs)| Codeword { index, signs }).filter(|c| *c != from);
            let (plain, flipped): (Vec<Codeword>, Vec<Codeword>) = everything.partition(|c| c.signs == 0);
            let nearest = |list: &[Codeword], n: usize| {
                let mut distances: Vec<u32> = list.iter().map(away).collect();
                distances.sort_unstable();
                distances.truncate(n);
                distances
            };
            let (near_plain, near_flipped): (Vec<_>, Vec<_>) =
                book.neighbours(from).partition(|c| c.signs == 0);
            assert_eq!(nearest(&near_plain, 99), nearest(&plain, 24), "{ggml_type} {index}");
            assert_eq!(nearest(&near_flipped, 99), nearest(&flipped, 16), "{ggml_type} {index}");
        }
    }
}

#[test]
fn no_coordinate_is_favoured() {
    for ggml_type in TYPES {
        let book = book(ggml_type);
        let mut moved = vec![0_u32; book.dim()];
        for index in 0..book.layout.len() as u16 {
            let from = Codeword { index, signs: 0 };
            for to in book.neighbours(from) {
                for (j, count) in moved.iter_mut().enumerate() {
                    *count += u32::from(book.units(from)[j] != book.units(to)[j]);
                }
            }
        }
        let (least, most) = (moved.iter().min().unwrap(), moved.iter().max().unwrap());
        assert!(most * 4 < least * 5, "{ggml_type}: {moved:?}");
    }
}
