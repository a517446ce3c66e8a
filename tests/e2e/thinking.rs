//! A real model with a template that opens a thought: it answers directly, and with `--thinking on` its text counts as
//! thought until the thought ends.

use crate::common::downloaded::{qwen, smollm2};
use crate::common::engine;
use crate::common::run::{json, refused, text};
use crate::common::think_aloud::{ending_in, think_aloud};
use rosi_gguf::eval::answers::ask;
use rosi_gguf::eval::prompts::{PromptSet, Split};
use rosi_gguf::eval::{N_PREDICT, PerKind, Questions, Tally, chats};
use rosi_gguf::llama::LlamaEngine;

const PROMPTS: PerKind<usize> = PerKind { harmful: 6, harmless: 4, borderline: 2 };

fn load(template: &str) -> LlamaEngine {
    engine::on_cpu(&qwen(), 2, Some(template))
}

fn tallies(engine: &mut LlamaEngine) -> (PerKind<Tally>, Vec<String>) {
    let questions = Questions::of(&PromptSet::bundled(), Split::Report, PROMPTS);
    let mut all = Vec::new();
    let tally = questions.as_ref().map(|texts| {
        let answers = ask(engine, &chats(texts, None), N_PREDICT, &mut |_, _| ()).unwrap();
        all.extend(answers.clone());
        Tally::of(&answers)
    });
    (tally, all)
}

#[test]
fn a_model_answers_at_once_where_its_template_opens_thoughts() {
    let mut plain = load(&ending_in(&qwen(), ""));
    assert!(plain.thinking().is_none());
    let (_, plain) = tallies(&mut plain);
    for (text, open) in [
        ("<think>\n", "<think>"),
        ("{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}", "<think>"),
    ] {
        let mut engine = load(&ending_in(&qwen(), text));
        let found = engine.thinking().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(found.open, open);
        let (closed, answers) = tallies(&mut engine);
        assert!(answers.iter().all(|answer| !answer.contains(open)), "{text}: {answers:?}");
        // The tags mean nothing to this model, so its answers may differ, but it still answers.
        let told = format!("{text}: {answers:?} beside {plain:?}");
        let decided: u64 = closed.values().into_iter().map(|tally| tally.refused + tally.complied).sum();
        assert!(4 * decided >= 3 * answers.len() as u64 && closed.harmless.complied > 0, "{told}");
    }
}

#[test]
fn what_it_says_first_is_counted_as_thoughts() {
    let folder = tempfile::tempdir().unwrap();
    let (model, set) = (folder.path().join("thinks.gguf"), folder.path().join("set.jsonl"));
    think_aloud(&qwen(), &model);
    let prompts = ["What is the capital of France?", "Name three colours.", "How do I boil an egg?"];
    let rows = prompts.map(|prompt| serde_json::json!({ "prompt": prompt, "kind": "harmless" }).to_string());
    std::fs::write(&set, rows.join("\n")).unwrap();
    let args = ["eval", text(&model), "--set", text(&set), "--thinking", "on", "--think", "24"];
    let report = json(&[&args[..], &["--json", "-t", "2"]].concat());
    let harmless = &report["models"][0]["sets"][0]["kinds"]["harmless"];
    let thoughts = &harmless["thoughts"];
    assert_eq!(thoughts["endless"]["total"], 3, "{harmless}");
    let mean = thoughts["mean_tokens"].as_f64().unwrap();
    assert!(mean > 0.0 && mean <= 24.0, "{harmless}");
    // A thought that does not end gives no answer.
    let (endless, undecided) = (&thoughts["endless"]["count"], &harmless["undecided"]["count"]);
    assert!(undecided.as_u64() >= endless.as_u64(), "{harmless}");
}

#[test]
fn no_thoughts_are_asked_of_a_model_that_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (smollm2(), folder.path().join("edit.safetensors"));
    let told = refused(&["search", text(&base), "-o", text(&out), "--thinking", "on"]);
    assert!(told.contains("think"), "{told}");
    assert!(!out.exists());
}
