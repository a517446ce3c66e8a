//! Stored edits: saved to a file after a search, and applied to any quantization of the model.

use std::path::Path;

use crate::gguf::sha256_hex;
use crate::llama::llama_version;
use crate::method::detector::ffn::Network;
use crate::method::direction::{Directions, SafetyDirection};
use crate::method::edit::{self, Method};
use crate::method::requant::Requant;
use crate::method::search::SearchResult;
use crate::method::search::journal::Journal;
use crate::method::stored::fingerprint::{Difference, Fingerprint, Shape};
use crate::method::stored::network::{GateFacts, NetworkFacts, StoredNetwork};
use crate::method::stored::{FORMAT, Facts, Problem, StoredEdit, StoredError};
use crate::output::Printer;
use crate::pipeline::detectors::{Detectors, Site};
use crate::pipeline::direction_sources::DirectionSources;
use crate::pipeline::edit_search::{Chosen, EditSearch, Found};
use crate::pipeline::error::Error;
use crate::pipeline::facts::edit_facts;
use crate::pipeline::features::Features;
use crate::pipeline::session::{self, Opened, Session};
use crate::report::FileFacts;

/// Runs the search and returns the chosen edit in its stored form, with the search result.
///
/// # Errors
/// Returns [`Error`] if the model cannot be run or the search finds no edit.
pub fn search(
    session: Session<'_>,
    input: &FileFacts,
    journal: &mut Journal,
) -> Result<(StoredEdit, SearchResult), Error> {
    let Session { opened, prompts, options, printer } = session;
    let mut engine = session::load(&opened.gguf, Some(opened.template()?), &options.run, printer)?;
    session::check_all(&engine, prompts, options, printer)?;
    let edit_search = EditSearch::new(session, &mut engine, journal)?;
    drop(engine);
    let edits = edit_search.edits(opened, Requant::Preserve)?;
    let chosen = edit_search.chosen.candidate;
    let directions = edit_search.along().distinct(chosen.layer);
    let (writers, networks) = match &edit_search.found {
        Found::Linear(features) => (features.stored_writers(&opened.plan, edits.linear()), Vec::new()),
        Found::Detectors(detectors) => (Vec::new(), detectors.stored(opened)),
    };
    let facts = Facts {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        llama_cpp: llama_version(),
        method: edit_search.method,
        system_prompt: edit_search.system_prompt,
        chosen,
        strength: edit_search.chosen.strength,
        norms: directions.iter().map(SafetyDirection::norm).collect(),
        push: edit_facts(&edit_search, &edits).push,
        prompts_sha256: prompts.sha256(),
        input_sha256: input.sha256.clone(),
        separation: edit_search.direction_sources.separation(chosen.direction_source).to_vec(),
        networks: networks.iter().map(|network| network.facts.clone()).collect(),
        model: Fingerprint::of(&opened.gguf, &opened.plan)?,
    };
    Ok((StoredEdit { facts, directions, writers, networks }, edit_search.search))
}

/// A stored edit that fits the opened model, and its file.
pub struct Taken {
    /// The edit.
    pub edit: StoredEdit,
    /// Path, SHA-256 and size of the file.
    pub file: FileFacts,
}

/// Creates the error for `problem` with the file at `path`.
pub fn at(path: &Path, problem: Problem) -> StoredError {
    StoredError { path: path.to_path_buf(), problem }
}

/// Opens the edit given by `--edit` and checks that it fits this model.
///
/// # Errors
/// Returns [`Error::Stored`] if the file is damaged, the edit is for a model of another shape, or, without
/// `allow_other_weights`, for a model with other weights.
pub fn take(
    path: &Path,
    opened: &Opened,
    allow_other_weights: bool,
    printer: &Printer,
) -> Result<Taken, Error> {
    let (edit, bytes) = StoredEdit::open(path)?;
    let model = &edit.facts.model;
    if let Some(difference) = model.shape.difference(&Shape::of(&opened.plan)) {
        return Err(at(path, Problem::Shape(difference)).into());
    }
    let _bar = printer.bar("comparing the weights", 1);
    if let Some(difference) = model.difference(&Fingerprint::of(&opened.gguf, &opened.plan)?) {
        let error = at(path, Problem::Weights(difference));
        if !allow_other_weights {
            return Err(error.into());
        }
        printer.warn(format!("{error}; applying it anyway"));
    }
    let facts = &edit.facts;
    printer.say(format!(
        "stored {} edit along {}, found at {}",
        facts.method.name(),
        facts.along(),
        facts.size()
    ));
    let file =
        FileFacts { path: path.display().to_string(), sha256: sha256_hex(&bytes), bytes: bytes.len() as u64 };
    Ok(Taken { edit, file })
}

