//! A job that is started once the item is stored.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use loco_rs::prelude::*;

/// The items that were announced; a stand-in for mails.
static ANNOUNCED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Returns whether an item of this name was announced.
pub fn is_announced(name: &str) -> bool {
    let announced = ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner);
    announced.iter().any(|announced| announced == name)
}

pub struct Announce;

#[async_trait]
impl BackgroundWorker<String> for Announce {
    fn build(_: &AppContext) -> Self {
        Self
    }

    async fn perform(&self, name: String) -> Result<()> {
        tracing::info!("a new item: {name}");
        let mut announced = ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner);
        announced.push(name);
        Ok(())
    }
}
