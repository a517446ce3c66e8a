//! Results of the proof, as text and as a Markdown table.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::child::Outcome;
use super::edits::{Agreement, MOST_DIFFER};
use super::neurons::Neurons;

/// How far an edit must move the logits at least for a comparison to be meaningful, relative to the largest logit.
const LEAST_MOVED: f64 = 5e-4;
/// Largest difference between adapter and file, relative to how far the edit moves the logits.
const MOST_PART: f64 = 0.05;

/// Largest difference between hidden values of planted neurons in the graph and computed ones, relative to the largest
/// value. It allows for llama.cpp's GELU, which is a lookup table of F16 numbers.
const MOST_OFF: f64 = 0.01;

/// Result of the proof for one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// File, graph and edit agree.
    Proven,
    /// The patch files refuse the architecture.
    Refused(String),
    /// The patch file was derived from llama.cpp's source only; no model was run.
    ReadOnly(String),
    /// A comparison or a stage failed, for these reasons.
    Wrong(Vec<String>),
}

impl Verdict {
    fn name(&self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Refused(_) => "refused",
            Self::ReadOnly(_) => "by reading only",
            Self::Wrong(_) => "WRONG",
        }
    }
}

/// Returns the verdict on one run.
pub fn verdict(outcome: &Outcome) -> Verdict {
    if let Some(reason) = &outcome.refused {
        return Verdict::Refused(reason.clone());
    }
    if let Some(reason) = &outcome.skipped {
        return Verdict::ReadOnly(reason.clone());
    }
    let mut wrong = outcome.differences.clone();
    wrong.extend(outcome.error.iter().map(|error| format!("{}: {error}", outcome.stage)));
    wrong.extend(outcome.agreement.iter().flat_map(disagreements));
    let scaled = outcome.agreement_scaled.iter().flat_map(disagreements);
    wrong.extend(scaled.map(|line| format!("with scales: {line}")));
    wrong.extend(outcome.neurons.iter().flat_map(misplanted));
    if outcome.family.is_none() && wrong.is_empty() {
        wrong.push("no patch file".into());
    }
    if wrong.is_empty() { Verdict::Proven } else { Verdict::Wrong(wrong) }
}

fn disagreements(a: &Agreement) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |ok: bool, text: String| {
        if !ok {
            wrong.push(text);
        }
    };
    check(
        a.differ <= MOST_DIFFER && a.differ <= MOST_PART * a.moved,
        format!("adapter and file differ by {:.1e}", a.differ),
    );
    check(
        a.tried == 0 || a.moved >= LEAST_MOVED,
        format!("the edit moves the logits by only {:.1e}", a.moved),
    );
    let moved = a.moved_without.unwrap_or(1.0);
    check(moved >= LEAST_MOVED, format!("without LoRA, the edit moves the logits by only {moved:.1e}"));
    let lora = a.lora_without.unwrap_or(0.0);
    check(lora == 0.0, format!("a LoRA that should have no effect moves the logits by {lora:.1e}"));
    wrong
}

fn misplanted(n: &Neurons) -> Vec<String> {
    let mut wrong = Vec::new();
    if n.activations.len() < n.networks {
        wrong.push(format!(
            "{} of {} networks have an unknown activation",
            n.networks - n.activations.len(),
            n.networks
        ));
    }
    if n.activations.is_empty() {
        return wrong;
    }
    if n.moved < LEAST_MOVED {
        wrong.push(format!("planted neurons move the logits by only {:.1e}", n.moved));
    }
    if n.differ > MOST_DIFFER.max(MOST_PART * n.moved) {
        wrong.push(format!("planted neurons: adapter and file differ by {:.1e}", n.differ));
    }
    if n.off > MOST_OFF {
        wrong.push(format!("planted neurons differ by {:.1e} from computed ones", n.off));
    }
    wrong
}

/// Describes the networks: their number and their activation functions φ.
fn understood(n: &Neurons) -> String {
    let names: BTreeSet<&str> = n.activations.iter().map(String::as_str).collect();
    match n.networks {
        0 => "none".into(),
        networks => {
            format!("{networks} {}", names.into_iter().collect::<Vec<_>>().join(", ")).trim_end().to_owned()
        }
    }
}

