//! `inject --in-place` that is interrupted or makes a model less safe. tests/e2e/inject.rs has the one that succeeds.
//! `scripts/test` sets the `ROSI_TEST_*` variables.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rosi_gguf::gguf::in_place::{Phase, journal_path, phase};
use tempfile::TempDir;

use crate::common::downloaded::smollm2;
use crate::common::few_prompts::few_prompts;
use crate::common::files::{self, sha256};
use crate::common::run::{command, stderr, text};

/// Returns a command for a quick injection: no search, few prompts, no controls.
fn inject(model: &Path, few: &Path, strength: &str) -> Command {
    let edit = ["--layer", "15", "--strength", strength, "--method", "published"];
    let args = [
        "inject",
        text(model),
        "--prompts",
        text(few),
        "--no-bundled-prompts",
        "--allow-no-refusal",
        "--allow-over-limits",
    ];
    command(&[&args[..], &edit].concat())
}

/// Returns the names in `folder`, except those of the search journal and of its lock.
fn names(folder: &Path) -> Vec<String> {
    let mut names = files::names(folder);
    names.retain(|name| !name.ends_with("search.jsonl") && !name.ends_with(".lock"));
    names
}

/// A model in a folder of its own, and prompts in another folder.
struct Case {
    dir: TempDir,
    /// Holds the file of prompts.
    _elsewhere: TempDir,
    few: PathBuf,
    model: PathBuf,
    /// SHA-256 of the original model.
    base: String,
}

impl Case {
    /// Creates a case with a copy of SmolLM2.
    fn new() -> Self {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (few, model) = (few_prompts(elsewhere.path()), dir.path().join("m.gguf"));
        std::fs::copy(smollm2(), &model).unwrap();
        let base = sha256(&model);
        Self { dir, _elsewhere: elsewhere, few, model, base }
    }

    fn inject(&self, strength: &str) -> Command {
        inject(&self.model, &self.few, strength)
    }

    /// Asserts that the folder holds only the original model.
    fn check_original(&self) {
        assert_eq!(sha256(&self.model), self.base);
        assert_eq!(names(self.dir.path()), ["m.gguf"]);
    }
}

#[test]
fn ctrl_c_amid_the_scoring_puts_the_original_back() {
    let case = Case::new();
    let started = Instant::now();
    let child = case.inject("0.004").arg("--in-place").spawn().unwrap();
    while !journal_path(&case.model).exists() && started.elapsed() < Duration::from_secs(900) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(phase(&case.model).unwrap(), Some(Phase::Changing));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
    case.check_original();
}

#[test]
fn a_less_safe_result_is_put_back() {
    let case = Case::new();
    // An edit as large as the weights: the model only produces broken text, which never counts as a refusal.
    let output = case.inject("1").arg("--in-place").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("the original was restored"), "{}", stderr(&output));
    assert!(stderr(&output).contains("its base"), "{}", stderr(&output));
    case.check_original();
}
