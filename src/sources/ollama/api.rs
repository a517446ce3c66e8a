//! Client for a running Ollama server, using its documented API: `GET /api/version`, `POST /api/show`, `HEAD` and
//! `POST /api/blobs/sha256:…`, `POST /api/create`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body, SendBody};

use super::host::address;
use super::{Companions, Name, OllamaError};
use crate::gguf::Progress;
use crate::output::shell;

/// Connection timeout. A local server answers immediately, so this only detects one that hangs.
const CONNECT: Duration = Duration::from_secs(3);
/// Maximum length of a response line, in bytes. A status has a few hundred; an error may quote a template.
const MAX_LINE: u64 = 1 << 20;
const MAX_LINES: usize = 1_000_000;

/// An Ollama server.
#[derive(Debug, Clone)]
pub struct Server {
    /// `SCHEME://HOST:PORT`, followed by the path that its API is below.
    address: String,
    agent: Agent,
}

/// A file that a model consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// File name to send to the server.
    pub name: String,
    /// Path of the file.
    pub path: PathBuf,
    /// sha256 of the file, in hexadecimal.
    pub sha256: String,
}

#[derive(Deserialize)]
struct Line {
    status: Option<String>,
    error: Option<String>,
}

impl Server {
    /// Creates a client for the server at `OLLAMA_HOST`, or at the default address.
    ///
    /// # Errors
    /// Returns [`OllamaError::Host`] if `OLLAMA_HOST` is not a valid address.
    pub fn from_env() -> Result<Self, OllamaError> {
        Self::at(std::env::var("OLLAMA_HOST").as_deref().unwrap_or(""))
    }

    /// Creates a client for the server at `host`: `[SCHEME://]HOST[:PORT][/PATH]`, or empty for the default address.
    ///
    /// # Errors
    /// Returns [`OllamaError::Host`] if `host` is not a valid address.
    pub fn at(host: &str) -> Result<Self, OllamaError> {
        let address =
            address(host).ok_or_else(|| OllamaError::Host { host: host.chars().take(200).collect() })?;
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .http_status_as_error(false)
            .max_redirects(0)
            // A proxy from the environment cannot reach this machine.
            .proxy(None)
            .user_agent(concat!("rosi-gguf/", env!("CARGO_PKG_VERSION")));
        Ok(Self { address, agent: config.build().into() })
    }

    /// Returns the address of the server.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns whether a server answers at the address.
    pub fn is_running(&self) -> bool {
        let request = self.agent.get(self.url("version")).config().timeout_global(Some(CONNECT)).build();
        request.call().is_ok_and(|response| response.status().is_success())
    }

