//! A gateway's program is replaced by another, under load: nobody's call fails. And whatever goes wrong with the new one,
//! the old one goes on.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::archive::{archive, script};
use crate::client::Client;
use crate::fleet::Fleet;
use crate::platform::{Form, Platform, Program, until};
use crate::websocket::WebSocket;
use load::{Caller, Calls as _, Load, Server};

mod load;
mod tls;

const PATIENCE: Duration = Duration::from_secs(60);
const UPGRADES: usize = 10;

/// What the two gateways say of a hand-over.
const ASKED: &str = "a successor asks for this gateway's place";
const GIVEN: &str = "the successor has this gateway's place";
const FAILED: &str = "the hand-over failed";
const GONE: &str = "the gateway before this one has ended";

fn hello() -> Vec<u8> {
    script("printf '{\"body\":\"hello\"}' >/result.json")
}

fn server() -> Vec<u8> {
    let manifest = "contract = \"http\"\naccess = \"public\"\ntimeout_ms = 60000\nconcurrency = 20\n";
    archive(&[("index.js", include_str!("programs/probe.js")), ("dartcloud.toml", manifest)])
}

/// How often the gateways have said something.
fn said(platform: &Platform, words: &str) -> Result<usize> {
    let log = std::fs::read_to_string(platform.data_dir().join("dartcloud-gateway.log"))?;
    Ok(log.matches(words).count())
}

/// Waits until they have said it once more than `before`.
async fn until_said(platform: &Platform, words: &str, before: usize) -> Result<()> {
    let found = until(words, PATIENCE, async || Ok((said(platform, words)? > before).then_some(())));
    found.await.with_context(|| platform.log())
}

async fn ended(program: &mut Program) -> Result<ExitStatus> {
    until("a gateway ends", PATIENCE, async || Ok(program.child.try_wait()?)).await
}

/// Starts a successor, and waits until it has the place; the gateway before, which still ends.
async fn succeed(platform: &mut Platform) -> Result<Program> {
    let before = said(platform, GIVEN)?;
    let successor = platform.second_gateway(&["--take-over"], &[])?;
    until_said(platform, GIVEN, before).await?;
    Ok(platform.is_succeeded_by(successor))
}

/// Waits until a successor has seen that the one before has ended, and so may be succeeded itself; `before` have been.
async fn until_gone(platform: &Platform, before: usize) -> Result<()> {
    until_said(platform, GONE, before).await
}

/// The same as `succeed`, and waits until the one before has ended, and the successor has seen it.
async fn upgrade(platform: &mut Platform) -> Result<()> {
    let before = said(platform, GONE)?;
    let mut old = succeed(platform).await?;
    let status = ended(&mut old).await?;
    ensure!(status.success(), "the gateway before ended with {status}:\n{}", platform.log());
    until_gone(platform, before).await
}

