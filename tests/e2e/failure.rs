//! When a node fails: what was inside it is answered at once and never runs twice, nothing else fails, and it comes
//! back clean.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::archive::{archive, python};
use crate::client::Client;
use crate::fleet::{Fleet, Machine};
use crate::platform::until;

const PATIENCE: Duration = Duration::from_secs(60);
/// Functions of the file contract; beside them there is a server.
const FUNCTIONS: usize = 3;
const CALLERS: usize = 12;
/// Calls that are answered before and after each change.
const STEADY: usize = 300;

/// A call that was answered.
struct Call {
    name: String,
    id: String,
    status: u16,
    code: String,
    ended: Instant,
}

/// What all callers have had so far, and whether they go on.
#[derive(Default)]
struct Load {
    calls: Mutex<Vec<Call>>,
    is_over: AtomicBool,
}

/// A function that takes a moment, is kept warm on two nodes, and may be called by all callers at once.
fn file() -> Vec<u8> {
    let source = "sleep 0.03\nprintf '{\"body\":\"done\"}' >/result.json\n";
    archive(&[("main.sh", source), ("dartcloud.toml", "access = \"public\"\nconcurrency = 20\nmin_warm = 2\n")])
}

fn server() -> Vec<u8> {
    let source = "require('http').createServer((_, answer) => setTimeout(() => answer.end('done'), 30))\
                  .listen(process.env.PORT);";
    let manifest = "contract = \"http\"\naccess = \"public\"\nconcurrency = 20\nmin_warm = 2\n";
    archive(&[("index.js", source), ("dartcloud.toml", manifest)])
}

fn names() -> Vec<String> {
    (0..FUNCTIONS).map(|number| format!("file{number}")).chain(["server".to_owned()]).collect()
}

/// Calls one function after another until the end.
async fn call(user: Client, caller: usize, load: Arc<Load>) -> Result<()> {
    let names = names();
    for name in names.iter().cycle().skip(caller) {
        if load.is_over.load(Ordering::Relaxed) {
            break;
        }
        let answer = user.get(&format!("/f/{}/{name}", user.handle)).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (id, code) = (answer.headers["x-request-id"].to_str()?.to_owned(), text(&answer.body["code"]));
        let call = Call { name: name.clone(), id, status: answer.status, code, ended: Instant::now() };
        load.calls.lock().expect("no holder panics").push(call);
    }
    Ok(())
}

async fn more_calls(load: &Load) -> Result<()> {
    let count = || load.calls.lock().expect("no holder panics").len();
    let before = count();
    until("more calls are answered", PATIENCE, async || Ok((count() >= before + STEADY).then_some(()))).await
}

/// How many versions an agent keeps warm, by its metrics.
async fn until_kept(machine: &Machine, versions: usize) -> Result<()> {
    let line = format!("dartcloud_agent_kept_versions {versions}");
    let kept = async || {
        let Ok(answer) = reqwest::get(format!("http://127.0.0.1:{}/metrics", machine.ops)).await else {
            return Ok(None);
        };
        Ok(answer.text().await?.lines().any(|one| one == line).then_some(()))
    };
    until(&line, PATIENCE, kept).await.with_context(|| machine.log())
}

