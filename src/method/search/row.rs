//! Trials and probes as they appear in JSON, with the fields of the candidate inline. They are read without serde's
//! `flatten`, which rejects numbers if any crate in the build enables the `arbitrary_precision` feature of
//! `serde_json`.

use serde::Deserialize;

use super::{Candidate, DirectionSource, Probe, Trial};
use crate::arch::window::Window;
use crate::eval::{FirstTokenScore, Score};
use crate::util::null;

#[derive(Deserialize)]
pub(super) struct TrialRow {
    direction_source: DirectionSource,
    layer: usize,
    window: Window,
    contrast: f64,
    strength: f64,
    score: Score,
    #[serde(deserialize_with = "null::or_minus_infinity")]
    utility: f64,
    accepted: bool,
    /// Missing in older reports.
    #[serde(default)]
    stopped: bool,
    on_front: bool,
}

impl From<TrialRow> for Trial {
    fn from(row: TrialRow) -> Self {
        let TrialRow { direction_source, layer, window, contrast, .. } = row;
        Self {
            candidate: Candidate { direction_source, layer, window, contrast },
            strength: row.strength,
            score: row.score,
            utility: row.utility,
            accepted: row.accepted,
            stopped: row.stopped,
            on_front: row.on_front,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct ProbeRow {
    direction_source: DirectionSource,
    layer: usize,
    window: Window,
    contrast: f64,
    strength: f64,
    max_kl: f64,
    first_tokens: Option<FirstTokenScore>,
    #[serde(deserialize_with = "null::or_minus_infinity")]
    utility: f64,
}

impl From<ProbeRow> for Probe {
    fn from(row: ProbeRow) -> Self {
        let ProbeRow { direction_source, layer, window, contrast, strength, max_kl, first_tokens, utility } =
            row;
        Self {
            candidate: Candidate { direction_source, layer, window, contrast },
            strength,
            max_kl,
            first_tokens,
            utility,
        }
    }
}
