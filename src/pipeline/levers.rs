//! Along what a model can be pushed: which levers it offers, and their directions.
//!
//! A model that refuses has a direction in its answers to plain prompts. One that refuses little may show
//! it under a safety prompt. One from whose weights refusal was removed shows it in neither way (the
//! difference in means is orthogonal to what is never written), but the weights say what is missing.

use std::collections::BTreeMap;

use crate::eval::prompts::{PromptSet, safety_system_prompt};
use crate::eval::{Examination, Examiner};
use crate::llama::{Engine, LlamaEngine};
use crate::method::abliteration::{self, FileSource, Scar};
use crate::method::direction::{Along, Directions, SafetyDirection, Separation};
use crate::method::edit::Method;
use crate::method::search::{Candidate, Lever, Space};
use crate::output::Printer;
use crate::pipeline::error::Error;
use crate::pipeline::material::{self, Shown};
use crate::pipeline::options::{InjectOptions, SystemPrompt};
use crate::pipeline::session::Opened;
use crate::util::stats::Proportion;

/// A model that refuses at most this share of harmful prompts shows no refusal.
const HARDLY: f64 = 0.1;
/// A model that refuses more than this share needs no safety prompt to show its refusal, and would lose
/// by one (docs/notebook/linear-gates.md).
const WELL: f64 = 0.3;
/// How much more a model must refuse under the safety prompt for it to be worth a second collection.
const NOTICEABLY: f64 = 0.1;

/// What a model offers.
pub struct Offer {
    /// Whether plain prompts may show a direction.
    plain: bool,
    /// `safety` or `user`, and the system prompt.
    system: Option<(&'static str, String)>,
    /// What was removed.
    pub scar: Option<Scar>,
}

impl Offer {
    /// Finds out. Teaches `examiner` how refusals begin under the safety prompt.
    ///
    /// # Errors
    /// [`Error::NoRefusal`] when there is no lever; [`Error::Option`] when the user asks for one that the
    /// model does not offer.
    pub fn of(
        engine: &mut dyn Engine,
        (examiner, base): (&mut Examiner, &Examination),
        scar: Option<Scar>,
        (options, printer): (&InjectOptions, &Printer),
    ) -> Result<Self, Error> {
        let plain = base.score.harmful.refused();
        let only = |lever| options.lever == Some(lever);
        let scar = scar.filter(|_| options.lever.is_none_or(|l| l == Lever::Scar));
        if only(Lever::Scar) {
            let problem = || "no direction is missing from the weights (inspect --weights)".to_owned();
            return match scar {
                Some(_) => Ok(Self { plain: false, system: None, scar }),
                None => Err(Error::Option { flag: "--lever", problem: problem(), hint: None }),
            };
        }
        let mut prompted = None;
        let text = match &options.system_prompt {
            _ if only(Lever::Plain) => None,
            SystemPrompt::Text(text) => Some(("user", text.as_str())),
            SystemPrompt::Off => None,
            SystemPrompt::Auto if plain.rate() > WELL && !only(Lever::Safety) => None,
            SystemPrompt::Auto => Some(("safety", safety_system_prompt())),
        };
        let mut system = None;
        if let Some((name, text)) = text {
            let _bar = printer.bar("asking the base model under a system prompt", 1);
            let refused = examiner.learn_openings(engine, Some(text))?.refused();
            prompted = Some(refused);
            if name == "user" || only(Lever::Safety) || helps(plain, refused) {
                system = Some((name, text.to_owned()));
            }
        }
        let users = system.as_ref().is_some_and(|(name, _)| *name == "user");
        let none = plain.rate() <= HARDLY && system.is_none() && scar.is_none();
        if none && !options.allow.no_refusal {
            let prompted = prompted.map_or(0, |p| p.count);
            return Err(Error::NoRefusal { plain: plain.count, prompted, total: plain.total });
        }
        Ok(Self { plain: !users && !only(Lever::Safety), system, scar })
    }

    /// `none`, `safety` or `user`: the system prompt of `lever`.
    pub fn system_prompt(&self, lever: Lever) -> &'static str {
        match &self.system {
            Some((name, _)) if lever == Lever::Safety => name,
            _ => "none",
        }
    }
}

/// Whether a safety prompt brings out refusal that plain prompts do not.
fn helps(plain: Proportion, prompted: Proportion) -> bool {
    prompted.rate() > HARDLY && prompted.rate() - plain.rate() >= NOTICEABLY
}

/// Reads the weights for a removed direction, unless the user wants another lever.
///
/// # Errors
/// [`crate::method::abliteration::ScarError`].
pub fn find_scar(opened: &Opened, options: &InjectOptions, printer: &Printer) -> Result<Option<Scar>, Error> {
    if options.lever.is_some_and(|lever| lever != Lever::Scar) {
        return Ok(None);
    }
    let bar = printer.bar("looking for a removed direction", 1);
    let source = FileSource::new(&opened.gguf, &opened.plan);
    let findings = abliteration::find(&source, &mut |done, total| bar.set_of(done as u64, total as u64))?;
    drop(bar);
    printer.detail(format!("abliterated: {}", findings.describe()));
    if let Some(scar) = &findings.scar {
        printer.say(format!("refusal was removed from this model: {}", scar.describe()));
    }
    Ok(findings.scar)
}

