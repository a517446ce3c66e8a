//! Reading prompt files; see [`PromptSet::load`] for the formats.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::error::excerpt;
use super::{
    Located, MAX_FILE_BYTES, MAX_PROMPT_BYTES, MAX_PROMPTS, Prompt, PromptError, PromptKind, PromptSet,
};

/// Names of the field with the text, the first one present counts.
const TEXT_FIELDS: [&str; 4] = ["prompt", "text", "instruction", "goal"];
/// The field that must hold a kind if it is there.
const KIND_FIELD: &str = "kind";
/// Fields that may hold a kind, but hold other things in common data sets.
const MAYBE_KIND_FIELDS: [&str; 2] = ["label", "category"];

/// How a file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    JsonLines,
    Csv,
    Plain,
}

/// One record before its kind is settled.
#[derive(Default)]
struct Record {
    text: String,
    kind: Option<PromptKind>,
    topic: Option<String>,
}

/// A file being parsed: its name, what its name says, and the output.
struct Sink<'a> {
    file: &'a str,
    /// The kind from the prefix of the argument.
    explicit: Option<PromptKind>,
    /// The kind from the file name.
    guessed: Option<PromptKind>,
    out: &'a mut Vec<Located>,
}

/// Reads the files of [`PromptSet::load`].
pub(super) fn load(paths: &[PathBuf]) -> Result<PromptSet, PromptError> {
    let set = load_whole(paths)?;
    let present = PromptKind::ALL.into_iter().filter(|k| set.count(*k) > 0);
    set.require(&present.collect::<Vec<_>>())?;
    Ok(set)
}

/// Reads the files of [`PromptSet::load_whole`].
pub(super) fn load_whole(paths: &[PathBuf]) -> Result<PromptSet, PromptError> {
    if paths.is_empty() {
        return Err(PromptError::NoFiles);
    }
    let mut out = Vec::new();
    let mut names = Vec::new();
    for argument in paths {
        let (explicit, path) = split_prefix(argument);
        let file = path.display().to_string();
        let format = format_of(path, &file)?;
        let bytes = read_limited(path, &file)?;
        let guessed = path.file_name().and_then(|n| kind_of_name(&n.to_string_lossy()));
        let sink = Sink { file: &file, explicit, guessed, out: &mut out };
        parse_bytes(&bytes, format, sink)?;
        names.push(file);
    }
    PromptSet::from_located(out, names.join(", "))
}

/// Parses JSON Lines texts that are already in memory.
pub(super) fn parse_all(files: &[(&str, &str)], source: &str) -> Result<PromptSet, PromptError> {
    let mut out = Vec::new();
    for (file, text) in files {
        let sink = Sink { file, explicit: None, guessed: None, out: &mut out };
        parse_bytes(text.as_bytes(), Format::JsonLines, sink)?;
    }
    PromptSet::from_located(out, source.to_owned())
}

/// Takes `harmful:`, `harmless:` or `alarming:` off an argument.
///
/// Only the exact names count, so that drive letters and other paths with a
/// colon stay whole.
fn split_prefix(argument: &Path) -> (Option<PromptKind>, &Path) {
    // A path that is not Unicode has no prefix we could read; it is used as is.
    let Some((prefix, rest)) = argument.to_str().and_then(|s| s.split_once(':')) else {
        return (None, argument);
    };
    let kind = PromptKind::ALL.into_iter().find(|k| k.as_str() == prefix);
    match kind {
        Some(kind) => (Some(kind), Path::new(rest)),
        None => (None, argument),
    }
}

/// The format that the extension stands for.
fn format_of(path: &Path, file: &str) -> Result<Format, PromptError> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("jsonl" | "ndjson" | "json") => Ok(Format::JsonLines),
        Some("csv") => Ok(Format::Csv),
        None | Some("txt" | "text") => Ok(Format::Plain),
        // A directory deserves to be called one, whatever its name.
        Some(_) if path.is_dir() => Err(PromptError::Directory { file: file.into() }),
        Some(other) => Err(PromptError::UnknownFormat { file: file.into(), extension: other.into() }),
    }
}

/// Reads a file, but never more than the limit.
fn read_limited(path: &Path, file: &str) -> Result<Vec<u8>, PromptError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => PromptError::NotFound { file: file.into() },
        _ => PromptError::Read { file: file.into(), source },
    };
    let too_large = |found: u64| PromptError::TooLarge { file: file.into(), limit: MAX_FILE_BYTES, found };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(PromptError::Directory { file: file.into() });
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(too_large(metadata.len()));
    }
    // Pipes and devices have no length, hence the second limit while reading.
    let mut bytes = Vec::new();
    let reader = File::open(path).map_err(failed)?;
    let mut reader = reader.take(MAX_FILE_BYTES + 1);
    reader.read_to_end(&mut bytes).map_err(failed)?;
    let length = bytes.len() as u64;
    if length > MAX_FILE_BYTES {
        return Err(too_large(length));
    }
    Ok(bytes)
}

