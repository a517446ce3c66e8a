//! Edits in tensors of real models, in every quantization type: whether they survive, and whether other implementations
//! decode the result to the same values as ours. `scripts/test` sets the `ROSI_TEST_*` variables.

use rosi_gguf::gguf::{GgmlType, Gguf, GgufBuilder};
use rosi_gguf::imatrix::Imatrix;
use rosi_gguf::method::direction;
use rosi_gguf::quant;
use rosi_gguf::quant::preserve::{InputModel, RankOneTarget, can_preserve, preserve};
use serde_json::json;

use crate::common::files::gguf_bytes;
use crate::common::oracle::oracle;
use crate::common::run::{text, variable};

/// A real tensor, and an edit of 1 % along its mean row.
struct Tensor {
    own: GgmlType,
    bytes: Vec<u8>,
    values: Vec<f32>,
    left: Vec<f32>,
    right: Vec<f32>,
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

impl Tensor {
    fn open(model: &str, name: &str) -> Self {
        let gguf = Gguf::open(&variable(model)).unwrap();
        let info = gguf.tensor(name).unwrap();
        let (n_in, n_row) = (info.ne[0] as usize, info.n_rows() as usize);
        let bytes = gguf.read_tensor(info).unwrap();
        let values = decoded(info.ggml_type, n_in, &bytes);
        let mut right = vec![0.0f32; n_in];
        for row in values.chunks_exact(n_in) {
            right.iter_mut().zip(row).for_each(|(r, w)| *r += w);
        }
        let scale = 0.01 * norm(&values) / norm(&right);
        right.iter_mut().for_each(|r| *r = (f64::from(*r) * scale) as f32);
        let left = direction::random(0, n_row, 7).unwrap().unit().to_vec();
        Self { own: info.ggml_type, bytes, values, left, right }
    }

    fn n_in(&self) -> usize {
        self.right.len()
    }

    /// Returns the tensor's data in `ggml_type`.
    fn of(&self, ggml_type: GgmlType) -> Vec<u8> {
        if ggml_type == self.own {
            return self.bytes.clone();
        }
        let row = ggml_type.row_bytes(self.n_in() as u64).unwrap() as usize;
        let mut bytes = vec![0; row * self.left.len()];
        quant::quantize_weighted(ggml_type, self.n_in(), &self.values, &vec![1.0; self.n_in()], &mut bytes)
            .unwrap();
        bytes
    }

    fn edited(&self, ggml_type: GgmlType, bytes: &[u8], right: &[f32], inputs: &InputModel) -> Vec<u8> {
        let mut new = bytes.to_vec();
        preserve(
            ggml_type,
            &mut new,
            RankOneTarget { left: &self.left, along: &self.left, right },
            inputs,
            2,
        )
        .unwrap();
        quant::validate(ggml_type, &new).unwrap();
        new
    }

