//! Parses `OLLAMA_HOST` like Ollama's own client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const PORT: u16 = 11434;

/// Returns the value of one of Ollama's variables without surrounding whitespace and quotes.
pub fn trimmed(value: &str) -> &str {
    value.trim().trim_matches(['"', '\'']).trim()
}

/// Returns `SCHEME://HOST:PORT` followed by the path, without a trailing slash, or `None` if `text` is not an address.
///
/// The default port is 11434 without a scheme, and the scheme's port otherwise; it also replaces an invalid port.
/// Unspecified addresses (`0.0.0.0`, `::`), on which a server listens on all interfaces, become this machine's address.
pub fn address(text: &str) -> Option<String> {
    let text = trimmed(text);
    let (scheme, rest, default) = match text.split_once("://") {
        None if text == "ollama.com" => ("https", text, 443),
        None => ("http", text, PORT),
        Some(("http", rest)) => ("http", rest, 80),
        Some(("https", rest)) => ("https", rest, 443),
        Some(_) => return None,
    };
    let (host_port, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match split(host_port) {
        Some((host, port)) => (host, port_or(port, default)),
        None => (host_port, default),
    };
    let host = reachable(host)?;
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@%/".contains(c);
    let path = path.trim_matches('/');
    let slash = if path.is_empty() { "" } else { "/" };
    path.chars().all(sound).then(|| format!("{scheme}://{host}:{port}{slash}{path}"))
}

/// Splits `HOST:PORT` or `[HOST]:PORT`. Returns `None` if there is no port, or more than one colon outside brackets.
fn split(text: &str) -> Option<(&str, &str)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once("]:")?,
        None => text.split_once(':')?,
    };
    (!port.contains([':', ']'])).then_some((host, port))
}

fn port_or(text: &str, default: u16) -> u16 {
    text.parse().unwrap_or_else(|_| {
        tracing::warn!("OLLAMA_HOST: invalid port {text:?}, using {default}");
        default
    })
}

/// Returns the host as it appears in an address; this machine if it is empty or unspecified, `None` if it is invalid.
fn reachable(host: &str) -> Option<String> {
    let local: IpAddr = Ipv4Addr::LOCALHOST.into();
    match host.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Some(local.to_string()),
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => Some(format!("[{}]", Ipv6Addr::LOCALHOST)),
        Ok(IpAddr::V4(ip)) => Some(ip.to_string()),
        Ok(IpAddr::V6(ip)) => Some(format!("[{ip}]")),
        Err(_) if host.is_empty() => Some(local.to_string()),
        Err(_) => {
            let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            host.chars().all(sound).then(|| host.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_ollama_reads_them() {
        for (given, expected) in [
            ("", "http://127.0.0.1:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            (":1234", "http://127.0.0.1:1234"),
            (":", "http://127.0.0.1:11434"),
            ("example.org", "http://example.org:11434"),
            ("10.0.0.2:1", "http://10.0.0.2:1"),
            ("http://example.org", "http://example.org:80"),
            ("http://", "http://127.0.0.1:80"),
            ("https://example.org/", "https://example.org:443"),
            ("https://example.org/ollama/v2/", "https://example.org:443/ollama/v2"),
            ("example.org:5/x", "http://example.org:5/x"),
            ("http://example.org:5/", "http://example.org:5"),
            ("ollama.com", "https://ollama.com:443"),
            ("::1", "http://[::1]:11434"),
            ("[::1]", "http://[::1]:11434"),
            ("[::1", "http://[::1]:11434"),
            ("[::1]:5", "http://[::1]:5"),
            ("[fe80:0::1]:5/x", "http://[fe80::1]:5/x"),
            ("https://[2001:db8::2]", "https://[2001:db8::2]:443"),
            ("::", "http://[::1]:11434"),
            ("[::]:7", "http://[::1]:7"),
            ("::ffff:10.0.0.1", "http://10.0.0.1:11434"),
            ("x:99999", "http://x:11434"),
            ("x:y", "http://x:11434"),
            ("x:-1", "http://x:11434"),
            ("https://x:99999", "https://x:443"),
            (" \"localhost\" ", "http://localhost:11434"),
            ("' localhost:1 '", "http://localhost:1"),
            ("\t\"'localhost'\"\n", "http://localhost:11434"),
        ] {
            assert_eq!(address(given).as_deref(), Some(expected), "{given}");
        }
        for bad in
            ["ftp://x", "a b", "a@b", "a@b:1", "::1:x", "[::1]x", "x]:1", "[x y]:1", "x/a b", "x/?q", "x#f"]
        {
            assert_eq!(address(bad), None, "{bad}");
        }
    }
}
