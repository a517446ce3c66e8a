//! A trial of the search, beside a file for each.

use rosi_gguf::eval::prompts::{PromptSet, Split};
use rosi_gguf::eval::{Evaluator, FEW, Questions};
use rosi_gguf::llama::{Engine, LowRank};
use rosi_gguf::method::edit::Edit;
use rosi_gguf::method::requant::Requant;

use crate::clock::{Spent, medians, time};
use crate::model::Model;
use crate::{Effort, Failure, table};

const HEADER: [&str; 3] = ["what", "wall, s", "CPU, s"];
/// Prompts of a trial.
const TRIAL: [usize; 3] = [96; 3];

/// Prints the tables.
pub fn run(effort: Effort) -> Result<(), Failure> {
    effort.models().iter().try_for_each(|name| measure(&Model::named(name)?, effort))
}

fn measure(model: &Model, effort: Effort) -> Result<(), Failure> {
    let mut engine = model.engine()?;
    let limits = if effort == Effort::Short { [4; 3] } else { TRIAL };
    let questions = Questions::of(&PromptSet::bundled(), Split::Search, limits);
    let n = questions.len();
    let ((evaluator, _), base) = time(|| Ok(Evaluator::new(&mut engine, questions)?))?;
    let few = evaluator.part(FEW);
    let opens = few.first_token_score(&mut engine)?.is_some();
    let edits = model.edits()?;
    let adapter: Vec<LowRank> = edits.iter().map(Edit::to_low_rank).collect();
    let rounds = if effort == Effort::Short { 1 } else { 3 };
    let engine = std::cell::RefCell::new(engine);
    let spent = medians(
        rounds,
        &mut [
            &mut || Ok(engine.borrow_mut().apply(&adapter)?),
            &mut || Ok(few.kl(&mut *engine.borrow_mut()).map(|_| ())?),
            &mut || Ok(few.first_token_score(&mut *engine.borrow_mut()).map(|_| ())?),
            &mut || Ok(evaluator.evaluate(&mut *engine.borrow_mut()).map(drop)?),
            &mut || write_and_load(model, &edits),
        ],
    )?;
    let [harmful, harmless, borderline] = few.questions().by_kind().map(<[String]>::len);
    let looked_at = harmful + harmless.div_ceil(2) + borderline.div_ceil(2);
    let names = [
        "the edit as an adapter".into(),
        format!("KL on {harmless} harmless prompts, by their first tokens"),
        match opens {
            true => format!("first tokens of {looked_at} prompts"),
            false => "first tokens: not asked, since it opens no refusals".into(),
        },
        format!("a trial: whole answers to {n} prompts"),
        "the edit as a file: written and loaded".into(),
    ];
    let mut rows: Vec<Vec<String>> = names.into_iter().zip(&spent).map(|(name, s)| row(name, s)).collect();
    rows.insert(0, row(format!("the base's answers to {n} prompts, once"), &base));
    let text = format!(
        "{}, median of {rounds}. A candidate is looked at by first tokens, at a strength that two looks at KL find; only the best \
         of them are tried whole.",
        model.name()
    );
    table::print(&format!("Search: {}", model.name()), &text, &HEADER, &rows);
    Ok(())
}

fn row(name: String, spent: &Spent) -> Vec<String> {
    vec![name, format!("{:.3}", spent.wall), format!("{:.2}", spent.cpu)]
}

/// What a trial would take before its first token if it were a file.
fn write_and_load(model: &Model, edits: &[Edit]) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("trial.gguf");
    model.write(edits, Some(Requant::Preserve), &path)?;
    Model::open(path)?.engine().map(drop)
}
