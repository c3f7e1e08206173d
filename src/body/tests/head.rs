//! Bodies of which the head, or a middleware, has decided before.

use futures_util::poll;
use http_body_util::Full;

use super::*;

#[tokio::test]
async fn a_body_that_is_gone_gives_finish_back() {
    let log = Log::default();
    let (body, hold) = SessionBody::new(Script::new(&log, [data("one")]));
    assert!(hold.is_wanted());
    drop(body);
    assert!(!hold.is_wanted() && !hold.has_failed());
    let finish = hold
        .engage(finish(&log, Ok(())), Terms::default(), None)
        .unwrap_err();
    assert_eq!(log.events(), ["inner dropped"]);
    drop(finish);
}

#[tokio::test]
async fn a_body_read_below_the_layer_goes_through_and_gives_finish_back() {
    type Shape = fn(Script) -> Script;
    let shapes: [(Shape, bool); 3] = [
        (|script| script, false),
        (|script| script.knowing_its_end(), true),
        (|script| script.of_exactly(7), true),
    ];
    for (shape, knows) in shapes {
        let log = Log::default();
        let (mut body, hold) =
            SessionBody::new(shape(Script::new(&log, [data("one"), data("last")])));
        assert_eq!(next(&mut body).await, "data:one");
        assert!(hold.is_wanted());
        assert_eq!(next(&mut body).await, "data:last");
        // Who knows the length or asks for the end has all of it now.
        assert_eq!(hold.is_wanted(), !knows, "{knows}");
        if !body.is_end_stream() {
            assert_eq!(next(&mut body).await, "end");
        }
        assert!(!hold.is_wanted() && !hold.has_failed());
        assert!(refused(hold.engage(
            finish(&log, Ok(())),
            Terms::default(),
            None
        )));
    }
}

#[tokio::test]
async fn what_was_read_below_the_layer_counts() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, [data("one"), data("last")]));
    assert_eq!(next(&mut body).await, "data:one");
    engaged(&hold, finish(&log, Ok(())), Some(7));
    assert_eq!(all(&mut body).await, ["data:last", "end"]);

    // A server that has all of it already does not ask for its end.
    let (mut body, hold) = SessionBody::new(Script::new(&log, [data("one"), data("last")]));
    assert_eq!(next(&mut body).await, "data:one");
    assert!(refused(hold.engage(
        finish(&log, Ok(())),
        length(Some(3)),
        None
    )));
    assert_eq!(all(&mut body).await, ["data:last", "end"]);
}

#[tokio::test]
async fn a_body_that_failed_below_the_layer_says_so() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, [data("one"), Step::Fail]));
    assert_eq!(all(&mut body).await, ["data:one", "error:broken"]);
    assert!(!hold.is_wanted() && hold.has_failed());
    drop(body);
    assert!(hold.has_failed());
    assert!(refused(hold.engage(
        finish(&log, Ok(())),
        Terms::default(),
        None
    )));
}

#[tokio::test]
async fn the_head_may_go_out_while_the_first_frame_is_awaited() {
    let log = Log::default();
    let (go, wait) = oneshot::channel();
    let (mut body, hold) =
        SessionBody::new(Script::new(&log, [Step::Wait(wait), data("last")]).knowing_its_end());
    {
        let mut frame = Box::pin(next(&mut body));
        assert!(poll!(&mut frame).is_pending());
        engaged(&hold, finish(&log, Err("no quorum".into())), None);
        go.send(()).unwrap();
        assert_eq!(frame.await, NOT_COMMITTED);
    }
    assert_eq!(log.events(), ["inner dropped", "finish called", "failed"]);
}

