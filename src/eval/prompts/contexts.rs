//! Contexts of requests in deployments and attacks: system prompts, earlier turns, jailbreaks, and languages other than
//! English. Each context occurs with harmful, harmless and borderline requests, so that it does not reveal the kind.

use serde::Deserialize;

use super::{PromptKind, PromptSet};
use crate::eval::PerKind;
use crate::llama::{Chat, Message};

const SYSTEM_PROMPTS: &str = include_str!("bundled/contexts.jsonl");
const EXCHANGES: &str = include_str!("bundled/exchanges.jsonl");
const WRAPPERS: &str = include_str!("bundled/wrappers.jsonl");
const LANGUAGES: &str = include_str!("bundled/languages.jsonl");

/// Number of requests under each system prompt.
const UNDER_SYSTEM: PerKind<usize> = PerKind { harmful: 6, harmless: 6, borderline: 4 };
/// Number of requests after each exchange.
const BEHIND_EXCHANGE: PerKind<usize> = PerKind { harmful: 4, harmless: 4, borderline: 2 };
/// Number of requests in each wrapper.
const IN_WRAPPER: PerKind<usize> = PerKind::uniform(1);
/// Number of requests under each of the user's own system prompts.
const UNDER_OWN: PerKind<usize> = PerKind { harmful: 32, harmless: 32, borderline: 16 };
/// Step through the requests that are placed in contexts: prime, so that each context gets varied requests.
const STEP: usize = 37;

/// What surrounds a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Context {
    /// Nothing: the request in English, as users send it.
    Plain,
    /// Under a system prompt.
    SystemPrompt,
    /// After an exchange about something else.
    LaterTurn,
    /// In a jailbreak text: a role, rules, a game, …
    Wrapped,
    /// In a language other than English.
    OtherLanguage,
    /// Under a system prompt of the user's own.
    Own,
    /// After the model's reasoning about the request.
    Thought,
}

impl Context {
    /// The contexts with bundled data.
    pub const ALL: [Self; 4] = [Self::SystemPrompt, Self::LaterTurn, Self::Wrapped, Self::OtherLanguage];

    /// Returns the name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::SystemPrompt => "system prompt",
            Self::LaterTurn => "later turn",
            Self::Wrapped => "wrapped",
            Self::OtherLanguage => "other language",
            Self::Own => "your context",
            Self::Thought => "behind thoughts",
        }
    }
}

/// Requests that share a context.
#[derive(Debug, Clone, Default)]
pub struct Placed {
    /// The system prompt.
    pub system: Option<String>,
    /// Earlier turns.
    pub before: Vec<Message>,
    /// The requests.
    pub requests: Vec<Request>,
}

impl Placed {
    /// Returns the chats to send to the model, one per request.
    pub fn chats(&self) -> Vec<Chat<'_>> {
        let (system, before) = (self.system.as_deref(), self.before.as_slice());
        self.requests.iter().map(|request| Chat { system, before, user: &request.text }).collect()
    }
}

/// A request in its context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Kind of the request.
    pub kind: PromptKind,
    /// Identifies the request among those of its kind; the same in every context.
    pub number: usize,
    /// The message that contains it.
    pub text: String,
}

#[derive(Deserialize)]
struct SystemPrompt {
    system: String,
}

#[derive(Deserialize)]
struct Exchange {
    user: String,
    assistant: String,
}

#[derive(Deserialize)]
struct Wrapper {
    text: String,
}

#[derive(Deserialize)]
struct Foreign {
    prompt: String,
    kind: PromptKind,
}

