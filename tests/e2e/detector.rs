//! Detector neurons on a real model: found once, planted in several quantizations of it, served by a third-party build
//! of llama.cpp, and removed again. `scripts/test` sets the `ROSI_TEST_*` variables.

use std::path::{Path, PathBuf};

use rosi_gguf::gguf::{AtomicModel, GgmlType, Gguf};
use rosi_gguf::method::requant::Requant;
use rosi_gguf::method::verify::{Verification, verify};
use rosi_gguf::output::Printer;
use rosi_gguf::pipeline::provenance::{Provenance, claimed_edits};
use rosi_gguf::pipeline::session::Opened;
use rosi_gguf::pipeline::stored;
use rosi_gguf::pipeline::write::{Change, Write};
use serde_json::Value;

use crate::common::downloaded::smollm2;
use crate::common::few_prompts::few_prompts;
use crate::common::files::sha256;
use crate::common::oracle::oracle;
use crate::common::retyped::{converted, retyped};
use crate::common::run::{ended, json, refused, text};

/// A model, an edit found on it, and the JSON output of the search.
struct Found {
    folder: tempfile::TempDir,
    model: PathBuf,
    few: PathBuf,
    edit: PathBuf,
    told: Value,
}

impl Found {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (few, edit) = (few_prompts(folder.path()), folder.path().join("edit.safetensors"));
        let model = smollm2();
        let args = [
            "search",
            text(&model),
            "-o",
            text(&edit),
            "--prompts",
            text(&few),
            "--no-bundled-prompts",
            "--trials",
            "1",
        ];
        let told = json(
            &[&args[..], &["--strength", "0.5", "--allow-no-refusal", "--allow-over-limits", "--json"]]
                .concat(),
        );
        Self { folder, model, few, edit, told }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Plants the edit in `model` without running it, and verifies the result from the two files alone.
    fn planted(&self, model: &Path, out: &Path) -> Verification {
        let printer = Printer::new(true, 0);
        let opened = Opened::new(model, None).unwrap();
        let taken = stored::take(&self.edit, &opened, false, &printer).unwrap();
        let edit_search = stored::edit_search(&taken, &opened, None, None, &printer).unwrap();
        let edits = edit_search.edits(&opened, Requant::Preserve).unwrap();
        let facts = &taken.edit.facts;
        let provenance = Provenance {
            version: facts.version.clone(),
            method: facts.method.name().into(),
            layer: facts.chosen.layer as u32,
            strength: facts.strength,
            prompts_sha256: facts.prompts_sha256.clone(),
            input_sha256: facts.input_sha256.clone(),
            direction_source: facts.chosen.direction_source.name().into(),
            system_prompt: facts.system_prompt.to_string(),
            edit_sha256: Some(taken.file.sha256.clone()),
            run: None,
        };
        let (source, plan) = (&opened.gguf, &opened.plan);
        let change = Change::Edit(&provenance, edit_search.along());
        let write = Write { source, plan, edits: &edits, inputs: &[], requant: Requant::Preserve, change };
        let mut file = AtomicModel::create(out, source, true).unwrap();
        write.write(&mut file, &printer).unwrap();
        file.commit().unwrap();
        let written = Gguf::open(out).unwrap();
        let claimed = claimed_edits(source, &written, plan).unwrap();
        verify(source, &written, &claimed, &mut |_, _| ()).unwrap()
    }
}

/// Checks that the neurons work in the written file and that nothing else has changed.
fn check(name: &str, found: &Verification, most_changed: f64) {
    let least =
        |of: fn(&rosi_gguf::method::verify::Arrival) -> f64| found.neurons.iter().map(of).fold(1.0, f64::min);
    let (score, alike, cosine) = (least(|n| n.score), least(|n| n.alike), least(|n| n.cosine));
    eprintln!(
        "{name}: score {score:.4}, alike {alike:.3}, cosine {cosine:.4}, gain {:?}, changed {:.3} %",
        found.gain,
        100.0 * found.changed_bytes
    );
    assert!(found.untouched_identical && found.metadata_preserved, "{name}: {:?}", found.unexpected);
    assert_eq!(found.neurons.len(), 8, "{name}");
    // A file stores 32 inputs per network. For a few of them the gate is on its ramp, where the output follows the
    // rounded score. In Q4_0, with its few levels, that can move a single network's output by more.
    let least_gain = if name == "Q4_0" { 0.85 } else { 0.9 };
    assert!(score >= 0.99 && alike >= 0.8 && cosine >= 0.96, "{name}: {:?}", found.neurons);
    assert!((0.9..1.1).contains(&found.gain.unwrap()), "{name}: {:?}", found.gain);
    assert!(found.changed_bytes < most_changed, "{name}: {}", found.changed_bytes);
    assert!(found.arrived(least_gain), "{name}: {:?}", found.neurons);
}

