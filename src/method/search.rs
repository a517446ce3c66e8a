//! Which edit is best, found in two steps: candidates (where the direction comes from, its layer, layers
//! that are edited, how far borderline prompts are pushed the other way) are compared by the first token of the answer,
//! each at the strength that spends the KL budget; then the best few generate answers, which are judged.
//!
//! KL grows about with the square of the strength, so the strength that meets a budget is found in
//! two or three probes that need no generation. The first token tells refusals well where the base
//! opens its refusals alike ([`Evaluator::first_token_score`]); a model without such openings is judged by whole
//! answers throughout.

use std::time::{Duration, Instant};

use crate::eval::{Evaluator, FirstTokenScore, Score};
use crate::llama::{Engine, LlamaError, LowRank};
use crate::method::edit::EditError;

mod budget;
mod direction_source;
pub mod journal;
mod limits;
mod result;
mod row;
mod settings;
#[cfg(test)]
mod tests;

pub use budget::KlBudget;
pub use direction_source::{DirectionSource, SourceOutcome};
use journal::{Journal, Look, Row};
pub use limits::{Allowed, Refusal, utility};
use limits::{Limits, first_token_utility};
pub use result::{Candidate, Probe, SearchResult, Trial};
pub use settings::harder;

/// Smallest strength that is tried.
const WEAKEST: f64 = 1e-4;
/// Layers of the coarse look.
const COARSE_LAYERS: usize = 3;
/// Depths where a refusal direction can be pushed: earlier layers hold words rather than intent, and
/// edits along directions of the last layers break the text.
const DEPTHS: std::ops::Range<f64> = 0.25..0.8;
/// Shares of the best strength that are tried at the end, until one is noticeably worse than the one before it: where less
/// does about as well, less is better.
const FINE_STRENGTHS: [f64; 2] = [0.75, 0.5];

/// What is fixed by the user, and the budget.
#[derive(Debug, Clone, Copy)]
pub struct SearchOptions {
    /// Only this layer.
    pub layer: Option<usize>,
    /// Only this strength.
    pub strength: Option<f64>,
    /// Only this κ.
    pub contrast: Option<f64>,
    /// Most mean first-token KL on harmless prompts, nats; `None` = as much as the model needs
    /// ([`Self::allowed`]).
    pub max_kl: Option<f64>,
    /// Most that refusals of harmless and of borderline prompts may rise above the base's, as a share; `None` alike.
    pub max_false_refusal: Option<f64>,
    /// Candidates whose answers are generated and judged.
    pub trials: usize,
    /// No new trial begins after this.
    pub time_budget: Option<Duration>,
    /// Every trial asks all prompts, even one that cannot be the best any more: where an edit over the
    /// limits may be taken.
    pub to_the_end: bool,
}

impl SearchOptions {
    /// What an edit may cost: what the user says or what [`Allowed`] has for the model.
    pub fn allowed(&self, refusal: Refusal) -> Allowed {
        let default = Allowed::of(refusal);
        Allowed {
            max_kl: self.max_kl.unwrap_or(default.max_kl),
            max_false_refusal: self.max_false_refusal.unwrap_or(default.max_false_refusal),
        }
    }
}

/// What is tried with one direction source; the first of each is the default, the others are tried on the best
/// layer of the best direction source: windows by their first tokens, κ by whole answers, for first tokens cannot tell them
/// apart (docs/notebook/linear-gates.md).
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// The direction source.
    pub direction_source: DirectionSource,
    /// Only this layer; `None` = those at usable depths.
    pub layer: Option<usize>,
    /// Layers whose writers are edited, as shares of the depth.
    pub windows: Vec<(f64, f64)>,
    /// κ of the gate.
    pub contrasts: Vec<f64>,
    /// First guess of the strength.
    pub first_strength: f64,
    /// The largest.
    pub strongest: f64,
}

/// Probes of a direction source at most, where the user wants this `layer`.
pub fn n_probes(space: &Space, layer: Option<usize>) -> usize {
    space.layer.or(layer).map_or(COARSE_LAYERS, |_| 1) + space.windows.len() - 1
}

