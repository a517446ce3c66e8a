//! Compares the writers found in the graph with those of the plan.

use std::collections::{BTreeMap, BTreeSet};

use rosi_gguf::arch::patches::{ArchPatch, WriterKind, in_block};
use rosi_gguf::arch::plan::{Plan, ResidualWriter};

use super::walk::{Found, Step, Writer};

/// Returns the differences between `plan` and the results of the walks back from each block and from the end.
pub fn differences(
    patch: &ArchPatch,
    plan: &Plan,
    blocks: &[Option<Found>],
    end: Option<&Found>,
) -> Vec<String> {
    let mut out = Vec::new();
    let mut all = BTreeSet::new();
    for (layer, found) in blocks.iter().enumerate() {
        let Some(found) = found else {
            out.push(format!("the graph has no node {}", plan.residual_node(layer)));
            continue;
        };
        let planned = plan.writers.iter().filter(|w| w.layer == layer && w.kind != WriterKind::Embedding);
        let planned: BTreeMap<&str, &ResidualWriter> = planned.map(|w| (w.tensor.as_str(), w)).collect();
        for (name, writer) in &found.writers {
            all.insert(name.as_str());
            let embedding = is_embedding(patch, name, layer);
            match planned.get(name.as_str()) {
                Some(plan) => out.extend(ways(plan, writer)),
                None if embedding || left_alone(patch, name, layer) => {}
                None => {
                    out.push(format!("{name} is a writer in the graph{}, not in the plan", shown(writer)));
                }
            }
        }
        let absent = planned.keys().filter(|name| !found.writers.contains_key(**name));
        out.extend(absent.map(|name| format!("{name} is a writer in the plan, not in the graph")));
        out.extend(found.opaque.iter().map(|op| format!("block {layer}: the walk back ends at {op}")));
    }
    let folded: BTreeSet<String> = out.iter().map(|line| folded(line)).collect();
    out = folded.into_iter().collect();
    if let Some(end) = end {
        let late =
            end.writers.keys().filter(|name| !all.contains(name.as_str()) && !left_alone(patch, name, 0));
        out.extend(late.map(|name| format!("{name} writes after the last {}", plan.residual_name)));
    }
    out
}

/// Replaces block numbers in `text`, so that the same difference in several blocks is reported once.
fn folded(text: &str) -> String {
    let mut parts = text.split("blk.");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out += "blk.";
        out += if rest.len() < part.len() { "{i}" } else { "" };
        out += rest;
    }
    out
}

fn is_embedding(patch: &ArchPatch, name: &str, layer: usize) -> bool {
    let named =
        |kind: WriterKind, pattern: &str| kind == WriterKind::Embedding && in_block(pattern, layer) == name;
    patch.writers.iter().any(|w| named(w.kind, &w.tensor))
}

/// Returns whether the patch file excludes the matrix from edits.
fn left_alone(patch: &ArchPatch, name: &str, layer: usize) -> bool {
    patch.not_writers.iter().any(|pattern| in_block(pattern, layer) == name)
}

/// Returns the writers in the graph that the plan omits because the patch file excludes them.
pub fn left(patch: &ArchPatch, plan: &Plan, blocks: &[Option<Found>]) -> Vec<String> {
    let mut names = BTreeSet::new();
    for (layer, found) in blocks.iter().enumerate() {
        let writers = found.iter().flat_map(|found| found.writers.keys());
        let unplanned = writers.filter(|name| plan.writers.iter().all(|w| w.tensor != **name));
        names.extend(unplanned.filter(|name| left_alone(patch, name, layer)).map(|name| folded(name)));
    }
    names.into_iter().collect()
}

fn shown(writer: &Writer) -> String {
    let ways: Vec<String> = writer.ways.iter().map(|way| way_text(way)).collect();
    let ways = ways.join(" | ");
    if ways.is_empty() { ways } else { format!(" ({ways})") }
}

fn way_text(way: &[Step]) -> String {
    way.iter().map(Step::to_string).collect::<Vec<_>>().join(" ")
}

/// Returns the differences between the plan and the graph in the ways from one writer to the residual.
fn ways(plan: &ResidualWriter, writer: &Writer) -> Vec<String> {
    let mut out = Vec::new();
    let name = &plan.tensor;
    if (plan.n_expert > 1) != writer.experts {
        out.push(format!(
            "{name}: {} experts in the plan, MUL_MAT_ID in the graph: {}",
            plan.n_expert, writer.experts
        ));
    }
    for way in &writer.ways {
        // A norm cancels any factor inside it.
        let outside = way.iter().take_while(|step| !matches!(step, Step::Norm(..)));
        let factor: f64 = outside
            .filter_map(|s| if let Step::Scale(b) = s { Some(b) } else { None })
            .map(|b| f64::from(f32::from_bits(*b)))
            .product();
        if (factor / plan.residual_scale - 1.0).abs() > 1e-3 {
            out.push(format!("{name}: factor {} in the plan, {factor} in the graph", plan.residual_scale));
        }
        let norms: Vec<&str> = way
            .iter()
            .filter_map(|s| if let Step::Norm(gain, _) = s { Some(gain.as_str()) } else { None })
            .collect();
        let planned: Vec<&str> = plan.outer_norm.iter().chain(&plan.post_norm).map(String::as_str).collect();
        if norms != planned {
            out.push(format!("{name}: norms {planned:?} in the plan, {norms:?} in the graph"));
        }
        let other = way.iter().filter_map(|s| if let Step::Norm(_, op) = s { Some(op) } else { None });
        out.extend(other.filter(|op| *op != "RMS_NORM").map(|op| format!("{name}: the norm is a {op}")));
        let scales: Vec<&str> = way
            .iter()
            .filter_map(|s| if let Step::Tensor(t) = s { Some(t.as_str()) } else { None })
            .collect();
        if scales != Vec::from_iter(plan.scale.as_deref()) {
            out.push(format!("{name}: scale {:?} in the plan, {scales:?} in the graph", plan.scale));
        }
        if way.iter().any(|step| matches!(step, Step::Product | Step::Vector(_))) {
            out.push(format!(
                "{name}: multiplied by a vector, which changes its direction: {}",
                way_text(way)
            ));
        }
    }
    out
}

/// Lists the writers of all blocks, one line for the same writer in several: `blk.{i}.attn_output.weight (…) in 0 1`.
pub fn listed(blocks: &[Option<Found>]) -> Vec<String> {
    let mut lines: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (layer, found) in blocks.iter().enumerate() {
        let Some(found) = found else { continue };
        let fold = |text: &str| text.replace(&format!("blk.{layer}."), "blk.{i}.");
        for (name, writer) in &found.writers {
            let experts = if writer.experts { ", experts" } else { "" };
            let embedding = if writer.embedding { ", rows" } else { "" };
            let line = format!("{}{}{experts}{embedding}", fold(name), fold(&shown(writer)));
            lines.entry(line).or_default().insert(layer);
        }
        for op in &found.opaque {
            lines.entry(format!("(ends at {op})")).or_default().insert(layer);
        }
    }
    let places = |layers: &BTreeSet<usize>| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    lines.iter().map(|(line, layers)| format!("{line} in {}", places(layers))).collect()
}
