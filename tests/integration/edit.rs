//! Edits small files and verifies the copies. No model is run.

use std::path::Path;

use proptest::prelude::*;
use rosi_gguf::gguf::{GgmlType, Gguf, GgufBuilder, Value};
use rosi_gguf::method::direction::{self, SafetyDirection};
use rosi_gguf::method::edit::{self, Edit};
use rosi_gguf::method::verify::{Verification, verify};
use rosi_gguf::pipeline::plan_of;
use rosi_gguf::quant;

use crate::common::files::gguf_bytes;
use crate::common::write_edited::write_edited;

const N_EMBD: usize = 32;

/// Returns the weights of one writer, ne `[n_in, n_embd]`.
fn weights(n_in: usize, seed: usize) -> Vec<f32> {
    (0..n_in * N_EMBD).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 0.9).collect()
}

fn build(ggml_type: GgmlType, n_in: usize) -> Vec<u8> {
    build_scaled(ggml_type, n_in, &[])
}

/// Builds a model with scale tensors, by which llama.cpp multiplies the outputs of the writers.
fn build_scaled(ggml_type: GgmlType, n_in: usize, scales: &[(&str, f32)]) -> Vec<u8> {
    let mut file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .kv("llama.block_count", Value::U32(1))
        .kv("llama.embedding_length", Value::U32(N_EMBD as u32))
        .f32_tensor("token_embd.weight", &[N_EMBD as u64, 2], &[0.5; 2 * N_EMBD]);
    for (seed, name) in ["blk.0.attn_output.weight", "blk.0.ffn_down.weight"].into_iter().enumerate() {
        let mut bytes = vec![0; ggml_type.row_bytes(n_in as u64).unwrap() as usize * N_EMBD];
        quant::quantize(ggml_type, n_in, &weights(n_in, seed), &mut bytes).unwrap();
        file = file.tensor(name, &[n_in as u64, N_EMBD as u64], ggml_type, bytes);
    }
    for (name, scale) in scales {
        file = file.f32_tensor(name, &[1], &[*scale]);
    }
    gguf_bytes(&file)
}

/// Edits the model in `bytes` at `strength`; returns the model, the edits, and the verification of the edited copy.
fn edited(dir: &Path, bytes: &[u8], strength: f64, n_embd: usize) -> (Gguf, Vec<Edit>, Verification) {
    let (base, out) = (dir.join("base.gguf"), dir.join("out.gguf"));
    std::fs::write(&base, bytes).unwrap();
    let gguf = Gguf::open(&base).unwrap();
    let plan = plan_of(&gguf).unwrap();
    let weights: Vec<_> = plan.writers.iter().map(|w| edit::read_weights(&gguf, w).unwrap()).collect();
    let direction = direction::random(0, n_embd, 3).unwrap();
    let edits = edit::edits(&plan, &weights, &edit::mean_rows(&weights), &direction, strength).unwrap();
    write_edited(&gguf, &edits, &out);
    let verification =
        verify(&gguf, &Gguf::open(&out).unwrap(), &edits.clone().into(), &mut |_, _| ()).unwrap();
    (gguf, edits, verification)
}

#[test]
fn an_f32_file_gets_exactly_the_published_edit() {
    let dir = tempfile::tempdir().unwrap();
    let (base, edits, v) = edited(dir.path(), &build(GgmlType::F32, 64), 0.03, N_EMBD);
    assert!(v.untouched_identical && v.metadata_preserved);
    assert_eq!((v.tensors.len(), v.identical), (2, 1));
    assert!((v.gain.unwrap() - 1.0).abs() < 1e-4 && v.cosine.unwrap() > 0.999_999, "{v:?}");
    // √(Σ‖ΔW‖²/Σ‖W‖²) equals the requested strength.
    let (delta, weight) = edits.iter().fold((0.0, 0.0), |(d, w), e| (d + e.norm_sq(), w + e.weight_norm_sq));
    assert!(((delta / weight).sqrt() - 0.03).abs() < 1e-9);
    // W ← W + α ŝ w̄ᵀ, value by value.
    let out = Gguf::open(&dir.path().join("out.gguf")).unwrap();
    for (seed, edit) in edits.iter().enumerate() {
        let old = weights(64, seed);
        let bytes = out.read_tensor(out.tensor(&edit.tensor).unwrap()).unwrap();
        let mean = |j: usize| (0..N_EMBD).map(|i| f64::from(old[i * 64 + j])).sum::<f64>() / N_EMBD as f64;
        for (k, raw) in bytes.chunks_exact(4).enumerate() {
            let (i, j) = (k / 64, k % 64);
            let wanted = f64::from(old[k]) + edit.alpha * f64::from(edit.left[i]) * mean(j);
            let found = f64::from(f32::from_le_bytes(raw.try_into().unwrap()));
            assert!((wanted - found).abs() < 1e-6, "{} {k}: {wanted} {found}", edit.tensor);
        }
    }
    assert_eq!(base.tensors.len(), 3);
}

