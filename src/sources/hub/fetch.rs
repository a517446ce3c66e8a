//! Getting files into the hub's cache, through the crate `hf-hub`.
//!
//! The crate speaks the hub's protocol, keeps the cache's layout, and goes on with files that are half there.
//! What it does not do is done here: it cannot be stopped, and trusts an answer so far that a wrong one makes
//! it panic or write elsewhere. So it works on a thread of its own, commits and names of blobs are looked at
//! first, and what it downloaded is compared with the sha256 that names it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo, RepoType};

use super::check;
use super::error::is_full;
use super::local::{self, is_commit};
use super::places::Environment;
use super::select::select;
use super::{HubError, HubName};
use crate::gguf::sha256_file;

const ENDPOINT: &str = "https://huggingface.co";
/// How often a running download is asked whether it should stop.
const TICK: Duration = Duration::from_millis(100);
/// Tries after a connection that broke.
const RETRIES: usize = 2;

/// What is being done, bytes done, bytes in all; an error stops it.
pub type Watch<'a> = dyn FnMut(&str, u64, u64) -> io::Result<()> + 'a;

/// A hub and its cache on this machine.
#[derive(Debug, Clone)]
pub struct Hub {
    /// `https://…` without a slash at its end.
    endpoint: String,
    /// The folder that has `models--OWNER--REPO`.
    cache: PathBuf,
    /// llama.cpp's folder.
    llama: Option<PathBuf>,
    token: Option<String>,
    offline: bool,
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its file; of a split model the first one.
    pub path: PathBuf,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// Whether the hub could not be asked, so that the cache had the word.
    pub from_cache: bool,
}

impl Hub {
    /// As the hub's other programs are set: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`,
    /// `XDG_CACHE_HOME`, `HF_TOKEN` (else the token that is stored in `HF_HOME`), `HF_HUB_OFFLINE`,
    /// `TRANSFORMERS_OFFLINE`; and llama.cpp's `LLAMA_CACHE`, where nothing is written.
    ///
    /// # Errors
    /// [`HubError::NoHome`].
    pub fn from_env() -> Result<Self, HubError> {
        let var = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty());
        let text = |key: &str| var(key).and_then(|value| value.into_string().ok());
        let places = Environment { var: &var, home: std::env::home_dir() }.places()?;
        let is_true = |set: String| ["1", "ON", "YES", "TRUE"].contains(&set.to_uppercase().as_str());
        Ok(Self {
            endpoint: text("HF_ENDPOINT").map_or(ENDPOINT.into(), |url| url.trim_end_matches('/').to_owned()),
            token: text("HF_TOKEN").or_else(|| Cache::new(places.home.join("hub")).token()),
            offline: text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE")).is_some_and(is_true),
            cache: places.cache,
            llama: places.llama,
        })
    }

    /// Finds the model's file, and gets it unless this machine has it.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn get(&self, name: &HubName, watch: &mut Watch<'_>) -> Result<Fetched, HubError> {
        if self.offline {
            let offline = HubError::Offline { repo: name.repo.clone() };
            return self.on_this_machine(name, offline, watch);
        }
        // Absolute, because the crate links between folders by their whole paths.
        let cache = std::path::absolute(&self.cache)
            .map_err(|source| HubError::Cache { path: self.cache.clone(), source })?;
        let job = Job { hub: Self { cache, ..self.clone() }, name: name.clone() };
        match job.watched(watch) {
            Err(unreachable @ HubError::Unreachable { .. }) => self.on_this_machine(name, unreachable, watch),
            done => done,
        }
    }

    /// What this machine has of the model, else `otherwise`.
    fn on_this_machine(
        &self,
        name: &HubName,
        otherwise: HubError,
        watch: &mut Watch<'_>,
    ) -> Result<Fetched, HubError> {
        let llama = self.llama.as_deref();
        let mut problem = None;
        for cache in std::iter::once(self.cache.as_path()).chain(llama) {
            match local::in_cache(cache, name, watch) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        match llama.map_or(Ok(None), |llama| local::in_llama(llama, name)) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(problem.unwrap_or(otherwise)),
            Err(error) => Err(problem.unwrap_or(error)),
        }
    }

    fn repo(&self, name: &HubName) -> Repo {
        Repo::with_revision(name.repo.clone(), RepoType::Model, name.revision.clone())
    }
}

