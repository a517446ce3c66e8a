//! `inspect`: describes a model file and what an injection would edit.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::arch::patches;
use crate::cli::InspectArgs;
use crate::llama::ChatTemplate;
use crate::llama::thinking::{self, Thinking};
use crate::method::abliteration::{self, AblatedDirection, FileSource, Findings};
use crate::output::{Printer, Table, one_line};
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::provenance::Provenance;
use crate::pipeline::session::{self, Opened};
use crate::sources::Check;

#[derive(Serialize)]
struct Inspection {
    path: String,
    /// The name that resolved to the path, if the model was given by name or is in another program's store.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_given: Option<String>,
    architecture: String,
    name: Option<String>,
    patch: String,
    n_layer: usize,
    n_embd: u64,
    n_expert: u64,
    tied_embeddings: bool,
    /// 1, or the number of files of a split model.
    files: usize,
    file_bytes: u64,
    tensors: usize,
    types: BTreeMap<String, TypeUse>,
    writers: Vec<WriterRow>,
    chat_template: Option<String>,
    /// How the model thinks before it answers, as far as its chat template shows.
    thinking: Option<Thinking>,
    injected: Option<Provenance>,
    /// Absent if the weights were not read, null if no direction was removed from them.
    #[serde(skip_serializing_if = "Option::is_none")]
    abliterated: Option<Option<AblatedDirection>>,
    #[serde(skip)]
    weights: Option<Findings>,
    warnings: Vec<String>,
}

#[derive(Serialize, Default)]
struct TypeUse {
    tensors: usize,
    bytes: u64,
    writers: usize,
}

#[derive(Serialize)]
struct WriterRow {
    tensor: String,
    layer: usize,
    #[serde(rename = "type")]
    ggml_type: String,
    n_in: u64,
    n_out: u64,
    n_expert: u64,
    post_norm: Option<String>,
}

/// Prints a description of the file, or the table of architectures.
///
/// # Errors
/// Returns [`Error`] if the file cannot be opened or its architecture is unknown.
pub fn run(args: &InspectArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let Some(model) = &args.model else {
        return architectures(args, printer);
    };
    // Without --weights only the header is read, so skip the sha256 of the weights.
    let check = if args.weights { Check::Content } else { Check::Size };
    let source = session::find(model, check, printer)?;
    let opened = Opened::new(&source.path, args.patches.as_deref())?;
    let mut inspection = inspect(&opened);
    inspection.name_given = source.store.is_some().then_some(source.display_name);
    if args.weights {
        let bar = printer.bar("reading the weights", 1);
        let source = FileSource::new(&opened.gguf, &opened.plan);
        let findings = abliteration::find(&source, &mut |done, total| bar.set_of(done as u64, total as u64))?;
        inspection.abliterated = Some(findings.ablated.clone());
        inspection.weights = Some(findings);
    }
    if args.json {
        printer.json(&inspection);
    } else {
        printer.data(describe(&inspection));
    }
    Ok(ExitStatus::Done)
}

/// Prints the table of architectures.
fn architectures(args: &InspectArgs, printer: &Printer) -> Result<ExitStatus, Error> {
    let rows = session::patches(args.patches.as_deref())?.table();
    match args.json {
        true => printer.json(&rows),
        false => printer.data(patches::markdown(&rows).trim_end()),
    }
    Ok(ExitStatus::Done)
}

fn inspect(opened: &Opened) -> Inspection {
    let (gguf, plan) = (&opened.gguf, &opened.plan);
    let mut types: BTreeMap<String, TypeUse> = BTreeMap::new();
    for tensor in &gguf.tensors {
        let entry = types.entry(tensor.ggml_type.name().to_string()).or_default();
        entry.tensors += 1;
        entry.bytes += tensor.n_bytes();
        entry.writers += usize::from(plan.writers.iter().any(|w| w.tensor == tensor.name));
    }
    let writers = plan.writers.iter().map(|w| WriterRow {
        tensor: w.tensor.clone(),
        layer: w.layer,
        ggml_type: w.ggml_type.name().to_string(),
        n_in: w.n_in,
        n_out: w.n_out,
        n_expert: w.n_expert,
        post_norm: w.post_norm.clone(),
    });
    let warnings = plan.warnings.iter().map(ToString::to_string);
    let siblings = gguf.refuse_siblings().err().map(|error| error.to_string());
    Inspection {
        path: gguf.path.display().to_string(),
        name_given: None,
        architecture: plan.architecture.clone(),
        name: gguf.str("general.name").map(str::to_owned),
        patch: plan.family.clone(),
        n_layer: plan.n_layer,
        n_embd: plan.n_embd,
        n_expert: plan.n_expert,
        tied_embeddings: plan.tied_embeddings,
        files: gguf.n_files(),
        file_bytes: gguf.total_len(),
        tensors: gguf.tensors.len(),
        types,
        writers: writers.collect(),
        chat_template: gguf.str("tokenizer.chat_template").map(str::to_owned),
        thinking: gguf.str("tokenizer.chat_template").and_then(thinking),
        injected: Provenance::read(gguf),
        abliterated: None,
        weights: None,
        warnings: warnings.chain(siblings).collect(),
    }
}

/// Returns the template's thinking markers, if any. An invalid template yields `None`; it is reported where it is used.
fn thinking(template: &str) -> Option<Thinking> {
    let template = ChatTemplate::new(template, "", "").ok()?;
    thinking::of_template(&template)
}

fn describe_thinking(thinking: &Thinking) -> String {
    let Thinking { open, close, answer_prefix, .. } = thinking;
    let how = match answer_prefix.as_str() {
        "" => "the template can turn it off".into(),
        prefix => format!("skipped by starting the answer with {prefix:?}"),
    };
    format!("between {open} and {close}; {how}")
}

fn describe(i: &Inspection) -> String {
    let mut text = match &i.name_given {
        Some(name) => format!("{} is {}\n", one_line(name), one_line(&i.path)),
        None => format!("{}\n", one_line(&i.path)),
    };
    let mut line = |key: &str, value: String| text += &format!("  {key:16} {}\n", one_line(&value));
    line("name", i.name.clone().unwrap_or_else(|| "-".into()));
    line("architecture", format!("{} (patches: {})", i.architecture, i.patch));
    line("layers", format!("{} of width {}", i.n_layer, i.n_embd));
    line("embeddings", if i.tied_embeddings { "tied" } else { "separate" }.into());
    let files = if i.files == 1 { String::new() } else { format!(", split into {} files", i.files) };
    line("size", format!("{} MB in {} tensors{files}", i.file_bytes / 1_000_000, i.tensors));
    line("chat template", i.chat_template.as_ref().map_or("none".into(), |t| format!("{} bytes", t.len())));
    line("thinking", i.thinking.as_ref().map_or("not found in the chat template".into(), describe_thinking));
    line("injected", i.injected.as_ref().map_or("no".into(), Provenance::describe));
    if let Some(findings) = &i.weights {
        line("abliterated", findings.describe());
    }
    line("writers", format!("{} matrices write into the residual stream", i.writers.len()));
    let mut table = Table::new(&["type", "tensors", "MB", "writers"]);
    for (name, t) in &i.types {
        table.row(vec![
            name.clone(),
            t.tensors.to_string(),
            format!("{:.1}", t.bytes as f64 / 1e6),
            t.writers.to_string(),
        ]);
    }
    text += &format!("\n{table}");
    for warning in &i.warnings {
        text += &format!("\nwarning: {}", one_line(warning));
    }
    text.trim_end().to_string()
}
