//! What llama.cpp cannot tell by itself about the keys of an architecture: `seeds.toml`.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Table, Value};

/// The whole table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seeds {
    /// Keys of every model.
    pub core: Table,
    /// Values of the keys that llama.cpp asks for, by the end of their names.
    pub guess: Table,
    /// Sets of keys that several runs share.
    pub preset: BTreeMap<String, Table>,
    /// One model each; the name is the architecture, with `+something` where it has several.
    pub run: BTreeMap<String, Run>,
}

/// One model.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Presets, in order.
    pub with: Vec<String>,
    /// Keys, after those of the presets.
    pub keys: Table,
    /// Types of tensors that are not F32.
    pub types: BTreeMap<String, String>,
    /// Tensors that are left out: those whose name ends so.
    pub drop: Vec<String>,
    /// Tensors that are kept although every other run leaves them out.
    pub keep: Vec<String>,
    /// Why no model can be made or run here.
    pub skip: Option<String>,
}

impl Seeds {
    /// The table in the repository; a file named by `ROSI_PROOF_SEEDS` instead, to try things out.
    pub fn load() -> Self {
        let own = std::env::var_os("ROSI_PROOF_SEEDS").map(|path| std::fs::read_to_string(path).unwrap());
        toml::from_str(own.as_deref().unwrap_or(include_str!("seeds.toml"))).unwrap()
    }

    /// All keys of run `name`, with their full names.
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

    /// What to give a key that llama.cpp asked for.
    pub fn guess(&self, key: &str) -> Option<&Value> {
        let fits = |(end, _): &(&String, &Value)| key.ends_with(end.as_str());
        self.guess.iter().filter(fits).max_by_key(|(end, _)| end.len()).map(|(_, value)| value)
    }
}

/// The architecture of a run.
pub fn architecture(run: &str) -> &str {
    run.split('+').next().unwrap_or(run)
}

fn full_key(arch: &str, key: &str) -> String {
    let whole = ["tokenizer.", "general.", "xielu."].iter().any(|start| key.starts_with(start));
    if whole { key.to_string() } else { format!("{arch}.{key}") }
}

/// `value` as GGUF type `wanted` (ggml's name), where it can be.
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
