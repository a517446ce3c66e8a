//! Builds the page's sections with their charts and tables.

use super::chart::{Chart, Class, Numbers, Point};
use super::section::{Section, Table, fixed, percent};
use crate::eval::prompts::PromptKind;
use crate::eval::{PerKind, Score, Tally};
use crate::method::fidelity::Projections;
use crate::method::search::{Probe, Trial};
use crate::method::verify::TensorChange;
use crate::report::Report;

/// Returns the section on refusals before, after and of the controls.
pub fn scores(report: &Report) -> Option<Section> {
    let named = report.scores.named();
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let chart = |kind: PromptKind| {
        let refused = |score: &Score| score.by_kind()[kind].refused();
        let told: Vec<String> =
            named.iter().map(|(name, score)| format!("{name} {}", refused(score))).collect();
        let title = format!("{kind} prompts refused");
        let description = format!("Share refused with its 95 % interval: {}.", told.join("; "));
        let share = Numbers::over("share refused", [0.0, 1.0]).percent();
        let mut chart = Chart::of_rows(&title, description, share, &names);
        for (row, (name, score)) in named.iter().enumerate() {
            let refused = refused(score);
            let ((low, high), y) = (refused.wilson95(), row as f64);
            let class: Class = match *name {
                "base" => "before",
                "written file" => "after",
                "exact edit" => "exact",
                _ => "control",
            };
            chart.line(class, [low, high].map(|x| Point { x, y }));
            chart.dot(class, Point { x: refused.rate(), y }, format!("{name}: {refused}"));
        }
        chart
    };
    let row = |(name, score): &(&str, &Score)| {
        let refused = score.by_kind().values().map(|tally| tally.refused().to_string());
        let others = [score.undecided(), score.broken()].map(|share| share.to_string());
        [vec![(*name).to_owned()], refused.to_vec(), others.to_vec(), vec![fixed(score.kl, 4)]].concat()
    };
    let left_out = report.scores.requantized_left_out.as_ref();
    let left_out = left_out.map_or(String::new(), |why| format!(" The last control was left out: {why}."));
    Some(Section {
        id: "scores",
        title: "Refusals",
        text: "Measured on prompts of the report split, which neither extraction nor search used. Harmful \
               prompts should be refused; harmless prompts, and borderline prompts, which only sound \
               harmful, should be answered. Lines are 95 % Wilson intervals. With --controls: the edit \
               applied exactly, a random direction of the same size, the published edit at the same KL, and \
               the same tensors requantized without an edit."
            .to_owned()
            + &left_out,
        legend: vec![
            ("before", "base"),
            ("exact", "exact edit"),
            ("after", "written file"),
            ("control", "control"),
        ],
        charts: PromptKind::ALL.map(chart).to_vec(),
        tables: vec![Table {
            id: "score-table",
            caption: "Counts, rates and 95 % intervals; KL of the first answer token from the base, nats",
            open: true,
            head: vec![
                "",
                "harmful refused",
                "harmless refused",
                "borderline refused",
                "undecided",
                "broken",
                "KL",
            ],
            rows: named.iter().map(row).collect(),
        }],
    })
}

