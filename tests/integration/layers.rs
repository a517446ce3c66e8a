//! Checks the layering of the modules: a file in `src/` imports only from its own module and from lower layers. Also
//! checks the length of files.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules, from the lowest layer to the highest.
const LAYERS: [&str; 14] = [
    "output", "util", "gguf", "quant", "imatrix", "arch", "llama", "sources", "eval", "method", "report",
    "release", "pipeline", "cli",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Maximum number of lines of a file.
const MAX_LINES: usize = 500;

/// Returns the part of a file before its unit tests; nothing for files of tests.
fn product(path: &Path) -> String {
    let is_test =
        path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")));
    let text = if is_test { String::new() } else { fs::read_to_string(path).unwrap() };
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

/// Returns the modules that `text` names after `crate::`, in code or in doc links.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    text.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn imports_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let level = |module: &str| LAYERS.iter().position(|&layer| layer == module);
    let mut found = Vec::new();
    sources(&root, &mut found);
    let mut upwards = Vec::new();
    let mut n_import = 0;
    for path in found {
        let inside = path.strip_prefix(&root).unwrap();
        let module =
            inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let own = level(module).unwrap_or_else(|| panic!("{module} has no layer"));
        for import in imports(&product(&path)) {
            n_import += 1;
            if level(import).is_none_or(|theirs| theirs > own) {
                upwards.push(format!("{}: {import}", inside.display()));
            }
        }
    }
    assert!(n_import > 500, "only {n_import} imports were found");
    assert!(upwards.is_empty(), "{upwards:#?}");
}

#[test]
fn no_file_is_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "examples"] {
        sources(&root.join(folder), &mut found);
    }
    assert!(found.len() > 200, "only {} files were found", found.len());
    let lines = |path: &PathBuf| fs::read_to_string(path).unwrap().lines().count();
    let long: Vec<PathBuf> = found.into_iter().filter(|path| lines(path) > MAX_LINES).collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines: {long:#?}");
}
