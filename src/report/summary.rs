//! The summary for terminals: at most [`WIDTH`] columns, without color.

use std::collections::BTreeMap;

use super::contexts::{contexts, is_weak};
use super::{JudgeReport, Report};
use crate::eval::Score;
use crate::method::search::{Candidate, SourceOutcome, Trial};
use crate::method::verify::Arrival;
use crate::output::{Table, bar, percent, sparkline, wrap};
use crate::util::stats::Proportion;

/// Columns of the summary.
const WIDTH: usize = 100;
/// Columns of the names on the left.
const NAMES: usize = 12;
/// Columns of a bar.
const BAR: usize = 8;
/// Columns of a gate's score histogram.
const SCORES: usize = 11;

impl Report {
    /// Formats the summary.
    pub fn summary(&self) -> String {
        let parts = [
            ("control", self.left_out_line()),
            ("undecided", self.undecided_line()),
            ("edit", self.edit_line()),
            ("sources", self.source_lines()),
            ("trials", self.trial_table()),
            ("gates", self.gate_table()),
            ("contexts", self.context_table()),
            ("thinking", self.thinking_table()),
            ("judge", self.judge_table()),
            ("separation", self.separation_lines()),
            ("along ŝ", self.projection_line()),
            ("survival", self.survival_line()),
            ("fidelity", self.fidelity_line()),
        ];
        let mut text = format!("\n{}", self.score_table());
        for (name, part) in parts.iter().filter(|(_, part)| !part.is_empty()) {
            text.push('\n');
            for (i, line) in part.lines().flat_map(|line| wrap(line, WIDTH - NAMES)).enumerate() {
                let name = if i == 0 { name } else { "" };
                text += format!("{name:NAMES$}{line}").trim_end();
                text.push('\n');
            }
        }
        // Replace control characters: a stored report may come from anywhere, and a terminal obeys them.
        text.trim_end().replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
    }

    /// Formats the duration of each stage and the totals.
    pub fn times(&self) -> String {
        let mut table = Table::new(&["stage", "seconds"]);
        self.stages.iter().for_each(|s| table.row(vec![s.name.clone(), format!("{:.1}", s.seconds)]));
        let cpu = self.cpu_seconds.map_or(String::new(), |cpu| format!(", {cpu:.0} CPU seconds"));
        let peak = |bytes: u64| format!(", peak memory {} MB", bytes / 1_000_000);
        format!("\n{table}total {:.0} s{cpu}{}", self.seconds, self.peak_memory.map_or(String::new(), peak))
    }

    fn score_table(&self) -> Table {
        let kinds = ["harmful refused", "harmless refused", "borderline refused"];
        let mut table = Table::new(&["report split", kinds[0], kinds[1], kinds[2], "broken", "KL"]);
        for (name, score) in self.scores.named() {
            let [harmful, harmless, borderline] =
                [score.harmful, score.harmless, score.borderline].map(|tally| tally.refused().to_string());
            let broken = score.broken().count.to_string();
            table.row(vec![name.into(), harmful, harmless, borderline, broken, format!("{:.4}", score.kl)]);
        }
        table
    }

    /// Says which control could not be made, and why.
    fn left_out_line(&self) -> String {
        let why = self.scores.requantized_left_out.as_ref();
        why.map_or(String::new(), |why| format!("requantized only: left out, {why}"))
    }

    /// Counts the answers that neither refuse nor comply; empty if there are none.
    fn undecided_line(&self) -> String {
        let counts: Vec<String> = (self.scores.named().into_iter())
            .map(|(name, score)| (name, score.undecided()))
            .filter(|(_, undecided)| undecided.count > 0)
            .map(|(name, undecided)| format!("{name} {}/{}", undecided.count, undecided.total))
            .collect();
        if counts.is_empty() {
            String::new()
        } else {
            format!("neither refused nor complied: {}", counts.join(", "))
        }
    }

