//! What a client sees, over hyper's HTTP/1 and HTTP/2 connections.

use http::{Method, Version};

use super::{
    exchange::{Exchange, Form, happened, quiet, soon},
    *,
};

#[tokio::test]
async fn the_client_sees_no_end_before_the_commit() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
        let Finishing {
            finish,
            called,
            outcome,
        } = finishing(&log);
        engaged(&hold, finish, form.length());
        let reader = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read();

        assert_eq!(
            soon(called).await.unwrap().is_some(),
            form.trailers,
            "{form:?}"
        );
        quiet().await;
        assert_eq!(reader.seen(), form.before_the_commit(), "{form:?}");
        assert!(!reader.task.is_finished(), "{form:?}");

        outcome.send(Ok(())).unwrap();
        let (seen, result) = reader.end().await;
        let received = result.unwrap();
        assert_eq!(seen, "firstlast", "{form:?}");
        let carries_trailers = form.version == Version::HTTP_2 || !form.has_length();
        assert_eq!(
            received,
            (form.trailers && carries_trailers).then(|| trailer_map("7")),
            "{form:?}"
        );
        assert_eq!(
            log.events(),
            ["inner dropped", "finish called", "committed"],
            "{form:?}"
        );
    }
}

#[tokio::test]
async fn a_failed_commit_is_an_incomplete_body() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
        let Finishing {
            finish,
            called,
            outcome,
        } = finishing(&log);
        engaged(&hold, finish, form.length());
        let reader = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read();

        soon(called).await.unwrap();
        quiet().await;
        outcome.send(Err("no quorum".into())).unwrap();
        let (seen, result) = reader.end().await;
        assert!(result.is_err(), "{form:?}: {seen}");
        assert_eq!(seen, form.before_the_commit(), "{form:?}");
        assert_eq!(
            log.events(),
            ["inner dropped", "finish called", "failed"],
            "{form:?}"
        );
    }
}

#[tokio::test]
async fn an_inner_error_is_an_incomplete_body_and_rolls_back() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) =
            SessionBody::new(form.script(&log, vec![data("first"), Step::Pending, Step::Fail]));
        engaged(&hold, finish(&log, Ok(())), form.length());
        let (_, result) = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read()
            .end()
            .await;
        assert!(result.is_err(), "{form:?}");
        assert_eq!(log.events(), ["inner dropped", "rolled back"], "{form:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_rolls_back() {
    for form in Form::all() {
        let log = Log::default();
        let (_never, wait) = oneshot::channel();
        let steps = vec![data("first"), Step::Wait(wait), data("last")];
        let (body, hold) = SessionBody::new(form.script(&log, steps));
        engaged(&hold, finish(&log, Ok(())), form.length());
        let reader = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read();
        quiet().await;
        assert_eq!(reader.seen(), "first", "{form:?}");
        reader.hang_up();
        happened(&log, "rolled back").await;
        assert_eq!(log.events(), ["inner dropped", "rolled back"], "{form:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_the_commit_drops_its_future() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
        let Finishing {
            finish,
            called,
            outcome: _outcome,
        } = finishing(&log);
        engaged(&hold, finish, form.length());
        let reader = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read();
        soon(called).await.unwrap();
        reader.hang_up();
        happened(&log, "finish dropped").await;
        assert_eq!(
            log.events(),
            ["inner dropped", "finish called", "finish dropped"],
            "{form:?}"
        );
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_declared_is_incomplete_and_rolled_back() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for declared in [3, 5, 7, 12] {
            let log = Log::default();
            let form = Form::plain(version);
            let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
            engaged(&hold, finish(&log, Ok(())), Some(declared));
            let (_, result) = Exchange::new(form, Method::GET, body, Some(declared))
                .await
                .read()
                .end()
                .await;
            assert!(result.is_err(), "{version:?} {declared}");
            assert_eq!(
                log.events(),
                ["inner dropped", "rolled back"],
                "{version:?} {declared}"
            );
        }
    }
}

#[tokio::test]
async fn a_response_to_head_is_settled_at_its_head() {
    let form = Form {
        header: true,
        ..Form::plain(Version::HTTP_11)
    };
    let log = Log::default();
    let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
    hold.pass();
    let (seen, result) = Exchange::new(form, Method::HEAD, body, form.length())
        .await
        .read()
        .end()
        .await;
    assert!(result.is_ok() && seen.is_empty());
    assert_eq!(log.events(), ["inner dropped"]);

    // Left to its body, it would be rolled back: no server reads that body.
    let log = Log::default();
    let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
    engaged(&hold, finish(&log, Ok(())), form.length());
    Exchange::new(form, Method::HEAD, body, form.length())
        .await
        .read()
        .end()
        .await
        .1
        .unwrap();
    assert_eq!(log.events(), ["inner dropped", "rolled back"]);
}

#[tokio::test]
async fn a_body_of_trailers_alone_is_settled_at_its_end() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for exact in [None, Some(0)] {
            let log = Log::default();
            let form = Form::plain(version);
            let mut script = form.script(&log, vec![trailers("7")]);
            script.exact = exact;
            let (body, hold) = SessionBody::new(script);
            let Finishing {
                finish,
                called,
                outcome,
            } = finishing(&log);
            engaged(&hold, finish, None);
            let reader = Exchange::new(form, Method::GET, body, None).await.read();
            assert_eq!(soon(called).await.unwrap(), Some(trailer_map("7")));
            outcome.send(Ok(())).unwrap();
            assert_eq!(
                reader.end().await.1.unwrap(),
                Some(trailer_map("7")),
                "{version:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_error_status_goes_out_with_a_body_that_passes() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
        hold.pass();
        let (seen, result) = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read()
            .end()
            .await;
        assert!(result.is_ok(), "{form:?}");
        assert_eq!(seen, "firstlast", "{form:?}");
    }
}
