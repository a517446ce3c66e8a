use ndarray::{Array2, ArrayView1, ArrayView2, s};

use super::ffn::{Activation, Network, read_row};
use super::logistic::Score;
use super::*;
use crate::gguf::{AtomicFile, GgmlType, Gguf, GgufBuilder, Rewrite, TensorInfo, Value};
use crate::llama::activations::rows::{Route, Rows};
use crate::method::Edits;
use crate::method::requant::Requant;
use crate::method::verify::verify;
use crate::pipeline::plan_of;
use crate::quant;
use crate::util::hint::Hint;

const N_EMBD: usize = 256;
const N_FF: usize = 512;

fn noise(n: usize, seed: usize) -> Vec<f32> {
    let value = |i: usize| {
        ((i * 7919 + seed * 104_729) as f32 * 0.618).sin() + ((i * 31 + seed) as f32 * 0.377).cos()
    };
    (0..n).map(|i| 0.05 * value(i)).collect()
}

/// A model of one block, with all matrices in `ggml_type`.
struct Tiny {
    _dir: tempfile::TempDir,
    gguf: Gguf,
}

impl Tiny {
    fn new(ggml_type: GgmlType) -> Self {
        Self::with_experts(ggml_type, 1)
    }

    /// Builds a model whose network is a mixture if `n_expert` is more than 1.
    fn with_experts(ggml_type: GgmlType, n_expert: usize) -> Self {
        let matrix = |n_in: usize, n_out: usize, seed| {
            let mut bytes = vec![0; ggml_type.row_bytes(n_in as u64).unwrap() as usize * n_out];
            quant::quantize(ggml_type, n_in, &noise(n_in * n_out, seed), &mut bytes).unwrap();
            bytes
        };
        let (n_embd, experts) = (N_EMBD as u64, n_expert as u64);
        let mut model = GgufBuilder::new()
            .string("general.architecture", "llama")
            .kv("llama.block_count", Value::U32(1))
            .kv("llama.embedding_length", Value::U32(N_EMBD as u32))
            .f32_tensor("token_embd.weight", &[n_embd, 2], &[0.5; 2 * N_EMBD])
            .tensor("blk.0.attn_output.weight", &[n_embd, n_embd], ggml_type, matrix(N_EMBD, N_EMBD, 1));
        let suffix = if n_expert > 1 { "_exps" } else { "" };
        if n_expert > 1 {
            let router = noise(N_EMBD * n_expert, 5);
            model = model
                .kv("llama.expert_count", Value::U32(n_expert as u32))
                .kv("llama.expert_used_count", Value::U32(2))
                .f32_tensor("blk.0.ffn_gate_inp.weight", &[n_embd, experts], &router);
        }
        for (name, n_in, n_out, seed) in
            [("gate", N_EMBD, N_FF, 2), ("up", N_EMBD, N_FF, 3), ("down", N_FF, N_EMBD, 4)]
        {
            let ne = [n_in as u64, n_out as u64, experts];
            let ne = if n_expert > 1 { &ne[..] } else { &ne[..2] };
            let name = format!("blk.0.ffn_{name}{suffix}.weight");
            model = model.tensor(&name, ne, ggml_type, matrix(n_in, n_out * n_expert, seed));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.gguf");
        model.write_to(&mut std::fs::File::create(&path).unwrap()).unwrap();
        Self { gguf: Gguf::open(&path).unwrap(), _dir: dir }
    }

    /// Writes a copy with `edits`.
    fn written(&self, edits: &Edits) -> Gguf {
        let path = self.gguf.path.with_extension("edited.gguf");
        let mut file = AtomicFile::create(&path, true).unwrap();
        let mut replace = |tensor: &TensorInfo| {
            if !edits.touches(&tensor.name) {
                return Ok(None);
            }
            let bytes = self.gguf.read_tensor(tensor)?;
            Ok(Some(PlantedFfn::apply_all(edits.planted(), tensor, bytes, Requant::Preserve)?))
        };
        Rewrite::copy(&self.gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(())).unwrap();
        file.commit().unwrap();
        Gguf::open(&path).unwrap()
    }
}

/// Inputs around a mean, spread along a few directions.
fn inputs(n: usize) -> Array2<f32> {
    let basis: Vec<Vec<f32>> = (0..12).map(|k| noise(N_EMBD, 50 + k)).collect();
    Array2::from_shape_fn((n, N_EMBD), |(i, j)| {
        let part = |k: usize| ((i * 31 + k * 17) as f32 * 0.71).cos() * basis[k][j] * 20.0;
        (0..12).map(part).sum::<f32>() + 0.8 + noise(1, i * 977 + j)[0]
    })
}

fn bank(tiny: &Tiny, x: &Array2<f32>) -> Bank {
    let plan = plan_of(&tiny.gguf).unwrap();
    let network = Network::known(&tiny.gguf, &plan.ffns[0], Activation::Silu, false).unwrap();
    let slots =
        network.idlest(&tiny.gguf, &plan.writers[plan.ffns[0].writer], x.view(), 1, 4).unwrap().remove(0);
    let mean = x.mean_axis(ndarray::Axis(0)).unwrap();
    let constant: Vec<f32> = (&mean / mean.dot(&mean)).to_vec();
    let gate = |opens, seed, sign: f32| {
        let weights: Vec<f32> = noise(N_EMBD, seed).iter().map(|v| v * sign).collect();
        let scores = Score { weights: weights.clone(), bias: 0.0 }.of(x.view());
        let n = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let deviation = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n).sqrt();
        let weights: Vec<f32> = weights.iter().map(|w| (f64::from(*w) / deviation) as f32).collect();
        Gate { opens, score: Score { weights, bias: (-mean / deviation) as f32 }, threshold: 0.3, width: 0.5 }
    };
    let gates = vec![(gate(Opens::Harmful, 50, 1.0), 5.0), (gate(Opens::Borderline, 51, -1.0), -3.0)];
    Bank { network, slots, constant, column: noise(N_EMBD, 9), post_norm: None, gates }
}

