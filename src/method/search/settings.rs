//! The search over given settings: candidates with their strengths.

use std::time::Instant;

use super::{
    Candidate, DirectionSource, Probe, Search, SearchError, SearchProgress, SearchResult, Space, Strength,
};
use crate::eval::FirstTokenScore;

/// Minimum gain in first-token utility that justifies a setting that pushes harder than the default.
const WORTH_MORE: f64 = 0.03;

/// Candidates with their strengths, to judge by whole answers.
#[derive(Default)]
struct ToJudge {
    /// Judged in any case.
    judged: Vec<(Candidate, f64)>,
    /// Judged only while no trial keeps the limits.
    spare: Vec<(Candidate, f64)>,
}

impl Search<'_> {
    /// Runs the search over the given `settings`.
    ///
    /// First tokens rank the first setting of each direction source, and the settings of the best source that push
    /// harder. Whole answers judge the winner, the first setting of every other source and, while no trial keeps the
    /// limits, the remaining settings of the best source. A setting that exceeds the KL budget is judged again with as
    /// much push as the budget allows.
    ///
    /// # Errors
    /// Returns [`SearchError`] if the model cannot be run or an edit cannot be made.
    pub fn run_settings(
        &mut self,
        settings: &[(Candidate, f64)],
        progress: &mut SearchProgress<'_>,
    ) -> Result<SearchResult, SearchError> {
        let started = Instant::now();
        let time_budget = self.options.time_budget;
        let late = || time_budget.is_some_and(|most| started.elapsed() > most);
        let mut result = SearchResult { base: Some(self.base), ..SearchResult::default() };
        let mut total = self.spaces.len() + self.options.trials;
        let first = |space: &Space| of_source(settings, space.direction_source).next();
        let firsts: Vec<_> = self.spaces.iter().filter_map(first).collect();
        let base = self.few.base_first_token_score();
        self.probe_settings(&firsts, base.as_ref(), &mut result, &mut |result| progress(result, total))?;
        let step = &mut |result: &SearchResult| progress(result, total);
        let ToJudge { judged, spare } = self.settings_to_judge(settings, base.as_ref(), &mut result, step)?;
        let n_judged = judged.len();
        for (i, (candidate, strength)) in
            judged.into_iter().chain(spare).take(self.options.trials).enumerate()
        {
            if (late() && !result.trials.is_empty()) || (i >= n_judged && result.best.is_some()) {
                break;
            }
            self.trial_within(&candidate, strength, &late, &mut result, &mut |result, added| {
                total += added;
                progress(result, total);
            })?;
        }
        result.mark_front();
        Ok(result)
    }

    /// Returns the `settings` to judge by whole answers, after the first of each direction source has been probed.
    fn settings_to_judge(
        &mut self,
        settings: &[(Candidate, f64)],
        base: Option<&FirstTokenScore>,
        result: &mut SearchResult,
        step: &mut dyn FnMut(&SearchResult),
    ) -> Result<ToJudge, SearchError> {
        let (firsts, others) = result.ranked();
        let Some(best) = firsts.first() else { return Ok(ToJudge::default()) };
        let mut own: Vec<_> = of_source(settings, best.candidate.direction_source).collect();
        if base.is_some() {
            let n_first = result.probes.len();
            self.probe_settings(&harder(&own, best.strength), base, result, step)?;
            if let Some(winner) = worth_most(best, &result.probes[n_first..]) {
                own.retain(|&(_, strength)| strength != winner.strength);
                own.insert(0, (winner.candidate, winner.strength));
            }
        }
        let spare = own.split_off(own.len().min(1));
        own.extend(firsts.iter().skip(1).chain(&others).map(|probe| (probe.candidate, probe.strength)));
        Ok(ToJudge { judged: own, spare })
    }

    /// Probes settings by their first tokens, each at its own strength.
    fn probe_settings(
        &mut self,
        settings: &[(Candidate, f64)],
        base: Option<&FirstTokenScore>,
        result: &mut SearchResult,
        step: &mut dyn FnMut(&SearchResult),
    ) -> Result<(), SearchError> {
        for &(candidate, strength) in settings {
            self.probe(candidate, Strength::Given(strength), base, result)?;
            step(result);
        }
        Ok(())
    }
}

/// Returns the `settings` of one direction source.
fn of_source(
    settings: &[(Candidate, f64)],
    source: DirectionSource,
) -> impl Iterator<Item = (Candidate, f64)> + '_ {
    settings.iter().copied().filter(move |(candidate, _)| candidate.direction_source == source)
}

/// Returns the `settings` of one direction source that push harder than the strength `first`.
pub fn harder(settings: &[(Candidate, f64)], first: f64) -> Vec<(Candidate, f64)> {
    settings.iter().copied().filter(|&(_, strength)| strength > first).collect()
}

/// Returns the best of the `harder` probes of a direction source if it gains enough over the `first`.
pub(super) fn worth_most<'a>(first: &Probe, harder: &'a [Probe]) -> Option<&'a Probe> {
    let best = harder.iter().max_by(|a, b| a.utility.total_cmp(&b.utility))?;
    (best.utility > first.utility + WORTH_MORE).then_some(best)
}
