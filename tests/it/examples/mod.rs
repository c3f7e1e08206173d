//! The examples, tested as their users would test a service.

mod export;
mod first_contact;
mod graceful_shutdown;
mod idempotency_key;
mod items;
mod outbox;
mod row_level_security;
mod tenants;
