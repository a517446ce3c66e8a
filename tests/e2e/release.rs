//! A release of two quantizations, killed after the first file and resumed.
//! `scripts/test` sets the `ROSI_TEST_*` variables.

use std::path::Path;
use std::time::{Duration, Instant};

use rosi_gguf::gguf::{GgmlType, Gguf};
use serde_json::Value;

use crate::common::downloaded::smollm2;
use crate::common::files::{names, sha256};
use crate::common::found::Found;
use crate::common::retyped::converted;
use crate::common::run::{command, ended, refused, stderr, text};

/// Kills the release as soon as its first file has its final name.
fn killed(args: &[&str], first: &Path) {
    let mut child = command(args).spawn().unwrap();
    let started = Instant::now();
    while !first.exists() && started.elapsed() < Duration::from_secs(900) {
        if child.try_wait().unwrap().is_some() {
            panic!("it ended before the kill: {}", stderr(&child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    let told = stderr(&child.wait_with_output().unwrap());
    assert!(first.exists(), "{told}");
}

#[test]
fn a_release_is_killed_taken_up_and_complete() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (found, source, edit, out) = (Found::once(), at("Qwen-F16.gguf"), at("e.safetensors"), at("out"));
    converted(&found.model, &source, GgmlType::F16);
    std::fs::copy(&found.edit, &edit).unwrap();
    let config = at("release.toml");
    std::fs::write(
        &config,
        "sources = ['Qwen-F16.gguf']\noutput = 'out'\ntypes = ['Q8_0', 'Q4_K_M']\nedit = 'e.safetensors'\n\
         base-model = 'owner/qwen'\nlicense = 'apache-2.0'\nscore-prompts = 4\nkeep-bases = true\n",
    )
    .unwrap();
    let release = ["release", text(&config), "--json", "-t", "2"];
    let first = out.join("Qwen-rosi-Q8_0.gguf");
    killed(&release, &first);
    let before = std::fs::metadata(&first).unwrap().modified().unwrap();
    let taken_up = ended(&release, 0);
    assert!(stderr(&taken_up).contains("1/2 Qwen-rosi-Q8_0.gguf is up to date"), "{}", stderr(&taken_up));
    assert_eq!(std::fs::metadata(&first).unwrap().modified().unwrap(), before);
    let models = ["Qwen-rosi-Q4_K_M.gguf", "Qwen-rosi-Q8_0.gguf"];
    let all = [models[0], models[1], "README.md", "SHA256SUMS", "base", "release.json", "reports"];
    assert_eq!(names(&out), all);
    check_files(&out, &serde_json::from_slice(&taken_up.stdout).unwrap());

    // A third run finds all files and changes nothing; a different release into the same folder is rejected.
    let [card, sums] = ["README.md", "SHA256SUMS"].map(|name| std::fs::read(out.join(name)).unwrap());
    let again = ended(&release, 0);
    assert_eq!(again.stdout, taken_up.stdout);
    assert_eq!([card, sums], ["README.md", "SHA256SUMS"].map(|name| std::fs::read(out.join(name)).unwrap()));
    let changed = std::fs::read_to_string(&config).unwrap().replace("score-prompts = 4", "score = false");
    std::fs::write(&config, changed).unwrap();
    let told = refused(&release);
    let expected = "Qwen-rosi-Q8_0.gguf was made with a different scoring: report, 4 of each kind, now guard";
    assert!(told.contains(expected), "{told}");
}

fn check_files(out: &Path, rows: &Value) {
    let sums = std::fs::read_to_string(out.join("SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), 3);
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        assert_eq!(sha256(&out.join(name)), sum, "{name}");
    }
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    let front = "---\nbase_model: \"owner/qwen\"\nbase_model_relation: \"quantized\"\nlicense: ";
    assert!(card.starts_with(front) && card.contains("| Q4_K_M | with | "), "{card}");
    for (row, label) in rows.as_array().unwrap().iter().zip(["Q8_0", "Q4_K_M"]) {
        assert_eq!(row["label"], label);
        let gain = row["gain"].as_f64().unwrap();
        assert!((0.97..1.03).contains(&gain), "{label}: {gain}");
        let file = out.join(row["file"].as_str().unwrap());
        let report = out.join("reports").join(format!("Qwen-rosi-{label}.json"));
        let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        assert_eq!(report["verification"]["untouched_identical"], true);
        let base = out.join("base").join(row["file"].as_str().unwrap());
        ended(&["verify", text(&base), text(&file)], 0);
        let (base, file) = (Gguf::open(&base).unwrap(), Gguf::open(&file).unwrap());
        assert_eq!(base.u64("general.file_type"), file.u64("general.file_type"));
        assert_eq!(file.str("rosi.input_sha256"), row["base_sha256"].as_str());
    }
}

#[test]
fn what_cannot_be_released_is_told_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let (out, model) = (folder.path().join("out"), smollm2());
    for (extra, why) in [
        (&["--types", "Q8_0"][..], "--types needs a full-precision source, found none"),
        (&["--types", "Q9_9"], "unknown type Q9_9"),
        (&["--name", "a/b"], "invalid file name prefix"),
    ] {
        let args = ["release", text(&model), "-o", text(&out)];
        let told = refused(&[&args[..], extra].concat());
        assert!(told.contains(why), "{told}");
    }
    let told = refused(&["release", text(&model)]);
    assert!(told.contains("expected an output directory"), "{told}");
    assert!(!out.exists());
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("README.md"), b"mine").unwrap();
    let told = refused(&["release", text(&model), "-o", text(&out)]);
    assert!(told.contains("README.md already exists"), "{told}");
    assert_eq!(std::fs::read(out.join("README.md")).unwrap(), b"mine");
}
