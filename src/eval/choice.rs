//! Multiple choice: picks the answer that the model finds most likely.
//!
//! Each answer follows the question as plain text, without the chat template, as is usual for MMLU, ARC and
//! HellaSwag: `Question: …\nAnswer:`, a space and the answer, or, for HellaSwag, the beginning, a space and the
//! ending. With `c` the answer's tokens and `q` the question's:
//!
//! ```text
//! score = Σ_i ln p(c_i | q, c_<i) / bytes(answer)
//! ```
//!
//! in f64. Dividing by bytes avoids a penalty on long answers and makes vocabularies comparable. The model picks the
//! answer with the highest score; ties go to the first. If tokenizing question and answer together changes the
//! question's last tokens, scoring begins at the first changed token.

mod loader;

pub use loader::{load, parse};
use serde::Serialize;

use super::likelihood::log_probs;
use crate::llama::{LlamaError, TextModel, Token};
use crate::util::stats::Proportion;

/// A question with its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The text before the answer, without the space between.
    pub context: String,
    /// The answers, two to [`MAX_CHOICES`].
    pub choices: Vec<String>,
    /// Index of the right answer.
    pub answer: usize,
}

/// Maximum number of answers per question.
pub const MAX_CHOICES: usize = 26;

/// The picks of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choices {
    /// Right picks by log-likelihood per byte, the reported measure.
    pub correct: Proportion,
    /// Right picks by log-likelihood of the whole answer, which favors short answers.
    pub correct_by_sum: Proportion,
    /// Expected share of right picks at random.
    pub chance: f64,
    /// Index of the picked answer per question, by log-likelihood per byte.
    pub picks: Vec<usize>,
    /// Whether the pick is right, per question.
    pub right: Vec<bool>,
}

/// Has the model answer every item; `done` receives the number of finished items.
///
/// # Errors
/// Returns [`LlamaError`] if an item does not fit in the cache or decoding fails.
pub fn choose(
    model: &mut dyn TextModel,
    items: &[Item],
    done: &mut dyn FnMut(usize),
) -> Result<Choices, LlamaError> {
    let (mut picks, mut by_sum, mut chance) = (Vec::new(), 0, 0.0);
    for (i, item) in items.iter().enumerate() {
        let sums = log_likelihoods(model, item)?;
        let per_byte = sums.iter().zip(&item.choices).map(|(sum, choice)| sum / choice.len().max(1) as f64);
        picks.push(highest(per_byte));
        by_sum += u64::from(highest(sums.iter().copied()) == item.answer);
        chance += 1.0 / item.choices.len() as f64;
        done(i + 1);
    }
    let right: Vec<bool> = picks.iter().zip(items).map(|(&pick, item)| pick == item.answer).collect();
    let n = items.len() as u64;
    Ok(Choices {
        correct: Proportion::new(right.iter().filter(|&&r| r).count() as u64, n),
        correct_by_sum: Proportion::new(by_sum, n),
        chance: chance / n as f64,
        picks,
        right,
    })
}

/// Returns `Σ ln p` of each answer of `item`, in nats.
fn log_likelihoods(model: &mut dyn TextModel, item: &Item) -> Result<Vec<f64>, LlamaError> {
    let context = model.text_tokens(&item.context, true)?;
    let mut whole = Vec::with_capacity(item.choices.len());
    for choice in &item.choices {
        whole.push(model.text_tokens(&format!("{} {choice}", item.context), true)?);
    }
    let shared = whole.iter().map(|tokens| common_prefix(&context, tokens)).min().unwrap_or(0);
    let continuations: Vec<Vec<Token>> = whole.iter().map(|tokens| tokens[shared..].to_vec()).collect();
    let rows = log_probs(model, &context[..shared], &continuations)?;
    Ok(rows.iter().map(|row| row.iter().sum()).collect())
}

/// Returns the length of the common prefix, leaving at least one token of `b`.
fn common_prefix(a: &[Token], b: &[Token]) -> usize {
    let longest = a.len().min(b.len().saturating_sub(1));
    (0..longest).find(|&i| a[i] != b[i]).unwrap_or(longest)
}

/// Returns the index of the highest value; ties go to the first.
fn highest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::likelihood::Bytes;

    fn item(context: &str, choices: &[&str], answer: usize) -> Item {
        let choices = choices.iter().map(ToString::to_string).collect();
        Item { context: context.into(), choices, answer }
    }

    #[test]
    fn the_likelier_answer_is_picked_and_length_does_not_count() {
        // Prefers x after any byte.
        let mut model = Bytes::new(|_, b| if b == b'x' { 3.0 } else { 0.0 });
        let items = [
            item("Q:", &["abc", "axx", "bbb"], 1),
            // The short answer wins by the whole answer, the long one per byte.
            item("Q:", &["a", "xxxxxxxxxxxxxxxxxxxxxxxxxxxx"], 1),
            item("Q:", &["xx", "ab"], 1),
        ];
        let mut heard = 0;
        let found = choose(&mut model, &items, &mut |n| heard = n).unwrap();
        assert_eq!(found.picks, [1, 1, 0]);
        assert_eq!(found.right, [true, true, false]);
        assert_eq!((found.correct.count, found.correct.total), (2, 3));
        assert_eq!(found.correct_by_sum.count, 1);
        assert!((found.chance - (1.0 / 3.0 + 0.5 + 0.5) / 3.0).abs() < 1e-12);
        assert_eq!(heard, 3);
        // The question is read once; only the answers, with the space before them, are scored.
        let (context, continuations) = &model.read[0];
        assert_eq!((context.len(), continuations[0].len()), (2, 4));
    }

    #[test]
    fn prefixes_leave_a_token_to_score() {
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 4, 5]), 2);
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 3]), 2);
        assert_eq!(common_prefix(&[1, 2], &[1, 2, 3, 4]), 2);
        assert_eq!(common_prefix(&[], &[1]), 0);
    }
}
