use super::*;
use crate::llama::activations::{Routes, rows};
use crate::method::noise::normal;

const N_IN: usize = 40;
const OPTIONS: GateOptions = GateOptions { ridge: 1e-3, margin: 1.0, harmless: 2.0, tokens: 0.5 };

/// Rows of noise around `centre`, deterministic for each seed.
fn noise(centre: &[f32], rows: usize, seed: u64) -> Array2<f32> {
    let noise = normal(rows * N_IN, seed).iter().map(|v| 0.3 * v).collect();
    Array2::from_shape_vec((rows, N_IN), noise).unwrap() + &Array1::from(centre.to_vec())
}

/// Two writers; the second sees ten times larger inputs.
fn inputs(centre: &[f32], n: usize, seed: u64) -> Vec<WriterInputs> {
    let writer = |w: u64| WriterInputs {
        last: noise(centre, n, seed + w) * (1.0 + 9.0 * w as f32),
        tail: noise(centre, 2 * n, seed + w + 50) * (1.0 + 9.0 * w as f32),
        sample: noise(&[0.0; N_IN], 2 * n, seed + w + 100) * (1.0 + 9.0 * w as f32),
        routes: None,
    };
    vec![writer(0), writer(1)]
}

fn centre(at: usize) -> Vec<f32> {
    (0..N_IN).map(|j| if j == at { 3.0 } else { f32::from(j == 30) }).collect()
}

fn kinds() -> PerKind<Vec<WriterInputs>> {
    PerKind {
        harmful: inputs(&centre(0), 32, 1),
        harmless: inputs(&centre(1), 32, 2),
        borderline: inputs(&centre(2), 32, 3),
    }
}

fn training_set<'a>(kinds: &'a PerKind<Vec<WriterInputs>>, odds: &'a PerKind<Vec<f64>>) -> TrainingSet<'a> {
    TrainingSet { inputs: kinds.as_ref().map(Vec::as_slice), odds: odds.as_ref().map(Vec::as_slice) }
}

/// Mean total push of the gates on new prompts around `centre`.
fn push(rights: &RightFactors, centre: &[f32], seed: u64) -> f32 {
    let new = inputs(centre, 64, seed);
    let of = |(right, inputs): (&Option<Vec<f32>>, &WriterInputs)| {
        right.clone().map_or(0.0, |u| inputs.last.dot(&Array1::from(u)).mean().unwrap())
    };
    rights.iter().zip(&new).map(of).sum()
}

#[test]
fn gates_open_on_harmful_and_turn_on_borderline_prompts() {
    let kinds = kinds();
    let odds = PerKind { harmful: vec![-2.0; 32], harmless: vec![-3.0; 32], borderline: vec![0.5; 32] };
    let kernel = Kernel::of(training_set(&kinds, &odds), &[0, 1], None, &mut || ()).unwrap();
    let contrast = kernel.right_factors(1.0, &OPTIONS, 2).unwrap();
    let gated = kernel.right_factors(0.0, &OPTIONS, 2).unwrap();
    for rights in [&contrast, &gated] {
        assert!((push(rights, &centre(0), 11) - 1.0).abs() < 0.2, "{}", push(rights, &centre(0), 11));
        assert!(push(rights, &centre(1), 12).abs() < 0.2, "{}", push(rights, &centre(1), 12));
    }
    assert!(push(&contrast, &centre(2), 13) < -0.3, "{}", push(&contrast, &centre(2), 13));
    assert!(push(&gated, &centre(2), 13).abs() < 0.2, "{}", push(&gated, &centre(2), 13));
}

#[test]
fn prompts_that_are_answered_anyway_ask_for_nothing() {
    let kinds = kinds();
    let turned = |odds: f64| {
        let odds = PerKind { harmful: vec![-2.0; 32], harmless: vec![-3.0; 32], borderline: vec![odds; 32] };
        let kernel = Kernel::of(training_set(&kinds, &odds), &[0, 1], None, &mut || ()).unwrap();
        push(&kernel.right_factors(1.0, &OPTIONS, 2).unwrap(), &centre(2), 13)
    };
    assert!(turned(-6.0) > -0.1 && turned(1.0) < -0.4, "{} {}", turned(-6.0), turned(1.0));
}

#[test]
fn a_writer_whose_push_does_more_is_used_more() {
    let kinds = kinds();
    let odds = PerKind { harmful: vec![-2.0; 32], harmless: vec![-3.0; 32], borderline: vec![0.5; 32] };
    // With almost no ridge, the regression compensates for an effect: twice the effect gives half the push.
    let stiff = GateOptions { ridge: 1.0, ..OPTIONS };
    let share = |effects: &[f64]| {
        let kernel = Kernel::of(training_set(&kinds, &odds), &[0, 1], Some(effects), &mut || ()).unwrap();
        let rights = kernel.right_factors(1.0, &stiff, 2).unwrap();
        // A writer without effect gets no right factor: zeros are not an edit and could not be stored.
        assert_eq!([0, 1].map(|w| rights[w].is_some()), [effects[0] > 0.0, true]);
        let alone = vec![rights[0].clone(), None];
        push(&alone, &centre(0), 11) / push(&rights, &centre(0), 11)
    };
    let (same, more, none) = (share(&[1.0, 1.0]), share(&[2.0, 1.0]), share(&[0.0, 1.0]));
    assert!((same - 0.5).abs() < 0.1 && more > 0.6 && none == 0.0, "{same} {more} {none}");
}

