//! Reproduces a written file from the facts recorded in it.

use std::path::PathBuf;

use crate::pipeline::run_facts::{Difference, RunFacts};
use crate::util::hint::Hint;

/// Why a file could not be reproduced.
#[derive(Debug, thiserror::Error)]
pub enum ReproduceError {
    /// The file does not record how it was made.
    #[error("{} does not record how it was made: expected a valid rosi.run key", path.display())]
    Untold {
        /// The file.
        path: PathBuf,
    },
    /// An input of the run is missing or different.
    #[error("{}: {what} differs: expected {then}, found {now}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// Description of the input.
        what: &'static str,
        /// The argument that specifies it.
        argument: &'static str,
        /// Its hash or value when the file was made.
        then: String,
        /// Its hash or value in this run.
        now: String,
    },
    /// The reproduced file differs.
    #[error(
        "{} was reproduced with different bytes: expected sha256 {expected}, found {found}{}",
        path.display(),
        told(differences)
    )]
    Differs {
        /// The file.
        path: PathBuf,
        /// The file's SHA-256.
        expected: String,
        /// SHA-256 of the reproduced file.
        found: String,
        /// Other facts that differ between the runs.
        differences: Vec<Difference>,
    },
}

impl Hint for ReproduceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Untold { .. } => Some(
                "only files written by `inject` of this version can be reproduced, not those of `release`"
                    .into(),
            ),
            Self::Input { argument, .. } => Some(format!("pass the same {argument} as in the original run")),
            Self::Differs { differences, .. } if differences.is_empty() => Some(
                "all recorded facts match: the file was changed after it was written, or this is a bug"
                    .into(),
            ),
            Self::Differs { .. } => {
                Some("repeat with the same program version on the same kind of machine".into())
            }
        }
    }
}

fn told(differences: &[Difference]) -> String {
    let mut text = String::new();
    for Difference { what, then, now } in differences {
        text += &format!("; {what} was {then}, is now {now}");
    }
    text
}

/// Facts determined by arguments: key, description and argument.
const GIVEN: [(&str, &str, &str); 7] = [
    ("input_sha256", "the model", "MODEL"),
    ("prompts_sha256", "the prompt set", "--prompts"),
    ("contexts_sha256", "the set of contexts", "--context"),
    ("system_prompt", "the system prompt", "--system-prompt"),
    ("edit_sha256", "the stored edit", "--edit"),
    ("imatrix_sha256", "the importance matrix", "--imatrix"),
    ("writers_sha256", "the list of edited matrices", "--patches"),
];

/// Returns the differences between the run that made the file at `path` and this run that do not necessarily change its
/// bytes.
///
/// # Errors
/// Returns [`ReproduceError::Input`] if an input differs, so that the bytes cannot be the same.
pub fn compare(
    path: &std::path::Path,
    then: &RunFacts,
    now: &RunFacts,
) -> Result<Vec<Difference>, ReproduceError> {
    let differences = then.differences(now);
    for (fact, what, argument) in GIVEN {
        if let Some(Difference { then, now, .. }) = differences.iter().find(|d| d.what == fact) {
            let shown = |value: &serde_json::Value| match value {
                serde_json::Value::Null => "none".to_owned(),
                serde_json::Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            let (path, then, now) = (path.to_path_buf(), shown(then), shown(now));
            return Err(ReproduceError::Input { path, what, argument, then, now });
        }
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn facts(changes: &[(&str, Value)]) -> RunFacts {
        let mut search = json!({
            "version": "0.1.0", "llama_cpp": "b1", "cpu": "AVX2 = 1", "input_sha256": "00",
            "prompts_sha256": "11", "writers_sha256": "22", "method": "auto", "system_prompt": "auto",
            "contexts_sha256": "33", "thinking": "auto", "think": 256, "direction_source": null, "strength": 0.1,
            "max_kl": 0.30000000000000004, "memory": 4, "threads": 2, "gpu_layers": 0, "devices": [],
            "flash_attn": "off",
        });
        let mut facts = json!({
            "layer": null, "contrast": 1.33, "max_false_refusal": null, "trials": 3, "time_budget": null,
            "no_bundled_prompts": false, "requant": "preserve", "imatrix_sha256": null,
            "edit_sha256": null, "allow_other_weights": false,
            "allow": { "injected": false, "no_refusal": false, "over_limits": true },
        });
        for (key, value) in changes {
            let of = if search.get(key).is_some() { &mut search } else { &mut facts };
            of[*key] = value.clone();
        }
        facts["search"] = search;
        serde_json::from_value(facts).unwrap()
    }

    #[test]
    fn facts_are_read_back_as_they_were() {
        let then = facts(&[]);
        let read: RunFacts = serde_json::from_str(&serde_json::to_string(&then).unwrap()).unwrap();
        assert_eq!(read, then);
        assert_eq!(then.differences(&read), []);
    }

    #[test]
    fn another_machine_may_give_the_same_bytes_and_other_inputs_cannot() {
        let then = facts(&[]);
        let path = std::path::Path::new("m-rosi.gguf");
        let elsewhere = facts(&[("cpu", json!("AVX512 = 1")), ("threads", json!(16))]);
        let whats: Vec<_> =
            compare(path, &then, &elsewhere).unwrap().into_iter().map(|difference| difference.what).collect();
        assert_eq!(whats, ["cpu", "threads"]);

        let lacking = facts(&[("imatrix_sha256", json!("44")), ("threads", json!(16))]);
        let error = compare(path, &lacking, &then).unwrap_err();
        assert_eq!(error.to_string(), "m-rosi.gguf: the importance matrix differs: expected 44, found none");
        assert_eq!(error.hint().unwrap(), "pass the same --imatrix as in the original run");
    }
}
