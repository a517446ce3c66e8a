//! The vocabulary of a loaded model.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use llama_cpp_sys_2 as sys;

use super::{Special, Specials};
use crate::llama::LlamaError;
use crate::llama::ffi::{Model, Token};

/// Maximum length of a text that is tokenized at once, in bytes.
const MAX_TEXT: usize = 1 << 20;

/// Type of `llama_tokenize` as the bindings declare it.
type Declared =
    unsafe extern "C" fn(*const sys::llama_vocab, *const c_char, i32, *mut Token, i32, bool, bool) -> i32;
/// Type of `llama_tokenize` as it behaves: it is C++ code that may throw.
type Throwing = unsafe extern "C-unwind" fn(
    *const sys::llama_vocab,
    *const c_char,
    i32,
    *mut Token,
    i32,
    bool,
    bool,
) -> i32;

impl Model {
    /// Returns the size of the vocabulary, which is the length of one row of logits.
    pub fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary is alive.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(self.vocab()) }).unwrap_or(0)
    }

    /// Returns whether `token` ends a generation.
    pub fn is_eog(&self, token: Token) -> bool {
        // SAFETY: the vocabulary is alive; for unknown ids llama.cpp returns false.
        unsafe { sys::llama_vocab_is_eog(self.vocab(), token) }
    }

    /// Returns whether `token` is a control token of this vocabulary.
    pub(in crate::llama) fn is_control(&self, token: Token) -> bool {
        let known = usize::try_from(token).is_ok_and(|t| t < self.n_vocab());
        // SAFETY: the vocabulary is alive, and `token` is one of its ids.
        known && unsafe { sys::llama_vocab_is_control(self.vocab(), token) }
    }

    /// Returns the token that the vocabulary requires before every text, if any.
    pub fn bos_to_add(&self) -> Option<Token> {
        // SAFETY: the vocabulary is alive.
        let (adds, bos) =
            unsafe { (sys::llama_vocab_get_add_bos(self.vocab()), sys::llama_vocab_bos(self.vocab())) };
        (adds && bos >= 0).then_some(bos)
    }

    /// Returns the texts of the BOS and EOS tokens, each empty if the vocabulary has no such token.
    pub fn bos_eos_text(&self) -> (String, String) {
        // SAFETY: the vocabulary is alive.
        let (bos, eos) = unsafe { (sys::llama_vocab_bos(self.vocab()), sys::llama_vocab_eos(self.vocab())) };
        (self.token_text(bos).unwrap_or_default(), self.token_text(eos).unwrap_or_default())
    }

    /// Returns the text of a token as stored in the file; `None` if the vocabulary has no such token.
    fn token_text(&self, token: Token) -> Option<String> {
        usize::try_from(token).ok().filter(|&t| t < self.n_vocab())?;
        // SAFETY: the vocabulary is alive, and `token` is one of its ids.
        let text = unsafe { sys::llama_vocab_get_text(self.vocab(), token) };
        // SAFETY: a NUL-terminated string owned by the vocabulary.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// Returns the special tokens: those that llama.cpp finds in a text by their own text.
    pub(super) fn specials(&self) -> &Specials {
        self.specials.get_or_init(|| {
            let all = (0..self.n_vocab() as Token).filter_map(|token| {
                // SAFETY: the vocabulary is alive, and `token` is one of its ids.
                let attr = unsafe { sys::llama_vocab_get_attr(self.vocab(), token) };
                let has = |bits| attr & bits != 0;
                let is_control = has(sys::LLAMA_TOKEN_ATTR_CONTROL | sys::LLAMA_TOKEN_ATTR_UNKNOWN);
                (is_control || has(sys::LLAMA_TOKEN_ATTR_USER_DEFINED)).then_some(())?;
                let (strips_left, strips_right) =
                    (has(sys::LLAMA_TOKEN_ATTR_LSTRIP), has(sys::LLAMA_TOKEN_ATTR_RSTRIP));
                Some(Special { token, text: self.token_text(token)?, is_control, strips_left, strips_right })
            });
            Specials::new(all.collect())
        })
    }

    /// Tokenizes `text` without adding tokens; control tokens in it are recognized only if `special`.
    ///
    /// # Errors
    /// Returns [`LlamaError::Tokenize`] if the text exceeds 1 MiB or the vocabulary cannot tokenize it.
    pub(super) fn tokenize(&self, text: &str, special: bool) -> Result<Vec<Token>, LlamaError> {
        let fail = || LlamaError::Tokenize { bytes: text.len() };
        if text.len() > MAX_TEXT {
            return Err(fail());
        }
        // A vocabulary may add a space before the text, which can become a token of its own.
        let mut tokens = vec![0; text.len() + 2];
        let _trying = self.tokenizing();
        // A C++ exception ends the process here, before it unwinds Rust frames that are not prepared for it.
        let call = AssertUnwindSafe(|| {
            // SAFETY: the C++ function may throw, which `C-unwind` allows; pointers and lengths describe `text` and
            // `tokens`, and both outlive the call.
            unsafe {
                let tokenize = std::mem::transmute::<Declared, Throwing>(sys::llama_tokenize);
                let (from, to) = (text.as_ptr().cast(), tokens.as_mut_ptr());
                let (from_len, to_len) = (text.len() as i32, tokens.len() as i32);
                tokenize(self.vocab(), from, from_len, to, to_len, false, special)
            }
        });
        let n = catch_unwind(call).map_err(|_| fail())?;
        tokens.truncate(usize::try_from(n).map_err(|_| fail())?);
        Ok(tokens)
    }

    /// Returns the text of `tokens`, without special tokens; invalid UTF-8 becomes U+FFFD.
    pub fn detokenize(&self, tokens: &[Token]) -> String {
        self.pieces(tokens, false)
    }

    /// Returns the text of `tokens`, including special tokens; invalid UTF-8 becomes U+FFFD.
    pub(in crate::llama) fn text_of_all(&self, tokens: &[Token]) -> String {
        self.pieces(tokens, true)
    }

    fn pieces(&self, tokens: &[Token], special: bool) -> String {
        let mut bytes = Vec::new();
        let mut piece = [0u8; 256];
        for &token in tokens {
            // SAFETY: `piece` is writable for its whole length.
            let n = unsafe {
                sys::llama_token_to_piece(
                    self.vocab(),
                    token,
                    piece.as_mut_ptr().cast(),
                    piece.len() as i32,
                    0,
                    special,
                )
            };
            if let Some(text) = usize::try_from(n).ok().and_then(|n| piece.get(..n)) {
                bytes.extend_from_slice(text);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
