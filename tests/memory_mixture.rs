//! A mixture of experts with 117 billion weights in the shape of gpt-oss-120b, 63 GB. The writers of one block are
//! edited with one tensor in memory. The model is sparse except for those writers, so it takes little disk space, but
//! its copy takes all 63 GB.
//!
//! ```text
//! cargo test --release --test memory_mixture -- --ignored --nocapture      (ROSI_BIG_FOLDER: a folder with 70 GB free)
//! ```

#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use rosi_gguf::gguf::{AtomicFile, GgmlType, Gguf, Rewrite, TensorInfo};
use rosi_gguf::method::direction;
use rosi_gguf::method::edit::{self, Edit, WriterWeights};
use rosi_gguf::method::requant::{self, Requant};
use rosi_gguf::method::verify::verify;
use rosi_gguf::pipeline::plan_of;
use rosi_gguf::quant::preserve::InputModel;
use rosi_gguf::report::peak_memory;

const N_LAYER: u64 = 36;
const N_EMBD: u64 = 2880;
const N_FF: u64 = 2880;
const N_EXPERT: u64 = 128;
const N_VOCAB: u64 = 201_088;
/// Total width of the query heads, and of the key and value heads.
const HEADS: u64 = 4096;
const KV: u64 = 512;
/// Index of the block whose writers are edited; the only ones with nonzero data.
const EDITED: u64 = 18;

/// Returns the name, shape and type of every matrix. Norms and biases are omitted, since they are small.
fn tensors() -> Vec<(String, Vec<u64>, GgmlType)> {
    let mut tensors = Vec::new();
    for name in ["token_embd.weight", "output.weight"] {
        tensors.push((name.to_owned(), vec![N_EMBD, N_VOCAB], GgmlType::Q8_0));
    }
    for layer in 0..N_LAYER {
        let dense = [
            ("attn_q", N_EMBD, HEADS),
            ("attn_k", N_EMBD, KV),
            ("attn_v", N_EMBD, KV),
            ("attn_output", HEADS, N_EMBD),
        ];
        tensors.extend(dense.map(|(name, n_in, n_out)| (of(layer, name), vec![n_in, n_out], GgmlType::Q8_0)));
        let experts =
            [("ffn_gate_exps", N_EMBD, N_FF), ("ffn_up_exps", N_EMBD, N_FF), ("ffn_down_exps", N_FF, N_EMBD)];
        tensors.extend(
            experts
                .map(|(name, n_in, n_out)| (of(layer, name), vec![n_in, n_out, N_EXPERT], GgmlType::MXFP4)),
        );
    }
    tensors
}

fn of(layer: u64, name: &str) -> String {
    format!("blk.{layer}.{name}.weight")
}

fn n_bytes(ne: &[u64], ggml_type: GgmlType) -> u64 {
    ggml_type.row_bytes(ne[0]).unwrap() * ne[1..].iter().product::<u64>()
}

