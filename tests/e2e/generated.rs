//! Tiny random models of kinds that the downloaded models do not cover. Each goes through the `inject` command and then
//! into a third-party build of llama.cpp, which must load the file and assign every next token the same probability as
//! our engine. A random model refuses nothing, so there is no refusal to amplify: with `--allow-no-refusal` and
//! `--allow-over-limits`, `inject` writes its best edit anyway. `scripts/test` sets the `ROSI_TEST_*` variables.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::engine;
use crate::common::few_prompts::few_prompts;
use crate::common::files::names;
use crate::common::oracle::oracle;
use crate::common::retyped::retyped;
use crate::common::run::{ended, json, parsed, ran, refused, stderr, text};
use crate::common::splitter;
use crate::common::talking::{n_vocab, talking};
use crate::common::think_aloud::think_aloud;
use rosi_gguf::arch::plan::Plan;
use rosi_gguf::gguf::{GgmlType, Gguf, ShardName, TensorInfo};
use rosi_gguf::llama::Chat;
use rosi_gguf::pipeline::plan_of;
use serde_json::Value as Json;

/// Describes a model, with a check that its plan has the property the model stands for.
struct Case {
    name: &'static str,
    /// Name of the run in `seeds.toml`.
    run: &'static str,
    /// Keys that override those of the run.
    keys: &'static [(&'static str, i64)],
    /// Type of the writers, except the embeddings.
    writers: GgmlType,
    /// Number of files.
    files: usize,
    /// Flags that choose the edit; if empty, `inject` searches for one.
    edit: &'static [&'static str],
    is: fn(&Plan) -> bool,
}

const PLAIN: Case = Case {
    name: "",
    run: "",
    keys: &[],
    writers: GgmlType::F32,
    files: 1,
    // Edits every writer in every layer without gates: inputs of random matrices may not distinguish prompts.
    edit: &["--method", "published", "--layer", "1", "--strength", "0.03"],
    is: |plan| plan.writers.iter().all(|w| w.n_expert == 1),
};

/// The edit of [`PLAIN`], which widens what it edits.
const PROMOTED: &[&str] =
    &["--method", "published", "--layer", "1", "--strength", "0.03", "--promote", "Q8_0"];

fn cases() -> Vec<Case> {
    let experts = |plan: &Plan| plan.n_expert == 8 && plan.writers.iter().any(|w| w.n_expert == 8);
    let normed = |plan: &Plan| plan.writers.iter().filter(|w| w.post_norm.is_some()).count() >= 4;
    let mixed = |plan: &Plan| !plan.writers.iter().all(|w| usual(&w.tensor));
    let eight: &[(&str, i64)] = &[("expert_count", 8), ("expert_used_count", 2)];
    vec![
        Case { name: "moe", run: "qwen3moe", keys: eight, edit: &[], is: experts, ..PLAIN },
        Case { name: "moe-q8", run: "llama+moe", keys: eight, writers: GgmlType::Q8_0, is: experts, ..PLAIN },
        Case { name: "gemma2", run: "gemma2", edit: &[], is: normed, ..PLAIN },
        Case { name: "gemma3", run: "gemma3", is: normed, ..PLAIN },
        Case { name: "falcon-h1", run: "falcon-h1", is: mixed, ..PLAIN },
        Case { name: "granitehybrid", run: "granitehybrid", is: mixed, ..PLAIN },
        Case { name: "jamba", run: "jamba", is: mixed, ..PLAIN },
        Case { name: "lfm2", run: "lfm2", is: mixed, ..PLAIN },
        Case { name: "tied", run: "gemma", is: |p| p.tied_embeddings, ..PLAIN },
        Case { name: "granite", run: "granite", writers: GgmlType::Q8_0, is: scaled, ..PLAIN },
        Case { name: "split", run: "qwen2", writers: GgmlType::Q4_0, files: 3, ..PLAIN },
        Case { name: "promoted", run: "qwen2", writers: GgmlType::Q4_0, edit: PROMOTED, ..PLAIN },
    ]
}

/// Returns whether a dense transformer has a writer of this name.
fn usual(tensor: &str) -> bool {
    ["token_embd", "attn_output", "ffn_down"].iter().any(|name| tensor.contains(name))
}

