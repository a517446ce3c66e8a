//! Quoting for commands that a user can paste into a POSIX shell.

use std::path::Path;

/// Quotes the path as one word of a command, and prepends `./` if it could be read as an option.
pub fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let text = if text.starts_with('-') { format!("./{text}") } else { text };
    match shlex::try_quote(&text) {
        Ok(word) => word.into_owned(),
        // Only NUL cannot be quoted, and no path contains one.
        Err(_) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_the_path() {
        for path in [
            "m.gguf",
            "a b's.gguf",
            "$(id) `x` \"q\" $HOME",
            "a\nb",
            "~/m",
            "*?[x]",
            "",
            "é\\",
            "!x",
            "a;b&c|d",
        ] {
            let command = format!("printf %s {}", shell(Path::new(path)));
            let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), path, "{command}");
        }
        assert_eq!(shell(Path::new("-rf")), "./-rf");
        assert_eq!(shell(Path::new("/m/a-Q4_K_M.gguf")), "/m/a-Q4_K_M.gguf");
    }
}
