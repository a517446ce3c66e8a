//! Tests of how many of the writers' inputs are kept.

use super::*;

fn capture() -> Capture {
    let dense = InputShape { n_in: 100, n_used: 1, n_expert: 1 };
    let mixture = InputShape { n_in: 50, n_used: 3, n_expert: 8 };
    Capture { shapes: vec![dense, mixture], tail: vec![1], n_sample: 40, ..Capture::nothing() }
}

/// Returns the numbers of sampled, tail and last tokens at which inputs of the writer are kept.
fn kept(capture: &Capture, writer: usize) -> [usize; 3] {
    let inputs = &capture.allocate(20, capture.n_sample(1000)).inputs[writer];
    [inputs.sample.nrows(), inputs.tail.nrows(), inputs.last.nrows()]
}

#[test]
fn of_what_memory_has_no_room_for_the_same_share_is_kept() {
    assert_eq!(capture().token_bytes(), 4 * (100 + 150));
    for (bytes, expected) in [(80_000, [40, 20, 20]), (79_999, [39, 19, 19]), (20_000, [10, 5, 5])] {
        let within = capture().within(bytes, 80);
        let tokens = [0, 1].map(|writer| kept(&within, writer));
        assert_eq!(tokens, [expected; 2], "{bytes}");
        assert!(expected.iter().sum::<usize>() as u64 * within.token_bytes() <= bytes);
    }
    assert_eq!(capture().within(0, 0).share(), 1.0, "nothing is requested");
    assert_eq!(capture().allocate(20, 0).residual.dim().0, 20, "directions are learned from all prompts");
}
