//! The steps of a search trial, compared with writing a file for each trial.

use rosi_gguf::eval::prompts::{PromptSet, Split};
use rosi_gguf::eval::{Evaluator, FEW, PerKind, Questions};
use rosi_gguf::llama::{Engine, LowRank};
use rosi_gguf::method::edit::Edit;
use rosi_gguf::method::requant::Requant;

use crate::clock::{Spent, medians, time};
use crate::model::Model;
use crate::{Effort, Failure, table};

const HEADER: [&str; 3] = ["work", "wall, s", "CPU, s"];
/// Numbers of prompts of a trial.
const TRIAL: PerKind<usize> = PerKind::uniform(96);

/// Prints the tables.
pub fn run(effort: Effort) -> Result<(), Failure> {
    effort.models().iter().try_for_each(|name| measure(&Model::named(name)?, effort))
}

fn measure(model: &Model, effort: Effort) -> Result<(), Failure> {
    let mut engine = model.engine()?;
    let limits = if effort == Effort::Short { PerKind::uniform(4) } else { TRIAL };
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
    let PerKind { harmful, harmless, borderline } = few.questions().as_ref().map(Vec::len);
    let looked_at = harmful + harmless.div_ceil(2) + borderline.div_ceil(2);
    let names = [
        "apply the edit as an adapter".into(),
        format!("KL of the first token on {harmless} harmless prompts"),
        match opens {
            true => format!("first tokens of {looked_at} prompts"),
            false => "first tokens: skipped, since the model has no refusal openings".into(),
        },
        format!("trial: whole answers to {n} prompts"),
        "write and load the edit as a file".into(),
    ];
    let mut rows: Vec<Vec<String>> = names.into_iter().zip(&spent).map(|(name, s)| row(name, s)).collect();
    rows.insert(0, row(format!("answers of the base to {n} prompts, once per search"), &base));
    let text = format!(
        "{}, median of {rounds}. Candidates are compared by first tokens, at a strength found with two KL \
         measurements; only the best ones get a trial.",
        model.name()
    );
    table::print(&format!("Search: {}", model.name()), &text, &HEADER, &rows);
    Ok(())
}

fn row(name: String, spent: &Spent) -> Vec<String> {
    vec![name, format!("{:.3}", spent.wall), format!("{:.2}", spent.cpu)]
}

/// Writes and loads the edit as a file: the cost of a file-based trial before its first token.
fn write_and_load(model: &Model, edits: &[Edit]) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("trial.gguf");
    model.write(edits, Some(Requant::Preserve), &path)?;
    Model::open(path)?.engine().map(drop)
}
