//! `chat`: a chat loop, optionally with two models side by side.

use std::io::{BufRead, IsTerminal};
use std::path::Path;

use crate::cli::ChatArgs;
use crate::gguf::Gguf;
use crate::llama::chat::{ChatModel, ChatOptions, Conversation};
use crate::llama::{LlamaError, header};
use crate::output::Printer;
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::options::{RunOptions, ThinkingOptions};
use crate::pipeline::session;
use crate::sources::{ModelArg, Source};
use crate::util::hint::Hint;
use crate::util::interrupt;

/// Valid token limits of a conversation.
const N_CTX: std::ops::RangeInclusive<usize> = 128..=1 << 20;
/// Maximum length of a message, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// One of the models that answer.
struct Side {
    label: String,
    talk: Conversation,
}

/// Reads and answers messages from stdin until it ends or `/quit`.
///
/// # Errors
/// Returns [`Error`] if a model cannot be opened or run. A message that a model cannot take is reported, and the loop
/// continues.
pub fn run(
    args: ChatArgs,
    find: &mut dyn FnMut(&ModelArg) -> Result<Source, Error>,
    printer: &Printer,
) -> Result<ExitStatus, Error> {
    let run = RunOptions::new(args.run)?;
    if !N_CTX.contains(&args.ctx_size) || args.tokens == 0 || args.tokens * 2 > args.ctx_size {
        let problem = format!("found {} tokens with answers of up to {}", args.ctx_size, args.tokens);
        let hint = Some("expected 128 to 1048576 tokens, and --tokens from 1 to half of that".into());
        return Err(Error::Option { flag: "--ctx-size", problem, hint });
    }
    let options = ChatOptions {
        threads: run.threads,
        offload: run.offload.clone(),
        n_ctx: args.ctx_size,
        n_predict: args.tokens,
        n_think: ThinkingOptions::from(args.thinking).before_answers().unwrap_or(0),
    };
    session::devices(&run, printer)?;
    let system = args.system.as_deref();
    let path = find(&args.model)?.path;
    let (gguf, model) = load(&path, options.clone(), printer)?;
    let side = |label, talk| Side { label, talk };
    let mut sides = vec![side(label(&args.model), model.begin(system)?)];
    if let Some(lora) = &args.lora {
        sides.push(side(name(lora), model.begin(system)?.with_adapter(lora, &gguf)?));
    }
    if let Some(beside) = &args.beside {
        let (_, other) = load(&find(beside)?.path, options, printer)?;
        sides.push(side(label(beside), other.begin(system)?));
    }
    printer.say("/quit ends the chat, /reset starts over; Ctrl-C stops an answer, twice quits");
    talk(&mut sides, printer)
}

fn load(path: &Path, options: ChatOptions, printer: &Printer) -> Result<(Gguf, ChatModel), Error> {
    let gguf = session::open(path)?;
    let template = gguf.str("tokenizer.chat_template").filter(|t| !t.trim().is_empty());
    let template = template.ok_or_else(|| Error::NoTemplate { path: path.into() })?;
    header::check(&gguf).map_err(LlamaError::from)?;
    let bar = printer.bar(&format!("loading {}", name(path)), 100);
    let model = ChatModel::load(path, template, options, &mut |share| bar.set((share * 100.0) as u64))?;
    drop(bar);
    Ok((gguf, model))
}

/// Returns the name to show above a model's answers.
fn label(model: &ModelArg) -> String {
    match model {
        ModelArg::File(path) => name(path),
        named => named.to_string(),
    }
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn talk(sides: &mut [Side], printer: &Printer) -> Result<ExitStatus, Error> {
    let stdin = std::io::stdin();
    let by_hand = stdin.is_terminal();
    let mut input = stdin.lock();
    loop {
        if by_hand {
            printer.prompt();
        }
        let Some(line) = read_line(&mut input)? else { return Ok(ExitStatus::Done) };
        // A Ctrl-C at the prompt must not stop the next answer.
        interrupt::clear();
        match line.trim() {
            "" => {}
            "/quit" => return Ok(ExitStatus::Done),
            "/reset" => sides.iter_mut().for_each(|side| side.talk.reset()),
            command if command.starts_with('/') && !command.contains(' ') => {
                printer.warn(format!("unknown command {command}, expected /quit or /reset"));
            }
            message => answer_all(sides, message, printer)?,
        }
    }
}

/// Reads one message. Returns `None` at the end of the input.
fn read_line(input: &mut impl BufRead) -> Result<Option<String>, Error> {
    let mut bytes = Vec::new();
    let read = std::io::Read::take(&mut *input, MAX_LINE).read_until(b'\n', &mut bytes);
    let n = read.map_err(|source| Error::Io { path: "stdin".into(), source })?;
    Ok((n > 0).then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

fn answer_all(sides: &mut [Side], message: &str, printer: &Printer) -> Result<(), Error> {
    let several = sides.len() > 1;
    for side in sides {
        if several {
            printer.data(format!("[{}]", side.label));
        }
        // A closed stdout is noticed at the end of the input.
        let said = side.talk.say(message, &mut |piece| printer.piece(piece));
        match said {
            Ok(answer) => {
                printer.data(if answer.stopped { " …" } else { "" });
                interrupt::clear();
                if answer.stopped {
                    return Ok(());
                }
            }
            Err(error @ (LlamaError::ControlTokens | LlamaError::PromptTooLong { .. })) => {
                printer.warn(error.to_string());
                if let Some(hint) = error.hint() {
                    printer.say(format!("hint: {hint}; or start over with /reset"));
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_to_the_end() {
        let mut input = &b"one\ntw\xffo"[..];
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some("one\n"));
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some("tw\u{FFFD}o"));
        assert_eq!(read_line(&mut input).unwrap(), None);
    }
}
