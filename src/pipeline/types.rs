//! Early check, from the header alone, that every tensor of an edit can be written in its target type.

use crate::arch::plan::{Ffn, Plan};
use crate::method::edit::Method;
use crate::method::requant::Part;
use crate::method::search::DirectionSource;
use crate::pipeline::error::Error;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::Opened;
use crate::pipeline::stored::Taken;
use crate::pipeline::{detectors, features};

/// Checks the tensors that the search, or the stored edit, may change.
///
/// # Errors
/// Returns [`Error::Edit`] with the first tensor that cannot be written, and the reason.
pub fn check(opened: &Opened, options: &InjectOptions, taken: Option<&Taken>) -> Result<(), Error> {
    let plan = &opened.plan;
    let parts = match (options.method, taken) {
        (Method::Detector, None) => neurons(plan, &detectors::networks(plan, options.search.layer)),
        (Method::Detector, Some(taken)) => {
            let stored = |ffn: &&Ffn| taken.edit.networks.iter().any(|n| n.facts.writer == writer(plan, ffn));
            neurons(plan, &plan.ffns.iter().filter(stored).cloned().collect::<Vec<_>>())
        }
        (_, None) => matrices(plan, options),
        (_, Some(taken)) => taken.edit.writers.iter().map(|w| (w.tensor.clone(), Part::Matrix)).collect(),
    };
    for (name, part) in parts {
        if let Some(tensor) = opened.gguf.tensor(&name) {
            options.write.requant.check(tensor, part)?;
        }
    }
    Ok(())
}

fn writer<'a>(plan: &'a Plan, ffn: &Ffn) -> &'a str {
    &plan.writers[ffn.writer].tensor
}

/// Returns the tensors that neuron edits of `networks` change, and the changed parts.
fn neurons(plan: &Plan, networks: &[Ffn]) -> Vec<(String, Part)> {
    let of = |ffn: &Ffn| {
        let rows = ffn.rows().map(|name| (name.clone(), Part::Rows));
        rows.chain([(writer(plan, ffn).to_owned(), Part::Columns)]).collect::<Vec<_>>()
    };
    networks.iter().flat_map(of).collect()
}

/// Returns the writers in all windows of the search space.
fn matrices(plan: &Plan, options: &InjectOptions) -> Vec<(String, Part)> {
    let direction_sources =
        [DirectionSource::Refusal, DirectionSource::Plain, DirectionSource::Safety, DirectionSource::Ablated];
    let direction_sources = direction_sources.into_iter().filter(|&direction_source| {
        options.learn.direction_source.is_none_or(|only| only == direction_source)
    });
    let windows =
        direction_sources.flat_map(|direction_source| features::space_of(options, direction_source).windows);
    let writers = windows.flat_map(|window| plan.writers_in(window));
    writers.map(|i| (plan.writers[i].tensor.clone(), Part::Matrix)).collect()
}
