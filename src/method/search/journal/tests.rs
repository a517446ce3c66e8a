//! Tests on journals that are complete, truncated, damaged, or of another search.

use super::*;
use crate::arch::window::Window;
use crate::eval::Tally;
use crate::util::hint::Hint;

pub(in crate::method::search) fn head() -> Head {
    Head {
        version: "0.1.0".into(),
        llama_cpp: "b1".into(),
        cpu: "AVX2 = 1".into(),
        input_sha256: "00ff".into(),
        prompts_sha256: "11ee".into(),
        writers_sha256: "22dd".into(),
        method: "contrast".into(),
        system_prompt: "auto".into(),
        contexts_sha256: "c".into(),
        thinking: "auto".into(),
        think: 256,
        direction_source: None,
        strength: None,
        max_kl: Some(0.1 + 0.2),
        memory: 1 << 32,
        threads: 2,
        gpu_layers: 0,
        devices: Vec::new(),
        flash_attn: FlashAttn::Off,
    }
}

const CANDIDATE: Candidate = Candidate {
    direction_source: DirectionSource::Plain,
    layer: 3,
    window: Window { from: 0.3, until: 0.8 },
    contrast: 0.7,
};

fn probe(strength: f64) -> Row {
    let first_tokens = FirstTokenScore { harmful: 1.0 / 3.0, harmless: 5e-324, borderline: 0.0 };
    let look = Look { strength, first_tokens: Some(first_tokens), score: None };
    Row::Probe { candidate: CANDIDATE, start: 0.1, look }
}

fn trial(kl: f64) -> Row {
    let tally = |refused, complied, broken| Tally { refused, complied, broken, ..Tally::default() };
    let score = Score { harmful: tally(3, 1, 0), harmless: tally(0, 4, 0), borderline: tally(0, 0, 0), kl };
    Row::Trial { candidate: CANDIDATE, strength: 0.3 * 0.75, score }
}

fn written(folder: &Path) -> PathBuf {
    let path = folder.join("a.search.jsonl");
    let mut journal = Journal::begin(&path, head());
    assert_eq!(journal.path(), None, "there is no file before there is a row");
    [probe(0.1), trial(f64::INFINITY), trial(1e-9)].into_iter().for_each(|row| journal.add(row));
    assert_eq!(journal.path(), Some(path.as_path()));
    path
}

#[test]
fn rows_are_read_back_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let journal = Journal::resume(&path, head()).unwrap();
    assert_eq!(journal.rows, [probe(0.1), trial(f64::INFINITY), trial(1e-9)]);
    assert!(journal.probe(&CANDIDATE, 0.1).is_some() && journal.probe(&CANDIDATE, 0.2).is_none());
    assert_eq!(journal.trial(&CANDIDATE, 0.3 * 0.75).unwrap().kl, 1e-9, "the last of two");
    for other in [
        Candidate { layer: 4, ..CANDIDATE },
        Candidate { direction_source: DirectionSource::Ablated, ..CANDIDATE },
    ] {
        assert!(journal.trial(&other, 0.3 * 0.75).is_none() && journal.probe(&other, 0.1).is_none());
    }
    journal.remove();
    assert!(!path.exists());
}

#[test]
fn a_journal_of_another_search_is_refused_by_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let told = |head| Journal::resume(&path, head).unwrap_err().to_string();
    assert!(told(Head { max_kl: Some(0.3), ..head() }).contains("max_kl was 0.30000000000000004"));
    assert!(told(Head { input_sha256: "aa".into(), ..head() }).contains("input_sha256 was \"00ff\""));
    assert!(told(Head { strength: Some(0.1), ..head() }).contains("strength was not given"));
    assert!(
        told(Head { direction_source: Some(DirectionSource::Ablated), ..head() })
            .contains("is \"ablated\" now")
    );
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('{', "{\"newer\":1,", 1)).unwrap();
    assert!(told(head()).contains("newer was 1 in the interrupted search and is unknown now"));
}

#[test]
fn damage_is_an_error_but_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let text = std::fs::read_to_string(&path).unwrap();
    for torn in ["{\"probe\"", "\0\0\0\0\n", "{}\n", "\u{fffd}"] {
        std::fs::write(&path, format!("{text}{torn}")).unwrap();
        let mut journal = Journal::resume(&path, head()).unwrap();
        assert_eq!(journal.len(), 3);
        journal.add(probe(0.5));
        assert_eq!(Journal::resume(&path, head()).unwrap().len(), 4);
    }
    std::fs::write(&path, text.replacen("\n{\"probe\"", "\n{\"prbe\"", 1)).unwrap();
    assert!(matches!(Journal::resume(&path, head()), Err(JournalError::Malformed { line: 2, .. })));
    for no_journal in ["a poem\nof two lines\n", "{}\n", "[1]\n"] {
        std::fs::write(&path, no_journal).unwrap();
        let error = Journal::resume(&path, head()).unwrap_err();
        assert!(matches!(error, JournalError::Malformed { line: 1, .. }) && error.hint().is_some());
    }
    std::fs::write(&path, "{\"version\":\"0.").unwrap();
    assert!(Journal::resume(&path, head()).unwrap().is_empty(), "stopped within the first line");
    assert!(Journal::resume(folder.path(), head()).is_err(), "a folder");
}

#[test]
fn a_journal_that_cannot_be_written_does_not_end_the_search() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::begin(&folder.path().join("no/such/folder.jsonl"), head());
    journal.add(probe(0.1));
    journal.add(trial(0.0));
    assert_eq!((journal.len(), journal.path()), (2, None));
}
