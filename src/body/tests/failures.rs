//! Bodies that fail, or are dropped before their end.

use futures_util::poll;
use http_body_util::{BodyExt, Full};

use super::*;

#[tokio::test]
async fn an_error_of_the_inner_body_goes_through_and_rolls_back() {
    for content_length in [None, Some(3)] {
        let log = Log::default();
        let (mut body, hold) = SessionBody::new(Script::new(&log, [data("one"), Step::Fail]));
        engaged(&hold, finish(&log, Ok(())), content_length);
        let frames = all(&mut body).await;
        assert_eq!(frames.last().unwrap(), "error:broken");
        assert_eq!(frames.len(), if content_length.is_some() { 1 } else { 2 });
        assert_eq!(log.events(), ["inner dropped", "rolled back"]);
        assert_eq!(next(&mut body).await, "end");
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().exact(), None);
    }
}

#[tokio::test]
async fn a_failed_commit_is_an_error_and_the_end_is_never_handed_out() {
    type Shape = fn(Script) -> Script;
    let shapes: [(Shape, Option<u64>, &[&str]); 4] = [
        (
            |script| script,
            None,
            &["data:one", "data:last", NOT_COMMITTED],
        ),
        (
            |script| script.knowing_its_end(),
            None,
            &["data:one", NOT_COMMITTED],
        ),
        (
            |script| script.of_exactly(7),
            None,
            &["data:one", NOT_COMMITTED],
        ),
        (|script| script, Some(7), &["data:one", NOT_COMMITTED]),
    ];
    for (shape, content_length, expected) in shapes {
        let log = Log::default();
        let (mut body, hold) =
            SessionBody::new(shape(Script::new(&log, [data("one"), data("last")])));
        engaged(&hold, finish(&log, Err("no quorum".into())), content_length);
        assert_eq!(all(&mut body).await, expected);
        assert_eq!(log.events(), ["inner dropped", "finish called", "failed"]);
        assert_eq!(next(&mut body).await, "end");
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().exact(), None);
    }

    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Full::new(Bytes::from_static(b"one")));
    engaged(&hold, finish(&log, Err("no quorum".into())), None);
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "no quorum");
}

#[tokio::test]
async fn a_body_dropped_before_its_end_rolls_back() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, [data("one"), data("last")]));
    engaged(&hold, finish(&log, Ok(())), None);
    assert_eq!(next(&mut body).await, "data:one");
    drop(body);
    assert_eq!(log.events(), ["inner dropped", "rolled back"]);
    assert!(!hold.is_wanted());
}

#[tokio::test]
async fn a_body_dropped_while_it_settles_drops_the_future() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, [data("last")]));
    let Finishing {
        finish,
        outcome: _outcome,
        ..
    } = finishing(&log);
    engaged(&hold, finish, Some(4));
    assert!(poll!(Box::pin(next(&mut body))).is_pending());
    drop(body);
    assert_eq!(
        log.events(),
        ["inner dropped", "finish called", "finish dropped"]
    );
}
