//! Tests of the bundled data and of the loader.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::util::hint::Hint;
use PromptKind::{Borderline, Harmful, Harmless};

fn mean_words(prompts: &[&Prompt]) -> f64 {
    let words = prompts.iter().map(|p| p.text.split_whitespace().count());
    words.sum::<usize>() as f64 / prompts.len() as f64
}

fn tally<'a>(keys: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_insert(0) += 1;
    }
    counts
}

/// Writes `content` to a fresh directory as `name`.
fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn load_one(name: &str, content: impl AsRef<[u8]>) -> Result<PromptSet, PromptError> {
    let (_dir, path) = file(name, content);
    PromptSet::load(&[path])
}

fn with_prefix(prefix: &str, path: &Path) -> PathBuf {
    PathBuf::from(format!("{prefix}:{}", path.display()))
}

/// Returns `count` distinct lines made by `line`.
fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(|i| line(i) + "\n").collect()
}

#[test]
fn bundled_counts() {
    let set = PromptSet::bundled();
    assert_eq!((set.len(), set.source()), (1056, "bundled"));
    for (kind, counts) in [(Harmful, [144, 72, 72]), (Harmless, [192, 96, 96]), (Borderline, [192, 96, 96])] {
        assert_eq!(set.count(kind), counts.iter().sum::<usize>());
        assert_eq!(Split::ALL.map(|split| set.select(kind, split).len()), counts, "{kind}");
    }
    assert!(set.prompts().iter().all(|p| p.topic.is_some()));
}

#[test]
fn bundled_topics_are_balanced() {
    let set = PromptSet::bundled();
    for (kind, topics) in [(Harmful, 24), (Harmless, 32), (Borderline, 32)] {
        for (split, each) in Split::ALL.into_iter().zip([6, 3, 3]) {
            let selected = set.select(kind, split);
            let counts = tally(selected.iter().filter_map(|p| p.topic.as_deref()));
            assert_eq!(counts.len(), topics, "{kind} {split}");
            assert!(counts.values().all(|n| *n == each), "{kind} {split}");
        }
    }
}

/// Each harmless prompt opens like its harmful counterpart. The last third of the harmful prompts have two
/// harmless counterparts each, because there are a third more harmless prompts.
#[test]
fn bundled_forms_match() {
    let set = PromptSet::bundled();
    for split in Split::ALL {
        let harmful = set.select(Harmful, split);
        let harmless = set.select(Harmless, split);
        let gap = (mean_words(&harmful) - mean_words(&harmless)).abs();
        assert!(gap < 0.5, "{split}: {gap}");
        let opening = |p: &&Prompt| p.text.split(' ').next().unwrap().to_owned();
        let last_third = &harmful[2 * harmful.len() / 3..];
        let a: Vec<String> = harmful.iter().chain(last_third).map(opening).collect();
        let b: Vec<String> = harmless.iter().map(opening).collect();
        assert_eq!(a, b, "{split}");
    }
    let gap = mean_words(&set.of_kind(Harmful)) - mean_words(&set.of_kind(Harmless));
    assert!(gap.abs() < 0.5, "{gap}");
}

/// Borderline prompts must differ from harmful ones in meaning, not in length, punctuation or opening.
#[test]
fn bundled_borderline_prompts_are_not_told_by_their_form() {
    let set = PromptSet::bundled();
    let questions = |prompts: &[&Prompt]| {
        prompts.iter().filter(|p| p.text.ends_with('?')).count() as f64 / prompts.len() as f64
    };
    for split in Split::ALL {
        let (borderline, harmful) = (set.select(Borderline, split), set.select(Harmful, split));
        let gap = (mean_words(&borderline) - mean_words(&harmful)).abs();
        assert!(gap < 1.0, "{split}: {gap}");
        let gap = (questions(&borderline) - questions(&harmful)).abs();
        assert!(gap < 0.25, "{split}: {gap}");
        let openings = tally(borderline.iter().filter_map(|p| p.text.split(' ').next()));
        assert!(openings.len() >= 20, "{split}: {openings:?}");
        assert!(openings.values().all(|n| *n <= borderline.len() / 4), "{split}: {openings:?}");
    }
}

