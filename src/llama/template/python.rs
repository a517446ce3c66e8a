//! Methods of Python's strings and the operator `%`, which templates expect and the engine lacks. Operations whose
//! output can be much larger than their input are limited, because the engine charges fuel only after creating a value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::{Limited, MAX_RENDERED};

/// Maximum width that a text is padded to, in characters.
pub(super) const MAX_WIDTH: usize = 999;

pub(super) fn wrong(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Implements methods that the engine does not have.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if method == "format" {
            refuse_wide(text)?;
        }
        if let Some(result) = string_method(text, method, args)? {
            return Ok(result);
        }
        let args = by_position(method, args)?;
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, &args);
    }
    if method == "copy" && args.is_empty() {
        return copied(value);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Implements `copy`. A map is copied item by item, because it may be a namespace, which is mutable; all other values
/// are immutable and serve as their own copies.
fn copied(value: &Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Map {
        return Ok(value.clone());
    }
    let pair = |key: Value| Ok((key.clone(), value.get_item(&key)?));
    let pairs = value.try_iter()?.map(pair).collect::<Result<Vec<(Value, Value)>, Error>>()?;
    Ok(Value::from_pairs(pairs))
}

/// Implements the string methods that `pycompat` lacks or supports only in part; `None` for all others.
fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,) = from_args(args)?;
            let (before, after) = text.split_once(nonempty(separator)?).unzip();
            parts(before.unwrap_or(text), after.map_or("", |_| separator), after.unwrap_or_default())
        }
        "rpartition" => {
            let (separator,) = from_args(args)?;
            let (before, after) = text.rsplit_once(nonempty(separator)?).unzip();
            parts(before.unwrap_or_default(), after.map_or("", |_| separator), after.unwrap_or(text))
        }
        "rsplit" => rsplit(text, args)?,
        "casefold" | "swapcase" | "istitle" | "isdecimal" | "isprintable" => {
            let () = from_args(args)?;
            of_text(text, method)
        }
        "ljust" | "rjust" | "center" | "zfill" => padded(text, method, args)?,
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            expand_tabs(text, size.unwrap_or(8))?.into()
        }
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
            return search(text, method, args);
        }
        _ => return Ok(None),
    }))
}

/// Implements the methods without arguments.
fn of_text(text: &str, method: &str) -> Value {
    let swapped = |c: char| {
        if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
    };
    match method {
        "casefold" => text.to_lowercase().into(),
        "swapcase" => text.chars().map(swapped).collect::<String>().into(),
        "istitle" => {
            let title = minijinja::filters::title(text.into());
            (text.chars().any(char::is_alphabetic) && text == title).into()
        }
        "isdecimal" => (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into(),
        _ => (!text.chars().any(char::is_control)).into(),
    }
}

fn nonempty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() { Err(wrong("empty separator")) } else { Ok(separator) }
}

fn parts(before: &str, separator: &str, after: &str) -> Value {
    Value::from(Tuple::from([before, separator, after].map(Value::from).to_vec()))
}

/// Converts keyword arguments of a method to positional ones, if its parameters are known.
fn by_position<'a>(method: &str, args: &'a [Value]) -> Result<Cow<'a, [Value]>, Error> {
    let names: &[&str] = match method {
        "split" | "rsplit" => &["sep", "maxsplit"],
        "splitlines" => &["keepends"],
        "replace" => &["old", "new", "count"],
        _ => return Ok(args.into()),
    };
    let Some((last, rest)) = args.split_last().filter(|(last, _)| last.is_kwargs()) else {
        return Ok(args.into());
    };
    let kwargs = Kwargs::try_from(last.clone())?;
    let mut args = rest.to_vec();
    for name in names.get(args.len()..).unwrap_or_default() {
        args.push(kwargs.get::<Option<Value>>(name)?.unwrap_or_default());
    }
    kwargs.assert_all_used()?;
    while args.last().is_some_and(Value::is_undefined) {
        args.pop();
    }
    Ok(args.into())
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let args = by_position("rsplit", args)?;
    let (separator, most): (Option<&str>, Option<i64>) = from_args(&args)?;
    let n =
        most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(n, nonempty(separator)?).collect(),
        None => rsplit_at_spaces(text, n),
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits `text` at whitespace from its end into at most `n` parts, of which the last is the unsplit rest.
fn rsplit_at_spaces(text: &str, n: usize) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text.trim_end());
    while !rest.is_empty() {
        let start = rest.rfind(char::is_whitespace).filter(|_| parts.len() + 1 < n);
        let word = start.map_or(rest, |at| rest[at..].trim_start());
        parts.push(word);
        rest = rest[..rest.len() - word.len()].trim_end();
    }
    parts
}

