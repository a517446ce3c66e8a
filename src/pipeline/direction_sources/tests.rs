//! Direction sources offered by a mock engine, and the directions derived from an ablated direction.

use clap::Parser;

use super::*;
use crate::arch::window::Window;
use crate::cli::{Cli, Command};
use crate::eval::Questions;
use crate::llama::stand_in::StandIn;
use crate::method::abliteration::AblatedLayer;
use crate::sources::{self, Check};

/// Returns the sources offered by a model that refuses `plain` of 20 harmful prompts, and `prompted` under a system
/// prompt; and the name of its system prompt.
fn offer(
    plain: usize,
    prompted: usize,
    ablated: Option<AblatedDirection>,
    flags: &[&str],
) -> Result<(Vec<DirectionSource>, ExtractionPrompt), Error> {
    let mut engine = StandIn::new(|i, chat, _, first| {
        let refuses = i < if chat.system.is_some() { prompted } else { plain };
        first(i, if refuses { &[1.0, 0.0] } else { &[0.0, 1.0] });
        let answer = if refuses {
            "I'm sorry, but I can't assist with that."
        } else {
            "Sure, here is how it is done."
        };
        answer.to_owned()
    });
    let harmful = (0..20).map(|i| format!("prompt {i}")).collect();
    let questions = Questions { harmful, ..Questions::default() };
    let (mut evaluator, base) = Evaluator::new(&mut engine, questions).unwrap();
    let args = [&["rosi-gguf", "inject", "model.gguf"], flags].concat();
    let Command::Inject(args) = Cli::try_parse_from(args).unwrap().command else { unreachable!() };
    let source = sources::resolve(&args.model, Check::Size, &mut |_, _, _| Ok(())).unwrap();
    let options = InjectOptions::new(*args, source, None).unwrap();
    let printer = Printer::new(true, 0);
    let offer = Offer::of(&mut engine, &mut evaluator, &base, ablated, &options, &printer)?;
    let there = [(DirectionSource::Plain, offer.plain), (DirectionSource::Safety, offer.system.is_some())];
    let there = there.into_iter().chain([(DirectionSource::Ablated, offer.ablated.is_some())]);
    let direction_sources =
        there.filter(|(_, there)| *there).map(|(direction_source, _)| direction_source).collect();
    Ok((direction_sources, offer.system_prompt(DirectionSource::Safety)))
}

fn some_ablated() -> Option<AblatedDirection> {
    Some(ablated_of(vec![layer(1, [1.0, 0.0]), layer(2, [-0.8, 0.6])]))
}

fn ablated_of(layers: Vec<AblatedLayer>) -> AblatedDirection {
    AblatedDirection {
        gap: 2.0,
        times_honest: 2.0,
        agreement: 1.0,
        remaining: 0.0,
        writers: (2, 4),
        layers,
        directions: vec![vec![1.0, 0.0]],
    }
}

fn layer(layer: usize, unit: [f32; 2]) -> AblatedLayer {
    AblatedLayer { layer, tensors: vec![], remaining: 0.0, cosine: 1.0, unit: unit.to_vec() }
}

#[test]
fn layers_without_an_ablated_direction_take_the_nearest_and_signs_agree() {
    let ablated = some_ablated().unwrap();
    let units = own_directions(&ablated, 4);
    assert_eq!(units, [[1.0, 0.0], [1.0, 0.0], [0.8, -0.6], [0.8, -0.6]]);
}

#[test]
fn the_safety_prompt_must_bring_something() {
    let of = |count| Proportion::new(count, 40);
    assert!(helps(of(2), of(12)));
    assert!(!helps(of(2), of(4)), "hardly any refusal either way");
    assert!(!helps(of(12), of(14)));
}

#[test]
fn a_model_that_refuses_well_gets_no_safety_prompt() {
    let told = offer(12, 20, None, &[]).unwrap();
    assert_eq!(told, (vec![DirectionSource::Plain], ExtractionPrompt::None));
}

