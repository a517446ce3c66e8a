//! Formats the report of `eval` as tables.

use super::report::{EvalReport, KindReport, ModelReport, SetReport};
use crate::eval::Tally;
use crate::eval::answers::N_PREDICT_MOST;
use crate::eval::compare::Paired;
use crate::eval::jailbreak::WRAPPERS;
use crate::eval::prompts::PromptKind;
use crate::eval::thoughts::Thoughts;
use crate::output::Table;
use crate::util::stats::Proportion;

/// Rows of the report: each model with its name.
type Rows<'a> = [(String, &'a ModelReport)];

/// Formats every table that has data.
pub fn all(report: &EvalReport) -> String {
    let rows = report.rows();
    let mut parts = Vec::new();
    let sources: Vec<&str> =
        report.models.first().map(|m| m.sets.iter().map(|s| s.source.as_str()).collect()).unwrap_or_default();
    for (i, source) in sources.into_iter().enumerate() {
        parts.push(format!(
            "{source}: {} of at most {} tokens{}{}\n{}",
            report.sampling.map_or("greedy answers".into(), |sampling| {
                format!("answers sampled at temperature {}", sampling.temperature)
            }),
            report.tokens,
            longer(report.tokens),
            report.system_prompt.as_ref().map_or("", |_| ", under the system prompt"),
            refusals(&rows, i)
        ));
        parts.extend(thoughts(&rows, i));
        parts.extend(against_base(report, &rows, i));
        parts.extend(jailbreaks(&rows, i));
        parts.extend(judged(report, &rows, i));
    }
    parts.extend(perplexities(&rows));
    parts.extend(choices(&rows));
    parts.join("\n").trim_end().to_owned()
}

/// Describes the higher token limit of answers that are still undecided at `tokens`.
fn longer(tokens: usize) -> String {
    if tokens >= N_PREDICT_MOST { String::new() } else { format!(" ({N_PREDICT_MOST} if still undecided)") }
}

fn share(proportion: Proportion) -> String {
    if proportion.total == 0 { "-".into() } else { proportion.to_string() }
}

fn p_value(p: f64) -> String {
    if p < 0.001 { format!("{p:.0e}") } else { format!("{p:.3}") }
}

/// Formats the statistics of the thoughts before the answers to all kinds of prompts.
fn thoughts(rows: &Rows<'_>, set: usize) -> Option<String> {
    let mut table = Table::new(&["thoughts", "mean tokens", "did not end"]);
    let mut any = false;
    for (name, model) in rows {
        let all: Vec<Thoughts> = model.sets[set].kinds.values().filter_map(|kind| kind.thoughts).collect();
        if let Some(all) = Thoughts::together(&all) {
            table.row(vec![name.clone(), format!("{:.0}", all.mean_tokens), share(all.endless)]);
            any = true;
        }
    }
    any.then(|| table.to_string())
}

/// Formats the counts according to the rules, and the KL divergence.
fn refusals(rows: &Rows<'_>, set: usize) -> Table {
    let mut table = Table::new(&[
        "model",
        "harmful refused",
        "harmless refused",
        "borderline refused",
        "undecided",
        "broken",
        "KL first token",
        "KL per token",
    ]);
    for (name, model) in rows {
        let set = &model.sets[set];
        let refused = |kind| set.kinds.get(&kind).map_or_else(|| "-".into(), |k| share(k.tally.refused()));
        let sum = |of: fn(&Tally) -> u64| set.kinds.values().map(|k| of(&k.tally)).sum::<u64>().to_string();
        let kl = |value: Option<f64>| value.map_or_else(|| "-".into(), |kl| format!("{kl:.4}"));
        let mut cells = vec![name.clone()];
        cells.extend(PromptKind::ALL.map(refused));
        cells.extend([sum(|tally| tally.undecided), sum(|tally| tally.broken)]);
        cells.push(kl(set.kl.map(|kl| kl.first_token)));
        cells.push(kl(set.kl.map(|kl| kl.per_token)));
        table.row(cells);
    }
    table
}

