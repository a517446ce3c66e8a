//! Looking into the model: does it refuse, along what, and which edit is best.

mod method;
mod told;

use crate::arch::plan::{Plan, ResidualWriter};
use crate::eval::prompts::Split;
use crate::eval::{Evaluation, Evaluator, FEW, Questions, Score};
use crate::llama::{Engine, LlamaEngine, LlamaError, LowRank, adapter};
use crate::method::Edits;
use crate::method::abliteration::AblatedDirection;
use crate::method::detector::Bank;
use crate::method::direction::{self, Along, SafetyDirection};
use crate::method::edit::{Edit, EditError, Method};
use crate::method::requant::Requant;
use crate::method::search::journal::Journal;
use crate::method::search::{
    Allowed, Candidate, DirectionSource, KlBudget, Refusal, Search, SearchError, SearchResult, Space, Trial,
};
use crate::output::Printer;
use crate::pipeline::detectors::{self, Detectors, Toward, low_rank};
use crate::pipeline::direction_sources::{self, DirectionSources, Offer};
use crate::pipeline::error::Error;
use crate::pipeline::features::{self, Features, Shown};
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::{Opened, Session};
use crate::quant::preserve::InputModel;
use crate::util::stats::Proportion;
use told::{beside, describe_probe, describe_trial};

/// Most harmful, harmless and borderline prompts of a trial. Of fewer, strengths of linear gates that differ by eight harmful
/// prompts in a hundred looked alike (docs/notebook/linear-gates.md); detectors have no strength to be found.
pub fn search_prompts(method: Method) -> [usize; 3] {
    match method {
        Method::Detector => [96, 48, 48],
        Method::Contrast | Method::Published => [96; 3],
    }
}

/// What was found out about a model.
pub struct EditSearch {
    /// What is done to the weights.
    pub method: Method,
    /// What edits are made of.
    pub found: Found,
    /// Along what.
    pub direction_sources: DirectionSources,
    /// What was removed from the weights before, where the weights were looked at.
    pub ablated: Option<AblatedDirection>,
    /// Every trial.
    pub search: SearchResult,
    /// The edit that is written.
    pub chosen: Chosen,
    /// `none`, `safety` or `user`: the system prompt of the chosen direction.
    pub system_prompt: &'static str,
}

/// What edits are made of.
pub enum Found {
    /// Right factors of the writers.
    Linear(Features),
    /// Gates of the feed-forward networks.
    Detectors(Detectors),
}

impl Found {
    /// Collects what the prompts to extract from show, with prompts as users send them, and the directions that these show.
    /// With a `ablated`, linear gates are learned for it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn learn(
        session: Session<'_>,
        engine: &mut LlamaEngine,
        evaluator: &Evaluator,
        ablated: bool,
    ) -> Result<(Self, Shown), Error> {
        let Session { opened, options, printer, .. } = session;
        if options.method == Method::Detector {
            let (detectors, shown) = Detectors::learn(session, engine, evaluator)?;
            return Ok((Self::Detectors(detectors), shown));
        }
        let (mut features, shown) = Features::collect(session, engine, evaluator, ablated)?;
        if let Some(path) = &options.imatrix {
            features.mix(path, &opened.plan, printer)?;
        }
        Ok((Self::Linear(features), shown))
    }

    /// What is tried with `direction_source`.
    pub fn space(
        &self,
        opened: &Opened,
        options: &InjectOptions,
        direction_source: DirectionSource,
    ) -> Space {
        match self {
            Self::Linear(_) => features::space_of(options, direction_source),
            Self::Detectors(detectors) => {
                detectors::space(options, &opened.plan, direction_source, detectors.push)
            }
        }
    }

    /// What is known of each writer's inputs, in the plan's order; nothing where none is edited.
    pub fn inputs(&self) -> &[InputModel] {
        match self {
            Self::Linear(features) => &features.inputs,
            Self::Detectors(_) => &[],
        }
    }

    /// The gates, where there are any.
    pub fn detectors(&self) -> Option<&Detectors> {
        match self {
            Self::Linear(_) => None,
            Self::Detectors(detectors) => Some(detectors),
        }
    }

    /// The edit of `candidate` at `strength`, for llama.cpp to apply exactly.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn adapters(
        &self,
        opened: &Opened,
        candidate: &Candidate,
        strength: f64,
        toward: Toward<'_>,
    ) -> Result<Vec<LowRank>, SearchError> {
        match self {
            Self::Linear(features) => {
                let along = match toward {
                    Toward::Refusal(along) => along,
                    Toward::Same(direction) => Along::One(direction),
                };
                let edits = features.edits(&opened.plan, candidate, along, strength)?;
                Ok(adapters(&opened.plan, &edits)?)
            }
            Self::Detectors(detectors) => {
                let banks = detectors.banks(toward, strength, strength * candidate.contrast);
                low_rank(opened, &detectors.exact(&opened.plan, &banks))
            }
        }
    }
}

