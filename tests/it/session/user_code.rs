//! G11, G16: hooks, bodies and raw code may use their session: no lock is held while they run or are dropped.

use std::{
    future::pending,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, future::ready};
use http::StatusCode;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tokio::{runtime::Runtime, time::timeout};
use tower_sea_orm::{DbSession, DbTx};

use crate::support::{
    database::Kind,
    futures::{once, under_way},
    site::{BOUND, Site, known},
    wait::eventually,
};

#[tokio::test]
async fn unpolled_raw_code_goes_on_and_is_dropped_with_its_future() {
    let site = Site::new(Kind::Postgres).await;
    let response = site
        .call(async |db: DbSession| {
            let sleeps = || {
                Box::pin(db.with_postgres(|connection| {
                    Box::pin(async move {
                        sea_orm::sqlx::query("SELECT pg_sleep(0.02)")
                            .execute(connection)
                            .await
                            .unwrap();
                        7
                    })
                }))
            };
            let code = under_way(sleeps).await;
            db.execute_unprepared("UPDATE item SET hits = 1")
                .await
                .unwrap();
            assert_eq!(code.await.unwrap(), 7);
            // Never done, and its future is dropped while a statement waits for it.
            let mut code = Box::pin(db.with_postgres(|_| Box::pin(pending::<()>())));
            assert!(once(code.as_mut()).await.is_pending());
            let mut next = pin!(db.execute_unprepared("UPDATE item SET hits = 1"));
            assert!(
                timeout(Duration::from_millis(20), next.as_mut())
                    .await
                    .is_err()
            );
            drop(code);
            next.await.unwrap_err();
        })
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    site.assert_whole().await;
}

#[tokio::test]
async fn raw_code_that_uses_its_own_session_gets_an_error() {
    let site = Site::new(Kind::Postgres).await;
    let response = site
        .call(async |tx: DbTx| {
            let session = tx.clone();
            let inside = async move {
                let select = known(session.execute_unprepared("SELECT 1").await);
                let begin = known(session.begin().await);
                let commit = known(session.commit().await);
                let release = known(session.release().await);
                [select, begin, commit, release]
            };
            let errors = tx.with_postgres(|_| inside.boxed()).await.unwrap();
            for error in errors {
                assert!(error.is_wrong_handle(), "{error}");
                assert!(error.to_string().contains("raw closure"), "{error}");
            }
            // Beside the code and not inside, it waits for its turn.
            let sleep = "SELECT pg_sleep(0.02)";
            let raw = tx.with_postgres(move |connection| {
                sea_orm::sqlx::query(sleep).execute(connection).boxed()
            });
            let (raw, beside) =
                tokio::join!(raw, tx.execute_unprepared("UPDATE item SET hits = 1"));
            raw.unwrap().unwrap();
            beside.unwrap();
        })
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    site.assert_whole().await;
}

/// Asks the session something when it is dropped.
struct Asks(DbSession, Arc<AtomicBool>);

impl Drop for Asks {
    fn drop(&mut self) {
        let _ = (
            self.0.is_closed(),
            self.0.is_transactional(),
            self.0.pool().status(),
        );
        let _ = self.0.after_rollback(ready(()));
        self.1.store(true, Ordering::SeqCst);
    }
}

/// How a session comes to drop a hook.
#[derive(Clone, Copy, Debug)]
enum Dropping {
    Commit,
    EarlyCommit,
    RollBack,
    EarlyRollBack,
    Savepoint,
    DroppedSavepoint,
    Autocommit,
}

#[test]
fn a_dropped_hook_may_use_the_session_in_its_drop() {
    use Dropping::*;
    // In a thread: a lock that is taken twice blocks it.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        Runtime::new().unwrap().block_on(async {
            for kind in [Kind::SqliteFile, Kind::Postgres] {
                for how in [
                    Commit,
                    EarlyCommit,
                    RollBack,
                    EarlyRollBack,
                    Savepoint,
                    DroppedSavepoint,
                    Autocommit,
                ] {
                    drop_hooks(kind, how).await;
                }
            }
        });
        sender.send(()).unwrap();
    });
    receiver
        .recv_timeout(3 * BOUND)
        .expect("no lock is taken twice");
}

async fn drop_hooks(kind: Kind, how: Dropping) {
    let site = Site::new(kind).await;
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = dropped.clone();
    site.call(async move |db: DbSession| {
        let asks = |flag: &Arc<AtomicBool>| Asks(db.clone(), flag.clone());
        if !matches!(how, Dropping::Autocommit) {
            db.tx();
        }
        db.execute_unprepared("UPDATE item SET hits = 1")
            .await
            .unwrap();
        let capture = asks(&flag);
        let hook = async move {
            let _capture = &capture;
            pending::<()>().await;
        };
        match how {
            Dropping::Commit | Dropping::Autocommit => db.after_rollback(hook).unwrap(),
            Dropping::EarlyCommit => {
                db.after_rollback(hook).unwrap();
                db.commit().await.unwrap();
            }
            Dropping::RollBack => db.after_commit(hook).unwrap(),
            Dropping::EarlyRollBack => {
                db.after_commit(hook).unwrap();
                db.rollback().await.unwrap();
            }
            Dropping::Savepoint => {
                let inner = db.begin().await.unwrap();
                inner.after_commit(hook).unwrap();
                inner.rollback().await.unwrap();
            }
            Dropping::DroppedSavepoint => {
                let inner = db.begin().await.unwrap();
                inner.after_commit(hook).unwrap();
                drop(inner);
                db.execute_unprepared("UPDATE item SET hits = 1")
                    .await
                    .unwrap();
            }
        }
        if matches!(how, Dropping::RollBack) {
            StatusCode::CONFLICT
        } else {
            StatusCode::OK
        }
    })
    .await;
    eventually("the capture is dropped", async || {
        dropped.load(Ordering::SeqCst)
    })
    .await;
    site.assert_whole().await;
}

/// A body that asks its session something when it is asked for its own size.
struct AsksBack(DbSession);

impl http_body::Body for AsksBack {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(u64::from(self.0.is_closed()))
    }
}

#[test]
fn a_held_body_may_use_the_session_when_asked_for_its_size() {
    // In a thread: a lock that is taken twice blocks it.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        Runtime::new().unwrap().block_on(async {
            let site = Site::new(Kind::SqliteMemory).await;
            let ended = Arc::new(Mutex::new(None));
            let kept = ended.clone();
            let response = site
                .call(async move |db: DbSession| {
                    *kept.lock().unwrap() = Some(db.clone());
                    axum::body::Body::new(db.hold_until_body_end(AsksBack(db.clone())))
                })
                .await;
            assert_eq!(response.status(), StatusCode::OK);
            axum::body::to_bytes(response.into_body(), 100)
                .await
                .unwrap();
            let ended = ended.lock().unwrap().take().unwrap();
            eventually("the session has ended", async || ended.is_closed()).await;
            drop(ended.hold_until_body_end(AsksBack(ended.clone())));
            site.assert_whole().await;
        });
        sender.send(()).unwrap();
    });
    receiver
        .recv_timeout(3 * BOUND)
        .expect("no lock is taken twice");
}
