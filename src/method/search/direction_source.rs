//! Sources of directions. The strongest source differs between models, so it is measured.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Probe, SearchResult, Trial};

/// The source of an edit's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DirectionSource {
    /// Difference in means between prompts that the model refuses and prompts that it answers, of all kinds, as users
    /// send them.
    Refusal,
    /// Difference in means between harmful and harmless prompts, as users send them.
    Plain,
    /// Difference in means between harmful and harmless prompts, under a safety system prompt.
    Safety,
    /// The direction that was removed from the weights.
    Ablated,
}

impl DirectionSource {
    /// Returns the name used in reports and in provenance keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Plain => "plain",
            Self::Safety => "safety",
            Self::Ablated => "ablated",
        }
    }

    /// Describes the direction of an edit along `layer` for display.
    pub fn along(self, layer: usize, system_prompt: ExtractionPrompt) -> String {
        match self {
            Self::Refusal | Self::Plain => format!("layer {layer} ({})", self.name()),
            Self::Safety => format!("layer {layer} (under the {system_prompt} system prompt)"),
            Self::Ablated => "the direction removed from the weights".into(),
        }
    }
}

/// The system prompt under which a direction was extracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtractionPrompt {
    /// No system prompt.
    None,
    /// The bundled safety prompt.
    Safety,
    /// The user's own.
    User,
}

impl ExtractionPrompt {
    /// Returns the name used in reports and in provenance keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Safety => "safety",
            Self::User => "user",
        }
    }
}

impl fmt::Display for ExtractionPrompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The best results of one direction source.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SourceOutcome {
    /// Where the direction comes from.
    pub direction_source: DirectionSource,
    /// KL budget of its edits, nats.
    pub max_kl: f64,
    /// Its best probe.
    pub probe: Probe,
    /// Its best trial: the best of the whole search if it is of this source, else the most useful accepted one or, if
    /// none was accepted, the most useful one. `None` if none of its edits was tried.
    pub trial: Option<Trial>,
}

impl SearchResult {
    /// Splits the probes into two lists, each sorted from the best down: the best probe together with the best of every
    /// other direction source that gained anything, which are also compared by their answers; and all other probes.
    pub(super) fn ranked(&self) -> (Vec<Probe>, Vec<Probe>) {
        let mut others = self.probes.clone();
        others.sort_by(|a, b| b.utility.total_cmp(&a.utility));
        let mut firsts: Vec<Probe> = Vec::new();
        others.retain(|probe| {
            let same = |first: &Probe| first.candidate.direction_source == probe.candidate.direction_source;
            let new = !firsts.iter().any(same) && (firsts.is_empty() || probe.utility > 0.0);
            firsts.extend(new.then_some(*probe));
            !new
        });
        (firsts, others)
    }

    /// Returns the outcome of each direction source that was tried, in that order.
    pub fn by_source(&self) -> Vec<SourceOutcome> {
        let mut outcomes: Vec<SourceOutcome> = Vec::new();
        for probe in &self.probes {
            match outcomes.iter_mut().find(|o| o.direction_source == probe.candidate.direction_source) {
                Some(outcome) if probe.utility > outcome.probe.utility => outcome.probe = *probe,
                Some(_) => {}
                None => outcomes.push(SourceOutcome {
                    direction_source: probe.candidate.direction_source,
                    max_kl: probe.max_kl,
                    probe: *probe,
                    trial: None,
                }),
            }
        }
        for outcome in &mut outcomes {
            let own = self.trials.iter().filter(|t| t.candidate.direction_source == outcome.direction_source);
            let rank = |t: &&Trial| (t.accepted, t.utility);
            let better = |a: &&Trial, b: &&Trial| {
                let ((accepted_a, a), (accepted_b, b)) = (rank(a), rank(b));
                accepted_a.cmp(&accepted_b).then(a.total_cmp(&b))
            };
            let best = self.best().filter(|best| best.candidate.direction_source == outcome.direction_source);
            outcome.trial = best.or_else(|| own.max_by(better)).copied();
        }
        outcomes
    }
}
