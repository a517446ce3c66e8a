//! Downloads files into the hub's cache through the crate `hf-hub`.
//!
//! The crate implements the hub's protocol and the cache's layout, and resumes partial downloads. But it cannot be
//! stopped, and it trusts the hub so much that an invalid answer can make it panic or write outside the cache. This
//! module therefore runs it on its own thread, validates commits and blob names first, and compares each download with
//! the sha256 that names it.

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
/// Interval at which a running download checks for a request to stop.
const TICK: Duration = Duration::from_millis(100);
/// Number of retries after a broken connection.
const RETRIES: usize = 2;

/// Progress callback: current step, bytes done, total bytes. Returning an error stops the operation.
pub type Watch<'a> = dyn FnMut(&str, u64, u64) -> io::Result<()> + 'a;

/// A hub and its cache on this machine.
#[derive(Debug, Clone)]
pub struct Hub {
    /// `https://…` without a trailing slash.
    endpoint: String,
    /// The folder that contains `models--OWNER--REPO`.
    cache: PathBuf,
    /// llama.cpp's cache folder, which is only read.
    llama: Option<PathBuf>,
    token: Option<String>,
    offline: bool,
}

/// A model in a local cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Path of the model file, or of the first file of a split model.
    pub path: PathBuf,
    /// Root folder of the cache.
    pub cache: PathBuf,
    /// Whether the model was taken from the cache without asking the hub.
    pub from_cache: bool,
}

impl Hub {
    /// Reads the environment variables of the hub's other programs: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`,
    /// `HUGGINGFACE_HUB_CACHE`, `XDG_CACHE_HOME`, `HF_TOKEN` (default: the token stored in `HF_HOME`), `HF_HUB_OFFLINE`
    /// and `TRANSFORMERS_OFFLINE`; and llama.cpp's `LLAMA_CACHE`, which is only read.
    ///
    /// # Errors
    /// Returns [`HubError::NoHome`] if no variable or home directory gives a location for the cache.
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

    /// Finds the model's files, downloading those that this machine lacks.
    ///
    /// # Errors
    /// Returns [`HubError`] if the model is neither on this machine nor available from the hub.
    pub fn get(&self, name: &HubName, watch: &mut Watch<'_>) -> Result<Fetched, HubError> {
        if self.offline {
            let offline = HubError::Offline { repo: name.repo.clone() };
            return self.on_this_machine(name, offline, watch);
        }
        // Must be absolute, because the crate creates links by full path.
        let cache = std::path::absolute(&self.cache)
            .map_err(|source| HubError::Cache { path: self.cache.clone(), source })?;
        let job = Job { hub: Self { cache, ..self.clone() }, name: name.clone() };
        match job.watched(watch) {
            Err(unreachable @ HubError::Unreachable { .. }) => self.on_this_machine(name, unreachable, watch),
            done => done,
        }
    }

    /// Finds the model on this machine, or returns the error `otherwise`.
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

/// Progress of a download: current step, bytes done, total bytes.
type Told = (String, u64, u64);

/// One download, which runs on its own thread.
struct Job {
    hub: Hub,
    name: HubName,
}

impl Job {
    /// Runs the job on its own thread. When the user stops it, the thread is not waited for: the next run resumes its
    /// partial download.
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
        // The crate panics on some invalid answers.
        let panicked = |_| HubError::Answer { what: name, problem: "hf-hub cannot parse it".into() };
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
                // Mark the file before downloading it, so that it stays marked if this run stops before the check.
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

    /// Returns the repository, with its revision unless that is the default.
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
        let whom = if self.hub.token.is_some() { "the owner of this token" } else { "users without a token" };
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

/// The download of one commit's files.
struct Download<'a> {
    job: &'a Job,
    api: &'a Api,
    repo: &'a ApiRepo,
    commit: &'a str,
    send: &'a Sender<Told>,
}

impl Download<'_> {
    /// Returns the hub's metadata of a file, after validating it.
    fn metadata(&self, part: &str) -> Result<Metadata, HubError> {
        let found = self.api.metadata(&self.repo.url(part)).map_err(|error| self.job.explain(error, part))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if found.etag().is_empty() || found.etag().len() > 200 || !found.etag().chars().all(plain) {
            return Err(self.job.answer(part, "expected an ETag that is a valid file name"));
        }
        if found.commit_hash() != self.commit {
            let problem = "its commit differs from the repository's, which may have just changed; try again";
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

    /// Returns the model's first file in llama.cpp's folder if all its files are there with the sha256 that the hub
    /// reports.
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

/// Sends the crate's progress to the thread that shows it.
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
