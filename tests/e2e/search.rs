//! A stored edit of a real model applied to another quantization of it, and a search that is interrupted and resumed.
//! `scripts/test` sets the `ROSI_TEST_*` variables.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rosi_gguf::gguf::{GgmlType, Gguf, Rewrite};
use rosi_gguf::method::stored::{Facts, StoredEdit};
use rosi_gguf::pipeline::plan_of;
use serde_json::Value;

use crate::common::downloaded::{qwen, smollm2};
use crate::common::few_prompts::few_prompts;
use crate::common::files::sha256;
use crate::common::retyped::retyped;
use crate::common::run::{command, json, refused, stderr, text};

/// Writes a copy with the residual writers in Q8_0.
fn promoted(model: &Path, out: &Path) {
    let gguf = Gguf::open(model).unwrap();
    let writers: Vec<String> = plan_of(&gguf).unwrap().writers.into_iter().map(|w| w.tensor).collect();
    retyped(&gguf, out, GgmlType::Q8_0, &|tensor| writers.contains(&tensor.name));
}

/// Writes a copy with one gain of one norm changed. (Fine-tuning changes all of them.)
fn tuned(model: &Path, out: &Path) {
    let gguf = Gguf::open(model).unwrap();
    let mut replace = |tensor: &rosi_gguf::gguf::TensorInfo| {
        let mut bytes = gguf.read_tensor(tensor)?;
        bytes[0] ^= 1;
        Ok((tensor.name == "blk.3.ffn_norm.weight").then_some(bytes))
    };
    let mut file = std::fs::File::create(out).unwrap();
    Rewrite::copy(&gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(())).unwrap();
}

/// Interrupts a search with SIGINT once its journal has some rows.
fn stopped(args: &[&str], journal: &Path) {
    let mut child = command(args).spawn().unwrap();
    let started = Instant::now();
    let rows = || std::fs::read_to_string(journal).map_or(0, |text| text.lines().count());
    while rows() < 3 && started.elapsed() < Duration::from_secs(900) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before the interrupt");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("add --resume to continue it"), "{}", stderr(&output));
}

/// Flags for a search of one trial.
const ONE: [&str; 2] = ["--trials", "1"];

/// The input files of the commands; its methods build their arguments.
struct Runs {
    folder: tempfile::TempDir,
    model: PathBuf,
    few: PathBuf,
}

impl Runs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let few = few_prompts(folder.path());
        Self { folder, model: qwen(), few }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn direction<'a>(&'a self, out: &'a Path, extra: &[&'a str]) -> Vec<&'a str> {
        let args = ["search", text(&self.model), "-o", text(out), "--layer", "14", "--method", "contrast"];
        [
            &args[..],
            &["--prompts", text(&self.few), "--json", "--allow-no-refusal", "--allow-over-limits"],
            extra,
        ]
        .concat()
    }

    fn inject<'a>(&'a self, model: &'a Path, direction: &'a Path, out: &'a Path) -> Vec<&'a str> {
        let args = ["inject", text(model), "--edit", text(direction), "-o", text(out)];
        [&args[..], &["--prompts", text(&self.few), "--json"]].concat()
    }
}

#[test]
fn an_edit_is_found_once_and_applied_to_another_quantization() {
    let runs = Runs::new();
    let whole = runs.at("whole.safetensors");
    let told = json(&runs.direction(&whole, &ONE));
    assert!(!runs.at("whole.search.jsonl").exists(), "it is removed after success");
    check_resume(&runs, &whole, &told);
    check_other_quantization(&runs, &whole, &told);
    check_refusals(&runs, &whole);
}

