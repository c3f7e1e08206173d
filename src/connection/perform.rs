//! An operation, on the driver.

use sea_orm::{DbBackend, DbErr};

use super::{
    link::Link,
    operation::{Operation, Output},
    transaction::Transaction,
};

impl Operation {
    /// Runs the operation. The futures of rare operations are boxed, so that a call's future is small.
    pub(super) async fn perform(
        self,
        link: &mut Link,
        transaction: &mut Transaction,
        reads_only: bool,
    ) -> Result<Output, DbErr> {
        let named = link.named;
        let driver = &mut link.driver;
        let done = match self {
            Self::Execute(statement) => {
                return driver.execute(statement, named).await.map(Output::Executed);
            }
            Self::Unprepared(sql) => {
                return driver.execute_unprepared(sql).await.map(Output::Executed);
            }
            Self::One(statement) => {
                let row = driver.query_one(statement, named, reads_only).await;
                return row.map(Output::Row);
            }
            Self::All(statement) => {
                return driver.query_all(statement, named).await.map(Output::Rows);
            }
            #[cfg(feature = "stream")]
            Self::Stream(statement, mut rows) => {
                Box::pin(driver.stream(statement, &mut rows, named, reads_only)).await
            }
            Self::Begin(options) => transaction.begin(link, options).await,
            Self::Commit => transaction.commit(link).await,
            Self::Rollback => transaction.rollback(link).await,
            Self::Ping => Box::pin(driver.ping()).await,
            Self::Settle => Ok(()),
            Self::Raw(code) => code(driver).await,
        };
        done.map(|()| Output::Done)
    }

    /// The operation once more, for the case that its prepared statement is stale: sqlx keeps statements prepared and
    /// never looks whether the server still has them. A migration of another session and a `DISCARD ALL` of an earlier
    /// request fail what comes next, for as long as the connection lives
    /// (<https://github.com/launchbadge/sqlx/issues/1250>).
    ///
    /// Only outside a transaction: inside, PostgreSQL has aborted that by the failure. MySQL and SQLite prepare
    /// such statements anew by themselves.
    pub(super) fn spare(&self, link: &Link) -> Option<Self> {
        if link.backend != DbBackend::Postgres || !link.named || link.driver.depth() > 0 {
            return None;
        }
        // An unprepared text has no plan that could be stale.
        self.copy()
            .filter(|again| !matches!(again, Self::Unprepared(_)))
    }
}