/// The containers of a node, by its id.
fn containers(node: &str) -> Result<BTreeSet<String>> {
    let label = format!("label=dartcloud.node={node}");
    let output = Command::new("docker").args(["ps", "-aq", "--no-trunc", "--filter", &label]).output()?;
    ensure!(output.status.success(), "docker ps: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

fn signal(machine: &Machine, signal: &str) -> Result<()> {
    let agent = machine.agent.as_ref().context("no agent runs")?;
    let sent = Command::new("kill").args([signal, &agent.child.id().to_string()]).status()?;
    ensure!(sent.success(), "kill {signal} failed");
    Ok(())
}

/// Pulls the plug of one of the machines under load, and lets it come back.
async fn pull_and_return(fleet: &Fleet, machines: &mut [Machine], load: &Load) -> Result<(Instant, String)> {
    let all = FUNCTIONS + 1;
    more_calls(load).await?;
    let nodes = fleet.nodes().await?;
    let victim = nodes.iter().max_by_key(|node| node["busy"].as_u64()).context("no node")?;
    let (id, name) = (victim["id"].as_str().unwrap_or_default(), victim["name"].as_str().unwrap_or_default());
    let place: usize = name.parse()?;
    let before = containers(id)?;
    let mut figures = format!("a node with {} calls and {} containers was killed; ", victim["busy"], before.len());

    let pulled = Instant::now();
    let mut agent = machines[place].agent.take().context("no agent runs")?;
    agent.child.kill()?;
    agent.child.wait()?;
    fleet.until_state(name, "lost").await?;
    figures += &format!("lost after {:?}, ", pulled.elapsed());
    for (number, machine) in machines.iter().enumerate() {
        if number != place {
            until_kept(machine, all).await?;
        }
    }
    figures += &format!("all warm on the others after {:?}, ", pulled.elapsed());
    more_calls(load).await?;

    let returned = Instant::now();
    machines[place].run(name, "dartcloud-node-agent")?;
    fleet.until_state(name, "linked").await.with_context(|| machines[place].log())?;
    figures += &format!("linked again {:?} after its start", returned.elapsed());
    let clean = async || Ok(containers(id)?.is_disjoint(&before).then_some(()));
    until("the containers of its former life are removed", PATIENCE, clean).await?;
    more_calls(load).await?;
    Ok((pulled, figures))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_dies_under_load() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let mut machines = try_join_all(["0", "1", "2"].map(|name| fleet.machine(name))).await?;
    let user = &fleet.operator;
    for number in 0..FUNCTIONS {
        user.deploy(&format!("file{number}"), file()).await?.expect(201)?;
    }
    user.deploy("server", server()).await?.expect(201)?;

    let load = Arc::new(Load::default());
    // Tasks of their own, so that nothing that is done meanwhile holds them up.
    let callers: Vec<_> = (0..CALLERS).map(|caller| tokio::spawn(call(user.clone(), caller, load.clone()))).collect();
    let pulled = pull_and_return(&fleet, &mut machines, &load).await;
    load.is_over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await??;
    }
    let (pulled, figures) = pulled?;
    println!("{figures}");

    let calls: Vec<_> = load.calls.lock().expect("no holder panics").drain(..).collect();
    let failed: Vec<_> = calls.iter().filter(|call| call.status != 200).collect();
    let late = failed.iter().map(|call| call.ended.saturating_duration_since(pulled)).max().unwrap_or_default();
    println!("{} calls, {} lost, the last of them answered after {late:?}", calls.len(), failed.len());
    for call in &failed {
        ensure!(call.status == 502 && call.code == "node_lost", "{}: {} {}", call.name, call.status, call.code);
    }
    ensure!((1..=CALLERS).contains(&failed.len()), "{} calls failed", failed.len());
    ensure!(late < Duration::from_secs(2) && failed.iter().all(|call| call.ended >= pulled), "answered after {late:?}");
    for name in names() {
        let mut answers: BTreeMap<_, _> =
            calls.iter().filter(|call| call.name == name).map(|call| (call.id.as_str(), call.status)).collect();
        let successes = answers.values().filter(|status| **status == 200).count();
        let records = user.records(&name, successes).await?;
        // Each once, and of a lost call one at most.
        for record in &records {
            let id = record["id"].as_str().unwrap_or_default();
            ensure!(answers.remove(id).is_some(), "{name}: two records of one call, or of none: {record}");
        }
        ensure!(answers.values().all(|status| *status == 502), "{name}: no record of {answers:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_falls_silent() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let machines = try_join_all(["0", "1"].map(|name| fleet.machine(name))).await?;
    let user = &fleet.operator;
    user.deploy("slow", python("time.sleep(request['body'])\nanswer('late')")).await?.expect(201)?;
    let caller = user.clone();
    let call = tokio::spawn(async move { caller.invoke("slow", json!(4)).await });
    let place: usize = until("the call is under way", PATIENCE, async || {
        let nodes = fleet.nodes().await?;
        let busy = nodes.iter().find(|node| node["busy"] == 1);
        Ok(busy.and_then(|node| node["name"].as_str()).map(str::to_owned))
    })
    .await?
    .parse()?;
    let name = place.to_string();

    // Its connections stay open, as those of a machine do whose cable is pulled.
    let stopped = Instant::now();
    signal(&machines[place], "-STOP")?;
    let ended = async {
        let answer = call.await??;
        Ok::<_, anyhow::Error>((answer, stopped.elapsed()))
    };
    let meanwhile = async {
        fleet.until_state(&name, "suspected").await?;
        let suspected = stopped.elapsed();
        user.invoke("slow", json!(0)).await?.expect(200)?;
        let answered = stopped.elapsed();
        fleet.until_state(&name, "lost").await?;
        Ok::<_, anyhow::Error>((suspected, answered, stopped.elapsed()))
    };
    let (ended, meanwhile) = tokio::join!(ended, meanwhile);
    signal(&machines[place], "-CONT")?;
    let ((answer, ended), (suspected, answered, lost)) = (ended?, meanwhile?);
    println!(
        "suspected after {suspected:?}, a call elsewhere done after {answered:?}, lost after {lost:?}, its call answered after {ended:?}"
    );
    answer.expect_error(502, "node_lost")?;
    let seconds = Duration::from_secs;
    ensure!(suspected >= seconds(1) && suspected < seconds(5) && answered < seconds(9), "too soon, or too late");
    ensure!(lost >= seconds(9) && ended >= seconds(9) && ended < lost + seconds(2), "too soon, or too late");

    // It comes back, and what it ran meanwhile has its record.
    fleet.until_state(&name, "linked").await.with_context(|| machines[place].log())?;
    let records = user.records("slow", 2).await?;
    ensure!(records.len() == 2, "{records:?}");
    user.invoke("slow", json!(0)).await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_never_start_eject_no_node() -> Result<()> {
    let fleet = Fleet::start(&[("FUNCTION_CEILING_MEMORY_MB", "4096")]).await?;
    let machines = try_join_all(["0", "1"].map(|name| fleet.machine(name))).await?;
    let user = &fleet.operator;
    let file =
        archive(&[("main.sh", "printf '{\"body\":1}' >/result.json\n"), ("dartcloud.toml", "memory_mb = 3000\n")]);
    let manifest = "contract = \"http\"\nmemory_mb = 3000\n";
    let server = archive(&[("index.js", "require('http')"), ("dartcloud.toml", manifest)]);
    for (name, archive) in [("file", file), ("server", server)] {
        user.deploy(name, archive).await?.expect(201)?;
    }
    // By turns, more often than would do.
    for _ in 0..8 {
        for name in ["file", "server"] {
            user.invoke(name, json!({})).await?.expect_error(502, "function_crashed")?;
        }
    }
    let metrics = fleet.platform.metrics().await?;
    ensure!(metrics.contains("\ndartcloud_gateway_ejections_total 0\n"), "a node was ejected");
    for name in ["file", "server"] {
        let record = &user.records(name, 1).await?[0];
        ensure!(record.to_string().contains("SANDBOX_MEMORY_MB"), "{record}\n{}", machines[0].log());
    }
    Ok(())
}
