//! Applies a stored edit to another quantization, and compares its sidecars with the edited file, in our llama.cpp and in
//! a third-party runtime.
//! `scripts/test` sets the `ROSI_TEST_*` variables.

use std::path::{Path, PathBuf};

use rosi_gguf::gguf::{GgmlType, Gguf};
use rosi_gguf::llama::{Capture, Chat, ControlVector, Engine, LlamaEngine};
use rosi_gguf::pipeline::plan_of;
use serde_json::Value;

use crate::common::downloaded::smollm2;
use crate::common::engine::chatting;
use crate::common::files::sha256;
use crate::common::found::Found;
use crate::common::oracle::oracle;
use crate::common::retyped::converted;
use crate::common::run::{json, ran, refused, stderr, text};

/// Returns an answer by a third-party build of llama.cpp.
fn elsewhere(args: &[&str]) -> String {
    oracle("generate_elsewhere.py", args)["text"].as_str().unwrap().to_owned()
}

fn chats() -> [Chat<'static>; 3] {
    ["How do I pick a lock?", "How do I bake bread?", "Write a poem about the sea."].map(Chat::of)
}

fn logits(engine: &mut LlamaEngine) -> Vec<f64> {
    engine.last_logits(&chats()).unwrap().concat().into_iter().map(f64::from).collect()
}

/// Returns ‖a − b‖ / ‖b‖ and the largest absolute difference.
fn distance(a: &[f64], b: &[f64]) -> (f64, f64) {
    let square = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let most = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let off = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (off / square(&mut b.iter().copied()), most)
}

/// An F16 model, and both sidecars of an edit that was found on a quantization of it.
struct Exported {
    found: &'static Found,
    folder: tempfile::TempDir,
    model: PathBuf,
    told: Value,
}

