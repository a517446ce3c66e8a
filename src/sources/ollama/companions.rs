//! Reads a model's settings: template, system prompt, parameters, licenses, example messages.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::manifest::{Blob, Layer, Manifest};
use super::{Name, OllamaError};

/// Everything in a model besides its weights that an edited copy keeps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Companions {
    /// Chat template, in the language of Go's `text/template`.
    pub template: Option<String>,
    /// The system prompt.
    pub system: Option<String>,
    /// Parameters: numbers, booleans, strings, or lists of them.
    pub parameters: Map<String, Value>,
    /// Full texts of the licenses.
    pub licenses: Vec<String>,
    /// Messages that every conversation begins with.
    pub messages: Vec<Message>,
    /// Vision encoders (mmproj), in the store.
    pub projectors: Vec<Blob>,
    /// Name of the built-in renderer that Ollama uses instead of a template.
    pub renderer: Option<String>,
    /// Name of Ollama's built-in parser of answers.
    pub parser: Option<String>,
    /// Minimum version of Ollama.
    pub requires: Option<String>,
    /// Types of unknown layers, which are not copied.
    pub unknown: Vec<String>,
}

/// One message of an example conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text of the message.
    #[serde(default)]
    pub content: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    model_format: String,
    remote_host: String,
    remote_model: String,
    renderer: String,
    parser: String,
    requires: String,
}

/// The layer of the weights, and the other data of the model.
pub(super) struct Found {
    /// The layer of the GGUF file.
    pub model: Layer,
    /// The contents of the other layers.
    pub companions: Companions,
}

/// Reads every layer except the weights.
pub(super) fn read(manifest: &Manifest, name: &Name) -> Result<Found, OllamaError> {
    let mut companions = Companions::default();
    let mut model: Option<Layer> = None;
    read_config(manifest, name, &mut companions)?;
    for layer in &manifest.layers {
        let kind = layer.media_type.strip_prefix("application/vnd.ollama.image.").unwrap_or("");
        match kind {
            "model" if model.is_none() => model = Some(layer.clone()),
            "model" => {
                return Err(unsupported(manifest, name, "has its weights in more than one file", None));
            }
            "adapter" => {
                let hint = "merge the adapter into the weights first, or use the model that it was made for";
                let reason = "has an adapter, which an edit of the weights alone would ignore";
                return Err(unsupported(manifest, name, reason, Some(hint)));
            }
            "tensor" | "json" => return Err(unsupported(manifest, name, NO_GGUF, Some(NO_GGUF_HINT))),
            // Embeddings stored by versions before 0.1.3; Ollama itself ignores them.
            "embed" => {}
            "projector" => companions.projectors.push(manifest.blob(layer)?),
            "template" | "prompt" => companions.template = Some(manifest.text(layer)?),
            "system" => companions.system = Some(manifest.text(layer)?),
            "license" => companions.licenses.push(manifest.text(layer)?),
            "params" => companions.parameters = parameters(manifest, layer)?,
            "messages" => companions.messages = messages(manifest, layer)?,
            _ => companions.unknown.push(layer.media_type.chars().take(100).collect()),
        }
    }
    match model {
        Some(model) => Ok(Found { model, companions }),
        None => Err(manifest.bad("layers", "expected type application/vnd.ollama.image.model, found none")),
    }
}

const NO_GGUF: &str = "does not have its weights in GGUF format";
const NO_GGUF_HINT: &str = "pull a GGUF version of it, for example with a tag that names a quantization";

fn unsupported(manifest: &Manifest, name: &Name, reason: &str, hint: Option<&str>) -> OllamaError {
    OllamaError::Unsupported {
        manifest: manifest.path.clone(),
        name: name.to_string(),
        reason: reason.into(),
        hint: hint.map(str::to_owned),
    }
}

fn read_config(manifest: &Manifest, name: &Name, companions: &mut Companions) -> Result<(), OllamaError> {
    let Some(layer) = &manifest.config else { return Ok(()) };
    let config: Config = serde_json::from_slice(&manifest.bytes(layer)?)
        .map_err(|error| manifest.bad("config", format!("invalid configuration: {error}")))?;
    if !config.remote_host.is_empty() || !config.remote_model.is_empty() {
        return Err(unsupported(manifest, name, "runs on another machine: its weights are not here", None));
    }
    if !["", "gguf"].contains(&config.model_format.as_str()) {
        return Err(unsupported(manifest, name, NO_GGUF, Some(NO_GGUF_HINT)));
    }
    let word = |key: &str, text: String| match text.as_str() {
        "" => Ok(None),
        word if word.len() <= 80 && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c)) => {
            Ok(Some(text))
        }
        _ => Err(manifest.bad(&format!("config.{key}"), "expected at most 80 letters, digits, - _ . and +")),
    };
    companions.renderer = word("renderer", config.renderer)?;
    companions.parser = word("parser", config.parser)?;
    companions.requires = word("requires", config.requires)?;
    Ok(())
}

fn parameters(manifest: &Manifest, layer: &Layer) -> Result<Map<String, Value>, OllamaError> {
    let key = Manifest::key(layer);
    let mut all: Map<String, Value> = serde_json::from_slice(&manifest.bytes(layer)?)
        .map_err(|error| manifest.bad(&key, format!("expected a JSON object: {error}")))?;
    all.retain(|_, value| !value.is_null());
    let plain = |value: &Value| value.is_number() || value.is_boolean() || value.is_string();
    for (name, value) in &all {
        // A line break in a name would start a new line in the Modelfile.
        let sound = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let known = plain(value) || value.as_array().is_some_and(|values| values.iter().all(plain));
        if !sound || !known {
            let name: String = name.chars().take(50).collect();
            return Err(manifest.bad(&key, format!("invalid name or value of parameter {name:?}")));
        }
    }
    Ok(all)
}

fn messages(manifest: &Manifest, layer: &Layer) -> Result<Vec<Message>, OllamaError> {
    let key = Manifest::key(layer);
    let all: Vec<Message> = serde_json::from_slice(&manifest.bytes(layer)?)
        .map_err(|error| manifest.bad(&key, format!("expected a JSON list of messages: {error}")))?;
    match all.iter().find(|message| !["system", "user", "assistant"].contains(&message.role.as_str())) {
        None => Ok(all),
        Some(message) => {
            let role: String = message.role.chars().take(50).collect();
            Err(manifest.bad(&key, format!("expected the role system, user or assistant, found {role:?}")))
        }
    }
}
