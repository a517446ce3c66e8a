//! A real model in several files: `inject` edits it, and llama.cpp finds the written files by its own naming rule.

use std::path::Path;

use rosi_gguf::gguf::Gguf;

use crate::common::downloaded::smollm2;
use crate::common::few_prompts::few_prompts;
use crate::common::run::{ended, json, text};
use crate::common::splitter::split;

fn inject(model: &Path, out: &Path, few: &Path) {
    let args = ["inject", text(model), "-o", text(out), "--prompts", text(few)];
    let edit = ["--method", "published", "--layer", "15", "--strength", "0.004"];
    ended(&[&args[..], &edit, &["--allow-no-refusal", "--allow-over-limits"]].concat(), 0);
}

#[test]
fn a_split_model_gets_the_edit_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (few, whole) = (few_prompts(dir.path()), Gguf::open(&smollm2()).unwrap());
    let n = whole.tensors.len();
    let parts = split(&whole, dir.path(), "part", &[0, n / 2, n - n / 2]);
    inject(&parts[1], &path("out-00002-of-00003.gguf"), &few);
    let first = path("out-00001-of-00003.gguf");
    let verified = json(&["-q", "verify", text(&parts[2]), text(&first), "--json"]);
    assert_eq!(verified["untouched_identical"], true);
    assert_eq!(verified["metadata_preserved"], true);
    assert!(verified["gain"].as_f64().unwrap() > 0.9, "{verified}");
    let answer = ended(&["ask", text(&first), "--prompt", "How many days are in a week?"], 0);
    assert!(String::from_utf8_lossy(&answer.stdout).contains("7 days"));
}
