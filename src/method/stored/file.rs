//! Conversion between [`StoredEdit`] and safetensors files.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::fingerprint::{BINS, WriterShape};
use super::network::StoredNetwork;
use super::{FORMAT, Facts, Problem, StoredEdit, StoredError, StoredWriter};
use crate::arch::window::Window;
use crate::method::direction::SafetyDirection;
use crate::method::edit::{MAX_CONTRAST, Method};
use crate::method::search::DirectionSource;
use crate::quant::preserve::InputModel;
use crate::util::bounded;

/// Metadata key of the facts.
const KEY: &str = "rosi";
/// Maximum file size; no model needs as much (405 billion weights: 0.3 GB).
const MAX_BYTES: u64 = 1 << 30;
/// Maximum number of principal components of a writer's inputs; fewer are ever kept.
const MAX_PRINCIPAL: usize = 64;
/// Maximum magnitude; larger values would overflow in llama.cpp.
const MAX_VALUE: f32 = 1e12;
/// Minimum length of a right factor; a shorter one has no effect, or would be scaled up to the strength.
const MIN_NORM: f64 = 1e-12;

type Result<T> = std::result::Result<T, Problem>;

impl StoredEdit {
    /// Reads and checks the file at `path`, and returns the edit and the bytes of the file.
    ///
    /// # Errors
    /// Returns [`StoredError`] if the file cannot be read or is invalid.
    pub fn open(path: &Path) -> std::result::Result<(Self, Vec<u8>), StoredError> {
        let open = || {
            let bytes = read(path)?;
            Ok((Self::from_bytes(&bytes)?, bytes))
        };
        open().map_err(|problem| StoredError { path: path.to_path_buf(), problem })
    }

    /// Returns the bytes of the edit file; equal edits give equal bytes.
    ///
    /// # Errors
    /// Returns [`Problem::Format`] if the edit cannot be serialized.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let format = |error: &dyn std::fmt::Display| Problem::Format { reason: error.to_string() };
        let facts = serde_json::to_string(&self.facts).map_err(|error| format(&error))?;
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = self.tensors().into_iter().map(raw).collect();
        let view = |(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape, bytes)?));
        let views = tensors.iter().map(|(name, shape, bytes)| view((name, shape.clone(), bytes)));
        let views = views.collect::<std::result::Result<Vec<_>, _>>();
        let views = views.map_err(|error: safetensors::SafeTensorError| format(&error))?;
        let metadata = HashMap::from([(KEY.to_owned(), facts)]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| format(&error))
    }

    /// Returns all nonempty arrays.
    fn tensors(&self) -> Vec<Array> {
        let mut arrays = vec![self.direction_array()];
        for StoredWriter { tensor, right, mean, inputs } in &self.writers {
            let n_in = self.writer_shape(tensor).map_or(right.len(), |shape| shape.n_in as usize);
            let of = |name: &str, values: Vec<f32>| {
                let shape = vec![values.len() / n_in.max(1), n_in];
                Array { name: format!("{name}.{tensor}"), shape, values }
            };
            arrays.push(of("right", right.clone()));
            arrays.push(match mean.len() == n_in {
                true => Array::row(format!("mean.{tensor}"), mean),
                false => of("mean", mean.clone()),
            });
            arrays.push(Array::row(format!("diagonal.{tensor}"), &inputs.diagonal));
            arrays.push(of("principal", inputs.principal.concat()));
        }
        arrays.extend(self.networks.iter().flat_map(StoredNetwork::arrays));
        let sketches = self.facts.model.sketches.iter();
        arrays.extend(sketches.map(|s| Array::row(format!("sketch.{}", s.tensor), &s.values)));
        arrays.retain(|array| !array.values.is_empty());
        arrays
    }

    fn direction_array(&self) -> Array {
        let name = "direction".into();
        match self.directions.as_slice() {
            [one] => Array::row(name, one.unit()),
            all => Array {
                name,
                shape: vec![all.len(), all.first().map_or(0, |d| d.unit().len())],
                values: all.iter().flat_map(|d| d.unit()).copied().collect(),
            },
        }
    }

    fn writer_shape(&self, tensor: &str) -> Option<&WriterShape> {
        self.facts.model.shape.writers.iter().find(|w| w.tensor == tensor)
    }

    /// Parses and checks the bytes of an edit file.
    ///
    /// # Errors
    /// Returns [`Problem`] if the bytes are not a valid edit file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let format = |error: &dyn std::fmt::Display| Problem::Format { reason: error.to_string() };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| format(&error))?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| format(&error))?;
        let text = header.metadata().as_ref().and_then(|map| map.get(KEY));
        let text = text.ok_or_else(|| format(&"its metadata has no key \"rosi\""))?;
        check_format(text)?;
        let mut facts: Facts = serde_json::from_str(text).map_err(|error| format(&error))?;
        check_facts(&facts)?;
        let arrays = Arrays(file);
        for sketch in &mut facts.model.sketches {
            sketch.values = arrays.exactly(&format!("sketch.{}", sketch.tensor), &[BINS])?;
        }
        let directions = arrays.directions(&facts)?;
        let mut writers = Vec::new();
        for shape in &facts.model.shape.writers {
            writers.extend(arrays.writer(shape)?);
        }
        let networks = facts.networks.iter().map(|network| StoredNetwork::read(&arrays, &facts, network));
        let networks = networks.collect::<Result<Vec<_>>>()?;
        arrays.check_names(&facts)?;
        let (what, empty) = match facts.method {
            Method::Detector => ("networks", networks.is_empty()),
            Method::Contrast | Method::Published => ("right factors", writers.is_empty()),
        };
        if empty {
            return Err(Problem::content(what, "at least one", "none"));
        }
        Ok(Self { facts, directions, writers, networks })
    }
}

