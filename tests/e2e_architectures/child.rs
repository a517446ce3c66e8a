//! Runs each architecture in a process of its own, because ggml aborts the process if a seed is invalid.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rosi_gguf::arch::patches::{PatchError, Patches};
use rosi_gguf::arch::plan::{Plan, PlanError};
use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::ffi::Model;
use rosi_gguf::llama::offload::Offload;
use serde::{Deserialize, Serialize};

use super::compare::{differences, left, listed};
use super::edits::{self, Agreement};
use super::graph::Graph;
use super::neurons::{self, Neurons};
use super::walk;
use crate::common::generated::generate::generate;
use crate::common::generated::seeds::{Seeds, architecture};

/// Environment variables that give the child the name of its run and the folder for its results.
const RUN: &str = "ROSI_PROOF_CHILD_RUN";
const DIR: &str = "ROSI_PROOF_CHILD_DIR";

/// Time limit of a run. No run takes a tenth of it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Result of one run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub run: String,
    /// The last stage reached: `make`, `load`, `decode`, `plan`, `capture`, `edit`, `neurons`, `scales`, `done`.
    pub stage: String,
    /// Why it stopped there.
    pub error: Option<String>,
    /// Keys that llama.cpp asked for.
    pub asked: Vec<String>,
    /// Writers found in the graph.
    pub writers: Vec<String>,
    /// Writers in the graph that the patch file excludes from edits.
    pub left: Vec<String>,
    /// Name of the patch file, if any.
    pub family: Option<String>,
    /// Why the architecture is refused, if it is.
    pub refused: Option<String>,
    /// Why no model of the architecture can be generated here, if so.
    pub skipped: Option<String>,
    /// Differences between the plan and the graph.
    pub differences: Vec<String>,
    /// Warnings of the plan.
    pub warnings: Vec<String>,
    pub agreement: Option<Agreement>,
    /// Agreement for a file in which every weight that may have a scale has one.
    pub agreement_scaled: Option<Agreement>,
    /// Result for the feed-forward networks.
    pub neurons: Option<Neurons>,
    pub bytes: u64,
    pub seconds: f64,
}

impl Outcome {
    pub fn architecture(&self) -> &str {
        architecture(&self.run)
    }

    fn save(&self, dir: &Path) {
        std::fs::write(dir.join("outcome.json"), serde_json::to_string(self).unwrap()).unwrap();
    }
}

/// In a child process, performs the run that the parent asked for. Otherwise does nothing.
pub fn child() {
    let (Some(run), Some(dir)) = (std::env::var_os(RUN), std::env::var_os(DIR)) else { return };
    let (run, dir) = (run.into_string().unwrap(), PathBuf::from(dir));
    let mut outcome = Outcome { run, ..Outcome::default() };
    if let Err(error) = prove(&mut outcome, &dir) {
        outcome.error = Some(error);
    }
    outcome.save(&dir);
}

fn stage(outcome: &mut Outcome, dir: &Path, name: &str) {
    outcome.stage = name.to_string();
    outcome.save(dir);
}

fn prove(outcome: &mut Outcome, dir: &Path) -> Result<(), String> {
    stage(outcome, dir, "make");
    let (seeds, path) = (Seeds::load(), dir.join("model.gguf"));
    let made = generate(&seeds, &outcome.run, false, &path)?;
    outcome.asked = made.asked;
    outcome.bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
    stage(outcome, dir, "load");
    let model = Model::load(&path, &Offload::none(), &mut |_| ()).map_err(|error| error.to_string())?;
    stage(outcome, dir, "decode");
    let mut graph = Graph::default();
    edits::logits(&mut edits::context(&model)?, Some(&mut graph))?;
    if std::env::var_os("ROSI_PROOF_DUMP").is_some() {
        dump(&graph, dir);
    }
    stage(outcome, dir, "plan");
    let gguf = Gguf::open(&path).map_err(|error| error.to_string())?;
    let patches = Patches::embedded().map_err(|error| error.to_string())?;
    let plan = plan(outcome, &gguf, &patches)?;
    let residuals: Vec<String> = match &plan {
        Some(plan) => (0..plan.n_layer).map(|l| plan.residual_node(l)).collect(),
        None => (0..model.n_layer()).map(|l| format!("l_out-{l}")).collect(),
    };
    let tensors: HashSet<String> = made.tensors.into_iter().collect();
    let (blocks, end) = walk::writers(&graph, &tensors, model.n_embd() as i64, &residuals);
    outcome.writers = listed(&blocks);
    if blocks.iter().all(Option::is_none) {
        outcome.writers = listed(&[end]);
        return Err(format!("the graph has no node {}", residuals[0]));
    }
    let Some(plan) = plan else { return Ok(()) };
    outcome.warnings = plan.warnings.iter().map(ToString::to_string).collect();
    let patch = patches.find(&plan.architecture).map_err(|error| error.to_string())?;
    outcome.differences = differences(patch, &plan, &blocks, end.as_ref());
    outcome.left = left(patch, &plan, &blocks);
    stage(outcome, dir, "capture");
    outcome.differences.extend(edits::uncaptured(&plan, &model)?);
    stage(outcome, dir, "edit");
    outcome.agreement = Some(edits::agree(&path, &plan, &model)?);
    stage(outcome, dir, "neurons");
    outcome.neurons = Some(neurons::agree(&path, &plan, &model)?);
    stage(outcome, dir, "scales");
    with_scales(outcome, &seeds, &dir.join("scales.gguf"))?;
    stage(outcome, dir, "done");
    Ok(())
}