/// Why a search ended early.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The model could not be asked.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// An edit could not be made.
    #[error(transparent)]
    Edit(#[from] EditError),
}

/// Makes the edits of a candidate at a strength.
pub type MakeEdits<'a> = dyn Fn(&Candidate, f64) -> Result<Vec<LowRank>, SearchError> + 'a;

/// The search over one model.
pub struct Search<'a> {
    /// The model.
    pub engine: &'a mut dyn Engine,
    /// Asks the search split.
    pub evaluator: &'a Evaluator,
    /// Asks [`FEW`](crate::eval::FEW) of it.
    pub few: &'a Evaluator,
    /// The base's score on it.
    pub base: Score,
    /// From candidate and strength to edits.
    pub make_edits: &'a MakeEdits<'a>,
    /// What is fixed.
    pub options: SearchOptions,
    /// What is tried, by direction source.
    pub spaces: &'a [Space],
    /// What an earlier run of the same search measured, and where this one's measurements go.
    pub journal: &'a mut Journal,
}

/// Where the strength of a probe comes from.
#[derive(Clone, Copy)]
enum Strength {
    Given(f64),
    /// Found by what it spends of the KL budget, beginning at `start`.
    Budget {
        start: f64,
    },
}

/// Hears what was found so far, and how many steps there will be in all.
pub type SearchProgress<'a> = dyn FnMut(&SearchResult, usize) + 'a;

impl<'a> Search<'a> {
    /// Runs it.
    ///
    /// # Errors
    /// [`SearchError`].
    pub fn run(
        &mut self,
        n_layer: usize,
        progress: &mut SearchProgress<'_>,
    ) -> Result<SearchResult, SearchError> {
        let started = Instant::now();
        let time_budget = self.options.time_budget;
        let late = || time_budget.is_some_and(|most| started.elapsed() > most);
        let mut result = SearchResult { base: Some(self.base), ..SearchResult::default() };
        self.engine.apply(&[])?;
        let base = self.few.first_token_score(self.engine)?;
        let total: usize = self.spaces.iter().map(|s| n_probes(s, self.options.layer)).sum();
        let total = total + self.options.trials;
        self.probe_all(n_layer, base.as_ref(), &mut result, &mut |result| progress(result, total))?;
        let mut total = result.probes.len() + self.options.trials;
        // At other strengths: one of two or three trials, two of more.
        let fine = (self.options.trials / 2).min(FINE_STRENGTHS.len());
        let fine = if self.options.strength.is_some() { 0 } else { fine };
        let whole = self.options.trials.saturating_sub(fine).max(1);
        for (candidate, start) in self.finalists(&result).into_iter().take(whole) {
            if late() && !result.trials.is_empty() {
                break;
            }
            let strength = self.strength(&candidate, start)?;
            self.trial(&candidate, strength, &mut result)?;
            progress(&result, total);
            if let Some(less) = self.back_within(&result).filter(|_| !late()) {
                total += 1;
                self.trial(&candidate, less, &mut result)?;
                progress(&result, total);
            }
        }
        self.less(fine, &late, &mut result, &mut |result| progress(result, total))?;
        result.mark_front();
        Ok(result)
    }

    /// The strength to try where the last trial passed the KL budget: the KL of one that was not measured anew may have grown faster
    /// than others' does (with a power of 3.2 of the strength under the safety prompt in copies without refusal).
    fn back_within(&self, result: &SearchResult) -> Option<f64> {
        let last = result.trials.last().filter(|_| self.options.strength.is_none())?;
        let spent = last.score.kl / self.limits().allowed().max_kl;
        (spent > 1.0).then(|| last.strength * budget::next(spent))
    }

    /// Candidates in the order in which their answers are worth judging, each with a strength to begin at: the best, the
    /// best of every other direction source that gained anything, the best with every other κ, then the others.
    fn finalists(&self, result: &SearchResult) -> Vec<(Candidate, f64)> {
        let (firsts, others) = result.ranked();
        let of = |probes: Vec<Probe>| probes.into_iter().map(|probe| (probe.candidate, probe.strength));
        let mut finalists: Vec<_> = of(firsts).collect();
        if let Some(&(best, strength)) = finalists.first() {
            let contrasts = self.space(best.direction_source).contrasts[1..].iter();
            finalists.extend(contrasts.map(|&contrast| (Candidate { contrast, ..best }, strength)));
        }
        finalists.extend(of(others));
        finalists
    }

