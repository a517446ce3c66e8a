//! A real model in several files: `inject` edits it, and llama.cpp finds the written files by its own naming rule.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rosi_gguf::gguf::Gguf;

use crate::common::few_prompts::few_prompts;
use crate::common::splitter::split;

fn model() -> PathBuf {
    std::env::var_os("ROSI_TEST_MODEL_SMOLLM2")
        .expect("ROSI_TEST_MODEL_SMOLLM2 is not set: run scripts/test")
        .into()
}

fn rosi(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_rosi-gguf")).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn inject(model: &Path, out: &Path, few: &Path) {
    let (model, out, few) = (model.to_str().unwrap(), out.to_str().unwrap(), few.to_str().unwrap());
    let edit = ["--method", "published", "--layer", "15", "--strength", "0.008"];
    rosi(
        &[
            &["inject", model, "-o", out, "--prompts", few][..],
            &edit,
            &["--allow-no-refusal", "--allow-over-limits"],
        ]
        .concat(),
    );
}

#[test]
fn a_split_model_gets_the_edit_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (few, whole) = (few_prompts(dir.path()), Gguf::open(&model()).unwrap());
    let n = whole.tensors.len();
    let parts = split(&whole, dir.path(), "part", &[0, n / 2, n - n / 2]);
    inject(&parts[1], &path("out-00002-of-00003.gguf"), &few);
    let first = path("out-00001-of-00003.gguf");
    let verified = rosi(&["-q", "verify", parts[2].to_str().unwrap(), first.to_str().unwrap(), "--json"]);
    let verified: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["untouched_identical"], true);
    assert_eq!(verified["metadata_preserved"], true);
    assert!(verified["gain"].as_f64().unwrap() > 0.9, "{verified}");
    let answer = rosi(&["ask", first.to_str().unwrap(), "--prompt", "What is the capital of France?"]);
    assert!(String::from_utf8_lossy(&answer.stdout).contains("Paris"));
}
