//! What each method buys at the same KL, on prompts that chose nothing; and how much of it hangs on which
//! prompts it learned from. Prints Markdown tables; `scripts/bench methods` keeps them in docs/methods.md.
//!
//! ```text
//! cargo bench --bench methods -- [table] [seeds]      (both when none is named)
//! ```
//!
//! Edits are exact (adapters), so that methods are compared and not quantizers.

mod lab;
mod score;

use lab::{Lab, Learned, Recipe};
use rosi_gguf::llama::Engine;
use rosi_gguf::search::KlBudget;
use score::{Counts, Sets};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// KL on harmless prompts that every edit may spend, nats.
const MAX_KL: f64 = 0.05;
/// Layer of the directions, where `inject` finds it best on this model.
const LAYER: usize = 16;
/// Orders of the prompts.
const SEEDS: u64 = 10;
/// What is measured in each of them.
const IN_ORDERS: [Recipe; 3] = [RECIPES[0], RECIPES[1], Recipe::Published];

/// What is compared.
const RECIPES: [Recipe; 8] = [
    Recipe::Contrast { contrast: 1.0, refusal: true },
    Recipe::Contrast { contrast: 0.5, refusal: true },
    Recipe::Contrast { contrast: 1.0, refusal: false },
    Recipe::Contrast { contrast: 0.0, refusal: true },
    Recipe::Published,
    Recipe::PublishedSigned,
    Recipe::Random { gates: true },
    Recipe::Random { gates: false },
];

fn main() -> Result<(), Failure> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(unknown) = wanted.iter().find(|w| !["table", "seeds"].contains(&w.as_str())) {
        return Err(format!("unknown part {unknown:?}: expected table or seeds").into());
    }
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    let mut lab = Lab::open()?;
    if wants("table") {
        table(&mut lab)?;
    }
    if wants("seeds") {
        seeds(&mut lab)?;
    }
    Ok(())
}

/// The counts of one recipe at the KL budget.
fn measure(lab: &mut Lab, learned: &Learned, recipe: Recipe, sets: &Sets) -> Result<(f64, Counts), Failure> {
    let (engine, bench) = lab.parts();
    bench.edits(learned, recipe, 1.0)?; // what can fail does so at every strength
    let make = |strength: f64| bench.edits(learned, recipe, strength).unwrap_or_default();
    let budget = KlBudget { engine, examiner: &learned.examiner, max_kl: MAX_KL };
    let strength = budget.strength(&make, 0.04)?;
    engine.apply(&make(strength))?;
    let counts = Counts::of(engine, sets)?;
    eprintln!("{} at {:.3} %: {counts}", recipe.name(), 100.0 * strength);
    Ok((strength, counts))
}

fn table(lab: &mut Lab) -> Result<(), Failure> {
    let learned = lab.learn(0)?;
    let mut sets = Sets::of(&lab.questions(0).2, [64, 48, 48]);
    sets.add_outside()?;
    lab.engine().apply(&[])?;
    let base = Counts::of(lab.engine(), &sets)?;
    sets.set_base(lab.engine())?;
    println!("## Methods at the same KL\n");
    println!(
        "{}; directions of layer {LAYER}; each edit at the strength that spends at most {MAX_KL} nats on the \
         search split. Refused, of the number of prompts, with Wilson's 95 % interval. KL is that of the first \
         token on the harmless prompts of this table.\n",
        lab.name()
    );
    println!("| edit | strength | {} | broken | KL |", sets.names().join(" | "));
    println!("|---|--:|{}--:|--:|", "--:|".repeat(sets.names().len()));
    println!("| none | – | {} | – |", base.cells());
    for recipe in RECIPES {
        let (strength, counts) = measure(lab, &learned, recipe, &sets)?;
        println!("| {} | {:.2} % | {} | {:.3} |", recipe.name(), 100.0 * strength, counts.cells(), counts.kl);
    }
    println!();
    Ok(())
}

fn seeds(lab: &mut Lab) -> Result<(), Failure> {
    println!("## Ten orders of the prompts\n");
    println!(
        "Which prompts are learned from, searched on and reported on is drawn anew: eighths of each kind, four \
         to extract, two to search, two to report. Each edit at {MAX_KL} nats; change of the share refused against \
         the base on the same report prompts.\n",
    );
    println!("| order | edit | strength | harmful | harmless | alarming | broken | KL |");
    println!("|--:|---|--:|--:|--:|--:|--:|--:|");
    let mut changes = IN_ORDERS.map(|_| Vec::new());
    for seed in 1..=SEEDS {
        let learned = lab.learn(seed)?;
        let mut sets = Sets::of(&lab.questions(seed).2, [48, 32, 32]);
        lab.engine().apply(&[])?;
        let base = Counts::of(lab.engine(), &sets)?;
        sets.set_base(lab.engine())?;
        for (recipe, changes) in IN_ORDERS.into_iter().zip(&mut changes) {
            let (strength, counts) = measure(lab, &learned, recipe, &sets)?;
            let (name, strength) = (recipe.name(), 100.0 * strength);
            println!("| {seed} | {name} | {strength:.2} % | {} | {:.3} |", counts.changes(&base), counts.kl);
            changes.push([counts.rates_against(&base), vec![counts.kl]].concat());
        }
    }
    for (recipe, changes) in IN_ORDERS.into_iter().zip(&changes) {
        let cells: Vec<String> = (0..4).map(|column| mean_and_spread(changes, column)).collect();
        println!("| mean ± s.d. | {} | | {} | | {} |", recipe.name(), cells[..3].join(" | "), cells[3]);
    }
    println!();
    Ok(())
}

/// Of one column: mean and standard deviation.
fn mean_and_spread(rows: &[Vec<f64>], column: usize) -> String {
    let of: Vec<f64> = rows.iter().map(|row| row[column]).collect();
    let mean = of.iter().sum::<f64>() / of.len() as f64;
    let spread = (of.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (of.len() - 1).max(1) as f64).sqrt();
    format!("{mean:+.3} ± {spread:.3}")
}
