//! How well, and how fast, an edit gets into quantized bytes, on tensors of real models. Prints
//! Markdown tables; `scripts/bench requant` fetches the models and keeps the tables in docs/requant.md.
//!
//! ```text
//! cargo bench --bench requant -- [synthetic] [speed] [functional]      (all when none is named)
//! ```

mod cases;
mod functional;
mod speed;
mod synthetic;
mod table;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What it is called on the command line, and what prints its tables.
type Part = (&'static str, fn() -> Result<(), Failure>);

/// The parts, in the order in which they are printed.
const PARTS: [Part; 3] =
    [("synthetic", synthetic::run), ("speed", speed::run), ("functional", functional::run)];

fn main() -> Result<(), Failure> {
    // cargo itself adds `--bench`.
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
