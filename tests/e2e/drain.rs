//! Nodes that are drained, started anew as for another version, and taken back under load: no call fails, what is warm on
//! one is warm on the other before its calls go there, and a node that is drained is empty.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::json;

use crate::archive::{archive, script};
use crate::client::Client;
use crate::fleet::{Fleet, Machine};
use crate::platform::until;

const PATIENCE: Duration = Duration::from_secs(60);
/// How often a node is drained.
const ROUNDS: usize = 10;
/// Functions, and how many call each.
const FUNCTIONS: [(&str, usize); 3] = [("native", 1), ("server", 2), ("kept", 2)];
/// Calls that are answered before and after each change.
const STEADY: usize = 100;

/// A call that was answered.
struct Call {
    name: &'static str,
    id: String,
    status: u16,
    timing: String,
    begun: Instant,
}

/// What all callers have had so far, and whether they go on.
#[derive(Default)]
struct Load {
    calls: Mutex<Vec<Call>>,
    is_over: AtomicBool,
}

impl Load {
    fn count(&self) -> usize {
        self.calls.lock().expect("no holder panics").len()
    }

    async fn more(&self) -> Result<()> {
        let before = self.count();
        until("more calls are answered", PATIENCE, async || Ok((self.count() >= before + STEADY).then_some(()))).await
    }
}

/// A process of the file contract, made by nobody's build.
fn native() -> Vec<u8> {
    script("sleep 0.02; printf '{\"body\":\"done\"}' >/result.json")
}

fn kept() -> Vec<u8> {
    let source = "sleep 0.02\nprintf '{\"body\":\"done\"}' >/result.json\n";
    archive(&[("main.sh", source), ("dartcloud.toml", "access = \"public\"\nmin_warm = 2\n")])
}

fn server() -> Vec<u8> {
    let source = "require('http').createServer((_, answer) => setTimeout(() => answer.end('done'), 20))\
                  .listen(process.env.PORT);";
    archive(&[("index.js", source), ("dartcloud.toml", "contract = \"http\"\naccess = \"public\"\n")])
}

/// Calls a function again and again on one connection.
async fn call(user: Client, name: &'static str, load: Arc<Load>) -> Result<()> {
    let user = Client { http: reqwest::Client::builder().timeout(PATIENCE).build()?, ..user };
    while !load.is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = user.get(&format!("/f/{}/{name}", user.handle)).await?;
        let header = |name: &str| Ok::<_, anyhow::Error>(answer.headers[name].to_str()?.to_owned());
        let (id, timing) = (header("x-request-id")?, header("server-timing")?);
        let call = Call { name, id, status: answer.status, timing, begun };
        load.calls.lock().expect("no holder panics").push(call);
    }
    Ok(())
}

/// When a node was drained, how long it took until it was empty, and when it was to be taken back.
type Drained = (Instant, Duration, Instant);

/// Drains the node with the most calls, lets its agent end and start once nothing is warm there any more, and takes it back.
async fn drain_and_return(fleet: &Fleet, machines: &mut [Machine], load: &Load) -> Result<Drained> {
    load.more().await?;
    let nodes = fleet.nodes().await?;
    let busiest = nodes.iter().max_by_key(|node| node["busy"].as_u64()).context("no node")?;
    let name = busiest["name"].as_str().context("no name")?.to_owned();
    let order = format!("/api/nodes/{}/drain", busiest["id"].as_str().context("no id")?);
    fleet.operator.post(&order, &json!({})).await?.expect(204)?;
    // What begins from here on is placed as the drain wants it. The command drains what is drained, and waits.
    let begun = Instant::now();
    let said = tokio::task::block_in_place(|| fleet.node(&["drain", &name]))?;
    ensure!(said.contains("is empty"), "{said}");
    let took = begun.elapsed();
    // Nothing comes to it any more.
    let before = load.count();
    until("more calls are answered, and nothing is warm there", PATIENCE, async || {
        let nodes = fleet.nodes().await?;
        let node = nodes.iter().find(|node| node["name"] == name.as_str()).context("it is gone")?;
        ensure!(node["state"] == "draining" && node["busy"] == 0, "{node}");
        ensure!(node["moving"] == 0 && node["stranded"] == 0, "{node}");
        Ok((load.count() >= before + STEADY && node["warm"] == 0).then_some(()))
    })
    .await?;
    let machine = &mut machines[name.parse::<usize>()?];
    machine.stop().await?;
    machine.run(&name, "dartcloud-node-agent")?;
    fleet.until_state(&name, "draining").await.with_context(|| machine.log())?;
    let ended = Instant::now();
    ensure!(fleet.node(&["uncordon", &name])?.contains("is linked"));
    Ok((begun, took, ended))
}

fn logs(fleet: &Fleet, machines: &[Machine]) -> String {
    machines.iter().map(Machine::log).chain([fleet.platform.log()]).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_under_load_without_a_trace() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    // What is not called there is soon cold there, so that each drain has something to move.
    let settings = [("SANDBOX_IDLE_SECONDS", "3")];
    let mut machines = try_join_all(["0", "1"].map(|name| fleet.machine_with(name, &settings))).await?;
    let user = &fleet.operator;
    for (name, archive) in [("native", native()), ("server", server()), ("kept", kept())] {
        user.deploy(name, archive).await?.expect(201).with_context(|| logs(&fleet, &machines))?;
    }
    let load = Arc::new(Load::default());
    let callers = FUNCTIONS.into_iter().flat_map(|(name, callers)| vec![name; callers]);
    let callers: Vec<_> = callers.map(|name| tokio::spawn(call(user.clone(), name, load.clone()))).collect();
    let mut drained = Vec::new();
    let rounds = async {
        for _ in 0..ROUNDS {
            let (begun, took, ended) = drain_and_return(&fleet, &mut machines, &load).await?;
            println!("a node was empty after {took:?}");
            drained.push(begun..ended);
        }
        Ok::<_, anyhow::Error>(())
    };
    let rounds = rounds.await;
    load.is_over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await??;
    }
    let logs = || logs(&fleet, &machines);
    rounds.with_context(logs)?;

    let calls: Vec<_> = load.calls.lock().expect("no holder panics").drain(..).collect();
    let mut more = 0;
    for Call { name, id, status, timing, begun } in &calls {
        ensure!(*status == 200, "{name}: {id} was answered {status}\n{}", logs());
        let is_drained = drained.iter().any(|times| times.contains(begun));
        if is_drained && timing.contains("cold") {
            // A version may need one sandbox more wherever it is; that it had none is what must not be.
            ensure!(timing.contains("cold;desc=\"all_busy\""), "{name}: {id} was cold: {timing}\n{}", logs());
            more += 1;
        }
    }
    let while_drained = calls.iter().filter(|call| drained.iter().any(|times| times.contains(&call.begun)));
    println!(
        "{} calls, {} of them while a node was drained, {more} of which had one more sandbox started",
        calls.len(),
        while_drained.count()
    );
    for (name, _) in FUNCTIONS {
        let answered: BTreeSet<_> =
            calls.iter().filter(|call| call.name == name).map(|call| call.id.as_str()).collect();
        let records = user.records(name, answered.len()).await?;
        let recorded: BTreeSet<_> = records.iter().filter_map(|record| record["id"].as_str()).collect();
        ensure!(
            records.len() == answered.len() && recorded == answered,
            "{name}: {} records of {} calls",
            records.len(),
            answered.len()
        );
    }
    Ok(())
}