#[test]
fn bundled_borderline_prompts_are_no_variants_of_each_other() {
    let set = PromptSet::bundled();
    let folded: Vec<String> = set.of_kind(Borderline).iter().map(|p| fold(&p.text)).collect();
    let words: Vec<HashSet<&str>> = folded.iter().map(|text| text.split(' ').collect()).collect();
    for (i, a) in words.iter().enumerate() {
        for (j, b) in words.iter().enumerate().take(i) {
            let (common, all) = (a.intersection(b).count(), a.union(b).count());
            assert!(2 * common <= all, "{} / {}", folded[i], folded[j]);
        }
    }
}

#[test]
fn bundled_prompts_are_short_and_distinct() {
    let set = PromptSet::bundled();
    // Counted in the raw files, because a set silently drops duplicates.
    let raw = [HARMFUL_JSONL, HARMLESS_JSONL, BORDERLINE_JSONL].concat();
    assert_eq!(raw.lines().count(), 1056);
    let distinct: HashSet<String> = set.prompts().iter().map(|p| fold(&p.text)).collect();
    assert_eq!(distinct.len(), 1056);
    for prompt in set.prompts() {
        let words = prompt.text.split_whitespace().count();
        assert!((6..=20).contains(&words), "{}", prompt.text);
        assert!(prompt.text.ends_with(['.', '?']), "{}", prompt.text);
        assert!(prompt.text.is_ascii(), "{}", prompt.text);
    }
}

#[test]
fn training_prompts_are_of_all_kinds_and_distinct_from_all_others() {
    let files = [HARMFUL_JSONL, HARMLESS_JSONL, BORDERLINE_JSONL, TRAINING_JSONL, LOOKALIKES_JSONL];
    let sets = [PromptSet::bundled(), training(), lookalikes()];
    for set in &sets {
        assert!(PromptKind::ALL.iter().all(|&kind| set.count(kind) > 0));
    }
    let distinct: HashSet<String> = sets.iter().flat_map(PromptSet::prompts).map(|p| fold(&p.text)).collect();
    assert_eq!(distinct.len(), files.iter().map(|file| file.lines().count()).sum::<usize>());
}

#[test]
fn system_prompt_names_refusal_openings() {
    let prompt = safety_system_prompt();
    assert!(prompt.contains("\"I am sorry\"") && prompt.contains("\"I can't\""));
    assert_eq!(prompt, prompt.trim());
}

#[test]
fn kinds_and_splits_have_stable_names() {
    for kind in PromptKind::ALL {
        assert_eq!(kind.as_str().parse::<PromptKind>().unwrap(), kind);
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
    }
    for split in Split::ALL {
        assert_eq!(serde_json::to_value(split).unwrap(), split.to_string());
    }
    assert_eq!("Benign_Alarming".parse::<PromptKind>().unwrap(), Borderline);
    assert_eq!(" Unsafe ".parse::<PromptKind>().unwrap(), Harmful);
    assert!("1".parse::<PromptKind>().is_err());
}

#[test]
fn digest_covers_kind_text_and_order() {
    let text = lines(12, |i| format!("prompt {i}"));
    let digest = |name: &str, text: &str| load_one(name, text).unwrap().sha256();
    let base = digest("harmful.txt", &text);
    assert_eq!(base.len(), 64);
    assert_eq!(base, digest("unsafe.txt", &text));
    assert_ne!(base, digest("harmless.txt", &text));
    let reversed: Vec<&str> = text.lines().rev().collect();
    assert_ne!(base, digest("harmful.txt", &reversed.join("\n")));
    let expected: String = (0..12).map(|i| format!("harmful\0prompt {i}\n")).collect();
    let expected = Sha256::digest(expected);
    let expected: String = expected.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(base, expected);
}

