//! Perplexity on a text, computed as by `llama-perplexity -c N`.
//!
//! The text is tokenized as a whole and cut into non-overlapping chunks of `n_ctx` tokens; the first
//! token of each is replaced by BOS if the vocabulary requires it. Only the second half of a chunk is scored, so
//! that every scored token has at least `n_ctx / 2` tokens before it:
//!
//! ```text
//! NLL = −(1/N) Σ ln p(t_i | t_0 … t_{i−1}),  i = n_ctx/2 + 1 … n_ctx − 1 of every chunk;  PPL = exp(NLL)
//! ```
//!
//! in f64. The standard error, `PPL · sd(ln p)/√(N − 1)`, treats tokens as independent, as llama.cpp does.
//! Perplexities with different vocabularies or different `n_ctx` are not comparable.

use serde::Serialize;

use super::error::EvalError;
use super::likelihood::log_probs;
use crate::llama::{LlamaError, TextModel, Token};

/// Bytes to tokenize at a time: the vocabulary takes at most 1 MiB.
const PIECE_BYTES: usize = 256 * 1024;

/// How to cut a text into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkOptions {
    /// Tokens per chunk; values below 4 are treated as 4.
    pub n_ctx: usize,
    /// Maximum number of chunks to read.
    pub chunks: usize,
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// Tokens per chunk.
    pub n_ctx: usize,
    /// Number of chunks read.
    pub chunks: usize,
    /// Number of tokens scored.
    pub tokens: u64,
    /// Mean negative log-likelihood per scored token, in nats.
    pub nll: f64,
    /// Perplexity, exp(`nll`).
    pub ppl: f64,
    /// Standard error of `ppl`; NaN for fewer than two tokens.
    pub error: f64,
}

impl Perplexity {
    fn of(log_probs: &[f64], options: ChunkOptions, chunks: usize) -> Self {
        let n = log_probs.len() as f64;
        let nll = -log_probs.iter().sum::<f64>() / n;
        let variance = log_probs.iter().map(|lp| (lp + nll).powi(2)).sum::<f64>() / n;
        let ppl = nll.exp();
        let error = if n > 1.0 { (variance / (n - 1.0)).sqrt() * ppl } else { f64::NAN };
        Self { n_ctx: options.n_ctx, chunks, tokens: log_probs.len() as u64, nll, ppl, error }
    }
}

/// Cuts `text` into chunks of tokens.
///
/// # Errors
/// Returns [`EvalError::TextTooShort`] if the text has fewer tokens than one chunk, and [`EvalError::Llama`] if
/// tokenization fails.
pub fn chunks(
    model: &dyn TextModel,
    text: &str,
    options: ChunkOptions,
) -> Result<Vec<Vec<Token>>, EvalError> {
    let n_ctx = options.n_ctx.max(4);
    let enough = n_ctx.saturating_mul(options.chunks);
    let mut tokens = Vec::new();
    for (i, piece) in pieces(text, PIECE_BYTES).enumerate() {
        tokens.extend(model.text_tokens(piece, i == 0)?);
        if tokens.len() >= enough {
            break;
        }
    }
    if tokens.len() < n_ctx {
        return Err(EvalError::TextTooShort { expected: n_ctx, found: tokens.len() });
    }
    let bos = model.bos();
    let chunk = |tokens: &[Token]| {
        let mut chunk = tokens.to_vec();
        chunk[0] = bos.unwrap_or(chunk[0]);
        chunk
    };
    Ok(tokens.chunks_exact(n_ctx).take(options.chunks).map(chunk).collect())
}

/// Cuts a long text into pieces of at most `limit` bytes, at line ends, where tokens end too. A line longer than
/// `limit` is cut between characters.
fn pieces(text: &str, limit: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = floor_char_boundary(rest, limit);
        let cut = match rest[..end].rfind('\n') {
            Some(newline) if end < rest.len() => newline + 1,
            _ => end,
        };
        let (piece, tail) = rest.split_at(cut);
        rest = tail;
        Some(piece)
    })
}