#[test]
fn a_gate_is_shut_below_and_whole_above() {
    for activation in Activation::ALL {
        let score = Score { weights: vec![1.0], bias: 0.0 };
        let gate = Gate { opens: Opens::Harmful, score, threshold: 2.0, width: 0.5 };
        let at = |s: f64| gate.opening(s, activation);
        assert!(at(0.0).abs() < 1e-6 && at(1.0).abs() < 0.01, "{activation:?}: {} {}", at(0.0), at(1.0));
        assert!((at(3.5) - 1.0).abs() < 0.01 && (at(9.0) - 1.0).abs() < 1e-6, "{activation:?}");
        assert!((at(2.25) - 0.5).abs() < 0.1, "{activation:?}: {}", at(2.25));
    }
}

#[test]
fn neurons_do_what_their_gates_say() {
    let tiny = Tiny::new(GgmlType::F32);
    let x = inputs(200);
    let bank = bank(&tiny, &x);
    let expected: Vec<f64> = (0..x.nrows())
        .map(|i| {
            let row = x.row(i);
            let constant = f64::from(row.dot(&ArrayView1::from(&bank.constant)));
            let of = |(gate, push): &(Gate, f64)| {
                push * gate.openings(&bank.constant, row.insert_axis(ndarray::Axis(0)), Activation::Silu)[0]
            };
            assert!((constant - 1.0).abs() < 0.5);
            bank.gates.iter().map(of).sum()
        })
        .collect();
    for (found, expected) in bank.effect(x.view()).iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
    let some = |is: fn(f64) -> bool| expected.iter().any(|&e| is(e));
    assert!(some(|e| e > 4.0) && some(|e| e < -2.0) && some(|e| e.abs() < 0.05), "{expected:?}");
}

