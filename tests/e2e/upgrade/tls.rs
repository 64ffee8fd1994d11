//! Upgrades of a gateway whose public listener speaks TLS: clients of HTTP/1.1 and of HTTP/2, streams and WebSockets.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future;
use reqwest::{Client as Http, Response, Version};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::load::{Caller, Calls as _, Http2Caller, Load, Server};
use super::{PATIENCE, check_records, ended, hello, server, succeed, until_gone};
use crate::client::Client;
use crate::platform::{Form, until};
use crate::tls::Certificates;
use crate::websocket::WebSocket;

const UPGRADES: usize = 4;
const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// An answer that comes bit by bit, and its id.
async fn stream(http: &Http, url: &str, version: Version) -> Result<(Response, String)> {
    let mut answer = http.get(url).send().await?.error_for_status()?;
    ensure!(answer.version() == version, "{:?}", answer.version());
    let id = answer.headers().get("x-request-id").context("no id")?.to_str()?.to_owned();
    answer.chunk().await?.context("nothing came")?;
    Ok((answer, id))
}

/// A WebSocket of the function.
async fn websocket(certificates: &Certificates, port: u16, path: &str) -> Result<WebSocket<TlsStream<TcpStream>>> {
    WebSocket::over(certificates.handshake(port, HTTP1).await?, &format!("{path}/socket")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_under_tls_fail_no_call_of_either_protocol() -> Result<()> {
    let certificates = Certificates::make()?;
    let mut platform = certificates.platform(Form::TwoProcesses, &[]).await?;
    let user = platform.user().await?;
    user.deploy("hello", hello()).await?.expect(201)?;
    user.deploy("server", server()).await?.expect(201)?;
    let (path, server_path) = (format!("/f/{}/hello", user.handle), format!("/f/{}/server", user.handle));
    let [url, ticks] = [&path, &format!("{server_path}/ticks")].map(|path| format!("{}{path}", platform.url()));
    user.get(&format!("{server_path}/count")).await?.expect(200)?;

    // Some keep a connection, some share one, some open one for each call.
    let tls = Server::Tls(platform.port(), certificates.connector(HTTP1)?);
    let (shared, single) = (platform.http().build()?, platform.http().pool_max_idle_per_host(0).build()?);
    let old = platform.http().http1_only().build()?;
    let (mut load, mut ids) = (Load::default(), Vec::new());
    for number in 0..4 {
        load.add(Caller::new(&tls, &path, number < 2));
        load.add(Http2Caller::new(if number < 2 { &shared } else { &single }, &url));
    }
    for number in 0..UPGRADES {
        load.more(50).await?;
        // What is open at that moment: streams, a WebSocket, and connections that are silent.
        let (one, _) = stream(&old, &ticks, Version::HTTP_11).await?;
        let (two, _) = stream(&user.http, &ticks, Version::HTTP_2).await?;
        let mut socket = websocket(&certificates, platform.port(), &server_path).await?;
        let mut silent = Caller::new(&tls, &path, true);
        ids.push(silent.call().await?);
        let idle = platform.http().build()?;
        let mut idle = Http2Caller::new(&idle, &url);
        ids.push(idle.call().await?);

        let mut before = succeed(&mut platform).await?;
        socket.send("still there").await?;
        ensure!(socket.receive().await? == "still there");
        ids.push(silent.call().await.context("on a connection that was silent")?);
        ensure!(silent.closes, "it is not asked to go");
        ids.push(idle.call().await.context("on a connection of HTTP/2 that was silent")?);
        for mut open in [one, two] {
            let (mut rest, version) = (Vec::new(), open.version());
            while let Some(chunk) = open.chunk().await.with_context(|| format!("a stream of {version:?} was cut"))? {
                rest.extend(chunk);
            }
            ensure!(rest.ends_with(b"end\n"), "{version:?} lost its end: {:?}", String::from_utf8_lossy(&rest));
        }
        drop(socket);
        let status = ended(&mut before).await?;
        ensure!(status.success(), "the gateway before ended with {status}:\n{}", platform.log());
        load.more(50).await?;
        until_gone(&platform, number).await?;
    }
    ids.extend(load.end().await.with_context(|| platform.log())?);
    println!("{} calls over TLS by both protocols in {UPGRADES} upgrades, 0 failed", ids.len());
    check_records(&user, "hello", ids).await
}

/// Whether the function sees that nobody is there any more.
async fn until_left(user: &Client, server_path: &str) -> Result<()> {
    until("the function sees its clients go", PATIENCE, async || {
        let count = user.get(&format!("{server_path}/count")).await?.expect(200)?;
        Ok((count["open"] == 0).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlasts_the_drain_goes_on_until_then_and_is_seen_to_be_cut() -> Result<()> {
    const DRAIN: Duration = Duration::from_secs(5);
    let certificates = Certificates::make()?;
    let seconds = DRAIN.as_secs().to_string();
    let mut platform = certificates.platform(Form::TwoProcesses, &[("DRAIN_SECONDS", &seconds)]).await?;
    let user = platform.user().await?;
    user.deploy("server", server()).await?.expect(201)?;
    let server_path = format!("/f/{}/server", user.handle);
    let url = format!("{}{server_path}/forever", platform.url());
    let old = platform.http().http1_only().build()?;
    let (one, first) = stream(&old, &url, Version::HTTP_11).await?;
    let (two, second) = stream(&user.http, &url, Version::HTTP_2).await?;
    let mut socket = websocket(&certificates, platform.port(), &server_path).await?;

    let mut before = succeed(&mut platform).await?;
    let since = Instant::now();
    // The successor answers; what is open is still the predecessor's.
    let count = user.get(&format!("{server_path}/count")).await?.expect(200)?;
    ensure!(count["open"] == 3, "{count}");
    socket.send("still there").await?;
    ensure!(socket.receive().await? == "still there");
    let cut = async |mut open: Response| {
        let (version, rest) = (open.version(), timeout(PATIENCE, open.chunk()).await?);
        ensure!(rest.is_err(), "a stream of {version:?} that was cut looks whole: {rest:?}");
        Ok::<_, anyhow::Error>(since.elapsed())
    };
    let closed = async {
        timeout(PATIENCE, socket.closed()).await??;
        Ok::<_, anyhow::Error>(since.elapsed())
    };
    let (one, two, three) = future::try_join3(cut(one), cut(two), closed).await?;
    // The moment was seen a little later than it was.
    for lasted in [one, two, three] {
        ensure!(lasted > DRAIN - Duration::from_secs(1), "cut before its time: {one:?} {two:?} {three:?}");
    }
    println!("of HTTP/1.1 {one:?}, of HTTP/2 {two:?}, a WebSocket {three:?} went on, of {DRAIN:?}");
    let status = ended(&mut before).await?;
    ensure!(status.success(), "the gateway before ended with {status}:\n{}", platform.log());
    until_left(&user, &server_path).await?;
    until("both streams have their records", PATIENCE, async || {
        let records = user.records("server", 2).await?;
        let has = |id: &str| records.iter().any(|record| record["id"] == id);
        Ok((has(&first) && has(&second)).then_some(()))
    })
    .await
}
