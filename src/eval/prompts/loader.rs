//! Reading prompt files; see [`PromptSet::load`] for the formats.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord};

use super::error::excerpt;
use super::{
    Located, MAX_FILE_BYTES, MAX_PROMPT_BYTES, MAX_PROMPTS, Prompt, PromptError, PromptKind, PromptSet, json,
};

/// Names of the field with the text; the first one present is used.
pub(super) const TEXT_FIELDS: [&str; 8] =
    ["prompt", "text", "instruction", "goal", "behavior", "question", "query", "input"];
/// The field that must contain a kind if it is present.
pub(super) const KIND_FIELD: &str = "kind";
/// Fields that contain a kind if all their values in a file are kinds. Common data sets use them for other things,
/// such as subjects, one of which may be called harmful.
const MAYBE_KIND_FIELDS: [&str; 2] = ["label", "category"];

/// Format of a prompt file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    /// A table with this byte between fields.
    Table(u8),
    Plain,
}

/// One record, before its kind is determined.
#[derive(Default)]
pub(super) struct Record {
    text: String,
    kind: Option<PromptKind>,
    /// The values of [`MAYBE_KIND_FIELDS`].
    maybe_kind: [Option<String>; 2],
    topic: Option<String>,
}

impl Record {
    /// Creates a record with a text and no metadata.
    pub(super) fn of(text: &str) -> Self {
        Self { text: text.trim().to_owned(), ..Self::default() }
    }
}

/// What the columns [`MAYBE_KIND_FIELDS`] of a file contain.
#[derive(Clone, Copy)]
struct Columns {
    /// Whether all values of the column are kinds.
    tell_kinds: [bool; 2],
    /// Whether labels tell borderline prompts from harmful ones with the same words, as in XSTest.
    contrast: bool,
}

/// A file being parsed: its name, the kinds from argument and name, its records so far, and the output.
pub(super) struct Sink<'a> {
    file: &'a str,
    /// The kind from the prefix of the argument.
    explicit: Option<PromptKind>,
    /// The kind from the file name.
    guessed: Option<PromptKind>,
    records: Vec<(u64, Record)>,
    out: &'a mut Vec<Located>,
}

/// Implements [`PromptSet::load`].
pub(super) fn load(paths: &[PathBuf]) -> Result<PromptSet, PromptError> {
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
        let sink = Sink { file: &file, explicit, guessed, records: Vec::new(), out: &mut out };
        parse_bytes(&bytes, format, sink)?;
        names.push(file);
    }
    PromptSet::from_located(out, names.join(", "))
}

/// Parses JSON texts that are already in memory.
pub(super) fn parse_all(files: &[(&str, &str)], source: &str) -> Result<PromptSet, PromptError> {
    let mut out = Vec::new();
    for (file, text) in files {
        let sink = Sink { file, explicit: None, guessed: None, records: Vec::new(), out: &mut out };
        parse_bytes(text.as_bytes(), Format::Json, sink)?;
    }
    PromptSet::from_located(out, source.to_owned())
}

/// Returns the path in an argument, without a prefix for the kind.
pub fn without_kind(argument: &Path) -> &Path {
    split_prefix(argument).1
}

/// Splits the prefix `harmful:`, `harmless:`, `borderline:` or its alias `alarming:` off an argument.
///
/// No other prefix counts, so that drive letters and other paths with a
/// colon stay intact.
fn split_prefix(argument: &Path) -> (Option<PromptKind>, &Path) {
    // A path that is not Unicode is used as is.
    let Some((prefix, rest)) = argument.to_str().and_then(|s| s.split_once(':')) else {
        return (None, argument);
    };
    let name = if prefix == "alarming" { "borderline" } else { prefix };
    let kind = PromptKind::ALL.into_iter().find(|k| k.as_str() == name);
    match kind {
        Some(kind) => (Some(kind), Path::new(rest)),
        None => (None, argument),
    }
}

/// Returns the format for the extension.
fn format_of(path: &Path, file: &str) -> Result<Format, PromptError> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("jsonl" | "ndjson" | "json") => Ok(Format::Json),
        Some("csv") => Ok(Format::Table(b',')),
        Some("tsv" | "tab") => Ok(Format::Table(b'\t')),
        None | Some("txt" | "text") => Ok(Format::Plain),
        // For a directory, "unknown format" would be misleading.
        Some(_) if path.is_dir() => Err(PromptError::Directory { file: file.into() }),
        Some(other) => Err(PromptError::UnknownFormat { file: file.into(), extension: other.into() }),
    }
}

