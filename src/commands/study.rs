//! Looking into the model: does it refuse, along what, and which edit is best.

use crate::commands::material::{self, Material};
use crate::commands::session::Opened;
use crate::direction::{self, SafetyDirection};
use crate::edit::{Edit, EditError};
use crate::error::Error;
use crate::evaluate::stats::Proportion;
use crate::evaluate::{Examination, Examiner, Questions};
use crate::llama::{LlamaEngine, LlamaError, RankOne};
use crate::options::{InjectOptions, SystemPrompt};
use crate::output::Printer;
use crate::plan::{Plan, ResidualWriter};
use crate::prompts::{PromptSet, Split, safety_system_prompt};
use crate::search::journal::Journal;
use crate::search::{Candidate, Probe, Search, SearchResult, Trial};

/// Harmful, harmless and alarming prompts of a trial: enough to rank edits, few enough to try several.
const SEARCH_PROMPTS: [usize; 3] = [40, 32, 32];
/// A model that refuses at most this share of harmful prompts shows no refusal.
const HARDLY: f64 = 0.1;

/// What was found out about a model.
pub struct Study {
    /// What edits are made of.
    pub material: Material,
    /// Every trial.
    pub search: SearchResult,
    /// The edit that is written.
    pub chosen: Chosen,
    /// `none`, `safety` or `user`.
    pub system_prompt: &'static str,
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
pub fn adapters(plan: &Plan, edits: &[Edit]) -> Result<Vec<RankOne>, LlamaError> {
    let applied = edits.iter().map(|e| (e, &plan.writers[e.writer])).filter(|(_, writer)| writer.lora);
    let checked = |(edit, writer): (&Edit, &ResidualWriter)| {
        let rank_one = edit.to_rank_one();
        rank_one.check(writer.n_in, writer.n_out).map(|()| rank_one)
    };
    applied.map(checked).collect()
}

impl Study {
    /// Runs the whole study on a loaded model, taking from the journal what is in it already.
    pub fn new(
        opened: &Opened,
        (engine, journal): (&mut LlamaEngine, &mut Journal),
        prompts: &PromptSet,
        options: &InjectOptions,
        printer: &Printer,
    ) -> Result<Self, Error> {
        let bar = printer.bar("asking the base model", 1);
        let questions = Questions::of(prompts, Split::Search, SEARCH_PROMPTS);
        let (mut examiner, base) = Examiner::new(engine, questions)?;
        drop(bar);
        printer.say(format!(
            "base model: {} harmful prompts refused (search split)",
            base.score.harmful.refused()
        ));
        let (system_prompt, text) = choose_system(engine, &mut examiner, &base, options)?;
        let method = (options.method, text.as_deref());
        let mut material = Material::collect(opened, engine, prompts, method, printer)?;
        if let Some(path) = &options.imatrix {
            material.mix(path, &opened.plan, printer)?;
        }
        check_layer(options, material.directions.by_layer.len())?;
        let space = material::space(options.method);
        let search = {
            let edits = |candidate: &Candidate, strength: f64| -> Result<Vec<RankOne>, Error> {
                let direction = &material.directions.by_layer[candidate.layer];
                let edits = material.edits(&opened.plan, candidate, (direction, strength))?;
                Ok(adapters(&opened.plan, &edits)?)
            };
            let first = Candidate { layer: 0, window: space.windows[0], contrast: space.contrasts[0] };
            edits(&first, 1.0)?; // what can fail does so for every layer and strength alike
            let make = |candidate: &Candidate, strength| edits(candidate, strength).unwrap_or_default();
            let search = Search {
                engine,
                examiner: &examiner,
                base: base.score,
                make_edits: &make,
                options: options.search,
                space: &space,
                journal,
            };
            run_search(search, &material, printer)?
        };
        let Trial { candidate, strength, .. } = choose_trial(&search, &base, options)?;
        let chosen = Chosen { candidate, strength };
        Ok(Self { material, search, chosen, system_prompt })
    }

