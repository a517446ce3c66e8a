//! The model card: `README.md` in the format of Hugging Face.

use std::fmt::Write;

use super::state::Row;
use crate::gguf::Gguf;
use crate::output::{escape_json, one_line};
use crate::sources::hub::HubName;
use crate::util::stats::Proportion;

/// Contents of the card.
#[derive(Debug, Clone)]
pub struct Card<'a> {
    /// Name of the release.
    pub name: &'a str,
    /// `OWNER/NAME` of the base model on Hugging Face, if known.
    pub base_model: Option<String>,
    /// License, from the source file or the user.
    pub license: Option<License>,
    /// One-line description of the edit.
    pub edit: String,
    /// SHA-256 of the stored edit.
    pub edit_sha256: &'a str,
    /// Whether an importance matrix was used.
    pub imatrix: bool,
    /// Rows of the released files.
    pub rows: &'a [Row],
}

/// A license for the front matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct License {
    /// License identifier, or `other`.
    id: String,
    /// Name, if the license has no identifier.
    name: Option<String>,
    /// Link to the text.
    link: Option<String>,
}

impl License {
    /// Creates a license from text such as `apache-2.0` or `Gemma Terms`, and a link to it.
    pub fn new(text: &str, link: Option<&str>) -> Self {
        let is_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        let link = link.map(str::to_owned);
        match text.to_lowercase() {
            id if !id.is_empty() && id.chars().all(is_id) => Self { id, name: None, link },
            _ => Self { id: "other".into(), name: Some(text.to_owned()), link },
        }
    }

    /// Reads the license from the keys of a model file.
    pub fn of(gguf: &Gguf) -> Option<Self> {
        let text = gguf.str("general.license").filter(|text| !text.trim().is_empty())?;
        Some(Self::new(text, gguf.str("general.license.link")))
    }
}

/// Returns the `OWNER/NAME` of a model on Hugging Face, from the repository URL in its file.
pub fn base_model_of(gguf: &Gguf) -> Option<String> {
    let keys = ["general.source.repo_url", "general.repo_url", "general.base_model.0.repo_url"];
    let address = keys.iter().find_map(|key| gguf.str(key))?;
    let path = address.trim_end_matches('/').strip_prefix("https://huggingface.co/")?;
    is_repository(path).then(|| path.to_owned())
}

/// Returns whether the text is exactly `OWNER/NAME`.
fn is_repository(text: &str) -> bool {
    HubName::parse(text).is_ok_and(|name| name.repo == text)
}

/// Escapes text for Markdown, on one line and inside table cells, so that it creates no tag, link, markup or user
/// mention.
fn markdown(text: &str) -> String {
    let chars: Vec<char> = one_line(text).chars().collect();
    let is_word = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(|c| c.is_alphanumeric());
    let mut out = String::new();
    for (at, &c) in chars.iter().enumerate() {
        match c {
            // An underscore inside a word has no special meaning.
            '_' if is_word(at.checked_sub(1)) && is_word(Some(at + 1)) => {}
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '&' | '~' | '#' | '@' | '$' | ':' => {
                out.push('\\');
            }
            _ => {}
        }
        out.push(c);
    }
    out
}