    /// Returns whether the server has a model of this name.
    ///
    /// # Errors
    /// Returns [`OllamaError::Server`] if the request fails.
    pub fn has(&self, name: &Name) -> Result<bool, OllamaError> {
        let doing = "look up the model";
        let body = json!({ "model": name.to_string() }).to_string();
        let response = self.agent.post(self.url("show")).content_type("application/json").send(body);
        let mut response = response.map_err(|error| self.failed(doing, error))?;
        match response.status().as_u16() {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refused(doing, &mut response)),
        }
    }

    /// Uploads a part, unless the server already has it.
    ///
    /// # Errors
    /// Returns [`OllamaError::Server`] if a request fails, or [`OllamaError::Io`] if the file cannot be read.
    pub fn upload(&self, part: &Part, progress: &mut Progress<'_>) -> Result<(), OllamaError> {
        let url = self.url(&format!("blobs/sha256:{}", part.sha256));
        let there = self.agent.head(&url).call().map_err(|error| self.failed("look up the file", error))?;
        if there.status().is_success() {
            return Ok(());
        }
        let unread = |source| OllamaError::Io { path: part.path.clone(), source };
        let file = File::open(&part.path).map_err(unread)?;
        let total = file.metadata().map_err(unread)?.len();
        let mut reader = Watched { file, done: 0, total, progress };
        let doing = "accept the file";
        let response = self
            .agent
            .post(&url)
            .header("Content-Length", total.to_string())
            .content_type("application/octet-stream")
            .send(SendBody::from_reader(&mut reader));
        let mut response = response.map_err(|error| self.failed(doing, error))?;
        if response.status().is_success() { Ok(()) } else { Err(self.refused(doing, &mut response)) }
    }

    /// Creates the model `name` from uploaded parts, reporting progress through `status`.
    ///
    /// # Errors
    /// Returns [`OllamaError::Server`] if the request fails or `status` returns an error.
    pub fn create(
        &self,
        name: &Name,
        parts: &[Part],
        companions: &Companions,
        status: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<(), OllamaError> {
        let doing = "create the model";
        let body = request(name, parts, companions).to_string();
        let response = self.agent.post(self.url("create")).content_type("application/json").send(body);
        let mut response = response.map_err(|error| self.failed(doing, error))?;
        if !response.status().is_success() {
            return Err(self.refused(doing, &mut response));
        }
        let mut reader = BufReader::new(response.into_body().into_reader());
        for _ in 0..MAX_LINES {
            let mut text = Vec::new();
            let n = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut text);
            if n.map_err(|error| self.failed(doing, error))? == 0 {
                break;
            }
            let line: Line = serde_json::from_slice(&text)
                .map_err(|error| self.failed(doing, format!("expected a status as JSON: {error}")))?;
            if let Some(error) = line.error {
                return Err(self.failed(doing, error));
            }
            match line.status.as_deref() {
                Some("success") => return Ok(()),
                Some(text) => status(text).map_err(|error| self.failed(doing, error))?,
                None => {}
            }
        }
        Err(self.failed(doing, "the answer ended without a success status"))
    }

    fn url(&self, of: &str) -> String {
        format!("{}/api/{of}", self.address)
    }

    fn failed(&self, doing: &'static str, problem: impl ToString) -> OllamaError {
        let problem: String = problem.to_string().chars().take(500).filter(|c| !c.is_control()).collect();
        OllamaError::Server { server: self.address.clone(), doing, problem, instead: None }
    }

    /// Converts an error response, including the message in its body.
    fn refused(&self, doing: &'static str, response: &mut Response<Body>) -> OllamaError {
        let status = response.status();
        let body = response.body_mut().with_config().limit(MAX_LINE).read_to_string().unwrap_or_default();
        let told = serde_json::from_str::<Line>(&body).ok().and_then(|line| line.error);
        self.failed(doing, told.map_or_else(|| status.to_string(), |told| format!("{told} ({status})")))
    }
}

/// Returns the body of `POST /api/create`.
fn request(name: &Name, parts: &[Part], companions: &Companions) -> Value {
    let files: serde_json::Map<String, Value> =
        parts.iter().map(|part| (part.name.clone(), json!(format!("sha256:{}", part.sha256)))).collect();
    let mut body = json!({ "model": name.to_string(), "files": files, "stream": true });
    let c = companions;
    for (key, text) in [
        ("template", &c.template),
        ("system", &c.system),
        ("renderer", &c.renderer),
        ("parser", &c.parser),
        ("requires", &c.requires),
    ] {
        if let Some(text) = text {
            body[key] = json!(text);
        }
    }
    if !c.parameters.is_empty() {
        body["parameters"] = json!(c.parameters);
    }
    if !c.licenses.is_empty() {
        body["license"] = json!(c.licenses);
    }
    if !c.messages.is_empty() {
        body["messages"] = json!(c.messages);
    }
    body
}

/// A file reader that reports its progress.
struct Watched<'a, 'p> {
    file: File,
    done: u64,
    total: u64,
    progress: &'a mut Progress<'p>,
}

impl Read for Watched<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.done += n as u64;
        (self.progress)(self.done, self.total)?;
        Ok(n)
    }
}

/// Returns the shell command equivalent to [`Server::create`].
pub fn command(name: &Name, modelfile: &Path) -> String {
    format!("ollama create {name} -f {}", shell(modelfile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_before_that_of_the_api() {
        let server = Server::at("https://example.org/ollama/").unwrap();
        assert_eq!(server.url("version"), "https://example.org:443/ollama/api/version");
    }

    #[test]
    fn the_command_can_be_pasted() {
        let name = Name::parse("safer").unwrap();
        assert_eq!(command(&name, Path::new("m.Modelfile")), "ollama create safer:latest -f m.Modelfile");
        assert_eq!(command(&name, Path::new("a b's.M")), "ollama create safer:latest -f \"a b's.M\"");
        assert!(command(&name, Path::new("-m.Modelfile")).ends_with(" -f ./-m.Modelfile"));
    }
}
