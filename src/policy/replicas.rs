//! What a layer with replicas asks of them, and which of the pools serves a
//! request.

use http::request::Parts;
use sea_orm::{AccessMode, DbBackend, TransactionOptions};

use super::Policy;
use crate::{
    Error, SessionPool,
    error::Kind,
    pool::{PoolInner, PoolMode},
    replicas::Replicas,
    session::{Mode, Plan},
};

impl Policy {
    /// Returns why these replicas do not fit the layer, whose `own` pool is the
    /// primary's.
    pub(crate) fn check_replicas(&self, own: &PoolInner, replicas: &Replicas) -> Result<(), Kind> {
        if self.by.is_some() {
            return Err(Kind::ReplicasAndBy);
        }
        // The checks note a fail-over in the primary's pool: another one would
        // go on to serve a former primary (G18).
        if !own.driver().is_same(replicas.primary().inner().driver()) {
            return Err(Kind::NotThePrimary);
        }
        let pools = || replicas.pools().map(|(_, pool)| pool.inner());
        if pools().next().is_none() || pools().any(|pool| pool.driver().is_same(own.driver())) {
            return Err(Kind::NoReplica);
        }
        // Of one kind, because the positions of PostgreSQL and MariaDB cannot
        // be compared.
        let kind = own.backend();
        let has_replicas = matches!(kind, DbBackend::Postgres | DbBackend::MySql);
        // A pass-through has no BEGIN of this crate's, which the check of a
        // position travels with.
        let fits = |pool: &PoolInner| !pool.is_direct() && pool.backend() == kind;
        if !has_replicas || !fits(own) || !pools().all(|pool| fits(pool)) {
            return Err(Kind::HasNoReplicas);
        }
        Ok(())
    }

    /// The layer's pool mode counts for the replicas' pools as well.
    pub(crate) fn lend_replicas(&self) -> Result<(), Error> {
        if self.pool_mode != Some(PoolMode::Transaction) {
            return Ok(());
        }
        let replicas = self.replicas.as_ref();
        let mut pools = replicas.into_iter().flat_map(Replicas::pools);
        pools.try_for_each(|(_, pool)| pool.inner().allow_lending())
    }

    pub(super) fn route_by(
        &self,
        replicas: &Replicas,
        parts: &Parts,
        mut plan: Plan,
    ) -> (Option<SessionPool>, Plan) {
        let rules = &mut plan.rules;
        let reads = TransactionOptions {
            // On any replica: a promoted one would take writes on this very
            // connection (H33).
            access_mode: Some(AccessMode::ReadOnly),
            ..self.options
        };
        // The layer's rule for reads does not count for a request that was to
        // read and writes after all.
        let writes = match rules.mode {
            Mode::Transaction(options) if options.access_mode == Some(AccessMode::ReadOnly) => {
                Mode::Transaction(self.options)
            }
            mode => mode,
        };
        let (pool, replication) = replicas.route(parts, writes);
        // Also where the layer has no transaction otherwise: the check of the
        // position holds within one only (G19).
        if replication.reads_only() {
            rules.mode = Mode::Transaction(reads);
        }
        rules.replication = Some(replication);
        (pool, plan)
    }
}
