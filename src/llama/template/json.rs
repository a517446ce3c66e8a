//! The filter `tojson` as in transformers: Python's `json.dumps` with `ensure_ascii=False` by default, and without
//! escaping `<`.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

use super::Limited;
use super::python::{MAX_WIDTH, wrong};

/// Implements the filter `tojson`.
///
/// # Errors
/// Returns [`Error`] if the value cannot be written as JSON or takes more than 1 MiB, or an argument is invalid.
pub(super) fn tojson(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let option = |name| kwargs.get::<Option<Value>>(name).map(Option::unwrap_or_default);
    let indent = width(&indent.map_or_else(|| option("indent"), Ok)?)?;
    let separators = separators(&option("separators")?, indent.is_some())?;
    let (ascii, sorted) = (option("ensure_ascii")?.is_true(), option("sort_keys")?.is_true());
    kwargs.assert_all_used()?;
    let style = Style { indent, separators, depth: 0, holds: false };
    let mut json = dumps(value, style.clone())?;
    if sorted {
        let plain = Style { indent: None, separators: [",", ":"].map(str::to_owned), depth: 0, holds: false };
        let parsed = serde_json::from_str(&dumps(value, plain)?);
        let mut value: serde_json::Value = parsed.map_err(|error| wrong(error.to_string()))?;
        value.sort_all_objects();
        json = dumps(&value, style)?;
    }
    Ok(Value::from_safe_string(if ascii { escaped(&json) } else { json }))
}

/// Returns the indentation per level; `None` for output on one line.
fn width(value: &Value) -> Result<Option<String>, Error> {
    if value.is_undefined() || value.is_none() || *value == Value::from(false) {
        return Ok(None);
    }
    let indent = match value.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(value.clone())?.min(MAX_WIDTH + 1)),
    };
    if indent.len() > MAX_WIDTH {
        Err(wrong(format!("expected an indent of at most {MAX_WIDTH}")))
    } else {
        Ok(Some(indent))
    }
}

/// Returns the separators between items, and between a key and its value.
fn separators(value: &Value, indented: bool) -> Result<[String; 2], Error> {
    if value.is_undefined() || value.is_none() {
        return Ok([if indented { "," } else { ", " }, ": "].map(str::to_owned));
    }
    let texts: Vec<String> = value.try_iter()?.map(|one| one.to_string()).collect();
    texts.try_into().map_err(|_| wrong("expected two separators"))
}

fn dumps(value: &impl Serialize, style: Style) -> Result<String, Error> {
    let mut out = Limited { bytes: Vec::new(), found: 0 };
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, style));
    written.map_err(|error| wrong(format!("cannot serialize to JSON: {error}")))?;
    Ok(String::from_utf8_lossy(&out.bytes).into_owned())
}

/// Escapes all non-ASCII characters, which in JSON occur only inside strings.
fn escaped(json: &str) -> String {
    let mut units = [0; 2];
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            _ if c.is_ascii() => out.push(c),
            _ => out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}"))),
        }
    }
    out
}

/// Layout of JSON.
#[derive(Clone)]
struct Style {
    indent: Option<String>,
    separators: [String; 2],
    depth: usize,
    /// Whether the current list or map has any items so far.
    holds: bool,
}

impl Style {
    fn open<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.holds = false;
        out.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.holds {
            self.new_line(out)?;
        }
        self.holds = true;
        out.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.separators[0].as_bytes())?;
        }
        self.holds = true;
        self.new_line(out)
    }

    fn new_line<W: ?Sized + Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(indent.as_bytes()))
    }
}

impl Formatter for Style {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.separators[1].as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    fn eval(arguments: &str) -> String {
        let mut env = Environment::new();
        env.add_filter("tojson", tojson);
        let expression = format!("{{'b': 'é😀<', 'a': [1, 2.0, [], {{}}]}} | tojson{arguments}");
        let value = env.compile_expression(&expression).unwrap().eval(());
        value.map_or_else(|error| format!("error: {error}"), |value| value.to_string())
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        // The expected values were evaluated with Python 3.
        for (arguments, expected) in [
            ("", r#"{"b": "é😀<", "a": [1, 2.0, [], {}]}"#),
            (
                "(ensure_ascii=False, indent=None, separators=None, sort_keys=False)",
                r#"{"b": "é😀<", "a": [1, 2.0, [], {}]}"#,
            ),
            ("(ensure_ascii=true)", r#"{"b": "\u00e9\ud83d\ude00<", "a": [1, 2.0, [], {}]}"#),
            ("(separators=(',', ':'), sort_keys=true)", r#"{"a":[1,2.0,[],{}],"b":"é😀<"}"#),
            ("(indent=1)", "{\n \"b\": \"é😀<\",\n \"a\": [\n  1,\n  2.0,\n  [],\n  {}\n ]\n}"),
            ("(2)", "{\n  \"b\": \"é😀<\",\n  \"a\": [\n    1,\n    2.0,\n    [],\n    {}\n  ]\n}"),
        ] {
            assert_eq!(eval(arguments), expected, "{arguments}");
        }
        for fails in ["(indent=1000)", "(separators='abc')", "(separators=(',',))", "(colour=1)"] {
            assert!(eval(fails).starts_with("error"), "{fails}");
        }
    }
}
