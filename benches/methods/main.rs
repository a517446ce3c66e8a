//! Compares the methods at equal KL on prompts that influenced no choice, and measures how much the results depend on
//! the training prompts. Prints Markdown tables; `scripts/bench methods` writes them to docs/methods.md.
//!
//! ```text
//! cargo bench --bench methods -- [table] [seeds] [N]      (default: both; N orders instead of ten)
//! ```
//!
//! Gates and directions are those of the pipeline that `inject` runs. Edits are exact (adapters), so that methods are
//! compared and not quantizers.

mod lab;
mod score;

use lab::{Draw, Lab, Learned, Recipe};
use rosi_gguf::eval::PerKind;
use rosi_gguf::llama::Engine;
use score::{Counts, Sets};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Default number of prompt orders.
const ORDERS: u64 = 10;
/// Recipes measured in each order.
const IN_ORDERS: [Recipe; 3] = [Recipe::Detector, Recipe::Contrast, Recipe::Published];

/// Recipes to compare; the first determines the KL of the others.
const RECIPES: [Recipe; 4] = [Recipe::Detector, Recipe::RandomDetector, Recipe::Contrast, Recipe::Published];

fn main() -> Result<(), Failure> {
    let mut wanted: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let orders = wanted.last().and_then(|last| last.parse().ok());
    if orders.is_some() {
        wanted.pop();
    }
    if let Some(unknown) = wanted.iter().find(|w| !["table", "seeds"].contains(&w.as_str())) {
        return Err(format!("unknown part {unknown:?}: expected table or seeds").into());
    }
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    let mut lab = Lab::open()?;
    if wants("table") {
        table(&mut lab)?;
    }
    if wants("seeds") {
        seeds(&mut lab, orders.unwrap_or(ORDERS))?;
    }
    Ok(())
}

/// One row of a table.
struct Row {
    strength: f64,
    counts: Counts,
    /// Mean first-token KL from the base, nats; see [`Draw::kl`].
    kl: f64,
}

/// Measures the recipes in order; calls `told` with the index and the results of each.
fn measure(
    lab: &mut Lab,
    draw: &Draw,
    recipes: &[Recipe],
    sets: &Sets,
    told: &mut dyn FnMut(usize, &Row),
) -> Result<(), Failure> {
    let mut kl = None;
    let mut last: Option<(&str, Learned)> = None;
    for (i, &recipe) in recipes.iter().enumerate() {
        lab.engine().apply(&[])?;
        let method = recipe.method();
        let learned = match last.take() {
            Some((own, learned)) if own == method => learned,
            _ => lab.learn(draw, method)?,
        };
        let budget = if method == "detector" { None } else { kl };
        let strength = lab.apply(draw, &learned, recipe, budget)?;
        last = Some((method, learned));
        let row = Row { strength, kl: draw.kl(lab.engine())?, counts: Counts::of(lab.engine(), sets)? };
        kl = kl.or(Some(row.kl));
        told(i, &row);
    }
    Ok(())
}

fn table(lab: &mut Lab) -> Result<(), Failure> {
    let draw = lab.draw(0)?;
    let mut sets = Sets::of(&draw.report(), PerKind { harmful: 64, harmless: 48, borderline: 48 });
    sets.add_outside()?;
    lab.engine().apply(&[])?;
    let base = Counts::of(lab.engine(), &sets)?;
    println!("## Methods at equal KL\n");
    println!(
        "{}; detectors with their defaults, the other methods at the strength that spends as much KL at the \
         first token of the harmless prompts of the report split, on which the first three columns are measured, \
         too. Strength is the push for detectors, and the relative change of the edited weights for the other \
         methods. Cells: refused prompts of all prompts, with the rate and Wilson's 95 % interval.\n",
        lab.name()
    );
    println!("| edit | strength | {} | broken | KL |", sets.names().join(" | "));
    println!("|---|--:|{}--:|--:|", "--:|".repeat(sets.names().len()));
    println!("| none | – | {} | – |", base.cells());
    measure(lab, &draw, &RECIPES, &sets, &mut |i, Row { strength, counts, kl }| {
        println!("| {} | {strength:.4} | {} | {kl:.4} |", RECIPES[i].name(), counts.cells());
    })?;
    println!();
    Ok(())
}

fn seeds(lab: &mut Lab, orders: u64) -> Result<(), Failure> {
    println!("## {orders} orders of the prompts\n");
    println!(
        "Each order reassigns the prompts: each kind is divided into eighths, four for extract, two for \
         search, two for report. Contrast and published spend the KL of the detectors on the same report \
         prompts. Cells: change in the refusal rate relative to the base on the same report prompts.\n",
    );
    println!("| order | edit | strength | harmful | harmless | borderline | broken | KL |");
    println!("|--:|---|--:|--:|--:|--:|--:|--:|");
    let mut changes = IN_ORDERS.map(|_| Vec::new());
    for seed in 1..=orders {
        let draw = lab.draw(seed)?;
        let sets = Sets::of(&draw.report(), PerKind { harmful: 48, harmless: 32, borderline: 32 });
        lab.engine().apply(&[])?;
        let base = Counts::of(lab.engine(), &sets)?;
        measure(lab, &draw, &IN_ORDERS, &sets, &mut |i, Row { strength, counts, kl }| {
            let name = IN_ORDERS[i].name();
            println!("| {seed} | {name} | {strength:.4} | {} | {kl:.4} |", counts.changes(&base));
            changes[i].push([counts.rates_against(&base), vec![*kl]].concat());
        })?;
    }
    for (recipe, changes) in IN_ORDERS.into_iter().zip(&changes) {
        print_mean(recipe.name(), changes);
    }
    let [detector, others @ ..] = &changes;
    for (recipe, others) in IN_ORDERS[1..].iter().zip(others) {
        let less = |(own, other): (&Vec<f64>, &Vec<f64>)| own.iter().zip(other).map(|(a, b)| a - b).collect();
        let differences: Vec<Vec<f64>> = detector.iter().zip(others).map(less).collect();
        print_mean(&format!("detector less {}", recipe.name()), &differences);
    }
    println!();
    Ok(())
}

fn print_mean(name: &str, rows: &[Vec<f64>]) {
    let cells: Vec<String> = (0..4).map(|column| mean_and_spread(rows, column)).collect();
    println!("| mean ± s.d. | {name} | | {} | | {} |", cells[..3].join(" | "), cells[3]);
}

/// Returns the mean and standard deviation of one column.
fn mean_and_spread(rows: &[Vec<f64>], column: usize) -> String {
    let of: Vec<f64> = rows.iter().map(|row| row[column]).collect();
    let mean = of.iter().sum::<f64>() / of.len() as f64;
    let spread = (of.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (of.len() - 1).max(1) as f64).sqrt();
    format!("{mean:+.3} ± {spread:.3}")
}
