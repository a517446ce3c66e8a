//! Direction sources: which ones a model offers, and their directions.
//!
//! A model that refuses reveals the direction in its answers to plain prompts. A model that refuses little may reveal
//! it under a safety prompt. A model from whose weights refusal was removed reveals it in neither way, since the
//! difference in means is orthogonal to a direction that is never written; but the weights show which direction is
//! missing.

use std::collections::BTreeMap;

use crate::eval::prompts::safety_system_prompt;
use crate::eval::{Evaluation, Evaluator};
use crate::llama::{Engine, LlamaEngine};
use crate::method::abliteration::{self, AblatedDirection, FileSource};
use crate::method::direction::{Along, Directions, SafetyDirection, Separation};
use crate::method::edit::Method;
use crate::method::search::{Candidate, DirectionSource, ExtractionPrompt, Space};
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::features::{self, Shown};
use crate::pipeline::options::{InjectOptions, SystemPrompt};
use crate::pipeline::session::{Opened, Session};
use crate::util::stats::Proportion;

/// Refusal rate on harmful prompts up to which a model counts as not refusing.
pub(super) const HARDLY: f64 = 0.1;
/// Refusal rate above which a model needs no safety prompt to reveal its direction. With one, linear gates are then
/// worse (docs/notebook/linear-gates.md) and detectors no better (docs/notebook/detectors.md).
const WELL: f64 = 0.3;
/// Increase in refusal rate under the safety prompt that justifies a second collection.
const NOTICEABLY: f64 = 0.1;

/// The direction sources that a model offers.
pub struct Offer {
    /// Whether plain prompts may be a direction source.
    plain: bool,
    /// The system prompt, if it helps or was asked for.
    system: Option<PromptUsed>,
    /// The direction removed from the weights, if any.
    pub ablated: Option<AblatedDirection>,
}

/// A system prompt to extract under.
#[derive(Clone)]
struct PromptUsed {
    origin: ExtractionPrompt,
    text: String,
}

impl Offer {
    /// Determines the direction sources. If a system prompt is tried, `evaluator` learns how refusals begin under it.
    ///
    /// # Errors
    /// Returns [`Error::NoRefusal`] if there is no direction source, [`Error::Option`] if the user requests one that
    /// the model does not offer.
    pub fn of(
        engine: &mut dyn Engine,
        evaluator: &mut Evaluator,
        base: &Evaluation,
        ablated: Option<AblatedDirection>,
        options: &InjectOptions,
        printer: &Printer,
    ) -> Result<Self, Error> {
        let plain = base.score.harmful.refused();
        let only = |direction_source| options.learn.direction_source == Some(direction_source);
        let ablated =
            ablated.filter(|_| options.learn.direction_source.is_none_or(|l| l == DirectionSource::Ablated));
        if only(DirectionSource::Ablated) {
            let problem = || "no direction is missing from the weights (see inspect --weights)".to_owned();
            return match ablated {
                Some(_) => Ok(Self { plain: false, system: None, ablated }),
                None => Err(Error::Option { flag: "--direction-source", problem: problem(), hint: None }),
            };
        }
        let mut prompted = None;
        let text = match &options.learn.system_prompt {
            _ if only(DirectionSource::Plain) => None,
            SystemPrompt::Text(text) => Some((ExtractionPrompt::User, text.as_str())),
            SystemPrompt::Off => None,
            SystemPrompt::Auto if plain.rate() > WELL && !only(DirectionSource::Safety) => None,
            SystemPrompt::Auto => Some((ExtractionPrompt::Safety, safety_system_prompt())),
        };
        let mut system = None;
        if let Some((origin, text)) = text {
            let _bar = printer.bar("asking the base model under a system prompt", 1);
            let refused = evaluator.learn_openings(engine, Some(text))?.refused();
            prompted = Some(refused);
            let is_users = origin == ExtractionPrompt::User;
            if is_users || only(DirectionSource::Safety) || helps(plain, refused) {
                system = Some(PromptUsed { origin, text: text.to_owned() });
            }
        }
        let users = system.as_ref().is_some_and(|used| used.origin == ExtractionPrompt::User);
        let none = plain.rate() <= HARDLY && system.is_none() && ablated.is_none();
        if none && !options.allow.no_refusal {
            let prompted = prompted.map(|refused| refused.count);
            return Err(Error::NoRefusal { plain: plain.count, prompted, total: plain.total });
        }
        Ok(Self { plain: !users && !only(DirectionSource::Safety), system, ablated })
    }

