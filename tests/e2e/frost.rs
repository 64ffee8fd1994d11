//! Idle sandboxes are frozen, and nobody notices: neither who calls, nor the agent that comes after a power cut.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::archive::{archive, python};
use crate::client::Client;
use crate::platform::{Form, Platform, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server that counts, and says how far it came.
const COUNTS: &str = "let n = 0; setInterval(() => n++, 5);\n\
    require('http').createServer((_, answer) => answer.end(String(n))).listen(process.env.PORT);\n";

/// The same with a second process, for which it is never frozen.
const COUNTS_ON: &str = "require('child_process').spawn('sleep', ['600']);\n";

async fn count(user: &Client, path: &str) -> Result<i64> {
    Ok(user.get(path).await?.expect(200)?.as_i64().unwrap_or_default())
}

async fn frozen(platform: &Platform, wanted: u32) -> Result<()> {
    let line = format!("dartcloud_sandbox_frozen_count {wanted}");
    let is_so = async || Ok(platform.metrics().await?.lines().any(|one| one == line).then_some(()));
    until(&format!("{wanted} sandboxes are frozen"), PATIENCE, is_so).await
}

#[tokio::test]
async fn the_frozen_serve_and_a_dead_agents_are_removed() -> Result<()> {
    let mut platform = Platform::start(Form::Dev, &[("SANDBOX_FREEZE_AFTER_MS", "100")]).await?;
    let user = platform.user().await?;
    user.deploy("script", python("answer('ran')")).await?.expect(201)?;
    let manifest = ("dartcloud.toml", "contract = \"http\"\naccess = \"public\"\n");
    user.deploy("counts", archive(&[("index.js", COUNTS), manifest])).await?.expect(201)?;
    let both = format!("{COUNTS_ON}{COUNTS}");
    user.deploy("counts-on", archive(&[("index.js", &both), manifest])).await?.expect(201)?;
    let [path, other] = ["counts", "counts-on"].map(|name| format!("/f/{}/{name}", user.handle));
    count(&user, &other).await?;

    let before = count(&user, &path).await?;
    for _ in 0..2 {
        ensure!(user.invoke("script", json!({})).await?.expect(200)?["result"] == "ran");
        frozen(&platform, 2).await?;
    }
    // More than it can have counted until it was frozen, by far.
    let since = count(&user, &other).await?;
    until("another one has counted on", PATIENCE, async || {
        Ok((count(&user, &other).await? - since > 400).then_some(()))
    })
    .await?;
    let after = count(&user, &path).await?;
    ensure!(after - before < 300, "it counted on while it was frozen: {before} {after}");

    frozen(&platform, 2).await?;
    let left = platform.containers()?;
    platform.kill()?;
    platform.launch().await?;
    let gone = async || {
        let there = platform.containers()?;
        Ok((!left.iter().any(|one| there.contains(one))).then_some(()))
    };
    until("what the dead agent froze is removed", PATIENCE, gone).await?;
    ensure!(user.invoke("script", json!({})).await?.expect(200)?["result"] == "ran");
    platform.stop().await?;
    ensure!(platform.containers()?.is_empty(), "containers are left after a stop");
    Ok(())
}
