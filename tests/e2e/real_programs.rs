//! Real programs with dependencies from their languages' registries, called as a browser calls.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::archive::{PUBLIC, archive, folder};
use crate::client::Client;
use crate::shared;

const MARKDOWN: &str = "# Hello\n\nfrom *a function*";

/// Posts Markdown with a browser's headers and expects its HTML.
async fn check(user: &Client, name: &str) -> Result<()> {
    let request = user.with_token("").request("POST", &format!("/f/{}/{name}/render?from=browser", user.handle));
    let request = request
        .header("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8")
        .header("accept-language", "en-GB,en;q=0.5")
        .header("cache-control", "no-cache")
        .header("content-type", "text/plain;charset=UTF-8")
        .header("cookie", "theme=dark; session=abc")
        .header("dnt", "1")
        .header("origin", "https://example.com")
        .header("sec-fetch-mode", "cors")
        .header("upgrade-insecure-requests", "1")
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0");
    let response = request.body(MARKDOWN).send().await?;
    ensure!(response.status() == 200, "{response:?}");
    ensure!(response.headers()["content-type"] == "text/html; charset=utf-8", "{response:?}");
    let html = response.text().await?;
    ensure!(html.contains("<h1>Hello</h1>") && html.contains("<em>a function</em>"), "{html}");
    Ok(())
}

#[tokio::test]
async fn python_with_a_requirement() -> Result<()> {
    let user = shared().await?.user().await?;
    let files = [
        ("render/requirements.txt", "mistune==3.0.2\n"),
        ("render/main.py", include_str!("programs/render.py")),
        ("render/dartcloud.toml", PUBLIC.1),
    ];
    let deployed = user.deploy("markdown-python", archive(&files)).await?.expect(201)?;
    ensure!(deployed["buildCached"] == false, "{deployed}");
    check(&user, "markdown-python").await
}

#[tokio::test]
async fn node_with_a_lock_file() -> Result<()> {
    let user = shared().await?.user().await?;
    let files = [
        ("package.json", include_str!("programs/package.json")),
        ("package-lock.json", include_str!("programs/package-lock.json")),
        ("index.js", include_str!("programs/render.js")),
        PUBLIC,
    ];
    user.deploy("markdown-node", archive(&files)).await?.expect(201)?;
    check(&user, "markdown-node").await
}

#[tokio::test]
async fn a_requirement_that_does_not_exist() -> Result<()> {
    let user = shared().await?.user().await?;
    let files = [("requirements.txt", "mistune==0.0.0.1\n"), ("main.py", "pass\n")];
    let failed = user.deploy("impossible", archive(&files)).await?.expect_error(422, "build_failed")?;
    ensure!(failed["log"].as_str().is_some_and(|log| log.contains("mistune==0.0.0.1")), "{failed}");
    Ok(())
}

/// Dart Sass is a genuine Dart program, compiled ahead of time; no Dart SDK is needed to run it.
#[tokio::test(flavor = "multi_thread")]
async fn a_genuine_dart_program() -> Result<()> {
    let user = shared().await?.user().await?;
    let directory = tempfile::tempdir()?;
    npm_unpack("sass-embedded-linux-x64@1.108.2", directory.path())?;
    let program = directory.path().join("package/dart-sass/src");
    std::fs::write(program.join("main"), include_str!("programs/sass.sh"))?;
    let executable = Command::new("chmod").arg("+x").arg(program.join("main")).status()?;
    ensure!(executable.success(), "chmod failed");
    user.deploy("sass", folder(&program)).await?.expect(201)?;
    let answer = user.invoke("sass", json!("a { b { color: red } }")).await?.expect(200)?;
    ensure!(answer["result"] == "a b{color:red}", "{answer}");
    Ok(())
}

/// Fetches a package by the npm of the Node.js image, so that the machine needs none of its own.
fn npm_unpack(package: &str, into: &Path) -> Result<()> {
    let present = |image: &&str| {
        Command::new("docker").args(["image", "inspect", image]).output().is_ok_and(|output| output.status.success())
    };
    let image = ["node:18-bookworm-slim", "local/node:18"].into_iter().find(present);
    let image = image.context("no Node.js image: run `script/images node`")?;
    let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "-v"]).arg(format!("{}:/out", into.display()));
    if authorities.exists() {
        command.arg("-v").arg(format!("{}:/authorities.crt:ro", authorities.display()));
        command.args(["-e", "NODE_EXTRA_CA_CERTS=/authorities.crt"]);
    }
    let fetch = "npm pack \"$0\" --pack-destination /out && tar -xzf /out/*.tgz -C /out --no-same-owner";
    let output = command.args([image, "sh", "-c", fetch, package]).output()?;
    ensure!(output.status.success(), "npm pack: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
