//! Comparison of two models on the same prompts: which refuses what, and the KL divergence between them.

use serde::Serialize;

use super::refusal::Outcome;
use crate::llama::engine::groups;
use crate::llama::{Chat, Lanes, LlamaEngine, LlamaError, Token};
use crate::util::stats::{kl_divergence, mcnemar};

/// Yes/no outcomes of two models on the same items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Number of items that both models have.
    pub items: u64,
    /// Number of items on which only the base says yes.
    pub only_base: u64,
    /// Number of items on which only the other model says yes.
    pub only_this: u64,
    /// p-value of the exact two-sided McNemar test on `only_base` and `only_this`; see [`mcnemar`].
    pub p: f64,
}

impl Paired {
    /// Counts the pairs and tests them; ignores items that one side lacks.
    pub fn new(base: impl IntoIterator<Item = bool>, this: impl IntoIterator<Item = bool>) -> Self {
        let (mut items, mut only_base, mut only_this) = (0, 0, 0);
        for (base, this) in base.into_iter().zip(this) {
            items += 1;
            only_base += u64::from(base && !this);
            only_this += u64::from(this && !base);
        }
        Self { items, only_base, only_this, p: mcnemar(only_base, only_this) }
    }

    /// Compares refusals prompt by prompt. All other outcomes, including broken answers, count as not refused.
    pub fn refusals(base: &[Outcome], this: &[Outcome]) -> Self {
        let refused = |outcomes: &[Outcome]| -> Vec<bool> {
            outcomes.iter().map(|&outcome| outcome == Outcome::Refused).collect()
        };
        Self::new(refused(base), refused(this))
    }
}

/// Mean KL(base ‖ this) in nats, over prompts and over the base's own answers.
///
/// Let `p` be the base's and `q` this model's next-token distribution, `x` a prompt, and `y` the base's
/// greedy answer to it, of at most `n_predict` tokens:
///
/// ```text
/// first_token = mean over x of KL(p(·|x) ‖ q(·|x))
/// per_token   = mean over x and t < |y| of KL(p(·|x, y_<t) ‖ q(·|x, y_<t))
/// ```
///
/// The end of an answer counts as one of its tokens. Both models are fed the base's tokens (teacher
/// forcing). Infinite if a logit of this model is NaN or infinite; see [`kl_divergence`].
///
/// For a quantized file, ggml also rounds the inputs of every matrix, so even the smallest change of a weight
/// changes the rounding in all later layers: a negligible edit (1e-6) gave 0.0021 and 0.0012 over 32 prompts for
/// SmolLM2-135M Q4_1, but 4e-8 and 2e-8 for its F32 copy. Comparing a file with itself gives exactly 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Divergence {
    /// Over the first token of each answer.
    pub first_token: f64,
    /// Over all tokens of all answers.
    pub per_token: f64,
    /// Number of prompts.
    pub prompts: u64,
    /// Number of answer tokens.
    pub tokens: u64,
}

#[derive(Default)]
struct Sum {
    first: f64,
    all: f64,
    tokens: u64,
}

/// Runs both models in lockstep over the base's answers to `chats`, comparing one row of logits at a time, so that none
/// are stored. `done` receives the number of finished prompts.
///
/// Returns `None` if there are no prompts, or if the models' vocabularies or templates turn a prompt into different
/// tokens.
///
/// # Errors
/// Returns [`LlamaError`] if rendering or decoding fails.
pub fn divergence(
    base: &mut LlamaEngine,
    this: &mut LlamaEngine,
    chats: &[Chat<'_>],
    n_predict: usize,
    done: &mut dyn FnMut(usize),
) -> Result<Option<Divergence>, LlamaError> {
    let tokens = |engine: &LlamaEngine| -> Result<Vec<Vec<Token>>, LlamaError> {
        chats.iter().map(|chat| engine.tokens(chat)).collect()
    };
    let prompts = tokens(base)?;
    if chats.is_empty() || base.n_vocab() != this.n_vocab() || prompts != tokens(this)? {
        return Ok(None);
    }
    let mut sum = Sum::default();
    for range in groups(&prompts, n_predict) {
        let end = range.end;
        lockstep(base, this, &prompts[range], n_predict, &mut sum)?;
        done(end);
    }
    let n = prompts.len() as u64;
    Ok(Some(Divergence {
        first_token: sum.first / n as f64,
        per_token: sum.all / sum.tokens as f64,
        prompts: n,
        tokens: sum.tokens,
    }))
}

fn lockstep(
    base: &mut LlamaEngine,
    this: &mut LlamaEngine,
    prompts: &[Vec<Token>],
    n_predict: usize,
    sum: &mut Sum,
) -> Result<(), LlamaError> {
    let mut base = Lanes::new(base, prompts, n_predict)?;
    let mut this = Lanes::new(this, prompts, n_predict)?;
    for step in 0..n_predict {
        let mut next = vec![None; prompts.len()];
        for (seq, next) in next.iter_mut().enumerate() {
            let (Some(p), Some(q)) = (base.logits(seq)?, this.logits(seq)?) else { continue };
            let kl = kl_divergence(p, q).unwrap_or(f64::INFINITY);
            sum.all += kl;
            sum.tokens += 1;
            if step == 0 {
                sum.first += kl;
            }
            *next = base.greedy(seq)?;
        }
        if step + 1 == n_predict || !base.feed(&next)? {
            break;
        }
        this.feed(&next)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted_and_tested() {
        use Outcome::{Broken, Complied, Refused};
        let base = [Refused, Complied, Complied, Complied, Complied, Complied, Complied, Broken];
        let this = [Refused, Refused, Refused, Refused, Refused, Refused, Broken, Complied];
        let paired = Paired::refusals(&base, &this);
        // 2 / 2⁵.
        assert_eq!((paired.items, paired.only_base, paired.only_this), (8, 0, 5));
        assert!((paired.p - 0.0625).abs() < 1e-12);
        let back = Paired::refusals(&this, &base);
        assert_eq!((back.only_base, back.only_this, back.p), (5, 0, paired.p));
        let same = Paired::refusals(&base, &base);
        assert_eq!((same.only_base, same.only_this, same.p), (0, 0, 1.0));
    }

    #[test]
    fn known_mcnemar_values() {
        let of = |only_base: usize, only_this: usize| {
            let base = (0..only_base + only_this).map(|i| i < only_base);
            let this = (0..only_base + only_this).map(|i| i >= only_base);
            Paired::new(base, this).p
        };
        // By hand: 2·(1 + 10 + 45)/2¹⁰ and 2·(1 + 12)/2¹².
        assert!((of(8, 2) - 112.0 / 1024.0).abs() < 1e-12);
        assert!((of(1, 11) - 26.0 / 4096.0).abs() < 1e-12);
        assert_eq!(of(0, 0), 1.0);
    }
}