#[test]
fn the_dual_solution_is_the_minimum() {
    let kinds = kinds();
    let odds = PerKind { harmful: vec![-1.0; 32], harmless: vec![-3.0; 32], borderline: vec![0.2; 32] };
    let kernel = Kernel::of(training_set(&kinds, &odds), &[0, 1], None, &mut || ()).unwrap();
    let dual = kernel.solve(0.7, &OPTIONS).unwrap();
    let full = |i: usize, j: usize| kernel.gram[[i.max(j), i.min(j)]];
    let loss = |dual: &[f64]| {
        let push = |i: usize| (0..dual.len()).map(|j| full(i, j) * dual[j]).sum::<f64>();
        let norm: f64 = (0..dual.len()).map(|i| push(i) * dual[i]).sum();
        let n_end = 3.0 * 96.0;
        let of = |(i, row): (usize, &Row)| match *row {
            Row::End { kind: PromptKind::Harmful, odds } => (1.0 + (1.0 - odds - push(i)).exp()).ln() / n_end,
            Row::End { kind: PromptKind::Borderline, odds } => {
                0.7 * (1.0 + (1.0 + odds + push(i)).exp()).ln() / n_end
            }
            Row::End { odds, .. } => {
                let answered = 0.7 * (1.0 + (1.0 + odds + push(i)).exp()).ln();
                (answered + OPTIONS.harmless / 2.0 * push(i).powi(2)) / n_end
            }
            Row::Inside => OPTIONS.tokens / 2.0 * push(i).powi(2) / 192.0,
        };
        kernel.rows.iter().enumerate().map(of).sum::<f64>() + OPTIONS.ridge / 2.0 * norm
    };
    let least = loss(&dual);
    for shift in [0.9, 1.1] {
        let other = loss(&dual.iter().map(|a| a * shift).collect::<Vec<_>>());
        assert!(other > least, "{shift}: {other} {least}");
    }
    for i in [0, 40, 100, 200, 400] {
        for step in [-0.1, 0.1] {
            let mut other = dual.clone();
            other[i] += step;
            assert!(loss(&other) > least, "{i} {step}");
        }
    }
}

#[test]
fn inputs_that_tell_nothing_apart_give_no_gates() {
    let zeros = |rows| Array2::zeros((rows, N_IN));
    let same = vec![WriterInputs { last: zeros(4), tail: zeros(0), sample: zeros(0), routes: None }];
    let kinds = PerKind::from_fn(|_| same.clone());
    let odds = PerKind::default();
    let none = Kernel::of(training_set(&kinds, &odds), &[0], None, &mut || ()).err();
    assert_eq!(none, Some(GateError::Inputs { writers: 1 }));
    let mut missing = super::tests::kinds();
    missing.harmful[0].last[[0, 0]] = f32::NAN;
    let kernel = Kernel::of(training_set(&missing, &odds), &[0, 1], None, &mut || ()).unwrap();
    assert_eq!(kernel.writers.iter().map(|w| w.0).collect::<Vec<_>>(), [1]);
    let rights = kernel.right_factors(1.0, &OPTIONS, 2).unwrap();
    assert!(rights[0].is_none() && rights[1].is_some());
}

/// Last, tail, and sample rows of a mixture of five experts, the last of which is never chosen; with `wide`, expanded
/// to the rows φ of one wide input.
fn mixture(seed: usize, wide: bool) -> WriterInputs {
    let [last, tail, sample] = [0, 1, 2].map(|part| {
        let mut rows = rows::tests::routed([12, 6, 3, 5], 3 * seed + part);
        let route = rows.route.as_mut().unwrap();
        route.experts.mapv_inplace(|e| if e == 4 { 0 } else { e });
        if wide { rows::tests::wide(&rows) } else { rows }
    });
    let experts = |rows: &Rows<'_>| rows.route.as_ref().map(|r| r.experts.to_owned()).unwrap_or_default();
    let routes = (!wide).then(|| Routes {
        n_expert: 5,
        last: experts(&last),
        tail: experts(&tail),
        sample: experts(&sample),
    });
    WriterInputs { last: last.x.to_owned(), tail: tail.x.to_owned(), sample: sample.x.to_owned(), routes }
}

#[test]
fn a_mixture_is_one_wide_writer() {
    let odds = PerKind { harmful: vec![-2.0; 12], harmless: vec![-3.0; 12], borderline: vec![0.5; 12] };
    let rights = |wide: bool| {
        let kinds = PerKind { harmful: 0, harmless: 1, borderline: 2 };
        let kinds = kinds.map(|seed| vec![mixture(10 + seed, wide), mixture(20 + seed, true)]);
        let kernel = Kernel::of(training_set(&kinds, &odds), &[0, 1], None, &mut || ()).unwrap();
        let rights = kernel.right_factors(1.0, &OPTIONS, 2).unwrap();
        (rights.clone(), effects::pushes(&kinds.harmful, &rights))
    };
    let ((routed, pushes), (wide, wide_pushes)) = (rights(false), rights(true));
    assert_eq!(pushes.dim(), (12, 2));
    for (routed, wide) in routed.iter().flatten().zip(wide.iter().flatten()) {
        let size = wide.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        routed.iter().zip(wide).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * size, "{a} {b}"));
    }
    pushes.iter().zip(&wide_pushes).for_each(|(a, b)| assert!((a - b).abs() < 1e-3, "{a} {b}"));
    let never_chosen = &routed[0].as_ref().unwrap()[24..];
    assert_eq!(never_chosen, [0.0; 6]);
    let factors = routed.iter().flatten().map(|right| (5, right.as_slice()));
    assert_eq!(crate::method::edit::experts_spared(factors.take(1)), (1, 5));
}
