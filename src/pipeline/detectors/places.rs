//! Places for gates, and the settings that the search tries.

use crate::arch::plan::{Ffn, Plan};
use crate::arch::window::Window;
use crate::method::edit::Method;
use crate::method::search::{Candidate, DirectionSource, Space, own_refusal};
use crate::pipeline::options::InjectOptions;

/// Depths of the blocks with late gates, as fractions. Late gates act at the last token of a prompt, where the answer
/// starts.
const LATE: [f64; 4] = [0.479, 0.521, 0.563, 0.646];
/// Depth of the last late gate. For prompts that only train gates, nothing deeper is computed.
pub(in crate::pipeline) const DEEPEST: f64 = LATE[LATE.len() - 1];
/// Depths of the blocks with early gates, as fractions. Early gates act at the template token where the prompt kinds
/// separate best. Their push reaches the answer through attention, so they must come before the blocks that read it.
const EARLY: [f64; 4] = [0.438, 0.479, 0.521, 0.563];
/// Total push of all late gates toward refusal, in lengths of the direction, for a model that refuses on its own.
pub(in crate::pipeline) const PUSH: f64 = 6.0;
/// Pull away from refusal, as a multiple of the push of late gates. Early gates pull as hard as late ones.
pub(super) const PULL: f64 = 1.33;
/// Multiples of the push that the search tries: the default, then a weaker and a stronger one.
const PARTS: [f64; 3] = [1.0, 2.0 / 3.0, 4.0 / 3.0];

/// Returns the push for a model that refuses the share `rate` of harmful prompts on its own. One that refuses none needs
/// twice the push: half-open gates must tip the balance alone there (docs/notebook/removed-refusal.md).
pub(super) fn push(rate: f64) -> f64 {
    PUSH * (2.0 - own_refusal(rate))
}

/// Returns the search space for `direction_source`: the layers, the pull and the push for [`settings`].
pub fn space(options: &InjectOptions, plan: &Plan, direction_source: DirectionSource, push: f64) -> Space {
    let pull = options.search.contrast.unwrap_or(PULL);
    let layers = Places::of(plan, options.search.layer).late;
    let depth = |layer: usize| layer as f64 / plan.n_layer.max(1) as f64;
    let (first, last) = (layers.first().copied().unwrap_or(0), layers.last().copied().unwrap_or(0));
    Space {
        direction_source,
        layer: Some(layers.get(layers.len() / 2).copied().unwrap_or(0)),
        windows: vec![Window { from: depth(first), until: depth(last + 1) }],
        contrasts: vec![pull],
        first_strength: options.search.strength.unwrap_or(push),
        strongest: Method::Detector.max_strength(),
    }
}

/// The blocks of early and of late gates, and the networks of these blocks.
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

/// Returns the networks that may be changed.
pub fn networks(plan: &Plan, layer: Option<usize>) -> Vec<Ffn> {
    Places::of(plan, layer).networks
}

/// Returns the names of the tensors that may be changed.
pub fn tensors(plan: &Plan, layer: Option<usize>) -> Vec<String> {
    let of = |ffn: &Ffn| ffn.rows().chain([&plan.writers[ffn.writer].tensor]).cloned().collect::<Vec<_>>();
    networks(plan, layer).iter().flat_map(of).collect()
}

/// Returns the settings of `space` to try, default first; only one if the user fixed the strength.
pub fn settings(space: &Space, options: &InjectOptions) -> Vec<(Candidate, f64)> {
    let (direction_source, layer, window) =
        (space.direction_source, space.layer.unwrap_or(0), space.windows[0]);
    let candidate = Candidate { direction_source, layer, window, contrast: space.contrasts[0] };
    let parts = if options.search.strength.is_some() { &PARTS[..1] } else { &PARTS };
    parts.iter().map(|part| (candidate, part * space.first_strength)).collect()
}

/// Returns the networks nearest to `depths`, or to the same offsets around `layer` if given.
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
