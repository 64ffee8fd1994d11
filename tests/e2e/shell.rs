//! Shell scripts: found by `main.sh`, run by `sh`, with `jq` for the request and the result.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::archive::archive;
use crate::shared;

/// Says what it was sent; whoever sends no list of numbers gets jq's complaint.
const SUM: &str = "set -eu\necho \"called with $(jq -c .body.numbers /request.json)\"\n\
    jq '{body: {sum: (.body.numbers | add), note: .body.note}, statusCode: 201}' /request.json >/result.json\n";

#[tokio::test]
async fn a_script_reads_and_writes_by_jq() -> Result<()> {
    let user = shared().await?.user().await?;
    // Not executable, and without a `#!` line.
    let deployed = user.deploy("sum", archive(&[("main.sh", SUM)])).await?.expect(201)?;
    ensure!(deployed["runtime"] == "sh" && deployed["status"] == "active", "{deployed}");
    let note = "it's \"quoted\" \\ $(id) `id`\nand goes on: ü";
    let path = format!("/f/{}/sum", user.handle);
    let answer = user.post(&path, &json!({"numbers": [1, 2, 39], "note": note})).await?.expect(201)?;
    ensure!(answer == json!({"sum": 42, "note": note}), "{answer}");
    user.post(&path, &json!({"numbers": 42})).await?.expect_error(502, "function_crashed")?;
    let records = user.records("sum", 2).await?;
    let printed = serde_json::to_string(&records)?;
    ensure!(printed.contains("called with [1,2,39]") && printed.contains("Cannot iterate over number"), "{printed}");
    Ok(())
}

#[tokio::test]
async fn other_languages_may_bring_a_script() -> Result<()> {
    let user = shared().await?.user().await?;
    let main = ("main*", "#!/bin/sh\nprintf '{\"body\":\"main\"}' >/result.json\n");
    let deployed = user.deploy("both", archive(&[main, ("main.sh", "exit 1\n")])).await?.expect(201)?;
    ensure!(deployed["runtime"] == "native", "{deployed}");
    ensure!(user.invoke("both", json!({})).await?.expect(200)?["result"] == "main");
    Ok(())
}