/// Reads a file of at most [`MAX_BYTES`].
fn read(path: &Path) -> Result<Vec<u8>> {
    bounded::read(path, MAX_BYTES).map_err(Problem::Io)?.ok_or(Problem::TooLarge { most: MAX_BYTES })
}

/// One array of the file, in f32, row-major.
pub(super) struct Array {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Array {
    pub(super) fn row(name: String, values: &[f32]) -> Self {
        Self { name, shape: vec![values.len()], values: values.to_vec() }
    }
}

fn raw(array: Array) -> (String, Vec<usize>, Vec<u8>) {
    (array.name, array.shape, array.values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Rejects files of another format before their facts are parsed.
fn check_format(text: &str) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Format {
        format: u64,
    }
    let found: Format =
        serde_json::from_str(text).map_err(|error| Problem::Format { reason: error.to_string() })?;
    match found.format {
        found if found == u64::from(FORMAT) => Ok(()),
        found => Err(Problem::Version { found }),
    }
}

/// Checks the numbers and names in the facts.
fn check_facts(facts: &Facts) -> Result<()> {
    let (chosen, shape) = (&facts.chosen, &facts.model.shape);
    let Window { from, until } = chosen.window;
    let most = facts.method.max_strength();
    let checks = [
        (
            facts.strength > 0.0 && facts.strength <= most,
            ("strength", format!("a number above 0 and up to {most}"), facts.strength.to_string()),
        ),
        (
            chosen.layer < shape.n_layer,
            ("layer", format!("0 to {}", shape.n_layer.saturating_sub(1)), chosen.layer.to_string()),
        ),
        (
            (0.0..until).contains(&from) && until <= 1.0,
            ("window", "ascending shares of the depth, 0 to 1".into(), format!("{from} to {until}")),
        ),
        (
            (0.0..=MAX_CONTRAST).contains(&chosen.contrast),
            ("contrast", format!("0 to {MAX_CONTRAST}"), chosen.contrast.to_string()),
        ),
    ];
    match checks.into_iter().find(|(right, _)| !right) {
        Some((_, (what, expected, found))) => Err(Problem::content(what, expected, found)),
        None => Ok(()),
    }
}

/// The arrays of a file.
pub(super) struct Arrays<'a>(SafeTensors<'a>);

impl Arrays<'_> {
    /// Returns an array with its shape, or `None` if there is no array of this name.
    fn get(&self, name: &str) -> Result<Option<Array>> {
        let Ok(view) = self.0.tensor(name) else { return Ok(None) };
        if view.dtype() != Dtype::F32 {
            return Err(Problem::content(name, "F32", format!("{:?}", view.dtype())));
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let values: Vec<f32> = values.collect();
        if let Some(value) = values.iter().find(|v| !(-MAX_VALUE..=MAX_VALUE).contains(v)) {
            return Err(Problem::content(name, format!("magnitudes up to {MAX_VALUE:e}"), value));
        }
        Ok(Some(Array { name: name.into(), shape: view.shape().to_vec(), values }))
    }

    /// Like [`Self::get`], but the array must have this shape.
    pub(super) fn maybe(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        match self.get(name)? {
            Some(array) if array.shape != shape => {
                Err(Problem::content(name, format!("{shape:?}"), format!("{:?}", array.shape)))
            }
            array => Ok(array.map(|array| array.values)),
        }
    }

    /// Like [`Self::maybe`], but the array must exist.
    pub(super) fn exactly(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = self.maybe(name, shape)?;
        found.ok_or_else(|| Problem::content(name, format!("an array of shape {shape:?}"), "none"))
    }

    /// Returns ŝ of the chosen layer if there is one norm; else, for an ablated direction or detectors, ŝ of every
    /// layer.
    fn directions(&self, facts: &Facts) -> Result<Vec<SafetyDirection>> {
        let (n_layer, n_embd) = (facts.model.shape.n_layer, facts.model.shape.n_embd as usize);
        if let [norm] = facts.norms[..] {
            let unit = self.exactly("direction", &[n_embd])?;
            return Ok(vec![SafetyDirection::from_unit(facts.chosen.layer, unit, norm)?]);
        }
        let own =
            facts.chosen.direction_source == DirectionSource::Ablated || facts.method == Method::Detector;
        if !own || facts.norms.len() != n_layer {
            let expected = format!("1 (or {n_layer} for an ablated direction or detectors)");
            return Err(Problem::content("number of norms", expected, facts.norms.len()));
        }
        let units = self.exactly("direction", &[n_layer, n_embd])?;
        let units = units.chunks_exact(n_embd.max(1)).zip(&facts.norms).enumerate();
        let direction = |(layer, (unit, &norm)): (usize, (&[f32], &f64))| {
            Ok(SafetyDirection::from_unit(layer, unit.to_vec(), norm)?)
        };
        units.map(direction).collect()
    }

    /// Reads the arrays of one writer; `None` if the edit does not use it.
    fn writer(&self, shape: &WriterShape) -> Result<Option<StoredWriter>> {
        let tensor = &shape.tensor;
        let (n_in, n_expert) = (shape.n_in as usize, shape.n_expert as usize);
        let name = |kind: &str| format!("{kind}.{tensor}");
        let Some(right) = self.maybe(&name("right"), &[n_expert, n_in])? else { return Ok(None) };
        let norm = right.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if norm < MIN_NORM {
            return Err(Problem::content(name("right"), format!("a length of at least {MIN_NORM:e}"), norm));
        }
        let mean = match n_expert {
            1 => self.exactly(&name("mean"), &[n_in])?,
            _ => self.maybe(&name("mean"), &[n_expert, n_in])?.unwrap_or_default(),
        };
        let diagonal = self.maybe(&name("diagonal"), &[n_in])?.unwrap_or_default();
        if let Some(value) = diagonal.iter().find(|&&d| d < 0.0) {
            return Err(Problem::content(name("diagonal"), "no negative numbers", value));
        }
        let principal = self.principal(&name("principal"), n_in)?;
        let tensor = tensor.clone();
        Ok(Some(StoredWriter { tensor, right, mean, inputs: InputModel { diagonal, principal } }))
    }

    fn principal(&self, name: &str, n_in: usize) -> Result<Vec<Vec<f32>>> {
        let rows = self.rows(name, n_in, MAX_PRINCIPAL)?;
        Ok(rows.chunks_exact(n_in.max(1)).map(<[f32]>::to_vec).collect())
    }

    /// Returns the values of an array of 1 to `most` rows of `width` values; empty if there is no such array.
    pub(super) fn rows(&self, name: &str, width: usize, most: usize) -> Result<Vec<f32>> {
        let Some(array) = self.get(name)? else { return Ok(Vec::new()) };
        match array.shape[..] {
            [k, found] if (1..=most).contains(&k) && found == width && width > 0 => Ok(array.values),
            _ => {
                let expected = format!("[1 to {most}, {width}]");
                Err(Problem::content(name, expected, format!("{:?}", array.shape)))
            }
        }
    }

    /// Rejects arrays of tensors that are not writers in the file's model shape.
    fn check_names(&self, facts: &Facts) -> Result<()> {
        let writers: std::collections::HashSet<&str> =
            facts.model.shape.writers.iter().map(|w| w.tensor.as_str()).collect();
        let unknown = |name: &&str| match name.split_once('.') {
            Some((_, tensor)) => !writers.contains(tensor),
            None => *name != "direction",
        };
        match self.0.names().into_iter().filter(unknown).min() {
            Some(name) => Err(Problem::content("arrays", "names of the model's writers", name)),
            None => Ok(()),
        }
    }
}
