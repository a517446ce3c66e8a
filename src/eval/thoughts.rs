//! Statistics of the reasoning before answers: its length, and whether it ends.

use serde::{Deserialize, Serialize};

use crate::llama::thinking::Thought;
use crate::util::stats::Proportion;

/// Statistics of the thoughts (reasoning) before a set of answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Thoughts {
    /// Mean number of tokens per thought, at most the budget.
    pub mean_tokens: f64,
    /// Share of thoughts that did not end within their budget, so that their answers are unknown.
    pub endless: Proportion,
}

impl Thoughts {
    /// Computes the statistics of `all`.
    pub fn of(all: &[Thought]) -> Self {
        let n = all.len().max(1) as f64;
        let endless = all.iter().filter(|thought| !thought.ended).count() as u64;
        Self {
            mean_tokens: all.iter().map(|thought| thought.n_token as f64).sum::<f64>() / n,
            endless: Proportion::new(endless, all.len() as u64),
        }
    }

    /// Combines several statistics, weighted by the number of thoughts; `None` if there are no thoughts.
    pub fn together(all: &[Self]) -> Option<Self> {
        let total: u64 = all.iter().map(|thoughts| thoughts.endless.total).sum();
        let endless = all.iter().map(|thoughts| thoughts.endless.count).sum();
        let tokens: f64 =
            all.iter().map(|thoughts| thoughts.mean_tokens * thoughts.endless.total as f64).sum();
        let mean_tokens = tokens / total as f64;
        (total > 0).then(|| Self { mean_tokens, endless: Proportion::new(endless, total) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_counted_together_by_their_number() {
        let thought = |n_token, ended| Thought { n_token, ended };
        let [a, b] =
            [Thoughts::of(&[thought(10, true), thought(20, false)]), Thoughts::of(&[thought(60, true)])];
        assert_eq!((a.mean_tokens, a.endless.count, a.endless.total), (15.0, 1, 2));
        let both = Thoughts::together(&[a, b]).unwrap();
        assert_eq!((both.mean_tokens, both.endless.count, both.endless.total), (30.0, 1, 3));
        assert!(Thoughts::together(&[]).is_none());
    }
}
