//! Estimated run time of `inject`: the tokens it decodes, times two operations per active weight, divided by the
//! measured throughput of this CPU.
//!
//! ```text
//! seconds ≈ 2 · active weights · (read / (READ · float) + answers / (ANSWERS · f32)) / threads
//! ```
//!
//! `read` are the tokens of prompts, `float` the operations per second of their products, `answers` the tokens that
//! llama.cpp's own products process, and `f32` the operations per second in F32. The estimate assumes 4.5 characters
//! per token. It ignores the common prefix of the prompts, which is decoded only once, and hashing, writing and
//! training, which take a few percent of the time.

use std::ops::Add;

use serde::Serialize;

use crate::arch::plan::Plan;
use crate::eval::prompts::contexts::{self, Context, Placed};
use crate::eval::prompts::{PromptKind, PromptSet, Split, lookalikes, prose, training};
use crate::eval::{FEW, N_PREDICT, N_PREDICT_SHORT, PerKind, Questions};
use crate::gguf::{Gguf, TensorInfo};
use crate::llama::matmul::{Flops, IS_FASTER};
use crate::method::edit::Method;
use crate::method::search::{self, DirectionSource};
use crate::pipeline::detectors::{self, ANSWERED, DEEPEST, PUSH};
use crate::pipeline::edit_search::search_prompts;
use crate::pipeline::evaluate::{EXACT_PROMPTS, FIDELITY_PROMPTS, report_questions};
use crate::pipeline::features;
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::Opened;

/// Characters per token, for English prose and current vocabularies.
const CHARACTERS: f64 = 4.5;
/// Tokens that a chat template adds after a prompt.
const ENDING: f64 = 5.0;
/// Additional tokens for answers that are still undecided, averaged over all answers: of 110 answers by two models, 15
/// continued beyond 16 tokens, by about 20.
const OPEN: f64 = 3.0;
/// Average passes over the harmless prompts to find the strength that spends the KL budget.
const BUDGET_PASSES: f64 = 1.5;
/// Throughput relative to plain matrix products on the same cores, for reading prompts in floating point and for
/// llama.cpp's own products. Qwen2.5-Coder-0.5B Q4_K_M on two cores with AVX-512 had .5 and .3; VNNI speeds up only
/// llama.cpp.
const READ: f64 = if IS_FASTER { 0.5 } else { ANSWERS };
/// Relative throughput of llama.cpp's own products; see [`READ`].
const ANSWERS: f64 = 0.45;

/// Tokens that a step processes.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    /// Tokens of prompts and texts, read in floating point.
    read: f64,
    /// Tokens processed by llama.cpp's own products: answers, and everything for the report.
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

    /// Returns the seconds that one thread takes per active weight.
    fn seconds_per_weight(self, flops: Flops) -> f64 {
        2.0 * (self.read / (READ * flops.float) + self.answers / (ANSWERS * flops.f32))
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { read: self.read + other.read, answers: self.answers + other.answers }
    }
}

/// Estimated cost of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Tokens for extracting the direction and training the gates.
    pub tokens_learning: u64,
    /// Tokens for the search.
    pub tokens_search: u64,
    /// Tokens for scoring before and after the edit.
    pub tokens_report: u64,
    /// Weights that each token is multiplied with.
    pub active_weights: u64,
    /// Seconds on the CPU, with the configured number of threads.
    pub seconds: f64,
}

impl Estimate {
    /// Estimates one injection with the most common direction source. An ablated direction or a safety prompt takes
    /// longer.
    pub fn of(opened: &Opened, options: &InjectOptions, prompts: &PromptSet) -> Self {
        let report = report(options, prompts);
        let (learning, search) = match options.edit {
            // A stored edit needs no training or search.
            Some(_) => Default::default(),
            None => (learning(&opened.plan, options, prompts), search(&opened.plan, options, prompts)),
        };
        let active_weights = active_weights(&opened.gguf, &opened.plan);
        let weights = active_weights as f64 / options.run.threads.max(1) as f64;
        let work = learning + search + Work { read: 0.0, answers: report };
        Self {
            tokens_learning: learning.tokens() as u64,
            tokens_search: search.tokens() as u64,
            tokens_report: report as u64,
            active_weights,
            seconds: weights * work.seconds_per_weight(Flops::measure()),
        }
    }

    /// Returns the total number of tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens_learning + self.tokens_search + self.tokens_report
    }
}

/// Estimates the tokens of `texts`, each with its template ending.
fn tokens<'a>(texts: impl IntoIterator<Item = &'a String>) -> f64 {
    texts.into_iter().map(|text| text.chars().count() as f64 / CHARACTERS + ENDING).sum()
}