/// What a download tells of itself.
type Told = (String, u64, u64);

/// One download, on its thread.
struct Job {
    hub: Hub,
    name: HubName,
}

impl Job {
    /// Runs on a thread of its own, which a user who stops does not wait for: what it wrote so far is taken up
    /// by the next run.
    fn watched(self, watch: &mut Watch<'_>) -> Result<Fetched, HubError> {
        let (send, receive) = mpsc::channel::<Told>();
        let name = self.name.to_string();
        let worker = std::thread::spawn(move || self.run(&send));
        let mut last = (format!("asking the hub for {name}"), 0, 1);
        loop {
            match receive.recv_timeout(TICK) {
                Ok(told) => last = receive.try_iter().last().unwrap_or(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if watch(&last.0, last.1, last.2).is_err() {
                return Err(HubError::Stopped { file: last.0 });
            }
        }
        // The crate panics on some wrong answers.
        let panicked =
            |_| HubError::Answer { what: name, problem: "hf-hub could not make sense of it".into() };
        worker.join().map_err(panicked)?
    }

    fn run(&self, send: &Sender<Told>) -> Result<Fetched, HubError> {
        let Self { hub, name } = self;
        let api = ApiBuilder::from_cache(Cache::new(hub.cache.clone()))
            .with_endpoint(hub.endpoint.clone())
            .with_token(hub.token.clone())
            .with_retries(RETRIES)
            .with_progress(false)
            .with_user_agent("rosi-gguf", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| self.explain(error, &name.repo))?;
        let repo = api.repo(hub.repo(name));
        let info = repo.info().map_err(|error| self.explain(error, &self.what()))?;
        if !is_commit(&info.sha) {
            return Err(self.answer(&name.repo, "invalid commit hash"));
        }
        let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let parts = select(name, &files)?;
        let snapshot = |cache: &Path| local::repo_folder(cache, name).join("snapshots").join(&info.sha);
        let has_all = |folder: &Path| parts.iter().all(|part| folder.join(part).is_file());
        let download = Download { job: self, api: &api, repo: &repo, commit: &info.sha, send };
        let snapshot_here = snapshot(&hub.cache);
        if let Some(llama) = hub.llama.as_deref().filter(|_| !has_all(&snapshot_here)) {
            let snapshot = snapshot(llama);
            let found = match has_all(&snapshot) {
                true => Some(snapshot.join(&parts[0])),
                false => download.in_llama(llama, &parts)?,
            };
            if let Some(path) = found {
                return Ok(Fetched { path, cache: llama.to_path_buf(), from_cache: false });
            }
        }
        let snapshot = snapshot_here;
        for part in &parts {
            let (path, unchecked) = (snapshot.join(part), check::unchecked(&hub.cache, name, part));
            if path.is_file() && !unchecked.exists() {
                continue;
            }
            if !path.is_file() {
                // Before the download: a run that is stopped between the two leaves a file that says so.
                check::mark(&unchecked, &hub.cache)?;
                download.get(part)?;
            }
            let what = format!("checking {part}");
            check::check(part, &path, &mut |done, total| {
                let _ = send.send((what.clone(), done, total));
                Ok(())
            })?;
            check::checked(&unchecked);
        }
        Ok(Fetched { path: snapshot.join(&parts[0]), cache: hub.cache.clone(), from_cache: false })
    }

    /// The repository, with its revision where it is not the default.
    fn what(&self) -> String {
        HubName { wanted: None, ..self.name.clone() }.to_string()
    }

    fn answer(&self, what: &str, problem: &str) -> HubError {
        HubError::Answer { what: what.into(), problem: problem.into() }
    }

    fn sha256(&self, part: &str, path: &Path, send: &Sender<Told>) -> Result<String, HubError> {
        let what = format!("checking {part}");
        let mut progress = |done, total| {
            let _ = send.send((what.clone(), done, total));
            Ok(())
        };
        sha256_file(path, &mut progress)
            .map_err(|source| HubError::Cache { path: path.to_path_buf(), source })
    }

    fn explain(&self, error: ApiError, what: &str) -> HubError {
        let what = what.to_owned();
        match error {
            ApiError::TooManyRetries(error) => self.explain(*error, &what),
            ApiError::LockAcquisition(_) => HubError::Busy { file: what },
            ApiError::RequestError(error) => self.explain_request(*error, what),
            ApiError::IoError(source)
                if is_full(&source) || source.kind() == io::ErrorKind::PermissionDenied =>
            {
                HubError::Cache { path: self.hub.cache.clone(), source }
            }
            ApiError::IoError(source) => HubError::Download { file: what, problem: source.to_string() },
            error => HubError::Answer { what, problem: error.to_string() },
        }
    }

    fn explain_request(&self, error: ureq::Error, what: String) -> HubError {
        let whom = if self.hub.token.is_some() { "the user of this token" } else { "users without a token" };
        match error {
            ureq::Error::StatusCode(status @ (401 | 403)) => HubError::Denied { what, whom, status },
            ureq::Error::StatusCode(404) => HubError::Missing { what },
            ureq::Error::StatusCode(status) => HubError::Status { what, status },
            ureq::Error::Json(error) => HubError::Answer { what, problem: error.to_string() },
            error => {
                let (repo, endpoint) = (self.name.repo.clone(), self.hub.endpoint.clone());
                HubError::Unreachable { repo, endpoint, problem: error.to_string() }
            }
        }
    }
}

/// The files of one commit, on their way.
struct Download<'a> {
    job: &'a Job,
    api: &'a Api,
    repo: &'a ApiRepo,
    commit: &'a str,
    send: &'a Sender<Told>,
}

impl Download<'_> {
    /// What the hub says of a file, which can be used.
    fn metadata(&self, part: &str) -> Result<Metadata, HubError> {
        let found = self.api.metadata(&self.repo.url(part)).map_err(|error| self.job.explain(error, part))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if found.etag().is_empty() || found.etag().len() > 200 || !found.etag().chars().all(plain) {
            return Err(self.job.answer(part, "its ETag cannot be the name of a file"));
        }
        if found.commit_hash() != self.commit {
            let problem = "it is of another commit than the repository: was it changed just now?";
            return Err(self.job.answer(part, problem));
        }
        Ok(found)
    }

