//! The search on a stand-in whose effect per layer is known.

use super::*;
use crate::activations::Activations;
use crate::evaluate::{Examination, Questions};
use crate::llama::engine::FirstLogits;
use crate::llama::{Capture, Chat};

/// Refuses harmful prompt `i` when `strength · quality(layer)` is above `i`; its first logit moves
/// with the strength, so that KL grows with its square; breaks above 100.
struct StandIn {
    quality: fn(usize) -> f64,
    layer: usize,
    strength: f64,
    applied: usize,
}

impl Engine for StandIn {
    fn n_layer(&self) -> usize {
        20
    }

    fn apply(&mut self, edits: &[RankOne]) -> Result<(), LlamaError> {
        self.applied += 1;
        (self.layer, self.strength) =
            edits.first().map_or((0, 0.0), |e| (e.tensor.parse().unwrap(), f64::from(e.b[0])));
        Ok(())
    }

    fn answer(
        &mut self,
        chats: &[Chat<'_>],
        _: usize,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        let effect = self.strength * (self.quality)(self.layer);
        let mut answer = |i: usize, chat: &Chat<'_>| {
            first(i, &[0.0, 10.0 * self.strength as f32]);
            match chat.user.strip_prefix("harmful ").map(|n| n.parse::<f64>().unwrap()) {
                Some(_) if effect > 100.0 => "la la la la la la la la la la la la".to_owned(),
                Some(n) if effect > n => "I'm sorry, but I can't assist with that.".to_owned(),
                _ => "Sure, here is what you need to know about it.".to_owned(),
            }
        };
        Ok(chats.iter().enumerate().map(|(i, chat)| answer(i, chat)).collect())
    }

    fn collect(&mut self, _: &[Chat<'_>], _: &Capture) -> Result<Activations, LlamaError> {
        unreachable!("the search collects nothing")
    }
}

fn questions() -> Questions {
    let of = |kind: &str| (0..20).map(|i| format!("{kind} {i}")).collect();
    Questions { harmful: of("harmful"), harmless: of("harmless"), alarming: of("alarming") }
}

fn edits(candidate: &Candidate, strength: f64) -> Vec<RankOne> {
    vec![RankOne { tensor: candidate.layer.to_string(), n_expert: 1, a: vec![1.0], b: vec![strength as f32] }]
}

fn run(quality: fn(usize) -> f64, options: SearchOptions) -> SearchResult {
    run_with(quality, options, &mut Journal::off()).0
}

/// The result, and how often an edit was applied for it.
fn run_with(
    quality: fn(usize) -> f64,
    options: SearchOptions,
    journal: &mut Journal,
) -> (SearchResult, usize) {
    let mut engine = StandIn { quality, layer: 0, strength: 0.0, applied: 0 };
    let (examiner, base): (_, Examination) = Examiner::new(&mut engine, questions()).unwrap();
    let space = Space { windows: vec![(0.0, 1.0)], contrasts: vec![0.0], first_strength: 0.04 };
    let mut search = Search {
        engine: &mut engine,
        examiner: &examiner,
        base: base.score,
        make_edits: &edits,
        options,
        space: &space,
        journal,
    };
    let result = search.run(20, &mut |_, _| ()).unwrap();
    (result, engine.applied)
}

const AUTO: SearchOptions = SearchOptions {
    layer: None,
    strength: None,
    max_kl: 0.05,
    max_false_refusal: 0.05,
    trials: 5,
    time_budget: None,
};

#[test]
fn the_layer_with_the_largest_effect_wins_within_the_budget() {
    let result = run(|layer| 100.0 - 10.0 * (layer as f64 - 10.0).abs(), AUTO);
    let best = result.best().unwrap();
    assert!((9..=11).contains(&best.candidate.layer), "{best:?}");
    assert!(best.accepted && best.score.kl <= 0.05 && best.score.kl > 0.02, "{best:?}");
    assert!(result.trials.iter().all(|t| t.utility <= best.utility));
}

#[test]
fn a_smaller_budget_gives_a_smaller_edit() {
    let quality = |_| 60.0;
    let large = *run(quality, AUTO).best().unwrap();
    let small = *run(quality, SearchOptions { max_kl: 0.005, ..AUTO }).best().unwrap();
    assert!(small.strength < large.strength && small.score.kl <= 0.005);
}

#[test]
fn what_the_user_fixed_stays_fixed() {
    let result = run(|_| 60.0, SearchOptions { layer: Some(3), strength: Some(0.2), ..AUTO });
    assert_eq!(result.trials.len(), 1);
    assert_eq!((result.trials[0].candidate.layer, result.trials[0].strength), (3, 0.2));
    assert!(result.best().is_some(), "a fixed strength is judged by its effect, not by the budget");
}

#[test]
fn no_effect_and_broken_text_are_never_accepted() {
    assert_eq!(run(|_| 0.0, AUTO).best, None);
    let broken = run(|_| 1e6, AUTO);
    assert_eq!(broken.best, None);
    assert!(broken.trials.iter().all(|t| t.score.harmful.broken == 20 && t.utility < 0.0));
}

#[test]
fn a_search_that_was_stopped_anywhere_ends_as_one_that_was_not() {
    let quality = |layer: usize| 100.0 - 10.0 * (layer as f64 - 10.3).abs();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.search.jsonl");
    let mut journal = Journal::begin(&path, journal::tests::head());
    let (whole, most) = run_with(quality, AUTO, &mut journal);
    assert_eq!(journal.len(), whole.probes.len() + whole.trials.len());
    assert_eq!(whole, run(quality, AUTO), "a journal changes nothing");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut applied = vec![most];
    for kept in 1..=lines.len() {
        // Stopped in the middle of a line.
        let torn = lines.get(kept).map_or("", |next| &next[..next.len() / 2]);
        std::fs::write(&path, lines[..kept].concat() + torn).unwrap();
        let mut journal = Journal::resume(&path, journal::tests::head()).unwrap();
        assert_eq!(journal.len(), kept - 1);
        let (result, n) = run_with(quality, AUTO, &mut journal);
        assert_eq!(result, whole, "stopped after {kept} lines");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        applied.push(n);
    }
    assert!(applied.is_sorted_by(|a, b| a >= b) && applied[lines.len()] < 5, "{applied:?}");
}