/// The choice of a search, or of the user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// Which edit.
    pub candidate: Candidate,
    /// Relative Frobenius change.
    pub strength: f64,
}

/// The edits as adapters, without the writers to which llama.cpp applies none.
///
/// # Errors
/// [`LlamaError::EditShape`], which llama.cpp would partly answer with a crash.
pub fn adapters(plan: &Plan, edits: &[Edit]) -> Result<Vec<LowRank>, LlamaError> {
    let applied = edits.iter().map(|e| (e, &plan.writers[e.writer])).filter(|(_, writer)| writer.lora);
    let checked = |(edit, writer): (&Edit, &ResidualWriter)| {
        let rank_one = edit.to_low_rank();
        rank_one.check(writer.n_in, writer.n_out).map(|()| rank_one)
    };
    applied.map(checked).collect()
}

impl EditSearch {
    /// Runs the whole search with one method.
    fn of_method(
        session: Session<'_>,
        engine: &mut LlamaEngine,
        journal: &mut Journal,
    ) -> Result<Self, Error> {
        let Session { opened, prompts, options, printer } = session;
        // A search before this one leaves its last trial.
        engine.apply(&[])?;
        let ablated = direction_sources::find_ablated(opened, options, printer)?;
        let removed = ablated.clone();
        let bar = printer.bar("asking the base model", 1);
        let questions = Questions::of(prompts, Split::Search, search_prompts(options.method));
        let (mut evaluator, base) = Evaluator::new(engine, questions)?;
        drop(bar);
        printer.say(format!(
            "base model: {} harmful prompts refused (search split)",
            base.score.harmful.refused()
        ));
        let offer = Offer::of(engine, &mut evaluator, &base, ablated, options, printer)?;
        if evaluator.shorten() {
            printer.detail("  short answers tell as much: trials ask for these");
        }
        check_layer(options, opened.plan.n_layer)?;
        let (found, shown) = Found::learn(session, engine, &evaluator, offer.ablated.is_some())?;
        let mut direction_sources = DirectionSources::collect(session, engine, &offer, shown)?;
        let maker = Maker { session, found: &found };
        if let Some(ablated) = &offer.ablated {
            let way = maker.turn(engine, &mut evaluator, direction_sources.ways(ablated)?)?;
            direction_sources.set_ablated(way);
        }
        let search = maker.search(engine, journal, &evaluator, base.score, &direction_sources)?;
        let Trial { candidate, strength, .. } = choose_trial(&search, &base, options)?;
        let chosen = Chosen { candidate, strength };
        let system_prompt = offer.system_prompt(candidate.direction_source);
        let method = options.method;
        Ok(Self { method, found, direction_sources, ablated: removed, search, chosen, system_prompt })
    }

    /// The trial of the chosen edit, where it was searched.
    fn chosen_trial(&self) -> Option<&Trial> {
        let Chosen { candidate, strength } = self.chosen;
        self.search.trials.iter().find(|trial| trial.candidate == candidate && trial.strength == strength)
    }

    /// Of its trial.
    fn utility(&self) -> f64 {
        self.chosen_trial().map_or(f64::NEG_INFINITY, |trial| trial.utility)
    }

