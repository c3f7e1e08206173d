//! G7, G8: bodies that lose their session, or that have nothing to send for a long time.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::get,
};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbTx};

use super::server::Server;
use crate::support::{
    database::{Kind, insert_item},
    site::{BOUND, Site, value, violate},
    wait::eventually,
};

/// One event, then nothing for ever.
fn events() -> Body {
    let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n")) });
    Body::from_stream(first.chain(stream::pending()))
}

#[tokio::test]
async fn a_broken_body_is_dropped_and_rolled_back() {
    for kind in Kind::ALL {
        for http2 in [false, true] {
            // Longer than a busy machine takes to send the first part.
            let site = Site::new(kind)
                .await
                .pooled(|pool| pool.hold_timeout(Duration::from_secs(2)));
            let dropped = Arc::new(AtomicBool::new(false));
            let gone = dropped.clone();
            let app = site.app(async move |tx: DbTx| {
                insert_item(&tx, "lost").await;
                let gone = SetOnDrop(gone);
                let body = events().map_frame(move |frame| {
                    let _ = &gone;
                    frame
                });
                Response::new(Body::new(tx.hold_until_body_end(body)))
            });
            let mut server = Server::start(app).await;
            let (answer, connection) = server.get(http2).await;
            let mut body = answer.into_body();
            assert!(timeout(BOUND, body.frame()).await.unwrap().unwrap().is_ok());
            let end = timeout(BOUND, body.frame())
                .await
                .expect("an end, not a hang");
            assert!(matches!(end, Some(Err(_))), "{kind:?} {http2}: incomplete");
            eventually("what the body held is dropped", async || {
                dropped.load(Ordering::SeqCst)
            })
            .await;
            drop(body);
            connection.abort();
            server.stop().await;
            assert_eq!(site.count("lost").await, 0, "{kind:?}");
            site.assert_whole().await;
        }
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_closed_pool_keeps_autocommitted_writes_and_rolls_the_rest_back() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        for transactional in [false, true] {
            let site = Site::new(kind).await;
            let layer = if transactional {
                site.layer.clone().transaction()
            } else {
                site.layer.clone()
            };
            let handler = async |db: DbSession| {
                insert_item(&db, "row").await;
                Response::new(Body::new(db.hold_until_body_end(events())))
            };
            let mut server =
                Server::start(Router::new().route("/", get(handler)).layer(layer)).await;
            let (answer, connection) = server.get(false).await;
            let mut body = answer.into_body();
            assert!(timeout(BOUND, body.frame()).await.unwrap().unwrap().is_ok());
            assert_eq!(
                timeout(BOUND, site.layer.pool().close(Duration::ZERO))
                    .await
                    .unwrap(),
                1
            );
            let end = timeout(BOUND, body.frame())
                .await
                .expect("an end, not a hang");
            assert!(matches!(end, Some(Err(_))), "{kind:?}");
            drop(body);
            server.stop().await;
            connection.abort();
            assert_eq!(
                site.count("row").await,
                i64::from(!transactional),
                "{kind:?}"
            );
        }
    }
}

/// Holds up each COMMIT that inserts items, until the lock is released.
const GATE: &str = "
    CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON item
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pass();";

#[tokio::test]
async fn a_body_whose_commit_is_under_way_ends_with_it_when_the_pool_closes() {
    for fails in [false, true] {
        for http2 in [false, true] {
            let site = Site::new(Kind::Postgres).await;
            site.defer().await;
            site.run(GATE).await;
            let gate = site.view().begin().await.unwrap();
            gate.execute_unprepared("SELECT pg_advisory_xact_lock(7)")
                .await
                .unwrap();
            let app = site.app(async move |tx: DbTx| {
                insert_item(&tx, "row").await;
                if fails {
                    violate(&tx).await;
                }
                let parts = stream::iter(["two ", "parts"].map(Ok::<_, Infallible>));
                Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(parts))))
            });
            let mut server = Server::start(app).await;
            let (answer, connection) = server.get(http2).await;
            let body = tokio::spawn(answer.into_body().collect());
            let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            eventually("COMMIT waits", async || {
                value::<i64>(&gate, waiting).await == 1
            })
            .await;

            let pool = site.layer.pool().clone();
            let closing = tokio::spawn(async move { pool.close(Duration::ZERO).await });
            eventually("the pool closes", async || site.layer.pool().is_closed()).await;
            // Some time to cut it off, which must not be done.
            tokio::time::sleep(Duration::from_millis(100)).await;
            gate.commit().await.unwrap();
            let read = timeout(BOUND, body)
                .await
                .expect("an end, not a hang")
                .unwrap();
            assert_eq!(
                read.ok().map(|body| body.to_bytes()),
                (!fails).then(|| Bytes::from("two parts")),
                "{http2}"
            );
            assert_eq!(
                timeout(BOUND, closing).await.unwrap().unwrap(),
                0,
                "nothing was cut off"
            );
            assert_eq!(site.count("row").await, i64::from(!fails), "{http2}");
            connection.abort();
            server.stop().await;
        }
    }
}

#[tokio::test]
async fn a_body_that_is_idle_for_a_while_is_not_mistaken_for_an_unread_one() {
    for http2 in [false, true] {
        let bound = Duration::from_secs(2);
        let site = Site::new(Kind::SqliteMemory)
            .await
            .pooled(|pool| pool.body_timeout(bound));
        let app = site.app(async move |tx: DbTx| {
            insert_item(&tx, "kept").await;
            let late = stream::once(async move {
                tokio::time::sleep(bound * 2).await;
                Ok::<_, Infallible>(Bytes::from_static(b"late"))
            });
            Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(late))))
        });
        let mut server = Server::start(app).await;
        let (answer, connection) = server.get(http2).await;
        let body = timeout(BOUND, answer.into_body().collect())
            .await
            .unwrap()
            .unwrap()
            .to_bytes();
        assert_eq!(&body[..], b"late");
        assert_eq!(site.count("kept").await, 1);
        connection.abort();
        server.stop().await;
        site.assert_whole().await;
    }
}
