//! Transactions that the driver knows nothing of: left open by raw or stored code, or begun by each statement because
//! MySQL's autocommit is off.

use sea_orm::{DbBackend, DbErr};
use tokio::time::timeout;

use super::{cancel::SET_UP, link::Link};
use crate::error::server;

/// Has each statement of a MySQL connection commit by itself again. A plain ROLLBACK would begin the next
/// transaction, or end the connection, if `completion_type` says so
/// (<https://dev.mysql.com/doc/refman/8.4/en/server-system-variables.html#sysvar_completion_type>).
const TO_AUTOCOMMIT: &str =
    "ROLLBACK AND NO CHAIN NO RELEASE; SET autocommit = 1, completion_type = 0";

impl Link {
    /// Switches autocommit on: the server, `init_connect` or another user of the pool may have switched it off before
    /// this crate saw the connection. Costs nothing where that was done before.
    pub(super) async fn prove_autocommit(&mut self) -> Result<(), DbErr> {
        if !self.is_autocommit_proven {
            if self.driver.is_new().await? {
                let answered = timeout(SET_UP, self.run(TO_AUTOCOMMIT)).await;
                answered.map_err(|_| server::unanswered())??;
            }
            self.is_autocommit_proven = true;
        }
        Ok(())
    }

    /// Ends a transaction that may be open without the driver's knowledge.
    pub(super) async fn end_stray(&mut self) -> Result<(), DbErr> {
        if self.is_test() {
            return Ok(());
        }
        let rolled_back = self.run(self.stray_rollback()).await;
        // SQLite calls a ROLLBACK without a transaction an error; the others only warn.
        if self.backend != DbBackend::Sqlite {
            rolled_back?;
        }
        self.driver.drain().await.map(drop)
    }

    /// The text that ends a stray transaction.
    pub(super) fn stray_rollback(&self) -> &'static str {
        if self.backend == DbBackend::MySql {
            TO_AUTOCOMMIT
        } else {
            "ROLLBACK"
        }
    }

    /// Returns whether stored code has left a transaction open. It is rolled back, and the code has failed: nothing would
    /// commit it.
    pub(super) async fn was_left_open(&mut self) -> Result<bool, DbErr> {
        // sqlx counts it from there on, and rolls it back as one of its transactions.
        let open = self.driver.adopts_transaction().await?;
        if open {
            self.driver.rollback().await?;
        }
        Ok(open)
    }
}