#[test]
fn neurons_survive_every_type_and_change_nothing_else() {
    for ggml_type in GgmlType::all().filter(|&t| t.can_quantize() && quant::neuron::has_single_codes(t)) {
        // At one or two bits per value, no network survives.
        if matches!(ggml_type, GgmlType::Q1_0 | GgmlType::Q2_0 | GgmlType::TQ1_0 | GgmlType::TQ2_0) {
            continue;
        }
        let tiny = Tiny::new(ggml_type);
        let plan = plan_of(&tiny.gguf).unwrap();
        let x = inputs(400);
        let bank = bank(&tiny, &x);
        let writer = &plan.writers[bank.network.ffn.writer];
        let planted = PlantedFfn::fit(&bank, &tiny.gguf, writer, Requant::Preserve, x);
        if ggml_type == GgmlType::NVFP4 {
            // Its scales reach down only to 2⁻⁹, and such models have separate scale tensors in addition.
            assert!(planted.unwrap_err().to_string().contains("NVFP4 is too coarse for the row of a neuron"));
            continue;
        }
        let edits = Edits::Neurons(vec![planted.unwrap()]);
        let written = tiny.written(&edits);
        let found = verify(&tiny.gguf, &written, &edits, &mut |_, _| ()).unwrap();
        assert!(found.untouched_identical && found.unexpected.is_empty(), "{ggml_type}: {found:?}");
        assert_eq!(found.tensors.len(), 3, "{ggml_type}");
        let arrival = &found.neurons[0];
        assert!(arrival.score > 0.99 && arrival.alike > 0.98, "{ggml_type}: {arrival:?}");
        assert!((0.9..1.1).contains(&arrival.gain) && arrival.cosine > 0.98, "{ggml_type}: {arrival:?}");
        assert!(found.arrived(0.9), "{ggml_type}: {arrival:?}");
    }
}

/// Returns the cosine in the residual stream between the first neuron's column in the file and its target, and the
/// result of `verify`.
fn column_behind(gain: &[f32], tiny: &Tiny, bank: &Bank) -> (f64, planted::Arrival) {
    let plan = plan_of(&tiny.gguf).unwrap();
    let writer = &plan.writers[bank.network.ffn.writer];
    let planted = PlantedFfn::fit(bank, &tiny.gguf, writer, Requant::Preserve, inputs(200)).unwrap();
    let edits = Edits::Neurons(vec![planted]);
    let written = tiny.written(&edits);
    let column = &edits.planted()[0].neurons[0].column;
    let found = ffn::read_column(&written, &column.place, 0).unwrap();
    let seen = |column: &[f32]| column.iter().zip(gain).map(|(c, g)| c * g).collect::<Vec<f32>>();
    let cosine = crate::util::linalg::cosine(&seen(&column.target), &seen(&found));
    (cosine, verify(&tiny.gguf, &written, &edits, &mut |_, _| ()).unwrap().neurons.remove(0))
}

#[test]
fn columns_behind_a_norm_are_rounded_for_the_stream() {
    let gain: Vec<f32> = noise(N_EMBD, 77).iter().map(|v| (25.0 * v).exp()).collect();
    let s: Vec<f64> = noise(N_EMBD, 9).iter().map(|&v| f64::from(v)).collect();
    let column: Vec<f32> = crate::method::post_norm::through(&s, &gain).0.iter().map(|&l| l as f32).collect();
    for (ggml_type, least) in [(GgmlType::Q4_K, 0.85), (GgmlType::Q4_0, 0.85), (GgmlType::Q6_K, 0.97)] {
        let tiny = Tiny::new(ggml_type);
        let plain = Bank { column: column.clone(), ..bank(&tiny, &inputs(200)) };
        let (for_matrix, _) = column_behind(&gain, &tiny, &plain);
        let normed = Bank { post_norm: Some(gain.clone()), ..plain };
        let (cosine, arrival) = column_behind(&gain, &tiny, &normed);
        eprintln!("{ggml_type}: {for_matrix:.3} {cosine:.3} {arrival:?}");
        assert!(cosine > least && cosine > for_matrix, "{ggml_type}: {cosine} {for_matrix}");
        assert!((0.9..1.1).contains(&arrival.gain), "{ggml_type}: {arrival:?}");
        // The noise that `verify` reports is that in the residual stream.
        let across = (1.0 / (cosine * cosine) - 1.0).sqrt();
        assert!((arrival.noise / across - 1.0).abs() < 0.2, "{ggml_type}: {arrival:?} {across}");
    }
}

