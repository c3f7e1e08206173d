//! A service behind a real port.

use std::net::Ipv4Addr;

use axum::{Router, body::Bytes};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use crate::support::wait::BOUND;

/// A service behind `axum::serve`, until it is stopped.
pub struct Server {
    pub port: u16,
    pub stop: Option<oneshot::Sender<()>>,
    pub ended: JoinHandle<()>,
}

impl Server {
    pub async fn start(app: Router) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(async move {
            let stopped = async move { drop(stopped.await) };
            axum::serve(listener, app)
                .with_graceful_shutdown(stopped)
                .await
                .unwrap();
        });
        Self {
            port,
            stop: Some(stop),
            ended,
        }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
            .await
            .unwrap()
    }

    /// The head of an answer, whose body is still to come.
    pub async fn get(
        &self,
        http2: bool,
    ) -> (http::Response<hyper::body::Incoming>, JoinHandle<()>) {
        let io = TokioIo::new(self.connect().await);
        let request = http::Request::get(format!("http://127.0.0.1:{}/", self.port))
            .header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        if http2 {
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            let task = tokio::spawn(async move { drop(connection.await) });
            (sender.send_request(request).await.unwrap(), task)
        } else {
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            let task = tokio::spawn(async move { drop(connection.await) });
            (sender.send_request(request).await.unwrap(), task)
        }
    }

    /// The whole answer to an HTTP/1.0 request, as it comes.
    pub async fn get_1_0(&self, keep_alive: bool) -> String {
        let mut stream = self.connect().await;
        let keep_alive = if keep_alive {
            "Connection: keep-alive\r\n"
        } else {
            ""
        };
        stream
            .write_all(format!("GET / HTTP/1.0\r\n{keep_alive}\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = timeout(BOUND, stream.read_to_end(&mut answer))
            .await
            .expect("the connection's end");
        String::from_utf8(answer).unwrap()
    }

    pub async fn stop(&mut self) {
        drop(self.stop.take());
        timeout(BOUND, &mut self.ended)
            .await
            .expect("the server stops")
            .unwrap();
    }
}