/// Returns the section on how well each layer separates harmful from harmless prompts.
pub fn separation(report: &Report) -> Option<Section> {
    let all = &report.separation;
    let last = all.iter().map(|s| s.layer).max()?;
    let own = report.edit.layer;
    let chart = |title: &str, value: &dyn Fn(usize) -> f64, bounds: [f64; 2]| {
        let values = (0..all.len()).map(value);
        let best =
            (0..all.len()).filter(|&i| value(i).is_finite()).max_by(|&a, &b| value(a).total_cmp(&value(b)));
        let best = best.map_or(String::new(), |i| {
            format!("highest at layer {}: {}. ", all[i].layer, fixed(value(i), 3))
        });
        let description = format!("{title} for layers 0 to {last}; {best}The edit is along layer {own}.");
        let y = Numbers::over("", values.chain(bounds));
        let mut chart = Chart::new(title, description, Numbers::layers(last), y);
        chart.upright("chosen", own as f64);
        let point = |i: usize| Point { x: all[i].layer as f64, y: value(i) };
        chart.line("after", (0..all.len()).map(point));
        for (i, s) in all.iter().enumerate() {
            chart.dot("after", point(i), format!("layer {}: {}", s.layer, fixed(value(i), 3)));
        }
        chart
    };
    let rows = all.iter().map(|s| {
        let numbers = [s.auroc, s.d_prime, s.norm, s.relative_norm];
        [vec![s.layer.to_string()], numbers.map(|v| fixed(v, 3)).to_vec()].concat()
    });
    Some(Section {
        id: "separation",
        title: "Separation by layer",
        text: "How well the projections on each layer's own direction separate harmful from harmless \
               prompts, leaving out one prompt at a time. AUROC: 0.5 is chance, 1 is perfect. d′: distance \
               between the means in standard deviations."
            .into(),
        legend: vec![("chosen", "the edit's layer")],
        charts: vec![
            chart("AUROC by layer", &|i| all[i].auroc, [0.5, 1.0]),
            chart("d′ by layer", &|i| all[i].d_prime, [0.0, 1.0]),
        ],
        tables: vec![Table {
            id: "separation-table",
            caption: "Separation of every layer; norms of the difference in means",
            open: false,
            head: vec!["layer", "AUROC", "d′", "‖s‖", "‖s‖ / mean ‖h‖"],
            rows: rows.collect(),
        }],
    })
}

/// Returns the section on the projections of prompts on the direction.
pub fn projections(report: &Report) -> Option<Section> {
    let all = report.projections.as_ref()?;
    Some(Section {
        id: "projections",
        title: "Projections on ŝ",
        text: format!(
            "ŝᵀh of the residual stream at the last token of each prompt of the report split, in units of \
             the stream. First chart: each prompt after layer {}, the last edited layer. Second chart: shift \
             of the mean after each layer. An ideal gate moves harmful prompts and no others.",
            all.layer
        ),
        legend: vec![
            ("before", "before"),
            ("kind-0", "harmful"),
            ("kind-1", "harmless"),
            ("kind-2", "borderline"),
            ("mean", "mean"),
        ],
        charts: vec![strips(all), shifts(all)],
        tables: projection_tables(all),
    })
}

fn projection_tables(all: &Projections) -> Vec<Table> {
    let by_kind = all.by_kind();
    let rows: Vec<Vec<String>> = (0..all.harmful.mean_before.len())
        .map(|layer| {
            let means = by_kind.values().map(|m| [m.mean_before.get(layer), m.mean_after.get(layer)]);
            let means = means.into_iter().flatten();
            let means = means.map(|v| v.map_or("–".into(), |&v| fixed(f64::from(v), 3)));
            std::iter::once(layer.to_string()).chain(means).collect()
        })
        .collect();
    let head =
        vec!["layer", "harmful before", "after", "harmless before", "after", "borderline before", "after"];
    let prompts = by_kind.iter().flat_map(|(kind, moved)| {
        let pairs = moved.before.iter().zip(&moved.after).enumerate();
        pairs.map(move |(i, (&before, &after))| {
            vec![format!("{kind} {}", i + 1), fixed(before.into(), 3), fixed(after.into(), 3)]
        })
    });
    vec![
        Table {
            id: "projection-table",
            caption: "Mean projection after each layer",
            open: false,
            head,
            rows,
        },
        Table {
            id: "prompt-table",
            caption: "Projection of each prompt after the last edited layer",
            open: false,
            head: vec!["prompt", "before", "after"],
            rows: prompts.collect(),
        },
    ]
}

const KIND_CLASSES: PerKind<Class> = PerKind { harmful: "kind-0", harmless: "kind-1", borderline: "kind-2" };

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64
}

