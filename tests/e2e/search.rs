//! Searches on a real model: interrupted and resumed, and repeated by their flags. tests/e2e/export.rs applies the stored
//! edit to another quantization.
//! `scripts/test` sets the `ROSI_TEST_*` variables.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rosi_gguf::gguf::{Gguf, Rewrite};
use rosi_gguf::method::stored::{Facts, StoredEdit};

use crate::common::downloaded::smollm2;
use crate::common::files::sha256;
use crate::common::found::Found;
use crate::common::run::{command, json, refused, stderr, text};

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

#[test]
fn a_stored_edit_is_the_same_after_an_interrupt_and_for_its_model_only() {
    let (found, folder) = (Found::once(), tempfile::tempdir().unwrap());
    check_resume(found, folder.path());
    check_refusals(found, folder.path());
}

/// Any trial of a search can be repeated by giving its κ and its strength, with the same score.
#[test]
fn another_trial_of_the_search_is_taken_by_its_flags() {
    let (found, folder) = (Found::once(), tempfile::tempdir().unwrap());
    let other = folder.path().join("other.safetensors");
    let trials = found.told["search"]["trials"].as_array().unwrap();
    let trial = trials.iter().find(|trial| trial["contrast"] == 0.5).expect("no trial with κ = 0.5");
    let strength = trial["strength"].to_string();
    let again = json(&found.search(&other, "1", &["--contrast", "0.5", "--strength", &strength]));
    assert_eq!(again["edit"]["chosen"]["contrast"], 0.5);
    assert_eq!(again["edit"]["strength"], trial["strength"]);
    assert_eq!(again["search"]["trials"].as_array().unwrap().len(), 1);
    assert_eq!(again["search"]["trials"][0]["score"], trial["score"]);
}

/// Checks that an interrupted and resumed search writes the same file as an uninterrupted one.
fn check_resume(found: &Found, folder: &Path) {
    let (again, journal) = (folder.join("again.safetensors"), folder.join("again.search.jsonl"));
    stopped(&found.search(&again, "3", &[]), &journal);
    let error = refused(&found.search(&again, "3", &["--resume", "--max-kl", "0.01"]));
    assert!(error.contains("max_kl was not given in the interrupted search and is 0.01 now"), "{error}");
    assert_eq!(json(&found.search(&again, "3", &["--resume"])), found.told);
    assert_eq!(sha256(&again), sha256(&found.edit));
    assert!(!journal.exists());
}

/// Checks that the edit is rejected for other weights and other models, and that a reversed edit is always rejected.
fn check_refusals(found: &Found, folder: &Path) {
    let (other, out) = (folder.join("other.gguf"), folder.join("none.gguf"));
    let foreign = smollm2();
    let error = refused(&[&found.inject(&foreign, &out)[..], &["--allow-other-weights"]].concat());
    assert!(error.contains("architecture: expected qwen2, found llama"), "{error}");
    tuned(&found.model, &other);
    let error = refused(&found.inject(&other, &out));
    assert!(error.contains("1 of 121 norms and biases, first blk.3.ffn_norm.weight"), "{error}");
    assert!(error.contains("hint: "), "{error}");
    let (edit, _) = StoredEdit::open(&found.edit).unwrap();
    let backwards = StoredEdit { facts: Facts { strength: -0.04, ..edit.facts }, ..edit };
    let turned = folder.join("turned.safetensors");
    std::fs::write(&turned, backwards.to_bytes().unwrap()).unwrap();
    let error = refused(&["inject", text(&found.model), "-o", text(&out), "--edit", text(&turned)]);
    assert!(error.contains("strength: expected a number above 0"), "{error}");
    assert!(!out.exists());
}
