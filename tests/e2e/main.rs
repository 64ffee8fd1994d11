//! The end-to-end suite: each test is a user, an operator or an attacker at the platform's front door.
//!
//! `script/test e2e` builds the programs and the images, starts PostgreSQL, and says where they are.

use anyhow::Result;
use tokio::sync::OnceCell;

use crate::platform::{Form, Platform};

mod archive;
mod backup;
mod bad_functions;
mod bad_input;
mod client;
mod command_line;
mod compose;
mod crash;
mod dashboards;
mod deploys;
mod drain;
mod examples;
mod failure;
mod fleet;
mod frost;
mod idempotency;
mod invocations;
mod monitoring;
mod platform;
mod real_programs;
mod receipts;
mod records;
mod rotation;
mod sandbox_settings;
mod servers;
mod shell;
mod stale;
mod tls;
mod two_processes;
mod units;
mod warmth;
mod websocket;

/// The platform of all tests that do not stop theirs; each registers users of its own.
async fn shared() -> Result<&'static Platform> {
    static SHARED: OnceCell<Platform> = OnceCell::const_new();
    SHARED.get_or_try_init(|| Platform::start(Form::Dev, &[])).await
}
