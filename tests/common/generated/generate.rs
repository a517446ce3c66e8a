//! Generates a model file with random weights from a set of keys, adding keys until llama.cpp reports none missing.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use rosi_gguf::gguf::{GgmlType, GgufBuilder, Value};
use toml::Value as Toml;

use super::ffi::{Wanted, wanted_tensors};
use super::seeds::{Seeds, retyped};

/// Number of rounds after which the seed is considered wrong.
const MAX_ROUNDS: usize = 80;

/// Result of [`generate`].
pub struct Generated {
    /// Keys that llama.cpp asked for, with the values they were given.
    pub asked: Vec<String>,
    /// Names of the tensors in the file.
    pub tensors: Vec<String>,
}

/// Writes a random model for `run` to `path`. With `scales`, it includes the `.scale` tensors that few files have.
pub fn generate(seeds: &Seeds, run: &str, scales: bool, path: &Path) -> Result<Generated, String> {
    let mut seed = seeds.run[run].clone();
    if scales {
        seed.keep.push(".scale".into());
    }
    let mut keys = seeds.keys(run);
    let mut asked = Vec::new();
    let header = path.with_extension("header");
    for _ in 0..MAX_ROUNDS {
        let mut file = with_keys(&keys);
        for (name, ggml_type) in &seed.types {
            file = file.tensor(name, &[1], type_named(ggml_type), vec![0; 4]);
        }
        file.write_to(&mut File::create(&header).unwrap()).map_err(|e| e.to_string())?;
        match wanted_tensors(&header) {
            Ok(wanted) => {
                let tensors = write_model(&keys, &wanted, &seed, run, path)?;
                return Ok(Generated { asked, tensors });
            }
            Err(message) => asked.push(mend(seeds, &mut keys, &message)?),
        }
    }
    Err(format!("llama.cpp still asks for keys after {MAX_ROUNDS} rounds: {}", asked.join(", ")))
}

/// Adds or changes the key that `message` complains about.
fn mend(seeds: &Seeds, keys: &mut BTreeMap<String, Toml>, message: &str) -> Result<String, String> {
    let fail = || message.to_string();
    if let Some((_, rest)) = message.split_once("key not found in model: ") {
        let key = rest.split([';', ' ']).next().unwrap_or(rest);
        let value = seeds.guess(key).ok_or_else(fail)?.clone();
        let note = format!("{key} = {value}");
        return match keys.insert(key.to_string(), value) {
            None => Ok(note),
            Some(_) => Err(fail()),
        };
    }
    let (_, rest) = message.split_once("key ").ok_or_else(fail)?;
    let (key, rest) = rest.split_once(" has wrong type ").ok_or_else(fail)?;
    let (_, rest) = rest.split_once("expected type ").ok_or_else(fail)?;
    let wanted = rest.split([';', ' ']).next().unwrap_or(rest);
    let value = keys.get(key).and_then(|value| retyped(value, wanted)).ok_or_else(fail)?;
    keys.insert(key.to_string(), value);
    Ok(format!("{key}: {wanted}"))
}

fn with_keys(keys: &BTreeMap<String, Toml>) -> GgufBuilder {
    let mut file = GgufBuilder::new();
    for (key, value) in keys {
        file = match value {
            Toml::String(text) => file.string(key, text),
            Toml::Integer(n) => file.kv(key, Value::U32(*n as u32)),
            Toml::Float(x) => file.kv(key, Value::F32(*x as f32)),
            Toml::Boolean(b) => file.kv(key, Value::Bool(*b)),
            Toml::Array(items) => array(file, key, items),
            other => panic!("{key}: no GGUF type for {other}"),
        };
    }
    file
}

fn array(file: GgufBuilder, key: &str, items: &[Toml]) -> GgufBuilder {
    let floats: Vec<f32> = items.iter().filter_map(|v| v.as_float().map(|x| x as f32)).collect();
    let ints: Vec<i32> = items.iter().filter_map(|v| v.as_integer().map(|n| n as i32)).collect();
    let texts: Vec<&str> = items.iter().filter_map(Toml::as_str).collect();
    match items.len() {
        n if n == floats.len() && n > 0 => file.f32_array(key, &floats),
        n if n == texts.len() && n > 0 => file.string_array(key, &texts),
        n => {
            assert_eq!(n, ints.len(), "{key}: items of several types");
            file.i32_array(key, &ints)
        }
    }
}

fn type_named(name: &str) -> GgmlType {
    GgmlType::all().find(|one| one.name() == name).unwrap_or_else(|| panic!("no type {name}"))
}

/// Endings of tensors that most files lack: factors that the conversion writes only for some weight types.
const USUALLY_ABSENT: [&str; 3] = [".scale", ".input_scale", ".in_s"];

fn write_model(
    keys: &BTreeMap<String, Toml>,
    wanted: &[Wanted],
    seed: &super::seeds::Run,
    run: &str,
    path: &Path,
) -> Result<Vec<String>, String> {
    let ends = |name: &str, list: &[String]| list.iter().any(|end| name.ends_with(end.as_str()));
    let dropped = |name: &str| {
        let weight = name.strip_suffix(".scale").map(|stem| format!("{stem}.weight"));
        ends(name, &seed.drop) || weight.is_some_and(|weight| ends(&weight, &seed.drop))
    };
    let absent = |name: &str| USUALLY_ABSENT.iter().any(|end| name.ends_with(end)) && !ends(name, &seed.keep);
    let mut file = with_keys(keys);
    let mut names = Vec::new();
    for tensor in wanted.iter().filter(|t| !absent(&t.name) && !dropped(&t.name)) {
        let ggml_type = GgmlType::from_id(tensor.ggml_type).ok_or("unknown tensor type")?;
        let bytes = values(run, tensor, ggml_type)?;
        file = file.tensor(&tensor.name, &tensor.ne, ggml_type, bytes);
        names.push(tensor.name.clone());
    }
    file.write_to(&mut File::create(path).unwrap()).map_err(|e| e.to_string())?;
    Ok(names)
}

/// Returns random values of a typical magnitude: matrices ∝ 1/√n_in, gains and scales around 1, decays negative.
fn values(run: &str, tensor: &Wanted, ggml_type: GgmlType) -> Result<Vec<u8>, String> {
    let n: u64 = tensor.ne.iter().product();
    let seed = run
        .bytes()
        .chain(tensor.name.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut random = Random(seed);
    if ggml_type == GgmlType::I32 {
        return Ok((0..n).flat_map(|_| ((random.next() % 2) as i32).to_le_bytes()).collect());
    }
    if ggml_type != GgmlType::F32 {
        return Err(format!("{} has type {}", tensor.name, ggml_type.name()));
    }
    let name = tensor.name.as_str();
    let vector = tensor.ne.iter().skip(1).product::<u64>() == 1;
    let spread = 1.0 / (tensor.ne[0] as f32).sqrt();
    let one = |random: &mut Random| match () {
        () if name.ends_with("ssm_a") => -(0.5 + random.unit()),
        () if name.contains("norm") && name.ends_with("weight") => 1.0 + 0.2 * random.normal(),
        () if name.ends_with(".scale") => 0.5 + random.unit(),
        () if name.starts_with("token_embd") => random.normal(),
        () if vector => 0.1 * random.normal(),
        () => spread * random.normal(),
    };
    Ok((0..n).flat_map(|_| one(&mut random).to_le_bytes()).collect())
}

/// A SplitMix64 generator.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Returns an approximately standard normal number: the sum of twelve uniform ones, minus 6.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}
