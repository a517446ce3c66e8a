//! The gates of detectors: a histogram of the scores of each, and how often it opens.

use super::chart::{Chart, Class, Numbers};
use super::section::{Section, Table, fixed, percent};
use crate::method::detector::train::{Histogram, Profile};
use crate::report::Report;

/// What each kind is drawn as.
const KINDS: [(&str, Class); 3] = [("harmful", "after"), ("harmless", "before"), ("alarming", "control")];

/// Every gate; nothing where there are none.
pub fn gates(report: &Report) -> Option<Section> {
    let gates = &report.edit.gates;
    if gates.is_empty() {
        return None;
    }
    let row = |gate: &Profile| {
        let open = |name: &str| gate.of(name).map_or("–".into(), |kind| percent(kind.open));
        vec![
            gate.layer.to_string(),
            format!("−{}", gate.before_last + 1),
            gate.opens.kind().as_str().to_owned(),
            fixed(gate.auroc, 3),
            fixed(gate.threshold, 2),
            fixed(gate.open_from, 2),
            open("harmful"),
            open("harmless"),
            open("alarming"),
            open("text"),
        ]
    };
    Some(Section {
        id: "gates",
        title: "What opens the gates",
        text: "Scores of the prompts that each gate was learned from, each scored by what was learned from others. A gate is \
               shut left of the first upright line and wholly open right of the second. Text is everything that is no end of \
               a prompt: prose, code, answers, the inside of prompts."
            .into(),
        legend: vec![("after", "harmful"), ("before", "harmless"), ("control", "alarming"), ("chosen", "threshold")],
        charts: gates.iter().map(chart).collect(),
        tables: vec![Table {
            id: "gate-table",
            caption: "Each gate: how well it tells the kinds apart, its threshold, and the share on which it is more than half \
                      open",
            open: false,
            head: vec![
                "block", "token", "opens on", "AUROC", "shut below", "open from", "harmful", "harmless", "alarming", "text",
            ],
            rows: gates.iter().map(row).collect(),
        }],
    })
}

/// The histograms of one gate, as shares of their prompts.
fn chart(gate: &Profile) -> Chart {
    let share = |kind: &Histogram, bar: u64| bar as f64 / kind.bars.iter().sum::<u64>().max(1) as f64;
    let told: Vec<String> =
        gate.kinds.iter().map(|kind| format!("{} {}", kind.of, percent(kind.open))).collect();
    let (block, token, kind) = (gate.layer, gate.before_last + 1, gate.opens.kind());
    let title = format!("Block {block}, token −{token}: opens on {kind} prompts");
    let description = format!("Open on {}.", told.join(", "));
    let shares = gate.kinds.iter().flat_map(|kind| kind.bars.iter().map(move |&bar| share(kind, bar)));
    let y = Numbers::over("", shares.chain([0.0])).percent();
    let mut chart = Chart::new(&title, description, Numbers::over("score", [gate.from, gate.until]), y);
    chart.upright("chosen", gate.threshold);
    chart.upright("chosen", gate.open_from);
    for (name, class) in KINDS {
        let Some(kind) = gate.of(name).filter(|kind| !kind.bars.is_empty()) else { continue };
        let width = (gate.until - gate.from) / kind.bars.len() as f64;
        let points = kind.bars.iter().enumerate();
        chart.line(class, points.map(|(i, &bar)| (gate.from + (i as f64 + 0.5) * width, share(kind, bar))));
    }
    chart
}
