//! Answers of a model, printed to the terminal and as JSON.

use std::io::Write;
use std::process::Stdio;

use crate::common::run::{command, ended, text};
use crate::common::talking::talking;

#[test]
fn no_answer_steers_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    // A random model with a vocabulary of bytes generates control characters as often as letters.
    talking("qwen2", &[], &model);
    let questions: Vec<String> = (0..24).map(|i| format!("{i}")).collect();
    let prompts: Vec<&str> = questions.iter().flat_map(|question| ["--prompt", question]).collect();
    let args = [&["ask", text(&model), "--tokens", "12", "-t", "2", "-q"][..], &prompts].concat();
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');

    let json = String::from_utf8(ended(&[&args[..], &["--json"]].concat(), 0).stdout).unwrap();
    assert!(!json.contains(steers), "{json:?}");
    let answer = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["answer"].clone();
    let answers: Vec<String> = json.lines().map(|line| answer(line).as_str().unwrap().to_owned()).collect();
    let hostile: Vec<usize> = (0..answers.len()).filter(|&i| answers[i].contains(steers)).collect();
    assert!(!hostile.is_empty(), "no answer has a control character: {answers:?}");

    let shown = String::from_utf8(ended(&args, 0).stdout).unwrap();
    assert!(!shown.contains(steers) && shown.contains("\\u{"), "{shown:?}");

    let mut chat = command(&["chat", text(&model), "--tokens", "12", "-c", "512", "-t", "2"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(chat.stdin.take().unwrap(), "{}", questions[hostile[0]]).unwrap();
    let output = chat.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !said.contains(steers) && said.contains("\\u{"), "{said:?}");
}