/// What a file name says about the kind, if it is clear.
fn kind_of_name(name: &str) -> Option<PromptKind> {
    let name = name.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    // First, because such a set is also called benign or safe.
    if has(&["alarming", "borderline", "overrefusal", "over-refusal", "over_refusal"]) {
        return Some(PromptKind::Alarming);
    }
    if ["harmful", "toxic", "harmless", "benign", "safe"].iter().any(|word| is_negated(&name, word)) {
        return None;
    }
    let harmless = has(&["harmless", "benign"]) || says_safe(&name);
    let harmful = has(&["harmful", "unsafe", "toxic"]);
    match (harmless, harmful) {
        (true, false) => Some(PromptKind::Harmless),
        (false, true) => Some(PromptKind::Harmful),
        _ => None,
    }
}

/// Whether `safe` occurs other than inside `unsafe` and `safety`.
fn says_safe(name: &str) -> bool {
    name.match_indices("safe")
        .any(|(at, word)| !name[..at].ends_with("un") && !name[at + word.len()..].starts_with("ty"))
}

/// Whether `word` occurs after `non` or `not`, as in `non-toxic`.
fn is_negated(name: &str, word: &str) -> bool {
    name.match_indices(word).any(|(at, _)| {
        let before = name[..at].trim_end_matches(['-', '_', ' ', '.']);
        before.ends_with("non") || before.ends_with("not")
    })
}

/// Parses one file into the sink.
fn parse_bytes(bytes: &[u8], format: Format, mut sink: Sink<'_>) -> Result<(), PromptError> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|e| PromptError::InvalidUtf8 {
        file: sink.file.into(),
        line: line_of(bytes, e.valid_up_to()),
    })?;
    let before = sink.out.len();
    match format {
        Format::JsonLines => parse_json_lines(text, &mut sink)?,
        Format::Csv => parse_csv(text, &mut sink)?,
        Format::Plain => parse_plain(text, &mut sink)?,
    }
    if sink.out.len() == before {
        return Err(PromptError::Empty { file: sink.file.into() });
    }
    Ok(())
}

/// The line, from 1, of the byte at `offset`.
fn line_of(bytes: &[u8], offset: usize) -> u64 {
    let newlines = bytes.iter().take(offset).filter(|b| **b == b'\n').count();
    newlines as u64 + 1
}

/// One prompt a line.
fn parse_plain(text: &str, sink: &mut Sink<'_>) -> Result<(), PromptError> {
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let record = Record { text: content.to_owned(), ..Record::default() };
        sink.push(line, record)?;
    }
    Ok(())
}

/// One JSON object a line.
fn parse_json_lines(text: &str, sink: &mut Sink<'_>) -> Result<(), PromptError> {
    const OBJECT: &str = "a JSON object on one line";
    for (line, content) in (1..).zip(text.lines()) {
        if content.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(content)
            .map_err(|e| sink.bad(line, OBJECT, format!("malformed JSON ({e})")))?;
        let Value::Object(object) = value else {
            return Err(sink.bad(line, OBJECT, json_type(&value).to_owned()));
        };
        let record = json_record(&object, line, sink)?;
        sink.push(line, record)?;
    }
    Ok(())
}

/// Takes the known fields out of a JSON object.
fn json_record(object: &Map<String, Value>, line: u64, sink: &Sink<'_>) -> Result<Record, PromptError> {
    let get = |name: &str| {
        let mut fields = object.iter().filter(|(_, value)| !value.is_null());
        fields.find(|(key, _)| key.trim().eq_ignore_ascii_case(name))
    };
    let Some((_, text)) = TEXT_FIELDS.iter().find_map(|name| get(name)) else {
        let found = "none of them".to_owned();
        return Err(sink.bad(line, "a prompt, text, instruction or goal field", found));
    };
    let Value::String(text) = text else {
        return Err(sink.bad(line, "a string as prompt", json_type(text).to_owned()));
    };
    if let Some((_, value)) = get(KIND_FIELD)
        && !value.is_string()
    {
        return Err(sink.bad(line, "a string as kind", json_type(value).to_owned()));
    }
    let string = |name: &str| get(name).and_then(|(_, value)| value.as_str());
    sink.record(line, text, string)
}

