//! Reading of multiple-choice questions from JSON Lines, in the layouts of common data sets.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Item, MAX_CHOICES};
use crate::eval::error::EvalError;
use crate::eval::material::read_text;

/// Names of the field with the question.
const QUESTION: [&str; 2] = ["question", "question_stem"];
/// Names of the field with the right answer; the first one present is used.
const ANSWER: [&str; 3] = ["answer", "answerKey", "label"];
/// Maximum length of a text in a record, in bytes.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// What is wrong with a record: what was expected, and what was found.
type Problem = (&'static str, String);

/// Reads a file of questions, one JSON object per line; skips blank lines. Supports three layouts:
///
/// * `question`, `choices` (an array of strings) and `answer` (MMLU);
/// * `question`, `choices` (`{"text": […], "label": […]}` or an array of `{"text", "label"}`) and `answerKey`
///   (ARC, OpenBookQA), also with the question as `{"stem", "choices"}`;
/// * `ctx` (or `ctx_a` and `ctx_b`), `endings` and `label` (HellaSwag).
///
/// If the right answer is a number, it is an index starting at 0. If it is a string, it is looked up among the labels
/// (A, B, C … by default), then among the answers, and else parsed as an index.
///
/// # Errors
/// Returns [`EvalError`] if the file cannot be read or has no questions, or for the first malformed record.
pub fn load(path: &Path) -> Result<Vec<Item>, EvalError> {
    parse(&read_text(path)?, &path.display().to_string())
}

/// Parses questions from `text`; `file` names their source in errors.
///
/// # Errors
/// Returns [`EvalError`] if there are no questions, or for the first malformed record.
pub fn parse(text: &str, file: &str) -> Result<Vec<Item>, EvalError> {
    let mut items = Vec::new();
    for (line, content) in (1..).zip(text.lines()).filter(|(_, content)| !content.trim().is_empty()) {
        let bad = |(expected, found)| EvalError::BadItem { file: file.to_owned(), line, expected, found };
        let value = serde_json::from_str(content)
            .map_err(|e| bad(("a JSON object on one line", format!("malformed JSON ({e})"))))?;
        items.push(item(&value).and_then(checked).map_err(bad)?);
    }
    if items.is_empty() {
        return Err(EvalError::NoItems { file: file.to_owned() });
    }
    Ok(items)
}

fn item(value: &Value) -> Result<Item, Problem> {
    let Value::Object(record) = value else {
        return Err(("a JSON object on one line", kind_of(value).to_owned()));
    };
    match record.get("endings") {
        Some(endings) => hellaswag(record, endings),
        None => question(record),
    }
}

/// Reads a beginning and its endings.
fn hellaswag(record: &Map<String, Value>, endings: &Value) -> Result<Item, Problem> {
    let part = |name: &str| record.get(name).and_then(Value::as_str).map(str::trim).filter(|t| !t.is_empty());
    let parts: Vec<&str> = match part("ctx") {
        Some(ctx) => vec![ctx],
        None => ["ctx_a", "ctx_b"].into_iter().filter_map(part).collect(),
    };
    if parts.is_empty() {
        return Err(("a string as ctx", "none".into()));
    }
    let choices = texts(endings)?;
    let answer = right_answer(record, &letters(choices.len()), &choices)?;
    Ok(Item { context: parts.join(" "), choices, answer })
}

/// Reads a question and its answers.
fn question(record: &Map<String, Value>) -> Result<Item, Problem> {
    let missing = || ("a question, or ctx and endings", format!("the fields {}", names(record)));
    let value = QUESTION.iter().find_map(|name| record.get(*name)).ok_or_else(missing)?;
    let (stem, inner) = match value {
        Value::Object(inner) => (inner.get("stem").unwrap_or(&Value::Null), inner.get("choices")),
        other => (other, None),
    };
    let Value::String(stem) = stem else {
        return Err(("a string as question", kind_of(stem).to_owned()));
    };
    let Some(choices) = inner.or_else(|| record.get("choices")) else {
        return Err(("choices", format!("the fields {}", names(record))));
    };
    let (choices, labels) = choices_and_labels(choices)?;
    let labels = labels.unwrap_or_else(|| letters(choices.len()));
    let answer = right_answer(record, &labels, &choices)?;
    Ok(Item { context: format!("Question: {}\nAnswer:", stem.trim()), choices, answer })
}

/// Returns the answers, and their labels if they have any.
fn choices_and_labels(value: &Value) -> Result<(Vec<String>, Option<Vec<String>>), Problem> {
    let field = |object: &Map<String, Value>, name: &str| object.get(name).cloned().unwrap_or(Value::Null);
    let (of_texts, of_labels) = match value {
        Value::Object(columns) => (field(columns, "text"), field(columns, "label")),
        Value::Array(rows) if rows.iter().all(Value::is_object) && !rows.is_empty() => {
            let column = |name| {
                rows.iter().filter_map(Value::as_object).map(|row| field(row, name)).collect::<Vec<_>>()
            };
            (Value::Array(column("text")), Value::Array(column("label")))
        }
        other => return Ok((texts(other)?, None)),
    };
    let (choices, labels) = (texts(&of_texts)?, texts(&of_labels)?);
    if choices.len() != labels.len() {
        let found = format!("{} labels and {} choices", labels.len(), choices.len());
        return Err(("as many labels as choices", found));
    }
    Ok((choices, Some(labels)))
}

/// Returns an array of strings, trimmed; converts numbers to strings.
fn texts(value: &Value) -> Result<Vec<String>, Problem> {
    let Value::Array(list) = value else {
        return Err(("an array of choices", kind_of(value).to_owned()));
    };
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.trim().to_owned()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(("strings as choices", kind_of(other).to_owned())),
    };
    list.iter().map(text).collect()
}

