//! The program, run as users run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The path that `scripts/test` set `name` to.
pub fn variable(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    PathBuf::from(value.unwrap_or_else(|| panic!("{name} is not set: run scripts/test")))
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Through `ROSI_TEST_RUNNER`, where it is set (use_newer_lavapipe in scripts/lib.sh).
pub fn command(args: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_rosi-gguf");
    let mut command = match std::env::var_os("ROSI_TEST_RUNNER") {
        None => Command::new(program),
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(program);
            command
        }
    };
    command.args(args).stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs what must end with this code, and returns what it says.
pub fn ended(args: &[&str], code: i32) -> Output {
    let output = command(args).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
    output
}

/// Runs what must end well, and reads its JSON.
pub fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_slice(&ended(args, 0).stdout).unwrap()
}
