//! `eval` on inputs that it must reject before it loads a model. No model is run.

use std::path::Path;
use std::process::Command;

use rosi_gguf::gguf::{GgufBuilder, Value};

/// Runs the program; returns its exit code and stderr, with the path of the folder replaced.
fn told(args: &[&str], folder: &Path) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_rosi-gguf")).args(args).current_dir(folder).output().unwrap();
    assert!(output.stdout.is_empty());
    let text = String::from_utf8_lossy(&output.stderr).replace(folder.to_str().unwrap(), "DIR");
    format!("exit {}\n{}", output.status.code().unwrap(), text.trim_end())
}

/// Writes a file with the header of a model, and files that are invalid for their purpose.
fn files(folder: &Path) {
    let model = GgufBuilder::new()
        .string("general.architecture", "llama")
        .kv("llama.block_count", Value::U32(1))
        .f32_tensor("token_embd.weight", &[4, 2], &[0.5; 8]);
    let mut bytes = Vec::new();
    model.write_to(&mut bytes).unwrap();
    std::fs::write(folder.join("m.gguf"), bytes).unwrap();
    let items = "{\"question\": \"?\", \"choices\": [\"a\", \"b\"], \"answer\": 0}\n\n{\"question\": \"?\", \"choices\": [\"a\"]}\n";
    std::fs::write(folder.join("items.jsonl"), items).unwrap();
    std::fs::write(folder.join("text.txt"), b"fine\nnot \xFF fine").unwrap();
    std::fs::write(folder.join("set.jsonl"), "{\"prompt\": \"Who?\"}\n").unwrap();
    std::fs::write(folder.join("report.json"), "mine").unwrap();
}

#[test]
fn what_cannot_be_is_told_before_any_model_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let cases: [&[&str]; 12] = [
        &["eval", "none.gguf"],
        &["eval", "m.gguf", "--tokens", "0"],
        &["eval", "m.gguf", "--ctx-size", "2000"],
        &["eval", "m.gguf", "--threads", "0"],
        &["eval", "m.gguf", "--base", "items.jsonl"],
        &["eval", "m.gguf", "--choice", "items.jsonl"],
        &["eval", "m.gguf", "--choice", "none.jsonl"],
        &["eval", "m.gguf", "--perplexity", "text.txt"],
        &["eval", "m.gguf", "--set", "set.jsonl"],
        &["eval", "m.gguf", "--set", "none.jsonl"],
        &["eval", "m.gguf", "--report", "report.json"],
        &["eval", "m.gguf", "--judge", "m.gguf"],
    ];
    let all: Vec<String> =
        cases.iter().map(|args| format!("## {}\n{}", args.join(" "), told(args, dir.path()))).collect();
    insta::assert_snapshot!(all.join("\n"));
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 5, "files were left behind");
    assert_eq!(std::fs::read(dir.path().join("report.json")).unwrap(), b"mine");
}