/// Returns the last character boundary up to `limit`, but at least the end of the first character
/// (`str::floor_char_boundary` is newer than our minimum Rust version).
fn floor_char_boundary(text: &str, limit: usize) -> usize {
    if limit >= text.len() {
        return text.len();
    }
    let first = text.chars().next().map_or(0, char::len_utf8);
    (first..=limit).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(first)
}

/// Reads `chunks` and scores their second halves; `done` receives the number of finished chunks.
///
/// # Errors
/// Returns [`LlamaError`] if decoding fails or the logits are not a distribution.
pub fn perplexity(
    model: &mut dyn TextModel,
    chunks: &[Vec<Token>],
    options: ChunkOptions,
    done: &mut dyn FnMut(usize),
) -> Result<Perplexity, LlamaError> {
    let mut scored = Vec::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let (context, rest) = chunk.split_at(chunk.len() / 2 + 1);
        scored.extend(log_probs(model, context, &[rest.to_vec()])?.concat());
        done(i + 1);
    }
    Ok(Perplexity::of(&scored, options, chunks.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::likelihood::Bytes;

    const OPTIONS: ChunkOptions = ChunkOptions { n_ctx: 8, chunks: 3 };

    #[test]
    fn a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() {
        let mut model = Bytes::new(|_, _| 0.5);
        let chunks = chunks(&model, &"some text ".repeat(9), OPTIONS).unwrap();
        let mut heard = Vec::new();
        let found = perplexity(&mut model, &chunks, OPTIONS, &mut |n| heard.push(n)).unwrap();
        assert!((found.ppl - 256.0).abs() < 1e-9 && found.error.abs() < 1e-9, "{found:?}");
        // Of the eight tokens 0 to 7, tokens 5, 6 and 7 are scored.
        assert_eq!((found.chunks, found.tokens, heard), (3, 9, vec![1, 2, 3]));
    }

    #[test]
    fn mean_and_error_match_values_by_hand() {
        // ln p = −1 and −3: mean 2, variance 1, error √(1/1)·e².
        let found = Perplexity::of(&[-1.0, -3.0], OPTIONS, 1);
        assert_eq!(found.nll, 2.0);
        assert!((found.ppl - 2.0_f64.exp()).abs() < 1e-12 && (found.error - found.ppl).abs() < 1e-12);
        assert!(Perplexity::of(&[-1.0], OPTIONS, 1).error.is_nan());
    }

    #[test]
    fn chunks_begin_with_bos_where_the_vocabulary_wants_it() {
        let mut model = Bytes::new(|_, _| 0.0);
        model.bos = true;
        let text = "abcdefghijklmnopqrstuvwxyz";
        let found = chunks(&model, text, OPTIONS).unwrap();
        // The first chunk is BOS and a to g; the second would start with h, which BOS replaces.
        assert_eq!(
            found[0],
            [&[1], &text.as_bytes()[..7]].concat().iter().map(|&b| Token::from(b)).collect::<Vec<_>>()
        );
        assert_eq!(found[1][..2], [1, Token::from(b'i')]);
        assert_eq!(found.len(), 3);
        model.bos = false;
        assert_eq!(chunks(&model, text, OPTIONS).unwrap()[1][0], Token::from(b'i'));
    }

    #[test]
    fn a_short_text_is_an_error_that_counts() {
        let model = Bytes::new(|_, _| 0.0);
        let error = chunks(&model, "seven..", OPTIONS).unwrap_err();
        assert!(matches!(error, EvalError::TextTooShort { expected: 8, found: 7 }), "{error}");
    }

    #[test]
    fn pieces_end_at_lines_and_lose_nothing() {
        let text = "one\ntwo\n\nthree four five\nsöß";
        for limit in 1..text.len() + 2 {
            let all: Vec<&str> = pieces(text, limit).collect();
            assert_eq!(all.concat(), text, "{limit}");
            assert!(all.iter().all(|p| !p.is_empty() && (p.len() <= limit || p.chars().count() == 1)));
        }
        assert_eq!(pieces(text, 10).next(), Some("one\ntwo\n\n"));
        assert_eq!(pieces("", 10).count(), 0);
    }
}
