//! Prompts in JSON: one object per line, consecutive objects, an array of them, or an object that contains one array.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Deserializer, Map, Value};

use super::PromptError;
use super::loader::{KIND_FIELD, LineCounter, Record, Sink, TEXT_FIELDS};

/// Reads all prompts from a JSON text.
pub(super) fn parse(text: &str, sink: &mut Sink<'_>) -> Result<(), PromptError> {
    let first = text.lines().find(|line| !line.trim().is_empty());
    let object = first.and_then(|line| serde_json::from_str::<Map<String, Value>>(line).ok());
    match object {
        // Parsed line by line, so that errors name the line that is malformed.
        Some(object) if text_field(&object).is_some() => parse_lines(text, sink),
        _ => Document { text, lines: LineCounter::new(text.as_bytes()), sink }.parse(),
    }
}

/// Reads one JSON object per line.
fn parse_lines(text: &str, sink: &mut Sink<'_>) -> Result<(), PromptError> {
    const OBJECT: &str = "a JSON object on one line";
    for (line, content) in (1..).zip(text.lines()) {
        if content.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(content)
            .map_err(|e| sink.bad(line, OBJECT, format!("malformed JSON ({e})")))?;
        let Value::Object(object) = value else {
            return Err(sink.bad(line, OBJECT, json_type(content).to_owned()));
        };
        let record = record(&object, line, sink)?;
        sink.push(line, record)?;
    }
    Ok(())
}

/// A sequence of JSON values in any layout.
struct Document<'t, 's, 'f> {
    text: &'t str,
    lines: LineCounter<'t>,
    sink: &'s mut Sink<'f>,
}

impl<'t> Document<'t, '_, '_> {
    fn parse(mut self) -> Result<(), PromptError> {
        for value in Deserializer::from_str(self.text).into_iter::<&'t RawValue>() {
            let value = value.map_err(|e| {
                self.sink.bad(e.line() as u64, "JSON values", format!("malformed JSON ({e})"))
            })?;
            match value.get().starts_with('[') {
                true => self.array(value)?,
                false => self.item(value)?,
            }
        }
        Ok(())
    }

    /// Returns the line on which a value begins.
    fn line(&mut self, value: &RawValue) -> u64 {
        self.lines.at(value.get().as_ptr().addr() - self.text.as_ptr().addr())
    }

    fn array(&mut self, array: &'t RawValue) -> Result<(), PromptError> {
        let items: Vec<&'t RawValue> = self.read(array)?;
        items.into_iter().try_for_each(|item| match item.get().starts_with('"') {
            true => {
                let text: String = self.read(item)?;
                let line = self.line(item);
                self.sink.push(line, Record::of(&text))
            }
            false => self.item(item),
        })
    }

    /// Reads a prompt, or an object that contains one array of prompts.
    fn item(&mut self, value: &'t RawValue) -> Result<(), PromptError> {
        let line = self.line(value);
        if !value.get().starts_with('{') {
            let found = json_type(value.get()).to_owned();
            return Err(self.sink.bad(line, "a prompt or a JSON object", found));
        }
        let object: Map<String, Value> = self.read(value)?;
        if text_field(&object).is_none() {
            let fields: BTreeMap<String, &'t RawValue> = self.read(value)?;
            let array = |(_, value): &(String, &'t RawValue)| value.get().starts_with('[');
            let arrays: Vec<(String, &'t RawValue)> = fields.into_iter().filter(array).collect();
            if !arrays.is_empty() {
                let array = self.prompts_among(line, &object, &arrays)?;
                return self.array(array);
            }
        }
        let record = record(&object, line, self.sink)?;
        self.sink.push(line, record)
    }

    /// Returns the only array whose first item is an object with a prompt, or else the only array.
    fn prompts_among(
        &self,
        line: u64,
        object: &Map<String, Value>,
        arrays: &[(String, &'t RawValue)],
    ) -> Result<&'t RawValue, PromptError> {
        let holds_prompts = |(name, _): &&(String, &'t RawValue)| {
            let first = object.get(name).and_then(|value| value.get(0));
            first.and_then(Value::as_object).is_some_and(|first| text_field(first).is_some())
        };
        let sure: Vec<_> = arrays.iter().filter(holds_prompts).collect();
        match (sure.as_slice(), arrays) {
            ([(_, array)], _) | ([], [(_, array)]) => Ok(*array),
            _ => {
                let names: Vec<&str> = arrays.iter().map(|(name, _)| name.as_str()).collect();
                let found = super::error::excerpt(&format!("the arrays {}", names.join(", ")));
                Err(self.sink.bad(line, "one array of prompts", found))
            }
        }
    }

    /// Reads a part of the text that is known to be valid JSON; it can only fail if it is nested too deeply.
    fn read<T: serde::Deserialize<'t>>(&mut self, value: &'t RawValue) -> Result<T, PromptError> {
        serde_json::from_str(value.get()).map_err(|e| {
            let line = self.line(value);
            self.sink.bad(line, "readable JSON", format!("malformed JSON ({e})"))
        })
    }
}

/// Returns the field with the text of a prompt: the first of [`TEXT_FIELDS`] that is present.
fn text_field(object: &Map<String, Value>) -> Option<&Value> {
    TEXT_FIELDS.iter().find_map(|name| field(object, name))
}

fn field<'o>(object: &'o Map<String, Value>, name: &str) -> Option<&'o Value> {
    let mut fields = object.iter().filter(|(_, value)| !value.is_null());
    fields.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Reads the known fields of a JSON object.
fn record(object: &Map<String, Value>, line: u64, sink: &Sink<'_>) -> Result<Record, PromptError> {
    let Some(text) = text_field(object) else {
        let found = "none of them".to_owned();
        const EXPECTED: &str =
            "a prompt field (or text, instruction, goal, behavior, question, query, input)";
        return Err(sink.bad(line, EXPECTED, found));
    };
    let Value::String(text) = text else {
        return Err(sink.bad(line, "a string as the prompt", json_type(&text.to_string()).to_owned()));
    };
    if let Some(value) = field(object, KIND_FIELD)
        && !value.is_string()
    {
        return Err(sink.bad(line, "a string as the kind", json_type(&value.to_string()).to_owned()));
    }
    sink.record(line, text, |name| match field(object, name)? {
        Value::String(text) => Some(text.clone()),
        // A topic must be a string. A value of another type is no kind, which matters for the other fields.
        value => (name != "topic").then(|| value.to_string()),
    })
}

/// Returns the name of a JSON value's type for messages, from its first character.
fn json_type(text: &str) -> &'static str {
    match text.trim_start().chars().next() {
        Some('n') => "null",
        Some('t' | 'f') => "a boolean",
        Some('"') => "a string",
        Some('[') => "an array",
        Some('{') => "an object",
        _ => "a number",
    }
}
