//! A private PgBouncer in front of a PostgreSQL: connections that are shared between transactions.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    thread,
    time::{Duration, Instant},
};

use std::os::unix::process::CommandExt;

use super::servers::{Account, Engine, INSTALL, free_port, new_dir};

/// How long it may take until it is ready.
const BOUND: Duration = Duration::from_secs(120);

/// Runs the program until the end of its input, then removes the directory.
const KEEPER: &str = r#"
trap : INT TERM HUP PIPE
pgbouncer "$1/bouncer.ini" </dev/null >"$1/log" 2>&1 &
pid=$!
echo "$pid"
read -r _
kill -TERM "$pid" 2>/dev/null
wait "$pid"
cd /
rm -rf "$1"
"#;

/// A PgBouncer in transaction mode, which ends with this value or with the test process.
#[derive(Debug)]
pub struct Bouncer {
    port: u16,
    keeper: Child,
    input: Option<ChildStdin>,
}

impl Bouncer {
    /// Starts one in front of the server on `server_port`, with so many connections to each database.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start.
    pub fn start(server_port: u16, connections: u32) -> Self {
        let account = Account::of(Engine::Postgres);
        let mut log = String::new();
        for _ in 0..5 {
            let (dir, port) = (new_dir(&account), free_port());
            let config = format!(
                "[databases]\n* = host=127.0.0.1 port={server_port} user=postgres\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
                 pool_mode = transaction\ndefault_pool_size = {connections}\n\
                 ignore_startup_parameters = extra_float_digits\n"
            );
            fs::write(dir.join("bouncer.ini"), config).expect("a configuration");
            fs::set_permissions(
                dir.join("bouncer.ini"),
                std::os::unix::fs::PermissionsExt::from_mode(0o644),
            )
            .expect("a readable configuration");
            match Self::try_start(&account, &dir, port) {
                Ok(bouncer) => return bouncer,
                Err(said) => log = said,
            }
        }
        panic!("PgBouncer did not start; installed by: {INSTALL}\n{log}");
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn try_start(account: &Account, dir: &PathBuf, port: u16) -> Result<Self, String> {
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut keeper = account
            .command(Path::new("sh"), dir)
            .args(["-c", KEEPER, "keeper"])
            .arg(dir)
            .env("PATH", path)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let input = keeper.stdin.take();
        let mut pid = String::new();
        let mut output = BufReader::new(keeper.stdout.take().expect("a piped stdout"));
        output.read_line(&mut pid).expect("the keeper answers");
        let bouncer = Self {
            port,
            keeper,
            input,
        };
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        let deadline = Instant::now() + BOUND;
        // Its own words: a connection might reach the server of somebody else.
        while Instant::now() < deadline {
            if log().contains("process up") {
                return Ok(bouncer);
            }
            if !Path::new(&format!("/proc/{}/exe", pid.trim())).exists() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(log())
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.input.take();
        let _ = self.keeper.wait();
    }
}
