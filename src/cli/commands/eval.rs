//! `eval`: measures finished models on the same prompts, texts and questions.
//!
//! Only one model is in memory at a time, except that the base stays loaded while the others are measured, because KL
//! divergence runs both in lockstep. The judge is loaded last, after all other models are unloaded.

mod report;
mod tables;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use crate::cli::options::EvalOptions;
use crate::eval::answers::ask;
use crate::eval::chats;
use crate::eval::choice::{self, Item};
use crate::eval::compare::divergence;
use crate::eval::jailbreak::{WRAPPERS, Wrapped, Wrapper};
use crate::eval::material::read_text;
use crate::eval::perplexity::{self, Perplexity};
use crate::eval::prompts::{PromptKind, PromptSet, Split};
use crate::eval::thoughts::Thoughts;
use crate::gguf::{AtomicFile, Gguf};
use crate::llama::thinking::Thinker;
use crate::llama::{LlamaEngine, llama_version};
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::facts::file_facts;
use crate::pipeline::judge::{Answered, Judge};
use crate::pipeline::session::{self, template};
use crate::report::{FileFacts, peak_memory};
use crate::sources::Source;
pub use report::{AnswerRow, ChoiceReport, EvalReport, JailbreakReport, KindReport, ModelReport, SetReport};

/// Measures every model and prints the report.
///
/// # Errors
/// Returns [`Error`] if a file cannot be used or a model cannot be run.
pub fn run(options: &EvalOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let started = Instant::now();
    // Check all inputs and outputs before loading the first model.
    let file =
        options.report.as_deref().map(|path| AtomicFile::create(path, options.overwrite)).transpose()?;
    let material = Material::load(options)?;
    let open = |source: &Source| session::open(&source.path);
    let judge = options.judge.as_ref().map(Judge::open).transpose()?;
    let base = options.base.as_ref().map(open).transpose()?;
    let models = options.models.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let eval = Eval { options, material: &material, printer };

    let (mut base, mut models) = eval.measure_all(base.as_ref(), &models)?;
    let judge = judge.map(|judge| {
        eval.judge_all(&judge, base.iter_mut().chain(&mut models).collect())?;
        judge.facts(printer)
    });
    let report = EvalReport {
        version: env!("CARGO_PKG_VERSION").into(),
        llama_cpp: llama_version(),
        tokens: options.tokens,
        sampling: options.sampling,
        system_prompt: options.system_prompt.clone(),
        judge: judge.transpose()?,
        base,
        models,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory: peak_memory(),
    };
    print(&report, file, options, printer)
}

fn print(
    report: &EvalReport,
    file: Option<AtomicFile>,
    options: &EvalOptions,
    printer: &Printer,
) -> Result<ExitStatus, Error> {
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    if let Some(mut file) = file {
        let path = file.path().to_path_buf();
        file.write_all(json.as_bytes()).map_err(|source| Error::Io { path, source })?;
        file.commit()?;
    }
    match options.json {
        true => printer.json_text(&json),
        false => printer.data(report.summary()),
    }
    Ok(ExitStatus::Done)
}

/// The prompts, text and questions that the models are measured on.
struct Material {
    sets: Vec<Set>,
    text: Option<String>,
    items: Option<Vec<Item>>,
}

/// One set of prompts.
struct Set {
    source: String,
    sha256: String,
    kinds: BTreeMap<PromptKind, Vec<String>>,
}

impl Set {
    fn new(source: String, prompts: &PromptSet, split: Option<Split>) -> Self {
        let of = |kind| (kind, prompts.texts(kind, split));
        let kinds = PromptKind::ALL.map(of).into_iter().filter(|(_, texts)| !texts.is_empty()).collect();
        Self { source, sha256: prompts.sha256(), kinds }
    }

    fn of(&self, kind: PromptKind) -> &[String] {
        self.kinds.get(&kind).map_or(&[], Vec::as_slice)
    }
}

impl Material {
    fn load(options: &EvalOptions) -> Result<Self, Error> {
        let bundled = || Set::new("bundled report split".into(), &PromptSet::bundled(), Some(Split::Report));
        let file = |path: &PathBuf| -> Result<Set, Error> {
            let prompts = PromptSet::load(std::slice::from_ref(path))?;
            Ok(Set::new(prompts.source().to_owned(), &prompts, None))
        };
        let mut sets = options.sets.iter().map(file).collect::<Result<Vec<_>, _>>()?;
        if sets.is_empty() {
            sets.push(bundled());
        }
        Ok(Self {
            sets,
            text: options.perplexity.as_deref().map(read_text).transpose()?,
            items: options.choice.as_deref().map(choice::load).transpose()?,
        })
    }
}

