//! Tests every architecture that llama.cpp supports on a tiny random model: compares the matrices named in
//! `patches/*.toml` with those that the running graph adds to the residual stream, and the same edit in the file with
//! the edit as an adapter. Nothing is fetched. `ROSI_PROOF_ONLY=llama,gemma3` runs only some architectures, and
//! `ROSI_PROOF_WRITE=1` rewrites `docs/architectures-proof.md`.

mod child;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod edits;
mod experts;
mod graph;
mod neurons;
mod table;
mod walk;

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use child::Outcome;
use common::generated::seeds::{Seeds, architecture};
use rosi_gguf::arch::patches::Patches;
use table::Verdict;

/// Number of processes at a time.
const WORKERS: usize = 2;

#[test]
fn one_architecture() {
    child::child();
}

/// Performs all `wanted` runs and returns their outcomes, sorted by name.
fn run_all(seeds: &Seeds, patches: &Patches, wanted: impl Fn(&str) -> bool) -> Vec<Outcome> {
    let runs = seeds.run.keys().filter(|run| wanted(run)).cloned();
    let runs = Mutex::new(runs.collect::<VecDeque<String>>());
    let kept = std::env::var_os("ROSI_PROOF_KEEP").map(PathBuf::from);
    let own = tempfile::tempdir().unwrap();
    let dir = kept.as_deref().unwrap_or(own.path());
    let outcomes = Mutex::new(Vec::new());
    let work = || {
        while let Some(run) = { runs.lock().unwrap().pop_front() } {
            let place = dir.join(&run);
            let known = child::without_model(seeds, patches, &run);
            let outcome = known.unwrap_or_else(|| child::start(&run, &place));
            if kept.is_none() && place.exists() {
                std::fs::remove_dir_all(&place).unwrap();
            }
            outcomes.lock().unwrap().push(outcome);
        }
    };
    std::thread::scope(|scope| (0..WORKERS).for_each(|_| drop(scope.spawn(work))));
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by(|a, b| a.run.cmp(&b.run));
    outcomes
}

#[test]
fn files_and_graphs_agree() {
    let (seeds, patches) = (Seeds::load(), Patches::embedded().unwrap());
    let only = std::env::var("ROSI_PROOF_ONLY").ok();
    let only: Option<Vec<&str>> = only.as_deref().map(|list| list.split(',').collect());
    let names = |name: &str, run: &str| [run, architecture(run)].contains(&name);
    let wanted = |run: &str| only.as_ref().is_none_or(|only| only.iter().any(|name| names(name, run)));
    let outcomes = run_all(&seeds, &patches, wanted);
    for name in only.iter().flatten() {
        let has_run = outcomes.iter().any(|outcome| names(name, &outcome.run));
        assert!(has_run, "no run for {name} in tests/common/generated/seeds.toml");
    }
    println!("{}", table::printed(&outcomes));
    let wrong = outcomes.iter().filter_map(|outcome| match table::verdict(outcome) {
        Verdict::Wrong(reasons) => Some(format!("{}: {}", outcome.run, reasons.join("\n    "))),
        _ => None,
    });
    let wrong: Vec<String> = wrong.collect();
    let text = table::markdown(&outcomes);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architectures-proof.md");
    // Written before the assertion, so that the table also lists failures.
    if only.is_none() && std::env::var_os("ROSI_PROOF_WRITE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if only.is_none() {
        check_table(&path, &text);
    }
}

fn check_table(path: &Path, text: &str) {
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    let only = |ours: &str, theirs: &str| -> String {
        let theirs: HashSet<&str> = theirs.lines().collect();
        ours.lines().filter(|line| !theirs.contains(line)).map(|line| format!("    {line}\n")).collect()
    };
    assert!(
        kept == text,
        "{} is out of date (ROSI_PROOF_WRITE=1 rewrites it); expected:\n{}found:\n{}",
        path.display(),
        only(&kept, text),
        only(text, &kept)
    );
}

#[test]
fn every_architecture_has_a_run() {
    let (seeds, patches) = (Seeds::load(), Patches::embedded().unwrap());
    let runs: Vec<&str> = seeds.run.keys().map(|run| architecture(run)).collect();
    let missing: Vec<String> = patches.table().into_iter().map(|row| row.architecture).collect();
    let missing: Vec<&String> = missing.iter().filter(|name| !runs.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "no run for {missing:?} in tests/common/generated/seeds.toml");
}
