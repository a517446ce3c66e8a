//! Writing and verifying keep one tensor in memory, not the file: sparse models of 1 GiB go through both in a process
//! limited to a third of that, with every kind of requantization.

#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use rosi_gguf::gguf::{GgmlType, Gguf, Rewrite, TensorInfo};
use rosi_gguf::method::edit::Edit;
use rosi_gguf::method::requant::{self, Requant};
use rosi_gguf::method::verify::verify;
use rosi_gguf::quant::preserve::InputModel;
use rosi_gguf::report::peak_memory;

/// Number of columns of every tensor.
const N_IN: u64 = 4096;
const TENSORS: u64 = 32;
/// Index of the tensor that is edited; the only one with nonzero data.
const EDITED: u64 = 7;
/// Limit on the address space of the process, in KiB.
const LIMIT: u64 = 340 << 10;
/// Environment variable with the index of the case in [`CASES`] that the child process runs.
const CASE: &str = "ROSI_MEMORY_CASE";

/// Type, number of rows of a tensor (32 MiB or a little more each), and requantization.
const CASES: [(GgmlType, u64, Requant); 3] = [
    (GgmlType::F16, 4096, Requant::Nearest),
    (GgmlType::F16, 4096, Requant::Preserve),
    (GgmlType::Q4_K, 16384, Requant::Preserve),
];

/// Writes a sparse file: a header and a hole in place of the data. Only [`EDITED`] has data, copies of `block`.
fn sparse(path: &Path, ggml_type: GgmlType, n_out: u64, block: &[u8]) {
    let n_bytes = ggml_type.row_bytes(N_IN).unwrap() * n_out;
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend(TENSORS.to_le_bytes());
    header.extend(0u64.to_le_bytes());
    for i in 0..TENSORS {
        let name = name_of(i);
        header.extend((name.len() as u64).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(2u32.to_le_bytes());
        header.extend([N_IN, n_out].map(u64::to_le_bytes).concat());
        header.extend(ggml_type.id().to_le_bytes());
        header.extend((i * n_bytes).to_le_bytes());
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let mut file = File::create(path).unwrap();
    file.write_all(&header).unwrap();
    file.seek(SeekFrom::Start(header.len() as u64 + EDITED * n_bytes)).unwrap();
    let row = block.repeat(ggml_type.row_bytes(N_IN).unwrap() as usize / block.len());
    (0..n_out).for_each(|_| file.write_all(&row).unwrap());
    file.set_len(header.len() as u64 + TENSORS * n_bytes).unwrap();
}

fn name_of(i: u64) -> String {
    format!("blk.{i:02}.ffn_down.weight")
}

/// Returns 256 values between -1 and 1, quantized to `ggml_type`.
fn block(ggml_type: GgmlType) -> Vec<u8> {
    let values: Vec<f32> = (0..256).map(|i| ((i * 37) % 101) as f32 / 50.5 - 1.0).collect();
    let mut block = vec![0; ggml_type.row_bytes(256).unwrap() as usize];
    rosi_gguf::quant::quantize(ggml_type, 256, &values, &mut block).unwrap();
    block
}

#[test]
fn files_three_times_the_memory_are_written_and_verified() {
    for case in 0..CASES.len() {
        let run = Command::new("sh")
            .args([
                "-c",
                &format!("ulimit -v {LIMIT} && exec \"$0\" --exact within_the_limit --ignored --nocapture"),
            ])
            .arg(std::env::current_exe().unwrap())
            .env("MALLOC_ARENA_MAX", "1")
            .env(CASE, case.to_string())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && told.contains("1 passed"), "{case}: {told}");
        told.lines().filter(|line| line.contains("peak")).for_each(|line| println!("{line}"));
    }
}

#[test]
#[ignore = "runs in a separate process"]
fn within_the_limit() {
    let case: usize = std::env::var(CASE).unwrap().parse().unwrap();
    let (ggml_type, n_out, how) = CASES[case];
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base.gguf"), dir.path().join("out.gguf"));
    sparse(&base, ggml_type, n_out, &block(ggml_type));
    let gguf = Gguf::open(&base).unwrap();
    assert!(gguf.total_len() >= 3 * LIMIT * 1024);
    let edit = Edit {
        writer: 0,
        tensor: name_of(EDITED),
        n_expert: 1,
        left: vec![1.0 / (n_out as f32).sqrt(); n_out as usize],
        right: vec![1.0; N_IN as usize],
        alpha: 1.0,
        weight_norm_sq: 1.0,
        scale: Vec::new(),
        scales_adapter: false,
        post_norm: None,
    };
    // As many principal inputs as a search keeps.
    let wave = |p: usize| (0..N_IN as usize).map(|j| ((j * (p + 3)) % 7) as f32 / 7.0).collect();
    let inputs = InputModel { diagonal: vec![1.0; N_IN as usize], principal: (0..8).map(wave).collect() };
    let mut replace = |tensor: &TensorInfo| {
        if tensor.name != edit.tensor {
            return Ok(None);
        }
        let bytes = gguf.read_tensor(tensor)?;
        Ok(Some(requant::apply(&edit, tensor, bytes, how, &inputs)?))
    };
    let mut file = File::create(&out).unwrap();
    Rewrite::copy(&gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(())).unwrap();
    let v = verify(&gguf, &Gguf::open(&out).unwrap(), &vec![edit.clone()].into(), &mut |_, _| ()).unwrap();
    assert!(v.untouched_identical && v.gain.unwrap() > 0.97, "{v:?}");
    assert_eq!(v.identical as u64, TENSORS - 1);
    // The prediction of `inject --dry-run`.
    let predicted = how.memory(gguf.tensor(&edit.tensor).unwrap());
    let peak = peak_memory().unwrap();
    eprintln!("{ggml_type} {}: peak {} MiB, predicted {} MiB", how.name(), peak >> 20, predicted >> 20);
    assert!(peak <= predicted, "{peak} > {predicted}");
}
