//! Parses hub model names: `OWNER/REPO[@REVISION][:WANTED]`.

use std::fmt;

use super::HubError;

/// A validated name: no part of it can escape from a folder or from the path of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `OWNER/REPO`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// The requested quantization or file, if any.
    pub wanted: Option<String>,
}

impl HubName {
    /// Parses a name.
    ///
    /// # Errors
    /// Returns [`HubError::Name`] if the text is not a valid name.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let bad = |problem| HubError::Name { name: text.chars().take(200).collect(), problem };
        let (rest, wanted) = match text.split_once(':') {
            None => (text, None),
            Some((rest, wanted)) => (rest, Some(wanted)),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let Some((owner, name)) = repo.split_once('/') else {
            return Err(bad("expected OWNER/REPO, found no slash"));
        };
        if !is_word(owner) || !is_word(name) {
            return Err(bad("expected letters, digits, - _ and . in owner and repository"));
        }
        if !is_path(revision) {
            return Err(bad("expected letters, digits, - _ . and / in the revision"));
        }
        if !wanted.is_none_or(is_path) {
            return Err(bad("expected a quantization or a file name after the colon"));
        }
        Ok(Self { repo: repo.into(), revision: revision.into(), wanted: wanted.map(str::to_owned) })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.wanted.as_ref().map_or(Ok(()), |wanted| write!(f, ":{wanted}"))
    }
}

fn is_word(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.len() <= 96 && text.chars().all(sound) && !text.trim_matches('.').is_empty()
}

/// Returns whether every component of the path is a plain name, which makes it safe in a URL and below a folder.
pub(super) fn is_path(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-_.+=,~".contains(c);
    let part = |part: &str| part.chars().all(sound) && !part.trim_matches('.').is_empty();
    text.len() <= 400 && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_llama_cpp() {
        let name = HubName::parse("ggml-org/gemma-3-270m-GGUF").unwrap();
        assert_eq!((name.revision.as_str(), name.wanted.as_deref()), ("main", None));
        let name = HubName::parse("a/b@refs/pr/1:q4_k_m").unwrap();
        assert_eq!((name.revision.as_str(), name.wanted.as_deref()), ("refs/pr/1", Some("q4_k_m")));
        assert_eq!(name.to_string(), "a/b@refs/pr/1:q4_k_m");
        assert!(HubName::parse("a/b:x/y-Q8_0-00001-of-00002.gguf").is_ok());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b:",
            "a/b@:x",
            "a/b@../..",
            "a/b:../x",
            "a/b?x",
            "a/b:x y",
            "a/b:/x",
            "h://a/b",
            "a/b#c",
        ] {
            assert!(HubName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
