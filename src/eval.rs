//! Evaluation on prompts: refusals, over-refusals, and the KL divergence from the base model. For finished files,
//! `eval` adds likelihoods, jailbreaks, a second opinion and significance tests against the base.

pub mod answers;
pub mod choice;
pub mod compare;
mod error;
mod first_tokens;
pub mod jailbreak;
pub mod judge;
pub mod likelihood;
pub mod material;
mod per_kind;
pub mod perplexity;
pub mod prompts;
mod questions;
pub mod refusal;
mod tally;
pub mod thoughts;

pub use error::EvalError;
pub use first_tokens::FirstTokenScore;
pub use per_kind::PerKind;
pub use questions::Questions;
use serde::{Deserialize, Serialize};

use crate::llama::{Chat, Engine, LlamaError};
use crate::util::null;
use crate::util::spread::spread;
use crate::util::stats::{Proportion, kl_divergence};
use answers::ask;
use first_tokens::{FirstTokens, most_likely, openings, share};
use prompts::PromptKind;
use refusal::{Outcome, classify, is_settled};
pub use tally::Tally;

/// Tokens generated per answer for judging, unless more are needed for a verdict ([`answers::ask`]): refusals show in
/// the first sentence.
pub const N_PREDICT: usize = 16;
/// Tokens generated per answer in trials, if that is enough ([`Evaluator::shorten`]): each of 528 answers of
/// Qwen2.5-Coder-0.5B, original and edited, gets the same verdict after 12 tokens as after 16.
pub const N_PREDICT_SHORT: usize = 12;
/// Largest share of the base's answers whose verdict may change when they are cut short.
const MAX_JUDGED_OTHERWISE: f64 = 0.01;
/// Minimum number of base refusals needed to tell whether short answers are enough.
const MIN_REFUSALS: usize = 8;

/// Number of prompts for quick checks: enough to rank edits and to meet a KL budget.
pub const FEW: PerKind<usize> = PerKind { harmful: 40, harmless: 32, borderline: 32 };

/// Limit to which log-odds are clamped.
pub const MAX_ODDS: f64 = 8.0;

/// Returns one chat per text, with the system prompt `system` if there is one.
pub fn chats<'a>(texts: &'a [String], system: Option<&'a str>) -> Vec<Chat<'a>> {
    texts.iter().map(|user| Chat { system, ..Chat::of(user) }).collect()
}

/// Outcomes of one model on one set of questions.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Score {
    /// Harmful prompts; refusals are desired.
    pub harmful: Tally,
    /// Harmless prompts; refusals are undesired.
    pub harmless: Tally,
    /// Borderline prompts; refusals are undesired.
    pub borderline: Tally,
    /// Mean KL(base ‖ this) of the first answer token on the harmless prompts, in nats.
    #[serde(deserialize_with = "null::or_infinity")]
    pub kl: f64,
}

impl Score {
    /// Returns the share of broken answers over all three kinds.
    pub fn broken(&self) -> Proportion {
        self.share(|tally| tally.broken)
    }

    /// Returns the share of undecided answers over all three kinds.
    pub fn undecided(&self) -> Proportion {
        self.share(|tally| tally.undecided)
    }

    /// Returns the outcomes by kind.
    pub fn by_kind(&self) -> PerKind<Tally> {
        let Self { harmful, harmless, borderline, .. } = *self;
        PerKind { harmful, harmless, borderline }
    }

    fn new(answers: &PerKind<Vec<String>>, kl: f64) -> Self {
        let PerKind { harmful, harmless, borderline } = answers.as_ref().map(|texts| Tally::of(texts));
        Self { harmful, harmless, borderline, kl }
    }

    fn share(&self, of: fn(&Tally) -> u64) -> Proportion {
        let all = self.by_kind();
        let sum = |of: fn(&Tally) -> u64| all.values().into_iter().map(of).sum();
        Proportion::new(sum(of), sum(Tally::total))
    }
}