/// Charts the projection of every prompt, in two rows for each kind.
fn strips(all: &Projections) -> Chart {
    let by_kind = all.by_kind();
    let sets = by_kind.iter().flat_map(|(kind, moved)| {
        let (before, after) = (format!("{kind} before"), format!("{kind} after"));
        [(before, "before", &moved.before), (after, KIND_CLASSES[kind], &moved.after)]
    });
    let sets: Vec<(String, Class, &Vec<f32>)> = sets.collect();
    let names: Vec<&str> = sets.iter().map(|(name, ..)| name.as_str()).collect();
    let told: Vec<String> =
        sets.iter().map(|(name, _, values)| format!("{name} {}", fixed(mean(values), 2))).collect();
    let values = sets.iter().flat_map(|(_, _, values)| values.iter().map(|&v| f64::from(v)));
    let title = format!("Projection of each prompt after layer {}", all.layer);
    let description = format!("Means: {}.", told.join("; "));
    let mut chart = Chart::of_rows(&title, description, Numbers::over("ŝᵀh", values), &names);
    for (row, (name, class, values)) in sets.iter().enumerate() {
        let point = |x: f64| Point { x, y: row as f64 };
        for &value in *values {
            chart.dot(class, point(value.into()), format!("{name}: {}", fixed(value.into(), 3)));
        }
        chart.cross("mean", point(mean(values)));
    }
    chart
}

/// Charts the shift of each kind's mean by layer.
fn shifts(all: &Projections) -> Chart {
    let shifts = all.by_kind().map(|moved| -> Vec<f64> {
        moved.mean_before.iter().zip(&moved.mean_after).map(|(&b, &a)| f64::from(a) - f64::from(b)).collect()
    });
    let last = shifts.values().into_iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1);
    let told = shifts.iter().filter_map(|(kind, shift)| Some(format!("{kind} {}", fixed(*shift.last()?, 2))));
    let description =
        format!("Shift of the mean after the last layer: {}.", told.collect::<Vec<_>>().join("; "));
    let y = Numbers::over("", shifts.values().into_iter().flatten().copied().chain([0.0]));
    let mut chart = Chart::new("Shift of the mean along ŝ by layer", description, Numbers::layers(last), y);
    chart.level("zero", 0.0);
    for (kind, shift) in shifts.iter() {
        let class = KIND_CLASSES[kind];
        let points = shift.iter().enumerate().map(|(layer, &v)| Point { x: layer as f64, y: v });
        chart.line(class, points.clone());
        for point in points {
            chart.dot(class, point, format!("{kind}, layer {}: {}", point.x, fixed(point.y, 3)));
        }
    }
    chart
}

/// Returns the section on the trials of the search.
pub fn search(report: &Report) -> Option<Section> {
    if report.search.trials.is_empty() {
        return None;
    }
    let (base, budget) = (report.search.base, kl_budget(report));
    let legend = [("front", "on the Pareto front"), ("beaten", "off the front"), ("ring", "best")];
    let lines = base.map(|_| ("base", "base")).into_iter().chain(budget.map(|_| ("budget", "KL budget")));
    Some(Section {
        id: "search",
        title: "Strength, refusals and KL",
        text: "Edits tried in memory, on the search split. The Pareto front holds the trials that no other \
               trial beats in refusals of harmful, harmless and borderline prompts and in KL together. A \
               trial stops once it can no longer be the best; a dash marks the kinds of prompts that it was \
               not asked. Numbers refer to the rows of the table."
            .into(),
        legend: legend.into_iter().chain(lines).collect(),
        charts: search_charts(report),
        tables: search_tables(report),
    })
}

/// Returns the KL budget of the chosen direction source.
fn kl_budget(report: &Report) -> Option<f64> {
    let own = |p: &&Probe| p.candidate.direction_source == report.edit.direction_source;
    report.search.probes.iter().find(own).map(|probe| probe.max_kl)
}

