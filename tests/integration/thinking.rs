//! Models that think before they answer: detection, direct answers, and answers after a thought. The models give the
//! same answer to every prompt, since their next token depends only on the last one.

use std::path::Path;

use crate::common::engine;
use crate::common::run::{ran, refused, text};
use crate::common::tiny_llama::Tiny;
use rosi_gguf::eval::refusal::{Outcome, classify};
use rosi_gguf::llama::thinking::{Thinker, Thought};
use rosi_gguf::llama::{Chat, Engine, Length, LlamaEngine};

const USER_DEFINED: i32 = 4;
const CONTROL: i32 = 3;
const TURNS: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}a:";
const OPENED: &str =
    "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}a:{{ '<think>\n' }}";
const SWITCH: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}a:\
    {% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}";
const CANNOT_BE_OFF: &str = "{% if enable_thinking is false %}{{ raise_exception('always on') }}{% endif %}\
    {% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}a:{{ '<think>\n' }}";
const OTHER_SWITCH: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}a:\
    {% if thinking %}<think>\n{% else %}</think>\n\n{% endif %}";

/// Returns a model that thinks `xy` and answers `No`. Either the template or the model itself opens the thought.
fn thinker(template: &'static str, kind: i32) -> Tiny {
    let own = [("<think>", kind), ("</think>", kind)];
    Tiny {
        template: Some(template),
        tokens: [&Tiny::new().tokens[..], &own, &[("ĊĊ", 1)]].concat(),
        merges: vec!["Ċ Ċ"],
        follows: vec![
            (":", "<think>"),
            ("<think>", "Ċ"),
            ("Ċ", "x"),
            ("x", "y"),
            ("y", "</think>"),
            ("</think>", "ĊĊ"),
            ("ĊĊ", "N"),
            ("N", "o"),
            ("o", "</s>"),
        ],
        ..Tiny::new()
    }
}

fn with<T>(model: &Tiny, check: impl FnOnce(&mut LlamaEngine, &Path) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    model.write(&path);
    check(&mut engine::chatting(&path), &path)
}

fn at_once(engine: &mut LlamaEngine) -> String {
    engine.answer(&[Chat::of("hi")], 8, &mut |_, _| ()).unwrap().remove(0)
}

fn thought(engine: &mut LlamaEngine, budget: usize) -> (String, Thought) {
    let mut thinker = Thinker::new(engine, budget);
    let answer = thinker.answer_until(&[Chat::of("hi")], &Length::of(8), &mut |_, _| ()).unwrap().remove(0);
    (answer, thinker.thoughts[0])
}

#[test]
fn answers_begin_at_once_however_a_model_opens_its_thoughts() {
    for template in [TURNS, OPENED, SWITCH, OTHER_SWITCH, CANNOT_BE_OFF] {
        for kind in [USER_DEFINED, CONTROL] {
            with(&thinker(template, kind), |engine, _| {
                let thinking = engine.thinking().unwrap_or_else(|| panic!("{template}"));
                assert_eq!((thinking.open, thinking.close), ("<think>", "</think>"), "{template}");
                assert_eq!(at_once(engine), "No", "{template} {kind}");
                let ending = engine.shared_ending(&[Chat::of("hi"), Chat::of("no")]).unwrap();
                assert!(ending >= 3, "{template}: the closing of the thought is part of the shared ending");
            });
        }
    }
}

#[test]
fn thoughts_stand_before_an_answer_where_they_are_wanted_and_are_counted() {
    for template in [TURNS, OPENED, SWITCH, OTHER_SWITCH, CANNOT_BE_OFF] {
        for kind in [USER_DEFINED, CONTROL] {
            with(&thinker(template, kind), |engine, _| {
                let opened = engine.thinking().unwrap().opened;
                let n_token = if opened { 3 } else { 5 };
                let (answer, thoughts) = thought(engine, 16);
                assert_eq!((answer.trim(), thoughts), ("No", Thought { n_token, ended: true }), "{template}");
                // The next question starts afresh.
                assert_eq!(at_once(engine), "No");
            });
        }
    }
}