/// Repeats the comparison for a file in which every weight that may have a scale has one.
fn with_scales(outcome: &mut Outcome, seeds: &Seeds, path: &Path) -> Result<(), String> {
    let made = generate(seeds, &outcome.run, true, path)?;
    if made.tensors.iter().all(|name| !name.ends_with(".scale")) {
        return Ok(());
    }
    let model = Model::load(path, &Offload::none(), &mut |_| ()).map_err(|error| error.to_string())?;
    let mut graph = Graph::default();
    edits::logits(&mut edits::context(&model)?, Some(&mut graph))?;
    let gguf = Gguf::open(path).map_err(|error| error.to_string())?;
    let patches = Patches::embedded().map_err(|error| error.to_string())?;
    let plan = Plan::resolve(&gguf, &patches).map_err(|error| error.to_string())?;
    let tensors: HashSet<String> = made.tensors.into_iter().collect();
    let residuals: Vec<String> = (0..plan.n_layer).map(|l| plan.residual_node(l)).collect();
    let (blocks, end) = walk::writers(&graph, &tensors, model.n_embd() as i64, &residuals);
    let patch = patches.find(&plan.architecture).map_err(|error| error.to_string())?;
    let found = differences(patch, &plan, &blocks, end.as_ref());
    outcome.differences.extend(found.into_iter().map(|line| format!("with scales: {line}")));
    outcome.agreement_scaled = Some(edits::agree(path, &plan, &model)?);
    Ok(())
}

/// Returns the plan; `None` if there is no patch file for the architecture or the plan cannot be resolved.
fn plan(outcome: &mut Outcome, gguf: &Gguf, patches: &Patches) -> Result<Option<Plan>, String> {
    match Plan::resolve(gguf, patches) {
        Ok(plan) => {
            outcome.family = Some(plan.family.clone());
            Ok(Some(plan))
        }
        Err(PlanError::Patch(PatchError::Unknown { .. })) => Ok(None),
        Err(PlanError::Patch(PatchError::Refused { reason, .. })) => {
            outcome.refused = Some(reason);
            Ok(None)
        }
        Err(error) => {
            outcome.differences.push(error.to_string());
            Ok(None)
        }
    }
}

fn dump(graph: &Graph, dir: &Path) {
    let lines = graph.nodes.iter().enumerate();
    let lines =
        lines.map(|(i, n)| format!("{i} {} {} {:?} <- {:?} {:?}\n", n.op, n.name, n.ne, n.src, n.scale));
    std::fs::write(dir.join("graph.txt"), lines.collect::<String>()).unwrap();
}

/// Returns the outcome of `run` if it needs no model, because the architecture is refused or cannot be generated.
pub fn without_model(seeds: &Seeds, patches: &Patches, run: &str) -> Option<Outcome> {
    let skipped = seeds.run[run].skip.clone();
    let refused = match patches.find(architecture(run)) {
        Err(PatchError::Refused { reason, .. }) => Some(reason),
        _ => None,
    };
    let known = skipped.is_some() || refused.is_some();
    known.then(|| Outcome { run: run.to_string(), skipped, refused, ..Outcome::default() })
}

/// Starts a child process for `run`, waits for it, and returns its outcome.
pub fn start(run: &str, dir: &Path) -> Outcome {
    let begin = Instant::now();
    std::fs::create_dir_all(dir).unwrap();
    let log = std::fs::File::create(dir.join("stderr.txt")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["one_architecture", "--exact", "--nocapture", "--test-threads=1"])
        .env(RUN, run)
        .env(DIR, dir)
        .env("GGML_NO_BACKTRACE", "1")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.to_string(),
            None if begin.elapsed() > TIMEOUT => {
                child.kill().unwrap();
                child.wait().unwrap();
                break "took too long".to_string();
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let text = std::fs::read_to_string(dir.join("outcome.json")).unwrap_or_default();
    let mut outcome: Outcome = serde_json::from_str(&text).unwrap_or_default();
    outcome.run = run.to_string();
    outcome.seconds = begin.elapsed().as_secs_f64();
    if status != "exit status: 0" {
        let said = std::fs::read_to_string(dir.join("stderr.txt")).unwrap_or_default();
        let said = said.lines().filter(|line| !line.trim().is_empty()).map(shortened);
        let said: Vec<String> = said.take(3).collect();
        outcome.error = Some(format!("{status}: {}", said.join("; ")));
    }
    outcome
}

/// Shortens a line of ggml's log, without the path of the source file, which differs between machines.
fn shortened(line: &str) -> String {
    line.rsplit_once("/llama.cpp/").map_or(line, |(_, rest)| rest).chars().take(200).collect()
}
