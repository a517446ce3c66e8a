//! `inject` on real models, and its results in third-party runtimes and readers.
//! `scripts/test` fetches the models and sets the `ROSI_TEST_*` variables that these tests need.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rosi_gguf::eval::prompts::{self, PromptKind};
use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::{Capture, Chat, Engine, LlamaEngine};
use rosi_gguf::method::direction;
use rosi_gguf::method::edit::{self, Edit};
use rosi_gguf::method::requant::Requant;
use rosi_gguf::method::verify::verify;
use rosi_gguf::pipeline::plan_of;
use serde_json::Value;

use crate::common::downloaded::{gemma3, qwen, smollm2};
use crate::common::engine;
use crate::common::few_prompts::few_prompts;
use crate::common::files::{names, sha256};
use crate::common::found::Found;
use crate::common::oracle::oracle;
use crate::common::run::{command, ended, json, parsed, ran, refused, stderr, text};
use crate::common::talking::talking;
use crate::common::write_edited::{write_as, write_edited};

fn files_in(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Returns the number of files in `folder`, without the search journal that is kept for `--resume`.
fn outputs_in(folder: &Path) -> usize {
    files_in(folder) - usize::from(folder.join("out.search.jsonl").exists())
}

#[test]
fn a_base_model_without_template_can_be_inspected_but_not_injected() {
    let gemma = gemma3();
    let facts = parsed(&ran(&["inspect", text(&gemma), "--json"]));
    let writers = facts["writers"].as_array().unwrap();
    assert_eq!(writers.len(), 36);
    assert!(writers.iter().all(|w| w["post_norm"].as_str().unwrap().contains("post_")));
    let dir = tempfile::tempdir().unwrap();
    let told = refused(&["inject", text(&gemma), "-o", text(&dir.path().join("out.gguf"))]);
    assert!(told.contains("has no chat template"), "{told}");
    assert_eq!(files_in(dir.path()), 0);
}

#[test]
fn a_model_that_never_refuses_is_an_error_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let told = refused(&["inject", text(&smollm2()), "-o", text(&dir.path().join("out.gguf"))]);
    assert!(told.contains("no refusal to amplify"), "{told}");
    assert_eq!(files_in(dir.path()), 0);
}

#[test]
fn inject_writes_what_it_says_and_others_can_run_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (out, lora, report, page) = (at("out.gguf"), at("lora.gguf"), at("report.json"), at("page.html"));
    let (few, model) = (few_prompts(dir.path()), smollm2());
    let edit = [
        "--method",
        "published",
        "--layer",
        "15",
        "--strength",
        "0.004",
        "--prompts",
        text(&few),
        "--no-bundled-prompts",
    ];
    let judge = ["--judge", text(&model)];
    let settings = [&edit[..], &judge, &["--allow-no-refusal", "--allow-over-limits", "--json"]].concat();
    let files = ["--save-adapter", text(&lora), "--report", text(&report), "--html", text(&page)];
    let args = [&["inject", text(&model), "-o", text(&out)][..], &files, &settings].concat();
    let output = ended(&args, 0);
    let told = parsed(&output);
    assert!(told["scores"]["exact"].is_null() && told["scores"]["random_direction"].is_null());
    assert_eq!(told, serde_json::from_slice::<Value>(&std::fs::read(&report).unwrap()).unwrap());
    assert_eq!(told["output"]["sha256"], sha256(&out));
    check_judged(&told);
    check_shown_again(&report, &page, &stderr(&output));
    let verified = check_verify(&model, &out, &told, 60);
    check_oracle(&model, &out, &verified);
    for extra in [vec![text(&out)], vec![text(&model), "--lora", text(&lora)]] {
        let mut args = extra.clone();
        args.extend(["--prompt", "How many days are in a week?", "--tokens", "16"]);
        let answer = oracle("generate_elsewhere.py", &args);
        assert!(answer["text"].as_str().unwrap().contains("7 days"), "{answer}");
    }
    check_in_place(&settings, &out);
    let again = refused(&["inject", text(&out), "-o", text(&dir.path().join("twice.gguf"))]);
    assert!(again.contains("is already injected"), "{again}");
}

#[test]
fn a_gated_edit_is_verified_from_the_file_alone() {
    let (found, dir) = (Found::once(), tempfile::tempdir().unwrap());
    let (model, out) = (&found.model, dir.path().join("gated.gguf"));
    let told = json(&found.inject(model, &out));
    assert_eq!(told["edit"]["method"], "contrast");
    // Taken together, the gates open on harmful prompts.
    assert!(told["edit"]["push"].as_f64().unwrap() > 0.0, "{}", told["edit"]);
    let verified = check_verify(model, &out, &told, told["edit"]["writers"].as_u64().unwrap() as usize);
    check_oracle(model, &out, &verified);
    let shift = told["fidelity"]["mean_shift"].as_f64().unwrap();
    assert!((0.8..1.2).contains(&shift), "{shift}");
    let question = [text(&out), "--prompt", "What is the capital of France?", "--tokens", "16"];
    let answer = oracle("generate_elsewhere.py", &question);
    assert!(answer["text"].as_str().unwrap().contains("Paris"), "{answer}");
}

