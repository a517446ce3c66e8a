//! Writing and verifying hold a tensor, not the file: a sparse model of 1 GiB goes through both with a
//! third of that as the process's limit.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use rosi_gguf::edit::Edit;
use rosi_gguf::gguf::{GgmlType, Gguf, Rewrite, TensorInfo};
use rosi_gguf::quant::preserve::InputModel;
use rosi_gguf::report::peak_memory;
use rosi_gguf::requant::{self, Requant};
use rosi_gguf::verify::verify;

/// Rows and columns of every tensor; F16, 32 MiB each.
const N: u64 = 4096;
const TENSORS: u64 = 32;
/// What the process may map, in KiB.
const LIMIT: u64 = 340 << 10;

fn sparse(path: &Path) {
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend(TENSORS.to_le_bytes());
    header.extend(0u64.to_le_bytes());
    for i in 0..TENSORS {
        let name = format!("blk.{i:02}.ffn_down.weight");
        header.extend((name.len() as u64).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(2u32.to_le_bytes());
        header.extend([N, N].map(u64::to_le_bytes).concat());
        header.extend(GgmlType::F16.id().to_le_bytes());
        header.extend((i * N * N * 2).to_le_bytes());
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let mut file = File::create(path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(header.len() as u64 + TENSORS * N * N * 2).unwrap();
}

#[test]
fn a_file_three_times_the_memory_is_written_and_verified() {
    let run = Command::new("sh")
        .args([
            "-c",
            &format!("ulimit -v {LIMIT} && exec \"$0\" --exact within_the_limit --ignored --nocapture"),
        ])
        .arg(std::env::current_exe().unwrap())
        .env("MALLOC_ARENA_MAX", "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
#[ignore = "a process of its own"]
fn within_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base.gguf"), dir.path().join("out.gguf"));
    sparse(&base);
    let gguf = Gguf::open(&base).unwrap();
    assert!(gguf.total_len() >= 3 * LIMIT * 1024);
    let edit = Edit {
        writer: 0,
        tensor: "blk.07.ffn_down.weight".into(),
        n_expert: 1,
        left: vec![1.0 / (N as f32).sqrt(); N as usize],
        right: vec![1.0; N as usize],
        alpha: 1.0,
        weight_norm_sq: 1.0,
    };
    let mut replace = |tensor: &TensorInfo| {
        if tensor.name != edit.tensor {
            return Ok(None);
        }
        let bytes = gguf.read_tensor(tensor)?;
        Ok(Some(requant::apply(&edit, (tensor, bytes), Requant::Nearest, &InputModel::default())?))
    };
    let mut file = File::create(&out).unwrap();
    Rewrite::copy(&gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(())).unwrap();
    let v = verify(&gguf, &Gguf::open(&out).unwrap(), std::slice::from_ref(&edit), &mut |_, _| ()).unwrap();
    assert!(v.untouched_identical && v.gain.unwrap() > 0.99, "{v:?}");
    assert_eq!(v.identical as u64, TENSORS - 1);
    // As `inject --dry-run` predicts: the tensor before and after, and 64 MiB.
    let predicted = 2 * N * N * 2 + (64 << 20);
    let peak = peak_memory().unwrap();
    eprintln!("peak {} MiB, predicted {} MiB", peak >> 20, predicted >> 20);
    assert!(peak <= predicted, "{peak} > {predicted}");
}
