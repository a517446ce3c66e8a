//! Analysis of the model: whether it refuses, along which direction, and which edit is best.

mod method;
mod told;

use crate::arch::plan::{Plan, ResidualWriter};
use crate::eval::prompts::Split;
use crate::eval::{Evaluation, Evaluator, FEW, PerKind, Questions, Score};
use crate::llama::{Engine, LlamaEngine, LlamaError, LowRank, adapter};
use crate::method::Edits;
use crate::method::abliteration::AblatedDirection;
use crate::method::detector::Bank;
use crate::method::direction::{self, Along, SafetyDirection};
use crate::method::edit::{Edit, EditError, Method};
use crate::method::requant::Requant;
use crate::method::search::journal::Journal;
use crate::method::search::{
    Allowed, Candidate, DirectionSource, ExtractionPrompt, KlBudget, Refusal, Search, SearchError,
    SearchResult, Space, Trial,
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

/// Returns the maximum numbers of prompts per trial. With fewer, strengths of linear gates that differ by eight harmful
/// prompts in a hundred were indistinguishable (docs/notebook/linear-gates.md). Detectors need fewer, since their
/// strength is not searched.
pub fn search_prompts(method: Method) -> PerKind<usize> {
    match method {
        Method::Detector => PerKind { harmful: 96, harmless: 48, borderline: 48 },
        Method::Contrast | Method::Published => PerKind::uniform(96),
    }
}

/// Result of the analysis of a model.
pub struct EditSearch {
    /// The method of the edit.
    pub method: Method,
    /// Ingredients of edits.
    pub found: Found,
    /// Directions to push along.
    pub direction_sources: DirectionSources,
    /// The direction found to be removed from the weights; `None` if there is none or it was not searched for.
    pub ablated: Option<AblatedDirection>,
    /// All probes and trials.
    pub search: SearchResult,
    /// The edit to write.
    pub chosen: Chosen,
    /// System prompt of the chosen direction.
    pub system_prompt: ExtractionPrompt,
}

/// Ingredients of edits.
pub enum Found {
    /// Right factors of the residual writers.
    Linear(Features),
    /// Detector gates of the feed-forward networks.
    Detectors(Detectors),
}

impl Found {
    /// Collects the ingredients and the directions on the extract split, without a system prompt. If `ablated`, linear
    /// gates are trained for an ablated direction.
    ///
    /// # Errors
    /// Returns [`Error`] if the model cannot be run or training fails.
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
        if let Some(path) = &options.write.imatrix {
            features.mix(path, &opened.plan, printer)?;
        }
        Ok((Self::Linear(features), shown))
    }

    /// Returns the search space for `direction_source`.
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

    /// Returns the input statistics of each writer, in the plan's order; empty for detectors.
    pub fn inputs(&self) -> &[InputModel] {
        match self {
            Self::Linear(features) => &features.inputs,
            Self::Detectors(_) => &[],
        }
    }

    /// Returns the detectors, or `None` for linear edits.
    pub fn detectors(&self) -> Option<&Detectors> {
        match self {
            Self::Linear(_) => None,
            Self::Detectors(detectors) => Some(detectors),
        }
    }

    /// Returns the exact edit of `candidate` at `strength`, as adapters for llama.cpp.
    ///
    /// # Errors
    /// Returns [`SearchError`] if the edit cannot be made.
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

/// The edit chosen by the search or by the user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// The candidate.
    pub candidate: Candidate,
    /// Relative Frobenius change; for detectors, the push in lengths of the direction.
    pub strength: f64,
}

/// Returns the edits as adapters, except for writers where llama.cpp does not apply adapters.
///
/// # Errors
/// Returns [`LlamaError::EditShape`] if the shape of an edit is wrong; llama.cpp may crash on some of these.
pub fn adapters(plan: &Plan, edits: &[Edit]) -> Result<Vec<LowRank>, LlamaError> {
    let applied = edits.iter().map(|e| (e, &plan.writers[e.writer])).filter(|(_, writer)| writer.lora);
    let checked = |(edit, writer): (&Edit, &ResidualWriter)| {
        let rank_one = edit.to_low_rank();
        rank_one.check(writer.n_in, writer.n_out).map(|()| rank_one)
    };
    applied.map(checked).collect()
}

impl EditSearch {
    /// Runs the whole search with the method of the session's options.
    fn of_method(
        session: Session<'_>,
        engine: &mut LlamaEngine,
        journal: &mut Journal,
    ) -> Result<Self, Error> {
        let Session { opened, prompts, options, printer } = session;
        // A previous search leaves its last trial applied.
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
            printer.detail("  short answers suffice: trials generate fewer tokens");
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

    /// Returns the trial of the chosen edit, if it was searched.
    fn chosen_trial(&self) -> Option<&Trial> {
        let Chosen { candidate, strength } = self.chosen;
        self.search.trials.iter().find(|trial| trial.candidate == candidate && trial.strength == strength)
    }

    /// Returns the utility of the chosen trial.
    fn utility(&self) -> f64 {
        self.chosen_trial().map_or(f64::NEG_INFINITY, |trial| trial.utility)
    }

    /// Returns the direction or directions of the chosen edit.
    pub fn along(&self) -> Along<'_> {
        self.direction_sources.along(&self.chosen.candidate)
    }

