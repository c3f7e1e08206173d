//! [`Server`]: the PostgreSQL that all subjects use.

use std::{process::Command, time::Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::{Failure, item::ROWS, process};

#[derive(Debug)]
pub struct Server {
    pub url: String,
    pub port: u16,
    pub version: String,
    postmaster: u32,
    admin: PgConnection,
}

impl Server {
    /// Connects to the server at `url` and fills the table.
    pub async fn prepare(url: &str) -> Result<Self, Failure> {
        let mut admin = PgConnection::connect(url).await?;
        let port = url
            .rsplit_once(':')
            .and_then(|(_, after)| after.split('/').next()?.parse().ok());
        let (backend, version): (i32, String) =
            sqlx::query_as("SELECT pg_backend_pid(), current_setting('server_version')")
                .fetch_one(&mut admin)
                .await?;
        // Room on each page, so that an update stays on its row's page and the table does not grow.
        admin.execute("DROP TABLE IF EXISTS item").await?;
        admin
            .execute(
                "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, hits int NOT NULL) WITH (fillfactor = 50)",
            )
            .await?;
        let fill = format!(
            "INSERT INTO item SELECT id, 'item ' || id, 0 FROM generate_series(1, {ROWS}) id"
        );
        admin.execute(AssertSqlSafe(fill)).await?;
        let postmaster = process::parent(backend as u32)?;
        let port = port.ok_or("a URL without a port")?;
        let mut server = Self {
            url: url.to_owned(),
            port,
            version,
            postmaster,
            admin,
        };
        server.tidy_up().await?;
        Ok(server)
    }

    /// What autovacuum would do at times of its own.
    pub async fn tidy_up(&mut self) -> Result<(), Failure> {
        self.admin.execute("VACUUM (ANALYZE) item").await?;
        self.admin.execute("CHECKPOINT").await?;
        Ok(())
    }

    /// How long `SELECT 1` takes at `url`, in microseconds: the median of many, one after the other.
    pub async fn round_trip(url: &str) -> Result<f64, Failure> {
        let mut connection = PgConnection::connect(url).await?;
        let mut times = Vec::new();
        for _ in 0..200 {
            let began = Instant::now();
            connection.execute("SELECT 1").await?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        connection.close().await?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Has every statement on the table wait until [`unlock`](Self::unlock).
    pub async fn lock(&mut self) -> Result<(), Failure> {
        self.admin
            .execute("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE")
            .await?;
        Ok(())
    }

    pub async fn unlock(&mut self) -> Result<(), Failure> {
        self.admin.execute("ROLLBACK").await?;
        Ok(())
    }

    /// Binds the server to the processors `list`; new connections follow.
    pub fn bind_to(&self, list: &str) -> Result<(), Failure> {
        for pid in self.processes() {
            let pid = pid.to_string();
            let done = Command::new("taskset")
                .args(["-a", "-c", "-p", list, &pid])
                .output()?;
            // One that has just ended needs no processor.
            if !done.status.success() && std::path::Path::new("/proc").join(&pid).exists() {
                return Err(String::from_utf8_lossy(&done.stderr).into());
            }
        }
        Ok(())
    }

    /// The processes whose time is the server's.
    pub fn processes(&self) -> Vec<u32> {
        let mut processes = process::children(self.postmaster);
        processes.push(self.postmaster);
        processes
    }
}
