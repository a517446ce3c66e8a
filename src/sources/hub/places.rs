//! Finds the hub's folders on this machine, from the same environment variables as `huggingface_hub` and llama.cpp.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::HubError;

/// The folders of the hub's programs and of llama.cpp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The folder that contains `models--OWNER--REPO`.
    pub cache: PathBuf,
    /// The home folder of the hub's programs, which contains the token.
    pub home: PathBuf,
    /// llama.cpp's own folder, which contains `OWNER_REPO_FILE.gguf` or has the hub's layout.
    pub llama: Option<PathBuf>,
}

/// The environment variables and the home folder.
pub(super) struct Environment<'a> {
    /// Returns the value of a variable, or `None` if it is unset or empty.
    pub var: &'a dyn Fn(&str) -> Option<OsString>,
    /// The home folder.
    pub home: Option<PathBuf>,
}

impl Environment<'_> {
    /// Finds the folders from `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, and `LLAMA_CACHE`.
    ///
    /// # Errors
    /// Returns [`HubError::NoHome`] if neither a variable nor the home folder is set.
    pub fn places(&self) -> Result<Places, HubError> {
        let set = |name: &str| (self.var)(name).map(PathBuf::from);
        let folder = |name: &str| set(name).map(|path| self.expanded(&path));
        let caches = || self.home.as_ref().map(|home| home.join(".cache"));
        let home = folder("HF_HOME").or_else(|| {
            let caches = set("XDG_CACHE_HOME").or_else(caches)?;
            Some(self.expanded(&caches.join("huggingface")))
        });
        let home = home.ok_or(HubError::NoHome)?;
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        // llama.cpp does not expand `~` or variables.
        let llama = set("LLAMA_CACHE").or_else(|| {
            let caches = if cfg!(windows) {
                set("LOCALAPPDATA")
            } else if cfg!(target_os = "macos") {
                self.home.as_ref().map(|home| home.join("Library").join("Caches"))
            } else {
                set("XDG_CACHE_HOME").or_else(caches)
            };
            caches.map(|caches| caches.join("llama.cpp"))
        });
        Ok(Places { cache: cache.unwrap_or_else(|| home.join("hub")), llama, home })
    }

    /// Expands a leading `~` to the home folder, and `$NAME` and `${NAME}` to the values of variables. Unset variables
    /// and home folders of other users (`~name`) are kept as written.
    fn expanded(&self, path: &Path) -> PathBuf {
        let path = match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path.to_path_buf(),
        };
        // A path that is not Unicode is used unchanged.
        path.to_str().map(|text| self.filled(text).into()).unwrap_or(path)
    }

    fn filled(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out += before;
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let (name, end) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                Some((name, _)) => (name, name.len() + 2),
                None => {
                    let end = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
                    (&after[..end], end)
                }
            };
            let value =
                if name.is_empty() { None } else { (self.var)(name).and_then(|v| v.into_string().ok()) };
            match value {
                Some(value) => out += &value,
                None => {
                    out.push('$');
                    out += &after[..end];
                }
            }
            rest = &after[end..];
        }
        out + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(vars: &[(&str, &str)]) -> Places {
        let var =
            |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Environment { var: &var, home: Some("/h".into()) }.places().unwrap()
    }

    #[test]
    fn the_cache_is_that_of_huggingface_hub() {
        let at = |vars: &[(&str, &str)]| places(vars).cache.display().to_string();
        let (home, xdg) = (("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/xdg"));
        let (new, old) = (("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old"));
        assert_eq!(at(&[]), "/h/.cache/huggingface/hub");
        assert_eq!(at(&[xdg]), "/xdg/huggingface/hub");
        assert_eq!(at(&[xdg, home]), "/hf/hub");
        assert_eq!(at(&[xdg, home, old]), "/old");
        assert_eq!(at(&[xdg, home, old, new]), "/new");
        assert_eq!(places(&[home, new]).home, Path::new("/hf"));
    }

    #[test]
    fn folders_are_expanded_as_python_does() {
        for (given, expected) in [
            ("~", "/h/hub"),
            ("~/x", "/h/x/hub"),
            ("~other/x", "~other/x/hub"),
            ("/a/~", "/a/~/hub"),
            ("$D/x", "/d/x/hub"),
            ("${D}/x$D", "/d/x/d/hub"),
            ("/$D-$NO/${NO}/$", "//d-$NO/${NO}/$/hub"),
            ("/${D", "/${D/hub"),
            ("$A", "$D/hub"),
        ] {
            let vars = [("HF_HOME", given), ("D", "/d"), ("A", "$D")];
            assert_eq!(places(&vars).cache, Path::new(expected), "{given}");
        }
    }

    #[test]
    fn llama_cpp_has_a_folder_of_its_own() {
        assert_eq!(places(&[("LLAMA_CACHE", "~/l")]).llama, Some("~/l".into()));
        if cfg!(target_os = "linux") {
            assert_eq!(places(&[]).llama, Some("/h/.cache/llama.cpp".into()));
            assert_eq!(places(&[("XDG_CACHE_HOME", "/xdg")]).llama, Some("/xdg/llama.cpp".into()));
        }
        let var = |_: &str| None;
        assert!(matches!(Environment { var: &var, home: None }.places(), Err(HubError::NoHome)));
    }
}