    /// What the chosen edit is along.
    pub fn along(&self) -> Along<'_> {
        self.direction_sources.along(&self.chosen.candidate)
    }

    /// The direction of the chosen layer.
    pub fn direction(&self) -> &SafetyDirection {
        self.along().at(self.chosen.candidate.layer)
    }

    /// The chosen edit, for llama.cpp to apply exactly.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn adapters(&self, opened: &Opened) -> Result<Vec<LowRank>, SearchError> {
        let toward = Toward::Refusal(self.along());
        self.found.adapters(opened, &self.chosen.candidate, self.chosen.strength, toward)
    }

    /// The same as a file for `llama-server --lora`.
    ///
    /// # Errors
    /// As [`Self::adapters`].
    pub fn adapter_file(&self, opened: &Opened) -> Result<Vec<u8>, SearchError> {
        Ok(adapter::to_gguf(&opened.plan.architecture, &self.adapters(opened)?)?)
    }

    /// The same along a random direction: the control.
    ///
    /// # Errors
    /// [`Error`].
    pub fn random_adapters(&self, opened: &Opened, seed: u64) -> Result<Vec<LowRank>, Error> {
        let chosen = &self.chosen;
        let random = direction::random(chosen.candidate.layer, opened.plan.n_embd as usize, seed)?;
        let unit: Vec<f64> = random.unit().iter().map(|&v| f64::from(v) * self.direction().norm()).collect();
        let random = SafetyDirection::new(chosen.candidate.layer, &unit)?;
        Ok(self.found.adapters(opened, &chosen.candidate, chosen.strength, Toward::Same(&random))?)
    }

    /// The chosen edit as it is applied exactly, beside any file.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn exact(&self, opened: &Opened) -> Result<Edits, EditError> {
        match &self.found {
            Found::Linear(_) => self.edits(opened, Requant::Preserve),
            Found::Detectors(detectors) => {
                Ok(Edits::Neurons(detectors.exact(&opened.plan, &self.banks(detectors))))
            }
        }
    }

    /// The gates of the chosen edit.
    fn banks(&self, detectors: &Detectors) -> Vec<Bank> {
        let Chosen { candidate, strength } = &self.chosen;
        detectors.banks(Toward::Refusal(self.along()), *strength, strength * candidate.contrast)
    }

    /// The chosen edit for the bytes of the file at hand.
    ///
    /// # Errors
    /// [`EditError`].
    pub fn edits(&self, opened: &Opened, requant: Requant) -> Result<Edits, EditError> {
        let Chosen { candidate, strength } = &self.chosen;
        match &self.found {
            Found::Linear(features) => {
                Ok(features.edits(&opened.plan, candidate, self.along(), *strength)?.into())
            }
            Found::Detectors(detectors) => detectors.fitted(opened, &self.banks(detectors), requant),
        }
    }
}

/// Makes the edits that are tried.
struct Maker<'a> {
    session: Session<'a>,
    found: &'a Found,
}

impl Maker<'_> {
    fn space(&self, direction_source: DirectionSource) -> Space {
        self.found.space(self.session.opened, self.session.options, direction_source)
    }

    /// Of the `ways` in which an ablated direction can be pushed, the one along which the model refuses the most harmful
    /// prompts. Teaches `evaluator` how the refusals begin that come back: the base may have none.
    fn turn(
        &self,
        engine: &mut LlamaEngine,
        evaluator: &mut Evaluator,
        ways: Vec<Vec<SafetyDirection>>,
    ) -> Result<Vec<SafetyDirection>, Error> {
        let Session { opened, options, printer, .. } = self.session;
        let bar = printer.bar("finding the side of refusal", ways.len() as u64);
        let few = evaluator.part(FEW);
        let space = self.space(DirectionSource::Ablated);
        let candidate = Candidate {
            direction_source: DirectionSource::Ablated,
            layer: 0,
            window: space.windows[0],
            contrast: space.contrasts[0],
        };
        let mut best: Option<(u64, Vec<SafetyDirection>)> = None;
        for (i, way) in ways.into_iter().enumerate() {
            let make = |strength: f64| {
                let toward = Toward::Refusal(Along::Layers(&way));
                self.found.adapters(opened, &candidate, strength, toward)
            };
            let max_kl = options.search.allowed(Refusal::Removed).max_kl;
            let strength = match (options.search.strength, self.found) {
                (Some(strength), _) => strength,
                (None, Found::Detectors(_)) => space.first_strength,
                (None, Found::Linear(_)) => {
                    let strongest = space.strongest;
                    let budget = KlBudget { engine, evaluator: &few, max_kl, strongest };
                    budget.strength(&make, space.first_strength)?
                }
            };
            engine.apply(&make(strength)?)?;
            let refused = evaluator.learn_openings(engine, None)?.refused;
            printer.detail(format!(
                "  ablated direction, way {i}, strength {strength:.4}: {refused} harmful refused"
            ));
            if best.as_ref().is_none_or(|(most, _)| refused > *most) {
                best = Some((refused, way));
            }
            bar.set(i as u64 + 1);
        }
        engine.apply(&[])?;
        Ok(best.map(|(_, way)| way).unwrap_or_default())
    }

    fn search(
        &self,
        engine: &mut LlamaEngine,
        journal: &mut Journal,
        evaluator: &Evaluator,
        base: Score,
        direction_sources: &DirectionSources,
    ) -> Result<SearchResult, Error> {
        let Session { opened, options, printer, .. } = self.session;
        let spaces: Vec<Space> = direction_sources
            .spaces(options)
            .into_iter()
            .map(|space| Space {
                layer: space.layer.or(self.space(space.direction_source).layer),
                ..self.space(space.direction_source)
            })
            .collect();
        let make = |candidate: &Candidate, strength: f64| {
            let toward = Toward::Refusal(direction_sources.along(candidate));
            self.found.adapters(opened, candidate, strength, toward)
        };
        let settings = match self.found {
            Found::Linear(_) => None,
            Found::Detectors(_) => {
                let of = |space| detectors::settings(space, options);
                Some(spaces.iter().flat_map(of).collect::<Vec<_>>())
            }
        };
        let (few, options) = (&evaluator.part(FEW), options.search);
        let search =
            Search { engine, evaluator, few, base, make_edits: &make, options, spaces: &spaces, journal };
        run_search(search, opened.plan.n_layer, settings.as_deref(), printer)
    }
}

