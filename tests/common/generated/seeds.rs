//! `seeds.toml`: the keys of each architecture that llama.cpp cannot be asked for.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Table, Value};

/// The contents of `seeds.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seeds {
    /// Keys of all models.
    pub core: Table,
    /// Values for the keys that llama.cpp asks for, by the ending of the key.
    pub guess: Table,
    /// Named sets of keys shared by several runs.
    pub preset: BTreeMap<String, Table>,
    /// One model per run. The name is the architecture, followed by `+something` if the architecture has several runs.
    pub run: BTreeMap<String, Run>,
}

/// One model.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Names of the presets to apply, in order.
    pub with: Vec<String>,
    /// Keys of this run; they override those of the presets.
    pub keys: Table,
    /// Types of the tensors that are not F32, by name.
    pub types: BTreeMap<String, String>,
    /// Endings of the names of tensors to omit.
    pub drop: Vec<String>,
    /// Endings of the names of tensors to keep although other runs omit them.
    pub keep: Vec<String>,
    /// Why no model of this run can be generated or run here.
    pub skip: Option<String>,
}

impl Seeds {
    /// Loads the table from the repository, or from the file named by `ROSI_PROOF_SEEDS` for experiments.
    pub fn load() -> Self {
        let own = std::env::var_os("ROSI_PROOF_SEEDS").map(|path| std::fs::read_to_string(path).unwrap());
        toml::from_str(own.as_deref().unwrap_or(include_str!("seeds.toml"))).unwrap()
    }

    /// Returns all keys of the run `name`, under their full names.
    pub fn keys(&self, name: &str) -> BTreeMap<String, Value> {
        let (arch, run) = (architecture(name), &self.run[name]);
        let mut keys = BTreeMap::new();
        let presets = run.with.iter().map(|preset| &self.preset[preset]);
        for table in std::iter::once(&self.core).chain(presets).chain([&run.keys]) {
            keys.extend(table.iter().map(|(key, value)| (full_key(arch, key), value.clone())));
        }
        keys.insert("general.architecture".into(), Value::String(arch.into()));
        keys
    }

    /// Returns the value for a key that llama.cpp asked for: that of the longest matching ending.
    pub fn guess(&self, key: &str) -> Option<&Value> {
        let fits = |(end, _): &(&String, &Value)| key.ends_with(end.as_str());
        self.guess.iter().filter(fits).max_by_key(|(end, _)| end.len()).map(|(_, value)| value)
    }
}

/// Returns the architecture of a run: its name up to the `+`.
pub fn architecture(run: &str) -> &str {
    run.split('+').next().unwrap_or(run)
}

fn full_key(arch: &str, key: &str) -> String {
    let whole = ["tokenizer.", "general.", "xielu."].iter().any(|start| key.starts_with(start));
    if whole { key.to_string() } else { format!("{arch}.{key}") }
}

/// Converts `value` to the GGUF type `wanted` (ggml's name); `None` if that is not possible.
pub fn retyped(value: &Value, wanted: &str) -> Option<Value> {
    let number = match value {
        Value::Integer(n) => *n as f64,
        Value::Float(x) => *x,
        Value::Boolean(b) => f64::from(*b),
        _ => return None,
    };
    Some(match wanted {
        "f32" => Value::Float(number),
        "bool" => Value::Boolean(number != 0.0),
        "u32" | "i32" => Value::Integer(number as i64),
        _ => return None,
    })
}