#[test]
fn eight_bits_keep_the_edit_and_four_lose_most_of_a_small_one() {
    let dir = tempfile::tempdir().unwrap();
    let gain = |t, strength| edited(dir.path(), &build(t, 256), strength, N_EMBD).2.gain.unwrap();
    assert!((gain(GgmlType::F16, 0.01) - 1.0).abs() < 0.02);
    assert!((gain(GgmlType::Q8_0, 0.02) - 1.0).abs() < 0.1);
    assert!(gain(GgmlType::Q4_0, 0.01) < 0.6);
}

#[test]
fn a_change_outside_the_edit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (base, edits, _) = edited(dir.path(), &build(GgmlType::F32, 64), 0.03, N_EMBD);
    let out = dir.path().join("out.gguf");
    let mut bytes = std::fs::read(&out).unwrap();
    let at = Gguf::open(&out).unwrap().tensor("token_embd.weight").unwrap().data.start as usize;
    bytes[at] ^= 1;
    std::fs::write(&out, bytes).unwrap();
    let v = verify(&base, &Gguf::open(&out).unwrap(), &edits.into(), &mut |_, _| ()).unwrap();
    assert!(!v.untouched_identical);
    assert_eq!(v.unexpected, ["token_embd.weight"]);
}

proptest! {
    // Few cases, because ggml's codeword search for the IQ types is slow.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_direction_is_a_unit_vector_or_an_error(s in proptest::collection::vec(-1e30f64..1e30, 1..64)) {
        if let Ok(d) = SafetyDirection::new(0, &s) {
            let norm: f64 = d.unit().iter().map(|&v| f64::from(v).powi(2)).sum();
            prop_assert!((norm.sqrt() - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn requantized_rows_are_finite_and_deterministic(values in proptest::collection::vec(-6e4f32..6e4, 256)) {
        for t in GgmlType::all().filter(|t| t.can_quantize() && !t.needs_imatrix()) {
            let mut out = [vec![0; t.row_bytes(256).unwrap() as usize], vec![1; t.row_bytes(256).unwrap() as usize]];
            for o in &mut out {
                quant::quantize(t, 256, &values, o).unwrap();
            }
            prop_assert_eq!(&out[0], &out[1]);
            let mut back = vec![0.0; 256];
            quant::dequantize(t, 256, &out[0], &mut back).unwrap();
            prop_assert!(back.iter().all(|v| v.is_finite()), "{}", t);
        }
    }
}

/// llama.cpp computes s·(W x), so the file gets ΔW/s. Its effect is that of the edit ΔW in a file whose weights include
/// the factor.
#[test]
fn a_scaled_weight_gets_the_edit_over_its_scale() {
    let dir = tempfile::tempdir().unwrap();
    let scales = [("blk.0.attn_output.scale", 0.25), ("blk.0.ffn_down.scale", -3.0)];
    let (base, edits, v) = edited(dir.path(), &build_scaled(GgmlType::F32, 64, &scales), 0.03, N_EMBD);
    assert!(v.untouched_identical && v.metadata_preserved);
    assert!((v.gain.unwrap() - 1.0).abs() < 1e-4 && v.cosine.unwrap() > 0.9999, "{v:?}");
    let out = Gguf::open(&dir.path().join("out.gguf")).unwrap();
    let (mut moved, mut weight) = (0.0, 0.0);
    for (edit, (_, scale)) in edits.iter().zip(scales) {
        let [old, new] = [&base, &out].map(|file| {
            let bytes = file.read_tensor(file.tensor(&edit.tensor).unwrap()).unwrap();
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<f32>>()
        });
        for (i, (&old, &new)) in old.iter().zip(&new).enumerate() {
            let acts = f64::from(scale) * (f64::from(new) - f64::from(old));
            let asked = edit.alpha * f64::from(edit.left[i / 64]) * f64::from(edit.right[i % 64]);
            assert!((acts - asked).abs() < 1e-6, "{}: {acts} for {asked}", edit.tensor);
            moved += acts * acts;
            weight += (f64::from(scale) * f64::from(old)).powi(2);
        }
    }
    assert!(((moved / weight).sqrt() - 0.03).abs() < 1e-5, "{moved} {weight}");
    // The output of an adapter is added to the scaled product, unless the graph scales the adapter as well.
    for mut edit in edits {
        edit.scales_adapter = false;
        assert_eq!(edit.to_low_rank().a, edit.right);
        edit.scales_adapter = true;
        assert_eq!(edit.to_low_rank().a, *edit.right_in_file());
    }
}
