//! Searches for the best edit in two steps.
//!
//! First, candidates (direction source, layer of the direction, edited layers, and how far borderline prompts are
//! pushed the other way) are compared by the first token of the answer, each at the strength that uses up the KL
//! budget. Then the best few generate answers, which are judged.
//!
//! KL grows approximately with the square of the strength, so two or three probes without generation are enough to find
//! the strength that meets a budget. The first token indicates refusals well if the base begins its refusals alike
//! ([`Evaluator::first_token_score`]); a model without such openings is always judged by whole answers.

use std::time::{Duration, Instant};

use crate::arch::window::Window;
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
use budget::Spent;
pub use direction_source::{DirectionSource, ExtractionPrompt, SourceOutcome};
use journal::{Journal, Look, Row};
pub use limits::{Allowed, Refusal, own_refusal, utility};
use limits::{Limits, first_token_utility};
pub use result::{Candidate, Probe, SearchResult, Trial};
pub use settings::harder;

/// Smallest strength to try.
const WEAKEST: f64 = 1e-4;
/// Number of layers to probe for each direction source.
const COARSE_LAYERS: usize = 3;
/// Depths at which a safety direction is usable: earlier layers encode words rather than intent, and edits along
/// directions of the last layers break the text.
const DEPTHS: std::ops::Range<f64> = 0.25..0.8;
/// Shares of the best strength to try at the end, until one is noticeably worse than the one before it. Of two
/// strengths that do about equally well, the smaller is better.
const FINE_STRENGTHS: [f64; 2] = [0.75, 0.5];

/// Settings that the user fixed, and the budget.
#[derive(Debug, Clone, Copy)]
pub struct SearchOptions {
    /// Restricts the search to this layer.
    pub layer: Option<usize>,
    /// Restricts the search to this strength.
    pub strength: Option<f64>,
    /// Restricts the search to this κ.
    pub contrast: Option<f64>,
    /// Maximum mean first-token KL on harmless prompts, nats; `None` for the default of the model ([`Self::allowed`]).
    pub max_kl: Option<f64>,
    /// Maximum rise of the refusal rates of harmless and of borderline prompts above the base's; `None` for the default
    /// of the model.
    pub max_false_refusal: Option<f64>,
    /// Number of candidates whose answers are generated and judged.
    pub trials: usize,
    /// Time after which no new trial begins.
    pub time_budget: Option<Duration>,
    /// Whether every trial asks all prompts, even if it can no longer be the best; needed if an edit over the limits
    /// may be used.
    pub to_the_end: bool,
}

impl SearchOptions {
    /// Returns the allowed cost of an edit: the user's limits, else the [`Allowed`] defaults for a model that refuses
    /// the share `own` of harmful prompts.
    pub fn allowed(&self, refusal: Refusal, own: f64) -> Allowed {
        let default = Allowed::of(refusal, own);
        Allowed {
            max_kl: self.max_kl.unwrap_or(default.max_kl),
            max_false_refusal: self.max_false_refusal.unwrap_or(default.max_false_refusal),
        }
    }
}

/// The search space of one direction source.
///
/// The first window and the first κ are the defaults. The others are tried on the best layer of the best direction
/// source: windows by first tokens, κ by whole answers, because first tokens cannot distinguish values of κ
/// (docs/notebook/linear-gates.md).
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// Where the direction comes from.
    pub direction_source: DirectionSource,
    /// The only layer to try; `None` for layers at usable depths.
    pub layer: Option<usize>,
    /// Windows of layers whose writers are edited, as shares of the depth.
    pub windows: Vec<Window>,
    /// Values of κ for the gates.
    pub contrasts: Vec<f64>,
    /// First strength to try.
    pub first_strength: f64,
    /// Largest strength to try.
    pub strongest: f64,
}

/// Returns the maximum number of probes of a direction source, where `layer` is the user's choice.
pub fn n_probes(space: &Space, layer: Option<usize>) -> usize {
    space.layer.or(layer).map_or(COARSE_LAYERS, |_| 1) + space.windows.len() - 1
}

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The model could not be run.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// An edit could not be made.
    #[error(transparent)]
    Edit(#[from] EditError),
}

