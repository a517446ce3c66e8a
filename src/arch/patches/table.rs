//! The table of architectures and their writers, for `docs/architectures.md` and `inspect --architectures`.

use std::fmt::Write as _;

use serde::Serialize;

use super::{ArchPatch, Patches, Streams, WriterKind, WriterPattern};

/// One row of the table of architectures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchitectureRow {
    /// Value of `general.architecture`.
    pub architecture: String,
    /// Name of the patch file that contains it.
    pub file: String,
    /// Names of its residual writers, without `blk.{i}.` and `.weight`; empty if refused.
    pub writers: Vec<String>,
    /// Notes on its peculiarities.
    pub notes: Vec<String>,
    /// Why its models cannot be edited; `None` if they can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Patches {
    /// Returns a row for every known architecture, sorted by name.
    pub fn table(&self) -> Vec<ArchitectureRow> {
        let rows = self.patches.iter().flat_map(|patch| patch.names().map(|name| row(patch, name)));
        let mut rows: Vec<ArchitectureRow> = rows.collect();
        rows.sort_by(|a, b| a.architecture.cmp(&b.architecture));
        rows
    }
}

fn row(patch: &ArchPatch, architecture: &str) -> ArchitectureRow {
    let refused = patch.refused.get(architecture).cloned();
    let mut row = ArchitectureRow {
        architecture: architecture.to_string(),
        file: patch.file.clone(),
        writers: Vec::new(),
        notes: Vec::new(),
        refused,
    };
    if row.refused.is_some() {
        return row;
    }
    // The embedding is not listed, because it is left unedited in every file.
    for writer in patch.writers.iter().filter(|writer| writer.kind != WriterKind::Embedding) {
        let name = short_name(&writer.tensor);
        if !row.writers.contains(&name) {
            row.writers.push(name);
        }
    }
    row.notes = notes(patch);
    row
}

fn notes(patch: &ArchPatch) -> Vec<String> {
    let has = |what: fn(&WriterPattern) -> bool| patch.writers.iter().any(what);
    let known = [
        (has(|w| w.post_norm.is_some() && w.post_norm_key.is_none()), "norm after each writer"),
        (has(|w| w.post_norm_key.is_some()), "norm after each writer if the file says so"),
        (has(|w| w.kind != WriterKind::Embedding && w.residual_scale_key.is_some()), "scaled writes"),
    ];
    let mut notes: Vec<String> =
        known.iter().filter(|(is, _)| *is).map(|(_, note)| note.to_string()).collect();
    if patch.residual != "l_out" {
        notes.push(format!("stream `{}`", patch.residual));
    }
    if patch.streams != Streams::One && patch.note.is_none() {
        notes.push("several streams".to_string());
    }
    notes.extend(patch.note.clone());
    notes
}

fn short_name(tensor: &str) -> String {
    let name = tensor.strip_prefix("blk.{i}.").unwrap_or(tensor);
    name.strip_suffix(".weight").unwrap_or(name).to_string()
}

/// Formats the rows as Markdown: editable architectures, then refused ones.
pub fn markdown(rows: &[ArchitectureRow]) -> String {
    let (refused, edited): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.refused.is_some());
    let width = rows.iter().map(|row| row.architecture.len()).max().unwrap_or(0);
    let mut text = format!(
        "# Architectures\n\n\
         `rosi-gguf inspect --architectures` prints this from `patches/*.toml`, and a test keeps it current.\n\
         The names are values of `general.architecture`. Of the {} that the linked llama.cpp knows, {} can be\n\
         edited. The table lists the writers in the patch file; those that a model has are edited. The token\n\
         embedding is never edited.\n\n## Edited\n\n\
         | {:width$} | file | writers | notes |\n|---|---|---|---|\n",
        rows.len(),
        edited.len(),
        "architecture"
    );
    for row in edited {
        let writers: Vec<String> = row.writers.iter().map(|name| format!("`{name}`")).collect();
        let (name, file, notes) = (&row.architecture, &row.file, row.notes.join("; "));
        let _ = writeln!(text, "| {name:width$} | {file} | {} | {notes} |", writers.join(", "));
    }
    let _ = write!(text, "\n## Refused\n\n| {:width$} | reason |\n|---|---|\n", "architecture");
    for row in refused {
        let reason = row.refused.as_deref().unwrap_or_default();
        let _ = writeln!(text, "| {:width$} | {reason} |", row.architecture);
    }
    text
}
