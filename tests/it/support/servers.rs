//! Database servers: the shared ones that most tests use, and private ones
//! that a test may freeze, stop and start again.
//!
//! Every server here is started by a keeper: a small shell that holds the
//! server's process id and whose standard input is a pipe from the test
//! process. Whatever ends the test process closes that pipe, and then the
//! keeper ends the server and removes its directory.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long a server may take until it is ready.
const START_BOUND: Duration = Duration::from_secs(300);

/// How long processes may take to be seen stopped.
const FREEZE_BOUND: Duration = Duration::from_secs(60);

/// How often a port is taken anew when another process snatched it.
const START_TRIES: u32 = 5;

/// The command that installs the servers.
pub(super) const INSTALL: &str =
    "apt-get update && apt-get install -y postgresql mariadb-server pgbouncer";

/// The keeper: `sh -c KEEPER keeper DIR ENGINE INSTALLER SERVER ARGS...`.
///
/// Obeys `install` (fills the data directory; answers with the exit status),
/// `start` (answers with the server's process id) and `stop` (answers
/// `stopped`). At the end of its input it stops the server and removes DIR.
/// A stopped server is continued first, or it would not see its signal.
/// The traps keep it alive until then, also when nobody reads its answers.
const KEEPER: &str = r#"
trap : INT TERM HUP PIPE
dir=$1 engine=$2 installer=$3 pid=
shift 3
case $engine in
postgres) signal=QUIT ;;
mysql) signal=KILL ;;
esac
install() {
    case $engine in
    postgres)
        "$installer" -U postgres -A trust -E UTF8 --locale=C --no-sync -D "$dir/data"
        ;;
    mysql)
        "$installer" --no-defaults --skip-test-db \
            --auth-root-authentication-method=normal --datadir="$dir/data"
        ;;
    esac
}
stop() {
    [ -n "$pid" ] || return 0
    children=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null)
    kill -CONT "$pid" $children 2>/dev/null
    kill "-$signal" "$pid" 2>/dev/null
    wait "$pid"
    pid=
}
while read -r word; do
    case $word in
    install)
        install </dev/null >"$dir/log" 2>&1
        echo "$?"
        ;;
    start)
        "$@" </dev/null >"$dir/log" 2>&1 &
        pid=$!
        echo "$pid"
        ;;
    stop)
        stop
        echo stopped
        ;;
    esac
done
stop
cd /
rm -rf "$dir"
"#;

/// The admin URL of the shared PostgreSQL server: `TEST_POSTGRES_URL`, else a
/// private server that is started once and lives as long as this process.
pub fn postgres_url() -> String {
    static SERVER: OnceLock<OwnServer> = OnceLock::new();
    env::var("TEST_POSTGRES_URL").unwrap_or_else(|_| SERVER.get_or_init(OwnServer::postgres).url())
}

/// The admin URL of the shared MySQL (MariaDB) server: `TEST_MYSQL_URL`, else
/// a private server that is started once and lives as long as this process.
pub fn mysql_url() -> String {
    static SERVER: OnceLock<OwnServer> = OnceLock::new();
    env::var("TEST_MYSQL_URL").unwrap_or_else(|_| SERVER.get_or_init(OwnServer::mysql).url())
}

/// The server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL.
    Postgres,
    /// MariaDB, which speaks MySQL's protocol.
    MySql,
}

/// A private server, ready to use.
///
/// Dropping it kills it and removes its directory; so does the end of the
/// test process, whatever ends it.
#[derive(Debug)]
pub struct OwnServer {
    engine: Engine,
    dir: PathBuf,
    port: u16,
    /// The server's main process, while it is started.
    pid: Option<Pid>,
    keeper: Child,
    /// `None` once the keeper was told to end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl OwnServer {
    /// Starts a private PostgreSQL.
    ///
    /// # Panics
    ///
    /// If PostgreSQL is not installed or does not start.
    pub fn postgres() -> Self {
        Self::postgres_with(&[])
    }

    /// Starts a private PostgreSQL with more options.
    pub fn postgres_with(options: &[&str]) -> Self {
        Self::new(Engine::Postgres, options)
    }

