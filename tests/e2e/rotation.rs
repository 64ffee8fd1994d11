//! `JWT_SECRET` is changed: nobody has to log in again, and the fleet's authority stays the same.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::client::Client;
use crate::platform::{Form, JWT_SECRET, Platform, free_ports};

const NEW: &str = "the secret of after, which has more than 32 bytes";

/// The pin of the authority, which ends every join token.
async fn pin(operator: &Client) -> Result<String> {
    let invited = operator.post("/api/nodes/tokens", &json!({})).await?.expect(201)?;
    let token = invited["token"].as_str().context("no token")?;
    let token: common::join_token::JoinToken = token.parse()?;
    Ok(token.pin().to_string())
}

#[tokio::test]
async fn the_secret_is_changed_while_people_are_logged_in() -> Result<()> {
    let [port] = free_ports()?;
    let address = format!("127.0.0.1:{port}");
    let mut platform = Platform::start(Form::Gateway, &[("NODE_ADDR", &address)]).await?;
    let operator = platform.user().await?;
    let before = pin(&operator).await?;

    platform.stop().await?;
    platform.set("JWT_SECRET", NEW);
    platform.set("JWT_SECRET_PREVIOUS", JWT_SECRET);
    platform.launch().await?;
    ensure!(pin(&operator).await? == before, "another authority");
    let email = operator.get("/api/auth/me").await?.expect(200)?["email"].clone();
    let login = json!({"email": email, "password": "correct horse"});
    let tokens = operator.post("/api/auth/login", &login).await?.expect(200)?;
    let renewed = operator.with_token(tokens["accessToken"].as_str().context("no token")?);

    // The secret of before is needed no longer, and counts for nothing.
    platform.stop().await?;
    platform.set("JWT_SECRET_PREVIOUS", "");
    platform.launch().await?;
    ensure!(pin(&renewed).await? == before, "another authority");
    operator.get("/api/auth/me").await?.expect_error(401, "unauthorized")?;
    Ok(())
}
