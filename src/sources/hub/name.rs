//! `OWNER/REPO[@REVISION][:WANTED]`.

use std::fmt;

use super::HubError;

/// A checked name: no part of it can lead out of a folder, or of the path of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `OWNER/REPO`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// A quantization, or the name of a file.
    pub wanted: Option<String>,
}

impl HubName {
    /// Reads a name.
    ///
    /// # Errors
    /// [`HubError::Name`].
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let bad = |problem| HubError::Name { name: text.chars().take(200).collect(), problem };
        let (rest, wanted) = match text.split_once(':') {
            None => (text, None),
            Some((rest, wanted)) => (rest, Some(wanted)),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let Some((owner, name)) = repo.split_once('/') else {
            return Err(bad("it has no owner"));
        };
        if !is_word(owner) || !is_word(name) {
            return Err(bad("owner and repository are letters, digits, - _ and ."));
        }
        if !is_path(revision) {
            return Err(bad("the revision is letters, digits, - _ . and /"));
        }
        if !wanted.is_none_or(is_path) {
            return Err(bad("after the colon comes a quantization or the name of a file"));
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

/// Whether every part between slashes is a name; such a path is safe in an address and below a folder.
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