    /// Starts a standby of this PostgreSQL, which has what there is by now and takes no writes.
    ///
    /// # Panics
    ///
    /// If it cannot be copied, or does not start.
    pub fn standby(&self) -> Self {
        Self::started(|| self.stopped_standby())
    }

    fn stopped_standby(&self) -> Self {
        let standby = Self::stopped(Engine::Postgres, &[]);
        let data = standby.dir.join("data");
        fs::remove_dir_all(&data).expect("the standby's own data can go");
        let copied = Account::of(Engine::Postgres)
            .command(&binary(Engine::Postgres, "pg_basebackup"), &standby.dir)
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-p",
                &self.port.to_string(),
            ])
            .args(["-R", "-c", "fast", "--no-sync", "-D"])
            .arg(&data)
            .status();
        assert!(
            copied.expect("pg_basebackup starts").success(),
            "pg_basebackup has failed"
        );
        standby
    }

    /// Starts a private MariaDB.
    ///
    /// # Panics
    ///
    /// If MariaDB is not installed or does not start.
    pub fn mysql() -> Self {
        Self::mysql_with(&[])
    }

    /// Starts a private MariaDB with more options.
    pub fn mysql_with(options: &[&str]) -> Self {
        Self::new(Engine::MySql, options)
    }

    /// The admin URL.
    pub fn url(&self) -> String {
        match self.engine {
            Engine::Postgres => format!("postgres://postgres@127.0.0.1:{}/postgres", self.port),
            Engine::MySql => format!("mysql://root@127.0.0.1:{}/mysql", self.port),
        }
    }

    /// Returns the server program.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The loopback port that the server listens on, also after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops all processes of the server where they are (`SIGSTOP`), and
    /// returns when all are seen stopped. Connections stay open.
    pub fn freeze(&self) {
        let main = self.pid.expect("a started server");
        let deadline = Instant::now() + FREEZE_BOUND;
        // The main process first: from then on it starts no child.
        let _ = kill(main, Signal::SIGSTOP);
        await_until(deadline, "the main process is stopped", || stopped(main));
        let children = children(main);
        for child in &children {
            let _ = kill(*child, Signal::SIGSTOP);
        }
        await_until(deadline, "the child processes are stopped", || {
            children.iter().all(|child| stopped(*child))
        });
    }

    /// Lets a frozen server go on (`SIGCONT`).
    pub fn thaw(&self) {
        let main = self.pid.expect("a started server");
        for child in children(main) {
            let _ = kill(child, Signal::SIGCONT);
        }
        let _ = kill(main, Signal::SIGCONT);
    }

    /// Ends the server at once, also when it is frozen, and returns when it
    /// is gone: PostgreSQL by an immediate shutdown, MariaDB by `SIGKILL`.
    /// Committed data is there after [`OwnServer::start`].
    pub fn stop(&mut self) {
        if self.pid.take().is_some() {
            let answer = self.order("stop");
            assert_eq!(answer, "stopped", "the keeper's answer");
        }
    }

    /// Ends the server's main process, or all its processes, by `signal`, and
    /// returns when all are gone.
    pub fn end_by(&mut self, signal: Signal, all: bool) {
        let main = self.pid.expect("a started server");
        let children = children(main);
        let _ = kill(main, signal);
        for child in children.iter().filter(|_| all) {
            let _ = kill(*child, signal);
        }
        let deadline = Instant::now() + START_BOUND;
        let gone = |pid: &Pid| matches!(state(*pid), None | Some('Z'));
        await_until(deadline, "the server is gone", || {
            gone(&main) && children.iter().all(gone)
        });
        self.stop();
    }

    /// Starts a stopped server on the same port and data, and returns when
    /// it is ready.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start(&mut self) {
        assert!(self.pid.is_none(), "the server is started already");
        if let Err(log) = self.try_start() {
            panic!("{:?} did not start again:\n{log}", self.engine);
        }
    }

    /// Makes a data directory and starts a server in it.
    fn new(engine: Engine, options: &[&str]) -> Self {
        Self::started(|| Self::stopped(engine, options))
    }

    /// Starts what `make` has made: another one if its port was taken meanwhile.
    fn started(make: impl Fn() -> Self) -> Self {
        let mut last_log = String::new();
        for _ in 0..START_TRIES {
            let mut server = make();
            match server.try_start() {
                Ok(()) => return server,
                Err(log) => last_log = log,
            }
        }
        panic!("the server did not start:\n{last_log}");
    }

    /// Makes a data directory and a keeper, but does not start the server.
    fn stopped(engine: Engine, options: &[&str]) -> Self {
        let account = Account::of(engine);
        let dir = new_dir(&account);
        let port = free_port();
        let mut keeper = account
            .command(Path::new("sh"), &dir)
            .args(["-c", KEEPER, "keeper"])
            .arg(&dir)
            .arg(match engine {
                Engine::Postgres => "postgres",
                Engine::MySql => "mysql",
            })
            .arg(match engine {
                Engine::Postgres => binary(engine, "initdb"),
                Engine::MySql => binary(engine, "mariadb-install-db"),
            })
            .args(server_command(engine, &dir, port))
            .args(options)
            // What PostgreSQL speaks with `lc_messages = C.UTF-8`, for which no
            // locale has to be installed. With `C`, it speaks English.
            .env("LANGUAGE", "de")
            // Not in the group that a test runner signals.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let orders = keeper.stdin.take();
        let answers = BufReader::new(keeper.stdout.take().expect("a piped stdout"));
        let mut server = Self {
            engine,
            dir,
            port,
            pid: None,
            keeper,
            orders,
            answers,
        };
        let status = server.order("install");
        assert_eq!(status, "0", "no data directory:\n{}", server.log());
        server
    }

    /// Starts the server and waits until it is ready, or returns its log.
    fn try_start(&mut self) -> Result<(), String> {
        let pid = self.order("start").parse().expect("a process id");
        let pid = Pid::from_raw(pid);
        self.pid = Some(pid);
        let deadline = Instant::now() + START_BOUND;
        while Instant::now() < deadline {
            if self.ready(pid) {
                return Ok(());
            }
            if matches!(state(pid), None | Some('Z')) {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(self.log())
    }

    /// Returns the output of the server's programs.
    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Returns whether the server says, in files of its own, that it is ready.
    ///
    /// A connection would not do: it might reach another process's server.
    fn ready(&self, pid: Pid) -> bool {
        let said = |file: &str| fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        match self.engine {
            Engine::Postgres => {
                let status = said("data/postmaster.pid");
                let mut lines = status.lines();
                lines.next() == Some(pid.to_string().as_str())
                    && lines.any(|line| ["ready", "standby"].contains(&line.trim_end()))
            }
            Engine::MySql => said("log").contains("ready for connections"),
        }
    }

    /// Gives the keeper an order and returns its answer.
    fn order(&mut self, word: &str) -> String {
        let orders = self.orders.as_mut().expect("a living keeper");
        writeln!(orders, "{word}").expect("the keeper reads");
        let mut answer = String::new();
        self.answers
            .read_line(&mut answer)
            .expect("the keeper answers");
        answer.trim_end().to_owned()
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.orders.take();
        let _ = self.keeper.wait();
    }
}

/// The account that a server runs as: root is refused by both programs.
pub(super) struct Account {
    /// The user's and the group's id; `None`: the current user.
    other: Option<(u32, u32)>,
}

impl Account {
    /// The account for `engine`'s processes.
    pub(super) fn of(engine: Engine) -> Self {
        let this_process = fs::metadata("/proc/self").expect("a /proc directory");
        if this_process.uid() != 0 {
            return Self { other: None };
        }
        let name = match engine {
            Engine::Postgres => "postgres",
            Engine::MySql => "mysql",
        };
        let accounts = fs::read_to_string("/etc/passwd").expect("the accounts can be read");
        let ids = accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next() == Some(name);
            let ids = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            found.then_some(ids)
        });
        let ids = ids.unwrap_or_else(|| panic!("no account `{name}`; run: {INSTALL}"));
        Self { other: Some(ids) }
    }

    /// A command of this account, in `dir`.
    pub(super) fn command(&self, program: &Path, dir: &Path) -> Command {
        let mut command = Command::new(program);
        // A MariaDB that starts removes all `#sql*` files of its temporary
        // directory, and one whose temporary table vanishes under it crashes:
        // each has a directory of its own.
        command.current_dir(dir).env("HOME", dir).env("TMPDIR", dir);
        if let Some((user, group)) = self.other {
            command.uid(user).gid(group);
        }
        command
    }
}