    fn get(&self, part: &str) -> Result<(), HubError> {
        let told = Tell {
            send: self.send.clone(),
            file: format!("downloading {part}"),
            done: 0,
            total: self.metadata(part)?.size() as u64,
        };
        self.repo.download_with_progress(part, told).map_err(|error| self.job.explain(error, part))?;
        Ok(())
    }

    /// The first file of the model in llama.cpp's folder, if all its files are there and have the sha256 that the hub
    /// has for them.
    fn in_llama(&self, folder: &Path, parts: &[String]) -> Result<Option<PathBuf>, HubError> {
        let Some(paths) = local::all_in_llama(folder, &self.job.name.repo, parts) else { return Ok(None) };
        for (part, path) in parts.iter().zip(&paths) {
            let expected = self.metadata(part)?;
            let found = self.job.sha256(part, path, self.send)?;
            if !found.eq_ignore_ascii_case(expected.etag()) {
                return Ok(None);
            }
        }
        Ok(paths.into_iter().next())
    }
}

/// The crate's progress, sent to the thread that shows it.
struct Tell {
    send: Sender<Told>,
    file: String,
    done: u64,
    total: u64,
}

impl hf_hub::api::Progress for Tell {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        let _ = self.send.send((self.file.clone(), self.done, self.total));
    }

    fn finish(&mut self) {}
}
