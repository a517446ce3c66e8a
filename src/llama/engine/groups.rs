//! Grouping of prompts that are decoded together.

use std::ops::Range;

use super::{N_BATCH, N_CTX, N_SEQ};
use crate::llama::ffi::Token;

/// Granularity, in cells, at which llama.cpp compares a token with the cache; also the minimum.
const STEP: usize = 256;
/// Minimum room after the shared prefix in a collection's group, in cells, before rounding up to [`STEP`].
const COLLECTED: usize = 192;

/// Cuts prompts into runs that fit one batch and, with their answers, the cache. The prefix that all prompts share is
/// stored once and decoded separately. A prompt that does not fit runs alone, and the cache grows for it.
pub fn groups(prompts: &[Vec<Token>], n_predict: usize) -> Vec<Range<usize>> {
    let shared = shared_prefix(prompts);
    // A long shared prefix must not take the room of the answers.
    let n_ctx = if shared > N_CTX / 2 { shared + N_CTX } else { N_CTX };
    cut(prompts, shared, n_predict, n_ctx)
}

/// Like [`groups`], for prompts without answers, in smaller runs. A token is compared with all cells of its run,
/// including those of other prompts, which takes a fifth of the time with 1024 cells; with few cells, weights are
/// dequantized too often.
pub(super) fn small_groups(prompts: &[Vec<Token>]) -> Vec<Range<usize>> {
    let shared = shared_prefix(prompts);
    cut(prompts, shared, 0, (shared + COLLECTED).next_multiple_of(STEP))
}

/// Cuts prompts that share their first `shared` tokens into runs of at most `n_ctx` cells.
fn cut(prompts: &[Vec<Token>], shared: usize, n_predict: usize, n_ctx: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (i, prompt) in prompts.iter().enumerate() {
        let own = prompt.len() - shared;
        let full = i - start == N_SEQ
            || tokens + own > N_BATCH
            || shared + tokens + own + (i - start + 1) * n_predict > n_ctx;
        if full && i > start {
            groups.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += own;
    }
    if start < prompts.len() {
        groups.push(start..prompts.len());
    }
    groups
}

/// Returns the length of the prefix that all prompts share, leaving at least one token of each.
pub(super) fn shared_prefix(prompts: &[Vec<Token>]) -> usize {
    let Some((first, rest)) = prompts.split_first() else { return 0 };
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0).saturating_sub(1);
    (0..shortest).find(|&i| rest.iter().any(|p| p[i] != first[i])).unwrap_or(shortest)
}

/// Returns the number of cache cells that one run of prompts and its answers takes if their first `shared` tokens are
/// stored once.
pub(super) fn cells(prompts: &[Vec<Token>], shared: usize, n_predict: usize) -> usize {
    shared + prompts.iter().map(|prompt| prompt.len() - shared + n_predict).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_prefix_leaves_a_token_of_each() {
        assert_eq!(shared_prefix(&[vec![1, 2, 3], vec![1, 2, 4]]), 2);
        assert_eq!(shared_prefix(&[vec![1, 2], vec![1, 2]]), 1);
        assert_eq!(shared_prefix(&[vec![5], vec![1, 2]]), 0);
        assert_eq!(shared_prefix(&[]), 0);
    }

    #[test]
    fn groups_cover_everything_once_and_fit() {
        let prompts: Vec<Vec<Token>> = (0..70).map(|i| vec![i; 1 + (i as usize * 37) % 300]).collect();
        let groups = groups(&prompts, 20);
        assert_eq!(groups.first().map(|g| g.start), Some(0));
        assert_eq!(groups.last().map(|g| g.end), Some(70));
        for pair in groups.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        for group in groups {
            let tokens: usize = prompts[group.clone()].iter().map(Vec::len).sum();
            assert!(group.len() <= N_SEQ && tokens <= N_BATCH && tokens + group.len() * 20 <= N_CTX);
        }
    }

    #[test]
    fn what_all_begin_with_counts_once() {
        let prompts: Vec<Vec<Token>> = (0..64).map(|i| [vec![7; 25], vec![i; 15]].concat()).collect();
        assert_eq!(groups(&prompts, 20), [0..32, 32..64]);
        let alone: Vec<Vec<Token>> = (0..64).map(|i| vec![i; 40]).collect();
        assert_eq!(groups(&alone, 20).len(), 3);
    }

    #[test]
    fn small_groups_fill_the_cells_of_a_step() {
        let of = |shared, own| -> Vec<Vec<Token>> {
            (0..40).map(|i| [vec![7; shared], vec![i; own]].concat()).collect()
        };
        assert_eq!(small_groups(&of(25, 15)), [0..15, 15..30, 30..40], "25 + 15 · 15 ≤ 256");
        assert_eq!(small_groups(&of(100, 60)), [0..6, 6..12, 12..18, 18..24, 24..30, 30..36, 36..40]);
        assert_eq!(small_groups(&of(0, 600)).len(), 40, "longer ones run alone");
    }

    #[test]
    fn a_long_beginning_does_not_part_prompts() {
        let prompts: Vec<Vec<Token>> = (0..64).map(|i| [vec![7; 1231], vec![i; 15]].concat()).collect();
        assert_eq!(groups(&prompts, 20), [0..32, 32..64]);
        assert_eq!(cells(&prompts[..32], 1231, 20), 1231 + 32 * 35);
        let long: Vec<Vec<Token>> = (0..3).map(|i| vec![i; 3000]).collect();
        assert_eq!(groups(&long, 20), [0..1, 1..2, 2..3]);
    }
}
