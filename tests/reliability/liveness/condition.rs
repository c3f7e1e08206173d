//! [`Condition`]: what does not work, while everything else does.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection,
    sqlx::{Connection, MySqlConnection},
};
use tokio::sync::Mutex;

use super::super::support::{
    database::{Kind, TestDb, unique_name},
    site::is_mariadb,
    wire::Proxy,
};

/// How many connections a limit leaves to the service.
const ROOM: u32 = 3;

/// The least that MariaDB takes as `max_connections`.
const LEAST: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing passes any more on the connections that there are, all of them idle.
    Forgotten,
    /// The same while they are in use.
    Silenced,
    /// New connections are closed at once.
    Refused,
    /// Every answer of the server is late.
    Slow,
    /// So late that a ping may be taken for lost.
    VerySlow,
    /// New connections reach the server late.
    SlowConnects,
    /// The service's account may have few connections. MariaDB counts only those since it has a limit.
    AccountLimit,
    /// The server may, and most of them are taken.
    ServerLimit,
}

impl Condition {
    pub const ALL: [Self; 8] = [
        Self::Forgotten,
        Self::Silenced,
        Self::Refused,
        Self::Slow,
        Self::VerySlow,
        Self::SlowConnects,
        Self::AccountLimit,
        Self::ServerLimit,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Forgotten => "idle flows are black holes",
            Self::Silenced => "flows in use are black holes",
            Self::Refused => "new connections are cut",
            Self::Slow => "answers are late by 200 ms",
            Self::VerySlow => "answers are late by 1.5 s",
            Self::SlowConnects => "new connections are late by 3 s",
            Self::AccountLimit => "limit of the account",
            Self::ServerLimit => "`max_connections`",
        }
    }

    /// PostgreSQL reads its own limit at its start only, and tells both in the same way.
    pub fn is_for(self, database: Kind) -> bool {
        self != Self::ServerLimit || database == Kind::MySql
    }

    /// Whether every request is to be answered well all the same. That cannot be where the answer to a running
    /// statement never arrives, or late by more than the driver's time-outs.
    pub fn is_promised(self) -> bool {
        !matches!(self, Self::Silenced | Self::VerySlow)
    }

    /// Nothing in the short form that takes long.
    pub fn is_short(self) -> bool {
        self.is_promised() && !self.needs_own_server()
    }

    pub fn needs_own_server(self) -> bool {
        self == Self::ServerLimit
    }

    /// Whether it is about new connections, which only a load that rises asks for.
    pub fn is_for_rising_load(self) -> bool {
        !matches!(
            self,
            Self::Forgotten | Self::Silenced | Self::Slow | Self::VerySlow
        )
    }

    /// Whether it has an end: those who find a black hole are helped by a new connection only.
    pub fn lasts(self) -> bool {
        !matches!(self, Self::Forgotten | Self::Silenced)
    }

    pub async fn begin(self, setting: &Setting<'_>) {
        match self {
            Self::Forgotten | Self::Silenced => setting.proxy.silence(),
            Self::Refused => setting.proxy.refuse(true),
            Self::Slow => setting.proxy.delay_replies(Duration::from_millis(200)),
            Self::VerySlow => setting.proxy.delay_replies(Duration::from_millis(1500)),
            Self::SlowConnects => setting.proxy.delay_connects(Duration::from_secs(3)),
            Self::AccountLimit => setting.limit_account(Some(ROOM)).await,
            Self::ServerLimit => {
                // One is the administrator's.
                for _ in 0..LEAST - 1 - ROOM {
                    let taken = MySqlConnection::connect(setting.test.url())
                        .await
                        .expect("a connection");
                    setting.taken.lock().await.push(taken);
                }
                setting
                    .run(&format!("SET GLOBAL max_connections = {LEAST}"))
                    .await;
            }
        }
    }

    pub async fn end(self, setting: &Setting<'_>) {
        match self {
            Self::Forgotten | Self::Silenced => {}
            Self::Refused => setting.proxy.refuse(false),
            Self::Slow | Self::VerySlow => setting.proxy.delay_replies(Duration::ZERO),
            Self::SlowConnects => setting.proxy.delay_connects(Duration::ZERO),
            Self::AccountLimit => setting.limit_account(None).await,
            Self::ServerLimit => {
                setting.run("SET GLOBAL max_connections = 100").await;
                setting.taken.lock().await.clear();
            }
        }
    }
}

/// A database behind a proxy, with an account for the service.
pub struct Setting<'t> {
    test: &'t TestDb,
    proxy: Proxy,
    admin: DatabaseConnection,
    account: String,
    /// Connections of others.
    taken: Mutex<Vec<MySqlConnection>>,
}

impl<'t> Setting<'t> {
    pub async fn new(test: &'t TestDb, proxy: Proxy) -> Self {
        let admin = test.observer().await.expect("a server's database");
        let setting = Self {
            test,
            proxy,
            admin,
            account: unique_name(),
            taken: Mutex::default(),
        };
        let account = &setting.account;
        match test.kind {
            Kind::Postgres => setting.run(&format!("CREATE ROLE {account} LOGIN")).await,
            _ => {
                setting.run(&format!("CREATE USER {account}")).await;
                setting.run(&format!("GRANT ALL ON *.* TO {account}")).await;
                let name = if is_mariadb(&setting.admin).await {
                    "CONNECTION ADMIN"
                } else {
                    "CONNECTION_ADMIN"
                };
                setting
                    .run(&format!("REVOKE SUPER, {name} ON *.* FROM {account}"))
                    .await;
            }
        }
        setting
    }

    /// By which the service connects.
    pub fn url(&self) -> String {
        let account = format!("//{}@", self.account);
        self.proxy
            .url(self.test.url())
            .replace("//postgres@", &account)
            .replace("//root@", &account)
    }

    /// Closes the service's connections.
    pub fn cut(&self) {
        self.proxy.cut();
    }

    /// Ends the account.
    pub async fn remove(self) {
        let kind = if self.test.kind == Kind::Postgres {
            "ROLE"
        } else {
            "USER"
        };
        self.run(&format!("DROP {kind} {}", self.account)).await;
    }

    async fn limit_account(&self, connections: Option<u32>) {
        let account = &self.account;
        if self.test.kind == Kind::Postgres {
            let limit = connections.map_or(-1, i64::from);
            self.run(&format!("ALTER ROLE {account} CONNECTION LIMIT {limit}"))
                .await;
        } else {
            let limit = connections.unwrap_or(0);
            self.run(&format!(
                "ALTER USER {account} WITH MAX_USER_CONNECTIONS {limit}"
            ))
            .await;
        }
    }

    async fn run(&self, sql: &str) {
        self.admin.execute_unprepared(sql).await.expect(sql);
    }
}