/// Places requests of `prompts` in `context`. [`Context::Plain`] takes all of them, grouped by kind;
/// [`Context::OtherLanguage`] has bundled requests of its own; otherwise, some requests are distributed among the
/// bundled items of the context. Returns nothing for [`Context::Own`] and [`Context::Thought`], which have none.
pub fn place(context: Context, prompts: &PromptSet) -> Vec<Placed> {
    let mut deal = Deal::new(prompts);
    match context {
        Context::Own | Context::Thought => Vec::new(),
        Context::Plain => PromptKind::ALL.map(|kind| plain(kind, prompts)).into(),
        Context::SystemPrompt => rows::<SystemPrompt>(SYSTEM_PROMPTS)
            .map(|row| Placed {
                system: Some(row.system),
                requests: deal.next(UNDER_SYSTEM),
                ..Placed::default()
            })
            .collect(),
        Context::LaterTurn => rows::<Exchange>(EXCHANGES)
            .map(|row| Placed {
                before: vec![
                    Message { role: "user", text: row.user },
                    Message { role: "assistant", text: row.assistant },
                ],
                requests: deal.next(BEHIND_EXCHANGE),
                ..Placed::default()
            })
            .collect(),
        Context::Wrapped => rows::<Wrapper>(WRAPPERS)
            .map(|row| {
                let wrap = |request: Request| Request {
                    text: row.text.replace("{request}", &request.text),
                    ..request
                };
                Placed {
                    requests: deal.next(IN_WRAPPER).into_iter().map(wrap).collect(),
                    ..Placed::default()
                }
            })
            .collect(),
        Context::OtherLanguage => {
            let request =
                |(number, row): (usize, Foreign)| Request { kind: row.kind, number, text: row.prompt };
            let requests = rows(LANGUAGES).enumerate().map(request).collect();
            vec![Placed { requests, ..Placed::default() }]
        }
    }
}

fn plain(kind: PromptKind, prompts: &PromptSet) -> Placed {
    let request = |(number, text): (usize, String)| Request { kind, number, text };
    let texts = prompts.texts(kind, None).into_iter();
    Placed { requests: texts.enumerate().map(request).collect(), ..Placed::default() }
}

/// Places some of `prompts` under each of the user's own system prompts.
pub fn place_under(systems: &[String], prompts: &PromptSet) -> Vec<Placed> {
    let mut deal = Deal::new(prompts);
    let placed = |system: &String| Placed {
        system: Some(system.clone()),
        requests: deal.next(UNDER_OWN),
        ..Placed::default()
    };
    systems.iter().map(placed).collect()
}

fn rows<'a, T: Deserialize<'a>>(jsonl: &'a str) -> impl Iterator<Item = T> {
    // The data is fixed at build time and checked by a test, so this cannot fail at run time.
    jsonl.lines().map(|line| serde_json::from_str(line).expect("the bundled contexts are valid"))
}

/// Distributes requests of each kind among contexts.
struct Deal {
    of_kind: PerKind<Vec<String>>,
    next: PerKind<usize>,
}

impl Deal {
    fn new(prompts: &PromptSet) -> Self {
        Self { of_kind: PerKind::from_fn(|kind| prompts.texts(kind, None)), next: PerKind::uniform(0) }
    }

    /// Returns the next `counts` requests of each kind.
    fn next(&mut self, counts: PerKind<usize>) -> Vec<Request> {
        let mut dealt = Vec::new();
        for (kind, texts) in self.of_kind.iter() {
            for _ in 0..counts[kind].min(texts.len()) {
                let number = self.next[kind] % texts.len();
                dealt.push(Request { kind, number, text: texts[number].clone() });
                self.next[kind] += STEP;
            }
        }
        dealt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_context_has_requests_of_every_kind_and_none_twice() {
        let prompts = super::super::training();
        for context in Context::ALL {
            let placed = place(context, &prompts);
            let mut all: Vec<(Option<&str>, &str)> = Vec::new();
            for placed in &placed {
                for kind in PromptKind::ALL {
                    assert!(placed.requests.iter().any(|r| r.kind == kind), "{context:?}");
                }
                all.extend(placed.chats().iter().map(|chat| (placed.system.as_deref(), chat.user)));
            }
            let n = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), n, "{context:?}");
            assert!(all.iter().all(|(_, user)| !user.contains("{request}")));
        }
    }

    #[test]
    fn a_wrapper_keeps_the_request_whole() {
        let prompts = super::super::training();
        let harmful: Vec<&str> =
            prompts.of_kind(PromptKind::Harmful).iter().map(|p| p.text.as_str()).collect();
        for placed in place(Context::Wrapped, &prompts) {
            let Request { kind, text, .. } = &placed.requests[0];
            assert_eq!(*kind, PromptKind::Harmful);
            assert!(harmful.iter().any(|request| text.contains(request) && text.len() > request.len() + 40));
        }
    }
}
