//! Perplexity on a text, as `llama-perplexity -c N` measures it.
//!
//! The text is tokenized as a whole and cut into chunks of `n_ctx` tokens without overlap; the first
//! token of each becomes BOS where the vocabulary wants one. Only the second half of a chunk is scored, so
//! that every scored token has at least `n_ctx / 2` tokens before it:
//!
//! ```text
//! NLL = −(1/N) Σ ln p(t_i | t_0 … t_{i−1}),  i = n_ctx/2 + 1 … n_ctx − 1 of every chunk;  PPL = exp(NLL)
//! ```
//!
//! in f64. The standard error takes tokens as independent, `PPL · sd(ln p)/√(N − 1)`, as llama.cpp does.
//! Perplexities of models with different vocabularies, or with another `n_ctx`, cannot be compared.

use serde::Serialize;

use super::error::EvalError;
use super::likelihood::log_probs;
use crate::llama::{LlamaError, TextModel, Token};

/// Bytes that are tokenized at a time: the vocabulary takes 1 MiB at most.
const PIECE_BYTES: usize = 256 * 1024;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkOptions {
    /// Tokens of a chunk, at least 4.
    pub n_ctx: usize,
    /// Most chunks that are read.
    pub chunks: usize,
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// Tokens of a chunk.
    pub n_ctx: usize,
    /// Chunks that were read.
    pub chunks: usize,
    /// Tokens that were scored.
    pub tokens: u64,
    /// Mean negative log-likelihood of a scored token, nats.
    pub nll: f64,
    /// exp of `nll`.
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
/// [`EvalError::TextTooShort`] for less than one chunk; [`EvalError::Llama`] from the vocabulary.
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

/// Cuts a long text at line ends, where tokens end too: each piece has at most `limit` bytes, but for a
/// line that is longer by itself, which is cut between characters.
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

/// The last character boundary up to `limit`, but after one character at least
/// (`str::floor_char_boundary` is younger than our oldest compiler).
fn floor_char_boundary(text: &str, limit: usize) -> usize {
    if limit >= text.len() {
        return text.len();
    }
    let first = text.chars().next().map_or(0, char::len_utf8);
    (first..=limit).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(first)
}

/// Reads `chunks` and scores their second halves; `done` hears of each chunk.
///
/// # Errors
/// [`LlamaError`] when decoding fails or the logits are no distribution.
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
        // Of eight tokens, 5, 6 and 7 are scored.
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
        // BOS and a to g; h gives way to BOS.
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
