//! The vocabulary of a loaded model.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use llama_cpp_sys_2 as sys;

use super::{Special, Specials};
use crate::llama::LlamaError;
use crate::llama::ffi::{Model, Token};

/// Longest text that is tokenized at once, in bytes.
const MAX_TEXT: usize = 1 << 20;

/// `llama_tokenize` as its header declares it, and as it is.
type Declared =
    unsafe extern "C" fn(*const sys::llama_vocab, *const c_char, i32, *mut Token, i32, bool, bool) -> i32;
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
    /// Size of the vocabulary, that is of one row of logits.
    pub fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary is alive.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(self.vocab()) }).unwrap_or(0)
    }

    /// Whether `token` ends a generation.
    pub fn is_eog(&self, token: Token) -> bool {
        // SAFETY: the vocabulary is alive; unknown ids answer false.
        unsafe { sys::llama_vocab_is_eog(self.vocab(), token) }
    }

    /// Whether `token`, which came from this vocabulary, steers instead of spelling text.
    pub(in crate::llama) fn is_control(&self, token: Token) -> bool {
        let known = usize::try_from(token).is_ok_and(|t| t < self.n_vocab());
        // SAFETY: the vocabulary is alive, and `token` is one of its ids.
        known && unsafe { sys::llama_vocab_is_control(self.vocab(), token) }
    }

    /// The token that the vocabulary wants before every text, if any.
    pub fn bos_to_add(&self) -> Option<Token> {
        // SAFETY: the vocabulary is alive.
        let (adds, bos) =
            unsafe { (sys::llama_vocab_get_add_bos(self.vocab()), sys::llama_vocab_bos(self.vocab())) };
        (adds && bos >= 0).then_some(bos)
    }

    /// The text of the BOS and EOS tokens, empty where the vocabulary has none.
    pub fn bos_eos_text(&self) -> (String, String) {
        // SAFETY: the vocabulary is alive.
        let (bos, eos) = unsafe { (sys::llama_vocab_bos(self.vocab()), sys::llama_vocab_eos(self.vocab())) };
        (self.token_text(bos).unwrap_or_default(), self.token_text(eos).unwrap_or_default())
    }

    /// The text of a token as the file has it; `None` for one that the vocabulary lacks.
    fn token_text(&self, token: Token) -> Option<String> {
        usize::try_from(token).ok().filter(|&t| t < self.n_vocab())?;
        // SAFETY: the vocabulary is alive, and `token` is one of its ids.
        let text = unsafe { sys::llama_vocab_get_text(self.vocab(), token) };
        // SAFETY: a NUL-terminated string owned by the vocabulary.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// The tokens that are found in a text by their own text.
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

    /// Splits `text` into tokens, adding none; control tokens in it are found when `special`.
    ///
    /// # Errors
    /// [`LlamaError::Tokenize`] when the vocabulary cannot (or the text is over 1 MiB).
    pub(super) fn tokenize(&self, text: &str, special: bool) -> Result<Vec<Token>, LlamaError> {
        let fail = || LlamaError::Tokenize { bytes: text.len() };
        if text.len() > MAX_TEXT {
            return Err(fail());
        }
        // A token may stand before the first one for the space that a vocabulary adds.
        let mut tokens = vec![0; text.len() + 2];
        let _trying = self.tokenizing();
        // An exception of C++ ends the process here, before it unwinds frames of Rust that nobody expects to unwind.
        let call = AssertUnwindSafe(|| {
            // SAFETY: the function is one of C++, which may throw; pointers and lengths describe `text` and `tokens`, and
            // both outlive the call.
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

    /// The text of `tokens`, without special tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn detokenize(&self, tokens: &[Token]) -> String {
        self.pieces(tokens, false)
    }

    /// The same with special tokens.
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
