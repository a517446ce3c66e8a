//! Measures how accurately and how fast edits are applied to quantized tensors of real models. Prints Markdown tables;
//! `scripts/bench requant` fetches the models and writes the tables to docs/requant.md.
//!
//! ```text
//! cargo bench --bench requant -- [synthetic] [speed] [functional]      (default: all)
//! ```

mod cases;
mod functional;
mod speed;
mod synthetic;
mod table;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Name of a part on the command line, and the function that prints its tables.
type Part = (&'static str, fn() -> Result<(), Failure>);

/// The parts, in output order.
const PARTS: [Part; 3] =
    [("synthetic", synthetic::run), ("speed", speed::run), ("functional", functional::run)];

fn main() -> Result<(), Failure> {
    // Cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(unknown) = wanted.iter().find(|w| PARTS.iter().all(|(name, _)| name != w)) {
        let known: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        return Err(format!("unknown part {unknown:?}: expected one of {}", known.join(", ")).into());
    }
    for (name, run) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            run()?;
        }
    }
    Ok(())
}
