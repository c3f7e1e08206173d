//! G20: each attempt gets the same body, byte for byte, and a body that cannot be had twice is sent once.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::mpsc;
use tower::{Layer, ServiceExt, service_fn};
use tower_sea_orm::{Attempt, DbSession, ReplayBody, RetryLayer};

use super::{Runs, attempts, conflict, retrying, site};
use crate::support::{
    database::Kind,
    requests::Failed,
    site::{BOUND, Site},
};

/// What a handler has read of a body.
#[derive(Clone, Debug, Default, PartialEq)]
struct Read {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    has_failed: bool,
}

impl Read {
    async fn all<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Self {
        Self::at_least(body, usize::MAX).await
    }

    /// Reads frames until it has `length` bytes, or the body ends.
    async fn at_least<B: Body<Data = Bytes> + Unpin>(body: &mut B, length: usize) -> Self {
        let mut read = Self::default();
        while read.data.len() < length
            && let Some(frame) = body.frame().await
        {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => read.data.extend_from_slice(&data),
                Ok(Err(frame)) => read.trailers = frame.into_trailers().ok(),
                Err(_) => {
                    read.has_failed = true;
                    break;
                }
            }
        }
        read
    }
}

/// The answer to one request with this body, whose handler reads it by `read` and meets a conflict in the first attempts.
async fn serve<B, F>(
    site: &Site,
    retry: RetryLayer,
    body: B,
    conflicts: u32,
    read: F,
) -> Response<String>
where
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    F: Fn(ReplayBody<B>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Clone,
{
    let other = site.view().clone();
    let handler = service_fn(move |request: Request<ReplayBody<B>>| {
        let (head, body) = request.into_parts();
        let session: DbSession = DbSession::from_extensions(&head.extensions).unwrap();
        let (other, reading) = (other.clone(), read(body));
        async move {
            reading.await;
            let mut response = Response::new(String::new());
            if Attempt::of(&head.extensions).number() <= conflicts {
                let Failed(_) = conflict(&session.tx(), &other).await.unwrap_err();
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let layered = retry.layer(site.layer.clone().layer(handler));
    let serving = layered.oneshot(Request::new(body));
    let Ok(response) = tokio::time::timeout(BOUND, serving)
        .await
        .expect("an answer");
    response
}

type Reads = Arc<Mutex<Vec<Read>>>;

/// Notes what it reads.
fn noting<B>(
    reads: &Reads,
    length: usize,
) -> impl Fn(ReplayBody<B>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Clone + use<B>
where
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let reads = reads.clone();
    move |mut body| {
        let reads = reads.clone();
        Box::pin(async move {
            let read = Read::at_least(&mut body, length).await;
            reads.lock().unwrap().push(read);
        })
    }
}

/// Bytes that are all different from their neighbours.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// A body of unknown length, in chunks.
fn chunked(
    data: &[u8],
    size: usize,
    trailers: Option<HeaderMap>,
) -> StreamBody<impl stream::Stream<Item = Result<Frame<Bytes>, io::Error>> + Send + 'static> {
    let chunks = data
        .chunks(size)
        .map(|chunk| Frame::data(Bytes::copy_from_slice(chunk)));
    let frames: Vec<_> = chunks
        .chain(trailers.map(Frame::trailers))
        .map(Ok)
        .collect();
    StreamBody::new(stream::iter(frames))
}

#[tokio::test]
async fn g20_a_body_of_exactly_the_limit_is_the_same_in_each_attempt() {
    let site = site(Kind::Postgres).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", "17".parse().unwrap());
    for (length, size) in [
        (0, 1),
        (1, 1),
        (1000, 1),
        (64 << 10, 1021),
        (64 << 10, 64 << 10),
    ] {
        for trailers in [None, Some(trailers.clone())] {
            let (data, reads) = (bytes(length), Reads::default());
            let expected = Read {
                data: data.clone(),
                trailers: trailers.clone(),
                has_failed: false,
            };
            let body = chunked(&data, size, trailers);
            let response = serve(&site, retrying(), body, 2, noting(&reads, usize::MAX)).await;
            assert_eq!(
                (response.status().as_u16(), attempts(&response)),
                (200, 3),
                "{length}"
            );
            assert!(
                *reads.lock().unwrap() == [expected.clone(), expected.clone(), expected],
                "{length}"
            );
        }
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_body_one_byte_longer_is_passed_on_and_sent_once() {
    let site = site(Kind::Postgres).await;
    let data = bytes((64 << 10) + 1);
    let reads = Reads::default();
    let known = Full::new(Bytes::from(data.clone()));
    let response = serve(&site, retrying(), known, 1, noting(&reads, usize::MAX)).await;
    assert_eq!((response.status().as_u16(), attempts(&response)), (503, 1));
    let unknown = chunked(&data, 1000, None);
    let response = serve(&site, retrying(), unknown, 1, noting(&reads, usize::MAX)).await;
    assert_eq!((response.status().as_u16(), attempts(&response)), (503, 1));
    let reads = reads.lock().unwrap().clone();
    assert!(
        reads.len() == 2
            && reads
                .iter()
                .all(|read| read.data == data && !read.has_failed)
    );
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_body_that_an_attempt_left_is_continued_by_the_next() {
    let site = site(Kind::Postgres).await;
    let data = bytes(5000);
    for length in [0, 1, 2500, 5000] {
        let (reads, runs) = (Reads::default(), Runs::default());
        let (noted, all) = (noting(&reads, length), noting(&reads, usize::MAX));
        let counted = runs.clone();
        let read = move |body| {
            if counted.note() == 1 {
                noted(body)
            } else {
                all(body)
            }
        };
        let response = serve(&site, retrying(), chunked(&data, 999, None), 1, read).await;
        assert_eq!(
            (response.status().as_u16(), attempts(&response)),
            (200, 2),
            "{length}"
        );
        let reads = reads.lock().unwrap().clone();
        assert!(
            reads.len() == 2 && reads[0].data.len() >= length && data.starts_with(&reads[0].data)
        );
        assert!(reads[1].data == data, "{length}");
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_body_is_recorded_while_it_comes() {
    // Its second half is sent when the first attempt has failed: nothing has waited for all of it.
    let site = site(Kind::Postgres).await;
    let (sender, receiver) = mpsc::unbounded_channel();
    let frame = |data: &'static str| Ok::<_, io::Error>(Frame::data(Bytes::from(data)));
    sender.send(frame("first ")).unwrap();
    let (reads, runs) = (Reads::default(), Runs::default());
    let (some, all) = (noting(&reads, 1), noting(&reads, usize::MAX));
    let sender = Arc::new(Mutex::new(Some(sender)));
    let read = move |body| {
        if runs.note() == 1 {
            return some(body);
        }
        let sender = sender.lock().unwrap().take().unwrap();
        sender.send(frame("second")).unwrap();
        all(body)
    };
    let body = StreamBody::new(
        stream::unfold(receiver, async |mut receiver| {
            let frame = receiver.recv().await?;
            Some((frame, receiver))
        })
        .boxed(),
    );
    let response = serve(&site, retrying(), body, 1, read).await;
    assert_eq!((response.status().as_u16(), attempts(&response)), (200, 2));
    let reads = reads.lock().unwrap().clone();
    assert_eq!(
        (&*reads[0].data, &*reads[1].data),
        (&b"first "[..], &b"first second"[..])
    );
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_body_that_broke_off_is_not_sent_again() {
    let site = site(Kind::Postgres).await;
    let frames = [
        Ok(Frame::data(Bytes::from("half"))),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ];
    let reads = Reads::default();
    let body = StreamBody::new(stream::iter(frames));
    let response = serve(&site, retrying(), body, 1, noting(&reads, usize::MAX)).await;
    assert_eq!((response.status().as_u16(), attempts(&response)), (503, 1));
    assert!(reads.lock().unwrap()[0].has_failed);
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_body_that_a_task_still_has_is_no_later_attempts() {
    for reads_some in [true, false] {
        let site = site(Kind::Postgres).await;
        let (kept, runs) = (Arc::new(Mutex::new(Vec::new())), Runs::default());
        let (keeps, reads) = (kept.clone(), Reads::default());
        let (all, counted) = (noting(&reads, usize::MAX), runs.clone());
        let read = move |mut body: ReplayBody<_>| {
            if counted.note() > 1 {
                return all(body);
            }
            let keeps = keeps.clone();
            Box::pin(async move {
                if reads_some {
                    Read::at_least(&mut body, 1).await;
                }
                keeps.lock().unwrap().push(body);
            }) as Pin<Box<dyn Future<Output = ()> + Send>>
        };
        let response = serve(&site, retrying(), chunked(&bytes(100), 10, None), 1, read).await;
        let mut old = kept.lock().unwrap().pop().unwrap();
        let rest = Read::all(&mut old).await;
        if reads_some {
            // The first attempt is still at it.
            assert_eq!((response.status().as_u16(), runs.count()), (503, 1));
            assert!(rest.data == bytes(100)[10..] && !rest.has_failed);
        } else {
            assert_eq!((response.status().as_u16(), runs.count()), (200, 2));
            assert!(reads.lock().unwrap()[0].data == bytes(100));
            assert!(
                rest.data.is_empty() && rest.has_failed,
                "no body that looks complete"
            );
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_bodys_length_and_end_are_known_in_each_attempt() {
    let site = site(Kind::SqliteFile).await;
    let hints = Arc::new(Mutex::new(Vec::new()));
    let noted = hints.clone();
    let read = move |mut body: ReplayBody<Full<Bytes>>| {
        let noted = noted.clone();
        Box::pin(async move {
            let before = (body.size_hint().exact(), body.is_end_stream());
            Read::at_least(&mut body, 1).await;
            noted.lock().unwrap().push((before, body.is_end_stream()));
        }) as Pin<Box<dyn Future<Output = ()> + Send>>
    };
    let body = Full::new(Bytes::from("hello"));
    serve(&site, retrying(), body, 1, read).await;
    let expected = ((Some(5), false), true);
    assert_eq!(*hints.lock().unwrap(), [expected, expected]);
    site.assert_whole().await;
}
