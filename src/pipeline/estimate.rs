//! How long `inject` would take: the tokens that it decodes, times two operations with each weight that they meet, over what
//! the CPU at hand is seen to do.
//!
//! ```text
//! seconds ≈ 2 · active weights · (tokens read in F32 / READ + other tokens / ANSWERS) / (threads · operations a second)
//! ```
//!
//! Prompts count 4.5 characters a token; what all of them begin with is decoded once and counts nothing. Hashing, writing
//! and learning are left out: they are a few per cent.

use std::ops::Add;

use serde::Serialize;

use crate::arch::plan::Plan;
use crate::eval::prompts::contexts::{self, Context, Placed};
use crate::eval::prompts::{PromptKind, PromptSet, Split, prose, training};
use crate::eval::{FEW, N_PREDICT, N_PREDICT_SHORT, Questions};
use crate::gguf::{Gguf, TensorInfo};
use crate::llama::matmul::{IS_FASTER, flops};
use crate::method::edit::Method;
use crate::method::search::{self, DirectionSource};
use crate::pipeline::detectors::{self, ANSWERED, DEEPEST, PUSH};
use crate::pipeline::edit_search::search_prompts;
use crate::pipeline::evaluate::{FIDELITY_PROMPTS, REPORT_PROMPTS};
use crate::pipeline::features;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::Opened;

/// Characters a token, of English prose and the vocabularies of today.
const CHARACTERS: f64 = 4.5;
/// Tokens with which a chat template ends a prompt.
const ENDING: f64 = 5.0;
/// Tokens by which answers go on that do not tell yet, spread over all: of 110 that two models began with 16 tokens, 15 went on,
/// by 20 or so.
const OPEN: f64 = 3.0;
/// Passes over harmless prompts until a strength spends the KL budget.
const BUDGET_PASSES: f64 = 1.5;
/// What part of the operations that a core does in plain products of matrices it does where prompts are read in F32, and where
/// llama.cpp multiplies. Qwen2.5-Coder-0.5B Q4_K_M on two cores with AVX-512 had .5 and .3; VNNI speeds up llama.cpp alone.
const READ: f64 = if IS_FASTER { 0.5 } else { ANSWERS };
const ANSWERS: f64 = 0.45;

/// Tokens of a step.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    /// Those of prompts and texts that are read in F32.
    read: f64,
    /// Those that llama.cpp multiplies: of answers, and all of the report.
    answers: f64,
}

impl Work {
    fn read(tokens: f64) -> Self {
        Self { read: tokens, answers: 0.0 }
    }

    fn times(self, n: f64) -> Self {
        Self { read: n * self.read, answers: n * self.answers }
    }

    fn tokens(self) -> f64 {
        self.read + self.answers
    }

    /// Tokens for which a core that did nothing but multiply would take as long.
    fn weighted(self) -> f64 {
        self.read / READ + self.answers / ANSWERS
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { read: self.read + other.read, answers: self.answers + other.answers }
    }
}

/// What it would take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Tokens to find the direction and the gates.
    pub tokens_learning: u64,
    /// Tokens of the search.
    pub tokens_search: u64,
    /// Tokens of the scores before and after.
    pub tokens_report: u64,
    /// Weights that a token is multiplied with.
    pub active_weights: u64,
    /// Seconds on the threads that would be used, on the CPU.
    pub seconds: f64,
}

impl Estimate {
    /// For one injection with the direction source that most models show; an ablated direction or a safety prompt takes more.
    pub fn of(opened: &Opened, options: &InjectOptions, prompts: &PromptSet) -> Self {
        let report = report(options, prompts);
        let (learning, search) = match options.edit {
            // Nothing is learned or searched.
            Some(_) => Default::default(),
            None => (learning(&opened.plan, options, prompts), search(&opened.plan, options, prompts)),
        };
        let active_weights = active_weights(&opened.gguf, &opened.plan);
        let rate = flops() * options.run.threads.max(1) as f64;
        let work = learning + search + Work { read: 0.0, answers: report };
        Self {
            tokens_learning: learning.tokens() as u64,
            tokens_search: search.tokens() as u64,
            tokens_report: report as u64,
            active_weights,
            seconds: 2.0 * active_weights as f64 * work.weighted() / rate,
        }
    }

    /// All tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens_learning + self.tokens_search + self.tokens_report
    }
}

/// Tokens of `texts`, each with the ending of its template.
fn tokens<'a>(texts: impl IntoIterator<Item = &'a String>) -> f64 {
    texts.into_iter().map(|text| text.chars().count() as f64 / CHARACTERS + ENDING).sum()
}

/// Tokens of requests that share what stands before them.
fn placed(placed: &Placed) -> f64 {
    let before = placed.system.iter().chain(placed.before.iter().map(|message| &message.text));
    tokens(before) + tokens(placed.requests.iter().map(|request| &request.text))
}

fn asked(questions: &Questions) -> f64 {
    questions.by_kind().into_iter().map(tokens).sum()
}

