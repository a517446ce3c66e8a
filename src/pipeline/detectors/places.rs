//! Where gates are, and what is tried with them.

use crate::arch::plan::{Ffn, Plan};
use crate::method::edit::Method;
use crate::method::search::{Candidate, DirectionSource, Space};
use crate::pipeline::options::InjectOptions;

/// Where gates push late: at the last token of a prompt, from which the answer is read. Depths of the blocks, as shares.
const LATE: [f64; 4] = [0.479, 0.521, 0.563, 0.646];
/// Depth of the last of them: behind it nothing is computed for prompts that only teach gates.
pub(in crate::pipeline) const DEEPEST: f64 = LATE[LATE.len() - 1];
/// Where they push early: at the token of the template at which the kinds are told apart best. What is pushed there reaches
/// the answer through attention, so only before the blocks that read it.
const EARLY: [f64; 4] = [0.438, 0.479, 0.521, 0.563];
/// Push towards refusal of all late gates together, in units of their directions, beside refusals of the model's own.
pub(in crate::pipeline) const PUSH: f64 = 6.0;
/// Share of the harmful prompts from which on a model refuses enough of its own. One that refuses none needs twice the
/// push: half-open gates, which tip the balance in others, must do it alone there (docs/notebook/removed-refusal.md).
const OWN: f64 = 0.5;
/// Pull away from refusal, as a share of the push. Early gates pull as far as late ones.
pub(super) const PULL: f64 = 1.33;
/// Parts of the push that are tried: the default, then a gentler one and a harder one.
const PARTS: [f64; 3] = [1.0, 2.0 / 3.0, 4.0 / 3.0];

/// The push for a model that refuses `rate` of the harmful prompts of its own.
pub(super) fn push(rate: f64) -> f64 {
    PUSH * (2.0 - (rate / OWN).min(1.0))
}

/// What is tried with `direction_source`: the layers, and the pulls for [`settings`].
pub fn space(options: &InjectOptions, plan: &Plan, direction_source: DirectionSource, push: f64) -> Space {
    let pull = options.search.contrast.unwrap_or(PULL);
    let layers = Places::of(plan, options.search.layer).late;
    let depth = |layer: usize| layer as f64 / plan.n_layer.max(1) as f64;
    let (first, last) = (layers.first().copied().unwrap_or(0), layers.last().copied().unwrap_or(0));
    Space {
        direction_source,
        layer: Some(layers.get(layers.len() / 2).copied().unwrap_or(0)),
        windows: vec![(depth(first), depth(last + 1))],
        contrasts: vec![pull],
        first_strength: options.search.strength.unwrap_or(push),
        strongest: Method::Detector.max_strength(),
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
    let (direction_source, layer, window) =
        (space.direction_source, space.layer.unwrap_or(0), space.windows[0]);
    let candidate = Candidate { direction_source, layer, window, contrast: space.contrasts[0] };
    let parts = if options.search.strength.is_some() { &PARTS[..1] } else { &PARTS };
    parts.iter().map(|part| (candidate, part * space.first_strength)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_refuses_little_is_pushed_further() {
        assert_eq!([0.0, 0.25, 0.5, 0.9].map(push), [2.0 * PUSH, 1.5 * PUSH, PUSH, PUSH]);
    }
}
