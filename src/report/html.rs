//! Renders the report as one HTML page: no scripts, no external resources, light and dark, every chart with a table of
//! its numbers. Model answers are hostile input: the template engine escapes all text.

use minijinja::value::Serde;
use minijinja::{Environment, context};

use super::{Report, ReportError};
use crate::eval::PerKind;
use crate::output::steers;
use answers::Answers;
use section::Section;

mod answers;
mod chart;
mod gates;
mod section;
mod sections;

/// A label and a value.
type Fact = (&'static str, String);

impl Report {
    /// Renders the page. The same report always gives the same bytes.
    ///
    /// # Errors
    /// Returns [`ReportError::Page`] if a template is invalid.
    pub fn page(&self) -> Result<String, ReportError> {
        let mut templates = Environment::new();
        templates.add_template("page.html", include_str!("html/page.html"))?;
        templates.add_template("chart.html", include_str!("html/chart.html"))?;
        templates.add_template("style.css", include_str!("html/style.css"))?;
        let sections: Vec<Section> = [
            sections::scores(self),
            sections::separation(self),
            sections::projections(self),
            sections::search(self),
            gates::gates(self),
            gates::thinking(self),
            answers::judge(self),
            sections::survival(self),
        ]
        .into_iter()
        .flatten()
        .collect();
        let page = templates.get_template("page.html")?.render(context! {
            name => file_name(&self.output.path),
            version => self.version.as_str(),
            survived => self.survived(),
            lead => self.lead(),
            tiles => self.tiles(),
            facts => self.facts(),
            sections => Serde(&sections),
            answers => Serde(Answers::by_kind(&self.answers)),
        })?;
        // HTML allows no control characters, and direction overrides must not reorder the text beside them.
        let allowed =
            |c: char| matches!(c, '\n' | '\t') || !(steers(c) || matches!(c, '\u{fffe}' | '\u{ffff}'));
        Ok(page.chars().map(|c| if allowed(c) { c } else { '\u{fffd}' }).collect())
    }

    /// Describes the edit in one sentence.
    fn lead(&self) -> String {
        let e = &self.edit;
        if self.is_detector() {
            return format!(
                "Made from {} with detector neurons in {} matrices along {}, push {:.1}, pull {:.1}.",
                file_name(&self.input.path),
                e.writers,
                e.direction_source.along(e.layer, e.system_prompt),
                e.strength,
                e.strength * e.contrast
            );
        }
        format!(
            "Made from {} with one {} edit along {}, strength {:.2} %, in {} matrices.",
            file_name(&self.input.path),
            e.method,
            e.direction_source.along(e.layer, e.system_prompt),
            100.0 * e.strength,
            e.writers
        )
    }

    /// Returns the key results: label, value, and the value before.
    fn tiles(&self) -> Vec<[String; 3]> {
        let (base, written) = (&self.scores.base, &self.scores.written);
        let tile = |label: &str, before: crate::eval::Tally, after: crate::eval::Tally| {
            let (before, after) = (before.refused(), after.refused());
            let value = format!("{}/{}", after.count, after.total);
            [label.to_owned(), value, format!("before: {}/{}", before.count, before.total)]
        };
        let gain = section::percent(self.verification.gain.unwrap_or(f64::NAN));
        vec![
            tile("harmful refused", base.harmful, written.harmful),
            tile("harmless refused", base.harmless, written.harmless),
            tile("borderline refused", base.borderline, written.borderline),
            ["KL from the base".into(), section::fixed(written.kl, 4), "nats, harmless prompts".into()],
            ["edit in the file".into(), gain, "of the requested change".into()],
        ]
    }

    fn facts(&self) -> Vec<Fact> {
        let e = &self.edit;
        let file = |f: &super::FileFacts| format!("{}\n{} bytes\nsha256 {}", f.path, f.bytes, f.sha256);
        let prompts = |name: &str, n: PerKind<usize>| {
            format!("{name}: {} harmful, {} harmless, {} borderline", n.harmful, n.harmless, n.borderline)
        };
        let p = &self.prompts;
        let splits = [("extract", p.extract), ("search", p.search), ("report", p.report)];
        let splits = splits.map(|(name, n)| prompts(name, n)).join("\n");
        let ablated = |s: &crate::method::abliteration::AblatedDirection| {
            format!("from {} of {} writers, gap {:.2}", s.writers.0, s.writers.1, s.gap)
        };
        let stages = self.stages.iter().map(|s| format!("\n{}: {:.1} s", s.name, s.seconds));
        let linear = |text: String| (!self.is_detector()).then_some(text);
        let took = format!("{:.0} s", self.seconds) + &stages.collect::<String>();
        let all = [
            ("model", Some(file(&self.input))),
            ("written file", Some(file(&self.output))),
            ("stored edit", self.stored_edit.as_ref().map(file)),
            ("architecture", Some(self.architecture.clone())),
            ("method", Some(e.method.clone())),
            ("direction source", Some(e.direction_source.name().into())),
            ("removed direction", self.ablated.as_ref().map(ablated)),
            ("system prompt", Some(e.system_prompt.to_string())),
            ("layer", Some(e.layer.to_string())),
            ("window", Some(e.window.to_string())),
            (
                if self.is_detector() { "pull / push" } else { "contrast κ" },
                Some(format!("{:.2}", e.contrast)),
            ),
            ("strength", linear(format!("{:.4} % (α = {:.4})", 100.0 * e.strength, e.alpha))),
            (
                "matrices",
                Some(match self.is_detector() {
                    true => e.writers.to_string(),
                    false => format!("{}, {} push away from refusal", e.writers, e.writers_against),
                }),
            ),
            (
                "changed",
                Some(format!("{:.3} % of the file's bytes", 100.0 * self.verification.changed_bytes)),
            ),
            ("unedited experts", (e.experts_unrouted > 0).then(|| e.experts_unrouted.to_string())),
            ("push", Some(format!("{:.3} ‖s‖", e.push))),
            ("prompts", Some(format!("{}\n{splits}\nsha256 {}", p.source, p.sha256))),
            ("made with", Some(format!("rosi-gguf {}, llama.cpp {}", self.version, self.llama_cpp))),
            ("duration", Some(took)),
            ("peak memory", self.peak_memory.map(|bytes| format!("{:.0} MB", bytes as f64 / 1e6))),
        ];
        all.into_iter().filter_map(|(label, value)| Some((label, value?))).collect()
    }
}

/// Returns the file name of a path with `/` or `\` separators.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}