    /// Returns the direction of the chosen layer.
    pub fn direction(&self) -> &SafetyDirection {
        self.along().at(self.chosen.candidate.layer)
    }

    /// Returns the exact chosen edit, as adapters for llama.cpp.
    ///
    /// # Errors
    /// Returns [`SearchError`] if the edit cannot be made.
    pub fn adapters(&self, opened: &Opened) -> Result<Vec<LowRank>, SearchError> {
        let toward = Toward::Refusal(self.along());
        self.found.adapters(opened, &self.chosen.candidate, self.chosen.strength, toward)
    }

    /// Returns [`Self::adapters`] as the bytes of an adapter file for `llama-server --lora`.
    ///
    /// # Errors
    /// Returns [`SearchError`] if the edit cannot be made or encoded.
    pub fn adapter_file(&self, opened: &Opened) -> Result<Vec<u8>, SearchError> {
        Ok(adapter::to_gguf(&opened.plan.architecture, &self.adapters(opened)?)?)
    }

    /// Returns the chosen edit along a random direction, as a control.
    ///
    /// # Errors
    /// Returns [`Error`] if the direction or the edit cannot be made.
    pub fn random_adapters(&self, opened: &Opened, seed: u64) -> Result<Vec<LowRank>, Error> {
        let chosen = &self.chosen;
        let random = direction::random(chosen.candidate.layer, opened.plan.n_embd as usize, seed)?;
        let unit: Vec<f64> = random.unit().iter().map(|&v| f64::from(v) * self.direction().norm()).collect();
        let random = SafetyDirection::new(chosen.candidate.layer, &unit)?;
        Ok(self.found.adapters(opened, &chosen.candidate, chosen.strength, Toward::Same(&random))?)
    }

    /// Returns the exact chosen edit, independent of the file's quantization types.
    ///
    /// # Errors
    /// Returns [`EditError`] if the edit cannot be made.
    pub fn exact(&self, opened: &Opened) -> Result<Edits, EditError> {
        match &self.found {
            Found::Linear(_) => self.edits(opened, Requant::Preserve),
            Found::Detectors(detectors) => {
                Ok(Edits::Neurons(detectors.exact(&opened.plan, &self.banks(detectors))))
            }
        }
    }

    /// Returns the gates of the chosen edit, with strengths.
    fn banks(&self, detectors: &Detectors) -> Vec<Bank> {
        let Chosen { candidate, strength } = &self.chosen;
        detectors.banks(Toward::Refusal(self.along()), *strength, strength * candidate.contrast)
    }

    /// Returns the chosen edit for the opened file and its quantization types.
    ///
    /// # Errors
    /// Returns [`EditError`] if the edit cannot be made.
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

/// Makes the edits to try.
struct Maker<'a> {
    session: Session<'a>,
    found: &'a Found,
}

impl Maker<'_> {
    fn space(&self, direction_source: DirectionSource) -> Space {
        self.found.space(self.session.opened, self.session.options, direction_source)
    }

    /// Returns the one of `ways`, the candidates for pushing along an ablated direction, with the most refused harmful
    /// prompts. `evaluator` learns how the restored refusals begin, since the base may have none.
    fn turn(
        &self,
        engine: &mut LlamaEngine,
        evaluator: &mut Evaluator,
        ways: Vec<Vec<SafetyDirection>>,
    ) -> Result<Vec<SafetyDirection>, Error> {
        let Session { opened, options, printer, .. } = self.session;
        let bar = printer.bar("finding the sign of the ablated direction", ways.len() as u64);
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
            let own = evaluator.base_refused().rate();
            let max_kl = options.search.allowed(Refusal::Removed, own).max_kl;
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
                "  ablated direction, candidate {i}, strength {strength:.4}: {refused} harmful refused"
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
            problem: format!("expected a layer from 0 to {}, found {layer}", n_layer - 1),
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

/// Returns the best accepted trial or, with `--allow-over-limits`, the most useful trial if none was accepted.
fn choose_trial(search: &SearchResult, base: &Evaluation, options: &InjectOptions) -> Result<Trial, Error> {
    if let Some(best) = search.best() {
        return Ok(*best);
    }
    // With `--allow-over-limits`, no trial is stopped early.
    let whole = search.trials.iter().filter(|t| !t.stopped);
    let most = whole.max_by(|a, b| a.utility.total_cmp(&b.utility));
    if let Some(trial) = most.filter(|_| options.allow.over_limits) {
        return Ok(*trial);
    }
    let refusal = Refusal::of(search.probes.iter().map(|probe| probe.candidate.direction_source));
    let Allowed { max_kl, max_false_refusal } =
        options.search.allowed(refusal, base.score.harmful.refused().rate());
    Err(Error::NoGain {
        trials: search.trials.len(),
        base: base.score.harmful.refused().to_string(),
        max_kl,
        max_false_refusal,
        best: most.map_or_else(String::new, |trial| beside(&trial.score, &base.score)),
    })
}