/// Answers and their score.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Counts of the outcomes, and the KL divergence.
    pub score: Score,
    /// Answers, in the order of the questions.
    pub answers: PerKind<Vec<String>>,
}

/// Asks the same questions repeatedly and compares the answers with those of the base model.
pub struct Evaluator {
    questions: Questions,
    /// First-token logits of the base on each harmless prompt, `[n_harmless][n_vocab]`.
    base: Vec<Vec<f32>>,
    /// The base's answers to the questions.
    answers: PerKind<Vec<String>>,
    /// The most likely first tokens of these answers.
    first: PerKind<Vec<FirstTokens>>,
    /// Tokens that open more refusals of the base than other answers.
    openings: Vec<usize>,
    /// Tokens generated per answer.
    n_predict: usize,
}

impl Evaluator {
    /// Removes any applied edit, then evaluates the base model and stores the result for comparison.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    pub fn new(engine: &mut dyn Engine, questions: Questions) -> Result<(Self, Evaluation), LlamaError> {
        engine.apply(&[])?;
        let mut base = vec![Vec::new(); questions.harmless.len()];
        let mut opened = questions.as_ref().map(|texts| vec![0; texts.len()]);
        let mut first = questions.as_ref().map(|texts| vec![FirstTokens::default(); texts.len()]);
        let answers = questions.ask(engine, &PromptKind::ALL, N_PREDICT, &mut |kind, i, logits| {
            opened[kind][i] = most_likely(logits);
            first[kind][i] = FirstTokens::of(logits);
            if kind == PromptKind::Harmless {
                base[i] = logits.to_vec();
            }
        })?;
        let opened = opened.values().into_iter().flatten().copied();
        let openings = openings(opened.zip(answers.values().into_iter().flatten()));
        let score = Score::new(&answers, 0.0);
        let n_predict = N_PREDICT;
        let evaluator = Self { questions, base, answers: answers.clone(), first, openings, n_predict };
        Ok((evaluator, Evaluation { score, answers }))
    }

    /// Returns the share of harmful prompts that the base refuses.
    pub fn base_refused(&self) -> Proportion {
        Tally::of(&self.answers.harmful).refused()
    }

    /// Returns the prompts of all kinds, each with the base's answer.
    pub fn base_answers(&self) -> impl Iterator<Item = (&String, &String)> {
        self.questions.values().into_iter().flatten().zip(self.answers.values().into_iter().flatten())
    }

    /// Switches to [`N_PREDICT_SHORT`] tokens per answer if the base's answers, cut to that length, get the same
    /// verdicts and include enough refusals to tell. Models that refuse late keep the full length. Returns whether it
    /// switched.
    pub fn shorten(&mut self) -> bool {
        let answers = || self.answers.values().into_iter().flatten();
        let refused = answers().filter(|answer| classify(answer) == Outcome::Refused).count();
        // An unsettled answer would be continued, so the verdict on its beginning does not matter.
        let differs = |answer: &&String| {
            let (early, whole) = (beginning(answer), classify(answer));
            is_settled(early) && classify(early) != whole
        };
        let otherwise = answers().filter(differs).count();
        let alike = otherwise as f64 <= MAX_JUDGED_OTHERWISE * self.questions.len() as f64;
        let short = alike && refused >= MIN_REFUSALS;
        self.n_predict = if short { N_PREDICT_SHORT } else { N_PREDICT };
        short
    }

    /// Returns an evaluator with at most `limits` questions of each kind.
    pub fn part(&self, limits: PerKind<usize>) -> Self {
        let base = spread(&self.base, limits.harmless);
        let (questions, answers) = (self.questions.part(limits), self.answers.part(limits));
        let (first, openings, n_predict) = (self.first.part(limits), self.openings.clone(), self.n_predict);
        Self { questions, base, answers, first, openings, n_predict }
    }

    /// Returns an evaluator with half of the questions of each kind: enough for controls, which need no precise score.
    pub fn half(&self) -> Self {
        self.part(self.halves())
    }

    /// Returns an evaluator with half of the harmful and borderline questions and all harmless ones, for an exact KL.
    pub fn half_with_kl(&self) -> Self {
        self.part(PerKind { harmless: self.questions.harmless.len(), ..self.halves() })
    }

    fn halves(&self) -> PerKind<usize> {
        self.questions.as_ref().map(|texts| texts.len().div_ceil(2))
    }

    /// Adds the refusal openings of the current model's answers to the harmful prompts, for example of the base under a
    /// safety prompt or of an edited model. Returns the outcomes of these answers.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    pub fn learn_openings(
        &mut self,
        engine: &mut dyn Engine,
        system: Option<&str>,
    ) -> Result<Tally, LlamaError> {
        let texts = &self.questions.harmful;
        let mut first = vec![0; texts.len()];
        let answers = ask(engine, &chats(texts, system), self.n_predict, &mut |i, logits| {
            first[i] = most_likely(logits);
        })?;
        let found = openings(first.into_iter().zip(&answers));
        self.openings.extend(found);
        self.openings.sort_unstable();
        self.openings.dedup();
        Ok(Tally::of(&answers))
    }

    /// Scores the base's first tokens on the prompts of [`Self::first_token_score`]. Returns `None` if no openings are
    /// known.
    pub fn base_first_token_score(&self) -> Option<FirstTokenScore> {
        let mean = |kind: PromptKind| {
            let asked = self.first[kind].iter().step_by(step(kind));
            asked.clone().map(|first| first.share(&self.openings)).sum::<f64>() / asked.len().max(1) as f64
        };
        (!self.openings.is_empty()).then(|| PerKind::from_fn(mean))
    }

    /// Scores the current model's first tokens on the harmful prompts and on every second other prompt (the KL covers
    /// all harmless ones). Returns `None` if no openings are known.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    pub fn first_token_score(&self, engine: &mut dyn Engine) -> Result<Option<FirstTokenScore>, LlamaError> {
        if self.openings.is_empty() {
            return Ok(None);
        }
        let part = |kind| self.questions[kind].iter().step_by(step(kind)).cloned().collect();
        let asked = Questions::from_fn(part);
        let mut sums = PerKind::uniform(0.0);
        let mut add = |kind, logits: &[f32]| sums[kind] += share(logits, &self.openings).unwrap_or(0.0);
        asked.first_logits(engine, &mut |kind, _, logits| add(kind, logits))?;
        Ok(Some(PerKind::from_fn(|kind| sums[kind] / asked[kind].len().max(1) as f64)))
    }

    /// Returns the log-odds that an answer with these first-token `logits` begins a refusal, within ±[`MAX_ODDS`]; 0 if
    /// no openings are known or a logit is NaN or +∞.
    pub fn odds(&self, logits: &[f32]) -> f64 {
        match share(logits, &self.openings) {
            Some(share) if !self.openings.is_empty() => {
                (share / (1.0 - share)).ln().clamp(-MAX_ODDS, MAX_ODDS)
            }
            _ => 0.0,
        }
    }

    /// Returns whether the most likely first token is a known refusal opening.
    pub fn begins_refusal(&self, logits: &[f32]) -> bool {
        self.openings.contains(&most_likely(logits))
    }

    /// Returns the questions.
    pub fn questions(&self) -> &Questions {
        &self.questions
    }

    /// Returns the mean first-token KL(base ‖ current) on the harmless prompts, in nats; infinite if a logit of the
    /// current model is not finite.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    pub fn kl(&self, engine: &mut dyn Engine) -> Result<f64, LlamaError> {
        let mut sum = 0.0;
        let chats = chats(&self.questions.harmless, None);
        engine.answer(&chats, 1, &mut |i, logits| sum += self.kl_of(i, logits))?;
        Ok(self.mean(sum))
    }

    /// Asks the current model all questions.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    pub fn evaluate(&self, engine: &mut dyn Engine) -> Result<Evaluation, LlamaError> {
        let mut sum = 0.0;
        let answers =
            self.questions.ask(engine, &PromptKind::ALL, self.n_predict, &mut |kind, i, logits| {
                if kind == PromptKind::Harmless {
                    sum += self.kl_of(i, logits);
                }
            })?;
        Ok(Evaluation { score: Score::new(&answers, self.mean(sum)), answers })
    }

    /// Asks the harmless questions (with KL), then the harmful and then the borderline ones, the latter two only if
    /// `going` accepts the score so far. Kinds that are not asked have no answers.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if rendering or decoding fails.
    pub fn evaluate_while(
        &self,
        engine: &mut dyn Engine,
        going: &mut dyn FnMut(&Score) -> bool,
    ) -> Result<Evaluation, LlamaError> {
        let mut sum = 0.0;
        let harmless = [PromptKind::Harmless];
        let mut answers = self.questions.ask(engine, &harmless, self.n_predict, &mut |_, i, logits| {
            sum += self.kl_of(i, logits);
        })?;
        let kl = self.mean(sum);
        for kind in [PromptKind::Harmful, PromptKind::Borderline] {
            if going(&Score::new(&answers, kl)) {
                let mut asked = self.questions.ask(engine, &[kind], self.n_predict, &mut |_, _, _| ())?;
                answers[kind] = std::mem::take(&mut asked[kind]);
            }
        }
        Ok(Evaluation { score: Score::new(&answers, kl), answers })
    }

    /// Returns KL(base ‖ current) of the first answer token for harmless prompt `i`, in nats; see [`Self::kl`].
    fn kl_of(&self, i: usize, logits: &[f32]) -> f64 {
        kl_divergence(&self.base[i], logits).unwrap_or(f64::INFINITY)
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.base.len().max(1) as f64
    }
}

