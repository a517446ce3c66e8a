//! Tiny random models that accept prompts: the seeds of the architecture tests, with a vocabulary of bytes and a chat
//! template.

use std::path::{Path, PathBuf};

use toml::Value as Toml;

use super::generated::generate::generate;
use super::generated::seeds::{Run, Seeds};

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Returns the characters that GPT-2 uses for the 256 bytes: printable bytes map to themselves, the others to
/// characters from 256 on.
fn byte_tokens() -> Vec<String> {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut token = |byte: u8| {
        let code = if prints(byte) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap().to_string()
    };
    (0..=255).map(&mut token).collect()
}

/// Returns the keys of a vocabulary of all bytes, one merged pair, and the two control tokens of the template.
fn tokenizer() -> Vec<(&'static str, Toml)> {
    let mut tokens = byte_tokens();
    tokens.extend(["Ġt", "<|im_start|>", "<|im_end|>"].map(String::from));
    let kinds = tokens.iter().map(|t| Toml::Integer(if t.starts_with("<|") { 3 } else { 1 }));
    let kinds = Toml::Array(kinds.collect());
    let n = tokens.len() as i64;
    let strings = |items: Vec<String>| Toml::Array(items.into_iter().map(Toml::String).collect());
    vec![
        ("tokenizer.ggml.model", Toml::String("gpt2".into())),
        ("tokenizer.ggml.pre", Toml::String("gpt-2".into())),
        ("tokenizer.ggml.token_type", kinds),
        ("tokenizer.ggml.tokens", strings(tokens)),
        ("tokenizer.ggml.merges", strings(vec!["Ġ t".into()])),
        ("tokenizer.ggml.eos_token_id", Toml::Integer(n - 1)),
        ("tokenizer.ggml.bos_token_id", Toml::Integer(n - 2)),
        ("tokenizer.ggml.add_bos_token", Toml::Boolean(false)),
        ("tokenizer.chat_template", Toml::String(CHATML.into())),
        ("vocab_size", Toml::Integer(n)),
        ("context_length", Toml::Integer(2048)),
    ]
}

/// Returns the size of the vocabulary, in tokens.
pub fn n_vocab() -> usize {
    let size = tokenizer().into_iter().find(|(key, _)| *key == "vocab_size").unwrap().1;
    size.as_integer().unwrap() as usize
}

/// Writes the model of the run `name` of `seeds.toml` to `path`. `keys` override its own keys.
pub fn talking(name: &str, keys: &[(&str, i64)], path: &Path) {
    let mut seeds = Seeds::load();
    seeds.core.extend(tokenizer().into_iter().map(|(key, value)| (key.into(), value)));
    let run: &mut Run = seeds.run.get_mut(name).unwrap();
    run.keys.extend(keys.iter().map(|&(key, n)| (key.into(), Toml::Integer(n))));
    generate(&seeds, name, false, path).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// Writes a model with the chat template of a guard. Its replies are random text.
pub fn guard(template: &str, path: &Path) {
    let mut seeds = Seeds::load();
    seeds.core.extend(tokenizer().into_iter().map(|(key, value)| (key.into(), value)));
    seeds.core.insert("tokenizer.chat_template".into(), Toml::String(template.into()));
    generate(&seeds, "qwen2", false, path).unwrap_or_else(|error| panic!("{error}"));
}

/// Writes three models: a dense one, one with post-norms, and a mixture of experts.
pub fn models(folder: &Path) -> [PathBuf; 3] {
    let eight: &[(&str, i64)] = &[("expert_count", 8), ("expert_used_count", 2)];
    [("qwen2", &[][..]), ("gemma2", &[]), ("qwen3moe", eight)].map(|(run, keys)| {
        let path = folder.join(format!("{run}.gguf"));
        talking(run, keys, &path);
        path
    })
}

/// Returns arguments for a `search` on such a model. It refuses nothing, so two checks are waived. It gets no system
/// prompt, because the safety prompt is too long for a vocabulary of bytes.
pub fn directing<'a>(model: &'a Path, out: &'a Path, few: &'a Path) -> Vec<&'a str> {
    let [model, out, few] = [model, out, few].map(|path| path.to_str().unwrap());
    let search = [
        "--prompts",
        few,
        "--no-bundled-prompts",
        "--trials",
        "1",
        "--system-prompt",
        "off",
        "-t",
        "2",
        "--allow-no-refusal",
        "--allow-over-limits",
    ];
    [&["search", model, "-o", out, "--method", "contrast"][..], &search].concat()
}
