//! G3, G14: responses that hand their connection over to another protocol (websockets, say).

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
    routing::get,
};
use http::{StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sea_orm::ConnectionTrait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower_sea_orm::{DbTx, Outcome, testing};

use crate::support::{
    database::{Kind, insert_item},
    site::{BOUND, Site, known},
};

/// Writes, then switches to a protocol whose only message tells whether the request's session lives.
async fn switch(tx: DbTx, request: Request) -> Response {
    insert_item(&tx, "at the head").await;
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.unwrap();
        let is_closed = known(tx.execute_unprepared("SELECT 1").await).is_session_closed();
        // What lives longer than the request takes sessions of its own.
        insert_item(&*tx.pool().session().await.unwrap(), "afterwards").await;
        let message: &[u8] = if is_closed { b"closed" } else { b"alive" };
        let mut io = TokioIo::new(upgraded);
        io.write_all(message).await.unwrap();
        io.shutdown().await.unwrap();
    });
    switching()
}

fn switching() -> Response {
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let response = response
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "telling");
    response.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn an_upgrade_commits_at_its_head_and_keeps_no_connection() {
    for kind in Kind::ALL {
        for hold in [false, true] {
            let site = Site::new(kind).await;
            let route = Router::new().route("/", get(switch));
            let app = if hold {
                route.layer(site.layer.clone().hold_until_body_end())
            } else {
                route.layer(site.layer.clone())
            };
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(axum::serve(listener, app).into_future());
            let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection.with_upgrades());
            let request = http::Request::get("/").header(header::HOST, "localhost");
            let request = request
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "telling");
            let answer = sender
                .send_request(request.body(Empty::<Bytes>::new()).unwrap())
                .await
                .unwrap();
            assert_eq!(
                answer.status(),
                StatusCode::SWITCHING_PROTOCOLS,
                "{kind:?} {hold}"
            );
            let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
            let mut message = String::new();
            timeout(BOUND, io.read_to_string(&mut message))
                .await
                .expect("a message")
                .unwrap();
            assert_eq!(message, "closed", "{kind:?} {hold}");
            server.abort();
            assert_eq!(
                site.seen(["at the head", "afterwards"]).await,
                [true, true],
                "{kind:?} {hold}"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_handler_that_a_test_calls_may_answer_with_an_upgrade() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let answer = testing::serve(site.layer.pool().clone(), async |db| {
            insert_item(&db.tx(), "row").await;
            switching()
        })
        .await;
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert!(
            answer.extensions().get::<Outcome>().unwrap().is_committed(),
            "{kind:?}"
        );
        assert_eq!(site.count("row").await, 1, "{kind:?}");
        site.assert_whole().await;
    }
}
