//! Gateway and agent as two processes over a Unix socket, on Postgres: the same behaviour as in one process.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::archive::example;
use crate::platform::{Form, Platform, until};

/// A database of one test on the suite's PostgreSQL server.
pub(crate) struct Database {
    server: String,
    name: String,
    url: String,
}

impl Database {
    /// Makes an empty one.
    pub(crate) fn create() -> Result<Self> {
        let server = std::env::var("TEST_DATABASE_URL")
            .context("TEST_DATABASE_URL is not set: run the suite by `script/test e2e`, which starts PostgreSQL")?;
        let name = format!("e2e_{}", uuid::Uuid::now_v7().simple());
        psql(&server, &format!("CREATE DATABASE {name}"))?;
        Self::named(server, name)
    }

    /// One on the same server that a program has made.
    pub(crate) fn beside(&self, name: &str) -> Result<Self> {
        Self::named(self.server.clone(), name.to_owned())
    }

    fn named(server: String, name: String) -> Result<Self> {
        let (before, after) = server.rsplit_once('/').context("TEST_DATABASE_URL has no database")?;
        let parameters = after.split_once('?').map_or(String::new(), |(_, parameters)| format!("?{parameters}"));
        let url = format!("{before}/{name}{parameters}");
        Ok(Self { server, name, url })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The first column of the first row.
    pub(crate) fn query(&self, sql: &str) -> Result<String> {
        psql(&self.url, sql)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // What is left of it is gone with the suite's server.
        let _ = psql(&self.server, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}

pub(crate) fn psql(url: &str, sql: &str) -> Result<String> {
    let output =
        Command::new("psql").args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, url]).output()?;
    ensure!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[tokio::test]
async fn deploy_invoke_restart_delete() -> Result<()> {
    let database = Database::create()?;
    let mut platform = Platform::start(Form::TwoProcesses, &[("DATABASE_URL", database.url())]).await?;
    let user = platform.user().await?;
    user.deploy("hello", example("hello-python")).await?.expect(201)?;
    user.deploy("hello", example("hello-python")).await?.expect(200)?;
    let answer = user.invoke("hello", json!({"name": "Ada"})).await?.expect(200)?;
    ensure!(answer["result"]["message"] == "Hello, Ada!", "{answer}");
    platform.stop().await?;
    ensure!(platform.containers()?.is_empty(), "containers are left after a stop");
    platform.launch().await?;
    let answer = user.invoke("hello", json!({"name": "Ada"})).await?;
    ensure!(answer.headers["server-timing"].to_str()?.contains("cold;desc=\"agent_started\";dur="), "{answer:?}");
    answer.expect(200)?;
    ensure!(user.records("hello", 2).await?.len() == 2);
    ensure!(user.get("/api/functions/hello").await?.expect(200)?["version"] == 2);
    user.delete("/api/functions/hello").await?.expect(204)?;
    user.invoke("hello", json!({})).await?.expect_error(404, "not_found")?;
    let rows = "SELECT (SELECT count(*) FROM functions) + (SELECT count(*) FROM function_invocations)";
    let gone = async || Ok((database.query(rows)? == "0").then_some(()));
    until("its rows are gone", Duration::from_secs(20), gone).await.with_context(|| platform.log())
}