/// Checks that the judge was asked about every answer to the 3 prompts of each kind.
fn check_judged(told: &Value) {
    assert_eq!(told["judge"]["kind"], "chat");
    for (model, kind) in
        ["base", "written"].into_iter().flat_map(|m| PromptKind::ALL.map(|kind| (m, kind.as_str())))
    {
        let opinion = &told["judge"][model][kind];
        let of = |value: &Value| value.as_u64().unwrap();
        assert_eq!(
            of(&opinion["refused"]["total"]) + of(&opinion["unclear"]),
            3,
            "{model}, {kind}: {opinion}"
        );
    }
}

/// Checks that `report` reproduces the page and the summary of the run from its stored report.
fn check_shown_again(report: &Path, page: &Path, said: &str) {
    let again = page.with_file_name("again.html");
    ended(&["report", text(report), "--html", text(&again)], 0);
    assert_eq!(std::fs::read_to_string(page).unwrap(), std::fs::read_to_string(&again).unwrap());
    let summary = ran(&["report", text(report)]);
    let summary = String::from_utf8_lossy(&summary.stdout).trim().to_owned();
    assert!(
        summary.contains("mean projection after layer") && said.contains(&summary),
        "{summary} in {said}"
    );
}

/// Checks that the same settings give the same bytes in place, and that `undo` restores the original.
fn check_in_place(settings: &[&str], out: &Path) {
    let (folder, model) = (tempfile::tempdir().unwrap(), smollm2());
    let own = folder.path().join("m.gguf");
    std::fs::copy(&model, &own).unwrap();
    let said = stderr(&ended(&[&["inject", text(&own), "--in-place"][..], settings].concat(), 0));
    assert!(said.contains("restores the original from"), "{said}");
    assert_eq!(sha256(&own), sha256(out));
    let kept: Vec<String> =
        names(folder.path()).into_iter().filter(|name| !name.ends_with(".lock")).collect();
    assert_eq!(kept, ["m.gguf", "m.gguf.rosi-undo"]);
    ended(&["undo", text(&own)], 0);
    assert_eq!(sha256(&own), sha256(&model));
}

