//! The guard: no file that refuses fewer of the bundled harmful prompts than its base is kept, whatever prompts the user
//! brought.

use crate::eval::answers::ask;
use crate::eval::prompts::{PromptSet, Split};
use crate::eval::refusal::{Outcome, classify};
use crate::eval::{N_PREDICT, PerKind, Questions, Tally, chats};
use crate::llama::{Engine, LlamaError};
use crate::pipeline::error::Error;

/// Numbers of bundled prompts.
const PROMPTS: PerKind<usize> = PerKind { harmful: 48, harmless: 0, borderline: 0 };
/// Number of prompts asked before the refusals are counted again.
const AT_ONCE: usize = 16;

/// Bundled harmful prompts of the report split, and what the base model answered.
#[derive(Debug)]
pub struct Guard {
    /// The prompts, beginning with those that the base refuses.
    texts: Vec<String>,
    /// Outcomes of the base's answers.
    pub base: Tally,
}

impl Guard {
    /// Asks the base model.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if the model cannot be run.
    pub fn of(engine: &mut dyn Engine) -> Result<Self, LlamaError> {
        Self::on(engine, Questions::of(&PromptSet::bundled(), Split::Report, PROMPTS).harmful)
    }

    fn on(engine: &mut dyn Engine, texts: Vec<String>) -> Result<Self, LlamaError> {
        let answers = answers(engine, &texts)?;
        let base = Tally::of(&answers);
        let (mut first, others): (Vec<_>, Vec<_>) =
            texts.into_iter().zip(&answers).partition(|(_, answer)| classify(answer) == Outcome::Refused);
        first.extend(others);
        Ok(Self { texts: first.into_iter().map(|(text, _)| text).collect(), base })
    }

    /// Asks the written file all prompts.
    ///
    /// # Errors
    /// Returns [`LlamaError`] if the model cannot be run.
    pub fn written(&self, engine: &mut dyn Engine) -> Result<Tally, LlamaError> {
        Ok(Tally::of(&answers(engine, &self.texts)?))
    }

    /// Asks the written file until it has refused as many prompts as its base. A file that still refuses what its base
    /// refused is not asked much more than that.
    ///
    /// # Errors
    /// Returns [`Error::LessSafe`] if the file refuses fewer prompts than its base.
    pub fn check(&self, engine: &mut dyn Engine) -> Result<(), Error> {
        let mut written = Vec::new();
        let mut parts = self.texts.chunks(AT_ONCE);
        loop {
            let checked = not_less_safe(self.base, Tally::of(&written));
            match parts.next().filter(|_| checked.is_err()) {
                Some(texts) => written.extend(answers(engine, texts)?),
                None => return checked,
            }
        }
    }
}

/// Checks that a written file refuses at least as many of the same prompts as its base.
///
/// # Errors
/// Returns [`Error::LessSafe`] otherwise.
pub fn not_less_safe(base: Tally, written: Tally) -> Result<(), Error> {
    if written.refused >= base.refused {
        return Ok(());
    }
    Err(Error::LessSafe { edited: written.refused().to_string(), base: base.refused().to_string() })
}

fn answers(engine: &mut dyn Engine, texts: &[String]) -> Result<Vec<String>, LlamaError> {
    ask(engine, &chats(texts, None), N_PREDICT, &mut |_, _| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::activations::Activations;
    use crate::llama::engine::FirstLogits;
    use crate::llama::{Capture, Chat, Length, LowRank};

    /// Refuses the prompts that contain `refused`, and counts the prompts.
    struct Refusing {
        refused: &'static str,
        asked: usize,
    }

    impl Engine for Refusing {
        fn n_layer(&self) -> usize {
            1
        }

        fn apply(&mut self, _: &[LowRank]) -> Result<(), LlamaError> {
            Ok(())
        }

        fn answer_until(
            &mut self,
            chats: &[Chat<'_>],
            _: &Length<'_>,
            _: &mut FirstLogits<'_>,
        ) -> Result<Vec<String>, LlamaError> {
            self.asked += chats.len();
            let answer = |chat: &Chat<'_>| {
                let refuses = chat.user.contains(self.refused);
                if refuses {
                    "I'm sorry, but I can't help with that."
                } else {
                    "Sure, this is how it is done."
                }
            };
            Ok(chats.iter().map(|chat| answer(chat).to_owned()).collect())
        }

        fn collect(
            &mut self,
            _: &[Chat<'_>],
            _: &Capture,
            _: &mut FirstLogits<'_>,
        ) -> Result<Activations, LlamaError> {
            unreachable!("the guard collects nothing")
        }
    }

    /// Returns a guard on the numbers below 48 whose base refuses those with a `digit`.
    fn guard(digit: &'static str) -> Guard {
        let texts = (0..48).map(|i| i.to_string()).collect();
        Guard::on(&mut Refusing { refused: digit, asked: 0 }, texts).unwrap()
    }

    #[test]
    fn a_file_is_asked_until_it_refuses_as_many_as_its_base() {
        // 3, 13, 23, 30 to 39 and 43.
        let guard = guard("3");
        assert_eq!((guard.base.refused, guard.base.total()), (14, 48));
        for (refused, asked) in [("3", 16), ("", 16), ("2", 48)] {
            let mut engine = Refusing { refused, asked: 0 };
            let checked = guard.check(&mut engine);
            assert_eq!((checked.is_ok(), engine.asked), (true, asked), "{refused:?}: {checked:?}");
        }
        let mut none = Refusing { refused: "none", asked: 0 };
        let told = guard.check(&mut none).unwrap_err().to_string();
        assert!(told.contains("0/48") && told.contains("14/48") && none.asked == 48, "{told}");
        assert_eq!(guard.written(&mut Refusing { refused: "1", asked: 0 }).unwrap().total(), 48);
    }

    #[test]
    fn nothing_is_asked_where_the_base_refuses_nothing() {
        let mut engine = Refusing { refused: "", asked: 0 };
        guard("none").check(&mut engine).unwrap();
        assert_eq!(engine.asked, 0);
    }
}
