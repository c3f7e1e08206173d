//! The tables. Loco runs migrations on `ctx.db`, before the session layer exists.

use sea_orm_migration::{prelude::*, schema};

pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Tables)]
    }
}

struct Tables;

impl MigrationName for Tables {
    fn name(&self) -> &str {
        "m20260101_000001_tables"
    }
}

#[allow(elided_lifetimes_in_paths, reason = "the trait's own signatures")]
#[async_trait::async_trait]
impl MigrationTrait for Tables {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let items = Table::create()
            .table("items")
            .col(schema::pk_auto("id"))
            .col(schema::string("name"))
            .to_owned();
        let users = Table::create()
            .table("users")
            .col(schema::pk_auto("id"))
            .col(schema::string_uniq("pid"))
            .col(schema::string("name"))
            .to_owned();
        manager.create_table(items).await?;
        manager.create_table(users).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["items", "users"] {
            let drop = Table::drop().table(table).to_owned();
            manager.drop_table(drop).await?;
        }
        Ok(())
    }
}