/// A function that makes the edits of a candidate at a strength.
pub type MakeEdits<'a> = dyn Fn(&Candidate, f64) -> Result<Vec<LowRank>, SearchError> + 'a;

/// The search over one model.
pub struct Search<'a> {
    /// The model.
    pub engine: &'a mut dyn Engine,
    /// Evaluates the model on the search split.
    pub evaluator: &'a Evaluator,
    /// Evaluates the model on [`FEW`](crate::eval::FEW) prompts of the search split.
    pub few: &'a Evaluator,
    /// Score of the base on the search split.
    pub base: Score,
    /// Makes the edits of a candidate at a strength.
    pub make_edits: &'a MakeEdits<'a>,
    /// Fixed settings and budget.
    pub options: SearchOptions,
    /// Search space of each direction source.
    pub spaces: &'a [Space],
    /// Measurements of an earlier run of the same search, to which this run adds its own.
    pub journal: &'a mut Journal,
}

/// How the strength of a probe is determined.
#[derive(Clone, Copy)]
enum Strength {
    Given(f64),
    /// Chosen to use up the KL budget, beginning at `start`.
    Budget {
        start: f64,
    },
}

/// A callback that receives the result so far and the total number of steps.
pub type SearchProgress<'a> = dyn FnMut(&SearchResult, usize) + 'a;

impl<'a> Search<'a> {
    /// Runs the search over a model of `n_layer` layers.
    ///
    /// # Errors
    /// Returns [`SearchError`] if the model cannot be run or an edit cannot be made.
    pub fn run(
        &mut self,
        n_layer: usize,
        progress: &mut SearchProgress<'_>,
    ) -> Result<SearchResult, SearchError> {
        let started = Instant::now();
        let time_budget = self.options.time_budget;
        let late = || time_budget.is_some_and(|most| started.elapsed() > most);
        let mut result = SearchResult { base: Some(self.base), ..SearchResult::default() };
        let base = self.few.base_first_token_score();
        let total: usize = self.spaces.iter().map(|s| n_probes(s, self.options.layer)).sum();
        let total = total + self.options.trials;
        self.probe_all(n_layer, base.as_ref(), &mut result, &mut |result| progress(result, total))?;
        let mut total = result.probes.len() + self.options.trials;
        // Trials reserved for other strengths: one of two or three trials, two of four or more.
        let fine = (self.options.trials / 2).min(FINE_STRENGTHS.len());
        let fine = if self.options.strength.is_some() { 0 } else { fine };
        let whole = self.options.trials.saturating_sub(fine).max(1);
        for (candidate, start) in self.finalists(&result).into_iter().take(whole) {
            if late() && !result.trials.is_empty() {
                break;
            }
            let strength = self.strength(&candidate, start, None)?;
            self.trial_within(&candidate, strength, &late, &mut result, &mut |result, added| {
                total += added;
                progress(result, total);
            })?;
        }
        self.less(fine, &late, &mut result, &mut |result| progress(result, total))?;
        result.mark_front();
        Ok(result)
    }

    /// Runs a trial and, if it exceeds the KL budget, another one with less strength. After each, `step` receives the
    /// result and the number of steps that this adds to the expected ones.
    fn trial_within(
        &mut self,
        candidate: &Candidate,
        strength: f64,
        late: &dyn Fn() -> bool,
        result: &mut SearchResult,
        step: &mut dyn FnMut(&SearchResult, usize),
    ) -> Result<(), SearchError> {
        self.trial(candidate, strength, result)?;
        step(result, 0);
        let Some(over) = self.over_budget(result).filter(|_| !late()) else { return Ok(()) };
        let less = self.strength(candidate, over.strength * over.next(None), Some(over))?;
        self.trial(candidate, less, result)?;
        step(result, 1);
        Ok(())
    }

