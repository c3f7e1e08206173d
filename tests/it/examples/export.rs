//! G3, G7: the example `export`: every row arrives once, over HTTP/1 and HTTP/2, a client that leaves costs
//! nothing, and a truncated file does not look complete.

use std::{net::Ipv4Addr, sync::Arc};

use axum::body::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use sea_orm::{ConnectionTrait, Database, Statement};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tower_sea_orm::SessionPool;

use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_whole, open_transactions, session_pool},
    servers::OwnServer,
    wait::{BOUND, eventually},
};

#[allow(dead_code, reason = "a test does not call main")]
#[path = "../../../examples/export.rs"]
mod example;

/// Enough to fill all buffers on the way to a client that does not read.
const MANY: u64 = 200_000;

#[derive(Debug, Clone, Copy)]
enum Http {
    One,
    Two,
}

/// The example on a free port.
struct Server {
    pool: SessionPool,
    port: u16,
    _connections: JoinSet<()>,
}

impl Server {
    async fn new(pool: SessionPool, rows: u64) -> Self {
        example::fill(&pool, rows).await.unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = TowerToHyperService::new(example::app(pool.clone()));
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let server = Arc::new(auto::Builder::new(TokioExecutor::new()));
            // Ended with the test.
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (server, service) = (server.clone(), service.clone());
                served.spawn(async move {
                    drop(server.serve_connection(TokioIo::new(stream), service).await)
                });
            }
        });
        Self {
            pool,
            port,
            _connections: connections,
        }
    }

    /// The head of the export, its body yet to be read, on a connection of its own.
    async fn get(&self, http: Http) -> (Response<Incoming>, JoinSet<()>) {
        let io = TokioIo::new(
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
                .await
                .unwrap(),
        );
        let uri = format!("http://127.0.0.1:{}/sales.csv", self.port);
        let request = Request::get(uri)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let mut connection = JoinSet::new();
        let answer = match http {
            Http::One => {
                let (mut sender, io) = http1::handshake(io).await.unwrap();
                connection.spawn(async move { drop(io.await) });
                timeout(BOUND, sender.send_request(request)).await
            }
            Http::Two => {
                let (mut sender, io) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
                connection.spawn(async move { drop(io.await) });
                timeout(BOUND, sender.send_request(request)).await
            }
        };
        (answer.unwrap().unwrap(), connection)
    }

    /// The whole export, and in how many pieces it came.
    async fn export(&self, http: Http) -> Result<(Vec<u8>, usize), hyper::Error> {
        let (answer, _connection) = self.get(http).await;
        assert_eq!(answer.headers()["content-type"], "text/csv; charset=utf-8");
        read(answer.into_body()).await
    }
}

/// A body to its end, and in how many pieces it came. Each has its time: all of them take as long as the machine needs.
async fn read(mut body: Incoming) -> Result<(Vec<u8>, usize), hyper::Error> {
    let (mut text, mut pieces) = (Vec::new(), 0);
    while let Some(frame) = timeout(BOUND, body.frame()).await.expect("the body hangs") {
        text.extend_from_slice(frame?.data_ref().unwrap());
        pieces += 1;
    }
    Ok((text, pieces))
}

/// Asserts that a CSV reader finds what the table has, row by row.
async fn assert_complete(server: &Server, text: &[u8], rows: u64) {
    let mut reader = csv::Reader::from_reader(text);
    assert_eq!(
        reader.headers().unwrap(),
        vec!["id", "name", "cents", "remark"]
    );
    let sql = "SELECT id, name, cents, remark FROM export_example_sale ORDER BY id";
    let session = server.pool.session().await.unwrap();
    let table = session
        .query_all_raw(Statement::from_string(session.backend(), sql))
        .await
        .unwrap();
    assert_eq!(table.len() as u64, rows);
    let mut records = reader.records();
    for row in &table {
        let record = records.next().expect("as many as there are rows").unwrap();
        let expected = [
            row.try_get_by_index::<i64>(0).unwrap().to_string(),
            row.try_get_by_index::<String>(1).unwrap(),
            row.try_get_by_index::<i32>(2).unwrap().to_string(),
            row.try_get_by_index::<Option<String>>(3)
                .unwrap()
                .unwrap_or_default(),
        ];
        assert_eq!(record, expected.to_vec());
    }
    assert!(records.next().is_none(), "no row twice");
}