fn answered(questions: &Questions, n_predict: usize) -> Work {
    Work { read: asked(questions), answers: questions.len() as f64 * (n_predict as f64 + OPEN) }
}

fn learning(plan: &Plan, options: &InjectOptions, prompts: &PromptSet) -> Work {
    let of_kind = |kind| prompts.select(kind, Split::Extract).into_iter().map(|p| &p.text);
    let once: f64 = PromptKind::ALL.into_iter().map(|kind| tokens(of_kind(kind))).sum();
    match options.method {
        Method::Detector => {
            let training = training();
            let more: f64 = tokens(training.prompts().iter().map(|prompt| &prompt.text));
            // Prose is read as it is, and as an answer.
            let placed: f64 = Context::ALL
                .into_iter()
                .flat_map(|c| contexts::place(c, &training))
                .map(|p| placed(&p))
                .sum();
            let answered = ANSWERED as f64 * N_PREDICT as f64
                + asked(&Questions::of(prompts, Split::Search, [ANSWERED / 3; 3]));
            Work::read(once + DEEPEST * (more + placed + 2.0 * tokens(&prose()) + answered))
        }
        Method::Contrast => {
            let n_prompt = PromptKind::ALL.into_iter().map(|kind| of_kind(kind).len()).sum();
            let again = features::effect_share(plan, n_prompt) * once;
            let budget = BUDGET_PASSES * asked(&few_harmless(prompts, Split::Search));
            Work::read(once + again + tokens(&prose()) + budget)
        }
        Method::Published => Work::read(once),
    }
}

fn search(plan: &Plan, options: &InjectOptions, prompts: &PromptSet) -> Work {
    let questions = Questions::of(prompts, Split::Search, search_prompts(options.method));
    let few = Questions::of(prompts, Split::Search, [FEW[0], FEW[1] / 2, FEW[2] / 2]);
    let whole = |n: f64| answered(&questions, N_PREDICT_SHORT).times(n);
    if options.method == Method::Detector {
        let settings =
            detectors::settings(&detectors::space(options, plan, DirectionSource::Refusal, PUSH), options);
        let n_probe = 1 + search::harder(&settings, settings[0].1).len();
        // The base's first tokens, and those of each setting that is not gentler than the first; one of them answers.
        let firsts = Work::read((1 + n_probe) as f64 * asked(&few));
        return answered(&questions, N_PREDICT) + firsts + whole(1.0);
    }
    let space = features::space_of(options, DirectionSource::Refusal);
    let probes = search::n_probes(&space, options.search.layer);
    let strength = match options.search.strength {
        Some(_) => 0.0,
        None => BUDGET_PASSES * asked(&few_harmless(prompts, Split::Search)),
    };
    let trials = options.search.trials as f64;
    // Those at full strength are given it by all harmless prompts.
    let passes = if strength > 0.0 { BUDGET_PASSES * (trials / 2.0).ceil() } else { 0.0 };
    let full = passes * tokens(&questions.harmless);
    let answers = answered(&questions, N_PREDICT) + whole(trials);
    Work::read(probes as f64 * (asked(&few) + strength) + full) + answers
}

fn report(options: &InjectOptions, prompts: &PromptSet) -> f64 {
    let limits = if options.prompts.is_empty() { REPORT_PROMPTS } else { Questions::ALL };
    let questions = Questions::of(prompts, Split::Report, limits);
    let snapshots = 3.0 * asked(&Questions::of(prompts, Split::Report, FIDELITY_PROMPTS));
    let once = answered(&questions, N_PREDICT).tokens();
    let harmless = Questions::of(prompts, Split::Report, [0, limits[1], 0]);
    let part = (once + answered(&harmless, N_PREDICT).tokens()) / 2.0;
    let controls = match (options.controls, options.in_place) {
        (false, _) => 0.0,
        // Exact edit and published edit; half of the prompts for a random direction, and for a requantized copy.
        (true, in_place) => {
            2.0 * part + once * if in_place { 0.5 } else { 1.0 } + BUDGET_PASSES * tokens(&questions.harmless)
        }
    };
    2.0 * once + snapshots + controls
}

fn few_harmless(prompts: &PromptSet, split: Split) -> Questions {
    Questions::of(prompts, split, [0, FEW[1], 0])
}

/// Weights that a token meets on its way: all matrices of the blocks, of experts those it is routed to, and
/// the output matrix.
fn active_weights(gguf: &Gguf, plan: &Plan) -> u64 {
    let output = if plan.tied_embeddings { "token_embd.weight" } else { "output.weight" };
    let matrices = gguf.tensors.iter().filter(|t| t.n_rows() > 1);
    let met = matrices.filter(|t| t.name.starts_with("blk.") || t.name == output);
    met.map(|t| t.n_elements() / expert_share(t, plan)).sum()
}

/// Of how many experts one is used, for a tensor that holds all of a block's.
fn expert_share(tensor: &TensorInfo, plan: &Plan) -> u64 {
    match tensor.name.contains("_exps.") && plan.n_expert_used > 0 {
        true => (plan.n_expert / plan.n_expert_used).max(1),
        false => 1,
    }
}
