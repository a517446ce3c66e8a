//! Chooses the files of a repository that are the model, like llama.cpp's `-hf`. Where llama.cpp takes the first of
//! several matches, this returns an error that lists them.

use std::path::Path;

use super::name::is_path;
use super::{HubError, HubName};
use crate::gguf::ShardName;

/// Quantization that llama.cpp looks for by default.
const DEFAULT: &str = "Q4_K_M";
/// Name parts of GGUF files that accompany a model: vision encoders, importance matrices, draft models.
const BESIDE: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// Returns the files of the model that `name` asks for: all files of a split model, in order.
///
/// # Errors
/// Returns [`HubError::NoGguf`], [`HubError::NoMatch`] or [`HubError::Several`] if not exactly one model matches,
/// [`HubError::NoPart`] if a file of a split model is missing, and [`HubError::Answer`] for an unsafe path.
pub fn select(name: &HubName, files: &[String]) -> Result<Vec<String>, HubError> {
    let repo = name.repo.clone();
    let models: Vec<&str> = files.iter().map(String::as_str).filter(|file| is_model(file)).collect();
    let wanted = name.wanted.as_deref();
    let first = match wanted {
        Some(file) if file.to_ascii_lowercase().ends_with(".gguf") => {
            let found = files.iter().find(|path| path.eq_ignore_ascii_case(file));
            found.map(String::as_str).ok_or(None)
        }
        _ if models.is_empty() => return Err(HubError::NoGguf { repo }),
        Some(quant) => one(matching(&models, quant)),
        None => match matching(&models, DEFAULT) {
            found if found.is_empty() => one(models.clone()),
            found => one(found),
        },
    };
    let first = first.map_err(|several| match (several, wanted) {
        (Some(several), wanted) => HubError::Several {
            repo: repo.clone(),
            of: wanted.map_or_else(|| format!("(not exactly one {DEFAULT})"), |w| format!("for {w}")),
            there: list(&several),
        },
        (None, wanted) => HubError::NoMatch {
            repo: repo.clone(),
            wanted: wanted.unwrap_or(DEFAULT).into(),
            there: list(&models),
        },
    })?;
    let parts = parts(first);
    for part in &parts {
        if !is_path(part) {
            let problem = "unsafe characters in the file name".to_owned();
            return Err(HubError::Answer { what: shown(part), problem });
        }
        if !files.contains(part) {
            return Err(HubError::NoPart { repo, missing: shown(part) });
        }
    }
    Ok(parts)
}

/// Returns whether a file is a model, or the first file of a split model.
fn is_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.to_ascii_lowercase().ends_with(".gguf")
        && !BESIDE.iter().any(|beside| name.contains(beside))
        && ShardName::parse(Path::new(name)).is_none_or(|shard| shard.no == 0)
}

/// Returns the models whose path has `quant` before a `.` or `-`, ignoring case.
fn matching<'a>(models: &[&'a str], quant: &str) -> Vec<&'a str> {
    let quant = quant.to_ascii_lowercase();
    let has = |path: &str| {
        let path = path.to_ascii_lowercase();
        path.match_indices(&quant).any(|(at, _)| path[at + quant.len()..].starts_with(['.', '-']))
    };
    models.iter().copied().filter(|path| has(path)).collect()
}

/// Returns the only element; otherwise all of them, or `None` if there are none, as the error.
fn one(found: Vec<&str>) -> Result<&str, Option<Vec<&str>>> {
    match found[..] {
        [] => Err(None),
        [only] => Ok(only),
        _ => Err(Some(found)),
    }
}

/// Returns the file, or all files of the split model that it belongs to.
fn parts(path: &str) -> Vec<String> {
    let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
    let Some(shard) = ShardName::parse(Path::new(name)) else { return vec![path.to_owned()] };
    let all = (0..shard.count).map(|no| shard.path(no).display().to_string());
    all.map(|name| if folder.is_empty() { name } else { format!("{folder}/{name}") }).collect()
}

/// Escapes and truncates a name for a message, because it comes from outside.
fn shown(name: &str) -> String {
    name.escape_debug().take(200).collect()
}

/// Lists names for a message, at most 40: some repositories have hundreds of quantizations.
fn list(models: &[&str]) -> Vec<String> {
    const MOST: usize = 40;
    let mut names: Vec<String> = models.iter().take(MOST).map(|name| shown(name)).collect();
    if models.len() > MOST {
        names.push(format!("and {} more", models.len() - MOST));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::hint::Hint;

    const FILES: [&str; 8] = [
        "README.md",
        "m-Q8_0.gguf",
        "m-q4_k_m.gguf",
        "mmproj-m-Q4_K_M.gguf",
        "Q6_K/m-Q6_K-00001-of-00002.gguf",
        "Q6_K/m-Q6_K-00002-of-00002.gguf",
        "m-IQ4_XS.gguf",
        "imatrix.gguf",
    ];

    fn chosen(name: &str, files: &[&str]) -> Result<Vec<String>, HubError> {
        let files: Vec<String> = files.iter().map(|&file| file.into()).collect();
        select(&HubName::parse(name).unwrap(), &files)
    }

    #[test]
    fn files_are_chosen_as_llama_cpp_does() {
        assert_eq!(chosen("a/b", &FILES).unwrap(), ["m-q4_k_m.gguf"]);
        assert_eq!(chosen("a/b:q8_0", &FILES).unwrap(), ["m-Q8_0.gguf"]);
        assert_eq!(chosen("a/b:Q6_K", &FILES).unwrap(), FILES[4..6]);
        assert_eq!(chosen("a/b:M-Q8_0.GGUF", &FILES).unwrap(), ["m-Q8_0.gguf"]);
        assert_eq!(chosen("a/b", &["x.gguf"]).unwrap(), ["x.gguf"]);
        assert_eq!(chosen("a/b", &["x-Q4_K_M.GGUF", "mmproj.GGUF"]).unwrap(), ["x-Q4_K_M.GGUF"]);
        let split = ["x-00001-of-00002.GGUF", "x-00002-of-00002.GGUF"];
        assert_eq!(chosen("a/b", &split).unwrap(), split);
        assert_eq!(chosen("a/b", &["x-f16.gguf", "x-Q4_K_M.gguf"]).unwrap(), ["x-Q4_K_M.gguf"]);
    }

    #[test]
    fn what_cannot_be_chosen_is_listed() {
        let several = chosen("a/b", &["x-Q8_0.gguf", "x-f16.gguf"]).unwrap_err();
        assert!(several.hint().unwrap().contains("x-Q8_0.gguf, x-f16.gguf"), "{several}");
        let several = chosen("a/b:Q8_0", &["x-Q8_0.gguf", "y-Q8_0.gguf"]).unwrap_err();
        assert!(several.to_string().contains("found 2 for Q8_0"), "{several}");
        let none = chosen("a/b:Q5_K_M", &FILES).unwrap_err();
        assert!(none.hint().unwrap().contains("m-IQ4_XS.gguf"), "{none}");
        assert!(matches!(chosen("a/b:Q4", &FILES), Err(HubError::NoMatch { .. })));
        assert!(matches!(chosen("a/b", &["README.md", "mmproj.gguf"]), Err(HubError::NoGguf { .. })));
        assert!(matches!(chosen("a/b", &["x-00001-of-00002.gguf"]), Err(HubError::NoPart { .. })));
        for bad in ["../x.gguf", "/x.gguf", "a//x.gguf", "x?.gguf", "a\\..\\x.gguf", "x y.gguf"] {
            assert!(matches!(chosen("a/b", &[bad]), Err(HubError::Answer { .. })), "{bad}");
        }
    }
}
