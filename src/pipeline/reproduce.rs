//! Making a written file anew, from what it says of its making.

use std::path::PathBuf;

use crate::pipeline::run_facts::{Difference, RunFacts};
use crate::util::hint::Hint;

/// Why a file could not be made anew.
#[derive(Debug, thiserror::Error)]
pub enum ReproduceError {
    /// It does not say how.
    #[error("{} does not tell how it was made (it has no usable rosi.run)", path.display())]
    Untold {
        /// The file.
        path: PathBuf,
    },
    /// Something that the run was given is missing or another one.
    #[error("{}: {what} was {then} and is {now} here", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What, in words.
        what: &'static str,
        /// The argument that gives it.
        argument: &'static str,
        /// Its hash, or what stands for it, when the file was made.
        then: String,
        /// The same of this run.
        now: String,
    },
    /// Other bytes came out.
    #[error(
        "made anew, {} has other bytes: expected sha256 {expected}, found {found}{}", path.display(), told(differences)
    )]
    Differs {
        /// The file.
        path: PathBuf,
        /// Its hash.
        expected: String,
        /// The hash of what was made.
        found: String,
        /// What else is not as it was.
        differences: Vec<Difference>,
    },
}

impl Hint for ReproduceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Untold { .. } => Some(
                "files written by `inject` of this version can be made anew, those of `release` cannot"
                    .into(),
            ),
            Self::Input { argument, .. } => Some(format!("give the one that it was made with as {argument}")),
            Self::Differs { differences, .. } if differences.is_empty() => Some(
                "all that the file tells of its making is the same: it was changed since, or this is a bug"
                    .into(),
            ),
            Self::Differs { .. } => Some("repeat it with the same program on a machine of that kind".into()),
        }
    }
}

fn told(differences: &[Difference]) -> String {
    let mut text = String::new();
    for Difference { what, then, now } in differences {
        text += &format!("; {what} was {then} and is {now} now");
    }
    text
}

/// What is given by arguments: the fact, what it is, and the argument.
const GIVEN: [(&str, &str, &str); 7] = [
    ("input_sha256", "the model", "MODEL"),
    ("prompts_sha256", "the prompt set", "--prompts"),
    ("contexts_sha256", "the set of contexts", "--context"),
    ("system_prompt", "the system prompt", "--system-prompt"),
    ("edit_sha256", "the stored edit", "--edit"),
    ("imatrix_sha256", "the importance matrix", "--imatrix"),
    ("writers_sha256", "the list of edited matrices", "--patches"),
];

/// What differs between the run that made the file at `path` and this one, of what need not change its bytes.
///
/// # Errors
/// [`ReproduceError::Input`] where something that the run was given is not the same: then the bytes cannot be.
pub fn compare(
    path: &std::path::Path,
    then: &RunFacts,
    now: &RunFacts,
) -> Result<Vec<Difference>, ReproduceError> {
    let differences = then.differences(now);
    for (fact, what, argument) in GIVEN {
        if let Some(Difference { then, now, .. }) = differences.iter().find(|d| d.what == fact) {
            let shown = |value: &serde_json::Value| match value {
                serde_json::Value::Null => "not given".to_owned(),
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
            "version": "0.1.0", "llama_cpp": "b1", "cpu": "AVX2 = 1", "input_sha256": "00", "prompts_sha256": "11",
            "writers_sha256": "22", "method": "auto", "system_prompt": "auto", "contexts_sha256": "33", "thoughts": 256,
            "direction_source": null, "strength": 0.1, "max_kl": 0.30000000000000004, "memory": 4, "threads": 2,
            "gpu_layers": 0, "devices": [], "flash_attn": "off",
        });
        let mut facts = json!({
            "layer": null, "contrast": 1.33, "max_false_refusal": null, "trials": 3, "time_budget": null,
            "thinking": "auto", "think": 256, "requant": "preserve", "imatrix_sha256": null, "edit_sha256": null,
            "allow_other_weights": false,
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
        assert_eq!(error.to_string(), "m-rosi.gguf: the importance matrix was 44 and is not given here");
        assert_eq!(error.hint().unwrap(), "give the one that it was made with as --imatrix");
    }
}
