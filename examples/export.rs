//! A million rows as CSV, streamed from the database into the response in flat memory.
//!
//! ```text
//! cargo run --release --example export                      # SQLite in a temporary file
//! DATABASE_URL=postgres://user:password@localhost/db ROWS=100000 cargo run --release --example export
//!
//! curl -o sales.csv -w '%{size_download} bytes in %{time_total} s\n' http://127.0.0.1:3000/sales.csv
//! grep VmHWM /proc/$(pgrep -x export)/status                # peak memory
//! ```
//!
//! | rows | file | peak memory, SQLite | peak memory, PostgreSQL |
//! |---|---|---|---|
//! | 100 000 | 2.4 MB | 15.0 MiB | 11.7 MiB |
//! | 1 000 000 | 26 MB | 15.0 MiB | 12.0 MiB |
//!
//! All rows are from one snapshot: they are read in one transaction, READ ONLY and REPEATABLE READ, that
//! lasts as long as the body. If the client disconnects, it is rolled back and the connection serves other
//! requests; if the database fails, the body is aborted, so that a truncated file is never mistaken for a
//! complete one.

use std::{
    env,
    error::Error,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use sea_orm::{
    AccessMode, ConnectionTrait, DbErr, EntityTrait, FromQueryResult, IsolationLevel,
    PaginatorTrait, QueryOrder, QueryTrait, Schema, TransactionOptions,
};
use tokio::net::TcpListener;
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tower_sea_orm::{DbSession, DbSessionLayer, PoolConfig, SessionPool, SessionStream};
use tracing::Level;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

/// The size of one chunk of the body. A chunk per row would cost more than the row.
const PIECE: usize = 16 * 1024;

mod sale {
    use sea_orm::entity::prelude::*;
    use serde::Serialize;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Serialize)]
    #[sea_orm(table_name = "export_example_sale")]
    pub(crate) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(crate) id: i64,
        pub(crate) name: String,
        pub(crate) cents: i32,
        pub(crate) remark: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,tower_sea_orm::session=debug"));
    // With `CLOSE`, every session logs one line when it ends.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE);
    // No colours when the output is a file.
    if io::stdout().is_terminal() {
        log.init()
    } else {
        log.with_ansi(false).init()
    }
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("sales.db");
    let url = env::var("DATABASE_URL")
        .unwrap_or_else(|_| format!("sqlite://{}?mode=rwc", file.display()));
    let rows = number("ROWS", 1_000_000)?;
    let config = PoolConfig::from_vars([("DATABASE_URL", url.as_str()), ("DB_ECHO", "false")])?;
    tracing::info!("connecting to {config}");
    let pool = config
        .connect()
        .await
        .map_err(|error| format!("cannot connect to {config}: {error}"))?;
    fill(&pool, rows).await?;

    // Outermost: its span adds the method and the path to each session's log line.
    let trace =
        TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().level(Level::INFO));
    let app = app(pool.clone()).layer(trace);
    let listener = TcpListener::bind(("127.0.0.1", u16::try_from(number("PORT", 3000)?)?)).await?;
    tracing::info!("{rows} rows on http://{}/sales.csv", listener.local_addr()?);
    let closed = async move {
        interrupted().await;
        let cut = pool.close(Duration::from_secs(10)).await;
        tracing::info!("the database connections are closed; {cut} requests were cut off");
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(closed)
        .await?;
    Ok(())
}

fn number(name: &str, default: u64) -> Result<u64, String> {
    let Some(text) = env::var_os(name).filter(|text| !text.is_empty()) else {
        return Ok(default);
    };
    let text = text.to_string_lossy();
    text.parse()
        .map_err(|_| format!("{name} is \"{text}\": write a whole number"))
}

async fn interrupted() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!("cannot listen for ctrl-c: {error}");
        std::future::pending::<()>().await;
    }
}

/// Creates the table with `rows` rows unless they exist. Some contain characters that CSV must quote.
pub(crate) async fn fill(pool: &SessionPool, rows: u64) -> Result<(), DbErr> {
    let session = pool.session().await?;
    let mut table = Schema::new(session.backend()).create_table_from_entity(sale::Entity);
    session.execute(table.if_not_exists()).await?;
    if sale::Entity::find().count(&*session).await? == rows {
        return Ok(());
    }
    tracing::info!("making {rows} rows");
    let tx = session.tx();
    sale::Entity::delete_many().exec(&*tx).await?;
    // MySQL's recursion ends at 1000, so this is a thousand times a thousand.
    for first in (0..rows).step_by(1_000_000) {
        let sql = format!(
            "INSERT INTO export_example_sale (id, name, cents, remark) \
             WITH RECURSIVE k (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM k WHERE n < 999) \
             SELECT {first} + 1000 * a.n + b.n + 1, \
                    CASE b.n % 4 WHEN 0 THEN 'Lamp, \"large\"' WHEN 1 THEN 'Büroklammer' ELSE 'chair' END, \
                    7 * a.n + b.n, \
                    CASE b.n % 10 WHEN 0 THEN 'first line\nsecond line' WHEN 1 THEN '' END \
             FROM k a CROSS JOIN k b WHERE {first} + 1000 * a.n + b.n < {rows}"
        );
        tx.execute_unprepared(&sql).await?;
    }
    tx.commit().await
}

pub(crate) fn app(pool: SessionPool) -> Router {
    Router::new()
        .route("/sales.csv", get(export))
        .route_layer(DbSessionLayer::new(pool).lazy())
}

async fn export(db: DbSession) -> Result<Response, AppError> {
    let tx = db.tx_with(TransactionOptions {
        isolation_level: Some(IsolationLevel::RepeatableRead),
        access_mode: Some(AccessMode::ReadOnly),
        ..Default::default()
    })?;
    let select = sale::Entity::find()
        .order_by_asc(sale::Column::Id)
        .build(tx.backend());
    let rows = tx.rows(select).await?;
    let mut pieces = Box::pin(csv(rows).peekable());
    // A failure before the first row is an error response; after that, only the body can be aborted.
    if let Some(Err(error)) = pieces.as_mut().next_if(Result::is_err).await {
        return Err(error.into());
    }
    let pieces = pieces.inspect_err(|error| tracing::error!("an export was aborted: {error}"));
    // Without this, the session would end with the handler.
    let body = tx.hold_until_body_end(Body::from_stream(pieces));
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"sales.csv\"",
        ),
    ];
    Ok((headers, Body::new(body)).into_response())
}

/// The rows as CSV, read as fast as the client accepts them.
fn csv(rows: SessionStream<'static>) -> impl Stream<Item = Result<Vec<u8>, BoxError>> {
    stream::try_unfold((rows, true), async |(mut rows, is_first)| {
        let mut csv = csv::WriterBuilder::new()
            .has_headers(false)
            .from_writer(Vec::with_capacity(PIECE * 3 / 2));
        if is_first {
            csv.write_record(["id", "name", "cents", "remark"])?;
        }
        while csv.get_ref().len() < PIECE {
            let Some(row) = rows.try_next().await? else {
                break;
            };
            csv.serialize(sale::Model::from_query_result(&row, "")?)?;
        }
        let piece = csv.into_inner()?;
        Ok((!piece.is_empty()).then_some((piece, (rows, false))))
    })
}

struct AppError(BoxError);

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        // The client gets a status, the log gets the cause.
        tracing::error!("{}", self.0);
        let known = self.0.downcast_ref().and_then(tower_sea_orm::Error::of);
        known
            .map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status())
            .into_response()
    }
}

impl<E: Into<BoxError>> From<E> for AppError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}
