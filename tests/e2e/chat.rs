//! A conversation over a pipe. `scripts/test` sets the `ROSI_TEST_*` variables.

use std::io::Write;
use std::process::{Output, Stdio};

use crate::common::downloaded::smollm2;
use crate::common::run::{command, stderr, text};

fn chat(extra: &[&str], said: &str) -> Output {
    let model = smollm2();
    let args = ["chat", text(&model), "--tokens", "16", "-c", "1024", "-t", "2"];
    let mut child = command(&[&args[..], extra].concat()).stdin(Stdio::piped()).spawn().unwrap();
    // Ignored: a child that rejects its flags does not read its stdin.
    let _ = child.stdin.take().unwrap().write_all(said.as_bytes());
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_conversation_has_a_memory_and_can_be_reset() {
    let (question, next) = ("What is the capital of France?", "And of Italy?");
    let first = lines(&chat(&[], question));
    let without_memory = lines(&chat(&[], next));
    let said = format!("{question}\n\n/what\n/reset\n{question}\n{next}\n/quit\nnever\n");
    let output = chat(&[], &said);
    let (told, found) = (stderr(&output), lines(&output));
    // The same answer after the reset: the cache holds nothing of the first turn.
    let n = first.len();
    assert_eq!((&found[..n], &found[n..2 * n]), (&first[..], &first[..]));
    assert!(found.len() > 2 * n && found[2 * n..] != without_memory[..], "{found:?}");
    assert!(told.contains("unknown command /what"), "{told}");
}

#[test]
fn another_model_answers_beside_it() {
    let other = smollm2();
    let found = lines(&chat(&["--beside", text(&other)], "Say hello."));
    let label = format!("[{}]", other.file_name().unwrap().to_str().unwrap());
    let half = found.len() / 2;
    assert_eq!((&found[0], &found[half]), (&label, &label));
    assert_eq!(found[..half], found[half..]);
    let refused = chat(&["--lora", text(&other)], "Say hello.");
    assert_eq!(refused.status.code(), Some(1));
    let told = stderr(&refused);
    assert!(told.contains("general.type: expected adapter, found model"), "{told}");
}