    fn edit_line(&self) -> String {
        let e = &self.edit;
        if self.is_detector() {
            let neurons: usize = self.verification.neurons.iter().map(|n| n.neurons).sum();
            return format!(
                "detectors along {}, push {:.1}, pull {:.1}: {neurons} neurons in {} matrices, {:.3} % of the file's bytes",
                e.direction_source.along(e.layer, e.system_prompt),
                e.strength,
                e.strength * e.contrast,
                e.writers,
                100.0 * self.verification.changed_bytes
            );
        }
        format!(
            "{} along {}, strength {} (α = {:.4}) in {} matrices, push {:.1}; {} of them push away from refusal",
            e.method,
            e.direction_source.along(e.layer, e.system_prompt),
            percent(e.strength),
            e.alpha,
            e.writers,
            e.push,
            e.writers_against
        )
    }

    /// Formats the result of each direction source, or the origin of a stored edit.
    fn source_lines(&self) -> String {
        if let Some(file) = &self.stored_edit {
            return format!("{}, as stored in {}", self.edit.direction_source.name(), file.path);
        }
        let tell = |o: &SourceOutcome| {
            let chosen = if o.direction_source == self.edit.direction_source { '>' } else { ' ' };
            let answers = o.trial.map_or("answers not judged".into(), |t| {
                let over = match t {
                    _ if t.stopped => return "stopped: could no longer be the best".into(),
                    _ if t.accepted => "",
                    _ => ", exceeds a limit",
                };
                format!("{} harmful refused at KL {:.3}{over}", t.score.harmful.refused(), t.score.kl)
            });
            format!(
                "{chosen} {:8}{:+.3} by first tokens, {answers}",
                o.direction_source.name(),
                o.probe.utility
            )
        };
        self.direction_sources.iter().map(tell).collect::<Vec<_>>().join("\n")
    }

    /// Formats every trial; `*` marks the Pareto front and `>` the written edit.
    fn trial_table(&self) -> String {
        if self.search.trials.is_empty() {
            return String::new();
        }
        let kinds = ["harmful refused", "", "harmless", "borderline"];
        let [edit, size] =
            if self.is_detector() { ["source, pull", "push"] } else { ["source, κ", "strength"] };
        let sized =
            |strength: f64| if self.is_detector() { format!("{strength:.1}") } else { percent(strength) };
        let mut table = Table::new(&[edit, "layer", size, "KL", kinds[0], kinds[1], kinds[2], kinds[3]]);
        let mut row = |name: String, layer: String, strength: String, score: &Score| {
            let count = |p: Proportion| match p.total {
                0 => "–".to_owned(),
                total => format!("{}/{total}", p.count),
            };
            let harmful = score.harmful.refused();
            table.row(vec![
                name,
                layer,
                strength,
                format!("{:.4}", score.kl),
                count(harmful),
                if harmful.total == 0 { String::new() } else { bar(harmful.rate(), BAR) },
                count(score.harmless.refused()),
                count(score.borderline.refused()),
            ]);
        };
        if let Some(base) = &self.search.base {
            row("   base".into(), String::new(), String::new(), base);
        }
        for (i, trial) in self.search.trials.iter().enumerate() {
            let front = if trial.on_front { '*' } else { ' ' };
            let written = if self.search.best == Some(i) { '>' } else { ' ' };
            let (edit, layer) = (trial.candidate.source_and_contrast(), trial.candidate.layer.to_string());
            row(format!("{front}{written} {edit}"), layer, sized(trial.strength), &trial.score);
        }
        let stopped = self.search.trials.iter().any(|t| t.stopped);
        let ended = if stopped { "\n– not asked: the trial could no longer be the best" } else { "" };
        let other = self.other_choice();
        format!("{table}* on the Pareto front of refusals, false refusals and KL   > best{ended}{other}")
    }

    /// Formats the flags that select the trial with the most refusals of harmful prompts, if that is not the best one.
    fn other_choice(&self) -> String {
        let refused = |t: &Trial| t.score.harmful.refused;
        let trials = self.search.trials.iter().filter(|t| t.on_front && t.accepted);
        let most = trials.max_by_key(|t| refused(t));
        let (Some(most), Some(best)) = (most, self.search.best()) else { return String::new() };
        if refused(most) <= refused(best) {
            return String::new();
        }
        let Candidate { direction_source, layer, contrast, .. } = most.candidate;
        let contrast = if contrast > 0.0 { format!(" --contrast {contrast}") } else { String::new() };
        let (direction_source, strength) = (direction_source.name(), most.strength);
        format!(
            "\nmost refusals: --direction-source {direction_source} --layer {layer}{contrast} --strength {strength:.5}"
        )
    }

