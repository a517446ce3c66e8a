//! Everything that the bytes of a written file depend on, stored in the file as `rosi.run` for `reproduce`.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::gguf::sha256_file;
use crate::method::edit::Method;
use crate::method::search::SearchOptions;
use crate::method::search::journal::Head;
use crate::pipeline::error::Error;
use crate::pipeline::journal;
use crate::pipeline::options::{
    Allow, InjectOptions, LearnOptions, SystemPrompt, ThinkingMode, ThinkingOptions, WriteOptions,
};
use crate::pipeline::session::{Session, stoppable};
use crate::pipeline::stored::Taken;
use crate::report::FileFacts;

/// The options, program version and machine of a run. Files and texts are identified by their SHA-256.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFacts {
    /// Everything that the search's measurements depend on.
    pub search: Head,
    /// Whether the user's prompts were used without the bundled ones.
    pub no_bundled_prompts: bool,
    /// Layer, if set by the user.
    pub layer: Option<usize>,
    /// κ or, for detectors, the pull, if set by the user.
    pub contrast: Option<f64>,
    /// Limit on false refusals, if set by the user.
    pub max_false_refusal: Option<f64>,
    /// Maximum number of edits whose answers are judged.
    pub trials: usize,
    /// Seconds after which no new trial starts. With a time budget, results may differ on a loaded machine.
    pub time_budget: Option<u64>,
    /// [`Requant::name`](crate::method::requant::Requant::name).
    pub requant: String,
    /// SHA-256 of the importance matrix, if one was used.
    pub imatrix_sha256: Option<String>,
    /// SHA-256 of the stored edit, if one was applied instead of a search.
    pub edit_sha256: Option<String>,
    /// Whether a stored edit for other weights was allowed.
    pub allow_other_weights: bool,
    /// Checks that the user waived.
    pub allow: Allow,
}

/// A fact that differs between two runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Name of the fact, as in `rosi.run`.
    pub what: String,
    /// Value recorded in the file.
    pub then: Value,
    /// Value in this run.
    pub now: Value,
}

impl RunFacts {
    /// Returns the facts of the run `session` on the model file `input`.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the importance matrix cannot be read.
    pub fn of(session: Session<'_>, taken: Option<&Taken>, input: &FileFacts) -> Result<Self, Error> {
        let Session { opened, prompts, options, printer } = session;
        let SearchOptions { layer, contrast, max_false_refusal, trials, time_budget, .. } = options.search;
        let imatrix_sha256 = match &options.write.imatrix {
            None => None,
            Some(path) => {
                let bar = printer.bar("hashing", 1);
                let hash = sha256_file(path, &mut stoppable(&bar));
                Some(hash.map_err(|source| Error::Io { path: path.clone(), source })?)
            }
        };
        Ok(Self {
            search: journal::head(opened, options, prompts, input),
            no_bundled_prompts: options.learn.no_bundled_prompts,
            layer,
            contrast,
            max_false_refusal,
            trials,
            time_budget: time_budget.map(|budget| budget.as_secs()),
            requant: options.write.requant.name(),
            imatrix_sha256,
            edit_sha256: taken.map(|taken| taken.file.sha256.clone()),
            allow_other_weights: options.allow_other_weights,
            allow: options.allow,
        })
    }

    /// Returns `options` with the recorded settings. Files, texts and runtime settings are kept from `options`.
    pub fn repeat(&self, options: InjectOptions) -> Result<InjectOptions, Error> {
        let unknown = |problem| Error::Option { flag: "rosi.run", problem, hint: None };
        let system_prompt = match (self.search.system_prompt.as_str(), options.learn.system_prompt) {
            ("off", _) => SystemPrompt::Off,
            ("auto", _) => SystemPrompt::Auto,
            (_, given) => given,
        };
        let search = SearchOptions {
            layer: self.layer,
            strength: self.search.strength,
            contrast: self.contrast,
            max_kl: self.search.max_kl,
            max_false_refusal: self.max_false_refusal,
            trials: self.trials,
            time_budget: self.time_budget.map(Duration::from_secs),
            to_the_end: self.allow.over_limits,
        };
        let asked = ThinkingMode::from_str(&self.search.thinking, false).map_err(unknown)?;
        let learn = LearnOptions {
            system_prompt,
            thinking: ThinkingOptions { asked, budget: self.search.think },
            direction_source: self.search.direction_source,
            memory: self.search.memory,
            prompts: options.learn.prompts,
            no_bundled_prompts: self.no_bundled_prompts,
            contexts: options.learn.contexts,
        };
        let requant = self.requant.parse().map_err(unknown)?;
        Ok(InjectOptions {
            asked_method: Method::from_str(&self.search.method, false).ok(),
            learn,
            search,
            write: WriteOptions { requant, ..options.write },
            allow: self.allow,
            allow_other_weights: self.allow_other_weights,
            ..options
        })
    }

    /// Returns the differences between these facts and those of the run `now`.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let object = |value| match value {
            Ok(Value::Object(object)) => object,
            _ => serde_json::Map::new(),
        };
        let all = |facts: &Self| {
            let mut all = object(serde_json::to_value(facts));
            all.remove("search");
            all.into_iter()
                .chain(object(serde_json::to_value(&facts.search)))
                .collect::<serde_json::Map<_, _>>()
        };
        let (then, now) = (all(self), all(now));
        let differ = |(key, then): (&String, &Value)| {
            let now = now.get(key).cloned().unwrap_or(Value::Null);
            (now != *then).then(|| Difference { what: key.clone(), then: then.clone(), now })
        };
        then.iter().filter_map(differ).collect()
    }
}