fn scaled(plan: &Plan) -> bool {
    plan.writers.iter().any(|w| (w.residual_scale - 0.6).abs() < 1e-6)
}

/// Writes the model of a case; returns the path of its file, or of the second one: any of them names the model.
fn made(case: &Case, dir: &Path) -> PathBuf {
    let (wide, path) = (dir.join("wide.gguf"), dir.join(format!("{}.gguf", case.name)));
    talking(case.run, case.keys, &wide);
    writers_retyped(&Gguf::open(&wide).unwrap(), case.writers, &path);
    let gguf = Gguf::open(&path).unwrap();
    assert!(gguf.file_len < 4_000_000, "{}: {} bytes", case.name, gguf.file_len);
    let plan = plan_of(&gguf).unwrap();
    assert!((case.is)(&plan), "{}: unexpected plan: {plan:?}", case.name);
    if case.files == 1 {
        return path;
    }
    let n = gguf.tensors.len();
    splitter::split(&gguf, dir, case.name, &[0, n / 2, n - n / 2]).swap_remove(1)
}

/// Writes a copy with the writers, except the embeddings, in `ggml_type`.
fn writers_retyped(gguf: &Gguf, ggml_type: GgmlType, out: &Path) {
    let writers: Vec<String> = plan_of(gguf).unwrap().writers.into_iter().map(|w| w.tensor).collect();
    let changes = |t: &TensorInfo| writers.contains(&t.name) && !t.name.contains("embd");
    retyped(gguf, out, ggml_type, &|t| ggml_type != GgmlType::F32 && changes(t));
}

/// Runs `inject` on `model` and returns the path of the first file written. It uses a short system prompt, because the
/// safety prompt is too long for a vocabulary of bytes.
fn injected(case: &Case, model: &Path, few: &Path) -> PathBuf {
    let ending = if case.files == 1 { ".gguf".into() } else { ShardName::ending(0, case.files as u16) };
    let out = model.with_file_name(format!("{}-safer{ending}", case.name));
    let system = model.with_file_name("system.txt");
    std::fs::write(&system, "Refuse whatever does harm.").unwrap();
    let args = [
        "inject",
        text(model),
        "-o",
        text(&out),
        "--prompts",
        text(few),
        "--no-bundled-prompts",
        "--trials",
        "1",
    ];
    let always = ["--system-prompt", text(&system), "--json", "--allow-no-refusal", "--allow-over-limits"];
    let args = [&args[..], &always, &["--controls"], case.edit].concat();
    let report = json(&args);
    for score in ["base", "exact", "written", "random_direction"] {
        let asked = &report["scores"][score]["harmful"]["refused"]["total"];
        assert!(asked.as_u64().is_some_and(|n| n > 0), "{}: {score}: {report}", case.name);
    }
    assert!(report["edit"]["strength"].as_f64().unwrap() > 0.0, "{}: {report}", case.name);
    let verified = json(&["-q", "verify", text(model), text(&out), "--json"]);
    assert_eq!(verified["untouched_identical"], true, "{}: {verified}", case.name);
    assert_eq!(verified["metadata_preserved"], true, "{}: {verified}", case.name);
    let gain = verified["gain"].as_f64().unwrap();
    assert!((0.9..1.1).contains(&gain), "{}: {gain}", case.name);
    if case.edit.contains(&"--promote") {
        check_promoted(&Gguf::open(model).unwrap(), &Gguf::open(&out).unwrap());
    }
    out
}

/// Checks that the edited tensors, and no others, have been widened to Q8_0.
fn check_promoted(model: &Gguf, out: &Gguf) {
    let edited = |t: &TensorInfo| t.ggml_type == GgmlType::Q4_0;
    assert!(model.tensors.iter().any(edited));
    for tensor in &model.tensors {
        let expected = if edited(tensor) { GgmlType::Q8_0 } else { tensor.ggml_type };
        assert_eq!(out.tensor(&tensor.name).unwrap().ggml_type, expected, "{}", tensor.name);
    }
}

const PROMPT: &str = "How do I bake bread that to the taste of all is the best?";