#[test]
fn plain_text_with_bom_crlf_comments_and_duplicates() {
    let body: String = (0..13).map(|i| format!("Prompt  {i}\r\n")).collect();
    let text = format!("\u{feff}# a comment\r\n\r\n{body}  prompt 3 \r\n");
    let set = load_one("my_harmful.txt", text).unwrap();
    assert_eq!(set.count(Harmful), 13);
    assert_eq!(set.prompts()[0].text, "Prompt  0");
    let report = set.select(Harmful, Split::Report);
    let report: Vec<&str> = report.iter().map(|p| p.text.as_str()).collect();
    assert_eq!(report, ["Prompt  3", "Prompt  7", "Prompt  11"]);
}

#[test]
fn json_lines_fields() {
    let text = lines(12, |i| match i % 4 {
        0 => format!(r#"{{"Goal": "g{i}", "category": "Fraud", "index": {i}}}"#),
        1 => format!(r#"{{"text": "t{i}", "label": 1, "topic": "weapons"}}"#),
        2 => format!(r#"{{"instruction": "i{i}", "kind": "toxic", "prompt": null}}"#),
        _ => format!(r#"{{"prompt": "p\n{i}", "label": "unsafe", "goal": "other"}}"#),
    });
    let set = load_one("harmful.jsonl", text).unwrap();
    let prompts = set.prompts();
    assert_eq!(prompts.len(), 12);
    assert_eq!((prompts[0].text.as_str(), prompts[0].topic.as_deref()), ("g0", Some("Fraud")));
    assert_eq!((prompts[1].text.as_str(), prompts[1].topic.as_deref()), ("t1", Some("weapons")));
    assert_eq!((prompts[2].text.as_str(), prompts[2].topic.as_deref()), ("i2", None));
    assert_eq!(prompts[3].text, "p\n3");
}

#[test]
fn csv_fields_and_lines() {
    let rows = lines(12, |i| format!("{i},\"say \"\"{i}\"\", please\",safe,x"));
    let text = format!("\u{feff}id,Prompt,Label,topic\n{rows}");
    let set = load_one("table.csv", text.replace('\n', "\r\n")).unwrap();
    assert_eq!(set.count(Harmless), 12);
    assert_eq!(set.prompts()[0].text, "say \"0\", please");
    assert_eq!(set.prompts()[0].topic.as_deref(), Some("x"));

    for newline in ["\n", "\r\n"] {
        let text = "prompt,kind\n\"two\nlines\",harmful\n\nfine,harmless\nbad,maybe\n";
        let error = load_one("table.csv", text.replace('\n', newline)).unwrap_err();
        let PromptError::BadRecord { line, found, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!((*line, found.as_str()), (6, "\"maybe\""));
    }
    let error = load_one("harmful.csv", "prompt,kind\na,harmful\nb\n").unwrap_err();
    let message = error.to_string();
    assert!(message.contains(":3: ") && message.contains("1 fields"), "{message}");
    let error = load_one("harmful.csv", "title,answer\na,b\n").unwrap_err();
    assert!(error.to_string().contains("title, answer"), "{error}");
}

#[test]
fn file_names_tell_the_kind() {
    let body = lines(12, |i| format!("prompt {i}"));
    for (name, kind) in [
        ("harmless.txt", Some(Harmless)),
        ("my-benign-set.txt", Some(Harmless)),
        ("xs_safe.txt", Some(Harmless)),
        ("unsafe.txt", Some(Harmful)),
        ("Toxic.txt", Some(Harmful)),
        ("safety_harmful.txt", Some(Harmful)),
        ("benign-alarming.txt", Some(Borderline)),
        ("borderline.txt", Some(Borderline)),
        ("overrefusal_safe.txt", Some(Borderline)),
        ("non-toxic.txt", None),
        ("harmful_and_harmless.txt", None),
        ("safety.txt", None),
        ("prompts.txt", None),
    ] {
        match (load_one(name, &body), kind) {
            (Ok(set), Some(kind)) => assert_eq!(set.count(kind), 12, "{name}"),
            (Err(error @ PromptError::NoKind { line: 1, .. }), None) => {
                assert!(error.hint().unwrap().contains("harmful:"), "{name}");
            }
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn prefixes_tell_the_kind() {
    let (_dir, path) = file("unsafe.txt", lines(12, |i| format!("prompt {i}")));
    let set = PromptSet::load(&[with_prefix("harmless", &path)]).unwrap();
    assert_eq!(set.count(Harmless), 12);
    assert!(!set.source().starts_with("harmless:"));

    let safe = lines(12, |i| format!(r#"{{"prompt": "p{i}", "label": "safe"}}"#));
    let (_dir, path) = file("xs.jsonl", safe);
    let set = PromptSet::load(&[with_prefix("borderline", &path)]).unwrap();
    assert_eq!(set.count(Borderline), 12);
    let error = PromptSet::load(&[with_prefix("harmful", &path)]).unwrap_err();
    assert!(matches!(error, PromptError::KindConflict { line: 1, expected: Harmful, found: Harmless, .. }));
}

#[test]
fn a_prefix_keeps_the_harmful_half_of_a_contrast_set() {
    // As in XSTest.
    let rows = lines(24, |i| format!("{i},\"is it, {i}?\",a,{},b,", ["safe", "unsafe"][i % 2]));
    let (_dir, path) = file("prompts.csv", format!("id,prompt,type,label,focus,note\n{rows}"));
    let set = PromptSet::load(&[with_prefix("alarming", &path)]).unwrap();
    assert_eq!([Harmful, Harmless, Borderline].map(|kind| set.count(kind)), [12, 0, 12]);
    let error = PromptSet::load(&[with_prefix("harmless", &path)]).unwrap_err();
    assert!(matches!(error, PromptError::KindConflict { line: 3, .. }));
    // Without a harmless label beside it, a harmful one is a mistake.
    let rows = lines(12, |i| format!("p{i},unsafe"));
    let (_dir, path) = file("prompts.csv", format!("prompt,label\n{rows}"));
    let error = PromptSet::load(&[with_prefix("alarming", &path)]).unwrap_err();
    assert!(matches!(error, PromptError::KindConflict { line: 2, .. }));
}

#[test]
fn a_prefix_decides_over_a_subject() {
    // As in OR-Bench: the category is the subject, and one subject is called harmful.
    let rows = lines(12, |i| format!("\"is it, {i}?\",{}", ["harmful", "privacy", "toxic"][i % 3]));
    let (_dir, path) = file("set.csv", format!("prompt,category\n{rows}"));
    for kind in PromptKind::ALL {
        let set = PromptSet::load(&[with_prefix(kind.as_str(), &path)]).unwrap();
        assert_eq!(set.count(kind), 12);
        assert_eq!(set.prompts()[0].topic.as_deref(), Some("harmful"));
    }
    // Without a prefix, a column of subjects does not determine the kind.
    assert!(matches!(PromptSet::load(&[path]), Err(PromptError::NoKind { line: 2, .. })));
    let rows = lines(12, |i| format!("p{i}\tharmful\thow-to"));
    let (_dir, path) = file("one_subject.tsv", format!("prompt\tcategory\tkind\n{rows}"));
    assert_eq!(PromptSet::load(&[with_prefix("alarming", &path)]).unwrap().count(Borderline), 12);
    let labels = lines(12, |i| format!(r#"{{"prompt": "p{i}", "label": "{}"}}"#, ["unsafe", "hate"][i % 2]));
    let (_dir, path) = file("benign.jsonl", labels);
    assert_eq!(PromptSet::load(&[path]).unwrap().count(Harmless), 12);
}

#[test]
fn json_of_any_layout() {
    let objects = |indent: &str, between: &str| {
        let object = |i| format!("{{{indent}\"prompt\": \"p{i}\",{indent}\"category\": \"x\"{indent}}}");
        (0..12).map(object).collect::<Vec<_>>().join(between)
    };
    let strings: Vec<String> = (0..12).map(|i| format!("p{i}")).collect();
    for (name, text) in [
        ("harmful.json", format!("[{}]", objects("", ", "))),
        ("harmful.jsonl", format!("\u{feff}\n[\r\n{}\r\n]\r\n", objects("\r\n    ", ",\r\n"))),
        ("harmful.json", objects("\n  ", "\n")),
        (
            "harmful.json",
            format!("{{\n\"version\": 1, \"columns\": [\"prompt\"], \"data\": [{}]}}", objects("\n", ",")),
        ),
        ("harmful.json", serde_json::json!({ "meta": { "n": 12 }, "rows": strings }).to_string()),
        ("harmful.ndjson", serde_json::to_string_pretty(&strings).unwrap()),
    ] {
        let set = load_one(name, &text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let texts: Vec<&str> = set.of_kind(Harmful).iter().map(|prompt| prompt.text.as_str()).collect();
        assert_eq!(texts, strings, "{text}");
    }
    assert!(matches!(load_one("harmful.json", "[]"), Err(PromptError::Empty { .. })));
    let deep = format!("[{}1{}]", "[".repeat(100_000), "]".repeat(100_000));
    assert!(load_one("harmful.json", deep).is_err());
}

#[test]
fn added_prompts_keep_their_splits_and_do_not_repeat() {
    let bundled = PromptSet::bundled();
    let known = bundled.of_kind(Harmful)[0].text.to_uppercase();
    let mut set =
        load_one("borderline.txt", format!("{known}\n{}", lines(6, |i| format!("prompt {i}")))).unwrap();
    let own: Vec<String> = Split::ALL.iter().flat_map(|&split| set.texts(Borderline, Some(split))).collect();
    set.add(&bundled);
    assert_eq!((set.count(Harmful), set.count(Borderline)), (287, 391), "the user's kind counts");
    for split in Split::ALL {
        let theirs = bundled.texts(Borderline, Some(split));
        assert!(set.texts(Borderline, Some(split)).ends_with(&theirs), "{split}");
        assert_eq!(set.texts(Harmless, Some(split)), bundled.texts(Harmless, Some(split)));
    }
    let added =
        |split| set.texts(Borderline, Some(split)).len() - bundled.texts(Borderline, Some(split)).len();
    assert_eq!((Split::ALL.map(added), own.len()), ([4, 2, 1], 7));
    assert!(set.source().ends_with("borderline.txt + bundled"));
    set.require(&PromptKind::ALL).unwrap();
}

#[test]
fn two_kinds_are_an_error() {
    let (_a, harmful) = file("harmful.txt", lines(12, |i| format!("prompt {i}")));
    let (_b, harmless) = file("harmless.txt", lines(12, |i| format!("PROMPT  {}", i + 11)));
    let error = PromptSet::load(&[harmful, harmless]).unwrap_err().to_string();
    assert!(error.contains("PROMPT  11"), "{error}");
    assert!(error.contains("harmful.txt:12") && error.contains("harmless.txt:1"), "{error}");
}

#[test]
fn unusable_files() {
    assert!(matches!(PromptSet::load(&[]), Err(PromptError::NoFiles)));
    let dir = tempfile::tempdir().unwrap();
    let load = |path: PathBuf| PromptSet::load(&[path]).unwrap_err();
    assert!(matches!(load(dir.path().join("no.txt")), PromptError::NotFound { .. }));
    assert!(matches!(load(dir.path().to_owned()), PromptError::Directory { .. }));
    let dotted = dir.path().join("harmful.d");
    fs::create_dir(&dotted).unwrap();
    assert!(matches!(load(dotted), PromptError::Directory { .. }));
    let error = load(PathBuf::from("harmful:"));
    assert!(matches!(error, PromptError::NotFound { .. }), "{error}");
}

#[test]
fn unusable_contents() {
    let load = |name: &str, content: &[u8]| load_one(name, content).unwrap_err();
    for (name, content) in [
        ("harmful.txt", &b""[..]),
        ("harmful.txt", b"\xEF\xBB\xBF\n # only\n"),
        ("harmful.jsonl", b"\n\n"),
        ("harmful.csv", b""),
        ("harmful.csv", b"prompt,kind\n"),
    ] {
        let error = load(name, content);
        assert!(matches!(error, PromptError::Empty { .. }), "{name}: {error}");
    }
    let error = load("harmful.xlsx", b"a");
    assert!(error.to_string().ends_with("found .xlsx"), "{error}");
    let error = load("harmful.txt", b"fine\nbad \xFF\n");
    assert!(matches!(error, PromptError::InvalidUtf8 { line: 2, .. }), "{error}");
    let error = load_one("harmful.txt", "one\ntwo\n").unwrap().require(&[Harmful]).unwrap_err();
    assert!(matches!(error, PromptError::TooFew { expected: 12, found: 2, .. }), "{error}");
}

#[test]
fn malformed_records_name_their_line() {
    for (name, content, line, part) in [
        ("h.jsonl", "{\"prompt\": ", 1, "malformed JSON"),
        ("h.jsonl", "\n[1]", 2, "a number"),
        ("h.jsonl", "{\"prompt\": \"a\"}\n[1]", 2, "an array"),
        ("h.json", "[\n {\"prompt\": \"a\"},\n\n {\"prompt\": 1}\n]", 4, "a number"),
        ("h.json", "[\n {\"prompt\": \"a\"},\n {\"prompt\" 1}\n]", 3, "malformed JSON"),
        ("h.json", "{\n \"a\": [\"x\"],\n \"b\": [\"y\"]\n}", 1, "the arrays a, b"),
        ("h.json", "{\n \"data\": [\n  {\"title\": \"y\"}\n ]\n}", 3, "none of them"),
        ("h.tsv", "prompt\tkind\nx\n", 2, "1 fields"),
        ("h.jsonl", "{}", 1, "none of them"),
        ("h.jsonl", "{\"prompt\": 3}", 1, "a number"),
        ("h.jsonl", "{\"prompt\": \"x\", \"kind\": 1}", 1, "a number"),
        ("h.jsonl", "{\"prompt\": \" \"}", 1, "an empty text"),
        ("h.jsonl", "{\"prompt\": \"a\\u0000b\"}", 1, "NUL"),
        ("h.csv", "prompt\nx\n\"\"\n", 3, "an empty text"),
    ] {
        let (_dir, path) = file(name, content);
        let error = PromptSet::load(&[with_prefix("harmful", &path)]).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&format!("{name}:{line}: ")), "{message}");
        assert!(message.contains(part), "{message}");
        assert!(!message.ends_with('.') && error.hint().is_some(), "{message}");
    }
}

#[test]
fn limits() {
    let long = "x".repeat(MAX_PROMPT_BYTES + 1);
    let error = load_one("harmful.txt", format!("a\n{long}")).unwrap_err();
    assert!(matches!(error, PromptError::PromptTooLong { line: 2, .. }), "{error}");
    let many = "x\n".repeat(MAX_PROMPTS + 1);
    let error = load_one("harmful.txt", many).unwrap_err();
    assert!(matches!(error, PromptError::TooMany { line: 100_001, .. }), "{error}");

    // A sparse file costs no disk space.
    let (_dir, path) = file("harmful.txt", "");
    let sparse = fs::OpenOptions::new().write(true).open(&path).unwrap();
    sparse.set_len(MAX_FILE_BYTES + 1).unwrap();
    let error = PromptSet::load(&[path]).unwrap_err();
    assert!(matches!(error, PromptError::TooLarge { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        name in "(harmful|harmless|x|unsafe|nonsafety)\\.(jsonl|json|csv|txt|tsv)",
    ) {
        let _ = load_one(&name, bytes);
    }

    #[test]
    fn arbitrary_text_never_panics(
        text in "(prompt,kind\n|\\{\"prompt\": )?[a-z\"{}\\[\\],:\\\\#\r\n\u{e9}\u{feff} ]{0,200}",
        name in "(harmful|\u{e9}safe\u{e9}|nontoxic)\\.(jsonl|csv|txt)",
    ) {
        if let Err(error) = load_one(&name, text) {
            prop_assert!(!error.to_string().ends_with('.'));
        }
    }
}
