//! Looking into the model: does it refuse, along what, and how much of the edit is best.

use crate::activations::{self, Activations};
use crate::commands::session::Opened;
use crate::direction::{self, Directions, SafetyDirection};
use crate::edit::{self, Edit, EditError, WriterWeights};
use crate::error::Error;
use crate::evaluate::stats::Proportion;
use crate::evaluate::{Examination, Examiner, N_PREDICT, Questions, Tally, chats};
use crate::interrupt;
use crate::llama::{Capture, Engine, LlamaEngine, LlamaError, RankOne};
use crate::options::{InjectOptions, SystemPrompt};
use crate::output::Printer;
use crate::plan::{Plan, ResidualWriter};
use crate::prompts::{PromptKind, PromptSet, Split, safety_system_prompt};
use crate::quant::preserve::InputModel;
use crate::search::{Search, SearchResult, Trial};

/// Harmful, harmless and alarming prompts of a trial: enough to rank edits, few enough to try a dozen.
const SEARCH_PROMPTS: [usize; 3] = [40, 24, 16];
/// Tokens of all positions, per set of prompts, whose inputs are kept.
const SAMPLE: usize = 256;
/// Principal components of a writer's inputs that requantization keeps its noise away from.
const PRINCIPAL: usize = 8;
/// A model that refuses at most this share of harmful prompts shows no refusal.
const HARDLY: f64 = 0.1;

/// What was found out about a model.
pub struct Study {
    /// Directions and separation per layer.
    pub directions: Directions,
    /// Weights of each writer.
    pub weights: Vec<WriterWeights>,
    /// Every trial.
    pub search: SearchResult,
    /// The trial that is written.
    pub chosen: Trial,
    /// `none`, `safety` or `user`.
    pub system_prompt: &'static str,
    /// What is known of each writer's inputs, in the plan's order.
    pub inputs: Vec<InputModel>,
    /// Activations on the harmful prompts of the extract split.
    harmful: Activations,
}

/// Reads w̄ and ‖W‖ of every writer.
pub fn read_weights(opened: &Opened, printer: &Printer) -> Result<Vec<WriterWeights>, Error> {
    let bar = printer.bar("reading the writers", opened.plan.writers.len() as u64);
    let mut weights = Vec::new();
    for (i, writer) in opened.plan.writers.iter().enumerate() {
        interrupt::check()?;
        weights.push(edit::read_weights(&opened.gguf, writer)?);
        bar.set(i as u64 + 1);
    }
    Ok(weights)
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
    /// Runs the whole study on a loaded model.
    pub fn new(
        opened: &Opened,
        engine: &mut LlamaEngine,
        prompts: &PromptSet,
        options: &InjectOptions,
        printer: &Printer,
    ) -> Result<Self, Error> {
        let weights = read_weights(opened, printer)?;
        let bar = printer.bar("asking the base model", 1);
        let questions = Questions::of(prompts, Split::Search, SEARCH_PROMPTS);
        let (examiner, base) = Examiner::new(engine, questions)?;
        drop(bar);
        printer.say(format!(
            "base model: {} harmful prompts refused (search split)",
            base.score.harmful.refused()
        ));
        let (system_prompt, text) = choose_system(engine, &examiner, &base, options)?;
        let (harmful, harmless) = collect(opened, engine, prompts, (text.as_deref(), printer))?;
        let directions = direction::difference_in_means(&harmful, &harmless)?;
        let inputs = input_models(&harmful, &harmless, printer);
        check_layer(options, directions.by_layer.len())?;
        let search = {
            let edits = |layer: usize, strength: f64| -> Result<Vec<RankOne>, Error> {
                let direction = &directions.by_layer[layer];
                let edits = edit::published(&opened.plan, &weights, direction, strength)?;
                Ok(adapters(&opened.plan, &edits)?)
            };
            edits(0, 1.0)?; // what can fail does so for every layer and strength alike
            let make = |layer, strength| edits(layer, strength).unwrap_or_default();
            run_search(engine, &examiner, &base, (&make, &directions, options, printer))?
        };
        let chosen = choose_trial(&search, &base, options)?;
        Ok(Self { directions, weights, search, chosen, system_prompt, inputs, harmful })
    }

    /// The direction of the chosen layer.
    pub fn direction(&self) -> &SafetyDirection {
        &self.directions.by_layer[self.chosen.layer]
    }

    /// The chosen edit of every writer.
    pub fn edits(&self, plan: &Plan) -> Result<Vec<Edit>, EditError> {
        edit::published(plan, &self.weights, self.direction(), self.chosen.strength)
    }

    /// The same edit along a random direction: the control.
    pub fn random_edits(&self, plan: &Plan, seed: u64) -> Result<Vec<Edit>, Error> {
        let random = direction::random(self.chosen.layer, plan.n_embd as usize, seed)?;
        Ok(edit::published(plan, &self.weights, &random, self.chosen.strength)?)
    }

    /// α·rightᵀ mean(x) of each dense writer over the harmful prompts' last tokens, in units of ‖s‖:
    /// negative where the published right factor pushes away from refusal.
    pub fn pushes(&self, edits: &[Edit]) -> Vec<f64> {
        let dense = edits.iter().filter(|e| e.n_expert == 1);
        let push = |e: &Edit| {
            let mean = self.harmful.inputs[e.writer].mean_last();
            let dot: f64 = mean.iter().zip(&e.right).map(|(x, &r)| x * f64::from(r)).sum();
            e.alpha * dot / self.direction().norm()
        };
        dense.map(push).collect()
    }
}