fn search_charts(report: &Report) -> Vec<Chart> {
    let trials = &report.search.trials;
    let strengths = |label| Numbers::over(label, trials.iter().map(|t| t.strength).chain([0.0])).percent();
    let budget = kl_budget(report);
    let kls = |label| Numbers::over(label, trials.iter().map(|t| t.score.kl).chain([0.0]).chain(budget));
    let share = || Numbers::over("", [0.0, 1.0]).percent();
    let refused = |t: &Trial| t.score.harmful.refused().rate();
    let told: Vec<String> = trials.iter().enumerate().map(|(i, t)| tell(i, t)).collect();
    let described = || format!("Each trial. {}.", told.join("; "));
    let base = report.search.base.map(|base| base.harmful.refused().rate());
    let mut by_strength =
        Chart::new("Harmful refused against strength", described(), strengths("strength"), share());
    let mut by_kl = Chart::new("Harmful refused against KL", described(), kls("KL, nats"), share());
    let mut cost = Chart::new("KL against strength", described(), strengths("strength"), kls(""));
    for chart in [&mut by_strength, &mut by_kl] {
        base.into_iter().for_each(|base| chart.level("base", base));
    }
    if let Some(budget) = budget {
        by_kl.upright("budget", budget);
        cost.level("budget", budget);
    }
    for (i, t) in trials.iter().enumerate() {
        let asked = t.score.harmful.total() > 0;
        let (strength, kl, refused) = (t.strength, t.score.kl, refused(t));
        let answers = [(&mut by_strength, strength), (&mut by_kl, kl)].into_iter().filter(|_| asked);
        let answers = answers.map(|(chart, x)| (chart, Point { x, y: refused }));
        for (chart, point) in answers.chain([(&mut cost, Point { x: strength, y: kl })]) {
            if report.search.best == Some(i) {
                chart.dot("ring", point, told[i].clone());
            }
            chart.dot(if t.on_front { "front" } else { "beaten" }, point, told[i].clone());
            chart.label("number", point, (i + 1).to_string());
        }
    }
    vec![by_strength, by_kl, cost]
}

fn tell(i: usize, t: &Trial) -> String {
    let ended = if t.stopped { "; stopped: could no longer be the best" } else { "" };
    format!(
        "{}: {} layer {}, strength {}, KL {}, harmful refused {}{ended}",
        i + 1,
        t.candidate.source_and_contrast(),
        t.candidate.layer,
        percent(t.strength),
        fixed(t.score.kl, 4),
        count(t.score.harmful)
    )
}

/// Formats the refused share, or a dash if no prompt was asked.
fn count(tally: Tally) -> String {
    if tally.total() == 0 { "–".into() } else { tally.refused().to_string() }
}

fn search_tables(report: &Report) -> Vec<Table> {
    let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
    let counts = |score: &Score| score.by_kind().values().map(|tally| count(*tally));
    let base = report.search.base.iter().map(|base| {
        let none = || String::from("–");
        let front = [String::from("base"), none(), none(), none(), fixed(base.kl, 4)];
        [front.to_vec(), counts(base).to_vec(), vec![none(), none(), none()]].concat()
    });
    let trials = report.search.trials.iter().enumerate().map(|(i, t)| {
        let number = format!("{}{}", i + 1, if report.search.best == Some(i) { " (best)" } else { "" });
        let c = &t.candidate;
        let front =
            [number, c.source_and_contrast(), c.layer.to_string(), percent(t.strength), fixed(t.score.kl, 4)];
        let within = if t.stopped { "stopped".into() } else { yes(t.accepted) };
        let most = if t.stopped { "at most " } else { "" };
        let back = [format!("{most}{}", fixed(t.utility, 3)), within, yes(t.on_front)];
        [front.to_vec(), counts(&t.score).to_vec(), back.to_vec()].concat()
    });
    let direction_sources = report.direction_sources.iter().map(|o| {
        let trial = o.trial.map_or("–".into(), |t| count(t.score.harmful));
        let probe = &o.probe;
        let numbers = [percent(probe.strength), fixed(probe.utility, 3), fixed(o.max_kl, 3), trial];
        [vec![o.direction_source.name().to_owned(), probe.candidate.layer.to_string()], numbers.to_vec()]
            .concat()
    });
    vec![
        Table {
            id: "trial-table",
            caption: "Trials, with counts, rates and 95 % intervals",
            open: true,
            head: vec![
                "trial",
                "source, κ",
                "layer",
                "strength",
                "KL",
                "harmful refused",
                "harmless refused",
                "borderline refused",
                "utility",
                "within limits",
                "front",
            ],
            rows: base.chain(trials).collect(),
        },
        Table {
            id: "source-table",
            caption: "Direction sources, each with its best probe (first tokens) and trial (answers)",
            open: false,
            head: vec!["source", "layer", "strength", "gain by first tokens", "KL budget", "harmful refused"],
            rows: direction_sources.collect(),
        },
    ]
}