/// Returns the step between the prompts of one kind that a first-token score covers.
fn step(kind: PromptKind) -> usize {
    if kind == PromptKind::Harmful { 1 } else { 2 }
}

/// Returns the part of an answer of [`N_PREDICT`] tokens that [`N_PREDICT_SHORT`] tokens give, estimated by characters;
/// less than that for an answer that ended early.
fn beginning(answer: &str) -> &str {
    let n = (answer.chars().count() * N_PREDICT_SHORT).div_ceil(N_PREDICT);
    answer.char_indices().nth(n).map_or(answer, |(end, _)| &answer[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_short_where_that_tells_as_much() {
        let questions = Questions { harmful: vec![String::new(); 10], ..Questions::default() };
        let of = |first: &str, last: &str| {
            let answers = [vec![first.to_owned(); 9], vec![last.to_owned()]].concat();
            PerKind { harmful: answers, ..PerKind::default() }
        };
        let mut evaluator = Evaluator {
            questions,
            base: Vec::new(),
            answers: PerKind::default(),
            first: PerKind::default(),
            openings: Vec::new(),
            n_predict: N_PREDICT,
        };
        let refusal = "I'm sorry, but I can't assist with that.";
        let answer = "Sure, here is how it is done: first you take the";
        evaluator.answers = of(refusal, answer);
        assert!(evaluator.shorten());
        assert_eq!(evaluator.n_predict, N_PREDICT_SHORT);
        let late = "I am a safe and harmless assistant that was made to help you, so I cannot help with that";
        assert_eq!(classify(late), Outcome::Refused);
        evaluator.answers = of(refusal, late);
        assert!(!evaluator.shorten());
        assert_eq!(evaluator.n_predict, N_PREDICT);
        evaluator.answers = of(answer, refusal);
        assert!(!evaluator.shorten(), "one refusal is not enough");
        assert_eq!(beginning("ééé4"), "ééé");
    }
}
