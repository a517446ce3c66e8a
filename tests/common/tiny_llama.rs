//! Models of one block with zero weights, for tests of tokenization, templates and header keys. Each test chooses the
//! vocabulary, template and keys.

use std::fs::File;
use std::path::Path;

use rosi_gguf::gguf::{GgmlType, GgufBuilder, Value};

/// Width of every matrix.
const N: u64 = 32;

/// Description of a tiny model.
pub struct Tiny {
    /// The architecture: `llama`, or `gpt2` for a model with learned positions.
    pub arch: &'static str,
    /// The tokenizer: `gpt2` for bytes in GPT-2's encoding, or `llama` for SentencePiece pieces.
    pub vocabulary: &'static str,
    /// Tokens in addition to the letters, with their kinds (3 is a control token).
    pub tokens: Vec<(&'static str, i32)>,
    /// The chat template, if any.
    pub template: Option<&'static str>,
    /// Context length that the model was trained for, in tokens.
    pub n_ctx: u32,
    /// Additional boolean keys, without the prefix `tokenizer.ggml.`.
    pub flags: Vec<(&'static str, bool)>,
    /// Type of `attn_norm`.
    pub norm: GgmlType,
    /// Pairs of a token and the token predicted after it in any context; at most as many pairs as the model is wide.
    pub follows: Vec<(&'static str, &'static str)>,
    /// BPE merges: pairs of tokens separated by a space.
    pub merges: Vec<&'static str>,
}

impl Tiny {
    /// Creates a model whose vocabulary is all bytes and the tokens `<s>`, `</s>` and `<|im_end|>`.
    pub fn new() -> Self {
        Self {
            arch: "llama",
            vocabulary: "gpt2",
            tokens: vec![("<s>", 3), ("</s>", 3), ("<|im_end|>", 3)],
            template: None,
            n_ctx: 4096,
            flags: Vec::new(),
            norm: GgmlType::F32,
            follows: Vec::new(),
            merges: vec!["Ġ t"],
        }
    }

    /// Returns the id of a token of [`Self::tokens`].
    pub fn id(&self, token: &str) -> i32 {
        let at = self.tokens.iter().position(|(text, _)| *text == token).unwrap();
        (letters(self.vocabulary).len() + at) as i32
    }

    /// Writes the model to `path`.
    pub fn write(&self, path: &Path) {
        let letters = letters(self.vocabulary);
        let mut kinds: Vec<i32> = letters.iter().map(|(_, kind)| *kind).collect();
        kinds.extend(self.tokens.iter().map(|(_, kind)| *kind));
        let mut tokens: Vec<&str> = letters.iter().map(|(text, _)| text.as_str()).collect();
        tokens.extend(self.tokens.iter().map(|(text, _)| *text));
        let key = |name: &str| format!("{}.{name}", self.arch);
        let mut model = GgufBuilder::new().string("general.architecture", self.arch);
        for (name, value) in [
            ("context_length", self.n_ctx),
            ("embedding_length", N as u32),
            ("feed_forward_length", N as u32),
            ("block_count", 1),
            ("attention.head_count", 1),
            ("vocab_size", tokens.len() as u32),
        ] {
            model = model.kv(&key(name), Value::U32(value));
        }
        model = model
            .kv(&key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5))
            .kv(&key("attention.layer_norm_epsilon"), Value::F32(1e-5))
            .string("tokenizer.ggml.model", self.vocabulary)
            .string("tokenizer.ggml.pre", "gpt-2")
            .string_array("tokenizer.ggml.tokens", &tokens)
            .string_array("tokenizer.ggml.merges", &self.merges)
            .i32_array("tokenizer.ggml.token_type", &kinds)
            .f32_array("tokenizer.ggml.scores", &vec![0.0; tokens.len()])
            .kv("tokenizer.ggml.bos_token_id", Value::U32(self.id("<s>") as u32))
            .kv("tokenizer.ggml.eos_token_id", Value::U32(self.id("</s>") as u32));
        for &(name, value) in &self.flags {
            model = model.kv(&format!("tokenizer.ggml.{name}"), Value::Bool(value));
        }
        if let Some(template) = self.template {
            model = model.string("tokenizer.chat_template", template);
        }
        self.tensors(model, &tokens).write_to(&mut File::create(path).unwrap()).unwrap();
    }

    /// Returns the token embeddings and the output rows. Each pair of [`Self::follows`] has a coordinate of its own, at
    /// which the embedding of the first token and the output row of the second are 1. Everything else is 0.
    fn follow(&self, tokens: &[&str]) -> [Vec<u8>; 2] {
        let mut rows = [(); 2].map(|()| vec![0.0f32; tokens.len() * N as usize]);
        let id = |token: &str| tokens.iter().position(|text| *text == token).unwrap();
        for (i, (token, next)) in self.follows.iter().enumerate() {
            assert!(i < N as usize);
            for (rows, token) in rows.iter_mut().zip([token, next]) {
                rows[id(token) * N as usize + i] = 1.0;
            }
        }
        rows.map(|rows| rows.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn tensors(&self, mut model: GgufBuilder, tokens: &[&str]) -> GgufBuilder {
        let n_vocab = tokens.len() as u64;
        let zeros = |model: GgufBuilder, name: &str, ne: &[u64], ggml_type: GgmlType| {
            let bytes = ggml_type.row_bytes(ne[0]).unwrap() * ne[1..].iter().product::<u64>();
            model.tensor(name, ne, ggml_type, vec![0; bytes as usize])
        };
        let [embeddings, output] = self.follow(tokens);
        model = model.tensor("token_embd.weight", &[N, n_vocab], GgmlType::F32, embeddings);
        if !self.follows.is_empty() {
            model = model.tensor("output.weight", &[N, n_vocab], GgmlType::F32, output);
        }
        let shared = ["attn_output", "ffn_up", "ffn_down"].map(|name| (name, N));
        let (matrices, norms): (Vec<(&str, u64)>, &[&str]) = match self.arch {
            "gpt2" => {
                model = zeros(model, "position_embd.weight", &[N, self.n_ctx.into()], GgmlType::F32);
                ([&shared[..], &[("attn_qkv", 3 * N)]].concat(), &["weight", "bias"])
            }
            _ => {
                let own = ["attn_q", "attn_k", "attn_v", "ffn_gate"].map(|name| (name, N));
                ([&shared[..], &own].concat(), &["weight"])
            }
        };
        for (name, n_out) in matrices {
            model = zeros(model, &format!("blk.0.{name}.weight"), &[N, n_out], GgmlType::F32);
            if self.arch == "gpt2" {
                model = zeros(model, &format!("blk.0.{name}.bias"), &[n_out], GgmlType::F32);
            }
        }
        for part in norms {
            let one = if self.follows.is_empty() { 0.0f32 } else { 1.0 };
            let ones = one.to_le_bytes().repeat(N as usize);
            model = model.tensor(&format!("output_norm.{part}"), &[N], GgmlType::F32, ones);
            model = zeros(model, &format!("blk.0.ffn_norm.{part}"), &[N], GgmlType::F32);
            model = zeros(model, &format!("blk.0.attn_norm.{part}"), &[N], self.norm);
        }
        model
    }
}

/// Returns the basic tokens of a vocabulary, with their kinds: every byte and `Ġt` for `gpt2`, `▁` and the printable
/// ASCII characters for `llama`.
fn letters(vocabulary: &str) -> Vec<(String, i32)> {
    let gpt2 = |(i, byte): (usize, u8)| {
        let prints = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let other = (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)).count();
        let code = if prints { i as u32 } else { 256 + other as u32 };
        (char::from_u32(code).unwrap().to_string(), 1)
    };
    match vocabulary {
        "gpt2" => (0..=255u8).enumerate().map(gpt2).chain([("Ġt".to_owned(), 1)]).collect(),
        _ => {
            let letters =
                ["▁".to_owned()].into_iter().chain((b'!'..=b'~').map(|b| char::from(b).to_string()));
            letters.map(|letter| (letter, 1)).collect()
        }
    }
}
