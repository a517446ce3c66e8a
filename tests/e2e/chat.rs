//! A conversation over a pipe. `scripts/test` sets the `ROSI_TEST_*` variables.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn smollm2() -> PathBuf {
    std::env::var_os("ROSI_TEST_MODEL_SMOLLM2").map(PathBuf::from).expect("run scripts/test")
}

fn chat(extra: &[&str], said: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rosi-gguf"));
    command.arg("chat").arg(smollm2()).args(["--tokens", "16", "-c", "1024", "-t", "2"]).args(extra);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Ignored: a child that rejects its flags does not read its stdin.
    let _ = child.stdin.take().unwrap().write_all(said.as_bytes());
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
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
    let (told, found) = (String::from_utf8_lossy(&output.stderr).into_owned(), lines(&output));
    // The same answer after the reset: the cache holds nothing of the first turn.
    let n = first.len();
    assert_eq!((&found[..n], &found[n..2 * n]), (&first[..], &first[..]));
    assert!(found.len() > 2 * n && found[2 * n..] != without_memory[..], "{found:?}");
    assert!(told.contains("unknown command /what"), "{told}");
}

#[test]
fn another_model_answers_beside_it() {
    let other = smollm2();
    let found = lines(&chat(&["--beside", other.to_str().unwrap()], "Say hello."));
    let label = format!("[{}]", other.file_name().unwrap().to_str().unwrap());
    let half = found.len() / 2;
    assert_eq!((&found[0], &found[half]), (&label, &label));
    assert_eq!(found[..half], found[half..]);
    let refused = chat(&["--lora", other.to_str().unwrap()], "Say hello.");
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("general.type: expected adapter, found model"), "{told}");
}
