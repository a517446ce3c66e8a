//! The real models, which `scripts/test` downloads.

use std::path::PathBuf;

use super::run::variable;

pub fn smollm2() -> PathBuf {
    variable("ROSI_TEST_MODEL_SMOLLM2")
}

pub fn qwen() -> PathBuf {
    variable("ROSI_TEST_MODEL_QWEN")
}

pub fn gemma3() -> PathBuf {
    variable("ROSI_TEST_MODEL_GEMMA3")
}