    /// Returns the system prompt used by `direction_source`.
    pub fn system_prompt(&self, direction_source: DirectionSource) -> ExtractionPrompt {
        match &self.system {
            Some(used) if direction_source == DirectionSource::Safety => used.origin,
            _ => ExtractionPrompt::None,
        }
    }
}

/// Returns whether a safety prompt elicits refusals that plain prompts do not.
fn helps(plain: Proportion, prompted: Proportion) -> bool {
    prompted.rate() > HARDLY && prompted.rate() - plain.rate() >= NOTICEABLY
}

/// Searches the weights for a removed direction, unless the user requests another direction source.
///
/// # Errors
/// Returns [`Error::Ablation`] if the weights cannot be searched.
pub fn find_ablated(
    opened: &Opened,
    options: &InjectOptions,
    printer: &Printer,
) -> Result<Option<AblatedDirection>, Error> {
    if options.learn.direction_source.is_some_and(|only| only != DirectionSource::Ablated) {
        return Ok(None);
    }
    let bar = printer.bar("looking for a removed direction", 1);
    let source = FileSource::new(&opened.gguf, &opened.plan);
    let findings = abliteration::find(&source, &mut |done, total| bar.set_of(done as u64, total as u64))?;
    drop(bar);
    printer.detail(format!("abliterated: {}", findings.describe()));
    if let Some(ablated) = &findings.ablated {
        printer.say(format!("refusal was removed from this model: {}", ablated.describe()));
    }
    Ok(findings.ablated)
}

/// The directions of every direction source.
pub struct DirectionSources {
    /// Differences in means, with and without a system prompt.
    means: BTreeMap<DirectionSource, Directions>,
    /// The removed direction, per layer.
    ablated: Option<Vec<SafetyDirection>>,
    /// The plain difference in means, even if it is not a direction source.
    plain: Directions,
    /// Whether every layer is pushed along its own direction, for every direction source.
    own: bool,
}

impl DirectionSources {
    /// Collects the directions of the sources in `offer`, except the ablated one, whose sign is not known yet: see
    /// [`Self::set_ablated`].
    ///
    /// # Errors
    /// Returns [`Error::Option`] if the user requests the refusal direction and the model does not provide it.
    pub fn collect(
        session: Session<'_>,
        engine: &mut LlamaEngine,
        offer: &Offer,
        shown: Shown,
    ) -> Result<Self, Error> {
        let options = session.options;
        let mut means = BTreeMap::new();
        if let Some(PromptUsed { text, .. }) = &offer.system {
            let under = features::directions_under(session, engine, text)?;
            means.insert(DirectionSource::Safety, under);
        }
        let wanted = |direction_source| {
            offer.plain && options.learn.direction_source.is_none_or(|only| only == direction_source)
        };
        let ours = options.method != Method::Published;
        if let Some(refusal) = shown.refusal.filter(|_| ours && wanted(DirectionSource::Refusal)) {
            means.insert(DirectionSource::Refusal, refusal);
        }
        if options.learn.direction_source == Some(DirectionSource::Refusal) && means.is_empty() {
            let problem = "the refusal direction needs enough refused and enough answered prompts, \
                           and a method other than published";
            let hint = Some("omit the flag to use plain prompts, the next best source".into());
            return Err(Error::Option { flag: "--direction-source", problem: problem.into(), hint });
        }
        // The plain direction was never better than the refusal direction (docs/notebook/linear-gates.md).
        if means.is_empty()
            || (wanted(DirectionSource::Plain) && !means.contains_key(&DirectionSource::Refusal))
        {
            means.insert(DirectionSource::Plain, shown.plain.clone());
        }
        Ok(Self { means, ablated: None, plain: shown.plain, own: options.method == Method::Detector })
    }

    /// Creates the single direction source of a stored edit: one direction or, for an ablated direction or if layers
    /// have their `own`, one per layer; with the separation stored in the edit.
    pub fn stored(direction_source: DirectionSource, own: bool, directions: Directions) -> Self {
        let ablated = (direction_source == DirectionSource::Ablated).then(|| directions.by_layer.clone());
        Self { means: BTreeMap::new(), ablated, plain: directions, own }
    }