/// A new directory that belongs to `account`.
pub(super) fn new_dir(account: &Account) -> PathBuf {
    // Another account may not reach root's own temporary directory.
    let parent = match account.other {
        Some(_) => PathBuf::from("/tmp"),
        None => env::temp_dir(),
    };
    let dir = tempfile::Builder::new()
        .prefix("test-server-")
        .tempdir_in(parent)
        .expect("a temporary directory")
        .keep();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("an own directory");
    if let Some((user, group)) = account.other {
        chown(&dir, Some(user), Some(group)).expect("an own directory");
    }
    dir
}

/// The server's command line.
fn server_command(engine: Engine, dir: &Path, port: u16) -> Vec<String> {
    let dir = dir.display();
    let (program, args) = match engine {
        Engine::Postgres => (
            "postgres",
            vec![
                format!("-D{dir}/data"),
                format!("-p{port}"),
                "-h127.0.0.1".to_owned(),
                "-cunix_socket_directories=".to_owned(),
                "-cfsync=off".to_owned(),
                "-cmax_connections=400".to_owned(),
                // For a standby that takes long to begin.
                "-cwal_keep_size=256MB".to_owned(),
            ],
        ),
        Engine::MySql => (
            "mariadbd",
            vec![
                "--no-defaults".to_owned(),
                format!("--datadir={dir}/data"),
                format!("--socket={dir}/socket"),
                format!("--pid-file={dir}/pid"),
                format!("--port={port}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--skip-name-resolve".to_owned(),
                "--max-connections=600".to_owned(),
                // Commits survive the server's end, not the machine's.
                "--innodb-flush-log-at-trx-commit=2".to_owned(),
                "--innodb-buffer-pool-size=32M".to_owned(),
            ],
        ),
    };
    let mut command = vec![binary(engine, program).display().to_string()];
    command.extend(args);
    command
}

/// Finds one of the server's programs.
///
/// # Panics
///
/// If it is not installed; the message says what installs it.
fn binary(engine: Engine, name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    match engine {
        Engine::Postgres => {
            // Debian keeps each version in its own directory, off the PATH.
            let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
            let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path()).collect();
            versions.sort_by_key(|dir| {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                std::cmp::Reverse(name.parse::<u32>().unwrap_or(0))
            });
            dirs.splice(0..0, versions.into_iter().map(|dir| dir.join("bin")));
        }
        Engine::MySql => dirs.push(PathBuf::from("/usr/sbin")),
    }
    dirs.into_iter()
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("`{name}` is not installed; run: {INSTALL}"))
}