#[test]
fn another_row_or_column_is_noticed() {
    let tiny = Tiny::new(GgmlType::Q4_0);
    let plan = plan_of(&tiny.gguf).unwrap();
    let x = inputs(200);
    let bank = bank(&tiny, &x);
    let writer = &plan.writers[bank.network.ffn.writer];
    let planted = PlantedFfn::fit(&bank, &tiny.gguf, writer, Requant::Preserve, x).unwrap();
    let edits = Edits::Neurons(vec![planted]);
    let written = tiny.written(&edits);
    for name in ["blk.0.ffn_gate.weight", "blk.0.ffn_down.weight"] {
        let mut bytes = std::fs::read(&written.path).unwrap();
        let tensor = written.tensor(name).unwrap();
        // The first code of the first block, which belongs to none of the planted neurons in this model.
        bytes[tensor.data.start as usize + 2] ^= 1;
        let path = written.path.with_extension("damaged.gguf");
        std::fs::write(&path, &bytes).unwrap();
        let found = verify(&tiny.gguf, &Gguf::open(&path).unwrap(), &edits, &mut |_, _| ()).unwrap();
        assert_eq!(found.unexpected, [name]);
        assert!(!found.untouched_identical);
    }
}

#[test]
fn codebooks_are_refused_by_name() {
    let tiny = Tiny::new(GgmlType::IQ3_S);
    let plan = plan_of(&tiny.gguf).unwrap();
    let x = inputs(60);
    let bank = bank(&tiny, &x);
    let writer = &plan.writers[bank.network.ffn.writer];
    let error = PlantedFfn::fit(&bank, &tiny.gguf, writer, Requant::Preserve, x.clone()).unwrap_err();
    assert!(error.to_string().starts_with("blk.0.ffn_down.weight: IQ3_S encodes several"), "{error}");
    assert!(error.hint().unwrap().contains("--promote"));
    PlantedFfn::fit(&bank, &tiny.gguf, writer, Requant::Promote(GgmlType::Q4_0), x).unwrap();
}

#[test]
fn every_expert_has_the_same_neurons() {
    for ggml_type in [GgmlType::F32, GgmlType::Q4_K] {
        let tiny = Tiny::with_experts(ggml_type, 3);
        let plan = plan_of(&tiny.gguf).unwrap();
        let x = inputs(200);
        let bank = bank(&tiny, &x);
        let writer = &plan.writers[bank.network.ffn.writer];
        let planted = PlantedFfn::fit(&bank, &tiny.gguf, writer, Requant::Preserve, x).unwrap();
        let edits = Edits::Neurons(vec![planted.clone()]);
        let written = tiny.written(&edits);
        let found = verify(&tiny.gguf, &written, &edits, &mut |_, _| ()).unwrap();
        assert!(found.untouched_identical && found.unexpected.is_empty(), "{ggml_type}: {found:?}");
        let arrival = &found.neurons[0];
        assert!(arrival.score > 0.99 && arrival.alike > 0.98 && arrival.cosine > 0.98, "{arrival:?}");
        let gate = &planted.neurons[0].gate.place;
        let rows = [0, 1, 2].map(|expert| read_row(&written, gate, expert).unwrap());
        assert!(rows[0] == rows[1] && rows[1] == rows[2], "{ggml_type}");
        // An adapter adds the difference between the target and the row of the same expert.
        let terms = planted.low_rank(&tiny.gguf).unwrap();
        let term = terms.iter().find(|term| term.tensor == gate.tensor).unwrap();
        term.check(N_EMBD as u64, N_FF as u64).unwrap();
        let own = &term.a[2 * term.rank as usize * N_EMBD..][..N_EMBD];
        let old = read_row(&tiny.gguf, gate, 2).unwrap();
        let sum: Vec<f32> = own.iter().zip(&old).map(|(a, o)| a + o).collect();
        assert!(crate::util::linalg::cosine(&sum, &planted.neurons[0].gate.target) > 0.999_999);
    }
}

