//! Runs the program as users do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Returns the path in the variable `name`, which `scripts/test` sets.
pub fn variable(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    PathBuf::from(value.unwrap_or_else(|| panic!("{name} is not set: run scripts/test")))
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns a command that runs the program, through `ROSI_TEST_RUNNER` if that is set (see `use_newer_lavapipe` in
/// scripts/lib.sh).
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

/// Runs the program and returns its output, whatever its exit code.
pub fn ran(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Returns the exit code and stderr of `output`, with the path of the folder replaced.
pub fn outcome(output: &Output, folder: &Path) -> String {
    let text = stderr(output).replace(text(folder), "DIR");
    format!("exit {}\n{}", output.status.code().unwrap(), text.trim_end())
}

/// Runs the program; returns its exit code and stderr, with the path of the folder replaced.
pub fn told(args: &[&str], folder: &Path) -> String {
    outcome(&ran(args), folder)
}

/// Runs the program, which must end with exit code `code`, and returns its output.
pub fn ended(args: &[&str], code: i32) -> Output {
    let output = ran(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
    output
}

/// Runs the program, which must end with exit code 1, and returns its stderr.
pub fn refused(args: &[&str]) -> String {
    stderr(&ended(args, 1))
}

/// Parses the JSON on the stdout of `output`, whatever its exit code.
pub fn parsed(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(output)))
}

/// Runs the program, which must succeed, and parses the JSON on its stdout.
pub fn json(args: &[&str]) -> serde_json::Value {
    parsed(&ended(args, 0))
}