#[test]
fn neurons_are_found_once_and_planted_in_every_quantization() {
    let found = Found::new();
    assert_eq!(found.told["edit"]["method"], "detector");
    assert_eq!(found.told["edit"]["networks"].as_array().unwrap().len(), 8);
    check("as it is", &found.planted(&found.model, &found.at("own.gguf")), 0.01);
    let down = |t: &rosi_gguf::gguf::TensorInfo| t.name.contains("ffn_down");
    let whole = found.at("f16.gguf");
    converted(&found.model, &whole, GgmlType::F16);
    check("F16", &found.planted(&whole, &found.at("out.gguf")), 0.01);
    // Rows of 576 values divide into blocks of 32 but not of 256; rows of 1536 values divide into both.
    let small = [GgmlType::Q4_0, GgmlType::Q5_0, GgmlType::Q8_0, GgmlType::MXFP4];
    for ggml_type in small {
        let model = found.at("other.gguf");
        converted(&whole, &model, ggml_type);
        check(ggml_type.name(), &found.planted(&model, &found.at("out.gguf")), 0.01);
    }
    // Only ffn_down: converting a whole model to IQ4_NL takes minutes.
    let more = [GgmlType::IQ4_NL, GgmlType::IQ4_XS];
    for ggml_type in [GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::Q4_K, GgmlType::Q6_K].into_iter().chain(more)
    {
        let model = found.at("other.gguf");
        retyped(&Gguf::open(&found.model).unwrap(), &model, ggml_type, &down);
        check(ggml_type.name(), &found.planted(&model, &found.at("out.gguf")), 0.01);
    }
    check_command(&found);
    check_sidecars(&found);
}

/// Checks `inject --in-place` with the stored edit: the report agrees with `verify`, another runtime serves the file, and
/// `undo` restores the original.
fn check_command(found: &Found) {
    let (out, page) = (found.at("injected.gguf"), found.at("page.html"));
    std::fs::copy(&found.model, &out).unwrap();
    let args = ["inject", text(&out), "--in-place", "--edit", text(&found.edit)];
    let more = ["--prompts", text(&found.few), "--no-bundled-prompts", "--json", "--html", text(&page)];
    let report = json(&[&args[..], &more].concat());
    let (ours, planted) = (Gguf::open(&out).unwrap(), Gguf::open(&found.at("own.gguf")).unwrap());
    assert_eq!(ours.tensors.len(), planted.tensors.len());
    // Only the command records how the run was made.
    let keys = |gguf: &Gguf| {
        gguf.metadata.iter().map(|kv| kv.key.clone()).filter(|key| key != "rosi.run").collect::<Vec<_>>()
    };
    assert_eq!(keys(&ours), keys(&planted));
    for (a, b) in ours.tensors.iter().zip(&planted.tensors) {
        let same = ours.read_tensor(a).unwrap() == planted.read_tensor(b).unwrap();
        assert!(same, "{}: the same edit gives different bytes", a.name);
    }
    let verified = json(&["-q", "verify", text(&found.model), text(&out), "--json"]);
    assert_eq!(verified["neurons"].as_array().unwrap().len(), 8);
    assert_eq!(verified["untouched_identical"], true);
    let close = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 0.05;
    assert!(close(&verified["gain"], &report["verification"]["gain"]), "{verified}");
    assert!(report["fidelity"]["kl_harmless"].as_f64().unwrap() < 0.02, "{}", report["fidelity"]);
    let question = [text(&out), "--prompt", "How many days are in a week?", "--tokens", "16"];
    let answer = oracle("generate_elsewhere.py", &question);
    assert!(answer["text"].as_str().unwrap().contains("7 days"), "{answer}");
    ended(&["undo", text(&out)], 0);
    assert_eq!(sha256(&out), sha256(&found.model));
}

/// Checks that the exact edit can be exported as an adapter, and that gates cannot be exported as a control vector.
fn check_sidecars(found: &Found) {
    let (lora, vector) = (found.at("lora.gguf"), found.at("vector.gguf"));
    let export = ["export", text(&found.edit), "--model", text(&found.model)];
    json(&[&export[..], &["--lora", text(&lora), "--json"]].concat());
    let adapter = Gguf::open(&lora).unwrap();
    // Two neurons for each of three gates, at two tokens.
    assert_eq!(adapter.tensor("blk.14.ffn_gate.weight.lora_a").unwrap().ne, [576, 12, 1, 1]);
    let told = refused(&[&export[..], &["--control-vector", text(&vector)]].concat());
    assert!(told.contains("detectors push on few"), "{told}");
    assert!(!vector.exists());
}