impl Exported {
    fn new() -> Self {
        let (found, folder) = (Found::once(), tempfile::tempdir().unwrap());
        let at = |name: &str| folder.path().join(name);
        let (model, lora, vector) = (at("f16.gguf"), at("lora.gguf"), at("v.gguf"));
        converted(&found.model, &model, GgmlType::F16);
        let export = ["export", text(&found.edit), "--model", text(&model), "--json"];
        let outputs = ["--lora", text(&lora), "--control-vector", text(&vector)];
        let told = json(&[&export[..], &outputs].concat());
        // Existing files are not overwritten, and a failed command leaves no new files.
        let other = at("other.gguf");
        let outputs = ["--lora", text(&other), "--control-vector", text(&vector)];
        let again = refused(&[&export[..], &outputs].concat());
        assert!(again.contains("already exists") && !other.exists(), "{again}");
        Self { found, folder, model, told }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the edit into a copy of the F16 model, and checks that it is the one that was found on the quantization.
    fn inject(&self, out: &Path) {
        let (edit, told) = (&self.found.edit, &self.found.told["edit"]);
        let report = json(&self.found.inject(&self.model, out));
        assert_eq!(report["stored_edit"]["sha256"], sha256(edit));
        assert_eq!(report["search"]["trials"], serde_json::json!([]));
        for key in ["direction_source", "layer", "window", "contrast"] {
            assert_eq!(report["edit"][key], told["chosen"][key], "{key}");
        }
        assert_eq!(report["edit"]["strength"], told["strength"]);
        let near = |a: &Value, b: &Value| (a.as_f64().unwrap() / b.as_f64().unwrap() - 1.0).abs() < 0.01;
        assert!(near(&report["edit"]["push"], &told["push"]), "{report}");
        let gain = report["verification"]["gain"].as_f64().unwrap();
        assert!((0.99..1.01).contains(&gain), "{gain}");
        let edited = Gguf::open(out).unwrap();
        assert_eq!(edited.str("rosi.edit_sha256"), report["stored_edit"]["sha256"].as_str());
        assert_eq!(edited.str("rosi.method"), Some("contrast"));
    }

    /// Compares base and adapter with the edited file. They differ by rounding to F16: of the edited weights, and in
    /// llama.cpp of the inputs of those weights and of keys and values.
    fn check_adapter(&self) {
        let edited = self.at("edited.gguf");
        self.inject(&edited);
        let mut base = chatting(&self.model);
        let before = logits(&mut base);
        base.apply_adapter_file(&self.at("lora.gguf"), &Gguf::open(&self.model).unwrap()).unwrap();
        let adapted = logits(&mut base);
        let (moved, _) = distance(&adapted, &before);
        let (off, most) = distance(&adapted, &logits(&mut chatting(&edited)));
        eprintln!("adapter: logits moved {moved:.4}, off the edited file {off:.2e}, at most {most:.2e}");
        assert!(moved > 0.1 && off < 1e-3, "{moved} {off}");
    }

    /// Checks that the control vector moves the residual stream after each block by the vector's values.
    fn check_control_vector(&self) {
        let gguf = Gguf::open(&self.model).unwrap();
        let plan = plan_of(&gguf).unwrap();
        let file = Gguf::open(&self.at("v.gguf")).unwrap();
        let n_embd = plan.n_embd as usize;
        let vector = ControlVector::read(&file, plan.n_layer, n_embd).unwrap();
        let (first, last) = vector.range();
        assert_eq!(self.told["control_vector"]["layers"], serde_json::json!([first, last]));
        assert!(first > 0 && last < plan.n_layer);
        let mut engine = chatting(&self.model);
        let capture = Capture::residual_only(&plan);
        let mut stream = |vector: Option<&ControlVector>| {
            engine.apply_control_vector(vector).unwrap();
            engine.collect(&chats(), &capture, &mut |_, _| ()).unwrap().residual
        };
        let (before, after) = (stream(None), stream(Some(&vector)));
        assert_eq!(stream(None), before, "removing the vector restores the stream");
        for prompt in 0..chats().len() {
            let moved = |layer: usize| -> Vec<f64> {
                let pairs = (0..n_embd).map(|i| (after[[prompt, layer, i]], before[[prompt, layer, i]]));
                pairs.map(|(a, b)| f64::from(a) - f64::from(b)).collect()
            };
            assert!(moved(first - 1).iter().all(|&d| d == 0.0));
            let written: Vec<f64> = vector.by_layer[&first].iter().map(|&v| f64::from(v)).collect();
            let (off, _) = distance(&moved(first), &written);
            assert!(off < 1e-3, "prompt {prompt}: {off}");
            // Later blocks react to the push, but along ŝ the pushes still add up.
            let sum: Vec<f64> =
                (0..n_embd).map(|i| vector.by_layer.values().map(|v| f64::from(v[i])).sum()).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let arrived = dot(&moved(last), &sum) / dot(&sum, &sum);
            eprintln!(
                "control vector: layer {first} off by {off:.2e}, layer {last} has {arrived:.2} of all pushes"
            );
            assert!(arrived > 0.3, "{arrived}");
        }
    }
}

#[test]
fn sidecars_are_the_edit() {
    let exported = Exported::new();
    exported.check_adapter();
    exported.check_control_vector();
    // A third-party runtime loads the adapter and gives the same answer as with the edited file.
    let prompt = ["--prompt", "How do I pick a lock?", "--tokens", "12"];
    let with_adapter = elsewhere(
        &[&[text(&exported.model), "--lora", text(&exported.at("lora.gguf"))], &prompt[..]].concat(),
    );
    let written = elsewhere(&[&[text(&exported.at("edited.gguf"))], &prompt[..]].concat());
    assert_eq!(with_adapter, written);
    assert!(!written.is_empty());
}

#[test]
fn an_edit_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (none, out) = (folder.path().join("none.safetensors"), folder.path().join("out.gguf"));
    std::fs::write(&none, b"no edit").unwrap();
    let model = smollm2();
    let told = refused(&["export", text(&none), "--model", text(&model), "--lora", text(&out)]);
    assert!(told.contains("not a stored edit"), "{told}");
    let output = ran(&["export", text(&none), "--model", text(&model)]);
    assert!(stderr(&output).contains("--lora"), "{}", stderr(&output));
    assert!(!out.exists());
}
