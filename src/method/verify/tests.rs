use super::*;
use crate::gguf::{AtomicFile, GgufBuilder, Rewrite, Value};
use crate::method::direction;
use crate::method::requant::{self, Requant};
use crate::pipeline::plan_of;
use crate::quant::preserve::InputModel;

const N_EMBD: usize = 32;
const N_IN: usize = 64;
const WRITER: &str = "blk.0.attn_output.weight";

/// A model with a norm after each writer, with gains from a tenth to ten, except for the first, a thousandth.
fn model() -> (GgufBuilder, Vec<f32>) {
    let gain = (0..N_EMBD).map(|i| if i == 0 { 1e-3 } else { 10f32.powf((i * 7 % 21) as f32 / 10.0 - 1.0) });
    let gain: Vec<f32> = gain.collect();
    let (n_embd, n_in) = (N_EMBD as u64, N_IN as u64);
    let weights: Vec<f32> = (0..N_IN * N_EMBD).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 0.9).collect();
    let model = GgufBuilder::new()
        .string("general.architecture", "olmo2")
        .kv("olmo2.block_count", Value::U32(1))
        .kv("olmo2.embedding_length", Value::U32(N_EMBD as u32))
        .f32_tensor("token_embd.weight", &[n_embd, 2], &[0.5; 2 * N_EMBD])
        .f32_tensor(WRITER, &[n_in, n_embd], &weights)
        .f32_tensor("blk.0.ffn_down.weight", &[n_in, n_embd], &weights)
        .f32_tensor("blk.0.post_attention_norm.weight", &[n_embd], &gain)
        .f32_tensor("blk.0.post_ffw_norm.weight", &[n_embd], &gain);
    (model, gain)
}

/// A change that does not pass the norm is neither missing nor noise; a change that passes counts by its gain.
#[test]
fn behind_a_norm_what_reaches_the_stream_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("base.gguf"), dir.path().join("out.gguf"));
    let (model, gain) = model();
    model.write_to(&mut std::fs::File::create(&path).unwrap()).unwrap();
    let base = Gguf::open(&path).unwrap();
    let plan = plan_of(&base).unwrap();
    let weights: Vec<_> = plan.writers.iter().map(|w| edit::read_weights(&base, w).unwrap()).collect();
    let direction = direction::random(0, N_EMBD, 3).unwrap();
    let edits = edit::edits(&plan, &weights, &edit::mean_rows(&weights), &direction, 0.03).unwrap();
    let mut replace = |tensor: &TensorInfo| {
        let Some(edit) = edits.iter().find(|edit| edit.tensor == tensor.name) else { return Ok(None) };
        let bytes = base.read_tensor(tensor)?;
        Ok(Some(requant::apply(edit, tensor, bytes, Requant::Nearest, &InputModel::default())?))
    };
    let mut file = AtomicFile::create(&out, true).unwrap();
    Rewrite::copy(&base).write_to(&mut file, &mut replace, &mut |_, _| Ok(())).unwrap();
    file.commit().unwrap();
    let edit = edits.iter().find(|edit| edit.tensor == WRITER).unwrap();
    let claimed: Edits = edits.clone().into();
    let figures = || {
        let found = verify(&base, &Gguf::open(&out).unwrap(), &claimed, &mut |_, _| ()).unwrap();
        let tensor = found.tensors.into_iter().find(|tensor| tensor.name == WRITER).unwrap();
        [tensor.gain, tensor.cosine, tensor.noise].map(Option::unwrap)
    };
    let [share, cosine, own] = figures();
    assert!((share - 1.0).abs() < 1e-4 && cosine > 0.9999, "{share} {cosine}");
    let written = std::fs::read(&out).unwrap();
    let first = Gguf::open(&out).unwrap().tensor(WRITER).unwrap().data.start as usize;
    let widest = (0..N_EMBD).max_by(|&a, &b| gain[a].total_cmp(&gain[b])).unwrap();
    for (row, passes) in [(0, false), (widest, true)] {
        // As large as the whole edit.
        let by = (edit.norm_sq() / N_IN as f64).sqrt() as f32;
        let mut bytes = written.clone();
        for raw in bytes[first + row * 4 * N_IN..][..4 * N_IN].chunks_exact_mut(4) {
            let value = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) + by;
            raw.copy_from_slice(&value.to_le_bytes());
        }
        std::fs::write(&out, bytes).unwrap();
        let [share, _, noise] = figures();
        // ‖g ⊙ Δ‖ of the change alone, relative to the requested push of the edit.
        let reaches = f64::from(gain[row]) / edit.post_norm.as_ref().unwrap().push;
        match passes {
            true => {
                assert!(
                    (0.3 * reaches..1.5 * reaches).contains(&noise) && reaches > 1.0,
                    "{noise} {reaches}"
                );
            }
            false => {
                assert!((noise - own).abs() < 1e-2 && (share - 1.0).abs() < 1e-2, "{noise} {own} {share}");
            }
        }
    }
}
