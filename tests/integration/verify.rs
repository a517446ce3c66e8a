//! The exit code and the problem that `verify` reports for files that claim an edit and for files that do not.

use std::path::{Path, PathBuf};

use crate::common::run::{parsed, ran, stderr, text};
use rosi_gguf::gguf::{GgmlType, GgufBuilder, Value};

const N: usize = 64;
const WRITER: &str = "blk.0.attn_output.weight";

/// Returns `n` numbers from −1 to 1.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

fn unit() -> Vec<f32> {
    let values = numbers(N, 5);
    let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    values.iter().map(|v| v / norm).collect()
}

fn right() -> Vec<f32> {
    numbers(N, 6).iter().map(|v| 0.5 * v).collect()
}

/// Returns the values of the writer with `share` of the edit applied.
fn moved(share: f32) -> Vec<f32> {
    let (unit, right) = (unit(), right());
    numbers(N * N, 1).iter().enumerate().map(|(i, w)| w + share * unit[i / N] * right[i % N]).collect()
}

/// The values of the writer as a file holds them.
struct Stored {
    ggml_type: GgmlType,
    bytes: Vec<u8>,
}

/// Writes a model with `writer`, and with the keys of the edit if it `claims` one.
fn save(path: &Path, writer: Stored, claims: bool, down: &[f32]) {
    let mut file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .kv("llama.block_count", Value::U32(1))
        .kv("llama.embedding_length", Value::U32(N as u32));
    if claims {
        let texts = [
            ("version", "0.1.0"),
            ("method", "contrast"),
            ("direction_source", "plain"),
            ("system_prompt", "none"),
        ];
        for (key, value) in texts {
            file = file.string(&format!("rosi.{key}"), value);
        }
        file = file
            .kv("rosi.layer", Value::U32(0))
            .kv("rosi.strength", Value::F64(0.04))
            .f32_array("rosi.direction", &unit())
            .f32_array(&format!("rosi.right.{WRITER}"), &right());
    }
    let square = [N as u64, N as u64];
    let file = file
        .f32_tensor("token_embd.weight", &[N as u64, 2], &[0.5; 2 * N])
        .tensor(WRITER, &square, writer.ggml_type, writer.bytes)
        .f32_tensor("blk.0.ffn_down.weight", &square, down);
    file.write_to(&mut std::fs::File::create(path).unwrap()).unwrap();
}

fn f32s(values: &[f32]) -> Stored {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Stored { ggml_type: GgmlType::F32, bytes }
}

fn f16s(values: &[f32]) -> Stored {
    let mut bytes = vec![0; values.len() * 2];
    rosi_gguf::quant::quantize(GgmlType::F16, N, values, &mut bytes).unwrap();
    Stored { ggml_type: GgmlType::F16, bytes }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `verify` on the base and a file with `writer`; returns the exit code and the problem.
    fn verified(&self, writer: Stored, claims: bool, down: &[f32]) -> (i32, String) {
        save(&self.path("base.gguf"), f32s(&moved(0.0)), false, &numbers(N * N, 2));
        save(&self.path("edited.gguf"), writer, claims, down);
        let (base, edited) = (self.path("base.gguf"), self.path("edited.gguf"));
        let output = ran(&["verify", text(&base), text(&edited), "--json"]);
        let told = parsed(&output);
        let problem = told["problem"].as_str().unwrap_or_default().to_owned();
        assert!(stderr(&output).contains(&problem));
        (output.status.code().unwrap(), problem)
    }
}

#[test]
fn only_a_file_with_all_of_its_edit_is_verified() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let down = numbers(N * N, 2);
    let of = |values: &[f32]| folder.verified(f32s(values), true, &down);
    assert_eq!(of(&moved(1.0)), (0, String::new()));
    assert_eq!(folder.verified(f16s(&moved(1.0)), true, &down), (0, String::new()));
    for share in [0.0, 0.5, 0.89, -1.0, 2.0] {
        let (code, problem) = of(&moved(share));
        assert_eq!(code, 3, "{share} of the edit");
        assert!(problem.contains("of the edit"), "{share}: {problem}");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = moved(1.0);
        values[77] = bad;
        let (code, problem) = of(&values);
        assert_eq!((code, problem.contains("not finite")), (3, true), "{bad}: {problem}");
    }
    // Noise in addition to the edit.
    let values: Vec<f32> = moved(1.0).iter().zip(numbers(N * N, 9)).map(|(w, n)| w + 0.05 * n).collect();
    let (code, problem) = of(&values);
    assert_eq!((code, problem.contains("noise")), (3, true), "{problem}");
    let mut other = down.clone();
    other[3] += 1.0;
    let (code, problem) = folder.verified(f32s(&moved(1.0)), true, &other);
    assert_eq!((code, problem.contains("blk.0.ffn_down.weight")), (3, true), "{problem}");
}

#[test]
fn without_a_claim_every_difference_is_unexpected() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let down = numbers(N * N, 2);
    assert_eq!(folder.verified(f32s(&moved(0.0)), false, &down), (0, String::new()));
    let (code, problem) = folder.verified(f32s(&moved(1.0)), false, &down);
    assert_eq!((code, problem.contains(WRITER)), (3, true), "{problem}");
    // A different type is a difference, even if the values are almost equal.
    assert_eq!(folder.verified(f16s(&moved(0.0)), false, &down).0, 3);
    let (base, edited) = (folder.path("base.gguf"), folder.path("edited.gguf"));
    let output = ran(&["verify", text(&base), text(&edited)]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("untouched tensors identical: NO"));
}
