//! The http contract: functions that are servers, called as any server is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::archive::{archive, example};
use crate::client::{Answer, Client};
use crate::platform::{Form, Platform, until};
use crate::shared;
use crate::websocket::{WebSocket, opening, raw};

const PATIENCE: Duration = Duration::from_secs(30);
const MIB: u64 = 1024 * 1024;

/// The server of the tests, with these lines in its manifest.
fn probe(manifest: &str) -> Vec<u8> {
    let manifest = format!("contract = \"http\"\naccess = \"public\"\n{manifest}\n");
    archive(&[("index.js", include_str!("programs/probe.js")), ("dartcloud.toml", &manifest)])
}

async fn deployed(manifest: &str) -> Result<(&'static Platform, Client, String)> {
    let platform = shared().await?;
    let user = platform.user().await?;
    user.deploy("probe", probe(manifest)).await?.expect(201)?;
    let path = format!("/f/{}/probe", user.handle);
    Ok((platform, user, path))
}

/// How many streams the server has open.
async fn count(user: &Client, path: &str) -> Result<Value> {
    user.get(&format!("{path}/count")).await?.expect(200)
}

/// What a real framework's example does.
async fn check_example(name: &str) -> Result<()> {
    let platform = shared().await?;
    let user = platform.user().await?;
    user.deploy(name, example(name)).await?.expect(201)?;
    let path = format!("/f/{}/{name}", user.handle);
    ensure!(user.get(&format!("{path}/?name=Ada")).await?.expect(200)?["message"] == "Hello, Ada!");
    let posted = user.post(&format!("{path}/"), &json!({"name": "Grace"})).await?.expect(200)?;
    ensure!(posted["message"] == "Hello, Grace!", "{posted}");
    let invoked = user.invoke(name, json!({"name": "Alan"})).await?.expect(200)?;
    ensure!(invoked == json!({"success": true, "result": {"message": "Hello, Alan!"}}), "{invoked}");
    let shown = user.get(&format!("/api/functions/{name}")).await?.expect(200)?;
    ensure!(shown["contract"] == "http" && shown["idleTimeoutMs"] == 60_000, "{shown}");

    // What it printed is in the record of the call that it was printed in.
    let records = user.records(name, 3).await?;
    let greeting = records.last().context("no record")?;
    let stdout = greeting["logs"]["container"]["stdout"].as_str().unwrap_or_default();
    ensure!(stdout.contains("greeting Ada"), "{greeting}");
    ensure!(greeting["status"] == "success" && greeting["logs"]["metadata"]["status_code"] == 200, "{greeting}");

    // Events come one by one, not when the stream ends, which it never does.
    let mut events = user.request("GET", &format!("{path}/events?ms=300")).send().await?.bytes_stream();
    let began = Instant::now();
    for id in 0..3 {
        let event = events.next().await.context("the stream ended")??;
        let text = String::from_utf8_lossy(&event);
        ensure!(text.starts_with(&format!("id: {id}\n")) && text.matches("data:").count() == 1, "{text:?}");
    }
    ensure!(began.elapsed() >= Duration::from_millis(500), "events came at once");

    let mut socket = WebSocket::open(platform.port(), &format!("{path}/echo")).await?;
    for word in ["one", "two", "three"] {
        socket.send(word).await?;
        ensure!(socket.receive().await? == word);
    }
    Ok(())
}

#[tokio::test]
async fn express() -> Result<()> {
    check_example("hello-express").await
}

#[tokio::test]
async fn fastapi() -> Result<()> {
    check_example("hello-fastapi").await
}

/// A client's body of so many MiB.
fn upload(mib: u64) -> reqwest::Body {
    let chunk = Bytes::from(vec![b'x'; MIB as usize]);
    reqwest::Body::wrap_stream(stream::iter((0..mib).map(move |_| Ok::<_, std::io::Error>(chunk.clone()))))
}

async fn download(client: &Client, path: &str) -> Result<u64> {
    let mut body = client.request("GET", path).send().await?.error_for_status()?.bytes_stream();
    let mut bytes = 0;
    while let Some(chunk) = body.next().await {
        bytes += chunk?.len() as u64;
    }
    Ok(bytes)
}

