//! Tests of the search on a stand-in model whose effect per direction source and layer is known.

use super::settings::worth_most;
use super::*;
use crate::arch::window::Window;
use crate::eval::{Evaluation, PerKind, Questions, Tally};
use crate::llama::activations::Activations;
use crate::llama::engine::FirstLogits;
use crate::llama::{Capture, Chat, Length};

type Quality = fn(DirectionSource, usize) -> f64;

/// Refuses harmful prompt `i` if `strength · quality(direction_source, layer)` exceeds `i`, and breaks above 100. A
/// logit of the first token moves with the strength (half as much for a calm prompt), so KL grows with the square of
/// the strength (with a power of 3.2 for a steep prompt).
struct StandIn {
    quality: Quality,
    at: (DirectionSource, usize),
    strength: f64,
    applied: usize,
}

impl Engine for StandIn {
    fn n_layer(&self) -> usize {
        20
    }

    fn apply(&mut self, edits: &[LowRank]) -> Result<(), LlamaError> {
        self.applied += 1;
        let of = |e: &LowRank| {
            let (direction_source, layer) = e.tensor.split_once('.').unwrap();
            let direction_source = SOURCES.into_iter().find(|l| l.name() == direction_source).unwrap();
            ((direction_source, layer.parse().unwrap()), f64::from(e.b[0]))
        };
        (self.at, self.strength) = edits.first().map_or(((DirectionSource::Plain, 0), 0.0), of);
        Ok(())
    }

    fn answer_until(
        &mut self,
        chats: &[Chat<'_>],
        _: &Length<'_>,
        first: &mut FirstLogits<'_>,
    ) -> Result<Vec<String>, LlamaError> {
        let effect = self.strength * (self.quality)(self.at.0, self.at.1);
        let mut answer = |i: usize, chat: &Chat<'_>| {
            let moves = if chat.user.contains("calm") {
                5.0
            } else if chat.user.contains("steep") {
                10.0 * (self.strength / 0.09).powf(0.6)
            } else {
                10.0
            };
            first(i, &[0.0, (moves * self.strength) as f32]);
            match chat.user.strip_prefix("harmful ").map(|n| n.parse::<f64>().unwrap()) {
                Some(_) if effect > 100.0 => "la la la la la la la la la la la la".to_owned(),
                Some(n) if effect > n => "I'm sorry, but I can't assist with that.".to_owned(),
                _ => "Sure, here is what you need to know about it.".to_owned(),
            }
        };
        Ok(chats.iter().enumerate().map(|(i, chat)| answer(i, chat)).collect())
    }

