//! Frame by frame, with inner bodies that play a script.

use futures_util::poll;
use http_body_util::{BodyExt, Full};
use static_assertions::assert_impl_all;

use super::*;

assert_impl_all!(SessionBody<Full<Bytes>>: Send, Sync, Unpin);
assert_impl_all!(Hold: Send, Sync);
assert_impl_all!(http::Response<SessionBody<axum::body::Body>>: axum::response::IntoResponse);

/// Reads a body whose `finish` is ready at once, and returns the frames and the
/// log.
async fn run(script: Script, log: &Log, content_length: Option<u64>) -> Vec<String> {
    let (mut body, hold) = SessionBody::new(script);
    engaged(&hold, finish(log, Ok(())), content_length);
    assert!(!body.is_end_stream());
    let frames = all(&mut body).await;
    assert_eq!(next(&mut body).await, "end");
    frames
}

#[tokio::test]
async fn the_last_frame_waits_for_the_commit_however_its_end_is_known() {
    let script = |log: &Log| Script::new(log, [data("one"), Step::Pending, data("last")]);
    type Shape = fn(Script) -> Script;
    let shapes: [(Shape, Option<u64>); 5] = [
        (|script| script.knowing_its_end(), None),
        (|script| script.of_exactly(7), None),
        (|script| script, Some(7)),
        (|script| script.knowing_its_end(), Some(7)),
        (|script| script.knowing_its_end().of_exactly(7), Some(7)),
    ];
    for (shape, content_length) in shapes {
        let log = Log::default();
        let (mut body, hold) = SessionBody::new(shape(script(&log)));
        let Finishing {
            finish,
            mut called,
            outcome,
        } = finishing(&log);
        engaged(&hold, finish, content_length);
        assert!(!body.is_end_stream());
        assert_eq!(next(&mut body).await, "data:one");

        {
            let mut last = Box::pin(next(&mut body));
            while called.try_recv().is_err() {
                assert!(poll!(&mut last).is_pending());
            }
        }
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(4));
        assert_eq!(log.events(), ["inner dropped", "finish called"]);

        outcome.send(Ok(())).unwrap();
        assert_eq!(next(&mut body).await, "data:last");
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
        assert_eq!(next(&mut body).await, "end");
        drop(body);
        assert_eq!(
            log.events(),
            ["inner dropped", "finish called", "committed"]
        );
    }
}

#[tokio::test]
async fn an_end_that_was_not_announced_waits_for_the_commit() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, [data("one"), data("last")]));
    let Finishing {
        finish,
        mut called,
        outcome,
    } = finishing(&log);
    engaged(&hold, finish, None);
    assert_eq!(next(&mut body).await, "data:one");
    assert_eq!(next(&mut body).await, "data:last");
    assert!(poll!(Box::pin(next(&mut body))).is_pending());
    assert!(called.try_recv().unwrap().is_none());
    assert!(!body.is_end_stream());
    assert_eq!(body.size_hint().exact(), None);
    outcome.send(Ok(())).unwrap();
    assert_eq!(next(&mut body).await, "end");
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn trailers_are_shown_and_wait_with_the_data_before_them() {
    for (exact, content_length) in [(None, None), (Some(3), None), (None, Some(3))] {
        let log = Log::default();
        let mut script = Script::new(&log, [data("one"), Step::Pending, trailers("7")]);
        script.exact = exact;
        let (mut body, hold) = SessionBody::new(script);
        let Finishing {
            finish,
            called,
            outcome,
        } = finishing(&log);
        engaged(&hold, finish, content_length);
        outcome.send(Ok(())).unwrap();
        assert_eq!(next(&mut body).await, "data:one");
        assert!(!body.is_end_stream());
        assert_eq!(
            called.now_or_never().is_some(),
            exact.or(content_length).is_some()
        );
        assert_eq!(next(&mut body).await, "trailers:7");
        assert!(body.is_end_stream());
        assert_eq!(next(&mut body).await, "end");
        assert_eq!(
            log.events(),
            ["inner dropped", "finish called", "committed"]
        );
    }
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, [trailers("7")]));
    let Finishing {
        finish,
        mut called,
        outcome: _outcome,
    } = finishing(&log);
    engaged(&hold, finish, None);
    assert!(poll!(Box::pin(next(&mut body))).is_pending());
    assert_eq!(called.try_recv().unwrap(), Some(trailer_map("7")));
}

#[tokio::test]
async fn a_body_that_belies_its_length_is_broken_off_and_rolled_back() {
    let cases: Vec<(Vec<Step>, bool, &[&str])> = vec![
        (vec![data("123456")], false, &[TOO_LONG]),
        (
            vec![data("123"), data("456")],
            true,
            &["data:123", TOO_LONG],
        ),
        (
            vec![data("12345"), Step::Pending, data("6")],
            false,
            &[TOO_LONG],
        ),
        (vec![data("123")], false, &["data:123", TOO_SHORT]),
        (vec![data("123")], true, &[TOO_SHORT]),
        (
            vec![data("123"), trailers("7")],
            false,
            &["data:123", TOO_SHORT],
        ),
        (vec![], false, &[TOO_SHORT]),
    ];
    for (steps, knows_end, expected) in cases {
        let log = Log::default();
        let mut script = Script::new(&log, steps);
        script.knows_end = knows_end && !script.steps.is_empty();
        assert_eq!(run(script, &log, Some(5)).await, expected);
        assert_eq!(log.events(), ["inner dropped", "rolled back"]);
    }
}

#[tokio::test]
async fn empty_frames_neither_complete_nor_lengthen_a_body() {
    let log = Log::default();
    let script = Script::new(
        &log,
        [data(""), data("12345"), data(""), Step::Pending, data("")],
    );
    assert_eq!(
        run(script, &log, Some(5)).await,
        ["data:", "data:12345", "end"]
    );

    let script = Script::new(&log, [data("12345"), data("")]).knowing_its_end();
    assert_eq!(run(script, &log, Some(5)).await, ["data:12345", "end"]);

    let script = Script::new(&log, [data("12345"), data("")]).knowing_its_end();
    assert_eq!(
        run(script, &log, None).await,
        ["data:12345", "data:", "end"]
    );

    let script = Script::new(&log, [data("")]);
    assert_eq!(run(script, &log, None).await, ["data:", "end"]);
}

#[tokio::test]
async fn a_large_only_frame_is_counted_while_it_is_withheld() {
    let log = Log::default();
    let large = Bytes::from(vec![b'x'; 32 << 20]);
    let (mut body, hold) = SessionBody::new(Full::new(large.clone()));
    let Finishing {
        finish, outcome, ..
    } = finishing(&log);
    engaged(&hold, finish, None);
    assert_eq!(body.size_hint().exact(), Some(32 << 20));
    assert!(poll!(body.frame()).is_pending());
    assert_eq!(body.size_hint().exact(), Some(32 << 20));
    outcome.send(Ok(())).unwrap();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        large
    );
    assert!(body.is_end_stream());
}