    /// The direction of the chosen layer.
    pub fn direction(&self) -> &SafetyDirection {
        &self.material.directions.by_layer[self.chosen.candidate.layer]
    }

    /// The chosen edit of every writer.
    pub fn edits(&self, plan: &Plan) -> Result<Vec<Edit>, EditError> {
        self.material.edits(plan, &self.chosen.candidate, (self.direction(), self.chosen.strength))
    }

    /// The same edit along a random direction: the control.
    pub fn random_edits(&self, plan: &Plan, seed: u64) -> Result<Vec<Edit>, Error> {
        let random = direction::random(self.chosen.candidate.layer, plan.n_embd as usize, seed)?;
        Ok(self.material.edits(plan, &self.chosen.candidate, (&random, self.chosen.strength))?)
    }
}

/// Whether the direction is extracted under a safety prompt: asked for, or the model hardly refuses
/// without one and does with it.
fn choose_system(
    engine: &mut LlamaEngine,
    examiner: &mut Examiner,
    base: &Examination,
    options: &InjectOptions,
) -> Result<(&'static str, Option<String>), Error> {
    let plain = base.score.harmful.refused();
    match &options.system_prompt {
        SystemPrompt::Text(text) => {
            examiner.learn_openings(engine, text)?;
            return Ok(("user", Some(text.clone())));
        }
        _ if plain.rate() > HARDLY => return Ok(("none", None)),
        SystemPrompt::Off if !options.force => {
            return Err(Error::NoRefusal { plain: plain.count, prompted: 0, total: plain.total });
        }
        SystemPrompt::Off => return Ok(("none", None)),
        SystemPrompt::Auto => {}
    }
    let safety = safety_system_prompt();
    let prompted = examiner.learn_openings(engine, safety)?.refused();
    if prompted.rate() <= HARDLY && !options.force {
        return Err(Error::NoRefusal { plain: plain.count, prompted: prompted.count, total: plain.total });
    }
    Ok(("safety", Some(safety.to_owned())))
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

fn run_search(mut search: Search<'_>, material: &Material, printer: &Printer) -> Result<SearchResult, Error> {
    let bar = printer.bar("searching", 9);
    Ok(search.run(material.directions.by_layer.len(), &mut |result, total| {
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
    })?)
}

fn describe(candidate: &Candidate) -> String {
    let (from, until) = candidate.window;
    let (layer, contrast) = (candidate.layer, candidate.contrast);
    format!("layer {layer:2} window {from:.1}-{until:.1} contrast {contrast:.1}")
}

fn describe_probe(p: &Probe) -> String {
    let quick = p.quick.map_or(String::new(), |q| {
        format!(
            ": first tokens harmful {:.3} harmless {:.3} alarming {:.3}",
            q.harmful, q.harmless, q.alarming
        )
    });
    format!("  probe {} strength {:.4}{quick} utility {:+.3}", describe(&p.candidate), p.strength, p.utility)
}

fn describe_trial(t: &Trial) -> String {
    format!(
        "  trial {} strength {:.4}: harmful {} harmless {} alarming {} broken {} KL {:.4} utility {:+.3}{}",
        describe(&t.candidate),
        t.strength,
        t.score.harmful.refused,
        t.score.harmless.refused,
        t.score.alarming.refused,
        t.score.broken().count,
        t.score.kl,
        t.utility,
        if t.accepted { "" } else { ", over a limit" }
    )
}

/// The best accepted trial; with `--force` the most useful one when none was accepted.
fn choose_trial(search: &SearchResult, base: &Examination, options: &InjectOptions) -> Result<Trial, Error> {
    let no_gain = || Error::NoGain {
        trials: search.trials.len(),
        base: base.score.harmful.refused().to_string(),
        max_kl: options.search.max_kl,
    };
    if let Some(best) = search.best() {
        return Ok(*best);
    }
    if !options.force {
        return Err(no_gain());
    }
    let most = search.trials.iter().copied().max_by(|a, b| a.utility.total_cmp(&b.utility));
    most.ok_or_else(no_gain)
}