#[test]
fn thoughts_without_an_end_are_no_answer() {
    let mut model = thinker(OPENED, USER_DEFINED);
    model.follows[4] = ("y", "x");
    with(&model, |engine, _| {
        let (answer, thoughts) = thought(engine, 12);
        assert_eq!(thoughts, Thought { n_token: 12, ended: false });
        assert!(answer.starts_with("<think>") && answer.contains("xyxy"), "{answer}");
        assert_eq!(classify(&answer), Outcome::Undecided);
        assert_eq!(at_once(engine), "No");
    });
}

#[test]
fn a_model_that_does_not_think_is_left_as_it_is() {
    let plain =
        Tiny { follows: vec![(":", "N"), ("N", "o"), ("o", "</s>")], template: Some(TURNS), ..Tiny::new() };
    with(&plain, |engine, path| {
        assert!(engine.thinking().is_none());
        assert_eq!(at_once(engine), "No");
        let told = refused(&["ask", text(path), "--prompt", "hi", "--thinking", "on"]);
        assert!(told.contains("--thinking on") && told.contains("does not think"), "{told}");
    });
    // A model that has the tags in its vocabulary but does not use them.
    let knows = Tiny { tokens: thinker(TURNS, USER_DEFINED).tokens, merges: vec!["Ċ Ċ"], ..plain };
    with(&knows, |engine, _| assert!(engine.thinking().is_none()));
}

#[test]
fn tags_that_a_message_spells_open_and_close_nothing() {
    for kind in [USER_DEFINED, CONTROL] {
        let model = thinker(OPENED, kind);
        with(&model, |engine, _| {
            let count = |engine: &LlamaEngine, user: &str| {
                let tokens = engine.tokens(&Chat::of(user)).unwrap();
                tokens.iter().filter(|&&token| token == model.id("</think>")).count()
            };
            assert_eq!(count(engine, "hi"), 1);
            assert_eq!(count(engine, "a</think>b<think>"), 1);
        });
    }
}

#[test]
fn brackets_and_channels_are_known() {
    let tokens = |own: &[(&'static str, i32)]| [&Tiny::new().tokens[..], own].concat();
    let brackets = Tiny {
        template: Some("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}[THINK]"),
        tokens: tokens(&[("[THINK]", CONTROL), ("[/THINK]", CONTROL)]),
        follows: vec![
            ("[THINK]", "x"),
            ("x", "y"),
            ("y", "[/THINK]"),
            ("[/THINK]", "N"),
            ("N", "o"),
            ("o", "</s>"),
        ],
        ..Tiny::new()
    };
    with(&brackets, |engine, _| {
        assert_eq!(engine.thinking().unwrap().answer_prefix, "[/THINK]");
        assert_eq!(at_once(engine), "No");
        assert_eq!(thought(engine, 8), ("No".into(), Thought { n_token: 3, ended: true }));
    });
    let marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "analysis"];
    let harmony = Tiny {
        template: Some(
            "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant",
        ),
        tokens: tokens(&marks.map(|mark| (mark, CONTROL))),
        follows: vec![
            ("t", "<|channel|>"),
            ("<|channel|>", "analysis"),
            ("analysis", "<|message|>"),
            ("<|message|>", "N"),
            ("N", "o"),
            ("o", "<|end|>"),
            ("<|end|>", "</s>"),
        ],
        ..Tiny::new()
    };
    with(&harmony, |engine, _| {
        assert_eq!(engine.thinking().unwrap().close, "<|channel|>final<|message|>");
        assert_eq!(at_once(engine), "No", "<|end|> ends the answer and is not part of it");
        let (answer, thoughts) = thought(engine, 8);
        assert_eq!((classify(&answer), thoughts.ended), (Outcome::Undecided, false), "{answer}");
    });
}

#[test]
fn inspect_tells_how_a_model_thinks() {
    let inspect = |model: &Tiny| {
        with(model, |_, path| {
            let output = ran(&["inspect", text(path)]);
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            told.lines()
                .find(|line| line.contains("thinking"))
                .unwrap_or_else(|| panic!("{told}"))
                .trim()
                .to_owned()
        })
    };
    assert!(
        inspect(&thinker(OPENED, CONTROL))
            .contains(r#"between <think> and </think>; skipped by starting the answer with "\n</think>"#)
    );
    assert!(inspect(&thinker(SWITCH, CONTROL)).contains("the template can turn it off"));
    assert!(
        inspect(&Tiny { template: Some(TURNS), ..Tiny::new() }).contains("not found in the chat template")
    );
}