    fn separation_lines(&self) -> String {
        let best = self.separation.iter().filter(|s| s.auroc.is_finite());
        let Some(best) = best.max_by(|a, b| a.auroc.total_cmp(&b.auroc)) else { return String::new() };
        // 0.5 is chance.
        let heights: Vec<f64> = self.separation.iter().map(|s| (s.auroc - 0.5) / 0.5).collect();
        let own = self.separation.iter().find(|s| s.layer == self.edit.layer);
        let own = own.map_or(String::new(), |s| {
            format!("; edit at layer {}: {:.3}, d′ {:.2}", s.layer, s.auroc, s.d_prime)
        });
        format!(
            "{}  AUROC of {} layers, ▁ 0.5 to █ 1\nbest {:.3} at layer {}{own}",
            sparkline(&heights, WIDTH - NAMES - 35),
            self.separation.len(),
            best.auroc,
            best.layer
        )
    }

    /// Formats each gate: histograms of the held-out scores of the prompts it should open on and of all others, and how
    /// often it opens.
    fn gate_table(&self) -> String {
        if self.edit.gates.is_empty() {
            return String::new();
        }
        let head = ["block", "opens on", "own scores", "others", "harmful", "harmless", "borderline", "text"];
        let mut table = Table::new(&head);
        for gate in &self.edit.gates {
            let own = gate.opens.kind().as_str();
            let bars = |wanted: bool| {
                let kinds =
                    gate.kinds.iter().filter(|kind| !kind.bars.is_empty() && (kind.of == own) == wanted);
                let mut sum = [0.0f64; SCORES];
                for (i, &n) in kinds.flat_map(|kind| kind.bars.iter().enumerate()) {
                    sum[(i * SCORES / gate.kinds[0].bars.len().max(1)).min(SCORES - 1)] += n as f64;
                }
                let most = sum.iter().copied().fold(1.0, f64::max);
                sparkline(&sum.map(|n| n / most), SCORES)
            };
            let shares = ["harmful", "harmless", "borderline", "text"]
                .map(|name| gate.of(name).map_or("–".to_owned(), |kind| percent(kind.open)));
            let token = format!("{}, −{}", gate.layer, gate.before_last + 1);
            let place = [token, gate.opens.as_str().into(), bars(true), bars(false)];
            table.row(place.into_iter().chain(shares).collect());
        }
        format!(
            "{table}block and token (−1 is the last of a prompt); lookalikes are harmful prompts that look \
             innocent; shares of held-out prompts, and of tokens of text, on which a gate is more than half \
             open"
        )
    }

    /// Formats how often the gates for harmful prompts open in each context: the mean over the gates at a prompt's last
    /// token.
    fn context_table(&self) -> String {
        let rows = contexts(&self.edit.gates);
        if rows.len() < 2 {
            return String::new();
        }
        let share = |share: Option<f64>| share.map_or("–".to_owned(), percent);
        let mut table = Table::new(&["prompts", "harmful", "harmless", "borderline"]);
        for row in &rows {
            let shares = [row.harmful, row.harmless, row.borderline].map(share);
            table.row([row.context.clone()].into_iter().chain(shares).collect());
        }
        let weak: Vec<&str> =
            rows.iter().filter(|row| is_weak(row, &rows[0])).map(|row| row.context.as_str()).collect();
        let warning = match weak.as_slice() {
            [] => String::new(),
            weak => format!(
                "\nWEAK: harmful prompts open the gates less than half as often as plain ones: {}",
                weak.join(", ")
            ),
        };
        format!(
            "{table}share of held-out training prompts on which the gates for harmful prompts are more than \
             half open at the last token{warning}"
        )
    }

