//! The configuration of a release, from a TOML file or from flags.
//!
//! ```toml
//! sources = ["Qwen2.5-0.5B-Instruct-F16.gguf"]   # paths are relative to this file's folder
//! output  = "release"
//! types   = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS"]
//! # everything below is optional
//! name       = "Qwen2.5-0.5B-Instruct-rosi"
//! imatrix    = "imatrix.gguf"
//! edit       = "edit.safetensors"                # default: searched as set in [search]
//! base-model = "Qwen/Qwen2.5-0.5B-Instruct"
//! license    = "apache-2.0"
//! score      = true
//! score-prompts = 64                             # at most this many of each kind
//! keep-bases = false
//! [search]                                       # the flags of `rosi-gguf search`
//! trials = 4
//! prompts = ["mine.jsonl"]
//! ```

use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Deserialize;

use crate::cli::SearchArgs;
use crate::release::ReleaseError;
use crate::release::quantize::{QuantType, TYPES};
use crate::util::bounded;

/// Maximum size of a configuration file, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Flags of `[search]` that name files.
const PATHS: [&str; 1] = ["prompts"];

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Only that no file refuses less than its base, on 48 bundled harmful prompts.
    Guard,
    /// Also scores on the report split: all of it, or at most this many prompts of each kind.
    Report(Option<usize>),
}

/// The validated configuration of a release.
#[derive(Debug, Clone)]
pub struct Config {
    /// Model files.
    pub sources: Vec<PathBuf>,
    /// Output folder.
    pub output: PathBuf,
    /// Quantization types to make.
    pub types: Vec<&'static QuantType>,
    /// File names up to the type.
    pub name: Option<String>,
    /// Importance matrix file.
    pub imatrix: Option<PathBuf>,
    /// Stored edit file; if `None`, the edit is searched.
    pub edit: Option<PathBuf>,
    /// The base model on Hugging Face.
    pub base_model: Option<String>,
    /// License, overriding the source's metadata.
    pub license: Option<String>,
    /// How much is measured.
    pub scoring: Scoring,
    /// Whether to keep the quantizations without the edit.
    pub keep_bases: bool,
    /// Options of the search for the edit.
    pub search: SearchArgs,
}

/// The configuration as written in the file, before validation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Raw {
    /// Model files.
    pub sources: Vec<PathBuf>,
    /// Output folder.
    pub output: PathBuf,
    /// Names of quantization types.
    #[serde(default)]
    pub types: Vec<String>,
    /// File names up to the type.
    pub name: Option<String>,
    /// Importance matrix file.
    pub imatrix: Option<PathBuf>,
    /// Stored edit file.
    pub edit: Option<PathBuf>,
    /// Base model on Hugging Face.
    pub base_model: Option<String>,
    /// License for the model card.
    pub license: Option<String>,
    /// Whether to score on the report split.
    #[serde(default = "yes")]
    pub score: bool,
    /// Maximum number of prompts of each kind.
    pub score_prompts: Option<usize>,
    /// Whether to keep the quantizations without the edit.
    #[serde(default)]
    pub keep_bases: bool,
    /// Flags of the search, without their dashes.
    #[serde(default)]
    pub search: toml::Table,
}

fn yes() -> bool {
    true
}

/// Parser for the flags of `[search]`.
#[derive(Debug, Parser)]
struct Search {
    #[command(flatten)]
    args: SearchArgs,
}

