//! Where a direction comes from. Which source is the strongest differs from model to model, and is
//! measured.

use serde::{Deserialize, Serialize};

use super::{Probe, SearchResult, Trial};

/// Where the direction of an edit comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DirectionSource {
    /// The difference in means of prompts that the model refuses and prompts that it answers, of all
    /// kinds, put as users put them.
    Refusal,
    /// The difference in means of harmful and harmless prompts, put as users put them.
    Plain,
    /// The same under a safety system prompt.
    Safety,
    /// What was removed from the weights.
    Ablated,
}

impl DirectionSource {
    /// The name in reports and in provenance keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Plain => "plain",
            Self::Safety => "safety",
            Self::Ablated => "ablated",
        }
    }

    /// What its edit with the direction of `layer` is along, for people.
    pub fn along(self, layer: usize, system_prompt: &str) -> String {
        match self {
            Self::Refusal | Self::Plain => format!("layer {layer} ({})", self.name()),
            Self::Safety => format!("layer {layer} (under the {system_prompt} system prompt)"),
            Self::Ablated => "what was removed from the weights".into(),
        }
    }
}

/// What one direction source could do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SourceOutcome {
    /// The direction source.
    pub direction_source: DirectionSource,
    /// Most KL that its edits may cost, nats.
    pub max_kl: f64,
    /// Its best probe.
    pub probe: Probe,
    /// Its best trial: the best of all, the most useful accepted one or, where none is, the most useful one; `None` when
    /// none of its edits came as far as that.
    pub trial: Option<Trial>,
}

impl SearchResult {
    /// The best probe and the best of every other direction source that gained anything, so that these are compared by answers too;
    /// then all the others. Each from the best on.
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

    /// What each direction source that was tried could do, in the order in which they were tried.
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
