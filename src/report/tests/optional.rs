//! Parts that not every report has.

use super::*;
use crate::eval::judge::{JudgeKind, SecondOpinion};
use crate::method::detector::Opens;
use crate::method::detector::train::{Histogram, InContext};

#[test]
fn what_a_judge_says_is_shown_beside_the_rules() {
    let mut report = example();
    let opinion = |refused, agreed| SecondOpinion {
        refused: Proportion::new(refused, 60),
        unclear: 4,
        agreement: Proportion::new(agreed, 58),
        kappa: f64::NAN,
    };
    let of = |refused, agreed| PerKind { harmful: Some(opinion(refused, agreed)), ..PerKind::default() };
    report.judge = Some(JudgeReport {
        judge: JudgeFacts { file: file("guard.gguf"), kind: JudgeKind::SafeUnsafe },
        base: of(30, 50),
        written: of(55, 57),
    });
    let json = serde_json::to_string(&report).unwrap();
    let report: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&report).unwrap(), json);
    let summary = report.summary();
    assert!(summary.lines().all(|line| line.chars().count() <= 100), "{summary}");
    let row = summary.lines().find(|line| line.contains("55/60")).unwrap();
    assert!(row.contains("written file") && row.contains("57/58"), "{row}");
    assert!(summary.contains("guard.gguf (safe-unsafe)"), "{summary}");
    let page = report.page().unwrap();
    let rows = cells(&parsed(&page), "judge-table");
    assert_eq!(rows[1][2..], ["–", "–", "57/58 (.98, .91-1.00)", "4"].map(str::to_owned));
}

#[test]
fn what_stands_behind_thoughts_and_in_contexts_is_shown() {
    let mut report = example();
    let of = |harmful, endless| Thoughtful {
        harmful: tally(harmful, 16),
        harmless: tally(0, 16),
        borderline: tally(2, 16),
        thoughts: Thoughts { mean_tokens: 81.4, endless: Proportion::new(endless, 48) },
    };
    report.thinking = Some(ThinkingReport {
        open: "<think>".into(),
        close: "</think>".into(),
        budget: 256,
        base: of(5, 1),
        written: of(14, 2),
    });
    let row = |context: &str, harmful| InContext {
        context: context.into(),
        harmful: Some(harmful),
        harmless: Some(0.01),
        borderline: None,
    };
    report.edit.gates = vec![Profile {
        layer: 12,
        before_last: 0,
        opens: Opens::Harmful,
        threshold: 0.5,
        open_from: 1.0,
        from: -1.0,
        until: 2.0,
        auroc: 0.95,
        kinds: vec![Histogram { of: "harmful".into(), bars: vec![1, 2], open: 0.7, opening: 0.7 }],
        contexts: vec![row("plain", 0.7), row("later turn", 0.5), row("wrapped", 0.3)],
    }];
    let summary = report.summary();
    assert!(summary.lines().all(|line| line.chars().count() <= 100), "{summary}");
    assert!(
        summary.contains("WEAK: harmful prompts") && summary.contains("plain ones: wrapped"),
        "{summary}"
    );
    assert!(summary.lines().any(|line| line.contains("written file") && line.contains("14/16")), "{summary}");
    let page = report.page().unwrap();
    let page = parsed(&page);
    let contexts = cells(&page, "context-table");
    assert_eq!(contexts.iter().map(|row| !row[4].is_empty()).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(cells(&page, "thinking-table")[1][4..], ["2/48 (.04, .01-.14)".to_owned(), "81".to_owned()]);
}