/// The directions of every lever.
pub struct Levers {
    /// Differences in means, with and without a safety prompt.
    means: BTreeMap<Lever, Directions>,
    /// What was removed, per layer of the writers.
    scar: Option<Vec<SafetyDirection>>,
    /// The plain difference in means, whether or not it is a lever.
    plain: Directions,
    /// Whether every layer is pushed along its own direction, whatever the lever.
    own: bool,
}

impl Levers {
    /// Collects what `offer` names; the scar comes later, when its sign is known.
    pub fn collect(
        opened: &Opened,
        engine: &mut LlamaEngine,
        prompts: &PromptSet,
        (offer, shown): (&Offer, Shown),
        (options, printer): (&InjectOptions, &Printer),
    ) -> Result<Self, Error> {
        let mut means = BTreeMap::new();
        if let Some((_, text)) = &offer.system {
            let under = material::directions_under(opened, engine, prompts, text, printer)?;
            means.insert(Lever::Safety, under);
        }
        let wanted = |lever| offer.plain && options.lever.is_none_or(|only| only == lever);
        let ours = options.method != Method::Published;
        if let Some(refusal) = shown.refusal.filter(|_| ours && wanted(Lever::Refusal)) {
            means.insert(Lever::Refusal, refusal);
        }
        if options.lever == Some(Lever::Refusal) && means.is_empty() {
            let problem = "the model refuses, or answers, too few prompts for a direction between them, or the \
                           method is the published one";
            let hint = Some("leave it out: plain prompts are the next best".into());
            return Err(Error::Option { flag: "--lever", problem: problem.into(), hint });
        }
        // What harmful and harmless prompts show is never the better of the two (docs/methods.md).
        if means.is_empty() || (wanted(Lever::Plain) && !means.contains_key(&Lever::Refusal)) {
            means.insert(Lever::Plain, shown.plain.clone());
        }
        Ok(Self { means, scar: None, plain: shown.plain, own: options.method == Method::Detector })
    }

    /// The one lever of a stored edit: one direction or, along a scar and where layers have their `own`, one per layer, and
    /// the separation that was found with it.
    pub fn stored((lever, own): (Lever, bool), directions: Directions) -> Self {
        let scar = (lever == Lever::Scar).then(|| directions.by_layer.clone());
        Self { means: BTreeMap::new(), scar, plain: directions, own }
    }

    /// What was removed, in every way in which it can be pushed: each removed direction, and both signs,
    /// of which an eigenvector says nothing. Where layers lost directions of their own, each layer has its
    /// own, and a layer that lost none that of the nearest one that did.
    ///
    /// # Errors
    /// [`Error::Direction`] for a vector that is none.
    pub fn ways(&self, scar: &Scar) -> Result<Vec<Vec<SafetyDirection>>, Error> {
        let n_layer = self.plain.by_layer.len();
        let by_layer: Vec<Vec<Vec<f32>>> = match scar.directions.as_slice() {
            [_] => vec![own_directions(scar, n_layer)],
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

    /// Directions along `units`, as long as the plain difference in means, which is what pushes are
    /// measured by.
    fn sized(&self, units: &[Vec<f32>], sign: f64) -> Result<Vec<SafetyDirection>, Error> {
        let parts = units.iter().zip(&self.plain.by_layer).enumerate();
        let directions = parts.map(|(layer, (unit, plain))| {
            let s: Vec<f64> = unit.iter().map(|&v| sign * plain.norm() * f64::from(v)).collect();
            SafetyDirection::new(layer, &s)
        });
        Ok(directions.collect::<Result<_, _>>()?)
    }

    /// Takes the scar as a lever.
    pub fn set_scar(&mut self, way: Vec<SafetyDirection>) {
        self.scar = Some(way);
    }

    /// What each lever tries.
    pub fn spaces(&self, options: &InjectOptions) -> Vec<Space> {
        let space = |lever| material::space_of(options, lever);
        let mut spaces: Vec<Space> = self.means.keys().map(|&lever| space(lever)).collect();
        if let Some(scar) = &self.scar {
            let layer = options.search.layer.unwrap_or(scar.len() / 2);
            spaces.push(Space { layer: Some(layer), ..space(Lever::Scar) });
        }
        spaces
    }

    /// What `candidate` pushes along.
    pub fn along(&self, candidate: &Candidate) -> Along<'_> {
        match (candidate.lever, &self.scar) {
            (Lever::Scar, Some(scar)) => Along::Layers(scar),
            (lever, _) => {
                let means = self.means.get(&lever).unwrap_or(&self.plain);
                let layers = Along::Layers(&means.by_layer);
                if self.own { layers } else { Along::One(layers.at(candidate.layer)) }
            }
        }
    }

    /// What the published method would push along: harmful less harmless prompts at `layer`; the stored
    /// direction where an edit was taken up.
    pub fn published(&self, layer: usize) -> Along<'_> {
        Along::One(Along::Layers(&self.plain.by_layer).at(layer))
    }

    /// How well the layers separate the prompts; of a scar, how well plain prompts do.
    pub fn separation(&self, lever: Lever) -> &[Separation] {
        &self.means.get(&lever).unwrap_or(&self.plain).separation
    }
}

/// The direction that each layer lost, or the nearest layer that lost one; each turned to the side of the
/// one before it, since refusal turns slowly from layer to layer and eigenvectors have no sign.
fn own_directions(scar: &Scar, n_layer: usize) -> Vec<Vec<f32>> {
    let nearest = |layer: usize| scar.layers.iter().min_by_key(|l| l.layer.abs_diff(layer));
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