pub(super) fn padded(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    if width > MAX_WIDTH {
        return Err(wrong(format!("{method}: expected a width of at most {MAX_WIDTH}, found {width}")));
    }
    let missing = width.saturating_sub(text.chars().count());
    let fill = if method == "zfill" { "0" } else { fill.unwrap_or(" ") };
    if fill.chars().count() != 1 {
        return Err(wrong(format!("{method}: expected a single fill character")));
    }
    let left = match method {
        "ljust" => 0,
        // As in Python: an odd space goes to the left if the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) if method == "zfill" => text.split_at(text.len() - digits.len()),
        _ => ("", text),
    };
    Ok(format!("{sign}{}{digits}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}

fn expand_tabs(text: &str, size: usize) -> Result<String, Error> {
    if size > MAX_WIDTH || text.matches('\t').count().saturating_mul(size) > MAX_RENDERED {
        return Err(wrong(format!(
            "expandtabs: expected a tab size of at most {MAX_WIDTH} and at most {MAX_RENDERED} bytes of tabs"
        )));
    }
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let n = if size == 0 { 0 } else { size - column % size };
                out.push_str(&" ".repeat(n));
                column += n;
            }
            _ => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out)
}

/// Implements the methods with optional start and end; without these, `pycompat` has all but `index` and `rindex`.
fn search(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let (what, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let indexes = matches!(method, "index" | "rindex");
    if start.is_none() && end.is_none() && !indexes {
        return Ok(None);
    }
    let n = text.chars().count();
    let place =
        |at: i64| if at < 0 { n.saturating_sub(at.unsigned_abs() as usize) } else { (at as usize).min(n) };
    let (from, to) = (place(start.unwrap_or(0)), place(end.unwrap_or(i64::MAX)));
    let part: String = text.chars().skip(from).take(to.saturating_sub(from)).collect();
    let chars = |bytes: usize| (from + part[..bytes].chars().count()) as i64;
    let ends = |one: &Value| {
        one.as_str()
            .is_some_and(|s| if method == "startswith" { part.starts_with(s) } else { part.ends_with(s) })
    };
    let texts = || what.as_str().ok_or_else(|| wrong(format!("{method}: expected a string")));
    Ok(Some(match method {
        "startswith" | "endswith" if what.as_str().is_some() => ends(what).into(),
        "startswith" | "endswith" => what.try_iter()?.any(|one| ends(&one)).into(),
        "count" => part.matches(texts()?).count().into(),
        _ => {
            let found = if method.starts_with('r') { part.rfind(texts()?) } else { part.find(texts()?) };
            match found {
                None if indexes => return Err(wrong("substring not found")),
                found => found.map_or(-1, chars).into(),
            }
        }
    }))
}

/// Rejects formats with very wide fields, whose padding would cost no fuel.
fn refuse_wide(text: &str) -> Result<(), Error> {
    let wide = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
    if wide { Err(wrong(format!("format: expected a width of at most {MAX_WIDTH}"))) } else { Ok(()) }
}

/// Implements `FORMAT % ARGUMENTS`: a tuple provides several arguments, any other value is a single one.
pub(super) fn percent_format(text: &str, args: &Value) -> Result<String, Error> {
    refuse_wide(text)?;
    if text.contains('*') {
        return Err(wrong("%: a width from the arguments (*) is not supported"));
    }
    let args = match args.downcast_object_ref::<Tuple>() {
        Some(_) => args.try_iter()?.map(|one| printed(&one)).collect::<Result<Vec<_>, _>>()?,
        None if text.contains("%(") => vec![with_printed(args)?],
        None => vec![printed(args)?],
    };
    format(FormatStyle::Printf, text, &args)
}

/// Replaces a list or map by its text, whose length is limited: a value that is small in memory may take forever to
/// print.
fn printed(value: &Value) -> Result<Value, Error> {
    if value.is_kwargs() || !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(value.clone());
    }
    let mut out = Limited { bytes: Vec::new(), found: 0 };
    write!(out, "{value}")
        .map_err(|_| wrong(format!("%: expected values of at most {MAX_RENDERED} bytes")))?;
    Ok(String::from_utf8_lossy(&out.bytes).into())
}

/// Applies [`printed`] to each value of a map.
fn with_printed(map: &Value) -> Result<Value, Error> {
    let pair = |key: Value| Ok((key.to_string(), printed(&map.get_item(&key)?)?));
    Ok(Value::from(map.try_iter()?.map(pair).collect::<Result<BTreeMap<String, Value>, Error>>()?))
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    use super::*;

    fn eval(expression: &str) -> String {
        let mut env = Environment::new();
        env.set_unknown_method_callback(method);
        let value = env.compile_expression(expression).unwrap().eval(context! { s => "a.b.c" });
        value.map_or_else(|error| format!("error: {error}"), |value| value.to_string())
    }

    #[test]
    fn strings_have_the_methods_of_python() {
        // The expected values were evaluated with Python 3.
        for (expression, expected) in [
            ("s.rsplit('.', 1)", "['a.b', 'c']"),
            ("s.rsplit('.')", "['a', 'b', 'c']"),
            ("s.rsplit(sep='.', maxsplit=1)[0]", "a.b"),
            ("s.split('.', maxsplit=1)", "['a', 'b.c']"),
            ("' a  b c '.rsplit()", "['a', 'b', 'c']"),
            ("' a  b c '.rsplit(none, 1)", "[' a  b', 'c']"),
            ("s.removeprefix('a.').removesuffix('.c')", "b"),
            ("s.removeprefix('x')", "a.b.c"),
            ("s.partition('.') | list", "['a', '.', 'b.c']"),
            ("s.partition('x') | list", "['a.b.c', '', '']"),
            ("s.rpartition('.') | list", "['a.b', '.', 'c']"),
            ("s.rpartition('x') | list", "['', '', 'a.b.c']"),
            ("'-7'.zfill(4) ~ '7'.zfill(3)", "-007007"),
            ("'ab'.center(5, '*') ~ 'a'.center(4, '*')", "**ab**a**"),
            ("'a'.ljust(3, '.') ~ 'a'.rjust(3)", "a..  a"),
            ("'a\tb'.expandtabs(4)", "a   b"),
            ("'aBc'.swapcase() ~ 'ABC'.casefold()", "AbCabc"),
            ("s.find('.', 2) ~ s.rfind('.', 0, 3) ~ s.index('b') ~ s.count('.', 2)", "3121"),
            ("s.startswith('b', 2) ~ s.endswith(('x', 'b'), 0, 3)", "TrueTrue"),
            ("{'a': 1}.copy()", "{'a': 1}"),
        ] {
            assert_eq!(eval(expression), expected, "{expression}");
        }
        for fails in
            ["s.index('x')", "s.rsplit('')", "s.ljust(1000)", "'\t'.expandtabs(1000)", "s.center(5, 'ab')"]
        {
            assert!(eval(fails).starts_with("error"), "{fails}");
        }
    }

    #[test]
    fn percent_takes_a_tuple_a_map_or_a_value() {
        let format = |text, args| percent_format(text, &args).unwrap();
        assert_eq!(format("%s", Value::from(vec![1, 2])), "[1, 2]");
        let pair = Tuple::from(vec![Value::from("a"), Value::from(7)]);
        assert_eq!(format("%s: %03d%%", Value::from(pair)), "a: 007%");
        assert_eq!(format("%(a)s", context! { a => "x" }), "x");
        assert!(percent_format("%9999d", &Value::from(1)).is_err());
        assert!(percent_format("%*d", &Value::from(1)).is_err());
    }
}
