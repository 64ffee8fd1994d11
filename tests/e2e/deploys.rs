//! Deploys: versions, failed builds, deletion, and the log as it comes.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::archive::{archive, script};
use crate::shared;

/// A Dart program; one without `main(` does not compile.
fn dart(source: &str) -> Vec<u8> {
    archive(&[("pubspec.yaml", "name: f\nenvironment:\n  sdk: ^3.0.0\n"), ("main.dart", source)])
}

#[tokio::test]
async fn a_failed_build_leaves_the_old_version_serving() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("f", dart("void main() async {}")).await?.expect(201)?;
    user.invoke("f", json!({})).await?.expect(200)?;
    let (done, calls) = (AtomicBool::new(false), AtomicU32::new(0));
    let load = async || {
        while !done.load(Ordering::Relaxed) {
            let answer = user.invoke("f", json!({"name": "Ada"})).await?.expect(200)?;
            ensure!(answer["result"]["message"] == "Hello, Ada!", "{answer}");
            calls.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let redeploys = async {
        for _ in 0..3 {
            let failed = user.deploy("f", dart("this is not dart")).await?.expect_error(422, "build_failed")?;
            let log = failed["log"].as_str().context("no log")?;
            ensure!(log.contains("main.dart"), "the log does not say what failed: {log}");
        }
        let good = user.deploy("f", dart("void main() async { /* 2 */ }")).await?.expect(200)?;
        ensure!(good["version"] == 5 && good["isFirstDeployment"] == false, "{good}");
        done.store(true, Ordering::Relaxed);
        Ok(())
    };
    futures_util::future::try_join3(load(), load(), redeploys).await?;
    ensure!(calls.load(Ordering::Relaxed) > 0, "no call was made meanwhile");
    ensure!(user.get("/api/functions/f").await?.expect(200)?["version"] == 5);
    Ok(())
}

#[tokio::test]
async fn versions_and_cached_builds() -> Result<()> {
    let user = shared().await?.user().await?;
    let first = user.deploy("f", script("printf '{\"body\":1}' >/result.json")).await?.expect(201)?;
    ensure!(first["version"] == 1 && first["isFirstDeployment"] == true && first["runtime"] == "native", "{first}");
    ensure!(user.invoke("f", json!({})).await?.expect(200)?["result"] == 1);
    let second = user.deploy("f", script("printf '{\"body\":2}' >/result.json")).await?.expect(200)?;
    ensure!(second["version"] == 2 && second["id"] == first["id"], "{second}");
    ensure!(user.invoke("f", json!({})).await?.expect(200)?["result"] == 2);
    let again = user.deploy("f", script("printf '{\"body\":2}' >/result.json")).await?.expect(200)?;
    ensure!(again["version"] == 3 && again["buildCached"] == true, "{again}");
    let listed = user.get("/api/functions").await?.expect(200)?;
    let function = &listed["functions"][0];
    ensure!(function["name"] == "f" && function["version"] == 3 && function["status"] == "active", "{listed}");
    ensure!(function["url"].as_str().is_some_and(|url| url.ends_with(&format!("/f/{}/f", user.handle))), "{listed}");
    Ok(())
}

#[tokio::test]
async fn a_deleted_function_is_gone() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("f", script("printf '{\"body\":1}' >/result.json")).await?.expect(201)?;
    user.invoke("f", json!({})).await?.expect(200)?;
    user.delete("/api/functions/f").await?.expect(204)?;
    user.invoke("f", json!({})).await?.expect_error(404, "not_found")?;
    user.delete("/api/functions/f").await?.expect_error(404, "not_found")?;
    let anew = user.deploy("f", script("printf '{\"body\":1}' >/result.json")).await?.expect(201)?;
    ensure!(anew["version"] == 1, "{anew}");
    Ok(())
}

#[tokio::test]
async fn the_build_log_comes_as_it_is_written() -> Result<()> {
    let user = shared().await?.user().await?;
    let archive = Part::bytes(dart("void main() async {}")).file_name("f.tar.gz");
    let form = Form::new().text("name", "f").part("archive", archive);
    let request = user.request("POST", "/api/functions/deploy").header("accept", "text/event-stream");
    let response = request.multipart(form).send().await?;
    ensure!(response.headers()["content-type"].to_str()?.starts_with("text/event-stream"), "{response:?}");
    let events = response.text().await?;
    ensure!(events.contains("event: log"), "{events}");
    let result = events.split("event: result\n").nth(1).context("no result")?;
    let data = result.lines().find_map(|line| line.strip_prefix("data:")).context("no data")?;
    let result: Value = serde_json::from_str(data)?;
    ensure!(result["status"] == "active" && result["version"] == 1, "{result}");
    Ok(())
}

#[tokio::test]
async fn the_operators_ceiling_wins() -> Result<()> {
    let user = shared().await?.user().await?;
    let files =
        [("main*", "#!/bin/sh\nprintf '{\"body\":1}' >/result.json\n"), ("dartcloud.toml", "memory_mb = 100000\n")];
    let deployed = user.deploy("f", archive(&files)).await?.expect(201)?;
    ensure!(deployed["messages"][0].as_str().is_some_and(|message| message.contains("ceiling")), "{deployed}");
    ensure!(user.get("/api/functions/f").await?.expect(200)?["limits"]["memoryMb"] == 1024);
    Ok(())
}