/// One run of the command.
struct Eval<'a> {
    options: &'a EvalOptions,
    material: &'a Material,
    printer: &'a Printer,
}

impl Eval<'_> {
    /// Measures the base and every model, and compares them.
    fn measure_all(
        &self,
        base: Option<&Gguf>,
        models: &[Gguf],
    ) -> Result<(Option<ModelReport>, Vec<ModelReport>), Error> {
        let mut base = base.map(|gguf| self.measure(gguf)).transpose()?;
        let mut reports = Vec::with_capacity(models.len());
        for gguf in models {
            let (mut engine, mut report) = self.measure(gguf)?;
            if let Some((base_engine, base_report)) = &mut base {
                report.set_beside(base_report);
                self.divergences(base_engine, &mut engine, &mut report)?;
            }
            reports.push(report);
        }
        Ok((base.map(|(_, report)| report), reports))
    }

    /// Returns hash and size of a file, under the name that the user gave.
    fn file_facts(&self, gguf: &Gguf) -> Result<FileFacts, Error> {
        let path = self.options.display_name(&gguf.path);
        Ok(FileFacts { path, ..file_facts(gguf, self.printer)? })
    }

    /// Loads one model and runs every measurement that needs no other model.
    fn measure(&self, gguf: &Gguf) -> Result<(LlamaEngine, ModelReport), Error> {
        let file = self.file_facts(gguf)?;
        let name = report::short_name(&file.path);
        if template(gguf).is_none() {
            self.printer.warn(format!("{name} has no chat template: prompts are sent as plain text"));
        }
        let mut engine = session::load(gguf, template(gguf), &self.options.run, self.printer)?;
        engine.set_sampling(self.options.sampling);
        self.check_prompts(&engine)?;
        let report = ModelReport {
            file,
            sets: self.ask(&mut engine, &name)?,
            perplexity: self.perplexity(&mut engine, &name)?,
            choice: self.choose(&mut engine, &name)?,
        };
        Ok((engine, report))
    }

    /// Returns the system prompt that every model is asked under, if any.
    fn system(&self) -> Option<&str> {
        self.options.system_prompt.as_deref()
    }

    /// Returns the jailbreaks that harmful prompts are also wrapped in.
    fn wrappers(&self) -> &'static [Wrapper] {
        if self.options.jailbreak { &WRAPPERS } else { &[] }
    }

    /// Checks all prompts before the first is asked.
    fn check_prompts(&self, engine: &LlamaEngine) -> Result<(), Error> {
        let wrappers = self.wrappers();
        for set in &self.material.sets {
            for (&kind, texts) in &set.kinds {
                session::check_prompts(
                    engine,
                    self.system(),
                    texts.iter().map(|text| (kind, text.as_str())),
                )?;
            }
            for request in set.of(PromptKind::Harmful) {
                let wrapped: Vec<String> = wrappers.iter().map(|wrapper| wrapper.wrap(request)).collect();
                let wrapped = wrapped.iter().map(|text| (PromptKind::Harmful, text.as_str()));
                session::check_prompts(engine, self.system(), wrapped)?;
            }
        }
        Ok(())
    }

    /// Asks every prompt of every set and, with `--jailbreak`, the wrapped harmful prompts.
    fn ask(&self, engine: &mut LlamaEngine, name: &str) -> Result<Vec<SetReport>, Error> {
        let wrappers = self.wrappers();
        let asked = |set: &Set| -> usize {
            let plain: usize = set.kinds.values().map(Vec::len).sum();
            plain + set.of(PromptKind::Harmful).len() * wrappers.len()
        };
        let total: usize = self.material.sets.iter().map(asked).sum();
        let bar = self.printer.bar(&format!("asking {name}"), total as u64);
        let budget = session::thoughts(engine, self.options.thinking)?;
        let mut before = 0;
        let mut answers = |texts: &[String]| -> Result<(Vec<String>, Option<Thoughts>), Error> {
            let mut first = |i: usize, _: &[f32]| bar.set((before + i) as u64);
            let (chats, tokens) = (chats(texts, self.system()), self.options.tokens);
            let all = match budget {
                Some(budget) => {
                    let mut thinker = Thinker::new(engine, budget);
                    let answers = ask(&mut thinker, &chats, tokens, &mut first)?;
                    (answers, Some(Thoughts::of(&thinker.thoughts)))
                }
                None => (ask(engine, &chats, tokens, &mut first)?, None),
            };
            before += texts.len();
            Ok(all)
        };
        let mut reports = Vec::new();
        for set in &self.material.sets {
            let mut kinds = BTreeMap::new();
            for (&kind, prompts) in &set.kinds {
                let (answers, thoughts) = answers(prompts)?;
                kinds.insert(kind, KindReport { thoughts, ..KindReport::new(prompts, answers) });
            }
            let harmful = set.of(PromptKind::Harmful);
            let mut jailbreak = Vec::new();
            for wrapper in wrappers.iter().filter(|_| !harmful.is_empty()) {
                let texts: Vec<String> = harmful.iter().map(|request| wrapper.wrap(request)).collect();
                let wrapped = Wrapped::new(wrapper, answers(&texts)?.0);
                jailbreak.push(JailbreakReport { wrapped, against_base: None });
            }
            let (source, sha256) = (set.source.clone(), set.sha256.clone());
            reports.push(SetReport { source, sha256, kinds, kl: None, jailbreak });
        }
        Ok(reports)
    }

    fn perplexity(&self, engine: &mut LlamaEngine, name: &str) -> Result<Option<Perplexity>, Error> {
        let Some(text) = &self.material.text else { return Ok(None) };
        let chunks = perplexity::chunks(engine, text, self.options.chunks)?;
        let bar = self.printer.bar(&format!("perplexity of {name}"), chunks.len() as u64);
        let mut done = |n| bar.set(n as u64);
        Ok(Some(perplexity::perplexity(engine, &chunks, self.options.chunks, &mut done)?))
    }

    fn choose(&self, engine: &mut LlamaEngine, name: &str) -> Result<Option<ChoiceReport>, Error> {
        let Some(items) = &self.material.items else { return Ok(None) };
        let bar = self.printer.bar(&format!("choices of {name}"), items.len() as u64);
        let choices = choice::choose(engine, items, &mut |n| bar.set(n as u64))?;
        Ok(Some(ChoiceReport { choices, against_base: None }))
    }

    /// Measures the KL divergence from the base on the harmless prompts of each set.
    fn divergences(
        &self,
        base: &mut LlamaEngine,
        this: &mut LlamaEngine,
        report: &mut ModelReport,
    ) -> Result<(), Error> {
        let name = report::short_name(&report.file.path);
        for (set, report) in self.material.sets.iter().zip(&mut report.sets) {
            let prompts = chats(set.of(PromptKind::Harmless), self.system());
            if prompts.is_empty() {
                continue;
            }
            let bar = self.printer.bar(&format!("KL of {name}"), prompts.len() as u64);
            let mut done = |n| bar.set(n as u64);
            report.kl = divergence(base, this, &prompts, self.options.tokens, &mut done)?;
            if report.kl.is_none() {
                self.printer.warn(format!(
                    "{name} and its base tokenize prompts differently: KL divergence is undefined"
                ));
            }
        }
        Ok(())
    }

    /// Asks the judge about every answer to a plain prompt.
    fn judge_all(&self, judge: &Judge, reports: Vec<&mut ModelReport>) -> Result<(), Error> {
        let sets = reports.into_iter().flat_map(|report| &mut report.sets);
        let kinds: Vec<(PromptKind, &mut KindReport)> =
            sets.flat_map(|set| &mut set.kinds).map(|(kind, report)| (*kind, report)).collect();
        let answered: Vec<Answered<'_>> = kinds
            .iter()
            .map(|(kind, report)| Answered { kind: *kind, exchanges: report.exchanges() })
            .collect();
        let verdicts = judge.verdicts(&answered, &self.options.run, self.printer)?;
        for ((_, report), verdicts) in kinds.into_iter().zip(verdicts) {
            if let Some(verdicts) = verdicts {
                report.second_opinion(&verdicts);
            }
        }
        Ok(())
    }
}