#[tokio::test]
async fn the_head_may_go_out_while_a_task_reads_the_last_frame() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, []));
    let finish = finish(&log, Err("no quorum".into()));
    let head = Step::Meanwhile(Box::new(move || engaged(&hold, finish, None)));
    let inner = body.inner.as_mut().unwrap();
    inner.steps.extend([head, data("last")]);
    inner.knows_end = true;
    assert_eq!(next(&mut body).await, NOT_COMMITTED);
    assert_eq!(log.events(), ["inner dropped", "finish called", "failed"]);
}

#[tokio::test]
async fn a_body_settled_at_its_head_passes() {
    let log = Log::default();
    let script = Script::new(&log, [data("one"), data("last")])
        .knowing_its_end()
        .of_exactly(7);
    let (mut body, hold) = SessionBody::new(script);
    hold.pass();
    assert!(!hold.is_wanted());
    assert_eq!(body.size_hint().exact(), Some(7));
    assert_eq!(next(&mut body).await, "data:one");
    assert_eq!(body.size_hint().exact(), Some(4));
    assert!(!body.is_end_stream());
    assert_eq!(next(&mut body).await, "data:last");
    assert!(body.is_end_stream());
    assert!(refused(hold.engage(
        finish(&log, Ok(())),
        Terms::default(),
        None
    )));
}

#[tokio::test]
async fn passing_an_engaged_body_changes_nothing() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, [data("last")]));
    engaged(&hold, finish(&log, Ok(())), Some(4));
    hold.pass();
    assert!(refused(hold.engage(
        finish(&Log::default(), Ok(())),
        Terms::default(),
        None
    )));
    assert_eq!(all(&mut body).await, ["data:last", "end"]);
    assert_eq!(
        log.events(),
        ["inner dropped", "finish called", "committed"]
    );
}

#[tokio::test]
async fn an_empty_body_is_settled_at_its_head() {
    let log = Log::default();
    let (body, hold) = SessionBody::new(Full::new(Bytes::new()));
    assert!(body.is_end_stream() && !hold.is_wanted());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(refused(hold.engage(
        finish(&log, Ok(())),
        Terms::default(),
        None
    )));

    let (body, hold) = SessionBody::new(Script::new(&log, [data("one")]));
    assert!(refused(hold.engage(
        finish(&log, Ok(())),
        length(Some(0)),
        None
    )));
    assert!(!hold.is_wanted() && !body.is_end_stream());
}

#[tokio::test]
async fn a_body_that_turned_out_empty_after_the_head_is_settled_at_its_end() {
    let log = Log::default();
    let (go, wait) = oneshot::channel();
    let script = Script::new(&log, [Step::Wait(wait)]).knowing_its_end();
    let (mut body, hold) = SessionBody::new(script);
    engaged(&hold, finish(&log, Ok(())), None);
    body.inner.as_mut().unwrap().steps.clear();
    assert!(!body.is_end_stream(), "a server would not poll it");
    assert_eq!(all(&mut body).await, ["end"]);
    assert!(body.is_end_stream());
    drop(go);
    assert_eq!(
        log.events(),
        ["inner dropped", "finish called", "committed"]
    );
}

#[tokio::test]
async fn a_body_without_bytes_but_with_trailers_is_read_all_the_same() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(Script::new(&log, [trailers("7")]).of_exactly(0));
    assert_eq!(body.size_hint().exact(), None, "a server would not poll it");
    engaged(&hold, finish(&log, Ok(())), None);
    assert_eq!(body.size_hint().exact(), None);
    assert_eq!(all(&mut body).await, ["trailers:7", "end"]);
}

#[tokio::test]
async fn a_plain_body_passes() {
    let mut body = SessionBody::<Full<Bytes>>::from(String::from("text"));
    assert_eq!(body.size_hint().exact(), Some(4));
    assert_eq!(next(&mut body).await, "data:text");
    assert!(body.is_end_stream());
    assert!(SessionBody::<Full<Bytes>>::default().is_end_stream());
    assert_eq!(
        format!("{body:?}"),
        r#"SessionBody { state: "reading", read: 4, .. }"#
    );
}
