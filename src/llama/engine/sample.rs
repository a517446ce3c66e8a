//! Selection of the tokens that a collection captures.

use super::groups::shared_prefix;
use crate::llama::capture::Capture;
use crate::llama::ffi::Token;

/// Tokens spread evenly over all prompts and positions except the last ones; the shared prefix counts once.
pub(super) struct Sample {
    /// Number of tokens in the prefix that all prompts share.
    pub(super) shared: usize,
    /// Position of each prompt's first token that may be sampled.
    from: Vec<usize>,
    /// Distances from the last token back to the tail tokens, which are kept for every prompt.
    tail: Vec<usize>,
    /// Largest distance in `tail`: tokens that close to the end are not sampled.
    n_tail: usize,
    /// Position of each prompt's last token.
    last: Vec<usize>,
    /// Index, among all candidates, of each prompt's first candidate after the shared prefix.
    starts: Vec<usize>,
    /// Number of candidates.
    n_tokens: usize,
    /// Number of sampled tokens.
    pub(super) n_kept: usize,
}

impl Sample {
    pub(super) fn new(prompts: &[Vec<Token>], from: &[usize], capture: &Capture) -> Self {
        let shared = shared_prefix(prompts);
        let tail = capture.tail().to_vec();
        let n_tail = tail.iter().copied().max().unwrap_or(0);
        let mut n_tokens = shared.saturating_sub(from.first().copied().unwrap_or(0));
        let starts = prompts.iter().zip(from).map(|(p, &from)| {
            let inside = p.len().saturating_sub(shared.max(from) + 1 + n_tail);
            n_tokens += inside;
            n_tokens - inside
        });
        let starts = starts.collect();
        let last = prompts.iter().map(|p| p.len().saturating_sub(1)).collect();
        let (n_kept, from) = (capture.n_sample(n_tokens), from.to_vec());
        Self { shared, from, tail, n_tail, last, starts, n_tokens, n_kept }
    }

    /// Returns the row of the token at `pos` of `prompt` in the sample, if it is sampled.
    pub(super) fn row(&self, prompt: usize, pos: usize) -> Option<usize> {
        let from = self.from[prompt];
        let number = match pos < self.shared {
            _ if pos < from => return None,
            true if prompt > 0 => return None,
            true => pos - from,
            false if pos + self.n_tail >= self.last[prompt] => return None,
            false => self.starts[prompt] + pos - self.shared.max(from),
        };
        // Row r is the first candidate with number·n_kept/n_tokens ≥ r.
        let row = (number * self.n_kept).div_ceil(self.n_tokens.max(1));
        let before = number.checked_sub(1).map(|n| (n * self.n_kept).div_ceil(self.n_tokens.max(1)));
        (row < self.n_kept && before != Some(row)).then_some(row)
    }

    /// Returns the row of the token at `pos` of `prompt` among the tail tokens, if it is one.
    pub(super) fn tail(&self, prompt: usize, pos: usize) -> Option<usize> {
        let before = self.last[prompt].checked_sub(pos)?;
        let at = self.tail.iter().position(|&offset| offset == before).filter(|_| pos >= self.shared)?;
        Some(prompt * self.tail.len() + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_takes_every_row_once() {
        let prompts: Vec<Vec<Token>> = (0..9).map(|i| [vec![7; 5], (0..3 + i).collect()].concat()).collect();
        for n_kept in [0, 1, 4, 31, 43] {
            for from in [0, 3, 6] {
                let mut sample = Sample::new(&prompts, &[from; 9], &Capture::nothing());
                sample.n_kept = n_kept.min(sample.n_tokens);
                let mut rows = Vec::new();
                for (i, prompt) in prompts.iter().enumerate() {
                    let taken = (0..prompt.len()).filter_map(|pos| Some((pos, sample.row(i, pos)?)));
                    rows.extend(taken.map(|(pos, row)| {
                        assert!(pos >= from);
                        row
                    }));
                }
                assert_eq!(rows, (0..sample.n_kept).collect::<Vec<_>>(), "{n_kept} from {from}");
            }
        }
    }
}
