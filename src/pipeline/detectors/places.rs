//! Where gates are, and what is tried with them.

use crate::arch::plan::{Ffn, Plan};
use crate::method::search::{Candidate, DirectionSource, Space};
use crate::pipeline::options::InjectOptions;

/// Where gates push late: at the last token of a prompt, from which the answer is read. Depths of the blocks, as shares.
const LATE: [f64; 4] = [0.479, 0.521, 0.563, 0.646];
/// Depth of the last of them: behind it nothing is computed for prompts that only teach gates.
pub(in crate::pipeline) const DEEPEST: f64 = LATE[LATE.len() - 1];
/// Where they push early: at the token of the template at which the kinds are told apart best. What is pushed there reaches
/// the answer through attention, so only before the blocks that read it.
const EARLY: [f64; 4] = [0.438, 0.479, 0.521, 0.563];
/// What is tried, the default first, then a gentler one and one that pushes harder: the push towards refusal of all late gates
/// together, in units of their directions, and the pull away from it as a share of the push. Early gates pull as far as late
/// ones.
pub(super) const SETTINGS: [(f64, f64); 3] = [(6.0, 1.33), (4.0, 1.33), (8.0, 1.33)];
/// What is tried with `direction_source`: the layers, and the pulls for [`settings`].
pub fn space(options: &InjectOptions, plan: &Plan, direction_source: DirectionSource) -> Space {
    let pull = options.search.contrast.unwrap_or(SETTINGS[0].1);
    let layers = Places::of(plan, options.search.layer).late;
    let depth = |layer: usize| layer as f64 / plan.n_layer.max(1) as f64;
    let (first, last) = (layers.first().copied().unwrap_or(0), layers.last().copied().unwrap_or(0));
    Space {
        direction_source,
        layer: Some(layers.get(layers.len() / 2).copied().unwrap_or(0)),
        windows: vec![(depth(first), depth(last + 1))],
        contrasts: vec![pull],
        first_strength: options.search.strength.unwrap_or(SETTINGS[0].0),
    }
}

/// The blocks of early and of late gates, and every network among them.
pub(super) struct Places {
    pub early: Vec<usize>,
    pub late: Vec<usize>,
    pub networks: Vec<Ffn>,
}

impl Places {
    pub fn of(plan: &Plan, layer: Option<usize>) -> Self {
        let [early, late] = [&EARLY, &LATE].map(|depths| places(plan, layer, depths));
        let mut networks: Vec<Ffn> = early.iter().chain(&late).map(|&ffn| ffn.clone()).collect();
        networks.sort_by_key(|ffn| ffn.layer);
        networks.dedup();
        let layers = |ffns: Vec<&Ffn>| ffns.iter().map(|ffn| ffn.layer).collect();
        Self { early: layers(early), late: layers(late), networks }
    }
}

/// The networks that may be changed.
pub fn networks(plan: &Plan, layer: Option<usize>) -> Vec<Ffn> {
    Places::of(plan, layer).networks
}

/// Names of the tensors that may be changed.
pub fn tensors(plan: &Plan, layer: Option<usize>) -> Vec<String> {
    let of = |ffn: &Ffn| ffn.rows().chain([&plan.writers[ffn.writer].tensor]).cloned().collect::<Vec<_>>();
    networks(plan, layer).iter().flat_map(of).collect()
}

/// The edits of `space` that are tried, the default first, or the one that the user wants.
pub fn settings(space: &Space, options: &InjectOptions) -> Vec<(Candidate, f64)> {
    let of = |&(push, pull): &(f64, f64)| {
        let (direction_source, layer, window) =
            (space.direction_source, space.layer.unwrap_or(0), space.windows[0]);
        let contrast = options.search.contrast.unwrap_or(pull);
        (Candidate { direction_source, layer, window, contrast }, options.search.strength.unwrap_or(push))
    };
    let mut settings: Vec<(Candidate, f64)> = SETTINGS.iter().map(of).collect();
    if options.search.strength.is_some() {
        settings.truncate(1);
    }
    settings
}

/// The networks nearest to `depths`, or as far around `layer`.
fn places<'a>(plan: &'a Plan, layer: Option<usize>, depths: &[f64]) -> Vec<&'a Ffn> {
    let middle = LATE[LATE.len() / 2];
    let mut chosen: Vec<&Ffn> = Vec::new();
    for depth in depths {
        let wanted = match layer {
            None => depth * plan.n_layer as f64 - 0.5,
            Some(layer) => layer as f64 + (depth - middle) * plan.n_layer as f64,
        };
        let free = plan.ffns.iter().filter(|ffn| chosen.iter().all(|other| other.layer != ffn.layer));
        let distance = |ffn: &&Ffn| (ffn.layer as f64 - wanted).abs();
        chosen.extend(free.min_by(|a, b| distance(a).total_cmp(&distance(b))));
    }
    chosen.sort_by_key(|ffn| ffn.layer);
    chosen
}