fn check_layer(options: &InjectOptions, n_layer: usize) -> Result<(), Error> {
    match options.search.layer {
        Some(layer) if layer >= n_layer => Err(Error::Option {
            flag: "--layer",
            problem: format!("the model has layers 0 to {}, found {layer}", n_layer - 1),
            hint: None,
        }),
        _ => Ok(()),
    }
}

fn run_search(
    mut search: Search<'_>,
    n_layer: usize,
    settings: Option<&[(Candidate, f64)]>,
    printer: &Printer,
) -> Result<SearchResult, Error> {
    let bar = printer.bar("searching", 9);
    let mut progress = |result: &SearchResult, total: usize| {
        bar.set_of((result.probes.len() + result.trials.len()) as u64, total as u64);
        match (result.trials.last(), result.probes.last()) {
            (Some(trial), _) => {
                printer.detail(describe_trial(trial));
                let best = result.best().map_or("none yet".into(), |t| {
                    let refused: Proportion = t.score.harmful.refused();
                    format!("{}/{} at layer {}", refused.count, refused.total, t.candidate.layer)
                });
                bar.note(&format!("trial {}: best {best}", result.trials.len()));
            }
            (None, Some(probe)) => {
                printer.detail(describe_probe(probe));
                bar.note(&format!("comparing edits: {}", result.probes.len()));
            }
            _ => {}
        }
    };
    Ok(match settings {
        None => search.run(n_layer, &mut progress)?,
        Some(settings) => search.run_settings(settings, &mut progress)?,
    })
}

/// The best accepted trial; with `--allow-over-limits` the most useful one when none was accepted.
fn choose_trial(search: &SearchResult, base: &Evaluation, options: &InjectOptions) -> Result<Trial, Error> {
    if let Some(best) = search.best() {
        return Ok(*best);
    }
    // With `--allow-over-limits` none was stopped.
    let whole = search.trials.iter().filter(|t| !t.stopped);
    let most = whole.max_by(|a, b| a.utility.total_cmp(&b.utility));
    if let Some(trial) = most.filter(|_| options.allow.over_limits) {
        return Ok(*trial);
    }
    let refusal = Refusal::of(search.probes.iter().map(|probe| probe.candidate.direction_source));
    let Allowed { max_kl, max_false_refusal } = options.search.allowed(refusal);
    Err(Error::NoGain {
        trials: search.trials.len(),
        base: base.score.harmful.refused().to_string(),
        max_kl,
        max_false_refusal,
        best: most.map_or_else(String::new, |trial| beside(&trial.score, &base.score)),
    })
}
