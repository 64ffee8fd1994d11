//! What lies in `examples/` deploys and answers as its README says.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::archive::example;
use crate::shared;

async fn check(name: &str) -> Result<()> {
    let user = shared().await?.user().await?;
    let deployed = user.deploy(name, example(name)).await?.expect(201)?;
    ensure!(deployed["version"] == 1 && deployed["status"] == "active", "{deployed}");
    let answer = user.invoke(name, json!({"name": "Ada"})).await?.expect(200)?;
    ensure!(answer["success"] == true, "{answer}");
    ensure!(answer["result"]["message"] == "Hello, Ada!", "{answer}");
    let path = format!("/f/{}/{name}", user.handle);
    let over_http = user.post(&path, &json!({"name": "Grace"})).await?.expect(200)?;
    ensure!(over_http["message"] == "Hello, Grace!", "{over_http}");
    Ok(())
}

#[tokio::test]
async fn hello_dart() -> Result<()> {
    check("hello-dart").await
}

#[tokio::test]
async fn hello_python() -> Result<()> {
    check("hello-python").await
}

#[tokio::test]
async fn hello_node() -> Result<()> {
    check("hello-node").await
}

#[tokio::test]
async fn hello_native() -> Result<()> {
    check("hello-native").await
}

#[tokio::test]
async fn hello_sh() -> Result<()> {
    check("hello-sh").await
}
