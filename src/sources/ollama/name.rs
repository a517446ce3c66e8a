//! Parses model names, `[HOST/][NAMESPACE/]MODEL[:TAG]`.

use std::fmt;
use std::path::PathBuf;

use super::OllamaError;

const TAG: &str = "latest";
const NAMESPACE: &str = "library";
/// Host of the public registry in older manifests and in the names that users type.
const HOST: &str = "registry.ollama.ai";
/// Host of the public registry in newer manifests.
const HOST_V2: &str = "ollama.com";

/// A validated name: no part of it can escape from the folder that it is joined to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

impl Name {
    /// Parses a name as shown by `ollama list`.
    ///
    /// # Errors
    /// Returns [`OllamaError::Name`] if the text is not a valid name.
    pub fn parse(text: &str) -> Result<Self, OllamaError> {
        let bad = |problem| OllamaError::Name { name: text.chars().take(200).collect(), problem };
        if text.contains("://") {
            return Err(bad("expected a name, found a URL"));
        }
        if text.contains('@') {
            return Err(bad("expected a tag, found a digest (@)"));
        }
        // A colon before the last slash separates the port of a host.
        let after_slash = text.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match text[after_slash..].split_once(':') {
            None => (text, TAG),
            Some((model, tag)) => (&text[..after_slash + model.len()], tag),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (host, namespace, model) = match parts[..] {
            [model] => (HOST, NAMESPACE, model),
            [namespace, model] => (HOST, namespace, model),
            [host, namespace, model] => (host, namespace, model),
            _ => return Err(bad("expected at most three parts between slashes")),
        };
        let host = if host.eq_ignore_ascii_case(HOST_V2) { HOST } else { host };
        let sound = is_part(host, 350, ".:") && is_part(namespace, 80, "") && is_part(model, 80, ".");
        if !(sound && is_part(tag, 80, ".")) {
            return Err(bad(
                "each part must begin with a letter, a digit or _, followed by letters, digits, - and _ (and \
                 ., except in a namespace), up to 80 characters",
            ));
        }
        let [host, namespace, model, tag] = [host, namespace, model, tag].map(str::to_owned);
        Ok(Self { host, namespace, model, tag })
    }

    /// Returns the paths of the manifest relative to a store, newest layout first.
    pub fn manifests(&self) -> [PathBuf; 2] {
        let v2_host = if self.host == HOST { HOST_V2.to_owned() } else { self.host.replace(':', "%3A") };
        [("manifests-v2", &v2_host), ("manifests", &self.host)].map(|(folder, host)| {
            [folder, host, &self.namespace, &self.model, &self.tag].iter().collect::<PathBuf>()
        })
    }

    /// Returns the name for the path of a manifest below `manifests` or `manifests-v2`.
    pub(super) fn from_parts(parts: &[String; 4]) -> Option<Self> {
        let [host, namespace, model, tag] = parts;
        Self::parse(&format!("{}/{namespace}/{model}:{tag}", host.replace("%3A", ":"))).ok()
    }

    /// Returns the stem of file names for this model: the model, and its tag unless that is the default.
    pub fn file_stem(&self) -> String {
        if self.tag == TAG { self.model.clone() } else { format!("{}-{}", self.model, self.tag) }
    }
}

/// Formats the shortest equivalent name, always with the tag, like `ollama list`.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host != HOST {
            write!(f, "{}/", self.host)?;
        }
        if self.host != HOST || self.namespace != NAMESPACE {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

/// Returns whether `part` has at most `most` characters, all of them letters, digits, `-`, `_` or in `also`, and begins
/// with a letter, digit or `_`.
fn is_part(part: &str, most: usize, also: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    part.len() <= most
        && part.starts_with(word)
        && part.chars().all(|c| word(c) || c == '-' || also.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_defaults() {
        for (given, shown, stem) in [
            ("llama3.2", "llama3.2:latest", "llama3.2"),
            ("llama3.2:1b", "llama3.2:1b", "llama3.2-1b"),
            ("library/llama3.2:1b", "llama3.2:1b", "llama3.2-1b"),
            ("ollama.com/library/llama3.2:1b", "llama3.2:1b", "llama3.2-1b"),
            ("user/name:tag", "user/name:tag", "name-tag"),
            ("hf.co/user/repo-GGUF:Q4_K_M", "hf.co/user/repo-GGUF:Q4_K_M", "repo-GGUF-Q4_K_M"),
            ("localhost:5000/library/m", "localhost:5000/library/m:latest", "m"),
        ] {
            let name = Name::parse(given).unwrap();
            assert_eq!((name.to_string().as_str(), name.file_stem().as_str()), (shown, stem), "{given}");
            assert_eq!(Name::parse(shown).unwrap(), name);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [
            "",
            ":",
            "a:",
            ":b",
            "/a",
            "a/",
            "../../etc/passwd",
            "a/../b",
            "..",
            ".",
            "a:..",
            "a:../b",
            "a\\b",
            "a/b/c/d",
            "-a",
            "a b",
            "a\n",
            "é",
            "http://a/b/c",
            "a@sha256:0",
            "a:b:c",
            "a/.b",
            "C:\\x",
        ] {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Name::parse(&"a".repeat(81)).is_err());
    }

    #[test]
    fn both_layouts_are_looked_for() {
        let [v2, v1] = Name::parse("m:1b").unwrap().manifests();
        assert!(
            v2.ends_with("manifests-v2/ollama.com/library/m/1b")
                && v1.ends_with("registry.ollama.ai/library/m/1b")
        );
        let [v2, v1] = Name::parse("h:5000/u/m").unwrap().manifests();
        assert!(v2.ends_with("h%3A5000/u/m/latest") && v1.ends_with("h:5000/u/m/latest"));
    }
}
