//! `stale_while_cold_ms`: a cold GET is answered at once by what was answered before, and the next one is fresh.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::archive::archive;
use crate::client::Answer;
use crate::platform::{Form, Platform, until};
use crate::shared;

const PATIENCE: Duration = Duration::from_secs(60);
/// Says the id of the call that ran.
const MAIN: &str = r#"#!/bin/sh
id=$(sed 's/.*"invocation_id":"\([^"]*\)".*/\1/' /request.json)
printf '{"body":"%s"}' "$id" >/result.json
"#;
const SERVER: &str = "const http = require('node:http');\n\
    http.createServer((q, a) => a.end(JSON.stringify(String(process.hrtime.bigint())))).listen(process.env.PORT);\n";

async fn check(platform: &Platform, name: &str, files: &[(&str, &str)]) -> Result<()> {
    let owner = platform.user().await?;
    owner.deploy(name, archive(files)).await?.expect(201)?;
    ensure!(owner.get(&format!("/api/functions/{name}")).await?.expect(200)?["staleWhileColdMs"] == 600_000);
    let (anyone, path) = (owner.with_token(""), format!("/f/{}/{name}/a?b=c", owner.handle));
    let is_stale = |answer: &Answer| answer.headers.get("x-dartcloud-stale").is_some_and(|word| word == "cold");
    let first = anyone.get(&path).await?;
    ensure!(first.status == 200 && !is_stale(&first) && first.body.is_string(), "{first:?}");

    let gone = async || Ok(platform.containers()?.is_empty().then_some(()));
    until("the function is scaled to zero", PATIENCE, gone).await?;
    let stale = anyone.get(&path).await?;
    ensure!(stale.status == 200 && is_stale(&stale) && stale.body == first.body, "{stale:?}");
    let age: u64 = stale.headers["age"].to_str()?.parse()?;
    ensure!((1..600).contains(&age), "{stale:?}");
    ensure!(stale.headers["server-timing"].to_str()?.contains("stale;desc=\"cold\""), "{stale:?}");
    let fresh = async || {
        let answer = anyone.get(&path).await?;
        Ok((!is_stale(&answer)).then_some(answer))
    };
    let fresh = until("an answer is fresh", PATIENCE, fresh).await?;
    ensure!(fresh.status == 200 && fresh.body != first.body, "{fresh:?}");
    // It says whose answer it was. The call behind it has a record, too.
    ensure!(stale.headers["original-request"] == first.headers["x-request-id"], "{stale:?}");
    let records = owner.records(name, 3).await?;
    ensure!(records.iter().all(|record| record["status"] == "success"), "{records:?}");
    Ok(())
}

#[tokio::test]
async fn a_cold_get_is_answered_at_once() -> Result<()> {
    let platform = Platform::start(Form::Dev, &[("SANDBOX_IDLE_SECONDS", "1"), ("SANDBOX_BLANKS", "0")]).await?;
    let manifest = "access = \"public\"\nstale_while_cold_ms = 600000\n";
    check(&platform, "files", &[("main*", MAIN), ("dartcloud.toml", manifest)]).await?;
    let manifest = format!("contract = \"http\"\n{manifest}");
    check(&platform, "server", &[("index.js", SERVER), ("dartcloud.toml", &manifest)]).await
}

#[tokio::test]
async fn only_what_is_public_may_be_stale() -> Result<()> {
    let user = shared().await?.user().await?;
    let private = archive(&[("main*", MAIN), ("dartcloud.toml", "stale_while_cold_ms = 1000\n")]);
    let refused: Value = user.deploy("stale", private).await?.expect_error(422, "bad_archive")?;
    ensure!(refused["error"].as_str().is_some_and(|text| text.contains("public")), "{refused}");
    Ok(())
}
