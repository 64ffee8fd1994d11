//! `min_warm`: functions of which some sandboxes are there before anybody calls.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::archive::archive;
use crate::client::{Answer, Client};
use crate::platform::{Form, Platform, until};
use crate::shared;

const PATIENCE: Duration = Duration::from_secs(60);

/// A function of the file contract that says its version.
fn file(version: u32) -> Vec<u8> {
    let source = format!("import json\njson.dump({{'body': {version}}}, open('/result.json', 'w'))\n");
    archive(&[("main.py", &source), ("dartcloud.toml", "access = \"public\"\nmin_warm = 1\n")])
}

/// A server that says its version.
fn server(version: u32) -> Vec<u8> {
    let source =
        format!("require('http').createServer((_, answer) => answer.end('{version}')).listen(process.env.PORT);");
    let manifest = "contract = \"http\"\naccess = \"public\"\nmin_warm = 1\n";
    archive(&[("index.js", &source), ("dartcloud.toml", manifest)])
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
    first_calls(&user, "file", [file(1), file(2)]).await?;
    first_calls(&user, "server", [server(1), server(2)]).await
}

#[tokio::test]
async fn what_is_kept_outlives_its_idleness_and_comes_back_after_a_power_cut() -> Result<()> {
    let mut platform = Platform::start(Form::TwoProcesses, &[("SANDBOX_IDLE_SECONDS", "1")]).await?;
    let user = platform.user().await?;
    user.deploy("file", file(1)).await?.expect(201)?;
    user.deploy("server", server(2)).await?.expect(201)?;
    let both = async || {
        warm(user.get(&format!("/f/{}/file", user.handle)).await?, 1)?;
        warm(user.get(&format!("/f/{}/server", user.handle)).await?, 2)
    };
    both().await?;
    // Longer than anything else would be kept.
    tokio::time::sleep(Duration::from_secs(4)).await;
    both().await?;
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