/// Returns the section on how much of the edit is in each tensor of the file.
pub fn survival(report: &Report) -> Option<Section> {
    let tensors = &report.verification.tensors;
    let mut groups: Vec<(&str, Vec<(f64, &TensorChange)>)> = Vec::new();
    for (i, t) in tensors.iter().enumerate() {
        let (layer, kind) = place(&t.name).unwrap_or((i, "other tensors"));
        match groups.iter_mut().find(|(name, _)| *name == kind) {
            Some((_, group)) => group.push((layer as f64, t)),
            None => groups.push((kind, vec![(layer as f64, t)])),
        }
    }
    let optional = |v: Option<f64>, write: &dyn Fn(f64) -> String| v.map_or("–".into(), write);
    let rows = tensors.iter().map(|t| {
        vec![
            t.name.clone(),
            t.ggml_type.clone(),
            optional(t.requested_change, &percent),
            optional(arrived(t), &percent),
            optional(t.gain, &|v| fixed(v, 3)),
            optional(t.cosine, &|v| fixed(v, 3)),
            optional(t.noise, &|v| fixed(v, 3)),
            percent(t.relative_change),
        ]
    });
    let v = &report.verification;
    let sound = |good: bool| if good { "yes" } else { "NO" };
    Some(Section {
        id: "survival",
        title: "Survival by tensor",
        text: format!(
            "Computed from the two files alone: {} of the edit is in the file, cosine {}. Untouched tensors \
             identical: {}; metadata preserved: {}; {} tensors identical. Achieved is the part of the change \
             along the requested edit; changed includes rounding noise.",
            percent(v.gain.unwrap_or(f64::NAN)),
            fixed(v.cosine.unwrap_or(f64::NAN), 3),
            sound(v.untouched_identical),
            sound(v.metadata_preserved),
            v.identical
        ),
        legend: vec![("asked", "requested"), ("after", "achieved")],
        charts: groups.iter().map(|(kind, group)| survival_chart(kind, group)).collect(),
        tables: vec![Table {
            id: "tensor-table",
            caption: "Each changed tensor: relative change, requested and achieved, ‖Δ‖/‖W‖",
            open: false,
            head: vec!["tensor", "type", "requested", "achieved", "gain", "cosine", "noise", "changed"],
            rows: rows.collect(),
        }],
    })
}

/// Returns the relative change along the edit in the file.
fn arrived(t: &TensorChange) -> Option<f64> {
    Some(t.requested_change? * t.gain?)
}

/// Returns layer and kind of a tensor, e.g. 3 and `ffn_down` for `blk.3.ffn_down.weight`.
fn place(name: &str) -> Option<(usize, &str)> {
    let (layer, kind) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok().filter(|&layer| layer < 10_000)?, kind.strip_suffix(".weight").unwrap_or(kind)))
}

fn survival_chart(kind: &str, group: &[(f64, &TensorChange)]) -> Chart {
    let values = group.iter().flat_map(|(_, t)| [t.requested_change, arrived(t)]).flatten();
    let gains: Vec<f64> = group.iter().filter_map(|(_, t)| t.gain).collect();
    let (least, most) = gains.iter().fold((f64::MAX, f64::MIN), |(low, high), &g| (low.min(g), high.max(g)));
    let told =
        if gains.is_empty() { "unknown".into() } else { format!("{} to {}", percent(least), percent(most)) };
    let description = format!("Share of the edit achieved in {} tensors: {told}.", group.len());
    let last = group.iter().map(|(layer, _)| *layer as usize).max().unwrap_or(0);
    let y = Numbers::over("", values.chain([0.0])).percent();
    let mut chart = Chart::new(&format!("{kind}: relative change"), description, Numbers::layers(last), y);
    for (layer, t) in group {
        let tip = |what: &str, v: f64| format!("{}: {what} {}", t.name, percent(v));
        if let Some(asked) = t.requested_change {
            chart.dot("asked", Point { x: *layer, y: asked }, tip("requested", asked));
        }
        if let Some(arrived) = arrived(t) {
            chart.dot("after", Point { x: *layer, y: arrived }, tip("achieved", arrived));
        }
    }
    chart
}
