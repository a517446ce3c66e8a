//! Other networks stored in the same file as the language model, as in some models of Ollama's library. llama.cpp
//! loads a file only if it uses all of its tensors, and expects encoders in a separate file.

use super::{Gguf, GgufError};

/// Name prefixes of tensors outside the language model, and the networks they belong to.
const SIBLINGS: [(&str, &str); 5] = [
    ("v.", "a vision encoder"),
    ("mm.", "a multimodal projector"),
    ("a.", "an audio encoder"),
    ("s.", "an image segmenter"),
    ("mtp.", "a draft model"),
];

impl Gguf {
    /// Describes the networks other than the language model, such as `a vision encoder (439 tensors v.*)`.
    pub fn siblings(&self) -> Vec<String> {
        let count =
            |prefix: &str| self.tensors.iter().filter(|tensor| tensor.name.starts_with(prefix)).count();
        let found = SIBLINGS.iter().map(|(prefix, what)| (prefix, what, count(prefix)));
        found
            .filter(|(.., n)| *n > 0)
            .map(|(prefix, what, n)| {
                format!("{what} ({n} {} {prefix}*)", if n == 1 { "tensor" } else { "tensors" })
            })
            .collect()
    }

    /// Rejects a file that llama.cpp cannot load because it contains more than the language model.
    ///
    /// # Errors
    /// Returns [`GgufError::Siblings`] if the file contains another network.
    pub fn refuse_siblings(&self) -> Result<(), GgufError> {
        let found = self.siblings();
        if found.is_empty() {
            return Ok(());
        }
        Err(GgufError::Siblings { path: self.path.clone(), found: found.join(" and ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufBuilder;
    use crate::util::hint::Hint;

    fn file(tensors: &[&str]) -> Gguf {
        let start = GgufBuilder::new().string("general.architecture", "gemma3");
        let file = tensors.iter().fold(start, |file, name| file.f32_tensor(name, &[1], &[0.0]));
        let mut bytes = Vec::new();
        file.write_to(&mut bytes).unwrap();
        Gguf::parse(std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap()
    }

    #[test]
    fn siblings_are_known_by_their_names() {
        let text = ["token_embd.weight", "blk.0.attn_v.weight", "output.weight", "altup_proj.weight", "mtpx"];
        assert!(file(&text).refuse_siblings().is_ok());
        for (name, what) in [
            ("v.blk.0.attn_k.weight", "vision"),
            ("mm.mm_input_projection.weight", "projector"),
            ("a.conv1d.0.weight", "audio"),
            ("mtp.layers.0.weight", "draft"),
        ] {
            let error = file(&[&text[..], &[name]].concat()).refuse_siblings().unwrap_err();
            assert!(error.to_string().contains(what) && error.hint().is_some(), "{error}");
        }
        let both = file(&["v.a", "v.b", "mm.0", "token_embd.weight"]);
        assert_eq!(
            both.siblings(),
            ["a vision encoder (2 tensors v.*)", "a multimodal projector (1 tensor mm.*)"]
        );
    }
}