/// Returns all results as text for the terminal.
pub fn printed(outcomes: &[Outcome]) -> String {
    let mut out = String::new();
    for outcome in outcomes {
        let verdict = verdict(outcome);
        let family = outcome.family.as_deref().unwrap_or("-");
        let (run, name, kb) = (&outcome.run, verdict.name(), outcome.bytes / 1000);
        let _ = writeln!(out, "{run:<24} {name:<16} {family:<16} {:.2} s {kb} kB", outcome.seconds);
        let reasons = match verdict {
            Verdict::Proven => Vec::new(),
            Verdict::Refused(reason) | Verdict::ReadOnly(reason) => vec![reason],
            Verdict::Wrong(reasons) => reasons,
        };
        reasons.iter().for_each(|line| out += &format!("    !! {line}\n"));
        for (with, a) in [("", outcome.agreement), ("with scales, ", outcome.agreement_scaled)] {
            let Some(a) = a else { continue };
            let Agreement { tried, writers, moved, differ, .. } = a;
            out += &format!(
                "    {with}edit of {tried} of {writers} writers: moved {moved:.1e}, file and adapter differ by {differ:.1e}"
            );
            let _ = writeln!(out, "; without LoRA {:?} {:?}", a.moved_without, a.lora_without);
        }
        if let Some(n) = &outcome.neurons {
            let _ = writeln!(
                out,
                "    neurons in {}: moved {:.1e}, file and adapter differ by {:.1e}, {:.1e} off",
                understood(n),
                n.moved,
                n.differ,
                n.off
            );
        }
        outcome.writers.iter().for_each(|line| out += &format!("    {line}\n"));
        outcome.warnings.iter().for_each(|line| out += &format!("    warning: {line}\n"));
        if !reasons.is_empty() && !outcome.asked.is_empty() {
            out += &format!("    asked: {}\n", outcome.asked.join(", "));
        }
    }
    out
}

/// Returns the contents of `docs/architectures-proof.md`.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let verdicts: Vec<(&Outcome, Verdict)> = outcomes.iter().map(|o| (o, verdict(o))).collect();
    let count = |is: fn(&Verdict) -> bool| {
        let names = verdicts.iter().filter(|(_, v)| is(v)).map(|(o, _)| o.architecture());
        names.collect::<BTreeSet<_>>().len()
    };
    let mut text = format!(
        "# Proof per architecture\n\n\
         `tests/e2e_architectures` writes this file (`ROSI_PROOF_WRITE=1`) and fails if it is out of\n\
         date. For each architecture, it lets llama.cpp build a model of a few hundred kB with random\n\
         weights, runs it, and walks the graph back from the residual stream. *Proven* means: the\n\
         matrices found in the graph are those of the patch file, with the same norms, scales and\n\
         factors behind them; the residual and the inputs of the dense writers are captured; and a\n\
         random edit of 4 % gives the same logits (within 10⁻⁴ of the largest) in the written file and\n\
         as an adapter, for every writer that supports LoRA, while a LoRA of the others has no effect.\n\
         All of this holds with and without `.scale` tensors, where the architecture has them ({}\n\
         models). NextN blocks are not edited here.\n\n\
         The last column lists the networks that can hold detector neurons (all experts, in blocks that\n\
         have only experts) and the activation function identified for each. In these networks, a\n\
         planted gate gives the same logits in the file and as an adapter, and its hidden values agree\n\
         with computed ones within a hundredth. Networks with a norm or a scale of their own inside are\n\
         excluded, as are experts with biases or with a norm behind them.\n\n\
         {} architectures proven, {} by reading only, {} refused.\n\n",
        outcomes.iter().filter(|o| o.agreement_scaled.is_some()).count(),
        count(|v| *v == Verdict::Proven),
        count(|v| matches!(v, Verdict::ReadOnly(_))),
        count(|v| matches!(v, Verdict::Refused(_))),
    );
    text += "| model | patch file | writers in the graph, per block | edited as LoRA | networks for detectors |\n|---|---|---|---|---|\n";
    for (outcome, _) in verdicts.iter().filter(|(_, v)| *v == Verdict::Proven) {
        let writers = outcome.writers.iter().filter(|line| !line.contains(", rows in "));
        let mut writers: Vec<String> = writers.map(|line| shortened(line)).collect();
        writers.extend(outcome.left.iter().map(|name| format!("left alone: {}", shortened(name))));
        let family = outcome.family.as_deref().unwrap_or_default();
        let tried = outcome.agreement.map(|a| format!("{} of {}", a.tried, a.writers)).unwrap_or_default();
        let neurons = outcome.neurons.as_ref().map(understood).unwrap_or_default();
        let _ =
            writeln!(text, "| {} | {family} | {} | {tried} | {neurons} |", outcome.run, writers.join("; "));
    }
    for (title, is) in [
        ("By reading only", (|v| matches!(v, Verdict::ReadOnly(_))) as fn(&Verdict) -> bool),
        ("Refused", |v| matches!(v, Verdict::Refused(_))),
        ("Wrong", |v| matches!(v, Verdict::Wrong(_))),
    ] {
        let rows: Vec<_> = verdicts.iter().filter(|(_, v)| is(v)).collect();
        if rows.is_empty() {
            continue;
        }
        text += &format!("\n## {title}\n\n| model | reason |\n|---|---|\n");
        for (outcome, verdict) in rows {
            let reason = match verdict {
                Verdict::Refused(reason) | Verdict::ReadOnly(reason) => reason.clone(),
                Verdict::Wrong(reasons) => reasons.join("; "),
                Verdict::Proven => String::new(),
            };
            let _ = writeln!(text, "| {} | {reason} |", outcome.run);
        }
    }
    text
}

fn shortened(line: &str) -> String {
    line.replace("blk.{i}.", "").replace(".weight", "").replace('|', "or")
}