#[test]
fn one_expert_that_lacks_a_neuron_is_noticed() {
    let tiny = Tiny::with_experts(GgmlType::F32, 3);
    let plan = plan_of(&tiny.gguf).unwrap();
    let x = inputs(200);
    let bank = bank(&tiny, &x);
    let writer = &plan.writers[bank.network.ffn.writer];
    let planted = PlantedFfn::fit(&bank, &tiny.gguf, writer, Requant::Preserve, x).unwrap();
    let edits = Edits::Neurons(vec![planted.clone()]);
    let written = tiny.written(&edits);
    let column = &planted.neurons[0].column.place;
    let down = written.tensor(&column.tensor).unwrap();
    let mut bytes = std::fs::read(&written.path).unwrap();
    let expert = (down.data.start + 2 * down.ne[1] * down.row_bytes()) as usize;
    for row in 0..N_EMBD {
        bytes[expert + (row * N_FF + column.index) * 4..][..4].fill(0);
    }
    let path = written.path.with_extension("damaged.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let found = verify(&tiny.gguf, &Gguf::open(&path).unwrap(), &edits, &mut |_, _| ()).unwrap();
    assert!(found.neurons[0].alike < 0.98, "{:?}", found.neurons[0]);
}

#[test]
fn what_experts_compute_is_found_under_the_weights_of_their_router() {
    let tiny = Tiny::with_experts(GgmlType::F32, 3);
    let plan = plan_of(&tiny.gguf).unwrap();
    let x = inputs(24);
    let known = Network::known(&tiny.gguf, &plan.ffns[0], Activation::Gelu, false).unwrap();
    let hidden = [0, 1, 2].map(|expert| known.hidden(&tiny.gguf, expert, x.view()).unwrap());
    let experts = Array2::from_shape_fn((24, 2), |(i, slot)| ((i + slot) % 3) as u32);
    let mut h = Array2::zeros((24, 2 * N_FF));
    for i in 0..24 {
        for (slot, p) in [0.7, 0.2].into_iter().enumerate() {
            let own = &hidden[experts[[i, slot]] as usize];
            h.slice_mut(s![i, slot * N_FF..(slot + 1) * N_FF]).assign(&(&own.row(i) * p));
        }
    }
    let route = Route { experts: experts.view().into(), n_expert: 3 };
    let rows = Rows { x: h.view().into(), route: Some(route) };
    let found = Network::identify(&tiny.gguf, &plan.ffns[0], x.view(), &rows).unwrap().unwrap();
    assert_eq!(found.activation, Activation::Gelu);
    assert!((found.routed - 0.9).abs() < 1e-5, "{}", found.routed);
}

fn dense(h: ArrayView2<'_, f32>) -> Rows<'_> {
    Rows { x: h.into(), route: None }
}

#[test]
fn what_a_network_computes_is_found_by_looking() {
    let tiny = Tiny::new(GgmlType::F32);
    let plan = plan_of(&tiny.gguf).unwrap();
    let x = inputs(24);
    for activation in Activation::ALL {
        let known = Network::known(&tiny.gguf, &plan.ffns[0], activation, false).unwrap();
        let h = known.hidden(&tiny.gguf, 0, x.view()).unwrap();
        let found = Network::identify(&tiny.gguf, &plan.ffns[0], x.view(), &dense(h.view())).unwrap();
        assert_eq!(found, Some(known));
    }
    let strange = x.dot(&Array2::from_elem((N_EMBD, N_FF), 0.1));
    let found = Network::identify(&tiny.gguf, &plan.ffns[0], x.view(), &dense(strange.view())).unwrap();
    assert_eq!(found, None);
}
