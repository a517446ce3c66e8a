//! How safe, how helpful, how far from the base: scores on prompts, three ways; and what `eval` adds to
//! them for finished files: likelihoods, jailbreaks, a second opinion, tests against the base.

pub mod choice;
pub mod compare;
mod error;
pub mod jailbreak;
pub mod judge;
pub mod likelihood;
pub mod material;
pub mod perplexity;
pub mod refusal;
pub mod stats;

pub use error::EvalError;
use serde::Serialize;

use crate::llama::{Chat, Engine, LlamaError};
use crate::prompts::{PromptKind, PromptSet, Split};
use refusal::{Outcome, classify};
use stats::{Proportion, kl_divergence};

/// Tokens of an answer that are generated for judging: refusals show in the first sentence.
pub const N_PREDICT: usize = 16;

/// The prompts of one split, by kind.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    /// Should be refused.
    pub harmful: Vec<String>,
    /// Should be answered.
    pub harmless: Vec<String>,
    /// Sound harmful and should be answered.
    pub alarming: Vec<String>,
}

impl Questions {
    /// Every prompt of the split.
    pub const ALL: [usize; 3] = [usize::MAX; 3];

    /// The prompts of `split`, at most `limits` harmful, harmless and alarming ones, in their order.
    pub fn of(prompts: &PromptSet, split: Split, limits: [usize; 3]) -> Self {
        let pick = |kind, limit: usize| {
            let all = prompts.select(kind, split);
            // Evenly spread, so that a limit keeps the spread of topics.
            let n = all.len().min(limit);
            (0..n).map(|i| all[i * all.len() / n].text.clone()).collect()
        };
        Self {
            harmful: pick(PromptKind::Harmful, limits[0]),
            harmless: pick(PromptKind::Harmless, limits[1]),
            alarming: pick(PromptKind::Alarming, limits[2]),
        }
    }

    /// Number of prompts of all kinds.
    pub fn len(&self) -> usize {
        self.harmful.len() + self.harmless.len() + self.alarming.len()
    }

    /// Whether there is no prompt.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Chats without a system prompt, as users send them.
pub fn chats<'a>(texts: &'a [String], system: Option<&'a str>) -> Vec<Chat<'a>> {
    texts.iter().map(|user| Chat { system, user }).collect()
}

/// Outcomes of one kind of prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(into = "TallyRow")]
pub struct Tally {
    /// Answers that decline.
    pub refused: u64,
    /// Answers that answer.
    pub complied: u64,
    /// Answers that are no text any more; never counted as refusals.
    pub broken: u64,
}

#[derive(Serialize)]
struct TallyRow {
    refused: Proportion,
    complied: Proportion,
    broken: Proportion,
}

impl From<Tally> for TallyRow {
    fn from(t: Tally) -> Self {
        let of = |count| Proportion::new(count, t.total());
        Self { refused: of(t.refused), complied: of(t.complied), broken: of(t.broken) }
    }
}

impl Tally {
    /// Judges `answers`.
    pub fn of(answers: &[String]) -> Self {
        let mut tally = Self::default();
        for answer in answers {
            match classify(answer) {
                Outcome::Refused => tally.refused += 1,
                Outcome::Complied => tally.complied += 1,
                Outcome::Broken => tally.broken += 1,
            }
        }
        tally
    }

    /// Number of answers.
    pub fn total(&self) -> u64 {
        self.refused + self.complied + self.broken
    }

    /// Share refused, with its interval.
    pub fn refused(&self) -> Proportion {
        Proportion::new(self.refused, self.total())
    }

    /// Share broken, with its interval.
    pub fn broken(&self) -> Proportion {
        Proportion::new(self.broken, self.total())
    }
}

/// One model's outcome on one set of questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// Harmful prompts: refused is good.
    pub harmful: Tally,
    /// Harmless prompts: refused is bad.
    pub harmless: Tally,
    /// Prompts that only sound harmful: refused is bad.
    pub alarming: Tally,
    /// Mean KL(base ‖ this) of the first answer token on the harmless prompts, nats.
    pub kl: f64,
}

impl Score {
    /// Share of broken answers over all three kinds.
    pub fn broken(&self) -> Proportion {
        let all = [self.harmful, self.harmless, self.alarming];
        Proportion::new(all.iter().map(|t| t.broken).sum(), all.iter().map(Tally::total).sum())
    }
}

/// Answers beside their score, in the order of the questions.
#[derive(Debug, Clone)]
pub struct Examination {
    /// The counts.
    pub score: Score,
    /// Answers to the harmful, harmless and alarming prompts.
    pub answers: [Vec<String>; 3],
}

/// Asks the same questions again and again, and compares with the base model.
pub struct Examiner {
    questions: Questions,
    /// First-token logits of the base on each harmless prompt, `[n_harmless][n_vocab]`.
    base: Vec<Vec<f32>>,
}

impl Examiner {
    /// Examines the base model itself (no edit applied) and remembers it.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub fn new(engine: &mut dyn Engine, questions: Questions) -> Result<(Self, Examination), LlamaError> {
        engine.apply(&[])?;
        let mut examiner = Self { base: vec![Vec::new(); questions.harmless.len()], questions };
        let mut base = std::mem::take(&mut examiner.base);
        let harmless =
            engine.answer(&chats(&examiner.questions.harmless, None), N_PREDICT, &mut |i, logits| {
                base[i] = logits.to_vec();
            })?;
        examiner.base = base;
        let examination = examiner.judge(engine, harmless, 0.0)?;
        Ok((examiner, examination))
    }

    /// The questions.
    pub fn questions(&self) -> &Questions {
        &self.questions
    }

    /// Mean first-token KL(base ‖ now) on the harmless prompts, nats; infinite when a logit of the
    /// edited model is not finite.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub fn kl(&self, engine: &mut dyn Engine) -> Result<f64, LlamaError> {
        self.harmless(engine, 1).map(|(_, kl)| kl)
    }

    /// Asks everything of the model as it is now.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub fn examine(&self, engine: &mut dyn Engine) -> Result<Examination, LlamaError> {
        let (harmless, kl) = self.harmless(engine, N_PREDICT)?;
        self.judge(engine, harmless, kl)
    }

    fn harmless(&self, engine: &mut dyn Engine, n_predict: usize) -> Result<(Vec<String>, f64), LlamaError> {
        let mut sum = 0.0;
        let answers =
            engine.answer(&chats(&self.questions.harmless, None), n_predict, &mut |i, logits| {
                sum += kl_divergence(&self.base[i], logits).unwrap_or(f64::INFINITY);
            })?;
        Ok((answers, sum / self.base.len().max(1) as f64))
    }

    fn judge(
        &self,
        engine: &mut dyn Engine,
        harmless: Vec<String>,
        kl: f64,
    ) -> Result<Examination, LlamaError> {
        let mut ask = |texts: &[String]| engine.answer(&chats(texts, None), N_PREDICT, &mut |_, _| ());
        let harmful = ask(&self.questions.harmful)?;
        let alarming = ask(&self.questions.alarming)?;
        let score = Score {
            harmful: Tally::of(&harmful),
            harmless: Tally::of(&harmless),
            alarming: Tally::of(&alarming),
            kl,
        };
        Ok(Examination { score, answers: [harmful, harmless, alarming] })
    }
}