    /// Returns how much of the KL budget the last trial used, if that is more than all. Its KL at that strength may not
    /// have been measured before, or it grows faster than usual (with a power of 3.2 of the strength under the safety
    /// prompt in copies without refusal).
    fn over_budget(&self, result: &SearchResult) -> Option<Spent> {
        let last = result.trials.last().filter(|_| self.options.strength.is_none())?;
        let share = last.score.kl / self.limits().allowed().max_kl;
        (share > 1.0).then_some(Spent { strength: last.strength, share })
    }

    /// Returns the candidates in the order in which to judge their answers, each with a strength to begin at: the best,
    /// the best of every other direction source that gained anything, the best with every other κ, then the others.
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

    /// Runs at most `count` trials with less strength than the best trial or, if none kept the limits, than the most
    /// useful one. A weaker edit that does about as well is better.
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

    /// Compares candidates by their first tokens: layers of every direction source, then other windows at the best
    /// layer. The neighbors of that layer are not tried, because they are as good as it is.
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

    /// Returns layers spread evenly over the usable depths. The separation of a layer is not a guide: on
    /// Qwen2.5-Coder-0.5B, the directions of the layers with the highest AUROC are among the worst to push along.
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

    /// Returns how the strength of the next probe is determined: by the user, or by the budget, beginning at the
    /// strength of the last probe of `source`.
    fn next_strength(&self, source: DirectionSource, result: &SearchResult) -> Strength {
        let last = result.probes.last().filter(|p| p.candidate.direction_source == source);
        let last = last.map_or(self.space(source).first_strength, |p| p.strength);
        self.options.strength.map_or(Strength::Budget { start: last }, Strength::Given)
    }

    /// Probes the first tokens of the candidate, or its answers if the base has no refusal openings.
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

    /// Returns the strength at which the candidate uses up the budget on all harmless prompts, beginning at `start`: the
    /// strength found on a few of them, or the one that follows from an `earlier` measurement.
    fn strength(
        &mut self,
        candidate: &Candidate,
        start: f64,
        earlier: Option<Spent>,
    ) -> Result<f64, SearchError> {
        if self.options.strength.is_some() {
            return Ok(start);
        }
        if let Some(known) = self.journal.strength(candidate, start) {
            return Ok(known);
        }
        let strength = self.spending(self.evaluator, candidate, start, earlier)?;
        self.journal.add(Row::Strength { candidate: *candidate, start, strength });
        Ok(strength)
    }

    /// Returns the strength at which the candidate uses up the budget on the prompts of `evaluator`, beginning at
    /// `start`.
    fn spending(
        &mut self,
        evaluator: &Evaluator,
        candidate: &Candidate,
        start: f64,
        earlier: Option<Spent>,
    ) -> Result<f64, SearchError> {
        let max_kl = self.limits().allowed().max_kl;
        let make = |strength: f64| (self.make_edits)(candidate, strength);
        let strongest = self.space(candidate.direction_source).strongest;
        KlBudget { engine: self.engine, evaluator, max_kl, strongest }.strength_after(&make, start, earlier)
    }

    /// Determines the candidate's strength, from the budget on few prompts if it is not given, and measures the model
    /// there: its first tokens or, with `answers`, its whole answers.
    fn look(
        &mut self,
        candidate: &Candidate,
        strength: Strength,
        answers: bool,
    ) -> Result<Look, SearchError> {
        let strength = match strength {
            Strength::Given(strength) => strength,
            Strength::Budget { start } => self.spending(self.few, candidate, start, None)?,
        };
        self.engine.apply(&(self.make_edits)(candidate, strength)?)?;
        let first_tokens = if answers { None } else { self.few.first_token_score(self.engine)? };
        let score = if answers { Some(self.evaluator.evaluate(self.engine)?.score) } else { None };
        Ok(Look { strength, first_tokens, score })
    }

    /// Judges the answers of `candidate` at `strength`. The trial becomes the best if it keeps the limits and is more
    /// useful than the best so far, or is the same candidate with less strength and about as useful.
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