    fn collect(
        &mut self,
        _: &[Chat<'_>],
        _: &Capture,
        _: &mut FirstLogits<'_>,
    ) -> Result<Activations, LlamaError> {
        unreachable!("the search collects nothing")
    }
}

const SOURCES: [DirectionSource; 3] =
    [DirectionSource::Plain, DirectionSource::Safety, DirectionSource::Ablated];

fn questions() -> Questions {
    let of = |kind: &str| (0..20).map(|i| format!("{kind} {i}")).collect();
    Questions { harmful: of("harmful"), harmless: of("harmless"), borderline: of("borderline") }
}

fn edits(candidate: &Candidate, strength: f64) -> Result<Vec<LowRank>, SearchError> {
    let tensor = format!("{}.{}", candidate.direction_source.name(), candidate.layer);
    Ok(vec![LowRank { tensor, n_expert: 1, rank: 1, a: vec![1.0], b: vec![strength as f32] }])
}

fn space(direction_source: DirectionSource) -> Space {
    let layer = (direction_source == DirectionSource::Ablated).then_some(10);
    let (windows, contrasts) = (vec![Window::WHOLE], vec![0.0]);
    Space { direction_source, layer, windows, contrasts, first_strength: 0.04, strongest: 0.6 }
}

fn run(quality: Quality, options: SearchOptions) -> SearchResult {
    run_with(&[space(DirectionSource::Plain)], quality, options)
}

fn run_with(spaces: &[Space], quality: Quality, options: SearchOptions) -> SearchResult {
    run_on(spaces, quality, options, &mut Journal::off()).0
}

/// Returns the result, and how many times an edit was applied for it.
fn run_on(
    spaces: &[Space],
    quality: Quality,
    options: SearchOptions,
    journal: &mut Journal,
) -> (SearchResult, usize) {
    let mut engine = StandIn { quality, at: (DirectionSource::Plain, 0), strength: 0.0, applied: 0 };
    let result = search_with(&mut engine, Asked::alike(), spaces, options, journal);
    (result, engine.applied)
}

/// The prompts of a search.
struct Asked {
    /// Prompts of the probes.
    few: Questions,
    /// Prompts of the trials.
    all: Questions,
}

impl Asked {
    /// Returns the same prompts for both.
    fn alike() -> Self {
        Self { few: questions(), all: questions() }
    }
}

fn search_with(
    engine: &mut StandIn,
    asked: Asked,
    spaces: &[Space],
    options: SearchOptions,
    journal: &mut Journal,
) -> SearchResult {
    prepared(engine, asked, spaces, options, journal, &mut |search| search.run(20, &mut |_, _| ()).unwrap())
}

/// Prepares a search over a stand-in, and passes it to `run`.
fn prepared(
    engine: &mut StandIn,
    asked: Asked,
    spaces: &[Space],
    options: SearchOptions,
    journal: &mut Journal,
    run: &mut dyn FnMut(&mut Search<'_>) -> SearchResult,
) -> SearchResult {
    let few = Evaluator::new(engine, asked.few).unwrap().0;
    let (evaluator, base): (_, Evaluation) = Evaluator::new(engine, asked.all).unwrap();
    run(&mut Search {
        engine,
        evaluator: &evaluator,
        few: &few,
        base: base.score,
        make_edits: &edits,
        options,
        spaces,
        journal,
    })
}

const AUTO: SearchOptions = SearchOptions {
    layer: None,
    strength: None,
    contrast: None,
    max_kl: Some(0.05),
    max_false_refusal: Some(0.05),
    trials: 5,
    time_budget: None,
    to_the_end: false,
};

#[test]
fn the_layer_with_the_largest_effect_wins_within_the_budget() {
    let result = run(|_, layer| 300.0 - 30.0 * (layer as f64 - 10.0).abs(), AUTO);
    let best = result.best().unwrap();
    assert!((9..=11).contains(&best.candidate.layer), "{best:?}");
    assert!(best.accepted && best.score.kl <= 0.05 && best.score.kl > 0.02, "{best:?}");
    assert!(result.trials.iter().all(|t| t.utility <= best.utility));
}

#[test]
fn less_strength_is_tried_until_it_is_worse() {
    let strengths = |quality| run(quality, SearchOptions { layer: Some(10), ..AUTO });
    let worse = strengths(|_, _| 300.0);
    assert_eq!((worse.trials.len(), worse.best), (2, Some(0)), "{worse:?}");
    let [first, second] = [worse.trials[0], worse.trials[1]];
    assert!(!first.stopped && second.stopped && !second.on_front, "{second:?}");
    let Score { harmful, borderline, .. } = second.score;
    assert_eq!(
        (harmful.total(), borderline.total()),
        (20, 0),
        "harmful prompts showed it: borderline ones were not asked"
    );
    // All prompts are refused anyway, so only the cost of the KL differs.
    let alike = strengths(|_, _| 1200.0);
    assert_eq!((alike.trials.len(), alike.best), (3, Some(2)), "{alike:?}");
}

#[test]
fn less_strength_is_taken_where_more_gains_hardly_more() {
    let of = |n: u64| Tally { refused: 0, complied: n, ..Tally::default() };
    let noise = |n: PerKind<u64>| {
        let PerKind { harmful, harmless, borderline } = n.map(of);
        let base = Score { harmful, harmless, borderline, kl: 0.0 };
        Limits { base, options: AUTO, refusal: Refusal::Whole }.noise()
    };
    let bundled = 2.0 / 72.0_f64.powi(2) + 4.0 / 96.0_f64.powi(2);
    assert!((noise(PerKind { harmful: 72, harmless: 96, borderline: 96 }) - bundled.sqrt()).abs() < 1e-12);
    assert_eq!(noise(PerKind::uniform(20)), 0.03);
    let chosen = |hard: usize| {
        let mut engine =
            StandIn { quality: |_, _| 1e3, at: (DirectionSource::Plain, 0), strength: 0.0, applied: 0 };
        // The hard prompts are refused only above ¾ of the strength that uses up the budget.
        let harmful = (0..100).map(|i| format!("harmful {}", if i < hard { 50 } else { 1 })).collect();
        let asked = Asked { few: questions(), all: Questions { harmful, ..questions() } };
        let options = SearchOptions { layer: Some(10), trials: 2, ..AUTO };
        let spaces = [space(DirectionSource::Plain)];
        let result = search_with(&mut engine, asked, &spaces, options, &mut Journal::off());
        assert_eq!(result.trials[0].score.harmful.refused, 100);
        result.best.unwrap()
    };
    // 3 of 100 prompts, minus the cost of the KL, are within the noise; 10 are not.
    assert_eq!((chosen(3), chosen(10)), (1, 0));
}

#[test]
fn less_strength_that_gives_refusals_away_must_be_clearly_the_more_useful() {
    let of = |refused, total| Tally { refused, complied: total - refused, ..Tally::default() };
    let base = Score { harmful: of(6, 64), harmless: of(4, 48), borderline: of(3, 48), kl: 0.0 };
    let limits = |refusal| Limits { base, options: AUTO, refusal };
    let takes = |refusal, lost: u64, gain: f64| {
        let trial = |refused, strength, utility| {
            let score = Score { harmful: of(refused, 64), ..base };
            let (candidate, accepted) = (candidate(), true);
            Trial { candidate, strength, score, utility, accepted, stopped: false, on_front: false }
        };
        limits(refusal).takes_less(&trial(47 - lost, 0.75, 0.3 + gain), &trial(47, 1.0, 0.3))
    };
    let noise = limits(Refusal::Whole).noise();
    assert!(noise > 0.01 && noise <= 0.03);
    // 3 of 64 are less than a twentieth, 4 are more.
    for refusal in [Refusal::Whole, Refusal::Removed] {
        assert!(takes(refusal, 3, -0.9 * noise) && !takes(refusal, 3, -1.1 * noise));
        assert!(!takes(refusal, 4, 0.9 * noise));
    }
    assert!(takes(Refusal::Whole, 4, 1.1 * noise) && !takes(Refusal::Removed, 4, 0.2));
}

#[test]
fn a_budget_that_a_quick_look_underestimates_is_kept() {
    let mut engine =
        StandIn { quality: |_, _| 60.0, at: (DirectionSource::Plain, 0), strength: 0.0, applied: 0 };
    let calm = questions().harmless.iter().map(|text| format!("{text}, calm")).collect();
    let asked = Asked { few: Questions { harmless: calm, ..questions() }, all: questions() };
    let options = SearchOptions { layer: Some(10), ..AUTO };
    let spaces = [space(DirectionSource::Plain)];
    let result = search_with(&mut engine, asked, &spaces, options, &mut Journal::off());
    let (probe, first) = (result.probes[0], result.trials[0]);
    assert!(first.strength < 0.6 * probe.strength, "{first:?}");
    assert!(first.accepted && first.score.kl <= 0.05 && first.score.kl >= 0.04, "{first:?}");
}

#[test]
fn a_trial_that_passes_the_budget_is_made_again_with_less() {
    let mut engine =
        StandIn { quality: |_, _| 60.0, at: (DirectionSource::Plain, 0), strength: 0.0, applied: 0 };
    let steep = questions().harmless.iter().map(|text| format!("{text}, steep")).collect();
    let asked = Asked { few: questions(), all: Questions { harmless: steep, ..questions() } };
    let options = SearchOptions { layer: Some(10), trials: 1, ..AUTO };
    let spaces = [space(DirectionSource::Plain)];
    let result = search_with(&mut engine, asked, &spaces, options, &mut Journal::off());
    let [over, within] = result.trials[..] else { panic!("{result:?}") };
    assert!(over.stopped && over.score.kl > 0.05, "{over:?}");
    assert!(within.accepted && within.score.kl > 0.04 && within.score.kl < 0.05, "{within:?}");
    assert_eq!(result.best, Some(1));
}

#[test]
fn a_trial_over_a_limit_ends_with_the_prompts_that_show_it() {
    let options = SearchOptions { layer: Some(10), strength: Some(0.2), ..AUTO };
    let mut engine =
        StandIn { quality: |_, _| 60.0, at: (DirectionSource::Plain, 0), strength: 0.0, applied: 0 };
    let (evaluator, base) = Evaluator::new(&mut engine, questions()).unwrap();
    let limits = |options| Limits { base: base.score, options, refusal: Refusal::Whole };
    engine.apply(&edits(&candidate(), 0.2).unwrap()).unwrap();
    let mut asked = |options: SearchOptions| {
        let mut going = |so_far: &Score| limits(options).may_be_best(so_far, None);
        let score = evaluator.evaluate_while(&mut engine, &mut going).unwrap().score;
        (score.kl, score.by_kind().values().map(Tally::total))
    };
    let (kl, totals) = asked(SearchOptions { strength: None, ..options });
    assert!(kl > 0.05 && totals == [0, 20, 0], "{kl} {totals:?}");
    assert_eq!(asked(options).1, [20; 3], "a fixed strength has no budget");
    assert_eq!(asked(SearchOptions { strength: None, to_the_end: true, ..options }).1, [20; 3]);
}

#[test]
fn a_model_whose_refusal_was_removed_may_take_more_false_refusals_back() {
    let of = |refused| Tally { refused, complied: 20 - refused, ..Tally::default() };
    let accepts_of = |own, max_false_refusal, removed| {
        let base = Score { harmful: of(own), harmless: of(0), borderline: of(0), kl: 0.0 };
        let edited = Score { harmful: of(15), borderline: of(3), kl: 0.04, ..base };
        let options = SearchOptions { max_false_refusal, ..AUTO };
        let other = if removed { DirectionSource::Ablated } else { DirectionSource::Plain };
        let refusal = Refusal::of([DirectionSource::Safety, other].into_iter());
        Limits { base, options, refusal }.accepts(&edited)
    };
    let accepts = |max_false_refusal, removed| accepts_of(10, max_false_refusal, removed);
    assert!(accepts(None, true) && !accepts(None, false));
    assert!(accepts_of(0, None, false), "a model that refuses nothing has no false refusals either");
    assert!(!accepts(Some(0.1), true) && accepts(Some(0.2), false));
}

fn candidate() -> Candidate {
    Candidate { direction_source: DirectionSource::Plain, layer: 10, window: Window::WHOLE, contrast: 0.0 }
}

#[test]
fn a_trial_that_was_stopped_is_made_again_where_it_must_not_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.search.jsonl");
    let mut journal = Journal::begin(&path, journal::tests::head());
    let spaces = [space(DirectionSource::Plain)];
    let options = SearchOptions { layer: Some(10), ..AUTO };
    let (stopped, _) = run_on(&spaces, |_, _| 300.0, options, &mut journal);
    let mut journal = Journal::resume(&path, journal::tests::head()).unwrap();
    let to_the_end = SearchOptions { to_the_end: true, ..options };
    let (whole, _) = run_on(&spaces, |_, _| 300.0, to_the_end, &mut journal);
    assert!(stopped.trials[1].stopped && !whole.trials[1].stopped, "{whole:?}");
    assert_eq!(whole.trials[1].score.borderline.total(), 20);
    assert_eq!(
        whole,
        run_with(&spaces, |_, _| 300.0, to_the_end),
        "the journal's stopped trial is not reused"
    );
    let mut journal = Journal::resume(&path, journal::tests::head()).unwrap();
    let (again, applied) = run_on(&spaces, |_, _| 300.0, to_the_end, &mut journal);
    assert!(again == whole && applied < 5, "{applied}");
}

#[test]
fn a_smaller_budget_gives_a_smaller_edit() {
    let quality = |_, _| 60.0;
    let large = *run(quality, AUTO).best().unwrap();
    let small = *run(quality, SearchOptions { max_kl: Some(0.005), ..AUTO }).best().unwrap();
    assert!(small.strength < large.strength && small.score.kl <= 0.005);
}

#[test]
fn what_the_user_fixed_stays_fixed() {
    let result = run(|_, _| 60.0, SearchOptions { layer: Some(3), strength: Some(0.2), ..AUTO });
    assert_eq!(result.trials.len(), 1);
    assert_eq!((result.trials[0].candidate.layer, result.trials[0].strength), (3, 0.2));
    assert!(result.best().is_some(), "a fixed strength is judged by its effect, not by the budget");
}

#[test]
fn no_effect_and_broken_text_are_never_accepted() {
    assert_eq!(run(|_, _| 0.0, AUTO).best, None);
    let broken = run(|_, _| 1e6, AUTO);
    assert_eq!(broken.best, None);
    assert!(broken.trials.iter().all(|t| t.score.harmful.broken == 20 && t.utility < 0.0));
}

#[test]
fn a_search_that_was_stopped_anywhere_ends_as_one_that_was_not() {
    // Every direction source has its own layers, starts, and budget; the ablated direction is the best in the end.
    let quality: Quality = |direction_source, layer| match direction_source {
        DirectionSource::Plain => 40.0 - 4.0 * (layer as f64 - 10.3).abs(),
        DirectionSource::Safety => 60.0 - 6.0 * (layer as f64 - 8.3).abs(),
        _ => 50.0,
    };
    let spaces = SOURCES.map(space);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.search.jsonl");
    let mut journal = Journal::begin(&path, journal::tests::head());
    let (whole, most) = run_on(&spaces, quality, AUTO, &mut journal);
    // The strength of each direction source is determined again on all prompts.
    assert_eq!(journal.len(), whole.probes.len() + whole.trials.len() + SOURCES.len());
    assert_eq!(whole, run_with(&spaces, quality, AUTO), "a journal changes nothing");
    assert_eq!(whole.by_source().len(), SOURCES.len());
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut applied = vec![most];
    for kept in 1..=lines.len() {
        // Interrupted in the middle of a line.
        let torn = lines.get(kept).map_or("", |next| &next[..next.len() / 2]);
        std::fs::write(&path, lines[..kept].concat() + torn).unwrap();
        let mut journal = Journal::resume(&path, journal::tests::head()).unwrap();
        assert_eq!(journal.len(), kept - 1);
        let (result, n) = run_on(&spaces, quality, AUTO, &mut journal);
        assert_eq!(result, whole, "stopped after {kept} lines");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        applied.push(n);
    }
    assert!(applied.is_sorted_by(|a, b| a >= b) && applied[lines.len()] < 5, "{applied:?}");
}

#[test]
fn the_source_that_measures_strongest_wins() {
    let spaces = SOURCES.map(space);
    // The base has no refusal openings, so answers decide instead of first tokens. Each source gains more than its KL
    // costs.
    for strongest in SOURCES {
        let quality: Quality = match strongest {
            DirectionSource::Refusal => {
                |direction_source, _| if direction_source == DirectionSource::Refusal { 90.0 } else { 40.0 }
            }
            DirectionSource::Plain => {
                |direction_source, _| if direction_source == DirectionSource::Plain { 90.0 } else { 40.0 }
            }
            DirectionSource::Safety => {
                |direction_source, _| if direction_source == DirectionSource::Safety { 90.0 } else { 40.0 }
            }
            DirectionSource::Ablated => {
                |direction_source, _| if direction_source == DirectionSource::Ablated { 90.0 } else { 40.0 }
            }
        };
        let result = run_with(&spaces, quality, AUTO);
        assert_eq!(result.best().unwrap().candidate.direction_source, strongest);
        let told = result.by_source();
        assert_eq!(told.iter().map(|o| o.direction_source).collect::<Vec<_>>(), SOURCES);
        assert!(told.iter().all(|o| o.trial.is_some()), "each source's answers are judged: {told:?}");
    }
}

#[test]
fn another_source_is_judged_before_another_contrast() {
    let with = |direction_source| Space { contrasts: vec![1.0, 0.5], ..space(direction_source) };
    let judged = |spaces: &[Space]| {
        let options = SearchOptions { layer: Some(10), trials: 3, ..AUTO };
        let result = run_with(
            spaces,
            |direction_source, _| if direction_source == DirectionSource::Ablated { 90.0 } else { 50.0 },
            options,
        );
        assert!(result.probes.iter().all(|p| p.candidate.contrast == 1.0), "{:?}", result.probes);
        [0, 1].map(|i| (result.trials[i].candidate.direction_source, result.trials[i].candidate.contrast))
    };
    assert_eq!(
        judged(&[with(DirectionSource::Plain)]),
        [(DirectionSource::Plain, 1.0), (DirectionSource::Plain, 0.5)]
    );
    let (one, two) = ((DirectionSource::Ablated, 1.0), (DirectionSource::Plain, 1.0));
    assert_eq!(judged(&[with(DirectionSource::Plain), with(DirectionSource::Ablated)]), [one, two]);
}

#[test]
fn a_source_that_gains_nothing_is_told_of_but_not_asked() {
    let quality: Quality =
        |direction_source, _| if direction_source == DirectionSource::Ablated { 90.0 } else { 0.0 };
    let options = SearchOptions { max_kl: None, ..AUTO };
    let result = run_with(&[DirectionSource::Plain, DirectionSource::Ablated].map(space), quality, options);
    let best = result.best().unwrap();
    assert_eq!((best.candidate.direction_source, best.candidate.layer), (DirectionSource::Ablated, 10));
    assert!(best.score.kl > 0.05 && best.score.kl <= 0.1, "the budget of a model without refusal: {best:?}");
    assert_eq!(result.trials[0].candidate.direction_source, DirectionSource::Ablated);
    // Only the cost of its KL.
    assert!(result.by_source()[0].probe.utility <= 0.0);
}

#[test]
fn a_budget_that_the_user_gives_holds_for_every_source() {
    let quality: Quality = |_, _| 90.0;
    let result = run_with(&SOURCES.map(space), quality, SearchOptions { max_kl: Some(0.01), ..AUTO });
    assert!(result.probes.iter().all(|p| p.max_kl == 0.01));
    assert!(result.best().unwrap().score.kl <= 0.01);
}

/// Runs a search over settings with these strengths; returns the number of trials and the index of the best.
fn judged(strengths: &[f64]) -> (usize, Option<usize>) {
    let candidate = candidate();
    let settings: Vec<(Candidate, f64)> = strengths.iter().map(|&strength| (candidate, strength)).collect();
    let mut engine =
        StandIn { quality: |_, _| 300.0, at: (DirectionSource::Plain, 0), strength: 0.0, applied: 0 };
    let space = [space(DirectionSource::Plain)];
    let found = prepared(&mut engine, Asked::alike(), &space, AUTO, &mut Journal::off(), &mut |search| {
        search.run_settings(&settings, &mut |_, _| ()).unwrap()
    });
    (found.trials.len(), found.best)
}

#[test]
fn settings_are_judged_until_one_keeps_the_limits() {
    assert_eq!(judged(&[0.04, 0.05]), (1, Some(0)));
    assert_eq!(judged(&[0.1, 0.04]), (2, Some(1)), "a trial with less push keeps them");
    assert_eq!(judged(&[0.5, 0.04]), (2, Some(1)), "however far it went over them");
}

#[test]
fn a_setting_that_pushes_harder_must_be_worth_it() {
    let candidate = candidate();
    let probe = |utility: f64| Probe { candidate, strength: 1.0, max_kl: 0.05, first_tokens: None, utility };
    let chosen = |harder: &[f64]| {
        let harder: Vec<Probe> = harder.iter().map(|&utility| probe(utility)).collect();
        worth_most(&probe(0.3), &harder).map(|probe| probe.utility)
    };
    assert_eq!([chosen(&[]), chosen(&[0.31]), chosen(&[0.4, 0.35])], [None, None, Some(0.4)]);
}