/// Any trial of a search can be repeated by giving its κ and its strength, with the same score.
#[test]
fn another_trial_of_the_search_is_taken_by_its_flags() {
    let runs = Runs::new();
    let (best, other) = (runs.at("best.safetensors"), runs.at("other.safetensors"));
    let told = json(&runs.direction(&best, &["--direction-source", "plain", "--trials", "3"]));
    let trials = told["search"]["trials"].as_array().unwrap();
    let trial = trials.iter().find(|trial| trial["contrast"] == 0.5).expect("no trial with κ = 0.5");
    let strength = trial["strength"].to_string();
    let flags =
        [&ONE[..], &["--direction-source", "plain", "--contrast", "0.5", "--strength", &strength]].concat();
    let again = json(&runs.direction(&other, &flags));
    assert_eq!(again["edit"]["chosen"]["contrast"], 0.5);
    assert_eq!(again["edit"]["strength"], trial["strength"]);
    assert_eq!(again["search"]["trials"].as_array().unwrap().len(), 1);
    assert_eq!(again["search"]["trials"][0]["score"], trial["score"]);
}

/// Checks that an interrupted and resumed search writes the same file as an uninterrupted one.
fn check_resume(runs: &Runs, whole: &Path, told: &Value) {
    let (again, journal) = (runs.at("again.safetensors"), runs.at("again.search.jsonl"));
    stopped(&runs.direction(&again, &ONE), &journal);
    let error = refused(&runs.direction(&again, &[&ONE[..], &["--resume", "--max-kl", "0.01"]].concat()));
    assert!(error.contains("max_kl was not given in the interrupted search and is 0.01 now"), "{error}");
    assert_eq!(&json(&runs.direction(&again, &[&ONE[..], &["--resume"]].concat())), told);
    assert_eq!(sha256(&again), sha256(whole));
    assert!(!journal.exists());
}

fn check_other_quantization(runs: &Runs, whole: &Path, told: &Value) {
    let (wide, out) = (runs.at("wide.gguf"), runs.at("out.gguf"));
    promoted(&runs.model, &wide);
    let report = json(&runs.inject(&wide, whole, &out));
    assert_eq!(report["stored_edit"]["sha256"], sha256(whole));
    assert_eq!(report["search"]["trials"], serde_json::json!([]));
    for key in ["direction_source", "layer", "window", "contrast"] {
        assert_eq!(report["edit"][key], told["edit"]["chosen"][key], "{key}");
    }
    assert_eq!(report["edit"]["strength"], told["edit"]["strength"]);
    let near = |a: &Value, b: &Value| (a.as_f64().unwrap() / b.as_f64().unwrap() - 1.0).abs() < 0.01;
    assert!(near(&report["edit"]["push"], &told["edit"]["push"]), "{report}");
    let gain = report["verification"]["gain"].as_f64().unwrap();
    assert!((0.99..1.01).contains(&gain), "{gain}");
    let edited = Gguf::open(&out).unwrap();
    assert_eq!(edited.str("rosi.edit_sha256"), report["stored_edit"]["sha256"].as_str());
    assert_eq!(edited.str("rosi.method"), Some("contrast"));
}

/// Checks that the edit is rejected for other weights and other models, and that a reversed edit is always rejected.
fn check_refusals(runs: &Runs, whole: &Path) {
    let (other, out) = (runs.at("other.gguf"), runs.at("none.gguf"));
    let foreign = smollm2();
    let error = refused(&[&runs.inject(&foreign, whole, &out)[..], &["--allow-other-weights"]].concat());
    assert!(error.contains("architecture: expected qwen2, found llama"), "{error}");
    tuned(&runs.model, &other);
    let error = refused(&runs.inject(&other, whole, &out));
    assert!(error.contains("1 of 121 norms and biases, first blk.3.ffn_norm.weight"), "{error}");
    assert!(error.contains("hint: "), "{error}");
    let (edit, _) = StoredEdit::open(whole).unwrap();
    let backwards = StoredEdit { facts: Facts { strength: -0.04, ..edit.facts }, ..edit };
    let turned = runs.at("turned.safetensors");
    std::fs::write(&turned, backwards.to_bytes().unwrap()).unwrap();
    let error = refused(&runs.inject(&runs.model, &turned, &out));
    assert!(error.contains("strength: expected a number above 0"), "{error}");
    assert!(!out.exists());
}