/// Reads a file of at most [`MAX_FILE_BYTES`].
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
    // Pipes and devices have no length, so the limit is checked again while reading.
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

/// Returns the kind that a file name implies, if it is unambiguous.
fn kind_of_name(name: &str) -> Option<PromptKind> {
    let name = name.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    // Checked first, because such sets are also called benign or safe.
    if has(&["borderline", "alarming", "overrefusal", "over-refusal", "over_refusal"]) {
        return Some(PromptKind::Borderline);
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

/// Returns whether `safe` occurs other than in `unsafe` and `safety`.
fn says_safe(name: &str) -> bool {
    name.match_indices("safe")
        .any(|(at, word)| !name[..at].ends_with("un") && !name[at + word.len()..].starts_with("ty"))
}

/// Returns whether `word` occurs after `non` or `not`, as in `non-toxic`.
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
    match format {
        Format::Json => json::parse(text, &mut sink)?,
        Format::Table(delimiter) => parse_table(text, delimiter, &mut sink)?,
        Format::Plain => parse_plain(text, &mut sink)?,
    }
    sink.finish()
}

/// Returns the line, starting at 1, of the byte at `offset`.
fn line_of(bytes: &[u8], offset: usize) -> u64 {
    let newlines = bytes.iter().take(offset).filter(|b| **b == b'\n').count();
    newlines as u64 + 1
}

/// Reads one prompt per line.
fn parse_plain(text: &str, sink: &mut Sink<'_>) -> Result<(), PromptError> {
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        sink.push(line, Record::of(content))?;
    }
    Ok(())
}

/// Reads a table with a header row.
fn parse_table(text: &str, delimiter: u8, sink: &mut Sink<'_>) -> Result<(), PromptError> {
    const TABLE: &str = "a row with as many fields as the header";
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
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
        const EXPECTED: &str =
            "a prompt column (or text, instruction, goal, behavior, question, query, input)";
        return Err(sink.bad(1, EXPECTED, found));
    };
    let mut lines = LineCounter::new(text.as_bytes());
    let mut row = StringRecord::new();
    loop {
        match reader.read_record(&mut row) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) => {
                let line = lines.at_record(e.position());
                return Err(sink.bad(line, TABLE, csv_problem(&e)));
            }
        }
        let line = lines.at_record(row.position());
        let cell = |name: &str| {
            let cell = column(name).and_then(|at| row.get(at));
            cell.filter(|value| !value.trim().is_empty()).map(str::to_owned)
        };
        let record = sink.record(line, row.get(text_column).unwrap_or(""), cell)?;
        sink.push(line, record)?;
    }
}

/// Converts nondecreasing byte offsets into line numbers.
///
/// The CSV reader's own line numbers are one too low after `\r\n`, because it ends a
/// record at the `\r`, and they refer to the first of any skipped blank lines.
pub(super) struct LineCounter<'t> {
    rest: &'t [u8],
    offset: usize,
    line: u64,
}

impl<'t> LineCounter<'t> {
    pub(super) fn new(rest: &'t [u8]) -> Self {
        LineCounter { rest, offset: 0, line: 1 }
    }

    /// Returns the line with the first character of the record at a position.
    fn at_record(&mut self, position: Option<&csv::Position>) -> u64 {
        let target = position.and_then(|p| usize::try_from(p.byte()).ok());
        self.at(target.unwrap_or(self.offset))
    }

    /// Returns the line of the first character at or after this offset that is not a line break.
    pub(super) fn at(&mut self, target: usize) -> u64 {
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

/// Describes what is wrong with a row, without the position, which the error adds.
fn csv_problem(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields instead of {expected_len}")
        }
        _ => excerpt(&error.to_string()),
    }
}