/// Returns the index of the right answer.
fn right_answer(
    record: &Map<String, Value>,
    labels: &[String],
    choices: &[String],
) -> Result<usize, Problem> {
    const EXPECTED: &str = "the index, label or text of a choice as answer";
    let value = ANSWER.iter().find_map(|name| record.get(*name));
    let index = match value {
        Some(Value::Number(number)) => number.as_u64().and_then(|n| usize::try_from(n).ok()),
        Some(Value::String(text)) => {
            let text = text.trim();
            let among = |list: &[String]| list.iter().position(|item| item == text);
            among(labels).or_else(|| among(choices)).or_else(|| text.parse().ok())
        }
        Some(other) => return Err((EXPECTED, kind_of(other).to_owned())),
        None => return Err((EXPECTED, format!("the fields {}", names(record)))),
    };
    let shown = || format!("{} for {} choices", value.unwrap_or(&Value::Null), choices.len());
    index.filter(|&i| i < choices.len()).ok_or_else(|| (EXPECTED, shown()))
}

fn checked(item: Item) -> Result<Item, Problem> {
    if !(2..=MAX_CHOICES).contains(&item.choices.len()) {
        return Err(("2 to 26 choices", item.choices.len().to_string()));
    }
    for text in item.choices.iter().chain([&item.context]) {
        if text.is_empty() {
            return Err(("a nonempty string", "an empty one".into()));
        }
        if text.contains('\0') {
            return Err(("a string without NUL", "one with a NUL character".into()));
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(("strings of at most 16 KiB", format!("one of {} bytes", text.len())));
        }
    }
    Ok(item)
}

/// Returns the default labels A, B, C, …
fn letters(n: usize) -> Vec<String> {
    ('A'..='Z').take(n).map(String::from).collect()
}

/// Returns the names of the fields, for messages.
fn names(record: &Map<String, Value>) -> String {
    let all = record.keys().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
    if all.is_empty() { "(none)".into() } else { all.chars().take(120).collect() }
}

