//! Writes a Modelfile that Ollama parses back to exactly the contents of its store.
//!
//! Ollama reads a value up to the first line break at which the text so far is either unquoted or ends with its opening
//! quotes (`"` or `"""`; there are no escapes). Every text is therefore put in triple quotes, and a text with a line
//! that ends in triple quotes cannot be written.

use serde_json::Value;

use super::{Companions, OllamaError};

/// Returns the text of a Modelfile for the model `from` (a path relative to the Modelfile's folder) with everything in
/// `companions`.
///
/// # Errors
/// Returns [`OllamaError::Modelfile`] for a text that cannot be quoted.
pub fn write(from: &str, companions: &Companions) -> Result<String, OllamaError> {
    let mut out = String::new();
    line(&mut out, "FROM", &path(from)?);
    for projector in &companions.projectors {
        let absolute = std::path::absolute(&projector.path).unwrap_or_else(|_| projector.path.clone());
        line(&mut out, "FROM", &path(&absolute.display().to_string())?);
    }
    for (key, word) in [
        ("RENDERER", &companions.renderer),
        ("PARSER", &companions.parser),
        ("REQUIRES", &companions.requires),
    ] {
        if let Some(word) = word {
            line(&mut out, key, word);
        }
    }
    for (key, text) in [("TEMPLATE", &companions.template), ("SYSTEM", &companions.system)] {
        if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
            line(&mut out, key, &quoted(key, text)?);
        }
    }
    for (key, value) in &companions.parameters {
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in values {
            line(&mut out, &format!("PARAMETER {key}"), &parameter(key, value)?);
        }
    }
    for message in &companions.messages {
        line(&mut out, &format!("MESSAGE {}", message.role), &quoted("MESSAGE", &message.content)?);
    }
    for license in &companions.licenses {
        line(&mut out, "LICENSE", &quoted("LICENSE", license)?);
    }
    Ok(out)
}

fn line(out: &mut String, key: &str, value: &str) {
    *out += key;
    out.push(' ');
    *out += value;
    out.push('\n');
}

/// Formats a path as the value of a line, quoting it only if necessary.
///
/// # Errors
/// Returns [`OllamaError::Modelfile`] for a path that cannot be quoted.
pub fn path(path: &str) -> Result<String, OllamaError> {
    let plain = !path.contains(char::is_control) && !path.starts_with('"') && path.trim() == path;
    if plain { Ok(path.to_owned()) } else { quoted("FROM", path) }
}

fn parameter(key: &str, value: &Value) -> Result<String, OllamaError> {
    match value {
        Value::String(text) => quoted(&format!("PARAMETER {key}"), text),
        value => Ok(value.to_string()),
    }
}

fn bad(key: &str, problem: &str) -> OllamaError {
    OllamaError::Modelfile { key: key.into(), problem: problem.into() }
}

/// Returns the text in triple quotes, or an error if Ollama would take the end of one of its lines for the end of the
/// text.
fn quoted(key: &str, text: &str) -> Result<String, OllamaError> {
    const QUOTES: &str = "\"\"\"";
    let whole = format!("{QUOTES}{text}{QUOTES}");
    let ends = |text: &str| text.len() >= 2 * QUOTES.len() && text.trim_end().ends_with(QUOTES);
    let mut breaks = whole.match_indices(['\n', '\r']);
    match breaks.any(|(at, _)| ends(&whole[..at])) {
        true => Err(bad(key, "a line ends in three quotes, which cannot be escaped")),
        false => Ok(whole),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::ollama::companions::Message;

    /// Parses a Modelfile by Ollama's rules into commands with their values.
    fn read(text: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut rest = text;
        while !rest.trim_start().is_empty() {
            rest = rest.trim_start();
            let mut words = 1;
            if rest.starts_with("PARAMETER") || rest.starts_with("MESSAGE") {
                words = 2;
            }
            let (key, value) = rest.split_at(rest.match_indices(' ').nth(words - 1).unwrap().0);
            let unquote = |text: &str| -> Option<String> {
                let text = text.trim();
                for quote in ["\"\"\"", "\""] {
                    if let Some(inner) = text.strip_prefix(quote) {
                        return inner.strip_suffix(quote).map(str::to_owned);
                    }
                }
                Some(text.to_owned())
            };
            let ends = value.match_indices(['\n', '\r']).map(|(at, _)| at);
            let end = ends.into_iter().find(|&at| unquote(&value[..at]).is_some()).unwrap();
            found.push((key.to_owned(), unquote(&value[..end]).unwrap()));
            rest = &value[end..];
        }
        found
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let companions = Companions {
            template: Some("{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }} \"q\"\n".into()),
            system: Some(" You say \"\"\"yes\"\"\",\nor \"no\"".into()),
            parameters: serde_json::from_str(
                r#"{"temperature": 0.7, "num_ctx": 4096, "penalize_newline": true, "stop": ["<|im_end|>", "\"", "\n\n", " a "]}"#,
            )
            .unwrap(),
            licenses: vec!["A\nLicense\n\n".into(), "\"a\" \"\n\"".into()],
            messages: vec![Message { role: "user".into(), content: "Hello\nthere".into() }],
            renderer: Some("qwen3-coder".into()),
            ..Companions::default()
        };
        let text = write("./m-rosi.gguf", &companions).unwrap();
        let read = read(&text);
        let all = |key: &str| -> Vec<String> {
            read.iter().filter(|(found, _)| found == key).map(|(_, value)| value.clone()).collect()
        };
        assert!(text.starts_with("FROM ./m-rosi.gguf\n"), "{text}");
        assert_eq!(all("TEMPLATE"), [companions.template.unwrap()]);
        assert_eq!(all("SYSTEM"), [companions.system.unwrap()]);
        assert_eq!(all("RENDERER"), ["qwen3-coder"]);
        assert_eq!(all("PARAMETER temperature"), ["0.7"]);
        assert_eq!(all("PARAMETER num_ctx"), ["4096"]);
        assert_eq!(all("PARAMETER penalize_newline"), ["true"]);
        assert_eq!(all("PARAMETER stop"), ["<|im_end|>", "\"", "\n\n", " a "]);
        assert_eq!(all("MESSAGE user"), ["Hello\nthere"]);
        assert_eq!(all("LICENSE"), companions.licenses);
        assert_eq!(read.len(), 14);
    }

    #[test]
    fn a_text_never_ends_early() {
        assert_eq!(quoted("SYSTEM", "a").unwrap(), "\"\"\"a\"\"\"");
        assert!(quoted("SYSTEM", "\"\"\"  \nFROM y").is_err());
        assert_eq!(quoted("SYSTEM", "x\"\"\" y\nz").unwrap(), "\"\"\"x\"\"\" y\nz\"\"\"");
        let injected = quoted("SYSTEM", "x\"\"\"\nPARAMETER temperature 9");
        assert!(injected.is_err(), "{injected:?}");
        assert!(quoted("SYSTEM", "x\"\"\"\r\nFROM y").is_err());
    }

    #[test]
    fn any_path_is_read_back() {
        for path in
            ["./a b$HOME's.gguf", "./a\nb.gguf", "\"a\"", " a ", "./-a.gguf", "./a\"\"\"b", "./a\r\nFROM b"]
        {
            let text = write(path, &Companions::default()).unwrap();
            assert_eq!(read(&text), [("FROM".to_owned(), path.to_owned())]);
        }
        assert!(write("./a\"\"\"\nFROM b", &Companions::default()).is_err());
    }
}
