//! What was proven, as a table.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::child::Outcome;
use super::edits::{Agreement, MOST_DIFFER};
use super::neurons::Neurons;

/// Least that an edit must move them, else nothing was compared.
const LEAST_MOVED: f64 = 5e-4;
/// Largest part of what an edit moves by which the two may differ.
const MOST_PART: f64 = 0.05;

/// Largest part of the largest hidden value by which a planted neuron may differ from what was computed: llama.cpp takes GELU
/// from a table of F16 numbers.
const MOST_OFF: f64 = 0.01;

/// What the proof says of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// File, graph and edit agree.
    Proven,
    /// The patch files refuse the architecture.
    Refused(String),
    /// The patch file rests on reading the source: no model was run.
    ReadOnly(String),
    /// Something disagrees or failed.
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

/// What one run says.
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
        format!("the edit moves the logits by {:.1e} only", a.moved),
    );
    let moved = a.moved_without.unwrap_or(1.0);
    check(moved >= LEAST_MOVED, format!("without LoRA the edit moves the logits by {moved:.1e} only"));
    let lora = a.lora_without.unwrap_or(0.0);
    check(lora == 0.0, format!("a LoRA moves the logits by {lora:.1e} where the file says that it does not"));
    wrong
}

fn misplanted(n: &Neurons) -> Vec<String> {
    let mut wrong = Vec::new();
    if n.activations.len() < n.networks {
        wrong.push(format!(
            "{} of {} networks compute something unknown",
            n.networks - n.activations.len(),
            n.networks
        ));
    }
    if n.activations.is_empty() {
        return wrong;
    }
    if n.moved < LEAST_MOVED {
        wrong.push(format!("planted neurons move the logits by {:.1e} only", n.moved));
    }
    if n.differ > MOST_DIFFER.max(MOST_PART * n.moved) {
        wrong.push(format!("planted neurons as adapter and in the file differ by {:.1e}", n.differ));
    }
    if n.off > MOST_OFF {
        wrong.push(format!("planted neurons are {:.1e} off what was computed", n.off));
    }
    wrong
}

/// What is told of the networks: how many are understood, and φ.
fn understood(n: &Neurons) -> String {
    let names: BTreeSet<&str> = n.activations.iter().map(String::as_str).collect();
    match n.networks {
        0 => "none".into(),
        networks => {
            format!("{networks} {}", names.into_iter().collect::<Vec<_>>().join(", ")).trim_end().to_owned()
        }
    }
}

/// For the terminal: everything.
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

/// The table as it is kept in `docs/architectures-proof.md`.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let verdicts: Vec<(&Outcome, Verdict)> = outcomes.iter().map(|o| (o, verdict(o))).collect();
    let count = |is: fn(&Verdict) -> bool| {
        let names = verdicts.iter().filter(|(_, v)| is(v)).map(|(o, _)| o.architecture());
        names.collect::<BTreeSet<_>>().len()
    };
    let mut text = format!(
        "# Proof per architecture\n\n\
         `tests/e2e_architectures` writes this (`ROSI_PROOF_WRITE=1`) and fails when it is no longer true. For each\n\
         architecture it lets llama.cpp make a model of a few hundred kB with random weights, runs it, and walks the\n\
         running graph back from the residual stream. *Proven* means: the matrices found there are those of the patch\n\
         file, with the same norms, scales and factors behind them; the residual and the dense writers' inputs are\n\
         captured; and a random edit of 4 % gives the same logits (within 10⁻⁴ of the largest) in the written file as in\n\
         an adapter, for every writer that takes a LoRA, and a LoRA of the others gives none. All of it with and without\n\
         `.scale` tensors, where the architecture has them ({} models). NextN blocks are not edited here. The last column\n\
         tells of the networks that detectors have their neurons in (where a block has experts alone, in all of them), and\n\
         what each computes, as found by looking: there a planted gate gives the same logits in file and adapter, and its\n\
         hidden values are those that were computed, within a hundredth. Networks with a norm or a scale of their own\n\
         inside have none, nor have experts with biases or with a norm behind them.\n\n\
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