#[tokio::test]
async fn every_row_arrives_once_and_as_csv_over_http1_and_http2() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        for rows in [0, 1, 1001, 20_000] {
            let server = Server::new(session_pool(db.clone()), rows).await;
            for http in [Http::One, Http::Two] {
                // Which row is the last one that a task may read in one go, is chance.
                for _ in 0..3 {
                    let (text, pieces) = server.export(http).await.unwrap();
                    assert_complete(&server, &text, rows).await;
                    assert!(
                        pieces <= 5 + text.len() / 4096,
                        "{kind:?} {http:?}: {pieces} pieces"
                    );
                }
            }
        }
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_half_way_gives_the_connection_back() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let server = Server::new(session_pool(db.clone()), MANY).await;
        for http in [Http::One, Http::Two] {
            for pieces in [0, 1, 20] {
                let (mut answer, connection) = server.get(http).await;
                for _ in 0..pieces {
                    let piece = timeout(BOUND, answer.body_mut().frame()).await.unwrap();
                    assert!(
                        piece.is_some_and(|piece| piece.is_ok()),
                        "{kind:?} {http:?}"
                    );
                }
                assert_eq!(
                    server.pool.status().used,
                    1,
                    "{kind:?} {http:?}: it is held until the body's end"
                );
                drop((answer, connection));
                eventually("the connection is back", async || {
                    server.pool.status().used == 0
                })
                .await;
            }
        }
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn all_rows_are_of_one_moment() {
    // SQLite in memory has no second connection that could change anything meanwhile.
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let server = Server::new(session_pool(db.clone()), MANY).await;
        let (mut answer, _connection) = server.get(Http::One).await;
        let first = timeout(BOUND, answer.body_mut().frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let observer = test.observer().await.unwrap();
        let delete = format!("DELETE FROM export_example_sale WHERE id > {}", MANY - 100);
        observer.execute_unprepared(&delete).await.unwrap();
        let (rest, _) = read(answer.into_body()).await.unwrap();
        let text = [&first.into_data().unwrap()[..], &rest].concat();
        assert_eq!(
            csv::Reader::from_reader(&text[..]).records().count() as u64,
            MANY,
            "{kind:?}"
        );
        observer.close().await.unwrap();
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn an_export_that_cannot_begin_is_answered_with_an_error() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let server = Server::new(session_pool(db.clone()), 10).await;
        db.execute_unprepared("DROP TABLE export_example_sale")
            .await
            .unwrap();
        let (answer, _connection) = server.get(Http::One).await;
        assert_eq!(answer.status(), 500, "{kind:?}");
        assert!(
            answer
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .is_empty()
        );
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn an_export_whose_database_fails_is_not_taken_for_a_whole_one() {
    for start in [OwnServer::postgres, OwnServer::mysql] {
        let mut database = start();
        let test = TestDb::on(&database).await;
        let db = test.connect(1).await;
        for http in [Http::One, Http::Two] {
            let server = Server::new(session_pool(db.clone()), MANY).await;
            let (mut answer, connection) = server.get(http).await;
            answer.body_mut().frame().await.unwrap().unwrap();
            database.stop();
            let rest = read(answer.into_body()).await;
            assert!(rest.is_err(), "{http:?}: the body breaks off");
            drop(connection);
            database.start();
            eventually("the connection's place is free", async || {
                server.pool.status().used == 0
            })
            .await;
        }
        assert_whole(&test, &db, 1).await;
        let observer = Database::connect(test.options(1)).await.unwrap();
        assert_eq!(open_transactions(&observer).await, 0);
    }
}
