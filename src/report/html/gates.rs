//! The gates of detectors: score histograms, and how often each gate opens.

use super::chart::{Chart, Class, Numbers, Point};
use super::section::{Section, Table, fixed, percent};
use crate::eval::PerKind;
use crate::method::detector::train::{Histogram, InContext, Profile};
use crate::report::contexts::{contexts, is_weak};
use crate::report::{Report, ThinkingReport, Thoughtful};

const KIND_CLASSES: PerKind<Class> = PerKind { harmful: "after", harmless: "before", borderline: "control" };

/// Returns the section on the gates, or `None` if there are none.
pub fn gates(report: &Report) -> Option<Section> {
    let gates = &report.edit.gates;
    if gates.is_empty() {
        return None;
    }
    Some(Section {
        id: "gates",
        title: "What opens the gates",
        text: "Held-out scores of the training prompts of each gate. A gate is shut left of the first \
               vertical line and fully open right of the second. Lookalikes are harmful prompts that look \
               innocent; only their own gates and those for borderline prompts learn from them. Text is \
               everything other than the end of a prompt: prose, code, answers, the inside of prompts."
            .into(),
        legend: vec![
            ("after", "harmful"),
            ("before", "harmless"),
            ("control", "borderline"),
            ("chosen", "threshold"),
        ],
        charts: gates.iter().map(chart).collect(),
        tables: contexts_of(report).into_iter().chain([gate_table(gates)]).collect(),
    })
}

/// Returns the table of gates.
fn gate_table(gates: &[Profile]) -> Table {
    let row = |gate: &Profile| {
        let open = |name: &str| gate.of(name).map_or("–".into(), |kind| percent(kind.open));
        vec![
            gate.layer.to_string(),
            format!("−{}", gate.before_last + 1),
            gate.opens.as_str().to_owned(),
            fixed(gate.auroc, 3),
            fixed(gate.threshold, 2),
            fixed(gate.open_from, 2),
            open("harmful"),
            open("harmless"),
            open("borderline"),
            open("text"),
        ]
    };
    Table {
        id: "gate-table",
        caption: "Each gate: how well it separates the kinds, its threshold, and the share of each kind on \
                  which it is more than half open (of lookalikes, for their gates)",
        open: false,
        head: vec![
            "block",
            "token",
            "opens on",
            "AUROC",
            "shut below",
            "open from",
            "harmful",
            "harmless",
            "borderline",
            "text",
        ],
        rows: gates.iter().map(row).collect(),
    }
}

/// Returns the table of how often gates open in each context.
fn contexts_of(report: &Report) -> Option<Table> {
    let share = |share: Option<f64>| share.map_or("–".to_owned(), percent);
    let rows = contexts(&report.edit.gates);
    let row = |row: &InContext| {
        let weak = if is_weak(row, &rows[0]) { "less than half as often as plain" } else { "" };
        vec![row.context.clone(), share(row.harmful), share(row.harmless), share(row.borderline), weak.into()]
    };
    (rows.len() > 1).then(|| Table {
        id: "context-table",
        caption: "Prompts in other contexts: the share on which the gates for harmful prompts are more than \
                  half open at the last token",
        open: true,
        head: vec!["prompts", "harmful", "harmless", "borderline", ""],
        rows: rows.iter().map(row).collect(),
    })
}

/// Returns the section on answers after thoughts, or `None` if the report has none.
pub fn thinking(report: &Report) -> Option<Section> {
    let ThinkingReport { open, close, budget, base, written } = report.thinking.as_ref()?;
    let row = |(name, of): (&str, &Thoughtful)| {
        let kinds = of.by_kind().values().map(|tally| tally.refused().to_string());
        let rest = [of.thoughts.endless.to_string(), fixed(of.thoughts.mean_tokens, 0)];
        [name.to_owned()].into_iter().chain(kinds).chain(rest).collect()
    };
    Some(Section {
        id: "thinking",
        title: "Answers after thoughts",
        text: format!(
            "The model's answers after thoughts of at most {budget} tokens between {open} and {close}. With \
             unfinished thoughts, an answer counts as neither refused nor complied."
        ),
        legend: Vec::new(),
        charts: Vec::new(),
        tables: vec![Table {
            id: "thinking-table",
            caption: "Refusals after the model's own thoughts, before and after the edit",
            open: true,
            head: vec!["model", "harmful", "harmless", "borderline", "unfinished thoughts", "mean tokens"],
            rows: [("base", base), ("written file", written)].into_iter().map(row).collect(),
        }],
    })
}

/// Charts the histograms of one gate, as shares of the prompts of each kind.
fn chart(gate: &Profile) -> Chart {
    let share = |kind: &Histogram, bar: u64| bar as f64 / kind.bars.iter().sum::<u64>().max(1) as f64;
    let told: Vec<String> =
        gate.kinds.iter().map(|kind| format!("{} {}", kind.of, percent(kind.open))).collect();
    let (block, token, opens) = (gate.layer, gate.before_last + 1, gate.opens.as_str());
    let title = format!("Block {block}, token −{token}: opens on {opens} prompts");
    let description = format!("Open on {}.", told.join(", "));
    let shares = gate.kinds.iter().flat_map(|kind| kind.bars.iter().map(move |&bar| share(kind, bar)));
    let y = Numbers::over("", shares.chain([0.0])).percent();
    let mut chart = Chart::new(&title, description, Numbers::over("score", [gate.from, gate.until]), y);
    chart.upright("chosen", gate.threshold);
    chart.upright("chosen", gate.open_from);
    for (kind, class) in KIND_CLASSES.iter() {
        let Some(kind) = gate.of(kind.as_str()).filter(|kind| !kind.bars.is_empty()) else { continue };
        let width = (gate.until - gate.from) / kind.bars.len() as f64;
        let point =
            |(i, &bar): (usize, &u64)| Point { x: gate.from + (i as f64 + 0.5) * width, y: share(kind, bar) };
        chart.line(class, kind.bars.iter().enumerate().map(point));
    }
    chart
}
