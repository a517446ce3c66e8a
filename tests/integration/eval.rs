//! `eval` on inputs that it must reject before it loads a model. No model is run.

use std::path::Path;

use rosi_gguf::gguf::Value;

use crate::common::files::gguf_bytes;
use crate::common::plan_only::arch;
use crate::common::run::{command, outcome};

/// Runs the program in the folder; returns its exit code and stderr, with the path of the folder replaced.
fn told(args: &[&str], folder: &Path) -> String {
    let output = command(args).current_dir(folder).output().unwrap();
    assert!(output.stdout.is_empty());
    outcome(&output, folder)
}

/// Writes a file with the header of a model, and files that are invalid for their purpose.
fn files(folder: &Path) {
    let model = arch("llama").kv("llama.block_count", Value::U32(1));
    let model = model.f32_tensor("token_embd.weight", &[4, 2], &[0.5; 8]);
    std::fs::write(folder.join("m.gguf"), gguf_bytes(&model)).unwrap();
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
    let cases: [&[&str]; 13] = [
        &["eval", "none.gguf"],
        &["eval", "m.gguf", "--tokens", "0"],
        &["eval", "m.gguf", "--temperature", "0"],
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