#[tokio::test]
async fn large_streams_leave_no_trace_in_memory() -> Result<()> {
    let platform = Platform::start(Form::TwoProcesses, &[]).await?;
    let user = platform.user().await?;
    user.deploy("large", example("hello-express")).await?.expect(201)?;
    let path = format!("/f/{}/large", user.handle);
    // One small turn each, so that what is made once is there.
    let sent = Answer::of(user.request("PUT", &format!("{path}/upload")).body(upload(1)).send().await?).await?;
    ensure!(sent.expect(200)? == json!({"bytes": MIB}));
    ensure!(download(&user, &format!("{path}/download/{MIB}")).await? == MIB);
    let before = platform.peak_memory()?;
    let sent = Answer::of(user.request("PUT", &format!("{path}/upload")).body(upload(200)).send().await?).await?;
    ensure!(sent.expect(200)? == json!({"bytes": 200 * MIB}));
    ensure!(download(&user, &format!("{path}/download/{}", 200 * MIB)).await? == 200 * MIB);
    for (name, before, after) in platform.peak_memory()?.into_iter().zip(before).map(|(a, b)| (a.0, b.1, a.1)) {
        ensure!(after < before + 24 * MIB, "{name} grew from {before} to {after} bytes");
    }
    Ok(())
}

#[tokio::test]
async fn a_request_and_its_answer_pass_as_they_are() -> Result<()> {
    let (_, user, path) = deployed("[env]\nGREETING = 'hello'").await?;
    let request = user.with_token("").request("DELETE", &format!("{path}/?a=1&a=%202")).header("x-mine", "1");
    let request = request.header("authorization", "Basic abc").header("dartcloud-form", "envelope");
    let seen = Answer::of(request.send().await?).await?.expect(200)?;
    ensure!(seen["method"] == "DELETE" && seen["url"] == "/?a=1&a=%202", "{seen}");
    let headers = &seen["headers"];
    ensure!(headers["x-mine"] == "1" && headers["x-forwarded-for"] == "127.0.0.1", "{seen}");
    ensure!(headers["authorization"] == "Basic abc", "a public function's own credential: {seen}");
    ensure!(headers.as_object().context("no headers")?.keys().all(|name| !name.starts_with("dartcloud-")), "{seen}");
    ensure!(seen["env"]["GREETING"] == "hello" && seen["env"]["PORT"] == "8080", "{seen}");

    let response = user.request("GET", &format!("{path}/status")).send().await?;
    ensure!(response.status() == 418 && response.headers()["x-own"] == "kept", "{response:?}");
    ensure!(response.headers().get_all("set-cookie").iter().count() == 2, "{response:?}");
    ensure!(response.headers()["server-timing"].to_str()?.contains("fn;dur="), "{response:?}");
    let names: Vec<_> = response.headers().keys().map(|name| name.as_str().to_owned()).collect();
    ensure!(!names.iter().any(|name| name.starts_with("dartcloud-") || name == "keep-alive"), "{names:?}");
    ensure!(response.text().await? == "short and stout");

    let head = user.request("HEAD", &format!("{path}/status")).send().await?;
    ensure!(head.status() == 418 && head.headers()["content-length"] == "15", "{head:?}");
    let echoed = user.request("POST", &format!("{path}/echo")).body(upload(3)).send().await?.bytes().await?;
    ensure!(echoed.len() as u64 == 3 * MIB && echoed.iter().all(|byte| *byte == b'x'));
    let (_stream, refused) = raw(shared().await?.port(), &format!("POST {path}/status HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n")).await?;
    ensure!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_description_becomes_a_real_request() -> Result<()> {
    let (_, user, _) = deployed("").await?;
    let envelope =
        json!({"method": "PUT", "path": "/", "query": {"q": "a b"}, "headers": {"x-mine": "1"}, "body": {"n": 1}});
    let seen = user.post("/api/functions/probe/invoke", &envelope).await?.expect(200)?;
    ensure!(seen["success"] == true && seen["result"]["method"] == "PUT", "{seen}");
    ensure!(seen["result"]["url"] == "/?q=a%20b" && seen["result"]["headers"]["x-mine"] == "1", "{seen}");
    ensure!(seen["result"]["headers"]["content-type"] == "application/json", "{seen}");
    let text = user.post("/api/functions/probe/invoke", &json!({"path": "/status"})).await?.expect(200)?;
    ensure!(text["result"] == "short and stout", "{text}");
    Ok(())
}

#[tokio::test]
async fn who_leaves_closes_the_functions_connection() -> Result<()> {
    let (platform, user, path) = deployed("timeout_ms = 60000").await?;
    // With an answer under way, and before one.
    let mut begun = user.request("GET", &format!("{path}/forever")).send().await?.bytes_stream();
    ensure!(begun.next().await.context("nothing came")?? == "begun\n");
    let silent = tokio::spawn(user.request("GET", &format!("{path}/silent")).send());
    let socket = WebSocket::open(platform.port(), &format!("{path}/socket")).await?;
    until("all three are open", PATIENCE, async || Ok((count(&user, &path).await?["open"] == 3).then_some(()))).await?;
    drop(begun);
    silent.abort();
    drop(socket);
    until("all three are closed", PATIENCE, async || Ok((count(&user, &path).await?["open"] == 0).then_some(())))
        .await?;
    // Calls that count what is open have records, too, and may be shipped first.
    let expected = [("/forever", "success"), ("/socket", "success"), ("/silent", "error")];
    for (url, status) in expected {
        until(&format!("{url} has its record"), PATIENCE, async || {
            let records = user.records("probe", 1).await?;
            let of = records.iter().find(|record| record["requestInfo"]["path"] == url);
            let Some(record) = of else { return Ok(None) };
            ensure!(record["status"] == status, "{record}");
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_concurrency_holds_for_the_whole_of_a_stream() -> Result<()> {
    let (platform, user, path) = deployed("concurrency = 2\ntimeout_ms = 60000").await?;
    let mut begun = user.request("GET", &format!("{path}/forever")).send().await?.bytes_stream();
    begun.next().await.context("nothing came")??;
    let socket = WebSocket::open(platform.port(), &format!("{path}/socket")).await?;
    let limited = user.get(&path).await?;
    ensure!(limited.headers.contains_key("retry-after"), "{limited:?}");
    limited.expect_error(429, "concurrency_limited")?;
    drop(begun);
    until("a place is free", PATIENCE, async || Ok((user.get(&path).await?.status == 200).then_some(()))).await?;
    drop(socket);
    Ok(())
}

#[tokio::test]
async fn calls_are_in_one_server_at_once() -> Result<()> {
    let (_, user, path) = deployed("concurrency = 20\ntimeout_ms = 20000").await?;
    count(&user, &path).await?;
    let began = Instant::now();
    let path = format!("{path}/slow");
    let calls = futures_util::future::try_join_all((0..10).map(|_| user.get(&path))).await?;
    ensure!(calls.iter().all(|answer| answer.status == 200 && answer.body == "slow"), "{calls:?}");
    ensure!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_crash_is_told_and_the_next_call_works() -> Result<()> {
    let (_, user, path) = deployed("timeout_ms = 20000").await?;
    count(&user, &path).await?;
    let crashed = user.get(&format!("{path}/crash")).await?.expect_error(502, "function_crashed")?;
    ensure!(crashed["error"].as_str().is_some_and(|text| text.contains("exit code 3")), "{crashed}");
    ensure!(count(&user, &path).await?["opened"] == 0);
    let cut = user.request("GET", &format!("{path}/begun-then-crash")).send().await?;
    ensure!(cut.status() == 200 && cut.bytes().await.is_err(), "the answer must not look whole");
    ensure!(count(&user, &path).await?["opened"] == 0);
    user.get(&format!("{path}/hang-up")).await?.expect_error(502, "function_crashed")?;
    user.invoke("probe", json!(1)).await?.expect(200)?;
    let records = user.records("probe", 7).await?;
    let failed: Vec<_> = records.iter().filter(|record| record["status"] == "error").collect();
    ensure!(failed.len() == 3, "{records:?}");
    let said =
        |record: &&&Value| record["logs"]["container"]["stderr"].as_str().is_some_and(|text| text.contains("oh no"));
    ensure!(failed.iter().filter(said).count() == 2, "{failed:?}");
    Ok(())
}

#[tokio::test]
async fn want_of_memory_is_told() -> Result<()> {
    let (_, user, path) = deployed("timeout_ms = 20000\nmemory_mb = 64").await?;
    count(&user, &path).await?;
    user.get(&format!("{path}/memory")).await?.expect_error(502, "out_of_memory")?;
    ensure!(count(&user, &path).await?["opened"] == 0);
    Ok(())
}

#[tokio::test]
async fn time_is_kept_in_all_and_in_silence() -> Result<()> {
    let (platform, user, path) = deployed("timeout_ms = 3000\nidle_timeout_ms = 500").await?;
    count(&user, &path).await?;
    let late = user.get(&format!("{path}/silent")).await?.expect_error(504, "timeout")?;
    ensure!(late["error"].as_str().is_some_and(|text| text.contains("silent for 500ms")), "{late}");
    let cut = user.request("GET", &format!("{path}/begun-then-silent")).send().await?;
    ensure!(cut.status() == 200 && cut.bytes().await.is_err(), "the answer must not look whole");
    // A socket lives as long as something is said, and no longer than the call may take.
    let mut socket = WebSocket::open(platform.port(), &format!("{path}/socket")).await?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        socket.send("on").await?;
        ensure!(socket.receive().await? == "on");
    }
    let quiet = Instant::now();
    socket.closed().await?;
    ensure!(quiet.elapsed() < Duration::from_millis(1400), "{:?}", quiet.elapsed());
    // The call's time runs from its request on, of which the upgrade is a part.
    let began = Instant::now();
    let mut socket = WebSocket::open(platform.port(), &format!("{path}/socket")).await?;
    while socket.send("on").await.is_ok() && socket.receive().await.is_ok() {
        ensure!(began.elapsed() < Duration::from_secs(10), "it goes on");
    }
    ensure!(began.elapsed() >= Duration::from_millis(2900), "{:?}", began.elapsed());
    until("both are closed", PATIENCE, async || Ok((count(&user, &path).await?["open"] == 0).then_some(()))).await?;
    Ok(())
}

#[tokio::test]
async fn a_function_that_does_not_listen_is_told_how() -> Result<()> {
    let user = shared().await?.user().await?;
    let manifest = ("dartcloud.toml", "contract = 'http'\naccess = 'public'\n");
    let check = async |name: &str, program: &str, part: &str| -> Result<()> {
        user.deploy(name, archive(&[("index.js", program), manifest])).await?.expect(201)?;
        let path = format!("/f/{}/{name}", user.handle);
        for answer in futures_util::future::join_all((0..3).map(|_| user.get(&path))).await {
            let error = answer?.expect_error(502, "function_crashed")?;
            ensure!(error["error"].as_str().is_some_and(|text| text.contains(part)), "{error}");
        }
        let records = user.records(name, 3).await?;
        let said = |record: &&Value| record["logs"]["container"]["stdout"] == "up\n";
        ensure!(records.iter().any(|record| said(&record)), "{records:?}");
        Ok(())
    };
    check("deaf", "console.log('up'); setInterval(() => {}, 1000);", "listen on $PORT").await?;
    check("done", "console.log('up');", "listens on $PORT").await?;
    check("broken", "console.log('up'); process.exit(4);", "exit code 4").await
}

#[tokio::test]
async fn only_servers_go_over_to_websockets() -> Result<()> {
    let (platform, user, path) = deployed("").await?;
    // The server itself refuses what has no listener for it; an unknown protocol is an ordinary request.
    let request = opening(&path).replace("Upgrade: websocket", "Upgrade: h2c");
    let (_stream, head) = raw(platform.port(), &request).await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    // To a function of the file contract, the wish is nothing.
    user.deploy("files", crate::archive::script("printf '{\"body\":\"file\"}' >/result.json")).await?.expect(201)?;
    let (_stream, head) = raw(platform.port(), &opening(&format!("/f/{}/files", user.handle))).await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(())
}

#[tokio::test]
async fn a_stream_that_a_crash_cuts_off_has_its_record() -> Result<()> {
    let mut platform = Platform::start(Form::TwoProcesses, &[]).await?;
    let user = platform.user().await?;
    user.deploy("probe", probe("timeout_ms = 60000")).await?.expect(201)?;
    let path = format!("/f/{}/probe", user.handle);
    let mut begun = user.request("GET", &format!("{path}/forever")).send().await?.bytes_stream();
    begun.next().await.context("nothing came")??;
    let socket = WebSocket::open(platform.port(), &format!("{path}/socket")).await?;
    platform.kill()?;
    drop((begun, socket));
    platform.launch().await?;
    let records = user.records("probe", 2).await?;
    for record in &records {
        let error = record["error"].as_str().unwrap_or_default();
        ensure!(record["status"] == "error" && error.contains("The node stopped"), "{record}");
    }
    ensure!(records.len() == 2, "{records:?}");
    Ok(())
}

#[tokio::test]
async fn a_websocket_keeps_its_seat() -> Result<()> {
    let platform = Platform::start(Form::Dev, &[("MAX_CONNECTIONS_PER_ADDRESS", "6")]).await?;
    let user = platform.user().await?;
    user.deploy("probe", probe("concurrency = 20\ntimeout_ms = 60000")).await?.expect(201)?;
    let path = format!("/f/{}/probe/socket", user.handle);
    let mut sockets = Vec::new();
    let refused = loop {
        match WebSocket::open(platform.port(), &path).await {
            Ok(socket) => sockets.push(socket),
            Err(refused) => break refused.to_string(),
        }
        ensure!(sockets.len() <= 6, "more than there are seats");
    };
    ensure!(sockets.len() >= 4 && refused.contains("503"), "{} are open: {refused}", sockets.len());
    sockets.clear();
    let again = async || Ok(WebSocket::open(platform.port(), &path).await.ok());
    until("their seats are free", PATIENCE, again).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_still_starts_ends_with_its_version() -> Result<()> {
    let platform = Platform::start(Form::Dev, &[("SANDBOX_BLANKS", "0")]).await?;
    let user = platform.user().await?;
    let program = "const server = require('http').createServer((request, answer) => answer.end('1'));\n\
        setTimeout(() => server.listen(process.env.PORT), 5000);";
    let manifest = ("dartcloud.toml", "contract = 'http'\naccess = 'public'\n");
    let version = |program: &str| archive(&[("index.js", program), manifest]);
    user.deploy("slow", version(program)).await?.expect(201)?;
    let path = format!("/f/{}/slow", user.handle);
    let replaced = async {
        until("a sandbox starts", PATIENCE, async || Ok((!platform.containers()?.is_empty()).then_some(()))).await?;
        user.deploy("slow", version("// the next one")).await?.expect(200)
    };
    let (answer, replaced) = tokio::join!(user.get(&path), replaced);
    replaced?;
    let answer = answer?.expect(200)?;
    ensure!(answer == 1, "{answer}");
    until("no container is left", PATIENCE, async || Ok((platform.containers()?.is_empty()).then_some(()))).await?;
    Ok(())
}

#[tokio::test]
async fn an_idle_server_gives_its_memory_back() -> Result<()> {
    let settings = [("SANDBOX_MEMORY_MB", "200"), ("SANDBOX_START_SECONDS", "30"), ("SANDBOX_BLANKS", "0")];
    let platform = Platform::start(Form::Dev, &settings).await?;
    let user = platform.user().await?;
    for name in ["one", "two"] {
        user.deploy(name, probe("")).await?.expect(201)?;
    }
    for name in ["one", "two", "one"] {
        user.get(&format!("/f/{}/{name}/count", user.handle)).await?.expect(200)?;
    }
    // A new version ends the server of the old one, idle or not.
    user.deploy("one", probe("memory_mb = 100")).await?.expect(200)?;
    until("no container is left", PATIENCE, async || Ok((platform.containers()?.is_empty()).then_some(()))).await?;
    Ok(())
}
