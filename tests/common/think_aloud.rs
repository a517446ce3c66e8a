//! Models whose chat template opens a thought.

use std::path::Path;

use rosi_gguf::gguf::{Gguf, Rewrite, Value};

/// Returns the chat template of `model` with `text` appended to the generation prompt.
pub fn ending_in(model: &Path, text: &str) -> String {
    let gguf = Gguf::open(model).unwrap();
    let own = gguf.str("tokenizer.chat_template").unwrap();
    format!("{own}{{% if add_generation_prompt %}}{text}{{% endif %}}")
}

/// Writes a copy of `model` whose template opens a thought.
pub fn think_aloud(model: &Path, copy: &Path) {
    let gguf = Gguf::open(model).unwrap();
    let key = "tokenizer.chat_template";
    let rewrite = Rewrite {
        added: vec![(key.into(), Value::String(ending_in(model, "<think>\n")))],
        drop_prefix: Some(key),
        ..Rewrite::copy(&gguf)
    };
    let mut file = std::fs::File::create(copy).unwrap();
    rewrite.write_to(&mut file, &mut |_| Ok(None), &mut |_, _| Ok(())).unwrap();
}
