//! Every architecture that llama.cpp knows, as a tiny random model: the matrices that `patches/*.toml`
//! names beside those that the running graph adds to its residual, and the same edit in the file and
//! as an adapter. No file is fetched; `ROSI_PROOF_ONLY=llama,gemma3` runs some of them.

mod architectures;
#[path = "common/write_edited.rs"]
mod write_edited;

use std::collections::VecDeque;
use std::sync::Mutex;

use architectures::child::{self, Outcome};
use architectures::seeds::{Seeds, architecture};
use architectures::table::{self, Verdict};

/// Processes at a time.
const WORKERS: usize = 2;

#[test]
fn one_architecture() {
    child::child();
}

fn run_all(seeds: &Seeds) -> Vec<Outcome> {
    let only = std::env::var("ROSI_PROOF_ONLY").ok();
    let only: Option<Vec<&str>> = only.as_deref().map(|list| list.split(',').collect());
    let wanted = |run: &&String| only.as_ref().is_none_or(|o| o.contains(&architecture(run)) || o.contains(&run.as_str()));
    let runs: VecDeque<String> = seeds.run.keys().filter(wanted).cloned().collect();
    let kept = std::env::var_os("ROSI_PROOF_KEEP").map(std::path::PathBuf::from);
    let own = tempfile::tempdir().unwrap();
    let dir = kept.as_deref().unwrap_or(own.path());
    let (runs, outcomes) = (Mutex::new(runs), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| loop {
                let Some(run) = runs.lock().unwrap().pop_front() else { break };
                let outcome = match &seeds.run[&run].skip {
                    Some(reason) => Outcome { run, stage: "seed".into(), error: Some(reason.clone()), ..Outcome::default() },
                    None => {
                        let place = dir.join(&run);
                        let outcome = child::start(&run, &place);
                        if kept.is_none() {
                            std::fs::remove_dir_all(&place).unwrap();
                        }
                        outcome
                    }
                };
                outcomes.lock().unwrap().push(outcome);
            });
        }
    });
    outcomes.into_inner().unwrap()
}

#[test]
fn files_and_graphs_agree() {
    let seeds = Seeds::load();
    let mut outcomes = run_all(&seeds);
    outcomes.sort_by(|a, b| a.run.cmp(&b.run));
    println!("{}", table::printed(&outcomes));
    let wrong: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| {
            let (verdict, why) = table::verdict(outcome);
            (verdict == Verdict::Wrong).then(|| format!("{}: {why}", outcome.run))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