    /// Returns all candidates for pushing along the removed direction: each removed direction with both signs, since an
    /// eigenvector does not determine the sign. If layers lost individual directions, each layer gets its own; a layer
    /// that lost none gets that of the nearest layer that did.
    ///
    /// # Errors
    /// Returns [`Error::Direction`] if a vector is zero or not finite.
    pub fn ways(&self, ablated: &AblatedDirection) -> Result<Vec<Vec<SafetyDirection>>, Error> {
        let n_layer = self.plain.by_layer.len();
        let by_layer: Vec<Vec<Vec<f32>>> = match ablated.directions.as_slice() {
            [_] => vec![own_directions(ablated, n_layer)],
            several => several.iter().map(|d| vec![d.clone(); n_layer]).collect(),
        };
        let mut ways = Vec::new();
        for units in &by_layer {
            for sign in [1.0, -1.0] {
                ways.push(self.sized(units, sign)?);
            }
        }
        Ok(ways)
    }

    /// Returns directions along `units`, scaled to the length of the plain difference in means, the unit of pushes.
    fn sized(&self, units: &[Vec<f32>], sign: f64) -> Result<Vec<SafetyDirection>, Error> {
        let parts = units.iter().zip(&self.plain.by_layer).enumerate();
        let directions = parts.map(|(layer, (unit, plain))| {
            let s: Vec<f64> = unit.iter().map(|&v| sign * plain.norm() * f64::from(v)).collect();
            SafetyDirection::new(layer, &s)
        });
        Ok(directions.collect::<Result<_, _>>()?)
    }

    /// Adds the ablated direction `way` as a direction source.
    pub fn set_ablated(&mut self, way: Vec<SafetyDirection>) {
        self.ablated = Some(way);
    }

    /// Returns the search space of each direction source.
    pub fn spaces(&self, options: &InjectOptions) -> Vec<Space> {
        let space = |direction_source| features::space_of(options, direction_source);
        let mut spaces: Vec<Space> =
            self.means.keys().map(|&direction_source| space(direction_source)).collect();
        if let Some(ablated) = &self.ablated {
            let layer = options.search.layer.unwrap_or(ablated.len() / 2);
            spaces.push(Space { layer: Some(layer), ..space(DirectionSource::Ablated) });
        }
        spaces
    }

    /// Returns the direction or directions that `candidate` pushes along.
    pub fn along(&self, candidate: &Candidate) -> Along<'_> {
        match (candidate.direction_source, &self.ablated) {
            (DirectionSource::Ablated, Some(ablated)) => Along::Layers(ablated),
            (direction_source, _) => {
                let means = self.means.get(&direction_source).unwrap_or(&self.plain);
                let layers = Along::Layers(&means.by_layer);
                if self.own { layers } else { Along::One(layers.at(candidate.layer)) }
            }
        }
    }

    /// Returns the direction of the published method: harmful minus harmless prompts at `layer`. For a stored edit,
    /// returns its stored direction.
    pub fn published(&self, layer: usize) -> Along<'_> {
        Along::One(Along::Layers(&self.plain.by_layer).at(layer))
    }

    /// Returns how well each layer separates the prompts; for an ablated direction, the values of plain prompts.
    pub fn separation(&self, direction_source: DirectionSource) -> &[Separation] {
        &self.means.get(&direction_source).unwrap_or(&self.plain).separation
    }
}

/// Returns the direction that each layer lost, or that of the nearest layer that lost one. Eigenvectors have no sign
/// and the refusal direction changes slowly across layers, so each is flipped to agree with the previous one.
fn own_directions(ablated: &AblatedDirection, n_layer: usize) -> Vec<Vec<f32>> {
    let nearest = |layer: usize| ablated.layers.iter().min_by_key(|l| l.layer.abs_diff(layer));
    let mut units: Vec<Vec<f32>> = Vec::new();
    for layer in 0..n_layer {
        let mut unit = nearest(layer).map(|l| l.unit.clone()).unwrap_or_default();
        let against = units
            .last()
            .is_some_and(|before| before.iter().zip(&unit).map(|(a, b)| f64::from(a * b)).sum::<f64>() < 0.0);
        if against {
            unit.iter_mut().for_each(|v| *v = -*v);
        }
        units.push(unit);
    }
    units
}

#[cfg(test)]
mod tests;
