//! Bodies of gRPC, whose clients read in the trailers how the call has ended.

use http_body_util::BodyExt;

use super::*;
use crate::error::Kind;

const GRPC: Terms = Terms {
    content_length: None,
    has_grpc_trailers: true,
};

fn grpc_trailers(code: &'static str) -> Step {
    let name = http::HeaderName::from_static("grpc-status");
    let code = http::HeaderValue::from_static(code);
    Step::Trailers(HeaderMap::from_iter([(name, code)]))
}

fn stream(log: &Log) -> Script {
    Script::new(log, [data("one"), data("last"), grpc_trailers("0")])
}

/// Engages the body, and returns its data and its trailers' status and message.
async fn read(script: Script, finish: Finish, terms: Terms) -> Result<(Bytes, String), BoxError> {
    let (body, hold) = SessionBody::new(script);
    assert!(!refused(hold.engage(finish, terms, None)));
    let body = body.collect().await?;
    let trailers = body.trailers().expect("trailers");
    let texts: Vec<_> = trailers
        .iter()
        .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
        .collect();
    let texts = texts.join(" ");
    Ok((body.to_bytes(), texts))
}

#[tokio::test]
async fn a_failed_commit_takes_the_trailers_place() {
    let internal = "grpc-status=13 grpc-message=internal error";
    let cases: [(BoxError, &str); 3] = [
        (
            crate::Error::from(Kind::Serialization).into(),
            "grpc-status=14 grpc-message=the request conflicted with another one",
        ),
        (crate::Error::from(Kind::CommitFailed).into(), internal),
        ("the task panicked".into(), internal),
    ];
    for (error, expected) in cases {
        let log = Log::default();
        let (bytes, trailers) = read(stream(&log), finish(&log, Err(error)), GRPC)
            .await
            .unwrap();
        assert_eq!((&bytes[..], &*trailers), (&b"onelast"[..], expected));
        assert_eq!(log.events(), ["inner dropped", "finish called", "failed"]);
    }
}

#[tokio::test]
async fn a_committed_stream_keeps_its_own_trailers() {
    let log = Log::default();
    let (_, trailers) = read(stream(&log), finish(&log, Ok(())), GRPC)
        .await
        .unwrap();
    assert_eq!(trailers, "grpc-status=0");
}

#[tokio::test]
async fn a_session_that_is_cut_off_is_told_by_trailers() {
    let log = Log::default();
    let (mut body, hold) = SessionBody::new(stream(&log));
    assert!(!refused(hold.engage(finish(&log, Ok(())), GRPC, None)));
    assert_eq!(next(&mut body).await, "data:one");
    hold.break_off(Kind::Reclaimed.into());
    let trailers = body.frame().await.unwrap().unwrap().into_trailers();
    assert_eq!(trailers.unwrap()["grpc-status"], "4");
    assert!(body.is_end_stream());
    assert_eq!(next(&mut body).await, "end");
    assert_eq!(log.events(), ["rolled back", "inner dropped"]);
}

#[tokio::test]
async fn a_grpc_response_that_declares_its_length_breaks_off() {
    let log = Log::default();
    let failing = finish(&log, Err("no quorum".into()));
    let script = stream(&log).of_exactly(7);
    read(script, failing, GRPC).await.unwrap_err();

    // And one that fails by itself.
    let script = Script::new(&log, [data("one"), Step::Fail]);
    let error = read(script, finish(&log, Ok(())), GRPC).await.unwrap_err();
    assert_eq!(error.to_string(), "broken");
}

/// G7: the session may be cut off on another thread at any moment.
#[tokio::test]
async fn an_end_that_is_read_while_the_session_is_cut_off_does_not_go_through() {
    for (terms, last) in [
        (Terms::default(), None),
        (Terms::default(), Some(trailers("7"))),
        (length(Some(4)), Some(data("last"))),
        (GRPC, Some(grpc_trailers("0"))),
    ] {
        let log = Log::default();
        let (mut body, hold) = SessionBody::new(Script::new(&log, []));
        let ends = hold.clone();
        let cut = Step::Meanwhile(Box::new(move || ends.break_off(Kind::Reclaimed.into())));
        let inner = body.inner.as_mut().unwrap();
        inner.steps.extend([cut].into_iter().chain(last));
        assert!(!refused(hold.engage(finish(&log, Ok(())), terms, None)));
        let end = body.frame().await.expect("no end");
        if terms.has_grpc_trailers {
            let trailers = end.unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "4");
        } else {
            end.unwrap_err();
            assert!(!body.is_end_stream());
        }
    }
}