/// Returns the name of a JSON type, for messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Item {
        parse(line, "f").unwrap().remove(0)
    }

    #[test]
    fn mmlu_is_read_with_index_letter_and_text() {
        for answer in ["1", "\"B\"", "\"four\"", "\"1\""] {
            let item = one(&format!(
                r#"{{"question": " 2 + 2? ", "subject": "x", "choices": ["three", " four", "five"], "answer": {answer}}}"#
            ));
            assert_eq!(item.context, "Question: 2 + 2?\nAnswer:");
            assert_eq!(item.choices, ["three", "four", "five"]);
            assert_eq!(item.answer, 1, "{answer}");
        }
        // A string equal to one of the answers is that answer; a number is an index.
        let numbers = |answer: &str| {
            one(&format!(r#"{{"question": "?", "choices": [2, 1, "0"], "answer": {answer}}}"#)).answer
        };
        assert_eq!((numbers("\"2\""), numbers("2"), numbers("\"B\"")), (0, 2, 1));
    }

    #[test]
    fn arc_is_read_in_its_three_layouts() {
        let lines = [
            r#"{"id": "a", "question": "Why?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}"#,
            r#"{"question_stem": "Why?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}, {"text": "z", "label": "C"}], "answerKey": "C"}"#,
            r#"{"question": {"stem": "Why?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}, {"text": "z", "label": "C"}]}, "answerKey": "C"}"#,
        ];
        for line in lines {
            let item = one(line);
            assert_eq!((item.context.as_str(), item.answer), ("Question: Why?\nAnswer:", 2), "{line}");
            assert_eq!(item.choices, ["x", "y", "z"]);
        }
    }

    #[test]
    fn hellaswag_is_read() {
        for ctx in [r#""ctx": "A man runs. He""#, r#""ctx_a": "A man runs.", "ctx_b": "He""#] {
            for label in ["1", "\"1\""] {
                let item = one(&format!(r#"{{{ctx}, "endings": ["flies.", "stops."], "label": {label}}}"#));
                assert_eq!((item.context.as_str(), item.answer), ("A man runs. He", 1));
            }
        }
    }

    #[test]
    fn blank_lines_are_skipped_and_counted() {
        let good = r#"{"question": "?", "choices": ["a", "b"], "answer": 0}"#;
        assert_eq!(parse(&format!("\n{good}\n\n{good}\n"), "f").unwrap().len(), 2);
        let error = parse(&format!("\n{good}\n\n{{}}\n"), "f").unwrap_err();
        assert!(error.to_string().starts_with("f:4: expected a question"), "{error}");
        assert!(matches!(parse("\n \n", "f"), Err(EvalError::NoItems { .. })));
    }

    #[test]
    fn what_is_malformed_is_told_with_its_line() {
        let cases = [
            ("{", "expected a JSON object on one line, found malformed JSON"),
            ("[1]", "expected a JSON object on one line, found an array"),
            (r#"{"text": "x"}"#, "found the fields text"),
            (r#"{"question": 3, "choices": ["a", "b"], "answer": 0}"#, "string as question, found a number"),
            (r#"{"question": "?", "answer": 0}"#, "expected choices, found the fields question, answer"),
            (r#"{"question": "?", "choices": "ab", "answer": 0}"#, "an array of choices, found a string"),
            (r#"{"question": "?", "choices": ["a", null], "answer": 0}"#, "strings as choices, found null"),
            (r#"{"question": "?", "choices": ["a", "b"], "answer": 2}"#, "found 2 for 2 choices"),
            (r#"{"question": "?", "choices": ["a", "b"], "answer": -1}"#, "found -1 for 2 choices"),
            (r#"{"question": "?", "choices": ["a", "b"], "answer": "c"}"#, "found \"c\" for 2 choices"),
            (r#"{"question": "?", "choices": ["a", "b"], "answer": ["a"]}"#, "as answer, found an array"),
            (r#"{"question": "?", "choices": ["a", "b"]}"#, "found the fields question, choices"),
            (r#"{"question": "?", "choices": ["a"], "answer": 0}"#, "2 to 26 choices, found 1"),
            (r#"{"question": "?", "choices": ["a", " "], "answer": 0}"#, "found an empty one"),
            (r#"{"question": "a\u0000", "choices": ["a", "b"], "answer": 0}"#, "NUL"),
            (
                r#"{"question": "?", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}"#,
                "1 labels and 2 choices",
            ),
            (r#"{"question": "?", "choices": {"text": ["a", "b"]}, "answerKey": "A"}"#, "found null"),
            (r#"{"ctx": "", "endings": ["a", "b"], "label": 0}"#, "a string as ctx, found none"),
        ];
        for (line, expected) in cases {
            let error = parse(line, "file").unwrap_err().to_string();
            assert!(error.starts_with("file:1: expected ") && error.contains(expected), "{line}: {error}");
        }
        let long = format!(r#"{{"question": "{}", "choices": ["a", "b"], "answer": 0}}"#, "x".repeat(20_000));
        assert!(parse(&long, "f").unwrap_err().to_string().contains("16 KiB"));
        let many = format!(r#"{{"question": "?", "choices": [{}1], "answer": 0}}"#, "1,".repeat(40));
        assert!(parse(&many, "f").unwrap_err().to_string().contains("found 41"));
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line in ".{0,200}") {
            let _ = parse(&line, "f");
        }

        #[test]
        fn no_answer_panics(answer in ".{0,12}", n in 0usize..40) {
            let choices: Vec<String> = (0..n).map(|i| i.to_string()).collect();
            let line = serde_json::json!({"question": "?", "choices": choices, "answer": answer}).to_string();
            if let Ok(items) = parse(&line, "f") {
                assert!(items[0].answer < n);
            }
        }
    }
}