/// Each call has one record, and each record is of a call.
async fn check_records(user: &Client, name: &str, ids: Vec<String>) -> Result<()> {
    let records = user.records(name, ids.len()).await?;
    let recorded: BTreeSet<_> = records.iter().filter_map(|record| record["id"].as_str()).collect();
    let called: BTreeSet<_> = ids.iter().map(String::as_str).collect();
    ensure!(called.len() == ids.len() && records.len() == recorded.len(), "an id came twice");
    let (lost, extra) = (called.difference(&recorded).count(), recorded.difference(&called).count());
    ensure!(lost == 0 && extra == 0, "{lost} calls without a record, {extra} records without a call");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_upgrades_under_load_fail_no_call() -> Result<()> {
    let mut platform = Platform::start(Form::TwoProcesses, &[]).await?;
    let user = platform.user().await?;
    user.deploy("hello", hello()).await?.expect(201)?;
    user.deploy("server", server()).await?.expect(201)?;
    let (hello_path, server_path) = (format!("/f/{}/hello", user.handle), format!("/f/{}/server", user.handle));
    user.get(&format!("{server_path}/count")).await?.expect(200)?;
    let load = Load::begin(platform.port(), &hello_path);
    let mut took = Vec::new();
    for number in 0..UPGRADES {
        load.more(50).await?;
        let begun = Instant::now();
        // What is open at that moment: a stream, a WebSocket, a connection that is silent, and a deploy.
        let mut ticks = user.request("GET", &format!("{server_path}/ticks")).send().await?.bytes_stream();
        ticks.next().await.context("nothing came")??;
        let mut socket = WebSocket::open(platform.port(), &format!("{server_path}/socket")).await?;
        let mut silent = Caller::new(&Server::Plain(platform.port()), &format!("{server_path}/count"), true);
        silent.call().await?;
        ensure!(!silent.closes);
        let deployer = user.clone();
        let deploy = tokio::spawn(async move { deployer.deploy("moving", hello()).await });
        let mut old = succeed(&mut platform).await?;
        took.push(begun.elapsed());

        socket.send("still there").await?;
        ensure!(socket.receive().await? == "still there");
        silent.call().await.context("on a connection that was silent")?;
        ensure!(silent.closes, "it is not asked to go");
        let mut rest = Vec::new();
        while let Some(chunk) = ticks.next().await {
            rest.extend(chunk.context("a stream that was open")?);
        }
        ensure!(rest.ends_with(b"end\n"), "a stream was cut: {:?}", String::from_utf8_lossy(&rest));
        deploy.await??.expect(if number == 0 { 201 } else { 200 })?;
        until("what was deployed meanwhile serves", Duration::from_secs(1), async || {
            Ok((user.invoke("moving", json!({})).await?.status == 200).then_some(()))
        })
        .await?;
        drop(socket);
        let status = ended(&mut old).await?;
        ensure!(status.success(), "the gateway before ended with {status}:\n{}", platform.log());
        load.more(50).await?;
        until_gone(&platform, number).await?;
    }
    let ids = load.end().await.with_context(|| platform.log())?;
    println!("{} calls in {UPGRADES} upgrades, 0 failed; a successor had the place after {took:?}", ids.len());
    check_records(&user, "hello", ids).await?;
    // As many as there were: the metrics are the last one's.
    ensure!(platform.metrics().await?.contains("\ndartcloud_gateway_nodes 1\n"), "{}", platform.log());
    platform.stop().await?;
    ensure!(!platform.data_dir().join("link.sock").exists(), "the last one leaves its socket");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_other_machines_come_over_too() -> Result<()> {
    let mut fleet = Fleet::start(&[]).await?;
    let machine = fleet.machine("one").await?;
    let user = fleet.operator.clone();
    user.deploy("hello", hello()).await?.expect(201).with_context(|| machine.log())?;
    for number in 0..3 {
        user.deploy(&format!("cold{number}"), hello()).await?.expect(201)?;
    }
    let load = Load::begin(fleet.platform.port(), &format!("/f/{}/hello", user.handle));
    for number in 0..3 {
        load.more(20).await?;
        // A version that its node has to fetch, and one that it has to build, at whichever gateway.
        let (caller, deployer) = (user.clone(), user.clone());
        let cold = tokio::spawn(async move { caller.invoke(&format!("cold{number}"), json!({})).await });
        let deploy = tokio::spawn(async move { deployer.deploy("moving", hello()).await });
        upgrade(&mut fleet.platform).await.with_context(|| machine.log())?;
        cold.await??.expect(200).with_context(|| machine.log())?;
        deploy.await??.expect(if number == 0 { 201 } else { 200 }).with_context(|| machine.log())?;
        load.more(20).await?;
    }
    let ids = load.end().await.with_context(|| fleet.platform.log())?;
    println!("{} calls over TLS in 3 upgrades, 0 failed", ids.len());
    check_records(&user, "hello", ids).await
}

/// A frame of the hand-over.
fn frame(json: &str) -> Vec<u8> {
    [&(json.len() as u32).to_be_bytes(), json.as_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_fails_leaves_the_gateway_as_it_was() -> Result<()> {
    let mut platform = Platform::start(Form::TwoProcesses, &[]).await?;
    let user = platform.user().await?;
    user.deploy("hello", hello()).await?.expect(201)?;
    let load = Load::begin(platform.port(), &format!("/f/{}/hello", user.handle));
    load.more(20).await?;

    // Without the flag it is refused, and told of it.
    let status = ended(&mut platform.second_gateway(&[], &[])?).await?;
    ensure!(status.code() == Some(1) && said(&platform, "take its place by")? == 1, "{status}: {}", platform.log());
    // A setting that is wrong, and one of which it is seen only when the sockets are there.
    for (settings, code) in [(("JWT_SECRET", "short"), 64), (("FUNCTIONS_DIR", "/proc/nowhere"), 1)] {
        let failed = said(&platform, FAILED)?;
        let status = ended(&mut platform.second_gateway(&["--take-over"], &[settings])?).await?;
        ensure!(status.code() == Some(code), "{settings:?}: {status}\n{}", platform.log());
        until_said(&platform, FAILED, failed).await?;
        load.more(20).await?;
    }

    // One that waits for its database, and meanwhile a second one; then the first is killed.
    let (asked, failed) = (said(&platform, ASKED)?, said(&platform, FAILED)?);
    let nowhere = [("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")];
    let mut waiting = platform.second_gateway(&["--take-over"], &nowhere)?;
    until_said(&platform, ASKED, asked).await?;
    let status = ended(&mut platform.second_gateway(&["--take-over"], &[])?).await?;
    ensure!(status.code() == Some(1) && said(&platform, "another one is taking it")? == 1, "{}", platform.log());
    waiting.child.kill()?;
    waiting.child.wait()?;
    until_said(&platform, FAILED, failed).await?;
    load.more(20).await?;

    // One that is gone when agents have been told to link to it: they come back.
    let linked = said(&platform, "node linked")?;
    let mut stream = UnixStream::connect(platform.data_dir().join("hand-over.sock")).await?;
    stream.write_all(&frame(r#"{"word":"take","version":1}"#)).await?;
    ensure!(stream.read_u8().await? == 0, "no answer");
    stream.write_all(&frame(r#"{"word":"ready"}"#)).await?;
    until_said(&platform, "agents are told to link to it", 0).await?;
    load.more(20).await?;
    drop(stream);
    until_said(&platform, "node linked", linked).await?;
    load.more(20).await?;

    // After all that, one that does not fail.
    upgrade(&mut platform).await?;
    load.more(20).await?;
    let ids = load.end().await.with_context(|| platform.log())?;
    check_records(&user, "hello", ids).await?;
    // And where none runs, it starts as usual.
    platform.stop().await?;
    let alone = platform.second_gateway(&["--take-over"], &[])?;
    until_said(&platform, "no gateway runs here", 0).await?;
    drop(alone);
    Ok(())
}

/// A process that ends with this.
struct Stray(String);

impl Drop for Stray {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = Command::new("kill").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_upgrades_by_a_signal() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let notified = UnixDatagram::bind(folder.path().join("notify"))?;
    notified.set_read_timeout(Some(PATIENCE))?;
    let words = || -> Result<String> {
        let mut words = [0; 256];
        let length = notified.recv(&mut words).context("systemd is told nothing")?;
        Ok(String::from_utf8(words[..length].to_vec())?)
    };
    let socket = folder.path().join("notify").display().to_string();
    let mut platform = Platform::start(Form::Gateway, &[("NOTIFY_SOCKET", &socket)]).await?;
    let pid = |words: &str| -> Result<String> {
        let (pid, ready) = words.strip_prefix("MAINPID=").and_then(|rest| rest.split_once('\n')).context("no pid")?;
        ensure!(ready == "READY=1", "{words}");
        Ok(pid.to_owned())
    };
    let first = pid(&words()?)?;
    ensure!(Command::new("kill").args(["-USR2", &first]).status()?.success(), "no such process");
    let second = Stray(pid(&words()?)?);
    ensure!(second.0 != first, "it is the same process");
    let user = platform.user().await?;
    user.get("/api/auth/me").await?.expect(200)?;
    // The first one ends by itself, and well; the second answers.
    let status = ended(&mut platform.release_gateway()).await?;
    ensure!(status.success(), "{status}: {}", platform.log());
    user.get("/api/auth/me").await?.expect(200)?;
    Ok(())
}