impl Card<'_> {
    /// Returns the whole card. The same contents give the same bytes.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n{}", self.front_matter(), self.what(), self.tables(), self.limits())
    }

    fn front_matter(&self) -> String {
        let mut text = String::from("---\n");
        // A JSON string is also a YAML string, once characters that YAML forbids are escaped.
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "{key}: {}", escape_json(&serde_json::Value::from(value).to_string()));
        };
        if let Some(base) = &self.base_model {
            line("base_model", base);
            line("base_model_relation", "quantized");
        }
        if let Some(License { id, name, link }) = &self.license {
            line("license", id);
            name.iter().for_each(|name| line("license_name", name));
            link.iter().for_each(|link| line("license_link", link));
        }
        line("pipeline_tag", "text-generation");
        text += "tags:\n";
        for tag in ["gguf", "llama.cpp", "safety", "refusal", "rosi", "rosi-gguf"] {
            let _ = writeln!(text, "- {tag}");
        }
        text + "---\n"
    }

    fn what(&self) -> String {
        let base = self.base_model.as_deref().map_or("its base".to_owned(), |base| {
            let shown = markdown(base);
            if is_repository(base) { format!("[{shown}](https://huggingface.co/{base})") } else { shown }
        });
        let imatrix = if self.imatrix { " with an importance matrix" } else { "" };
        format!(
            "# {}\n\nQuantizations of {base} that refuse harmful requests more often. No training: \
             `rosi-gguf` {} edited weights that write into the residual stream, directly in the file \
             (rank-one safety injection, [arXiv 2508.20766](https://arxiv.org/abs/2508.20766)).\n\n\
             Edit: {}; SHA-256 of the stored edit `{}`.\n\n\
             Each quantization was made{imatrix} by llama.cpp, or taken as is. The edit was then applied \
             directly to the quantized weights, so that rounding does not lose it. Everything else in the \
             file is unchanged, byte for byte; the `rosi.*` keys in each file describe the edit.\n",
            markdown(self.name),
            env!("CARGO_PKG_VERSION"),
            markdown(&self.edit),
            self.edit_sha256,
        )
    }

    fn tables(&self) -> String {
        let mut text = String::from(
            "## Files\n\n| file | type | size | edit in file | SHA-256 |\n|---|---|--:|--:|---|\n",
        );
        for row in self.rows {
            let gain = row.gain.map_or("-".into(), |gain| format!("{:.1} %", 100.0 * gain));
            let megabytes = row.bytes as f64 / 1e6;
            let _ = writeln!(
                text,
                "| {} | {} | {megabytes:.0} MB | {gain} | `{}` |",
                markdown(&row.file),
                markdown(&row.label),
                row.sha256
            );
        }
        text += "\n## Results\n\nEach file compared with the same quantization without the edit: greedy \
                 answers, judged by rules for English text; counts, rates and 95 % Wilson intervals. \
                 *Borderline* prompts are harmless but sound harmful. KL is the mean divergence of the first \
                 answer token from that quantization, on harmless prompts, in nats.\n\n";
        text + &self.scores()
    }

    fn scores(&self) -> String {
        if self.rows.iter().all(|row| row.scores.is_none()) {
            return self.guards();
        }
        let mut text = String::from(
            "| type | edit | harmful refused | harmless refused | borderline refused | undecided | broken \
             | KL |\n|---|---|---|---|---|--:|--:|--:|\n",
        );
        for row in self.rows {
            let scores = row.scores.iter().flatten().zip(["without", "with"]);
            for (score, which) in scores {
                let count = |share: Proportion| format!("{}/{}", share.count, share.total);
                let _ = writeln!(
                    text,
                    "| {} | {which} | {} | {} | {} | {} | {} | {:.4} |",
                    markdown(&row.label),
                    score.harmful.refused(),
                    score.harmless.refused(),
                    score.borderline.refused(),
                    count(score.undecided()),
                    count(score.broken()),
                    score.kl
                );
            }
        }
        text
    }

    fn guards(&self) -> String {
        let mut text =
            String::from("| type | harmful refused without the edit | with the edit |\n|---|---|---|\n");
        for row in self.rows {
            let [base, file] = row.guard.map(|tally| tally.refused());
            let _ = writeln!(text, "| {} | {base} | {file} |", markdown(&row.label));
        }
        text
    }

    fn limits(&self) -> String {
        "## Limits\n\nThe edit lowers the rate of harmful answers; it does not make a model safe. The \
         prompts are few and in English, and answers are judged by rules. Rephrased prompts, other languages \
         and long conversations were not measured. Over-refusal can increase: see the table. The license and \
         terms of the base model apply to these files.\n\n\
         ## Usage\n\n`llama-server -m FILE.gguf` runs a file. `sha256sum -c SHA256SUMS` checks the \
         downloads; `rosi-gguf verify BASE FILE` shows the differences from the base.\n"
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Score, Tally};

    fn score(refused: u64, kl: f64) -> Score {
        let of = |refused, total: u64| Tally { refused, complied: total - refused, ..Tally::default() };
        Score { harmful: of(refused, 64), harmless: of(3, 48), borderline: of(17, 48), kl }
    }

    fn row(scores: Option<[Score; 2]>) -> Row {
        let guard = Tally { refused: 20, complied: 28, ..Tally::default() };
        Row {
            file: "m-Q4_K_M.gguf".into(),
            label: "Q4_K_M".into(),
            sha256: "00ff".into(),
            bytes: 491_000_000,
            base_sha256: "aa".into(),
            recipe: Default::default(),
            gain: Some(0.9996),
            cosine: Some(1.0),
            changed: 24,
            scores,
            guard: [guard, Tally { refused: 30, complied: 18, ..Tally::default() }],
            seconds: 1.0,
        }
    }

    fn card(rows: &[Row]) -> String {
        Card {
            name: "m-rosi",
            base_model: Some("owner/m".into()),
            license: Some(License::new("Some \"own\" terms", None)),
            edit: "contrast edit along layer 12 (refusal), strength 1.0 %".into(),
            edit_sha256: "beef",
            imatrix: true,
            rows,
        }
        .text()
    }

    #[test]
    fn the_card_has_front_matter_counts_and_intervals() {
        let rows = [row(Some([score(30, 0.0), score(47, 0.0193)]))];
        insta::assert_snapshot!(card(&rows));
    }

    #[test]
    fn text_of_strangers_marks_nothing_up() {
        let hostile = "a|<img src=x>[b](http://x) *c* `d` @e &lt; _f_ g_h\u{202e}\n# i\u{85}";
        let shown =
            r"a\|\<img src=x\>\[b\](http\://x) \*c\* \`d\` \@e \&lt; \_f\_ g_h\\u{202e}\\u{a}\# i\\u{85}";
        let mut row = row(None);
        row.file = hostile.into();
        row.label = hostile.into();
        let card = Card {
            name: hostile,
            base_model: Some(hostile.into()),
            license: Some(License::new(hostile, Some(hostile))),
            edit: hostile.into(),
            edit_sha256: "beef",
            imatrix: false,
            rows: &[row],
        }
        .text();
        let (front, text) = card.strip_prefix("---\n").unwrap().split_once("---\n").unwrap();
        assert_eq!((text.matches(shown).count(), text.matches("img").count()), (6, 6), "{text}");
        let name = front.lines().find_map(|line| line.strip_prefix("license_name: ")).unwrap();
        assert!(!name.contains(|c: char| !(' '..='~').contains(&c)), "{name}");
        assert_eq!(serde_json::from_str::<String>(name).unwrap(), hostile);
    }

    #[test]
    fn without_scores_the_guard_is_told() {
        let text = card(&[row(None)]);
        assert!(text.contains("| Q4_K_M | 20/48 (.42, .29-.56) | 30/48 (.62, .48-.75) |"), "{text}");
    }

    #[test]
    fn licenses_and_base_models_come_from_the_file() {
        assert_eq!(License::new("Apache-2.0", None).id, "apache-2.0");
        assert_eq!(License::new("Gemma Terms", None).name.as_deref(), Some("Gemma Terms"));
        let file = |url: &str| {
            let mut bytes = Vec::new();
            let file = crate::gguf::GgufBuilder::new().string("general.base_model.0.repo_url", url);
            file.write_to(&mut bytes).unwrap();
            Gguf::parse(std::io::Cursor::new(&bytes), bytes.len() as u64).unwrap()
        };
        assert_eq!(base_model_of(&file("https://huggingface.co/a/b")).as_deref(), Some("a/b"));
        assert_eq!(base_model_of(&file("https://huggingface.co/a")), None);
        assert_eq!(base_model_of(&file("ftp://x/a/b")), None);
        for url in ["a](javascript:x)/b", "a/b?c", "a/b@c", "a/b:c", "../b"] {
            assert_eq!(base_model_of(&file(&format!("https://huggingface.co/{url}"))), None, "{url}");
        }
    }
}
