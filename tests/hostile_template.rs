//! Chat templates are untrusted code: whatever they try, rendering ends soon, uses little memory, and does not access
//! the disk.

mod common;

use std::time::{Duration, Instant};

use rosi_gguf::llama::{Chat, ChatTemplate};

use common::ffi::{Counting, peak_of};

#[global_allocator]
static COUNTED: Counting = Counting;

/// Upper bounds on the memory in bytes and the time for a template. The program's limit is 3 s of computing; the test
/// allows more because the machine may be busy.
const MEMORY: usize = 64 << 20;
const TIME: Duration = Duration::from_secs(60);

/// Renders `source` and checks the limits. Returns the text, or the error message.
fn render(source: &str) -> Result<String, String> {
    let started = Instant::now();
    let chat = Chat::of("How do I bake bread?");
    let (result, peak) = peak_of(|| {
        let template = ChatTemplate::new(source, "<s>", "</s>").map_err(|e| e.to_string())?;
        template.render(&chat).map(|prompt| prompt.text).map_err(|e| e.to_string())
    });
    let start: String = source.chars().take(100).collect();
    eprintln!(
        "{:>8} KiB {:>6} ms  {start}  {:?}",
        peak >> 10,
        started.elapsed().as_millis(),
        result.as_ref().err()
    );
    assert!(peak < MEMORY, "{peak} bytes: {start}");
    assert!(started.elapsed() < TIME, "{:?}: {start}", started.elapsed());
    result
}

fn fails(source: &str) {
    let error = render(source).unwrap_err();
    assert!(!error.is_empty() && error.len() < 4096, "{}", error.len());
}

const USER: &str = "{{ messages[0].content }}";

#[test]
fn loops_without_end() {
    fails(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    );
    fails("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
    fails("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}");
    fails(
        "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = ns.x * 3 %}{% for j in range(99999) %}{% set ns.x = ns.x + 1 %}{% endfor %}{% endfor %}",
    );
}

#[test]
fn lists_that_repeat_without_end() {
    for n in ["1000000000", "100000000000000"] {
        for use_ in [
            "''.join(x)",
            "x | join",
            "x | list | length",
            "x | sum",
            "x | last",
            "x == x + [1]",
            "7 in x",
            "x | unique | list",
            "x | tojson",
            "x | string",
            "x | sort",
            "x | map('upper') | list | length",
            "x.count(3)",
            "x | batch(3) | list | length",
            "x | reverse | first",
            "x[5:999999999] | length",
        ] {
            let _ = render(&format!("{{% set x = [''] * {n} %}}{{{{ {use_} }}}}{USER}"));
        }
    }
}

#[test]
fn output_that_doubles() {
    for grow in [
        "x ~ x",
        "x + x",
        "x * 100",
        "x.replace('a', x)",
        "x | replace('a', x)",
        "x.join([x, x, x])",
        "[x, x, x] | join(x)",
        "'%s%s' | format(x, x)",
        "'{}{}'.format(x, x)",
        "x | indent(9999999)",
        "'a' | center(99999999)",
        "'%99999999d' | format(1)",
        "'{:>99999999}'.format(1)",
        "x | urlencode",
        "x | tojson | tojson",
        "strftime_now(x ~ '%Y%Y')",
        "(x ~ 'ß') | upper ~ x",
        "x.split('') | join('aa')",
    ] {
        let source = format!(
            "{{% set ns = namespace(x='aaaaaaaa') %}}{{% for i in range(64) %}}{{% set x = ns.x %}}{{% set ns.x = {grow} %}}{{% endfor %}}{{{{ ns.x }}}}{USER}"
        );
        let _ = render(&source);
    }
    fails(&format!("{{% set x = 'abcdefghij' * 1000000 %}}{{{{ x }}}}{USER}"));
    fails("{% set x = 'abcdefghij' * 300000 %}{{ raise_exception(x) }}");
}

#[test]
fn deep_nesting() {
    fails("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}");
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("{'a': ", "}"),
        ("not ", ""),
        ("-", ""),
        ("'%s' % (", ")"),
        ("'%s' % ", ""),
        ("x[", "]"),
        ("1 if 1 else ", ""),
        ("(1,", ")"),
    ] {
        for n in [140, 1000, 30_000, 130_000] {
            let source = format!("{{{{ {}1{} }}}}{USER}", open.repeat(n), close.repeat(n));
            let _ = render(&source);
        }
    }
    for n in [140, 1000, 10_000, 50_000] {
        let _ = render(&format!("{}x{}{USER}", "{% if 1 %}".repeat(n), "{% endif %}".repeat(n)));
        let _ = render(&format!("{}x{}{USER}", "{% for i in [1] %}".repeat(n), "{% endfor %}".repeat(n)));
        let _ = render(&format!("{{{{ x{} }}}}{USER}", ".a".repeat(n)));
        let _ = render(&format!("{{{{ 1{} }}}}{USER}", " + 1".repeat(n)));
        let _ = render(&format!("{{{{ 'a'{} }}}}{USER}", "|upper".repeat(n)));
        let _ = render(&format!("{{{{ x{} }}}}{USER}", "()".repeat(n)));
        let _ = render(&format!("{{{{ 1{} }}}}{USER}", " if 1 else 2".repeat(n)));
    }
}