impl Sink<'_> {
    /// Returns the error for a malformed record.
    pub(super) fn bad(&self, line: u64, expected: &'static str, found: String) -> PromptError {
        PromptError::BadRecord { file: self.file.into(), line, expected, found }
    }

    /// Reads the metadata of a record; `field` looks up fields by name.
    ///
    /// If the argument has a prefix, an invalid `kind` is ignored: it means something else.
    pub(super) fn record(
        &self,
        line: u64,
        text: &str,
        field: impl Fn(&str) -> Option<String>,
    ) -> Result<Record, PromptError> {
        let kind = field(KIND_FIELD).map(|value| value.parse::<PromptKind>().map_err(|_| value));
        if let (Some(Err(value)), None) = (&kind, self.explicit) {
            let found = format!("{:?}", excerpt(value));
            return Err(self.bad(line, "harmful, harmless or borderline as the kind", found));
        }
        Ok(Record {
            text: text.trim().to_owned(),
            kind: kind.and_then(Result::ok),
            maybe_kind: MAYBE_KIND_FIELDS.map(&field),
            topic: field("topic"),
        })
    }

    /// Checks a record against the limits and stores it.
    pub(super) fn push(&mut self, line: u64, record: Record) -> Result<(), PromptError> {
        let file = || self.file.to_owned();
        if record.text.is_empty() {
            return Err(self.bad(line, "a prompt", "an empty text".into()));
        }
        if record.text.contains('\0') {
            // Tokenizers take C strings and would silently truncate the prompt.
            return Err(self.bad(line, "a prompt", "a text with a NUL character".into()));
        }
        if record.text.len() > MAX_PROMPT_BYTES {
            return Err(PromptError::PromptTooLong {
                file: file(),
                line,
                limit: MAX_PROMPT_BYTES,
                found: record.text.len(),
            });
        }
        if self.out.len() + self.records.len() >= MAX_PROMPTS {
            return Err(PromptError::TooMany { file: file(), line, limit: MAX_PROMPTS });
        }
        self.records.push((line, record));
        Ok(())
    }

    /// Determines the kind and topic of each prompt, once the whole file is read.
    fn finish(mut self) -> Result<(), PromptError> {
        let records = std::mem::take(&mut self.records);
        if records.is_empty() {
            return Err(PromptError::Empty { file: self.file.into() });
        }
        let tell_kinds = [0, 1].map(|column| {
            let values = records.iter().filter_map(|(_, record)| record.maybe_kind[column].as_ref());
            values.into_iter().all(|value| value.parse::<PromptKind>().is_ok())
        });
        let labeled = |kind: PromptKind| {
            let mut labels = records.iter().filter_map(|(_, record)| record.maybe_kind[0].as_ref());
            labels.any(|label| label.parse::<PromptKind>().is_ok_and(|found| found == kind))
        };
        let contrast = tell_kinds[0] && labeled(PromptKind::Harmless) && labeled(PromptKind::Harmful);
        let columns = Columns { tell_kinds, contrast };
        for (line, record) in records {
            let kind = self.settle(line, &record, columns)?;
            let [_, category] = record.maybe_kind;
            let topic = record.topic.or(category.filter(|_| !tell_kinds[1]));
            let topic = topic.map(|topic| topic.trim().to_owned()).filter(|topic| !topic.is_empty());
            let at = format!("{}:{line}", self.file);
            self.out.push(Located { prompt: Prompt { text: record.text, kind, topic }, at });
        }
        Ok(())
    }

    /// Determines the kind of a prompt from record, prefix and file name.
    fn settle(&self, line: u64, record: &Record, columns: Columns) -> Result<PromptKind, PromptError> {
        use PromptKind::{Borderline, Harmful, Harmless};
        let said = |column: usize| {
            let value = record.maybe_kind[column].as_ref().filter(|_| columns.tell_kinds[column]);
            value.and_then(|value| value.parse::<PromptKind>().ok())
        };
        // A category usually is a subject, so it counts only without a `kind`, a `label` and a prefix.
        let own = record.kind.or_else(|| said(0));
        match (own, self.explicit) {
            // Borderline prompts are harmless, and other sets label them so.
            (Some(Harmless), Some(Borderline)) => Ok(Borderline),
            (Some(Harmful), Some(Borderline)) if columns.contrast && record.kind.is_none() => Ok(Harmful),
            (Some(found), Some(expected)) if found != expected => {
                Err(PromptError::KindConflict { file: self.file.into(), line, expected, found })
            }
            (own, explicit) => {
                let kind = own.or(explicit).or_else(|| said(1)).or(self.guessed);
                kind.ok_or_else(|| PromptError::NoKind { file: self.file.into(), line })
            }
        }
    }
}