/// Writes a sparse file: a header and a hole in place of the data, except for the writers of [`EDITED`].
fn write_model(path: &Path) {
    let tensors = tensors();
    let numbers = [
        ("gpt-oss.block_count", N_LAYER),
        ("gpt-oss.embedding_length", N_EMBD),
        ("gpt-oss.expert_count", N_EXPERT),
        ("gpt-oss.expert_used_count", 4),
    ];
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((1 + numbers.len() as u64).to_le_bytes());
    header.extend([string("general.architecture"), 8u32.to_le_bytes().to_vec(), string("gpt-oss")].concat());
    for (key, number) in numbers {
        header.extend(
            [string(key), 4u32.to_le_bytes().to_vec(), (number as u32).to_le_bytes().to_vec()].concat(),
        );
    }
    let mut offset = 0u64;
    let mut offsets = Vec::new();
    for (name, ne, ggml_type) in &tensors {
        header.extend(string(name));
        header.extend((ne.len() as u32).to_le_bytes());
        ne.iter().for_each(|n| header.extend(n.to_le_bytes()));
        header.extend(ggml_type.id().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offsets.push(offset);
        offset += n_bytes(ne, *ggml_type).next_multiple_of(32);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let mut file = File::create(path).unwrap();
    file.write_all(&header).unwrap();
    for ((name, ne, ggml_type), offset) in tensors.iter().zip(offsets) {
        if ["attn_output", "ffn_down_exps"].iter().any(|writer| *name == of(EDITED, writer)) {
            file.seek(SeekFrom::Start(header.len() as u64 + offset)).unwrap();
            let row = row(*ggml_type, ne[0]);
            (0..ne[1..].iter().product()).for_each(|_| file.write_all(&row).unwrap());
        }
    }
    file.set_len(header.len() as u64 + offset).unwrap();
}

/// Returns a row of `n` values between -1 and 1, quantized to `ggml_type`.
fn row(ggml_type: GgmlType, n: u64) -> Vec<u8> {
    let values: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 / 50.5 - 1.0).collect();
    let mut row = vec![0; ggml_type.row_bytes(n).unwrap() as usize];
    rosi_gguf::quant::quantize(ggml_type, n as usize, &values, &mut row).unwrap();
    row
}

/// Returns the published edit of the writers of [`EDITED`], of 1 % along a random direction.
fn edits(gguf: &Gguf) -> Vec<Edit> {
    let mut plan = plan_of(gguf).unwrap();
    plan.writers.retain(|writer| writer.tensor.starts_with(&format!("blk.{EDITED}.")));
    let weights: Vec<WriterWeights> =
        plan.writers.iter().map(|writer| edit::read_weights(gguf, writer).unwrap()).collect();
    let along = direction::random(EDITED as usize, N_EMBD as usize, 1).unwrap();
    edit::edits(&plan, &weights, &edit::mean_rows(&weights), &along, 0.01).unwrap()
}

#[test]
#[ignore = "writes 63 GB"]
fn a_mixture_of_117_billion_weights_is_written_with_one_tensor_in_memory() {
    let folder = std::env::var_os("ROSI_BIG_FOLDER").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(folder).unwrap();
    let (base, out) = (dir.path().join("base.gguf"), dir.path().join("out.gguf"));
    write_model(&base);
    let gguf = Gguf::open(&base).unwrap();
    let weights: u64 = gguf.tensors.iter().map(TensorInfo::n_elements).sum();
    let largest = gguf.tensors.iter().map(TensorInfo::n_bytes).max().unwrap();
    eprintln!(
        "{} GB, {} billion weights, largest tensor {} MiB",
        gguf.file_len / 1_000_000_000,
        weights / 1_000_000_000,
        largest >> 20
    );
    let edits = edits(&gguf);
    assert_eq!(edits.len(), 2);
    let mut replace = |tensor: &TensorInfo| {
        let Some(edit) = edits.iter().find(|edit| edit.tensor == tensor.name) else { return Ok(None) };
        let bytes = gguf.read_tensor(tensor)?;
        Ok(Some(requant::apply(edit, tensor, bytes, Requant::Preserve, &InputModel::default())?))
    };
    let started = Instant::now();
    let mut file = AtomicFile::create(&out, false).unwrap();
    Rewrite::copy(&gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(())).unwrap();
    file.commit().unwrap();
    eprintln!("written in {:.0} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let verified = verify(&gguf, &Gguf::open(&out).unwrap(), &edits.into(), &mut |_, _| ()).unwrap();
    let peak = peak_memory().unwrap();
    eprintln!(
        "verified in {:.0} s: gain {:?}; peak {} MiB",
        started.elapsed().as_secs_f64(),
        verified.gain,
        peak >> 20
    );
    assert!(verified.untouched_identical && verified.gain.unwrap() > 0.97, "{:?}", verified.gain);
    assert!(peak < largest + (128 << 20), "{} MiB", peak >> 20);
}
