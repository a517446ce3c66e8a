//! `ask`: prints greedy answers, for a quick impression of a model.

use std::path::PathBuf;

use crate::eval::chats;
use crate::gguf::Gguf;
use crate::llama::Engine;
use crate::llama::thinking::Thinker;
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::options::{RunOptions, ThinkingOptions};
use crate::pipeline::session;

/// The model, the prompts, and how to answer them.
#[derive(Debug, Clone)]
pub struct Question {
    /// The model file.
    pub model: PathBuf,
    /// The prompts.
    pub prompts: Vec<String>,
    /// Token limit per answer, clamped to 1 to 512.
    pub tokens: usize,
    /// Whether the model thinks before it answers, and for how long.
    pub thinking: ThinkingOptions,
    /// Whether to print JSON.
    pub json: bool,
}

/// Prints one answer per prompt.
///
/// # Errors
/// Returns [`Error`] if the model cannot be opened or run.
pub fn run(question: &Question, run: &RunOptions, printer: &Printer) -> Result<ExitStatus, Error> {
    let gguf = Gguf::open(&question.model)?;
    gguf.refuse_non_model()?;
    let mut engine = session::load(&gguf, gguf.str("tokenizer.chat_template"), run, printer)?;
    let (chats, tokens) = (chats(&question.prompts, None), question.tokens.clamp(1, 512));
    let answers = match session::thoughts(&engine, question.thinking)? {
        Some(budget) => Thinker::new(&mut engine, budget).answer(&chats, tokens, &mut |_, _| ())?,
        None => engine.answer(&chats, tokens, &mut |_, _| ())?,
    };
    for (prompt, answer) in question.prompts.iter().zip(&answers) {
        if question.json {
            printer.json_text(&serde_json::json!({ "prompt": prompt, "answer": answer }).to_string());
        } else if question.prompts.len() > 1 {
            printer.data(format!("> {prompt}\n{answer}\n"));
        } else {
            printer.data(answer);
        }
    }
    Ok(ExitStatus::Done)
}
