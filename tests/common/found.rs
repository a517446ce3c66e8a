//! An edit of linear gates that is found once for all tests of a process, because a search takes a minute.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::downloaded::qwen;
use crate::common::few_prompts::few_prompts;
use crate::common::run::{json, text};

/// An edit of Qwen2.5-Coder, which refuses half of the harmful prompts: `inject` keeps no file that refuses fewer than
/// its base.
pub struct Found {
    pub model: PathBuf,
    /// The prompts of the search.
    pub few: PathBuf,
    /// The stored edit.
    pub edit: PathBuf,
    /// JSON output of the search.
    pub told: Value,
}

impl Found {
    /// Returns the edit; the first call searches for it.
    pub fn once() -> &'static Self {
        static FOUND: OnceLock<Found> = OnceLock::new();
        FOUND.get_or_init(|| {
            // A folder that the next run replaces, because statics are never dropped.
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("found");
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).unwrap();
            let (few, edit) = (few_prompts(&folder), folder.join("edit.safetensors"));
            let mut found = Self { model: qwen(), few, edit, told: Value::Null };
            found.told = json(&found.search(&found.edit, "3", &[]));
            assert!(!folder.join("edit.search.jsonl").exists(), "the journal is removed after success");
            found
        })
    }

    /// Returns the arguments of the search, with another output, number of trials and `extra` ones.
    pub fn search<'a>(&'a self, out: &'a Path, trials: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
        let args = [
            "search",
            text(&self.model),
            "-o",
            text(out),
            "--prompts",
            text(&self.few),
            "--no-bundled-prompts",
            "--json",
        ];
        let edit =
            ["--method", "contrast", "--layer", "14", "--direction-source", "plain", "--trials", trials];
        [&args[..], &edit, &["--allow-no-refusal", "--allow-over-limits", "-t", "2"], extra].concat()
    }

    /// Returns the arguments of an `inject` of this edit into `model`.
    pub fn inject<'a>(&'a self, model: &'a Path, out: &'a Path) -> Vec<&'a str> {
        let args = ["inject", text(model), "-o", text(out), "--edit", text(&self.edit)];
        [&args[..], &["--prompts", text(&self.few), "--no-bundled-prompts", "--json", "-t", "2"]].concat()
    }
}