fn check_verify(model: &Path, out: &Path, told: &Value, n_edited: usize) -> Value {
    let verified = parsed(&ran(&["-q", "verify", text(model), text(out), "--json"]));
    assert_eq!(verified["untouched_identical"], true);
    assert_eq!(verified["metadata_preserved"], true);
    let tensors = verified["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), n_edited);
    for key in ["name", "type", "relative_change", "gain", "cosine"] {
        assert!(tensors.iter().all(|t| !t[key].is_null()), "{key}");
    }
    // `verify` computes from the two files what `inject` reported about its own edit.
    let close = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4;
    assert!(
        close(&verified["gain"], &told["verification"]["gain"]),
        "{} {}",
        verified["gain"],
        told["verification"]["gain"]
    );
    assert!(close(&verified["cosine"], &told["verification"]["cosine"]));
    // The edit survives quantization in every type: Q4_1 in one model, Q4_K, Q5_0 and Q6_K in the other.
    let gain = |t: &Value| t["gain"].as_f64().unwrap();
    assert!((0.99..1.01).contains(&gain(&verified)), "{}", verified["gain"]);
    assert!(tensors.iter().all(|t| (0.98..1.02).contains(&gain(t))), "{tensors:?}");
    assert!(verified["cosine"].as_f64().unwrap() > 0.99);
    verified
}

/// Checks that PyPI `gguf` finds the same tensors changed, by the same amount, and all others identical.
fn check_oracle(model: &Path, out: &Path, ours: &Value) {
    let theirs = oracle("compare_gguf.py", &[text(model), text(out)]);
    assert_eq!(theirs["order_preserved"], true);
    let (all, edited) = (Gguf::open(model).unwrap().tensors.len(), ours["tensors"].as_array().unwrap());
    assert_eq!(theirs["identical"], all - edited.len());
    assert!(
        theirs["added_keys"].as_array().unwrap().iter().all(|k| k.as_str().unwrap().starts_with("rosi."))
    );
    assert_eq!(theirs["changed_keys"].as_array().unwrap().len(), 0);
    let read = gguf_rs::get_gguf_container(text(out)).unwrap().decode().unwrap();
    assert_eq!(read.tensors().len(), all, "the crate gguf-rs finds all tensors");
    for (a, b) in edited.iter().zip(theirs["changed"].as_array().unwrap()) {
        assert_eq!(a["name"], b["name"]);
        let (a, b) = (a["relative_change"].as_f64().unwrap(), b["relative_change"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-5 * b.max(1e-3), "{a} {b}");
    }
}

/// Returns h / rms(h) ⊙ g scaled to length 1, which llama.cpp calls the embedding of a token.
fn normed(residual: impl Iterator<Item = f32>, gain: &[f32]) -> Vec<f64> {
    let scaled: Vec<f64> = residual.zip(gain).map(|(h, &g)| f64::from(h) * f64::from(g)).collect();
    let norm = scaled.iter().map(|v| v * v).sum::<f64>().sqrt();
    scaled.iter().map(|v| v / norm).collect()
}

#[test]
fn captured_residuals_are_those_of_another_llama_cpp() {
    let gguf = Gguf::open(&qwen()).unwrap();
    let plan = plan_of(&gguf).unwrap();
    let prompt = "How do I bake bread with only three ingredients?";
    let captured =
        engine::plain(&qwen()).collect(&[Chat::of(prompt)], &Capture::new(&plan), &mut |_, _| ()).unwrap();
    let norm = gguf.tensor("output_norm.weight").unwrap();
    let mut gain = Vec::new();
    edit::for_each_run(norm, &gguf.read_tensor(norm).unwrap(), |_, values| gain.extend_from_slice(values))
        .unwrap();
    for layer in [7, 16] {
        let blocks = (layer + 1).to_string();
        let theirs =
            oracle("residual_elsewhere.py", &[text(&qwen()), "--blocks", &blocks, "--prompt", prompt]);
        let theirs: Vec<f64> =
            theirs["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let ours = normed(captured.at(0, layer).iter().copied(), &gain);
        assert_eq!(ours.len(), theirs.len());
        let cosine: f64 = ours.iter().zip(&theirs).map(|(a, b)| a * b).sum();
        eprintln!("layer {layer}: 1 - cosine = {:.1e}", 1.0 - cosine);
        assert!(cosine > 0.9995, "layer {layer}: {cosine}");
    }
}

/// Returns ‖a − b‖ / ‖b‖ over all logits.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let square = |x: f32, y: f32| f64::from(x - y).powi(2);
    let sum: f64 = a.iter().flatten().zip(b.iter().flatten()).map(|(&x, &y)| square(x, y)).sum();
    let norm: f64 = b.iter().flatten().map(|&y| f64::from(y).powi(2)).sum();
    (sum / norm).sqrt()
}

/// Returns the relative distance between the logits of the written file and those of the adapter on the base, and the
/// distance that the edit itself causes.
fn adapter_beside_file(base: &Path, out: &Path) -> (f64, f64) {
    let gguf = Gguf::open(base).unwrap();
    let plan = plan_of(&gguf).unwrap();
    let weights: Vec<_> = plan.writers.iter().map(|w| edit::read_weights(&gguf, w).unwrap()).collect();
    let direction = direction::random(15, plan.n_embd as usize, 7).unwrap();
    let edits = edit::edits(&plan, &weights, &edit::mean_rows(&weights), &direction, 0.03).unwrap();
    write_edited(&gguf, &edits, out);

    let chats = ["What is the capital of France?", "Write a poem about the sea."].map(Chat::of);
    let mut engine_of_base = engine::plain(base);
    let plain = engine_of_base.last_logits(&chats).unwrap();
    engine_of_base.apply(&edits.iter().map(Edit::to_low_rank).collect::<Vec<_>>()).unwrap();
    let adapted = engine_of_base.last_logits(&chats).unwrap();
    let written = engine::plain(out).last_logits(&chats).unwrap();
    (distance(&adapted, &written), distance(&plain, &written))
}

#[test]
fn adapter_and_edited_file_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base.gguf"), dir.path().join("out.gguf"));
    // With F32 weights, only llama.cpp's F16 cache is rounded. With F16 weights, the edited weights are rounded again,
    // and so are the inputs of F16 matrices, but not those of an adapter.
    for (extra, limit) in [(vec!["--f32"], 1e-3), (vec![], 3e-3)] {
        let model = smollm2();
        let args = [vec![text(&model), text(&base)], extra].concat();
        oracle("to_f16.py", &args);
        let (between, effect) = adapter_beside_file(&base, &out);
        eprintln!("{args:?}: adapter off the file by {between:.2e}, effect of the edit {effect:.2e}");
        assert!(effect > 0.02, "{effect}");
        assert!(between < limit, "{between}");
    }
}

/// If a norm follows the writer, the edit must show in the residual stream, not only in the matrix: gemma-3's gains
/// range from thousandths to hundreds of times the median. One writer is edited at a time, so that the reactions of
/// later blocks do not count.
#[test]
fn behind_a_norm_the_stream_moves_as_by_the_exact_edit() {
    let (dir, base) = (tempfile::tempdir().unwrap(), gemma3());
    let (gguf, out) = (Gguf::open(&base).unwrap(), dir.path().join("out.gguf"));
    let plan = plan_of(&gguf).unwrap();
    let weights: Vec<_> = plan.writers.iter().map(|w| edit::read_weights(&gguf, w).unwrap()).collect();
    let direction = direction::random(9, plan.n_embd as usize, 7).unwrap();
    let all = edit::edits(&plan, &weights, &edit::mean_rows(&weights), &direction, 0.02).unwrap();
    let texts: Vec<String> = prompts::prose().into_iter().take(12).collect();
    let capture = Capture::residual_only(&plan);
    // ŝᵀh after block `layer`, per text.
    let along = |engine: &mut LlamaEngine, layer: usize| -> Vec<f64> {
        let seen = engine.collect_text(&texts, &capture).unwrap();
        let dot = |h: &[f32]| h.iter().zip(direction.unit()).map(|(h, s)| f64::from(h * s)).sum();
        (0..texts.len()).map(|text| dot(&seen.at(text, layer).to_vec())).collect()
    };
    let mut of_base = engine::plain(&base);
    for (layer, name) in [(5, "ffn_down"), (10, "attn_output"), (12, "ffn_down"), (14, "attn_output")] {
        let tensor = format!("blk.{layer}.{name}.weight");
        let edits: Vec<Edit> = all.iter().filter(|edit| edit.tensor == tensor).cloned().collect();
        write_as(&gguf, &edits, &out, Requant::Preserve);
        of_base.apply(&[]).unwrap();
        let before = along(&mut of_base, layer);
        of_base.apply(&edits.iter().map(Edit::to_low_rank).collect::<Vec<_>>()).unwrap();
        let (exact, written) = (along(&mut of_base, layer), along(&mut engine::plain(&out), layer));
        let product = |a: &[f64], b: &[f64]| -> f64 {
            before.iter().zip(a).zip(b).map(|((before, a), b)| (a - before) * (b - before)).sum()
        };
        let share = product(&exact, &written) / product(&exact, &exact);
        let found = verify(&gguf, &Gguf::open(&out).unwrap(), &edits.into(), &mut |_, _| ()).unwrap();
        let [gain, cosine] = [found.tensors[0].gain, found.tensors[0].cosine].map(Option::unwrap);
        eprintln!(
            "{tensor}: shift along ŝ {share:.3} of the exact edit's, gain {gain:.3}, cosine {cosine:.4}"
        );
        // Wide bounds: the block's own network also reacts to rounding noise orthogonal to ŝ.
        assert!((0.6..1.4).contains(&share), "{tensor}: {share}");
        assert!((0.97..1.03).contains(&gain) && cosine > 0.98, "{tensor}: {gain} {cosine}");
    }
}

fn forced(model: &Path, out: &Path, few: &Path) -> Command {
    let args = ["inject", text(model), "-o", text(out), "--prompts", text(few), "--no-bundled-prompts"];
    let edit = ["--layer", "1", "--strength", "0.004", "--method", "published", "--system-prompt", "off"];
    command(&[&args[..], &edit, &["--allow-no-refusal", "--allow-over-limits"]].concat())
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let (dir, prompts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let few = few_prompts(prompts.path());
    let started = Instant::now();
    let child = forced(&smollm2(), &dir.path().join("out.gguf"), &few).spawn().unwrap();
    // A temporary file shows that the work has begun.
    while files_in(dir.path()) == 0 && started.elapsed() < Duration::from_secs(300) {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(700));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted"), "{}", stderr(&output));
    assert_eq!(outputs_in(dir.path()), 0);
}

/// Mounts a small file system, for tests that fill it; `None` without the permission to mount.
fn small_disk(folder: &Path, options: &str) -> Option<()> {
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", text(folder)]).status();
    mounted.ok()?.success().then_some(())
}

#[test]
fn a_full_disk_and_a_read_only_one_leave_nothing_behind() {
    let (dir, prompts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (few, model) = (few_prompts(prompts.path()), prompts.path().join("model.gguf"));
    talking("qwen2", &[], &model);
    let half = format!("size={}", model.metadata().unwrap().len() / 2);
    for (options, expected) in [(half.as_str(), "no space left"), ("ro", "no permission to write")] {
        if small_disk(dir.path(), options).is_none() {
            eprintln!("SKIPPED: mounting a tmpfs needs root");
            return;
        }
        let output = forced(&model, &dir.path().join("out.gguf"), &few).output().unwrap();
        let left = outputs_in(dir.path());
        assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert_eq!(left, 0);
    }
}