/// Estimates the tokens of requests that share a common prefix.
fn placed(placed: &Placed) -> f64 {
    let before = placed.system.iter().chain(placed.before.iter().map(|message| &message.text));
    tokens(before) + tokens(placed.requests.iter().map(|request| &request.text))
}

fn asked(questions: &Questions) -> f64 {
    questions.values().into_iter().map(tokens).sum()
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
            let lookalikes = lookalikes();
            let plain = training.prompts().iter().chain(lookalikes.prompts());
            let more: f64 = tokens(plain.map(|prompt| &prompt.text));
            // Prose is read twice: as raw text and as an answer.
            let placed: f64 = Context::ALL
                .into_iter()
                .flat_map(|c| contexts::place(c, &training))
                .map(|p| placed(&p))
                .sum();
            let answered = ANSWERED as f64 * N_PREDICT as f64
                + asked(&Questions::of(prompts, Split::Search, PerKind::uniform(ANSWERED / 3)));
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
    let few = Questions::of(
        prompts,
        Split::Search,
        PerKind { harmful: FEW.harmful, harmless: FEW.harmless / 2, borderline: FEW.borderline / 2 },
    );
    let whole = |n: f64| answered(&questions, N_PREDICT_SHORT).times(n);
    if options.method == Method::Detector {
        let settings =
            detectors::settings(&detectors::space(options, plan, DirectionSource::Refusal, PUSH), options);
        let n_probe = 1 + search::harder(&settings, settings[0].1).len();
        // First tokens of each setting that is not weaker than the first; one setting then answers in full.
        let firsts = Work::read(n_probe as f64 * asked(&few));
        return answered(&questions, N_PREDICT) + firsts + whole(1.0);
    }
    let space = features::space_of(options, DirectionSource::Refusal);
    let probes = search::n_probes(&space, options.search.layer);
    let strength = match options.search.strength {
        Some(_) => 0.0,
        None => BUDGET_PASSES * asked(&few_harmless(prompts, Split::Search)),
    };
    let trials = options.search.trials as f64;
    // For trials at full strength, the strength is found on all harmless prompts.
    let passes = if strength > 0.0 { BUDGET_PASSES * (trials / 2.0).ceil() } else { 0.0 };
    let full = passes * tokens(&questions.harmless);
    let answers = answered(&questions, N_PREDICT) + whole(trials);
    Work::read(probes as f64 * (asked(&few) + strength) + full) + answers
}

fn report(options: &InjectOptions, prompts: &PromptSet) -> f64 {
    let questions = report_questions(prompts);
    let snapshot = |limits| asked(&Questions::of(prompts, Split::Report, limits));
    let snapshots = 2.0 * snapshot(FIDELITY_PROMPTS) + snapshot(EXACT_PROMPTS);
    let once = answered(&questions, N_PREDICT).tokens();
    let harmless = Questions { harmless: questions.harmless.clone(), ..Questions::default() };
    let part = (once + answered(&harmless, N_PREDICT).tokens()) / 2.0;
    let controls = match (options.report.controls, options.write.in_place) {
        (false, _) => 0.0,
        // Exact edit and published edit; half of the prompts for the random direction and for the requantized copy.
        (true, in_place) => {
            2.0 * part + once * if in_place { 0.5 } else { 1.0 } + BUDGET_PASSES * tokens(&questions.harmless)
        }
    };
    2.0 * once + snapshots + controls
}

fn few_harmless(prompts: &PromptSet, split: Split) -> Questions {
    Questions::of(prompts, split, PerKind { harmful: 0, borderline: 0, ..FEW })
}

/// Returns the number of active weights per token: all matrices of the blocks, counting only the experts that the token
/// is routed to, and the output matrix.
fn active_weights(gguf: &Gguf, plan: &Plan) -> u64 {
    let output = if plan.tied_embeddings { "token_embd.weight" } else { "output.weight" };
    let matrices = gguf.tensors.iter().filter(|t| t.n_rows() > 1);
    let met = matrices.filter(|t| t.name.starts_with("blk.") || t.name == output);
    met.map(|t| t.n_elements() / expert_share(t, plan)).sum()
}

/// Returns the ratio of all experts to used experts, for a tensor that holds all experts of a block; 1 otherwise.
fn expert_share(tensor: &TensorInfo, plan: &Plan) -> u64 {
    match tensor.name.contains("_exps.") && plan.n_expert_used > 0 {
        true => (plan.n_expert / plan.n_expert_used).max(1),
        false => 1,
    }
}