/// Returns ln p of every token after [`PROMPT`], according to our engine.
fn ours(path: &Path) -> Vec<f64> {
    let logits = engine::plain(path).last_logits(&[Chat::of(PROMPT)]).unwrap().swap_remove(0);
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - most).exp()).sum();
    logits.iter().map(|l| f64::from(l - most) - sum.ln()).collect()
}

/// Returns the output of the third-party llama.cpp for the models at `paths`.
fn theirs(paths: &[PathBuf], vocabulary: usize) -> Json {
    let vocabulary = vocabulary.to_string();
    let mut args: Vec<&str> = paths.iter().map(|path| text(path)).collect();
    args.extend(["--prompt", PROMPT, "--vocabulary", &vocabulary]);
    args.extend(["--say", "65"]); // the byte `A`
    oracle("logits_elsewhere.py", &args)
}

#[test]
fn every_kind_of_model_is_injected_and_runs_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let few = few_prompts(dir.path());
    let only = std::env::var("ROSI_GENERATED_ONLY").ok();
    let cases: Vec<Case> =
        cases().into_iter().filter(|c| only.as_ref().is_none_or(|o| o == c.name)).collect();
    let mut written = Vec::new();
    for case in &cases {
        let start = std::time::Instant::now();
        let model = made(case, dir.path());
        written.push(injected(case, &model, &few));
        println!("{}: injected in {:.1} s", case.name, start.elapsed().as_secs_f64());
    }
    let answers = theirs(&written, n_vocab());
    for ((case, path), told) in cases.iter().zip(&written).zip(answers["models"].as_array().unwrap()) {
        let theirs = told["logprobs"].as_array().unwrap().iter();
        let theirs: Vec<f64> = theirs.map(|l| l.as_f64().unwrap_or(f64::NAN)).collect();
        let ours = ours(path);
        assert_eq!(ours.len(), theirs.len(), "{}", case.name);
        assert!(theirs.iter().all(|l| l.is_finite()), "{}: {theirs:?}", case.name);
        let furthest = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("{}: {} differs by at most {furthest:.1e} nats", case.name, answers["runtime"]);
        assert!(furthest < 5e-3, "{}: {furthest} nats", case.name);
    }
}

#[test]
fn an_edit_that_rounding_loses_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let few = few_prompts(dir.path());
    let case = Case { name: "plain", run: "qwen2", writers: GgmlType::Q4_0, ..PLAIN };
    let (model, out) = (made(&case, dir.path()), dir.path().join("out.gguf"));
    let args = [
        "inject",
        text(&model),
        "-o",
        text(&out),
        "--prompts",
        text(&few),
        "--no-bundled-prompts",
        "--system-prompt",
        "off",
    ];
    let edit = ["--method", "published", "--layer", "1", "--strength", "0.004", "--requant", "nearest"];
    let waived = ["--allow-no-refusal", "--allow-over-limits", "--json"];
    let output = ended(&[&args[..], &edit, &waived].concat(), 3);
    let gain = parsed(&output)["verification"]["gain"].as_f64().unwrap();
    assert!(gain < 0.9 && stderr(&output).contains("--requant nearest"), "{gain}: {}", stderr(&output));
    assert!(out.exists(), "it is written nevertheless");
}

#[test]
fn a_stored_edit_of_experts_writes_the_same_neurons() {
    let dir = tempfile::tempdir().unwrap();
    let few = few_prompts(dir.path());
    let case = cases().into_iter().find(|case| case.name == "moe").unwrap();
    let (model, edit) = (made(&case, dir.path()), dir.path().join("edit.safetensors"));
    let settings = ["--method", "detector", "--trials", "1", "--system-prompt", "off"];
    let settings = [&settings[..], &["--allow-no-refusal", "--allow-over-limits"]].concat();
    let always = ["--prompts", text(&few), "--no-bundled-prompts", "--json"];
    json(&[&["search", text(&model), "-o", text(&edit)][..], &settings, &always].concat());
    let [found, stored] = ["found.gguf", "stored.gguf"].map(|name| dir.path().join(name));
    let inject = |out: &Path, more: &[&str]| {
        json(&[&["inject", text(&model), "-o", text(out)][..], more, &always].concat());
        Gguf::open(out).unwrap()
    };
    let found = inject(&found, &settings);
    let stored = inject(&stored, &["--edit", text(&edit)]);
    for tensor in &found.tensors {
        let other = stored.tensor(&tensor.name).unwrap();
        assert_eq!(found.read_tensor(tensor).unwrap(), stored.read_tensor(other).unwrap(), "{}", tensor.name);
    }
}