/// Builds the equivalent of a search result from a stored edit, at the stored or the user's strength, and with an
/// importance matrix if given.
///
/// # Errors
/// Returns [`Error`] if the weights or the importance matrix cannot be read, or the model lacks a stored network.
pub fn edit_search(
    taken: &Taken,
    opened: &Opened,
    imatrix: Option<&Path>,
    strength: Option<f64>,
    printer: &Printer,
) -> Result<EditSearch, Error> {
    let facts = &taken.edit.facts;
    let directions =
        Directions { by_layer: taken.edit.directions.clone(), separation: facts.separation.clone() };
    let found = match facts.method {
        Method::Detector => Found::Detectors(Detectors::from_stored(opened, taken)?),
        Method::Contrast | Method::Published => {
            let mut features = Features::from_stored(opened, &taken.edit, printer)?;
            if let Some(path) = imatrix {
                features.mix(path, &opened.plan, printer)?;
            }
            Found::Linear(features)
        }
    };
    Ok(EditSearch {
        method: facts.method,
        found,
        direction_sources: DirectionSources::stored(
            facts.chosen.direction_source,
            facts.method == Method::Detector,
            directions,
        ),
        ablated: None, // not searched for
        search: SearchResult::default(),
        chosen: Chosen { candidate: facts.chosen, strength: strength.unwrap_or(facts.strength) },
        system_prompt: facts.system_prompt,
    })
}

impl Detectors {
    /// Returns the stored form of the networks.
    fn stored(&self, opened: &Opened) -> Vec<StoredNetwork> {
        let stored = |site: &Site| {
            let network = &site.network;
            let gate = |gate: &crate::method::detector::Gate| GateFacts {
                opens: gate.opens,
                bias: gate.score.bias,
                threshold: gate.threshold,
                width: gate.width,
            };
            StoredNetwork {
                facts: NetworkFacts {
                    writer: opened.plan.writers[network.ffn.writer].tensor.clone(),
                    layer: network.ffn.layer,
                    activation: network.activation,
                    gate_second: network.gate_second,
                    before_last: site.before_last,
                    slots: site.slots.clone(),
                    per_unit: site.per_unit,
                    gates: site.gates.iter().map(gate).collect(),
                },
                scores: site.gates.iter().map(|gate| gate.score.weights.clone()).collect(),
                constant: site.constant.clone(),
                direction: site.direction.clone(),
                inputs: site.inputs.clone(),
            }
        };
        self.sites.iter().map(stored).collect()
    }

    /// Restores detectors from a stored edit for the opened model.
    fn from_stored(opened: &Opened, taken: &Taken) -> Result<Self, Error> {
        let (edit, mut sites) = (&taken.edit, Vec::new());
        for stored in &edit.networks {
            let NetworkFacts { writer, activation, gate_second, slots, layer, .. } = &stored.facts;
            let ffn = opened.plan.ffns.iter().find(|f| opened.plan.writers[f.writer].tensor == *writer);
            let Some(known) = ffn.filter(|ffn| ffn.layer == *layer) else {
                let network = Difference {
                    what: format!("feed-forward network with {writer}"),
                    expected: format!("in block {layer}"),
                    found: ffn.map_or_else(|| "none".into(), |ffn| format!("in block {}", ffn.layer)),
                };
                return Err(at(Path::new(&taken.file.path), Problem::Shape(network)).into());
            };
            sites.push(Site {
                network: Network::known(&opened.gguf, known, *activation, *gate_second)?,
                before_last: stored.facts.before_last,
                slots: slots.clone(),
                constant: stored.constant.clone(),
                gates: stored.gates(),
                profiles: Vec::new(),
                per_unit: stored.facts.per_unit,
                post_norm: edit::read_gains(&opened.gguf, &opened.plan.writers[known.writer])?,
                direction: stored.direction.clone(),
                inputs: stored.inputs.clone(),
            });
        }
        Ok(Self { sites, push: edit.facts.strength })
    }
}
