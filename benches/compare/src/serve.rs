//! `compare serve`: one subject as a service.

use axum::serve::ListenerExt;
use tokio::net::TcpListener;

use crate::{
    Failure,
    cli::Options,
    subjects::{POOL, Subject},
};

/// Serves until killed. Its first line of output is the port.
pub async fn run(options: &Options) -> Result<(), Failure> {
    options.only(&["url", "pool", "waiting"])?;
    let name = options.word(0).ok_or("serve needs the name of a subject")?;
    let subject = Subject::named(name).ok_or(format!("no subject {name}"))?;
    let pool = options.number("pool")?.unwrap_or(POOL);
    let db = subject.connect(options.needed("url")?, pool).await?;
    let router = subject
        .router(db, options.number("waiting")?)
        .ok_or("that subject has a server of its own")?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let listener = listener.tap_io(|stream| {
        // What uvicorn does as well.
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}
