//! [`Service`]: a subject in a process of its own.

use std::{
    env,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Failure, process, subjects::Subject};

/// How long a service may take to start.
const START_BOUND: Duration = Duration::from_secs(30);

/// Dropping it ends the process.
#[derive(Debug)]
pub struct Service {
    pub subject: Subject,
    pub port: u16,
    child: Child,
}

/// How a service is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start<'a> {
    /// The one processor it may use, with one worker thread.
    pub processor: Option<&'a str>,
    /// The connections of its pool, where that can be set; else [`POOL`](crate::subjects::POOL).
    pub pool: Option<u32>,
    /// How many requests may wait for a connection, where that can be set.
    pub waiting: Option<u32>,
}

impl Service {
    /// Starts `subject` on the database at `url`, and waits until it listens.
    pub fn start(subject: Subject, url: &str, start: Start<'_>) -> Result<Self, Failure> {
        let mut command = process::command(&program(subject)?, start.processor);
        if start.processor.is_some() {
            command.env("TOKIO_WORKER_THREADS", "1");
        }
        if subject == Subject::Guide {
            return Self::start_guide(command, url);
        }
        command.args(["serve", subject.name(), "--url", url]);
        if let Some(pool) = start.pool {
            command.args(["--pool", &pool.to_string()]);
        }
        if let Some(waiting) = start.waiting {
            command.args(["--waiting", &waiting.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().ok_or("no output")?;
        let mut service = Self {
            subject,
            port: 0,
            child,
        };
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        service.port = line
            .trim()
            .parse()
            .map_err(|_| format!("{} did not start", subject.name()))?;
        Ok(service)
    }

    fn start_guide(mut command: Command, url: &str) -> Result<Self, Failure> {
        let url = url.replacen("postgres://", "postgresql+asyncpg://", 1);
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        command
            .args([
                "-m",
                "uvicorn",
                "app:app",
                "--host",
                "127.0.0.1",
                "--port",
                &port.to_string(),
            ])
            .args([
                "--loop",
                "uvloop",
                "--http",
                "httptools",
                "--workers",
                "1",
                "--no-access-log",
            ])
            .args(["--log-level", "warning"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("guide"))
            .env("DATABASE_URL", url)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let child = command.stdin(Stdio::null()).spawn()?;
        let mut service = Self {
            subject: Subject::Guide,
            port,
            child,
        };
        let deadline = Instant::now() + START_BOUND;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline || service.child.try_wait()?.is_some() {
                return Err("the guide's app did not start".into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(service)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program that serves `subject`.
fn program(subject: Subject) -> Result<String, Failure> {
    if subject == Subject::Guide {
        return Ok(env::var("GUIDE_PYTHON")
            .map_err(|_| "GUIDE_PYTHON does not name a Python with the guide's packages")?);
    }
    Ok(env::current_exe()?
        .to_str()
        .ok_or("a path that is no text")?
        .to_owned())
}