#[test]
fn a_model_that_refuses_little_gets_one_where_it_helps() {
    for plain in [0, 6] {
        let told = offer(plain, 15, None, &[]).unwrap();
        assert_eq!(told, (vec![DirectionSource::Plain, DirectionSource::Safety], ExtractionPrompt::Safety));
    }
    assert_eq!(offer(6, 7, None, &[]).unwrap().0, [DirectionSource::Plain]);
    assert_eq!(offer(6, 15, None, &["--system-prompt", "off"]).unwrap().0, [DirectionSource::Plain]);
    assert_eq!(offer(6, 15, None, &["--direction-source", "plain"]).unwrap().0, [DirectionSource::Plain]);
    assert_eq!(offer(12, 12, None, &["--direction-source", "safety"]).unwrap().0, [DirectionSource::Safety]);
}

#[test]
fn only_without_any_source_there_is_no_refusal() {
    let refused = |flags: &[&str]| offer(1, 2, None, flags);
    assert!(matches!(refused(&[]), Err(Error::NoRefusal { plain: 1, prompted: Some(2), total: 20 })));
    assert!(matches!(refused(&["--system-prompt", "off"]), Err(Error::NoRefusal { prompted: None, .. })));
    assert_eq!(refused(&["--allow-no-refusal"]).unwrap().0, [DirectionSource::Plain]);
    assert_eq!(
        offer(1, 2, some_ablated(), &[]).unwrap().0,
        [DirectionSource::Plain, DirectionSource::Ablated]
    );
    assert_eq!(
        offer(1, 2, some_ablated(), &["--direction-source", "ablated"]).unwrap().0,
        [DirectionSource::Ablated]
    );
    let missing = refused(&["--direction-source", "ablated"]);
    assert!(matches!(missing, Err(Error::Option { flag: "--direction-source", .. })));
    assert!(matches!(
        offer(1, 2, some_ablated(), &["--direction-source", "plain"]),
        Err(Error::NoRefusal { .. })
    ));
}

/// Returns the directions of a stored edit at layers 0 to 2; the chosen layer is 1.
fn stored(
    direction_source: DirectionSource,
    own: bool,
    by_layer: Vec<SafetyDirection>,
) -> [SafetyDirection; 3] {
    let separation = vec![Separation { layer: 0, norm: 1.0, relative_norm: 0.1, auroc: 0.9, d_prime: 2.0 }];
    let directions = Directions { by_layer, separation: separation.clone() };
    let direction_sources = DirectionSources::stored(direction_source, own, directions);
    assert_eq!(direction_sources.separation(direction_source), separation);
    let candidate = Candidate { direction_source, layer: 1, window: Window::WHOLE, contrast: 0.0 };
    [0, 1, 2].map(|layer| direction_sources.along(&candidate).at(layer).clone())
}

#[test]
fn what_was_stored_is_pushed_along_again() {
    let direction = |layer, s: [f64; 2]| SafetyDirection::new(layer, &s).unwrap();
    let one = direction(1, [3.0, 4.0]);
    for direction_source in
        [DirectionSource::Refusal, DirectionSource::Plain, DirectionSource::Safety, DirectionSource::Ablated]
    {
        let along = stored(direction_source, false, Along::One(&one).distinct(1));
        assert!(along.iter().all(|d| *d == one), "{direction_source:?}");
    }
    let alike = [0, 1, 2].map(|layer| direction(layer, [3.0, 4.0]));
    let kept = Along::Layers(&alike).distinct(1);
    assert_eq!(kept, [one], "a direction shared by all layers is stored once");
    let several = [direction(0, [1.0, 0.0]), direction(1, [0.0, 2.0]), direction(2, [3.0, 4.0])];
    assert_eq!(stored(DirectionSource::Ablated, false, Along::Layers(&several).distinct(1)), several);
    assert_eq!(stored(DirectionSource::Refusal, true, Along::Layers(&several).distinct(1)), several);
}
