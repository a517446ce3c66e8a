//! Prompts for a quick run.

use std::path::{Path, PathBuf};

use rosi_gguf::prompts::{PromptKind, PromptSet};

/// A prompt file small enough for a quick run: 12 of each kind, six to extract, three to search and to report.
pub fn few_prompts(folder: &Path) -> PathBuf {
    let set = PromptSet::bundled();
    let mut lines = String::new();
    for kind in PromptKind::ALL {
        for prompt in set.of_kind(kind).iter().step_by(8).take(12) {
            lines += &format!("{}\n", serde_json::to_string(prompt).unwrap());
        }
    }
    let path = folder.join("few.jsonl");
    std::fs::write(&path, lines).unwrap();
    path
}
