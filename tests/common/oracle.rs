//! Third-party programs whose results are compared with ours.

use std::process::Command;

use super::run::{parsed, stderr, variable};

/// Runs a script of tests/oracles with the Python interpreter of the oracles, and parses its JSON output.
pub fn oracle(script: &str, args: &[&str]) -> serde_json::Value {
    let script = variable("ROSI_TEST_ORACLES").join(script);
    let output = Command::new(variable("ROSI_TEST_PYTHON")).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    parsed(&output)
}
