//! Filters, tests and functions of Jinja2 and transformers that the engine lacks or implements differently.

use minijinja::value::{ArgType, Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::python;
use super::{json, source};

/// Fields of the date that templates get as today's date (the default date of Llama 3's own template): the same input
/// must always produce the same bytes.
const FIXED_DATE: [(char, &str); 18] = [
    ('Y', "2024"),
    ('m', "07"),
    ('d', "26"),
    ('e', "26"),
    ('B', "July"),
    ('b', "Jul"),
    ('A', "Friday"),
    ('a', "Fri"),
    ('y', "24"),
    ('j', "208"),
    ('H', "12"),
    ('I', "12"),
    ('M', "00"),
    ('S', "00"),
    ('p', "PM"),
    ('F', "2024-07-26"),
    ('T', "12:00:00"),
    ('D', "07/26/24"),
];

/// Adds all filters, tests and functions to `env`.
pub(super) fn add_to(env: &mut Environment<'static>) {
    env.set_unknown_method_callback(python::method);
    env.add_filter("tojson", json::tojson);
    env.add_filter(source::PERCENT, python::percent_format);
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("center", |text: String, width: Option<usize>| {
        python::padded(&text, "center", &[Value::from(width.unwrap_or(80))])
    });
    env.add_filter("truncate", minijinja_contrib::filters::truncate);
    env.add_filter("wordcount", wordcount);
    env.add_function("cycler", minijinja_contrib::globals::cycler);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Undefined | ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    env.remove_global("namespace");
    env.add_function(source::PRIVATE_MAKER, minijinja::functions::namespace);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| fixed_date(&format));
}

/// Formats [`FIXED_DATE`] according to `format`; unknown fields stay as they are.
fn fixed_date(format: &str) -> String {
    let (mut out, mut rest) = (String::new(), format);
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let bare = rest.strip_prefix('-');
        let field = bare.unwrap_or(rest);
        let known = FIXED_DATE.iter().find(|(name, _)| field.starts_with(*name));
        match known {
            Some((_, text)) => {
                out.push_str(if bare.is_some() { text.trim_start_matches('0') } else { text });
                rest = &field[1..];
            }
            None => {
                out.push('%');
                rest = rest.strip_prefix('%').unwrap_or(rest);
            }
        }
    }
    out.push_str(rest);
    out
}

/// Implements `value | default(other, boolean)`; parameters can also be given by name.
fn default(
    value: Value,
    other: Option<Value>,
    boolean: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let other = or_named(other, &kwargs, "default_value")?;
    let boolean = or_named(boolean, &kwargs, "boolean")?;
    kwargs.assert_all_used()?;
    let absent = value.is_undefined() || boolean == Some(true) && !value.is_true();
    Ok(if absent { other.unwrap_or_else(|| Value::from("")) } else { value })
}

/// Implements `value | int(default, base)`, where the default is 0 and applies to values that are not numbers.
fn int(
    state: &State<'_, '_>,
    value: &Value,
    other: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let other = or_named(other, &kwargs, "default")?;
    let base = or_named(base, &kwargs, "base")?;
    kwargs.assert_all_used()?;
    let other = other.or_else(|| Some(Value::from(0)));
    minijinja::filters::int(state, value, other, base, no_kwargs())
}

/// Implements `value | float(default)`, where the default is 0.0 and applies to values that are not numbers.
fn float(state: &State<'_, '_>, value: &Value, other: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = or_named(other, &kwargs, "default")?;
    kwargs.assert_all_used()?;
    minijinja::filters::float(state, value, other.or_else(|| Some(Value::from(0.0))), no_kwargs())
}

/// Returns a parameter given by position or, failing that, by name.
fn or_named<'a, T>(given: Option<T>, kwargs: &'a Kwargs, name: &'a str) -> Result<Option<T>, Error>
where
    T: ArgType<'a, Output = T>,
{
    if given.is_some() { Ok(given) } else { kwargs.get(name) }
}

fn no_kwargs() -> Kwargs {
    std::iter::empty::<(&str, Value)>().collect()
}

/// Counts the words in a text, as matched by `\w+`.
fn wordcount(text: String) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(expression: &str) -> String {
        let mut env = Environment::new();
        add_to(&mut env);
        let value = env.compile_expression(expression).unwrap().eval(());
        value.map_or_else(|error| format!("error: {error}"), |value| value.to_string())
    }

    #[test]
    fn filters_and_tests_do_what_those_of_jinja2_do() {
        // The expected values were evaluated with Jinja2 3.1.
        for (expression, expected) in [
            ("missing | default('d') ~ '' | default('d') ~ '' | d('d', true)", "dd"),
            (
                "'' | default('d', boolean=true) ~ missing | default(default_value='x') ~ missing | default",
                "dx",
            ),
            ("'x' | int ~ '7' | int ~ '3.7' | int ~ 'x' | int(5) ~ 'ff' | int(base=16)", "0735255"),
            ("('x' | float) ~ ' ' ~ ('2.5' | float) ~ ' ' ~ ('x' | float(1.5))", "0.0 2.5 1.5"),
            ("'ab' | center(6) ~ '|' ~ 'one two-three' | wordcount", "  ab  |3"),
            (
                "[none is iterable, 'a' is iterable, 1 is iterable, {} is iterable]",
                "[False, True, False, True]",
            ),
            (
                "['a' is sequence, [1] is sequence, {} is sequence, 1 is sequence]",
                "[True, True, True, False]",
            ),
            (
                "strftime_now('%d %B %Y, %-m/%e %I:%M %p %F %T %D day %j 100%% %Q')",
                "26 July 2024, 7/26 12:00 PM 2024-07-26 12:00:00 07/26/24 day 208 100% %Q",
            ),
        ] {
            assert_eq!(eval(expression), expected, "{expression}");
        }
        for fails in ["'a' | default('b', other=1)", "'a' | center(1000)"] {
            assert!(eval(fails).starts_with("error"), "{fails}");
        }
    }
}