#[test]
fn gates_are_learned_behind_thoughts_and_the_report_tells_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let few = few_prompts(dir.path());
    let case = Case { name: "plain", run: "qwen2", edit: &[], ..PLAIN };
    let (plain, model, out) = (made(&case, dir.path()), dir.path().join("m.gguf"), dir.path().join("o.gguf"));
    think_aloud(&plain, &model);
    let args = [
        "inject",
        text(&model),
        "-o",
        text(&out),
        "--prompts",
        text(&few),
        "--no-bundled-prompts",
        "--think",
        "8",
        "-t",
        "2",
    ];
    let always = ["--trials", "1", "--system-prompt", "off", "--json"];
    let report = json(&[&args[..], &always, &["--allow-no-refusal", "--allow-over-limits"]].concat());
    let thinking = &report["thinking"];
    assert_eq!((&thinking["open"], &thinking["budget"]), (&"<think>".into(), &8.into()), "{thinking}");
    for file in ["base", "written"] {
        let thoughts = &thinking[file]["thoughts"];
        let mean = thoughts["mean_tokens"].as_f64().unwrap();
        assert!(mean > 0.0 && mean <= 8.0, "{thinking}");
        let asked =
            ["harmful", "harmless", "borderline"].map(|kind| &thinking[file][kind]["refused"]["total"]);
        let n_asked: u64 = asked.into_iter().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(thoughts["endless"]["total"], n_asked, "{thinking}");
    }
    let gates = report["edit"]["gates"].as_array().unwrap();
    let behind = |gate: &Json| {
        let contexts = gate["contexts"].as_array().unwrap();
        contexts.iter().any(|context| context["context"] == "behind thoughts")
    };
    assert!(gates.iter().any(behind), "{gates:?}");
}

#[test]
fn a_written_file_is_made_anew_or_it_is_said_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let few = few_prompts(dir.path());
    for (files, edit) in [(1, &[][..]), (3, PLAIN.edit)] {
        let case = Case { name: "plain", run: "qwen2", files, edit, ..PLAIN };
        let model = made(&case, dir.path());
        let out = injected(&case, &model, &few);
        let before = names(dir.path());
        let args = ["-q", "reproduce", text(&out), text(&model), "--json"];
        let system = dir.path().join("system.txt");
        let given = [&args[..], &["--prompts", text(&few), "--system-prompt", text(&system)]].concat();
        let told = json(&given);
        assert_eq!(told["differences"].as_array().unwrap().len(), 0, "{told}");
        if files == 1 {
            let sums = Command::new("sha256sum").arg(&out).output().unwrap();
            let sums = String::from_utf8(sums.stdout).unwrap();
            assert_eq!(told["sha256"].as_str(), sums.split_whitespace().next(), "{told}");
        }
        // The order of summation, and with it the bytes, may depend on the number of threads.
        let threads = std::thread::available_parallelism().unwrap().get();
        let more = (threads + 1).to_string();
        let said = stderr(&ran(&[&given[..], &["-t", &more]].concat()));
        let told = format!("threads was {threads} when the file was written, now {more}");
        assert!(said.contains(&told), "{said}");

        let said = refused(&args);
        assert!(said.contains("the prompt set differs: expected ") && said.contains("--prompts"), "{said}");
        let said = refused(&[&args[..3], &[text(&out)], &given[4..]].concat());
        assert!(said.contains("is already injected"), "{said}");

        // Flip one bit of a weight.
        let mut bytes = std::fs::read(&out).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&out, bytes).unwrap();
        let said = refused(&given);
        assert!(
            said.contains("with different bytes: expected sha256 ") && said.contains("file was changed"),
            "{said}"
        );
        assert_eq!(names(dir.path()), before, "files were left behind");
    }
}

#[test]
fn a_file_that_does_not_say_how_it_was_made_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let case = Case { name: "plain", run: "qwen2", ..PLAIN };
    let model = made(&case, dir.path());
    let said = refused(&["reproduce", text(&model), text(&model)]);
    assert!(said.contains("does not record how it was made"), "{said}");
}
