//! Whatever a body is made of: who sees it complete sees a commit.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Case {
    sizes: Vec<usize>,
    pending: Vec<bool>,
    trailers: bool,
    knows_end: bool,
    exact: bool,
    header: bool,
    /// The head goes out after so many frames.
    engage_after: usize,
    commits: bool,
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::collection::vec((0..4usize, any::<bool>()), 0..5),
        any::<[bool; 5]>(),
        0..4usize,
    )
        .prop_map(
            |(frames, [trailers, knows_end, exact, header, commits], engage_after)| {
                let (sizes, pending) = frames.into_iter().unzip();
                Case {
                    sizes,
                    pending,
                    trailers,
                    knows_end,
                    exact,
                    header,
                    engage_after,
                    commits,
                }
            },
        )
}

/// Reads as a server does, which stops as soon as the response is complete.
async fn serve(case: Case) -> Result<(), TestCaseError> {
    let log = Log::default();
    let total: u64 = case.sizes.iter().map(|size| *size as u64).sum();
    let mut steps = Vec::new();
    for (size, pending) in case.sizes.iter().zip(&case.pending) {
        if *pending {
            steps.push(Step::Pending);
        }
        steps.push(Step::Data(Bytes::from(vec![b'x'; *size])));
    }
    if case.trailers {
        steps.push(trailers("7"));
    }
    let mut script = Script::new(&log, steps);
    script.knows_end = case.knows_end;
    script.exact = case.exact.then_some(total);
    let (mut body, hold) = SessionBody::new(script);

    let (mut frames, mut bytes, mut complete) = (0, 0, false);
    let mut head = None;
    loop {
        if frames >= case.engage_after && head.is_none() {
            let result = if case.commits {
                Ok(())
            } else {
                Err("no quorum".into())
            };
            let engaged = !refused(hold.engage(
                finish(&log, result),
                length(case.header.then_some(total)),
                None,
            ));
            let length = case
                .header
                .then_some(total)
                .or(body.size_hint().exact().map(|left| bytes + left));
            head = Some((engaged, length));
            complete = body.is_end_stream() || length == Some(bytes);
        }
        if complete {
            break;
        }
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            None => complete = true,
            Some(Err(_)) => break,
            Some(Ok(frame)) => {
                frames += 1;
                bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                complete = frame.is_trailers()
                    || body.is_end_stream()
                    || head.is_some_and(|(_, length)| length == Some(bytes));
            }
        }
    }
    let Some((true, _)) = head else {
        // Settled at the head, or the reader below the layer was done before.
        prop_assert!(complete);
        prop_assert_eq!(bytes, total);
        return Ok(());
    };
    drop(body);
    let events = log.events();
    prop_assert_eq!(complete, case.commits);
    prop_assert_eq!(
        events.last().map(String::as_str),
        Some(if complete { "committed" } else { "failed" })
    );
    if complete {
        prop_assert_eq!(bytes, total);
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_server_sees_a_complete_body_if_and_only_if_it_is_committed(case in case()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(serve(case))?;
    }
}
