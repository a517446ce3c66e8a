//! What was proven, as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::child::Outcome;

/// Largest relative difference between the logits of the written file and of the adapter.
pub const MOST_DIFFER: f64 = 1e-4;
/// Least that an edit must move them, else nothing was compared.
pub const LEAST_MOVED: f64 = 1e-3;

/// What the proof says of one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Proven,
    Refused,
    NotLoadable,
    NoFile,
    Wrong,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Refused => "refused",
            Self::NotLoadable => "by reading only",
            Self::NoFile => "no file yet",
            Self::Wrong => "WRONG",
        }
    }
}

/// What one run says, and why.
pub fn verdict(outcome: &Outcome) -> (Verdict, String) {
    if let Some(reason) = &outcome.refused {
        return (Verdict::Refused, reason.clone());
    }
    let mut wrong = outcome.differences.clone();
    if let Some(a) = outcome.agreement.filter(|a| a.differ > MOST_DIFFER) {
        wrong.push(format!("adapter and file differ by {:.1e}", a.differ));
    }
    if let Some(a) = outcome.agreement.filter(|a| a.moved < LEAST_MOVED && a.tried > 0) {
        wrong.push(format!("the edit moved the logits by {:.1e} only", a.moved));
    }
    if !wrong.is_empty() {
        return (Verdict::Wrong, wrong.join("; "));
    }
    if let Some(error) = &outcome.error {
        return (Verdict::NotLoadable, format!("{}: {error}", outcome.stage));
    }
    if outcome.family.is_none() {
        return (Verdict::NoFile, outcome.writers.join("; "));
    }
    (Verdict::Proven, String::new())
}

/// The runs of every architecture, in alphabetic order.
pub fn by_architecture(outcomes: &[Outcome]) -> BTreeMap<&str, Vec<&Outcome>> {
    let mut table: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        table.entry(outcome.architecture()).or_default().push(outcome);
    }
    table
}

/// For the terminal: everything.
pub fn printed(outcomes: &[Outcome]) -> String {
    let mut out = String::new();
    for outcome in by_architecture(outcomes).values().flatten() {
        let (verdict, why) = verdict(outcome);
        let family = outcome.family.as_deref().unwrap_or("-");
        writeln!(out, "{:<24} {:<16} {family:<16} {:.1}s {} kB {why}", outcome.run, verdict.name(), outcome.seconds, outcome.bytes / 1000).unwrap();
        if let Some(a) = outcome.agreement {
            writeln!(out, "    edit of {} of {} writers: moved {:.1e}, file and adapter differ by {:.1e}", a.tried, a.writers, a.moved, a.differ).unwrap();
        }
        for line in outcome.writers.iter() {
            writeln!(out, "    {line}").unwrap();
        }
        for line in &outcome.warnings {
            writeln!(out, "    warning: {line}").unwrap();
        }
        if verdict != Verdict::Proven && !outcome.asked.is_empty() {
            writeln!(out, "    asked: {}", outcome.asked.join(", ")).unwrap();
        }
    }
    out
}
