//! Ollama support of `inject`: writes a Modelfile beside the output and registers the model with a running server.

use std::path::{Path, PathBuf};

use crate::gguf::AtomicFile;
use crate::output::{Printer, one_line};
use crate::pipeline::error::{Error, ExitStatus};
use crate::pipeline::options::InjectOptions;
use crate::pipeline::session::stoppable;
use crate::sources::Source;
use crate::sources::ollama::api::{Part, Server, command};
use crate::sources::ollama::{Companions, Name, OllamaError, modelfile};
use crate::util::interrupt;

/// The steps to take once the model file is written.
pub struct Registration {
    /// The written model file.
    output: PathBuf,
    /// Path and text of the Modelfile.
    modelfile: Option<(PathBuf, String)>,
    companions: Companions,
    create: Option<Create>,
}

/// The model to create on the server.
struct Create {
    name: Name,
    server: Server,
}

/// Explains a missing chat template if Ollama keeps one in another format; returns other errors unchanged.
pub fn explain(error: Error, source: &Source) -> Error {
    let has_go = source.companions.as_ref().is_some_and(|c| c.template.is_some() || c.renderer.is_some());
    match error {
        Error::NoTemplate { .. } if has_go => {
            OllamaError::GoTemplateOnly { name: source.display_name.clone() }.into()
        }
        error => error,
    }
}

impl Registration {
    /// Prepares the registration. Everything that can fail before the work fails here.
    pub fn prepare(options: &InjectOptions, n_files: usize, printer: &Printer) -> Result<Self, Error> {
        let (source, output) = (&options.source, options.write.output.clone());
        let companions = source.companions.clone().unwrap_or_default();
        for unknown in &companions.unknown {
            printer.warn(format!("{}: layer of unknown type {unknown:?} not copied", source.display_name));
        }
        let create = options.write.ollama_create.as_ref().map(|name| Create::prepare(name, options, n_files));
        let create = create.transpose()?;
        let wanted = !options.write.in_place && (source.companions.is_some() || create.is_some());
        let text = wanted.then(|| modelfile::write(&from(&output), &companions)).transpose();
        let text = text.unwrap_or_else(|problem| {
            printer.warn(format!("writing no Modelfile: {problem}"));
            None
        });
        let modelfile = text.map(|text| (output.with_extension("Modelfile"), text));
        if modelfile.as_ref().is_some_and(|(path, _)| *path == output) {
            let problem = format!("{} is reserved for the Modelfile of the output", output.display());
            return Err(Error::Option { flag: "--output", problem, hint: Some("end it in .gguf".into()) });
        }
        Ok(Self { output, modelfile, companions, create })
    }

    /// Returns the path of the Modelfile, if one is written.
    pub fn modelfile(&self) -> Option<&Path> {
        self.modelfile.as_ref().map(|(path, _)| path.as_path())
    }

    /// Prints what a run without `--dry-run` would do.
    pub fn announce(&self, printer: &Printer) {
        if let Some(path) = self.modelfile() {
            printer.say(format!("would write {}", path.display()));
        }
        if let Some(create) = &self.create {
            printer.say(format!("would register it as {} at {}", create.name, create.server.address()));
        }
    }

    /// Writes the Modelfile and registers the written file with the server.
    pub fn finish(
        &self,
        sha256: &str,
        status: ExitStatus,
        overwrite: bool,
        printer: &Printer,
    ) -> Result<(), Error> {
        if let Some((path, text)) = &self.modelfile {
            AtomicFile::write_whole(path, text.as_bytes(), overwrite)?;
            printer.say(format!("wrote {}", path.display()));
        }
        let Some(create) = &self.create else { return Ok(()) };
        let command = self.modelfile().map(|path| command(&create.name, path));
        if status != ExitStatus::Done {
            printer
                .warn(format!("{} was not registered, because the file does not hold the edit", create.name));
            return Ok(());
        }
        if !create.server.is_running() {
            let how = command.unwrap_or_else(|| "the same command".into());
            printer.say(format!("no Ollama server at {}; start one and run {how}", create.server.address()));
            return Ok(());
        }
        create.upload(&self.parts(sha256), &self.companions, printer).map_err(|error| match error {
            Error::Ollama(OllamaError::Server { server, doing, problem, .. }) => {
                OllamaError::Server { server, doing, problem, instead: command }.into()
            }
            error => error,
        })
    }

    /// Returns the files to upload: the written file and the projectors from the store.
    fn parts(&self, sha256: &str) -> Vec<Part> {
        let name = self.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let written = Part { name, path: self.output.clone(), sha256: sha256.to_owned() };
        let projectors = self.companions.projectors.iter().enumerate().map(|(no, blob)| Part {
            name: format!("projector-{no}.gguf"),
            path: blob.path.clone(),
            sha256: blob.sha256.clone(),
        });
        std::iter::once(written).chain(projectors).collect()
    }
}

impl Create {
    fn prepare(name: &Name, options: &InjectOptions, n_files: usize) -> Result<Self, Error> {
        if n_files > 1 {
            return Err(Error::Option {
                flag: "--ollama-create",
                problem: format!("expected a model in one file, found one split into {n_files} files"),
                hint: Some(
                    "join them first with llama-gguf-split --merge, or omit the flag and run `ollama create` \
                     with a Modelfile that has a FROM line for each file"
                        .into(),
                ),
            });
        }
        let server = Server::from_env()?;
        let replaces = !options.write.overwrite && server.is_running() && server.has(name)?;
        if replaces {
            return Err(
                OllamaError::Exists { server: server.address().into(), name: name.to_string() }.into()
            );
        }
        Ok(Self { name: name.clone(), server })
    }

    fn upload(&self, parts: &[Part], companions: &Companions, printer: &Printer) -> Result<(), Error> {
        let Self { name, server } = self;
        for part in parts {
            let bar = printer.bar(&format!("uploading {} to Ollama", part.name), 1);
            let done = server.upload(part, &mut stoppable(&bar));
            interrupt::check()?;
            done?;
        }
        let mut say = |status: &str| {
            printer.detail(format!("Ollama: {}", one_line(status)));
            interrupt::check().map_err(std::io::Error::other)
        };
        server.create(name, parts, companions, &mut say)?;
        printer.say(format!("registered {name} at {}; run it with ollama run {name}", server.address()));
        Ok(())
    }
}

/// Returns the path of the written file for the FROM line of its Modelfile.
fn from(output: &Path) -> String {
    format!("./{}", output.file_name().unwrap_or_default().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_server_the_modelfile_is_there_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("m-rosi.gguf");
        let path = output.with_extension("Modelfile");
        let create =
            Create { name: Name::parse("safer").unwrap(), server: Server::at("127.0.0.1:9").unwrap() };
        let registration = Registration {
            modelfile: Some((path.clone(), format!("FROM {}\n", from(&output)))),
            output,
            companions: Companions::default(),
            create: Some(create),
        };
        let finish = |status, overwrite| registration.finish("0", status, overwrite, &Printer::new(true, 0));
        finish(ExitStatus::Done, false).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "FROM ./m-rosi.gguf\n");
        assert!(finish(ExitStatus::Done, false).is_err(), "must not overwrite the Modelfile");
        finish(ExitStatus::NotVerified, true).unwrap();
    }
}
