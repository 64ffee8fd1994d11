//! `min_warm`: functions of which some sandboxes are there before anybody calls.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::archive::archive;
use crate::client::{Answer, Client};
use crate::platform::{Form, Platform, until};
use crate::shared;

const PATIENCE: Duration = Duration::from_secs(60);

/// A function of the file contract that says its version.
fn file(version: u32, min_warm: u32) -> Vec<u8> {
    let source = format!("import json\njson.dump({{'body': {version}}}, open('/result.json', 'w'))\n");
    let manifest = format!("access = \"public\"\nmin_warm = {min_warm}\n");
    archive(&[("main.py", &source), ("dartcloud.toml", &manifest)])
}

/// A server that says its version.
fn server(version: u32, min_warm: u32) -> Vec<u8> {
    let source =
        format!("require('http').createServer((_, answer) => answer.end('{version}')).listen(process.env.PORT);");
    let manifest = format!("contract = \"http\"\naccess = \"public\"\nmin_warm = {min_warm}\n");
    archive(&[("index.js", &source), ("dartcloud.toml", &manifest)])
}

/// How often the agent has counted something.
async fn counted(platform: &Platform, name: &str) -> Result<u64> {
    let metrics = platform.agent_metrics().await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

/// A call that no start held up.
fn warm(answer: Answer, version: u32) -> Result<()> {
    let timing = answer.headers["server-timing"].to_str()?.to_owned();
    ensure!(!timing.contains("cold"), "version {version} was cold: {timing}");
    let body = answer.expect(200)?;
    ensure!(body == version || body.as_str() == Some(&version.to_string()), "{body}");
    Ok(())
}

async fn first_calls(user: &Client, name: &str, versions: [Vec<u8>; 2]) -> Result<()> {
    let path = format!("/f/{}/{name}", user.handle);
    for (version, archive) in (1..).zip(versions) {
        let status = if version == 1 { 201 } else { 200 };
        // A version serves when it is warm.
        user.deploy(name, archive).await?.expect(status)?;
        for _ in 0..3 {
            warm(user.get(&path).await?, version)?;
        }
    }
    let shown = user.get(&format!("/api/functions/{name}")).await?.expect(200)?;
    ensure!(shown["limits"]["minWarm"] == 1, "{shown}");
    Ok(())
}

#[tokio::test]
async fn the_first_call_of_each_version_is_warm() -> Result<()> {
    let user = shared().await?.user().await?;
    first_calls(&user, "file", [file(1, 1), file(2, 1)]).await?;
    first_calls(&user, "server", [server(1, 1), server(2, 1)]).await
}

#[tokio::test]
async fn what_is_kept_outlives_its_idleness_and_comes_back_after_a_power_cut() -> Result<()> {
    let mut platform = Platform::start(Form::TwoProcesses, &[("SANDBOX_IDLE_SECONDS", "1")]).await?;
    let user = platform.user().await?;
    for (name, archive) in
        [("file", file(1, 1)), ("server", server(2, 1)), ("file0", file(1, 0)), ("server0", server(2, 0))]
    {
        user.deploy(name, archive).await?.expect(201)?;
    }
    let both = async || {
        warm(user.get(&format!("/f/{}/file", user.handle)).await?, 1)?;
        warm(user.get(&format!("/f/{}/server", user.handle)).await?, 2)
    };
    both().await?;
    // Nobody keeps these: when they have gone for their idleness, those that are kept were idle for longer.
    let (starts, removals) = ("dartcloud_sandbox_starts_total{result=\"ok\"}", "dartcloud_sandbox_idle_removals_total");
    let before = counted(&platform, removals).await?;
    for name in ["server0", "file0"] {
        user.get(&format!("/f/{}/{name}", user.handle)).await?.expect(200)?;
    }
    let started = counted(&platform, starts).await?;
    let gone = async || Ok((counted(&platform, removals).await? >= before + 2).then_some(()));
    until("what nobody keeps has gone", PATIENCE, gone).await?;
    both().await?;
    let since = (counted(&platform, removals).await? - before, counted(&platform, starts).await? - started);
    ensure!(since == (2, 0), "something that is kept has gone: {since:?} removals and starts");
    platform.kill()?;
    platform.launch().await?;
    let full = async || {
        let metrics = platform.agent_metrics().await?;
        Ok(metrics.lines().any(|line| line == "dartcloud_agent_kept_versions 2").then_some(()))
    };
    until("both are warm again", PATIENCE, full).await?;
    both().await?;
    user.delete("/api/functions/file").await?.expect(204)?;
    user.delete("/api/functions/server").await?.expect(204)?;
    let none = async || {
        let metrics = platform.agent_metrics().await?;
        let gone =
            |state: &str| metrics.lines().any(|line| line == format!("dartcloud_sandbox_count{{state=\"{state}\"}} 0"));
        Ok((gone("warm") && gone("busy")).then_some(()))
    };
    until("nothing of them is kept", PATIENCE, none).await?;
    user.invoke("file", json!({})).await?.expect_error(404, "not_found")?;
    Ok(())
}