impl Config {
    /// Reads the file at `path`, resolving the paths in it relative to its folder.
    ///
    /// # Errors
    /// Returns [`ReleaseError::Config`] if the file cannot be read or is invalid.
    pub fn read(path: &Path) -> Result<Self, ReleaseError> {
        let fail = |problem: String| ReleaseError::Config { path: path.into(), problem };
        let text = bounded::read_text(path, MAX_BYTES).map_err(|error| fail(error.to_string()))?;
        let raw: Raw =
            toml::from_str(&text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let search = search_flags(&raw.search, folder).map_err(&fail)?;
        Self::new(raw.in_folder(folder), search).map_err(fail)
    }

    /// Validates the settings of a file or of flags.
    ///
    /// # Errors
    /// Returns a description of the first invalid setting.
    pub fn new(raw: Raw, search: SearchArgs) -> Result<Self, String> {
        let known = || TYPES.map(|t| t.name).join(", ");
        let unknown = |name: &String| format!("unknown type {name}, expected one of {}", known());
        let one = |name: &String| QuantType::parse(name).ok_or_else(|| unknown(name));
        if raw.score_prompts == Some(0) {
            return Err("score-prompts: expected at least 1, found 0".into());
        }
        let line = |text: &Option<String>| text.as_ref().is_some_and(|t| t.is_empty() || t.contains('\n'));
        if line(&raw.base_model) || line(&raw.license) {
            return Err("base-model, license: expected one non-empty line each".into());
        }
        Ok(Self {
            types: raw.types.iter().map(one).collect::<Result<_, _>>()?,
            scoring: if raw.score { Scoring::Report(raw.score_prompts) } else { Scoring::Guard },
            sources: raw.sources,
            output: raw.output,
            name: raw.name,
            imatrix: raw.imatrix,
            edit: raw.edit,
            base_model: raw.base_model,
            license: raw.license,
            keep_bases: raw.keep_bases,
            search,
        })
    }
}

impl Raw {
    fn in_folder(mut self, folder: &Path) -> Self {
        for path in self.sources.iter_mut().chain([&mut self.output]) {
            *path = folder.join(&path);
        }
        for path in [&mut self.imatrix, &mut self.edit].into_iter().flatten() {
            *path = folder.join(&path);
        }
        self
    }
}

/// Parses the table `[search]` as command-line flags.
fn search_flags(table: &toml::Table, folder: &Path) -> Result<SearchArgs, String> {
    let mut flags = vec!["search".to_owned()];
    for (key, value) in table {
        let mut words = match value {
            toml::Value::Boolean(true) => Ok(Vec::new()),
            toml::Value::Boolean(false) => continue,
            toml::Value::Array(items) => items.iter().map(word).collect::<Result<Vec<_>, _>>(),
            value => word(value).map(|w| vec![w]),
        }
        .map_err(|problem| format!("search.{key}: {problem}"))?;
        if PATHS.contains(&key.as_str()) {
            words.iter_mut().for_each(|w| *w = folder.join(&w).display().to_string());
        }
        flags.push(format!("--{key}"));
        flags.extend(words);
    }
    let parsed = Search::try_parse_from(flags).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        format!("search: {first}")
    })?;
    Ok(parsed.args)
}

fn word(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) if text.starts_with("--") => Err("expected a value, found a flag".into()),
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        _ => Err("expected true, false, a string, a number or a list of them".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let shown = |error: ReleaseError| error.to_string().replace(path.to_str().unwrap(), "FILE");
        let config = Config::read(&path).map_err(shown)?;
        assert!(config.output.starts_with(folder.path()));
        Ok(config)
    }

    #[test]
    fn a_file_says_what_flags_say() {
        let config = read(
            "sources = ['a.gguf']\noutput = 'out'\ntypes = ['q8_0', 'IQ4_XS']\nscore-prompts = 3\n\
             [search]\ntrials = 2\nmax-kl = 0.1\nprompts = ['p.jsonl']\nno-bundled-prompts = true\nresume = false\n\
             direction-source = 'plain'\n",
        )
        .unwrap();
        assert_eq!(config.types.iter().map(|t| t.name).collect::<Vec<_>>(), ["Q8_0", "IQ4_XS"]);
        assert_eq!(config.scoring, Scoring::Report(Some(3)));
        assert_eq!((config.search.trials, config.search.max_kl), (2, Some(0.1)));
        assert!(config.search.prompts[0].is_absolute());
        assert!(config.search.no_bundled_prompts && !config.search.resume);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let least = "sources = ['a.gguf']\noutput = 'out'\n";
        for (text, why) in [
            ("output = 'out'", "missing field `sources`"),
            (&format!("{least}typos = 1"), "unknown field `typos`"),
            (&format!("{least}types = ['Q9']"), "unknown type Q9"),
            (&format!("{least}score-prompts = 0"), "at least 1"),
            (&format!("{least}[search]\ntypo = 1"), "unexpected argument '--typo'"),
            (&format!("{least}[search]\ntrials = 'x'"), "invalid value 'x'"),
            (&format!("{least}[search]\ndirection-source = '--resume'"), "found a flag"),
            (&format!("{least}license = \"a\\nb\""), "one non-empty line each"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