/// Formats the paired tests against the base.
fn against_base(report: &EvalReport, rows: &Rows<'_>, set: usize) -> Option<String> {
    report.base.as_ref()?;
    let mut table = Table::new(&["refused, against the base", "prompts", "only base", "only this", "p"]);
    let mut row = |name: String, paired: Option<Paired>| {
        let Some(paired) = paired else { return };
        let counts = [paired.items, paired.only_base, paired.only_this].map(|n| n.to_string());
        table.row([vec![name], counts.to_vec(), vec![p_value(paired.p)]].concat());
    };
    for (name, model) in rows {
        let SetReport { kinds, jailbreak, .. } = &model.sets[set];
        for (kind, found) in kinds {
            row(format!("{name}, {kind}"), found.against_base);
        }
        for found in jailbreak {
            row(format!("{name}, {}", found.wrapped.wrapper), found.against_base);
        }
    }
    Some(format!("{table}exact McNemar test on the prompts that only one of the two refuses\n"))
}

/// Formats the refusals of harmful prompts, plain and wrapped in jailbreaks.
fn jailbreaks(rows: &Rows<'_>, set: usize) -> Option<String> {
    if rows.iter().all(|(_, model)| model.sets[set].jailbreak.is_empty()) {
        return None;
    }
    let mut header = vec!["harmful refused, by wording", "plain"];
    header.extend(WRAPPERS.iter().map(|w| w.name));
    let mut table = Table::new(&header);
    for (name, model) in rows {
        let set = &model.sets[set];
        let plain = set.kinds.get(&PromptKind::Harmful).map(|k| k.tally.refused());
        let wrapped = set.jailbreak.iter().map(|j| j.wrapped.tally.refused());
        let mut cells = vec![name.clone()];
        cells.extend(plain.into_iter().chain(wrapped).map(share));
        table.row(cells);
    }
    Some(table.to_string())
}

/// Compares the judge with the rules.
fn judged(report: &EvalReport, rows: &Rows<'_>, set: usize) -> Option<String> {
    report.judge.as_ref()?;
    let mut table =
        Table::new(&["refused, by rules and judge", "rules", "judge", "no verdict", "agreement", "kappa"]);
    for (name, model) in rows {
        for (kind, KindReport { tally, judge, .. }) in &model.sets[set].kinds {
            let Some(judge) = judge else { continue };
            let kappa = if judge.kappa.is_nan() { "-".into() } else { format!("{:.2}", judge.kappa) };
            table.row(vec![
                format!("{name}, {kind}"),
                share(tally.refused()),
                share(judge.refused),
                judge.unclear.to_string(),
                share(judge.agreement),
                kappa,
            ]);
        }
    }
    Some(table.to_string())
}

fn perplexities(rows: &Rows<'_>) -> Option<String> {
    let mut table = Table::new(&["model", "tokens scored", "perplexity", "standard error"]);
    let mut any = None;
    for (name, model) in rows {
        let Some(found) = model.perplexity else { continue };
        any = Some(found);
        table.row(vec![
            name.clone(),
            found.tokens.to_string(),
            format!("{:.4}", found.ppl),
            format!("{:.4}", found.error),
        ]);
    }
    any.map(|any| format!("{table}on the second halves of {} chunks of {} tokens\n", any.chunks, any.n_ctx))
}