    /// At most `count` trials at less strength than the best one, or, where nothing kept the limits, than the
    /// most useful one. One that does about as well is better.
    fn less(
        &mut self,
        count: usize,
        late: &dyn Fn() -> bool,
        result: &mut SearchResult,
        step: &mut dyn FnMut(&SearchResult),
    ) -> Result<(), SearchError> {
        let useful = |a: &&Trial, b: &&Trial| a.utility.total_cmp(&b.utility);
        let Some(start) = result.best().or(result.trials.iter().max_by(useful)).copied() else {
            return Ok(());
        };
        for share in FINE_STRENGTHS.into_iter().take(count) {
            if late() {
                break;
            }
            let found = result.best;
            self.trial(&start.candidate, start.strength * share, result)?;
            step(result);
            if found.is_some() && result.best == found {
                break;
            }
        }
        Ok(())
    }

    /// Compares candidates by their first tokens: layers of every direction source, then other windows at the best. Its neighbours
    /// are as good as it is, so they are not tried.
    fn probe_all(
        &mut self,
        n_layer: usize,
        base: Option<&FirstTokenScore>,
        result: &mut SearchResult,
        step: &mut dyn FnMut(&SearchResult),
    ) -> Result<(), SearchError> {
        for space in self.spaces {
            for layer in self.coarse_layers(space, n_layer) {
                let (window, contrast) = (space.windows[0], space.contrasts[0]);
                let candidate =
                    Candidate { direction_source: space.direction_source, layer, window, contrast };
                let strength = self.next_strength(candidate.direction_source, result);
                self.probe(candidate, strength, base, result)?;
                step(result);
            }
        }
        let first = result.best_probe().candidate;
        let space = self.space(first.direction_source);
        for &window in &space.windows[1..] {
            let strength = self.next_strength(first.direction_source, result);
            self.probe(Candidate { window, ..first }, strength, base, result)?;
            step(result);
        }
        Ok(())
    }

    /// Layers spread evenly over the usable depths. How well a layer separates is no guide: on
    /// Qwen2.5-Coder-0.5B the layers with the highest AUROC are among the worst to push along.
    fn coarse_layers(&self, space: &Space, n_layer: usize) -> Vec<usize> {
        if let Some(layer) = space.layer.or(self.options.layer) {
            return vec![layer];
        }
        let usable = (0..n_layer).filter(|&l| DEPTHS.contains(&((l as f64 + 0.5) / n_layer as f64)));
        let usable: Vec<usize> = usable.collect();
        let count = usable.len().min(COARSE_LAYERS);
        (0..count).map(|i| usable[(2 * i + 1) * usable.len() / (2 * count)]).collect()
    }

    fn limits(&self) -> Limits {
        let refusal = Refusal::of(self.spaces.iter().map(|space| space.direction_source));
        Limits { base: self.base, options: self.options, refusal }
    }

