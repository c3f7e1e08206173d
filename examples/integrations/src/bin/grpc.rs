//! gRPC with tonic: unary methods and server streams, each on the session of its request.
//!
//! ```text
//! cargo run --bin grpc                                        # SQLite in memory
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --bin grpc
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`. Try, with <https://github.com/fullstorydev/grpcurl>:
//!
//! ```text
//! grpcurl -plaintext -proto proto/shop.proto -d '{"id":1,"pieces":3}' localhost:3000 shop.v1.Shop/Take
//! grpcurl -plaintext -proto proto/shop.proto localhost:3000 shop.v1.Orders/List
//! ```
//!
//! When a client's deadline (`grpc-timeout`) passes, tonic drops the call, which rolls it back. That covers a
//! call until its head is there, the wait for a connection included, but not the messages of a stream:
//! those are bounded by the pool's `hold_timeout` (`DB_HOLD_TIMEOUT`), which ends the stream with
//! DEADLINE_EXCEEDED, and by the client hanging up. With
//! `cancel_running` (`DB_CANCEL_RUNNING`), the statement of a dropped call stops as well.

use std::error::Error;

use async_stream::try_stream;
use futures_util::{Stream, TryStreamExt, stream::BoxStream};
use integrations::{item, start, stopped};
use sea_orm::{DbErr, EntityTrait, QueryOrder};
use tokio::net::TcpListener;
use tonic::{
    Code, Request, Response, Status,
    service::LayerExt,
    transport::{Server, server::TcpIncoming},
};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionBodyLayer, grpc_timeout};

use self::shop::{
    GetRequest, Item, ListRequest, OrderRequest, TakeRequest,
    orders_server::{self, OrdersServer},
    shop_server::{self, ShopServer},
};

/// What the build script makes of `proto/shop.proto`.
#[allow(unused_qualifications)]
pub(crate) mod shop {
    tonic::include_proto!("shop.v1");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (pool, listener) = start().await?;
    // A call that gets its connection after its deadline works for nobody.
    let layer = DbSessionLayer::new(pool.clone()).deadline(grpc_timeout);
    serve(listener, layer, stopped(pool)).await?;
    Ok(())
}

pub(crate) async fn serve(
    listener: TcpListener,
    sessions: DbSessionLayer,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .layer(sessions)
        // Settled at the head: the handler has returned its message or its `Err` by then, and if COMMIT fails,
        // the layer can still answer with a code of its own.
        .add_service(ShopServer::new(Shop))
        // The `grpc-status` of a stream is in its trailers. Only a session that is kept until then can be used
        // while the messages are made, and rolled back by an `Err` among them. If COMMIT fails, the messages have
        // left, and the trailers are the layer's own: their status says that nothing of it counts.
        .add_service(SessionBodyLayer::new().named_layer(OrdersServer::new(Orders)))
        .serve_with_incoming_shutdown(incoming, stop)
        .await
}

struct Shop;

#[tonic::async_trait]
impl shop_server::Shop for Shop {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Item>, Status> {
        let db = session(&request)?;
        let found = item::Entity::find_by_id(request.get_ref().id);
        let item = found.one(&db).await.map_err(failed)?;
        item.map(Item::from)
            .map(Response::new)
            .ok_or_else(|| Status::not_found("no such item"))
    }

    async fn take(&self, request: Request<TakeRequest>) -> Result<Response<Item>, Status> {
        // A transaction: `Ok` leaves once COMMIT is acknowledged. An `Err`, a deadline and a client that
        // hangs up roll back.
        let tx = session(&request)?.tx();
        take(&tx, request.get_ref()).await.map(Response::new)
    }
}

struct Orders;

#[tonic::async_trait]
impl orders_server::Orders for Orders {
    type ListStream = BoxStream<'static, Result<Item, Status>>;

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        Ok(Response::new(Box::pin(items(session(&request)?))))
    }

    type OrderStream = BoxStream<'static, Result<Item, Status>>;

    async fn order(
        &self,
        request: Request<OrderRequest>,
    ) -> Result<Response<Self::OrderStream>, Status> {
        let tx = session(&request)?.tx();
        let lines = request.into_inner().lines;
        // The first `Err` ends the stream, and its code goes into the trailers.
        Ok(Response::new(Box::pin(try_stream! {
            for line in lines {
                yield take(&tx, &line).await?;
            }
        })))
    }
}

/// The rows as the client takes them: never more than a few are in memory.
fn items(db: DbSession) -> impl Stream<Item = Result<Item, Status>> {
    try_stream! {
        let found = item::Entity::find().order_by_asc(item::Column::Id);
        let mut rows = found.stream(&db).await.map_err(failed)?;
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            yield row.into();
        }
    }
}

async fn take(tx: &DbTx, line: &TakeRequest) -> Result<Item, Status> {
    if line.pieces < 1 {
        return Err(Status::invalid_argument("take a piece at least"));
    }
    let left = item::take(tx, line.id, line.pieces).await.map_err(failed)?;
    match left {
        None => Err(Status::not_found("no such item")),
        Some(left) if left.pieces < 0 => Err(Status::failed_precondition("not in stock")),
        Some(left) => Ok(left.into()),
    }
}

fn session<T>(request: &Request<T>) -> Result<DbSession, Status> {
    DbSession::from_extensions(request.extensions()).map_err(|error| failed(error.into()))
}

/// The client gets a code, the log gets the cause.
fn failed(error: DbErr) -> Status {
    tracing::error!("{error}");
    match tower_sea_orm::Error::of(&error) {
        // UNAVAILABLE and the like, where another try may help.
        Some(known) => Status::new(Code::from_i32(known.grpc_code()), "the database failed"),
        None => Status::internal("the database failed"),
    }
}

impl From<item::Model> for Item {
    fn from(item: item::Model) -> Self {
        let item::Model { id, name, pieces } = item;
        Self { id, name, pieces }
    }
}