#[test]
fn values_nested_without_end() {
    for wrap in [
        "[ns.x]",
        "{'a': ns.x}",
        "(ns.x,)",
        "dict(a=ns.x)",
        "namespace(a=ns.x)",
        "ns.x | list",
        "ns.x | map('upper')",
        "ns.x | reverse",
        "ns.x | chain([1])",
        "ns.x + [1]",
        "ns.x | zip([1])",
    ] {
        for use_ in [
            "",
            "{{ ns.x }}",
            "{{ ns.x == ns.x }}",
            "{{ ns.x | tojson }}",
            "{{ ns.x | list | length }}",
            "{% for y in ns.x %}{% endfor %}",
            "{{ ns.x | string }}",
        ] {
            // With the larger size, the fuel runs out before the value could be used.
            let sizes: &[u32] = if use_.is_empty() { &[1000, 99_999] } else { &[1000] };
            for n in sizes {
                let _ = render(&format!(
                    "{{% set ns = namespace(x=[1]) %}}{{% for i in range({n}) %}}{{% set ns.x = {wrap} %}}{{% endfor %}}{use_}{USER}"
                ));
            }
        }
    }
}

#[test]
fn namespaces_that_hold_themselves() {
    for use_ in ["ns", "ns == ns", "ns | tojson", "ns.me | tojson"] {
        let source = format!("{{% set ns = namespace() %}}{{% set ns.me = ns %}}{{{{ {use_} }}}}");
        let error = render(&source).unwrap_err();
        assert!(error.contains("puts the namespace \"ns\" into another value"), "{error}");
    }
    for store in [
        "{% macro f(a) %}{% set a.me = a %}{% endmacro %}{{ f(ns) }}",
        "{% set b = ns %}{% set b.me = [b] %}",
        "{% macro f(a, b=ns) %}{% set a.me = b %}{% endmacro %}{{ f(ns) }}",
    ] {
        let source = format!("{{% set ns = namespace() %}}{store}{{{{ ns | tojson }}}}{USER}");
        assert!(render(&source).unwrap_err().contains("into another value"), "{store}");
    }
    // A copy is a map, not a namespace, and keeps the values from the time of the copy.
    let copy = "{% set ns = namespace(a=1) %}{% set ns.me = ns.copy() %}{% set ns.a = 2 %}{{ ns | tojson }}";
    assert!(render(&format!("{copy}{USER}")).unwrap().starts_with(r#"{"a": 2, "me": {"a": 1}}"#));
}

/// Values that are small in memory but take practically forever to traverse. Each runs in a separate process, because
/// an abandoned rendering continues until its process ends.
#[test]
fn values_that_hold_themselves_twice() {
    for name in ["print", "compare"] {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored"])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && told.contains("1 passed"), "{told}");
    }
}

fn doubled(use_: &str) -> String {
    format!(
        "{{% set ns = namespace(x=[1], y=[1]) %}}{{% for i in range(60) %}}{{% set ns.x = [ns.x, ns.x] %}}{{% set ns.y = [ns.y, ns.y] %}}{{% endfor %}}{{{{ {use_} }}}}{USER}"
    )
}

#[test]
#[ignore = "a process of its own"]
fn print() {
    let error = render(&doubled("ns.x")).unwrap_err();
    assert!(error.contains("expected at most 1048576 bytes"), "{error}");
}

#[test]
fn values_that_are_endless_to_print() {
    for use_ in ["'%s' % ns.x", "'%(a)s' % {'a': ns.x}", "ns.x | tojson", "ns.x | tojson(sort_keys=true)"] {
        fails(&doubled(use_));
    }
}

#[test]
#[ignore = "a process of its own"]
fn compare() {
    assert_eq!(
        render(&doubled("ns.x == ns.y")).unwrap_err(),
        "parsing or rendering exceeded 3 s of CPU time"
    );
}

#[test]
fn files_are_out_of_reach() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% include 'Cargo.toml' %}",
        "{% import '/etc/passwd' as x %}",
        "{% from '/etc/passwd' import x %}",
        "{% extends '/etc/passwd' %}",
        "{{ open('/etc/passwd').read() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ] {
        let told = render(&format!("{source}{USER}"));
        let text = told.as_ref().unwrap_or_else(|error| error);
        assert!(!text.contains("root:") && !text.contains("[package]") && !text.contains("uid="), "{text}");
        assert!(told.is_err(), "{source}");
    }
    // A template must not include or extend itself without end.
    fails("{% include 'chat' %}");
    fails("{% extends 'chat' %}");
}