    /// Returns the gain and the cosine of lᵀ(after − before) with respect to r.
    fn survival(&self, before: &[f32], after: &[f32]) -> (f64, f64) {
        let mut along = vec![0.0f64; self.n_in()];
        let rows = before.chunks_exact(self.n_in()).zip(after.chunks_exact(self.n_in()));
        for ((old, new), &l) in rows.zip(&self.left) {
            along.iter_mut().zip(old.iter().zip(new)).for_each(|(a, (o, n))| *a += f64::from(l * (n - o)));
        }
        let dot: f64 = along.iter().zip(&self.right).map(|(a, &r)| a * f64::from(r)).sum();
        let (asked, found) = (norm(&self.right), along.iter().map(|a| a * a).sum::<f64>().sqrt());
        (dot / (asked * asked), dot / (asked * found))
    }
}

fn decoded(ggml_type: GgmlType, n_in: usize, bytes: &[u8]) -> Vec<f32> {
    let row = ggml_type.row_bytes(n_in as u64).unwrap() as usize;
    let mut values = vec![0.0; bytes.len() / row * n_in];
    quant::dequantize(ggml_type, n_in, bytes, &mut values).unwrap();
    values
}

/// Returns an input model in which some inputs are larger than others, with two principal directions.
fn inputs(n_in: usize) -> InputModel {
    let wave = |k: f32| (0..n_in).map(|j| (j as f32 * k).sin()).collect();
    let diagonal = (0..n_in).map(|j| 0.1 + (j % 7) as f32).collect();
    InputModel { diagonal, principal: vec![wave(0.37), wave(1.9)] }
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn edits_arrive_in_every_type_and_others_decode_them_alike() {
    let tensors = [
        Tensor::open("ROSI_TEST_MODEL_SMOLLM2", "blk.7.ffn_down.weight"),
        Tensor::open("ROSI_TEST_MODEL_GEMMA3", "blk.4.attn_output.weight"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut cases = Vec::new();
    for ggml_type in GgmlType::all().filter(|&t| t.can_quantize()) {
        assert!(can_preserve(ggml_type), "{ggml_type}");
        for (index, tensor) in tensors.iter().enumerate() {
            let n_in = tensor.n_in();
            let bytes = tensor.of(ggml_type);
            assert_eq!(
                tensor.edited(ggml_type, &bytes, &vec![0.0; n_in], &inputs(n_in)),
                bytes,
                "{ggml_type}"
            );
            let before = decoded(ggml_type, n_in, &bytes);
            let mut new = Vec::new();
            for model in [InputModel::default(), inputs(n_in)] {
                new = tensor.edited(ggml_type, &bytes, &tensor.right, &model);
                let (gain, cosine) = tensor.survival(&before, &decoded(ggml_type, n_in, &new));
                eprintln!("{ggml_type} {index}: gain {gain:.4} cosine {cosine:.5}");
                assert!((0.98..1.02).contains(&gain) && cosine > 0.99, "{ggml_type}: {gain} {cosine}");
            }
            let name = format!("{ggml_type}-{index}");
            std::fs::write(folder.path().join(format!("{name}.bytes")), &new).unwrap();
            let values = le_bytes(&decoded(ggml_type, n_in, &new));
            std::fs::write(folder.path().join(format!("{name}.f32")), values).unwrap();
            cases.push(json!({"type": ggml_type.name(), "id": ggml_type.id(), "n_per_row": n_in,
                "bytes": format!("{name}.bytes"), "values": format!("{name}.f32")}));
        }
    }
    std::fs::write(folder.path().join("cases.json"), json!(cases).to_string()).unwrap();
    let found = oracle("decode_rows.py", &[text(folder.path())]);
    eprintln!("{found:#}");
    // On other architectures, ggml may use fused multiply-add.
    let tolerance = if cfg!(target_arch = "x86_64") { 0.0 } else { 1e-6 };
    for ggml_type in GgmlType::all().filter(|&t| t.can_quantize()) {
        let by = found[ggml_type.name()].as_object().unwrap();
        assert!(!by.is_empty(), "no oracle decodes {ggml_type}");
        for (who, difference) in by {
            assert!(difference.as_f64().unwrap() <= tolerance, "{ggml_type} by {who}: {difference}");
        }
    }
}

#[test]
fn ggml_refuses_what_is_not_finite() {
    let tensor = Tensor::open("ROSI_TEST_MODEL_SMOLLM2", "blk.7.attn_output.weight");
    assert!(quant::validate(tensor.own, &tensor.bytes).is_ok());
    assert!(quant::validate(tensor.own, &tensor.bytes[..21]).is_err());
    let mut damaged = tensor.bytes;
    damaged[40..42].copy_from_slice(&[0xFF, 0x7F]);
    assert_eq!(
        quant::validate(tensor.own, &damaged),
        Err(quant::QuantError::Invalid { ggml_type: tensor.own })
    );
}

#[test]
fn importance_matrices_are_read_as_others_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let (gguf, legacy) = (folder.path().join("imatrix.gguf"), folder.path().join("imatrix.dat"));
    let squares: Vec<f32> = (0..96).map(|i| 0.5 + (i * 37 % 41) as f32).collect();
    let builder = GgufBuilder::new()
        .string("general.type", "imatrix")
        .string_array("imatrix.datasets", &["text"])
        .kv("imatrix.chunk_count", rosi_gguf::gguf::Value::U32(1))
        .kv("imatrix.chunk_size", rosi_gguf::gguf::Value::U32(512));
    let builder =
        builder.f32_tensor("w.in_sum2", &[96, 1], &squares).f32_tensor("w.counts", &[1, 1], &[24.0]);
    std::fs::write(&gguf, gguf_bytes(&builder)).unwrap();
    let mut bytes: Vec<u8> = [1i32, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
    bytes.push(b'w');
    bytes.extend([24i32, 96].iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend(le_bytes(&squares));
    bytes.extend([1i32, 4].iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend(b"text");
    std::fs::write(&legacy, &bytes).unwrap();
    let theirs = oracle("read_imatrix.py", &[text(&gguf), text(&legacy)]);
    for path in [&gguf, &legacy] {
        let ours = Imatrix::open(path).unwrap().input_model("w", 96, 1).unwrap().unwrap();
        for (j, ours) in ours.diagonal.iter().enumerate() {
            assert!((ours - squares[j] / 24.0).abs() <= 1e-6 * ours, "{j}");
            // libgguf is not available on every platform.
            if let Some(theirs) = theirs[text(path)]["w"][j].as_f64() {
                assert!((f64::from(*ours) - theirs).abs() <= 1e-6 * theirs, "{j}: {ours} {theirs}");
            }
        }
    }
}