/// A table with a header row.
fn parse_csv(text: &str, sink: &mut Sink<'_>) -> Result<(), PromptError> {
    const TABLE: &str = "a row with as many fields as the header";
    let mut reader = ReaderBuilder::new().from_reader(text.as_bytes());
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(e) => return Err(sink.bad(1, "a header row", excerpt(&e.to_string()))),
    };
    if header.is_empty() {
        return Ok(());
    }
    let column = |name: &str| {
        let mut names = header.iter();
        names.position(|column| column.trim().eq_ignore_ascii_case(name))
    };
    let Some(text_column) = TEXT_FIELDS.iter().find_map(|name| column(name)) else {
        let found: Vec<&str> = header.iter().collect();
        let found = excerpt(&format!("the columns {}", found.join(", ")));
        return Err(sink.bad(1, "a prompt, text, instruction or goal column", found));
    };
    let mut lines = LineCounter::new(text.as_bytes());
    let mut row = StringRecord::new();
    loop {
        match reader.read_record(&mut row) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) => {
                let line = lines.at(e.position());
                return Err(sink.bad(line, TABLE, csv_problem(&e)));
            }
        }
        let line = lines.at(row.position());
        let cell = |name: &str| {
            let cell = column(name).and_then(|at| row.get(at));
            cell.filter(|value| !value.trim().is_empty())
        };
        let record = sink.record(line, row.get(text_column).unwrap_or(""), cell)?;
        sink.push(line, record)?;
    }
}

/// Turns byte offsets that only grow into line numbers.
///
/// The reader's own line numbers are one too low after `\r\n`, because it ends a
/// record at the `\r`, and point at the first of any skipped blank lines.
struct LineCounter<'t> {
    rest: &'t [u8],
    offset: usize,
    line: u64,
}

impl<'t> LineCounter<'t> {
    fn new(rest: &'t [u8]) -> Self {
        LineCounter { rest, offset: 0, line: 1 }
    }

    /// The line on which the record at `position` has its first character.
    fn at(&mut self, position: Option<&csv::Position>) -> u64 {
        let target = position.and_then(|p| usize::try_from(p.byte()).ok());
        let target = target.unwrap_or(self.offset);
        while let Some((&byte, rest)) = self.rest.split_first() {
            if self.offset >= target && !matches!(byte, b'\r' | b'\n') {
                break;
            }
            self.line += u64::from(byte == b'\n');
            self.offset += 1;
            self.rest = rest;
        }
        self.line
    }
}

/// What is wrong with a row, without the position that we give ourselves.
fn csv_problem(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields in place of {expected_len}")
        }
        _ => excerpt(&error.to_string()),
    }
}

/// The name of a JSON type for messages.
fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl Sink<'_> {
    /// A complaint about one record.
    fn bad(&self, line: u64, expected: &'static str, found: String) -> PromptError {
        PromptError::BadRecord { file: self.file.into(), line, expected, found }
    }

    /// Reads kind and topic of a record, where `field` looks fields up by name.
    fn record<'v>(
        &self,
        line: u64,
        text: &str,
        field: impl Fn(&str) -> Option<&'v str>,
    ) -> Result<Record, PromptError> {
        let read = |value: &str| value.parse::<PromptKind>().ok();
        let kind = match field(KIND_FIELD) {
            Some(value) => Some(read(value).ok_or_else(|| {
                let found = format!("{:?}", excerpt(value));
                self.bad(line, "harmful, harmless or alarming as kind", found)
            })?),
            None => MAYBE_KIND_FIELDS.iter().find_map(|name| field(name).and_then(read)),
        };
        let category = || field("category").filter(|value| read(value).is_none());
        let topic = field("topic").or_else(category);
        Ok(Record {
            text: text.trim().to_owned(),
            kind,
            topic: topic.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
        })
    }

    /// Checks a record against the limits, settles its kind and keeps it.
    fn push(&mut self, line: u64, record: Record) -> Result<(), PromptError> {
        let Record { text, kind, topic } = record;
        let file = || self.file.to_owned();
        if text.is_empty() {
            return Err(self.bad(line, "a prompt", "an empty text".into()));
        }
        if text.contains('\0') {
            // Tokenizers take C strings and would silently cut the prompt short.
            return Err(self.bad(line, "a prompt", "a text with a NUL character".into()));
        }
        if text.len() > MAX_PROMPT_BYTES {
            return Err(PromptError::PromptTooLong {
                file: file(),
                line,
                limit: MAX_PROMPT_BYTES,
                found: text.len(),
            });
        }
        if self.out.len() >= MAX_PROMPTS {
            return Err(PromptError::TooMany { file: file(), line, limit: MAX_PROMPTS });
        }
        let kind = self.settle(line, kind)?;
        let at = format!("{}:{line}", self.file);
        let prompt = Prompt { text, kind, topic };
        self.out.push(Located { prompt, at });
        Ok(())
    }

    /// The kind of a prompt from record, prefix and file name.
    fn settle(&self, line: u64, own: Option<PromptKind>) -> Result<PromptKind, PromptError> {
        use PromptKind::{Alarming, Harmless};
        match (own, self.explicit) {
            // Alarming prompts are harmless ones, so other sets label them so.
            (Some(Harmless), Some(Alarming)) => Ok(Alarming),
            (Some(found), Some(expected)) if found != expected => {
                Err(PromptError::KindConflict { file: self.file.into(), line, expected, found })
            }
            (own, explicit) => {
                let kind = own.or(explicit).or(self.guessed);
                kind.ok_or_else(|| PromptError::NoKind { file: self.file.into(), line })
            }
        }
    }
}
