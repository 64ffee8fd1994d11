//! Requests that are wrong: each gets the status and the word of the contract, and leaves nothing half made.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::multipart::{Form, Part};
use serde_json::json;

use crate::archive::{archive, script};
use crate::client::{Answer, Client};
use crate::shared;

#[tokio::test]
async fn registration() -> Result<()> {
    let user = shared().await?.user().await?;
    let check = async |body: &str, status: u16, code: &str| {
        let request = user.request("POST", "/api/auth/register").header("content-type", "application/json");
        Answer::of(request.body(body.to_owned()).send().await?).await?.expect_error(status, code)
    };
    check("{", 400, "bad_request").await?;
    check("{}", 422, "invalid").await?;
    check(r#"{"email": 1, "password": "correct horse"}"#, 422, "invalid").await?;
    check(r#"{"email": "nobody", "password": "correct horse"}"#, 422, "invalid").await?;
    check(r#"{"email": "a@example.org", "password": "short"}"#, 422, "weak_password").await?;
    let twice = json!({"email": "twice@example.org", "password": "correct horse"});
    user.post("/api/auth/register", &twice).await?.expect(201)?;
    user.post("/api/auth/register", &twice).await?.expect_error(409, "email_taken")?;
    let wrong = json!({"email": "twice@example.org", "password": "battery staple"});
    user.post("/api/auth/login", &wrong).await?.expect_error(401, "bad_credentials")?;
    let unknown = json!({"email": "unknown@example.org", "password": "battery staple"});
    user.post("/api/auth/login", &unknown).await?.expect_error(401, "bad_credentials")?;
    Ok(())
}

#[tokio::test]
async fn a_refresh_token_works_once() -> Result<()> {
    let user = shared().await?.user().await?;
    let credentials = json!({"email": "rotating@example.org", "password": "correct horse"});
    user.post("/api/auth/register", &credentials).await?.expect(201)?;
    let first = user.post("/api/auth/login", &credentials).await?.expect(200)?["refreshToken"].take();
    let second = user.post("/api/auth/refresh", &json!({"refreshToken": first})).await?.expect(200)?;
    user.post("/api/auth/refresh", &json!({"refreshToken": first})).await?.expect_error(401, "unauthorized")?;
    // The family is revoked: the token that came of the first one is worth nothing now, either.
    let successor = json!({"refreshToken": second["refreshToken"]});
    user.post("/api/auth/refresh", &successor).await?.expect_error(401, "unauthorized")?;
    Ok(())
}

#[tokio::test]
async fn tokens() -> Result<()> {
    let user = shared().await?.user().await?;
    let check = async |token: &str| {
        user.with_token(token).get("/api/functions").await?.expect_error(401, "unauthorized")?;
        anyhow::Ok(user.with_token(token).invoke("any", json!({})).await?.expect_error(401, "unauthorized")?)
    };
    check("").await?;
    check("not-a-token").await?;
    check(&format!("{}x", user.token)).await?;
    let claims =
        json!({"sub": uuid::Uuid::now_v7(), "iat": 1_700_000_000, "exp": 4_000_000_000_u64, "iss": "dartcloud"});
    let foreign = EncodingKey::from_secret(b"somebody else's secret, which is long enough, too");
    check(&encode(&Header::new(Algorithm::HS256), &claims, &foreign)?).await?;
    // The same claims, signed by nobody: the classic downgrade.
    let mut parts = user.token.split('.');
    let payload = parts.nth(1).expect("a token has three parts");
    check(&format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.")).await?;
    Ok(())
}

#[tokio::test]
async fn deploys() -> Result<()> {
    let user = shared().await?.user().await?;
    let good = script("exit 0");
    let part = |bytes: Vec<u8>| Part::bytes(bytes).file_name("f.tar.gz");
    let check = async |form: Form, status: u16, code: &str, sentence: &str| {
        let body = user.deploy_form(form).await?.expect_error(status, code)?;
        ensure!(body["error"].as_str().is_some_and(|error| error.contains(sentence)), "{body} has no {sentence}");
        Ok(())
    };
    check(Form::new().part("archive", part(good.clone())), 422, "invalid", "name").await?;
    check(Form::new().text("name", "Not_Valid").part("archive", part(good.clone())), 422, "invalid", "Not_Valid")
        .await?;
    check(Form::new().text("name", "a".repeat(64)).part("archive", part(good)), 422, "invalid", "name").await?;
    check(Form::new().text("name", "f"), 422, "invalid", "archive").await?;
    check(Form::new().text("name", "f").part("archive", part(b"no gzip".to_vec())), 422, "bad_archive", "").await?;
    let bad = async |files: &[(&str, &str)], sentence: &str| {
        check(Form::new().text("name", "f").part("archive", part(archive(files))), 422, "bad_archive", sentence).await
    };
    bad(&[("README", "nothing to run")], "pubspec.yaml").await?;
    bad(&[("main*", "x"), ("dartcloud.toml", "colour = 'red'")], "colour").await?;
    bad(&[("main*", "x"), ("dartcloud.toml", "runtime = 'cobol'")], "cobol").await?;
    let not_a_form = user.request("POST", "/api/functions/deploy").header("content-type", "text/plain").body("x");
    Answer::of(not_a_form.send().await?).await?.expect_error(415, "unsupported_media_type")?;
    let broken =
        user.request("POST", "/api/functions/deploy").header("content-type", "multipart/form-data; boundary=x");
    Answer::of(broken.body("--y").send().await?).await?.expect_error(400, "bad_request")?;
    let list = user.get("/api/functions").await?.expect(200)?;
    ensure!(list == json!({"functions": [], "next": null}), "half made: {list}");
    Ok(())
}

#[tokio::test]
async fn an_archive_over_the_limit_is_413() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("big", vec![0; 51 * 1024 * 1024]).await?.expect_error(413, "too_large").map(drop)
}

#[tokio::test]
async fn ids() -> Result<()> {
    let platform = shared().await?;
    let (owner, other) = (platform.user().await?, platform.user().await?);
    let id = owner.deploy("mine", script("exit 0")).await?.expect(201)?["id"].as_str().expect("an id").to_owned();
    let unknown = uuid::Uuid::now_v7().to_string();
    let check = async |client: &Client, id: &str| {
        client.get(&format!("/api/functions/{id}")).await?.expect_error(404, "not_found")?;
        client.get(&format!("/api/functions/{id}/logs")).await?.expect_error(404, "not_found")?;
        client.delete(&format!("/api/functions/{id}")).await?.expect_error(404, "not_found")?;
        client.invoke(id, json!({})).await?.expect_error(404, "not_found")
    };
    check(&owner, &unknown).await?;
    check(&other, &id).await?;
    check(&other, "mine").await?;
    owner.get(&format!("/api/functions/{id}")).await?.expect(200)?;
    owner.get("/api/functions/mine/logs?limit=x").await?.expect_error(422, "invalid")?;
    owner.get("/api/nothing/here").await?.expect_error(404, "not_found")?;
    owner.post("/api/functions", &json!({})).await?.expect_error(405, "method_not_allowed")?;
    owner.with_token("").get("/f/nobody/nothing").await?.expect_error(404, "not_found")?;
    Ok(())
}

#[tokio::test]
async fn wrong_envelopes() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("f", script("printf '{\"body\":1}' >/result.json")).await?.expect(201)?;
    let check = async |body: &str, status: u16, code: &str| {
        let request = user.request("POST", "/api/functions/f/invoke").header("content-type", "application/json");
        Answer::of(request.body(body.to_owned()).send().await?).await?.expect_error(status, code)
    };
    check("{", 400, "bad_request").await?;
    check("[]", 422, "invalid").await?;
    check(r#"{"method": 7}"#, 422, "invalid").await?;
    check(r#"{"colour": "red"}"#, 422, "invalid").await?;
    user.invoke("f", json!({})).await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn doubtful_messages_are_refused() -> Result<()> {
    let port = shared().await?.port();
    let check = |message: &str, status: &str| -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(message.as_bytes())?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{message:?} got {answer:?}");
        Ok(())
    };
    check("GET /api/health/live HTTP/1.1\r\nHost: a\r\n\r\n", "200")?;
    check("GET /api/health/live HTTP/1.1\r\n\r\n", "400")?;
    check("GET /api/health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400")?;
    check("GET /api/health/live HTTP/1.1\r\nHost: a b\r\n\r\n", "400")?;
    check("GET http://b/api/health/live HTTP/1.1\r\nHost: a\r\n\r\n", "400")?;
    check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400")?;
    check("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", "400")?;
    check("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "40")?;
    check("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "40")?;
    check("GET /f/../api/health HTTP/1.1\r\nHost: a\r\n\r\n", "400")?;
    check("GET /f/%2e%2e/api/health HTTP/1.1\r\nHost: a\r\n\r\n", "400")?;
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40_000)), "431")?;
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(120)), "431")?;
    Ok(())
}