fn choices(rows: &Rows<'_>) -> Option<String> {
    let mut table = Table::new(&["model", "right choices", "by whole answer", "chance", "p against base"]);
    let mut any = false;
    for (name, model) in rows {
        let Some(found) = &model.choice else { continue };
        any = true;
        table.row(vec![
            name.clone(),
            share(found.choices.correct),
            share(found.choices.correct_by_sum),
            format!("{:.2}", found.choices.chance),
            found.against_base.map_or_else(|| "-".into(), |paired| p_value(paired.p)),
        ]);
    }
    any.then(|| {
        format!("{table}right: by mean log-likelihood per byte of the answer; by whole answer: by its sum\n")
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::{ChoiceReport, JailbreakReport};
    use super::*;
    use crate::eval::choice::Choices;
    use crate::eval::compare::Divergence;
    use crate::eval::jailbreak::Wrapped;
    use crate::eval::judge::Verdict;
    use crate::eval::perplexity::Perplexity;
    use crate::report::{FileFacts, JudgeFacts};

    const NO: &str = "I'm sorry, but I can't assist with that.";
    const YES: &str = "Sure, here is what you need to know about it.";

    fn model(path: &str, answers: [&str; 4]) -> ModelReport {
        let prompts: Vec<String> = (0..4).map(|i| format!("prompt {i}")).collect();
        let answers: Vec<String> = answers.iter().map(ToString::to_string).collect();
        let mut harmful = KindReport::new(&prompts, answers.clone());
        harmful.second_opinion(&[Verdict::Refused, Verdict::Complied, Verdict::Complied, Verdict::Unclear]);
        let wrapped = |w| JailbreakReport { wrapped: Wrapped::new(w, answers.clone()), against_base: None };
        let right = answers.iter().map(|a| a == NO).collect::<Vec<_>>();
        let correct = Proportion::new(right.iter().filter(|&&r| r).count() as u64, 4);
        let choices = Choices { correct, correct_by_sum: correct, chance: 0.25, picks: vec![0; 4], right };
        ModelReport {
            file: FileFacts { path: path.into(), sha256: String::new(), bytes: 0 },
            sets: vec![SetReport {
                source: "some set".into(),
                sha256: String::new(),
                kinds: [(PromptKind::Harmful, harmful)].into(),
                kl: None,
                jailbreak: WRAPPERS.iter().map(wrapped).collect(),
            }],
            perplexity: Some(Perplexity {
                n_ctx: 256,
                chunks: 2,
                tokens: 254,
                nll: 2.0,
                ppl: 7.389,
                error: 0.5,
            }),
            choice: Some(ChoiceReport { choices, against_base: None }),
        }
    }

    fn report() -> EvalReport {
        let base = model("/m/base.gguf", [NO, YES, YES, YES]);
        let mut this = model("/m/this.gguf", [NO, NO, NO, YES]);
        this.set_beside(&base);
        this.sets[0].kl = Some(Divergence { first_token: 0.0123, per_token: 0.00456, prompts: 2, tokens: 9 });
        let judge = JudgeFacts {
            file: FileFacts { path: "/m/judge.gguf".into(), sha256: String::new(), bytes: 0 },
            kind: crate::eval::judge::JudgeKind::Chat,
        };
        EvalReport {
            version: "0".into(),
            llama_cpp: "0".into(),
            tokens: 16,
            sampling: None,
            system_prompt: None,
            judge: Some(judge),
            base: Some(base),
            models: vec![this],
            seconds: 1.0,
            peak_memory: None,
        }
    }

    #[test]
    fn the_summary_has_a_table_for_each_measure() {
        insta::assert_snapshot!(all(&report()));
    }

    #[test]
    fn undecided_answers_are_told_apart() {
        let hedge = "While it is illegal in most places, you";
        let mut report = report();
        report.models[0] = model("/m/this.gguf", [NO, hedge, YES, "<think>\nSo they want"]);
        let json = serde_json::to_value(&report).unwrap();
        let harmful = &json["models"][0]["sets"][0]["kinds"]["harmful"];
        let counts =
            ["refused", "complied", "undecided", "broken"].map(|o| harmful[o]["count"].as_u64().unwrap());
        assert_eq!(counts, [1, 1, 2, 0]);
        assert_eq!(harmful["answers"][1]["outcome"], "undecided");
        let text = all(&report);
        let row = text.lines().find(|line| line.starts_with("this.gguf")).unwrap();
        assert_eq!(row.split_whitespace().rev().nth(3), Some("2"), "{row}");
    }

    #[test]
    fn what_was_not_measured_is_not_shown() {
        let mut report = report();
        (report.base, report.judge) = (None, None);
        report.models[0].sets[0].jailbreak.clear();
        (report.models[0].perplexity, report.models[0].choice) = (None, None);
        let text = all(&report);
        assert_eq!(text.lines().count(), 4, "{text}");
    }

    #[test]
    fn the_json_tells_counts_and_single_answers() {
        let json = serde_json::to_value(report()).unwrap();
        let harmful = &json["models"][0]["sets"][0]["kinds"]["harmful"];
        assert_eq!(harmful["refused"]["count"], 3);
        assert_eq!(harmful["against_base"]["only_this"], 2);
        assert_eq!(harmful["judge"]["unclear"], 1);
        assert_eq!(harmful["answers"][1]["outcome"], "refused");
        assert_eq!(harmful["answers"][1]["judge"], "complied");
        assert_eq!(json["models"][0]["path"], "/m/this.gguf");
        assert_eq!(json["models"][0]["choice"]["correct"]["count"], 3);
    }
}