/// Whether the direction is extracted under a safety prompt: asked for, or the model hardly refuses
/// without one and does with it.
fn choose_system(
    engine: &mut LlamaEngine,
    examiner: &Examiner,
    base: &Examination,
    options: &InjectOptions,
) -> Result<(&'static str, Option<String>), Error> {
    let plain = base.score.harmful.refused();
    match &options.system_prompt {
        SystemPrompt::Text(text) => return Ok(("user", Some(text.clone()))),
        _ if plain.rate() > HARDLY => return Ok(("none", None)),
        SystemPrompt::Off if !options.force => {
            return Err(Error::NoRefusal { plain: plain.count, prompted: 0, total: plain.total });
        }
        SystemPrompt::Off => return Ok(("none", None)),
        SystemPrompt::Auto => {}
    }
    let safety = safety_system_prompt();
    let asked = chats(&examiner.questions().harmful, Some(safety));
    let prompted = Tally::of(&engine.answer(&asked, N_PREDICT, &mut |_, _| ())?).refused();
    if prompted.rate() <= HARDLY && !options.force {
        return Err(Error::NoRefusal { plain: plain.count, prompted: prompted.count, total: plain.total });
    }
    Ok(("safety", Some(safety.to_owned())))
}

/// Hidden states on the harmful and harmless prompts of the extract split.
fn collect(
    opened: &Opened,
    engine: &mut LlamaEngine,
    prompts: &PromptSet,
    (system, printer): (Option<&str>, &Printer),
) -> Result<(Activations, Activations), Error> {
    let capture = Capture::new(&opened.plan).with_sample(SAMPLE);
    let bar = printer.bar("collecting hidden states", 2);
    let mut of = |kind| {
        let texts: Vec<String> =
            prompts.select(kind, Split::Extract).iter().map(|p| p.text.clone()).collect();
        let activations = engine.collect(&chats(&texts, system), &capture);
        bar.set(1);
        activations
    };
    Ok((of(PromptKind::Harmful)?, of(PromptKind::Harmless)?))
}

/// The second moments of every writer's inputs, which tell requantization where noise does least.
fn input_models(harmful: &Activations, harmless: &Activations, printer: &Printer) -> Vec<InputModel> {
    let bar = printer.bar("weighing the writers' inputs", harmful.inputs.len() as u64);
    let pairs = harmful.inputs.iter().zip(&harmless.inputs).enumerate();
    let models = pairs.map(|(i, (a, b))| {
        bar.set(i as u64);
        activations::input_model(&[a, b], PRINCIPAL)
    });
    models.collect()
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

type SearchWith<'a> =
    (&'a dyn Fn(usize, f64) -> Vec<RankOne>, &'a Directions, &'a InjectOptions, &'a Printer);

fn run_search(
    engine: &mut LlamaEngine,
    examiner: &Examiner,
    base: &Examination,
    (make_edits, directions, options, printer): SearchWith<'_>,
) -> Result<SearchResult, Error> {
    let bar = printer.bar("searching", 9);
    let mut search = Search { engine, examiner, base: base.score, make_edits, options: options.search };
    let result = search.run(&directions.separation, &mut |done, total, best| {
        bar.set_of(done.min(total) as u64, total as u64);
        if let Some(t) = best {
            let refused: Proportion = t.score.harmful.refused();
            bar.note(&format!("trial {done}: best {}/{} at layer {}", refused.count, refused.total, t.layer));
        }
    })?;
    for t in &result.trials {
        printer.detail(format!(
            "  layer {:2} strength {:.4}: harmful {} harmless {} alarming {} broken {} KL {:.4} utility {:+.3}",
            t.layer,
            t.strength,
            t.score.harmful.refused,
            t.score.harmless.refused,
            t.score.alarming.refused,
            t.score.broken().count,
            t.score.kl,
            t.utility
        ));
    }
    Ok(result)
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