/// A loopback port that nothing listens on, below the range that the system
/// takes ports for outgoing connections from: a stopped server's port is
/// still free when it starts again.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.subsec_nanos());
    for _ in 0..1000 {
        let step = NEXT.fetch_add(7919, Ordering::Relaxed);
        let spread = nanos.wrapping_add(std::process::id().wrapping_mul(2_654_435_761));
        let port = 15_000 + spread.wrapping_add(step) % 15_000;
        let port = u16::try_from(port).expect("a port");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 15000 and 30000");
}

/// Waits until `condition` is true.
fn await_until(deadline: Instant, what: &str, condition: impl Fn() -> bool) {
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The direct children of process `parent`.
fn children(parent: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| stat(*pid).is_some_and(|(_, its_parent)| its_parent == parent))
        .collect()
}

/// Returns whether process `pid` is stopped by a signal, or gone.
fn stopped(pid: Pid) -> bool {
    matches!(state(pid), None | Some('T' | 'Z'))
}

/// The state of process `pid`, unless it is gone.
fn state(pid: Pid) -> Option<char> {
    stat(pid).map(|(state, _)| state)
}

/// The state and the parent of process `pid`, unless it is gone.
fn stat(pid: Pid) -> Option<(char, Pid)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the program's name, which may hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, Pid::from_raw(parent)))
}