    fn space(&self, direction_source: DirectionSource) -> &'a Space {
        let spaces: &'a [Space] = self.spaces;
        spaces.iter().find(|s| s.direction_source == direction_source).unwrap_or(&spaces[0])
    }

    /// Where the strength of the next probe comes from: the user, or the budget, beginning at that of the last probe.
    fn next_strength(&self, source: DirectionSource, result: &SearchResult) -> Strength {
        let last = result.probes.last().filter(|p| p.candidate.direction_source == source);
        let last = last.map_or(self.space(source).first_strength, |p| p.strength);
        self.options.strength.map_or(Strength::Budget { start: last }, Strength::Given)
    }

    /// Looks at the candidate's first tokens (at its answers, where the base has no openings).
    fn probe(
        &mut self,
        candidate: Candidate,
        strength: Strength,
        base: Option<&FirstTokenScore>,
        result: &mut SearchResult,
    ) -> Result<(), SearchError> {
        let max_kl = self.limits().allowed().max_kl;
        let (Strength::Given(start) | Strength::Budget { start }) = strength;
        let Look { strength, first_tokens, score } = match self.journal.probe(&candidate, start) {
            Some(look) => look,
            None => {
                let look = self.look(&candidate, strength, base.is_none())?;
                self.journal.add(Row::Probe { candidate, start, look });
                look
            }
        };
        let utility = match (base, first_tokens, score) {
            (Some(base), Some(first_tokens), _) => first_token_utility(base, &first_tokens),
            (_, _, Some(score)) => utility(&self.base, &score, max_kl),
            _ => f64::NEG_INFINITY,
        };
        result.probes.push(Probe { candidate, strength, max_kl, first_tokens, utility });
        Ok(())
    }

    /// The strength at which the candidate spends the budget on all harmless prompts, beginning at that of a few.
    fn strength(&mut self, candidate: &Candidate, start: f64) -> Result<f64, SearchError> {
        if self.options.strength.is_some() {
            return Ok(start);
        }
        if let Some(known) = self.journal.strength(candidate, start) {
            return Ok(known);
        }
        let strength = self.spending(self.evaluator, candidate, start)?;
        self.journal.add(Row::Strength { candidate: *candidate, start, strength });
        Ok(strength)
    }

    /// The strength at which the candidate spends the budget on the prompts of `evaluator`, beginning at `start`.
    fn spending(
        &mut self,
        evaluator: &Evaluator,
        candidate: &Candidate,
        start: f64,
    ) -> Result<f64, SearchError> {
        let max_kl = self.limits().allowed().max_kl;
        let make = |strength: f64| (self.make_edits)(candidate, strength);
        let strongest = self.space(candidate.direction_source).strongest;
        KlBudget { engine: self.engine, evaluator, max_kl, strongest }.strength(&make, start)
    }

    /// The candidate's strength, by the budget on few prompts where it is not given, and what the model shows there: its
    /// first tokens, or its whole `answers`.
    fn look(
        &mut self,
        candidate: &Candidate,
        strength: Strength,
        answers: bool,
    ) -> Result<Look, SearchError> {
        let strength = match strength {
            Strength::Given(strength) => strength,
            Strength::Budget { start } => self.spending(self.few, candidate, start)?,
        };
        self.engine.apply(&(self.make_edits)(candidate, strength)?)?;
        let first_tokens = if answers { None } else { self.few.first_token_score(self.engine)? };
        let score = if answers { Some(self.evaluator.evaluate(self.engine)?.score) } else { None };
        Ok(Look { strength, first_tokens, score })
    }

    /// Judges the answers of `candidate` at `strength`, which becomes the best if it keeps the limits and is more useful than
    /// the best so far, or the same with less strength and about as useful.
    fn trial(
        &mut self,
        candidate: &Candidate,
        strength: f64,
        result: &mut SearchResult,
    ) -> Result<(), SearchError> {
        let limits = self.limits();
        let best = result.best().copied();
        let less = best.filter(|best| best.candidate == *candidate && strength < best.strength);
        let enough = best.map(|best| best.utility - less.map_or(0.0, |_| limits.noise()));
        let mut going = |so_far: &Score| limits.may_be_best(so_far, enough);
        let known = self.journal.trial(candidate, strength);
        let score = match known.filter(|known| limits.is_whole(known) || !going(known)) {
            Some(score) => score,
            None => {
                self.engine.apply(&(self.make_edits)(candidate, strength)?)?;
                let score = self.evaluator.evaluate_while(self.engine, &mut going)?.score;
                self.journal.add(Row::Trial { candidate: *candidate, strength, score });
                score
            }
        };
        let stopped = !limits.is_whole(&score);
        let trial = Trial {
            candidate: *candidate,
            strength,
            score,
            utility: limits.most_useful(&score),
            accepted: !stopped && limits.accepts(&score),
            stopped,
            on_front: false,
        };
        let better = |best: Trial| match less {
            Some(_) => limits.takes_less(&trial, &best),
            None => (trial.utility, -trial.score.kl) > (best.utility, -best.score.kl),
        };
        if trial.accepted && best.is_none_or(better) {
            result.best = Some(result.trials.len());
        }
        result.trials.push(trial);
        Ok(())
    }
}
