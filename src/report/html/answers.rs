//! The answers before and after the edit, by kind of prompt, and the judge's verdicts on them.

use serde::Serialize;

use super::section::{Section, Table};
use crate::eval::PerKind;
use crate::eval::judge::SecondOpinion;
use crate::eval::prompts::PromptKind;
use crate::report::{AnswerPair, JudgeReport, Report};

/// The answers to the prompts of one kind, changed outcomes first.
#[derive(Debug, Serialize)]
pub struct Answers<'a> {
    kind: PromptKind,
    /// Number of changed outcomes; `None` if the report has no outcomes.
    changed: Option<usize>,
    rows: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    pair: &'a AnswerPair,
    /// Whether the outcome differs from before.
    changed: bool,
}

impl<'a> Answers<'a> {
    /// Groups the answers by kind, omitting kinds without prompts.
    pub fn by_kind(pairs: &'a [AnswerPair]) -> Vec<Self> {
        let of = |kind| {
            let changed = |pair: &AnswerPair| Some(pair.outcomes?[0] != pair.outcomes?[1]);
            let own: Vec<&AnswerPair> = pairs.iter().filter(|pair| pair.kind == kind).collect();
            let told: Option<Vec<bool>> = own.iter().map(|pair| changed(pair)).collect();
            let row = |pair| Row { pair, changed: changed(pair) == Some(true) };
            let mut rows: Vec<Row> = own.into_iter().map(row).collect();
            rows.sort_by_key(|row| !row.changed);
            Self { kind, changed: told.map(|told| told.into_iter().filter(|&changed| changed).count()), rows }
        };
        PromptKind::ALL.into_iter().map(of).filter(|answers| !answers.rows.is_empty()).collect()
    }
}

/// Returns the section on the judge's verdicts, or `None` if no judge was asked.
pub fn judge(report: &Report) -> Option<Section> {
    let judged = report.judge.as_ref()?;
    let row = |(name, of): (&str, &PerKind<Option<SecondOpinion>>)| {
        let kinds = of.values().map(|kind| kind.map_or("–".into(), |opinion| opinion.refused.to_string()));
        let rest = [JudgeReport::agreement(of).to_string(), JudgeReport::unclear(of).to_string()];
        [name.to_owned()].into_iter().chain(kinds).chain(rest).collect()
    };
    Some(Section {
        id: "judge",
        title: "A second model's verdicts",
        text: format!(
            "Refusals among the same answers according to {} ({}), instead of the rules. Shares are of the \
             answers on which it gave a verdict.",
            judged.judge.file.path,
            judged.judge.kind.as_str()
        ),
        legend: Vec::new(),
        charts: Vec::new(),
        tables: vec![Table {
            id: "judge-table",
            caption: "Refusals according to the judge, before and after the edit",
            open: true,
            head: vec!["model", "harmful", "harmless", "borderline", "agrees with the rules", "no verdict"],
            rows: judged.named().into_iter().map(row).collect(),
        }],
    })
}
