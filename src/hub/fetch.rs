//! Getting files into the hub's cache, through the crate `hf-hub`.
//!
//! The crate speaks the hub's protocol, keeps the cache's layout, and goes on with files that are half there.
//! What it does not do is done here: it cannot be stopped, and trusts an answer so far that a wrong one makes
//! it panic or write elsewhere. So it works on a thread of its own, commits and names of blobs are looked at
//! first, and what it downloaded is compared with the sha256 that names it.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::error::is_full;
use super::select::select;
use super::{HubError, HubName};
use crate::gguf::{Progress, sha256_file};

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
    /// As the hub's other programs are set: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` (else the
    /// token that is stored in `HF_HOME`), `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`HubError::NoHome`].
    pub fn from_env() -> Result<Self, HubError> {
        let var = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty());
        let home = match var("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => std::env::home_dir().ok_or(HubError::NoHome)?.join(".cache").join("huggingface"),
        };
        let text = |key: &str| var(key).and_then(|value| value.into_string().ok());
        let hub = home.join("hub");
        Ok(Self {
            endpoint: text("HF_ENDPOINT").map_or(ENDPOINT.into(), |url| url.trim_end_matches('/').to_owned()),
            token: text("HF_TOKEN").or_else(|| Cache::new(hub.clone()).token()),
            cache: var("HF_HUB_CACHE").map_or(hub, PathBuf::from),
            offline: text("HF_HUB_OFFLINE")
                .is_some_and(|set| !["0", "false", "no", "off"].contains(&set.as_str())),
        })
    }

    /// Finds the model's file, and gets it unless the cache has it.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn get(&self, name: &HubName, watch: &mut Watch<'_>) -> Result<Fetched, HubError> {
        if self.offline {
            let offline = HubError::Offline { repo: name.repo.clone() };
            return self.cached(name, offline, watch);
        }
        // Absolute, because the crate links between folders by their whole paths.
        let cache = std::path::absolute(&self.cache)
            .map_err(|source| HubError::Cache { path: self.cache.clone(), source })?;
        let job = Job { hub: Self { cache, ..self.clone() }, name: name.clone() };
        match job.watched(watch) {
            Err(unreachable @ HubError::Unreachable { .. }) => self.cached(name, unreachable, watch),
            done => done,
        }
    }

    /// What the cache has of the model, else `otherwise`.
    fn cached(
        &self,
        name: &HubName,
        otherwise: HubError,
        watch: &mut Watch<'_>,
    ) -> Result<Fetched, HubError> {
        let folder = self.repo_folder(name);
        let Ok(commit) = std::fs::read_to_string(folder.join("refs").join(&name.revision)) else {
            return Err(otherwise);
        };
        if !is_commit(commit.trim()) {
            return Err(otherwise);
        }
        let snapshot = folder.join("snapshots").join(commit.trim());
        let files = files_below(&snapshot);
        if files.is_empty() {
            return Err(otherwise);
        }
        let parts = select(name, &files)?;
        for part in parts.iter().filter(|part| self.unchecked(name, part).exists()) {
            let what = format!("checking {part}");
            check(part, &snapshot.join(part), &mut |done, total| watch(&what, done, total))?;
            checked(&self.unchecked(name, part));
        }
        Ok(Fetched { path: snapshot.join(&parts[0]), cache: self.cache.clone(), from_cache: true })
    }

    fn repo(&self, name: &HubName) -> Repo {
        Repo::with_revision(name.repo.clone(), RepoType::Model, name.revision.clone())
    }

    /// The file that says that `part` was never compared with its sha256 to the end.
    fn unchecked(&self, name: &HubName, part: &str) -> PathBuf {
        self.repo_folder(name).join(format!(".unchecked-{}", part.replace('/', "--")))
    }

    fn repo_folder(&self, name: &HubName) -> PathBuf {
        self.cache.join(self.repo(name).folder_name())
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
            return Err(self.answer(&name.repo, "its commit is none"));
        }
        let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let parts = select(name, &files)?;
        let snapshot = hub.repo_folder(name).join("snapshots").join(&info.sha);
        for part in &parts {
            let (path, unchecked) = (snapshot.join(part), hub.unchecked(name, part));
            if path.is_file() && !unchecked.exists() {
                continue;
            }
            if !path.is_file() {
                // Before the download: a run that is stopped between the two leaves a file that says so.
                mark(&unchecked, &hub.cache)?;
                self.download((&api, &repo), part, &info.sha, send)?;
            }
            let what = format!("checking {part}");
            check(part, &path, &mut |done, total| {
                let _ = send.send((what.clone(), done, total));
                Ok(())
            })?;
            checked(&unchecked);
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

    fn download(
        &self,
        (api, repo): (&Api, &ApiRepo),
        part: &str,
        commit: &str,
        send: &Sender<Told>,
    ) -> Result<(), HubError> {
        let found = api.metadata(&repo.url(part)).map_err(|error| self.explain(error, part))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if found.etag().is_empty() || found.etag().len() > 200 || !found.etag().chars().all(plain) {
            return Err(self.answer(part, "its ETag cannot be the name of a file"));
        }
        if found.commit_hash() != commit {
            return Err(
                self.answer(part, "it is of another commit than the repository: was it changed just now?")
            );
        }
        let told = Tell {
            send: send.clone(),
            file: format!("downloading {part}"),
            done: 0,
            total: found.size() as u64,
        };
        repo.download_with_progress(part, told).map_err(|error| self.explain(error, part))?;
        Ok(())
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

/// Says that a file has still to be checked.
fn mark(unchecked: &Path, cache: &Path) -> Result<(), HubError> {
    let folder = unchecked.parent().unwrap_or(unchecked);
    let made = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(unchecked, b""));
    made.map_err(|source| HubError::Cache { path: cache.to_path_buf(), source })
}

/// Says that it was.
fn checked(unchecked: &Path) {
    if let Err(error) = std::fs::remove_file(unchecked) {
        tracing::debug!("{}: {error}", unchecked.display());
    }
}

/// Compares what arrived with the name of its blob: large files are named by their sha256.
fn check(part: &str, path: &Path, progress: &mut Progress<'_>) -> Result<(), HubError> {
    let unreadable = |source| HubError::Cache { path: path.to_path_buf(), source };
    let blob = path.canonicalize().map_err(unreadable)?;
    let expected = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    if expected.len() != 64 || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let found = sha256_file(&blob, progress).map_err(unreadable)?;
    if found.eq_ignore_ascii_case(&expected) {
        return Ok(());
    }
    for path in [path, &blob] {
        std::fs::remove_file(path).map_err(unreadable)?;
    }
    Err(HubError::Damaged { file: part.into(), expected, found })
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The files of a snapshot, relative to it, with slashes.
fn files_below(folder: &Path) -> Vec<String> {
    const DEPTH: usize = 6;
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_path_buf(), String::new(), 0)];
    let mut seen = HashSet::new();
    while let Some((folder, prefix, depth)) = folders.pop() {
        if !seen.insert(folder.clone()) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let (path, name) = (entry.path(), format!("{prefix}{name}"));
            if path.is_file() {
                files.push(name);
            } else if path.is_dir() && depth < DEPTH {
                folders.push((path, format!("{name}/"), depth + 1));
            }
        }
    }
    files.sort();
    files
}
