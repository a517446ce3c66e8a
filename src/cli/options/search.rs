//! Options of the search: the edit to look for and its limits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::option;
use crate::cli::SearchArgs;
use crate::method::edit::{MAX_CONTRAST, Method};
use crate::method::search::{DirectionSource, SearchOptions};
use crate::pipeline::error::Error;
use crate::pipeline::options::{STRENGTHS, SystemPrompt};
use crate::sources::Source;
use crate::util::bounded;

/// Longest system prompt, in bytes.
const MAX_SYSTEM_PROMPT: u64 = 1 << 20;

pub(super) fn search_options(args: &SearchArgs, over_limits: bool) -> Result<SearchOptions, Error> {
    if let Some(kl) = args.max_kl.filter(|&kl| !(kl > 0.0 && kl.is_finite())) {
        let problem = format!("expected a positive number of nats, found {kl}");
        return Err(option("--max-kl", problem, None));
    }
    Ok(SearchOptions {
        layer: parse_layer(&args.layer)?,
        strength: parse_strength(&args.strength)?,
        contrast: parse_contrast(&args.contrast)?,
        max_kl: args.max_kl,
        max_false_refusal: max_false_refusal(args)?,
        trials: trials(args.trials)?,
        time_budget: args.time_budget.map(Duration::from_secs),
        to_the_end: over_limits,
    })
}

fn max_false_refusal(args: &SearchArgs) -> Result<Option<f64>, Error> {
    match args.max_false_refusal {
        None => Ok(None),
        Some(share) if (0.0..=1.0).contains(&share) => Ok(Some(share)),
        Some(share) => {
            Err(option("--max-false-refusal", format!("expected a share from 0 to 1, found {share}"), None))
        }
    }
}

fn trials(trials: usize) -> Result<usize, Error> {
    match trials {
        1..=1000 => Ok(trials),
        _ => Err(option("--trials", format!("expected 1 to 1000, found {trials}"), None)),
    }
}

fn parse_layer(text: &str) -> Result<Option<usize>, Error> {
    if text == "auto" {
        return Ok(None);
    }
    let problem = || option("--layer", format!("expected auto or a layer from 0, found {text:?}"), None);
    text.parse().map(Some).map_err(|_| problem())
}

pub(super) fn parse_strength(text: &str) -> Result<Option<f64>, Error> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse::<f64>() {
        Ok(value) if value < 0.0 => Err(option(
            "--strength",
            format!("expected a positive number, found {text} (this tool only makes models safer)"),
            Some(format!("strength is positive: {STRENGTHS}")),
        )),
        Ok(value) if value > 0.0 && value <= Method::Detector.max_strength() => Ok(Some(value)),
        _ => Err(option(
            "--strength",
            format!("expected auto or a number above 0, found {text:?}"),
            Some(STRENGTHS.into()),
        )),
    }
}

fn parse_contrast(text: &str) -> Result<Option<f64>, Error> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= MAX_CONTRAST => Ok(Some(value)),
        _ => {
            let problem =
                format!("expected auto or a number above 0 and up to {MAX_CONTRAST}, found {text:?}");
            Err(option("--contrast", problem, None))
        }
    }
}

/// Returns the system prompt. Rejects `--direction-source safety` with `--system-prompt off`, which removes the prompt
/// that it needs.
pub(super) fn system_prompt(args: &SearchArgs) -> Result<SystemPrompt, Error> {
    let prompt = parse_system_prompt(&args.system_prompt)?;
    if args.direction_source == Some(DirectionSource::Safety) && prompt == SystemPrompt::Off {
        return Err(option(
            "--direction-source",
            "safety requires a system prompt, but --system-prompt is off".into(),
            None,
        ));
    }
    Ok(prompt)
}

/// Returns the system prompts in `files`, followed by that of an Ollama model.
pub(super) fn contexts(files: &[PathBuf], source: &Source) -> Result<Vec<String>, Error> {
    let own = source.companions.as_ref().and_then(|companions| companions.system.clone());
    let read = files.iter().map(|path| read_text(path)).collect::<Result<Vec<_>, _>>()?;
    let empty = |text: &String| text.trim().is_empty();
    if let Some(i) = read.iter().position(empty) {
        let problem = format!("expected a system prompt in {}, found an empty file", files[i].display());
        return Err(option("--context", problem, None));
    }
    Ok(read.into_iter().chain(own.filter(|text| !empty(text))).collect())
}

fn parse_system_prompt(text: &str) -> Result<SystemPrompt, Error> {
    match text {
        "auto" => Ok(SystemPrompt::Auto),
        "off" => Ok(SystemPrompt::Off),
        path => read_text(Path::new(path)).map(SystemPrompt::Text),
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, Error> {
    bounded::read_text(path, MAX_SYSTEM_PROMPT).map_err(|source| Error::Io { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strength_is_positive_or_auto() {
        assert_eq!(parse_strength("auto").unwrap(), None);
        assert_eq!(parse_strength("0.04").unwrap(), Some(0.04));
        for bad in ["0", "-0.04", "nan", "inf", "65", "x", ""] {
            assert!(parse_strength(bad).is_err(), "{bad}");
        }
        assert!(parse_strength("-1").unwrap_err().to_string().contains("only makes models safer"));
    }

    #[test]
    fn contrast_is_positive_or_auto() {
        assert_eq!(parse_contrast("auto").unwrap(), None);
        assert_eq!(parse_contrast("0.5").unwrap(), Some(0.5));
        for bad in ["0", "-1", "nan", "inf", "101", "x", ""] {
            assert!(parse_contrast(bad).is_err(), "{bad}");
        }
    }
}
