//! Prompts that are decoded together.

use super::{N_BATCH, N_CTX, N_SEQ};
use crate::llama::ffi::Token;

/// Cuts prompts into runs that fit one batch and, with their answers, the cache. What all prompts begin with is there
/// once, and is decoded before. A prompt that does not fit runs alone, and the cache grows for it.
pub fn groups(prompts: &[Vec<Token>], n_predict: usize) -> Vec<std::ops::Range<usize>> {
    groups_of(prompts, n_predict, N_BATCH)
}

/// The same with at most `n_batch` tokens in a batch, unless one prompt alone has more.
pub(super) fn groups_of(
    prompts: &[Vec<Token>],
    n_predict: usize,
    n_batch: usize,
) -> Vec<std::ops::Range<usize>> {
    let shared = shared_prefix(prompts);
    let mut groups = Vec::new();
    // A long beginning leaves the room to answers that it would have taken.
    let n_ctx = if shared > N_CTX / 2 { shared + N_CTX } else { N_CTX };
    let (mut start, mut tokens) = (0, 0);
    for (i, prompt) in prompts.iter().enumerate() {
        let own = prompt.len() - shared;
        let full = i - start == N_SEQ
            || tokens + own > n_batch
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

/// Length of the beginning that all prompts share, leaving at least one token of each.
pub(super) fn shared_prefix(prompts: &[Vec<Token>]) -> usize {
    let Some((first, rest)) = prompts.split_first() else { return 0 };
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0).saturating_sub(1);
    (0..shortest).find(|&i| rest.iter().any(|p| p[i] != first[i])).unwrap_or(shortest)
}

/// Cells of the cache that one run of prompts and its answers take, when their first `shared` tokens are there once.
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
    fn a_long_beginning_does_not_part_prompts() {
        let prompts: Vec<Vec<Token>> = (0..64).map(|i| [vec![7; 1231], vec![i; 15]].concat()).collect();
        assert_eq!(groups(&prompts, 20), [0..32, 32..64]);
        assert_eq!(cells(&prompts[..32], 1231, 20), 1231 + 32 * 35);
        let long: Vec<Vec<Token>> = (0..3).map(|i| vec![i; 3000]).collect();
        assert_eq!(groups(&long, 20), [0..1, 1..2, 2..3]);
    }
}