    /// Formats the outcomes of answers after thoughts, before and after the edit.
    fn thinking_table(&self) -> String {
        let Some(thinking) = &self.thinking else { return String::new() };
        let head =
            ["model", "harmful refused", "harmless refused", "borderline refused", "unfinished", "tokens"];
        let mut table = Table::new(&head);
        for (name, of) in [("base", &thinking.base), ("written file", &thinking.written)] {
            let kinds = of.by_kind().values().map(|tally| counts(tally.refused()));
            let rest = [counts(of.thoughts.endless), format!("{:.0}", of.thoughts.mean_tokens)];
            table.row([name.to_owned()].into_iter().chain(kinds).chain(rest).collect());
        }
        format!(
            "{table}answers after the model's own thoughts (at most {} tokens, between {} and {}); with \
             unfinished thoughts, an answer counts as neither refused nor complied",
            thinking.budget, thinking.open, thinking.close
        )
    }

    /// Formats the judge's counts, and how often it agrees with the rules.
    fn judge_table(&self) -> String {
        let Some(report) = &self.judge else { return String::new() };
        let head =
            ["model", "harmful refused", "harmless", "borderline", "agrees with the rules", "no verdict"];
        let mut table = Table::new(&head);
        for (name, of) in report.named() {
            let kinds = of.values().map(|kind| kind.map_or("–".into(), |opinion| counts(opinion.refused)));
            let rest = [counts(JudgeReport::agreement(of)), JudgeReport::unclear(of).to_string()];
            table.row([name.to_owned()].into_iter().chain(kinds).chain(rest).collect());
        }
        format!(
            "{table}according to {} ({}), of the answers on which it gave a verdict",
            report.judge.file.path,
            report.judge.kind.as_str()
        )
    }

    fn projection_line(&self) -> String {
        let Some(projections) = &self.projections else { return String::new() };
        let mean = |all: &[f32]| all.iter().map(|&v| f64::from(v)).sum::<f64>() / all.len() as f64;
        let moved = projections.by_kind();
        let moved: Vec<String> = moved
            .iter()
            .filter(|(_, moved)| !moved.before.is_empty())
            .map(|(kind, moved)| format!("{kind} {:+.2} → {:+.2}", mean(&moved.before), mean(&moved.after)))
            .collect();
        format!("mean projection after layer {}: {}", projections.layer, moved.join(", "))
    }

    fn survival_line(&self) -> String {
        let v = &self.verification;
        let mut by_type: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
        for t in &v.tensors {
            let entry = by_type.entry(&t.ggml_type).or_default();
            entry.0 += 1;
            entry.1 += t.gain.unwrap_or(0.0);
        }
        let types: Vec<String> =
            by_type.iter().map(|(name, (n, sum))| format!("{name} {:.2}", sum / *n as f64)).collect();
        let identical = if v.untouched_identical { "yes" } else { "NO" };
        if !v.neurons.is_empty() {
            let least = |of: fn(&Arrival) -> f64| v.neurons.iter().map(of).fold(f64::INFINITY, f64::min);
            return format!(
                "{} of the neurons' effect is in the file (cosine {:.3}); their scores correlate with the \
                 exact ones by at least {:.4}, and the gates agree on at least {} of the inputs; everything \
                 else identical: {identical}",
                percent(v.gain.unwrap_or(0.0)),
                v.cosine.unwrap_or(0.0),
                least(|n| n.score),
                percent(least(|n| n.alike)),
            );
        }
        format!(
            "{} of the edit is in the file (cosine {:.3}; mean by type: {}); untouched tensors identical: {}",
            percent(v.gain.unwrap_or(0.0)),
            v.cosine.unwrap_or(0.0),
            types.join(", "),
            identical
        )
    }

    fn fidelity_line(&self) -> String {
        let f = &self.fidelity;
        format!(
            "relative to the exact edit: shift along ŝ {:.3} times as large, KL {:.4} on harmful and {:.4} \
             on harmless prompts",
            f.mean_shift, f.kl_harmful, f.kl_harmless
        )
    }
}

fn counts(proportion: Proportion) -> String {
    format!("{}/{}", proportion.count, proportion.total)
}
