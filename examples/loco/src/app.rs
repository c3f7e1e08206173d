//! The app's hooks.

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use loco_rs::{
    Result,
    app::{AppContext, Hooks, Initializer},
    bgworker::{BackgroundWorker, Queue},
    boot::{BootResult, StartMode, create_app},
    config::Config,
    controller::AppRoutes,
    db::truncate_table,
    environment::Environment,
    task::Tasks,
};
use tower_sea_orm::SessionPool;

use crate::{
    announce::Announce, controllers, initializers::DbSessionInitializer, item, migration::Migrator,
};

pub struct App;

#[async_trait]
impl Hooks for App {
    fn app_name() -> &'static str {
        env!("CARGO_CRATE_NAME")
    }

    async fn boot(
        mode: StartMode,
        environment: &Environment,
        config: Config,
    ) -> Result<BootResult> {
        create_app::<Self, Migrator>(mode, environment, config).await
    }

    async fn initializers(_: &AppContext) -> Result<Vec<Box<dyn Initializer>>> {
        Ok(vec![Box::new(DbSessionInitializer)])
    }

    /// Without Loco's health routes: the initializer adds them behind the session layer.
    fn routes(_: &AppContext) -> AppRoutes {
        AppRoutes::empty().add_route(controllers::items::routes())
    }

    async fn connect_workers(ctx: &AppContext, queue: &Queue) -> Result<()> {
        queue.register(Announce::build(ctx)).await
    }

    fn register_tasks(_: &mut Tasks) {}

    async fn truncate(ctx: &AppContext) -> Result<()> {
        Ok(truncate_table(&ctx.db, item::Entity).await?)
    }

    async fn seed(_: &AppContext, _: &Path) -> Result<()> {
        Ok(())
    }

    /// Loco waits for this before it stops to listen: new requests get a 503 meanwhile, those in progress have ten seconds.
    async fn on_shutdown(ctx: &AppContext) {
        if let Some(pool) = ctx.shared_store.get::<SessionPool>() {
            let cut = pool.close(Duration::from_secs(10)).await;
            tracing::info!("the database connections are closed; {cut} requests were cut off");
        }
    }
}
