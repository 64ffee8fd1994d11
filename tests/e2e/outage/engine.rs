//! While a Docker Engine is away: what is warm goes on, and what is cold goes where there is one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::json;

use super::load::Load;
use super::servers::{Away, Engine, Server};
use super::{PATIENCE, STEADY, file, outage, without};
use crate::archive::archive;
use crate::client::Client;
use crate::fleet::Fleet;
use crate::platform::{Form, Platform, until};

/// How long a call may take to its refusal that came before anybody knew that the Engine hangs, and afterwards.
const REFUSED_WITHIN: [Duration; 2] = [Duration::from_secs(40), Duration::from_secs(9)];
/// Calls beside the load, at once: more than are warm.
const BURST: usize = 8;
/// Functions that nobody has called: of so many some are at home on each of two nodes.
const COLD: usize = 6;

fn seldom() -> Vec<u8> {
    archive(&[("main.sh", "printf '{\"body\":1}' >/result.json\n")])
}

/// Calls what is not warm, which is refused at once, or after as long as an Engine may take where nobody knows yet.
async fn cold_is_refused(user: &Client, name: &str) -> Result<()> {
    for within in REFUSED_WITHIN {
        let begun = Instant::now();
        let answer = user.invoke(name, json!({})).await?;
        let took = begun.elapsed();
        ensure!(answer.headers.contains_key("retry-after"), "{answer:?}");
        answer.expect_error(503, "no_sandbox")?;
        ensure!(took < within, "refused after {took:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_is_away() -> Result<()> {
    let mut engine = Engine::start("local/sh:bookworm").await?;
    // Without blank sandboxes, so that a call that finds none warm needs the Engine.
    let settings = [("DOCKER_HOST", engine.host()), ("SANDBOX_BLANKS", "0".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut platform = Platform::start(Form::TwoProcesses, &settings).await?;
    let user = platform.user().await?;
    user.deploy("warm", file("private")).await?.expect(201).with_context(|| platform.log())?;
    let load = Load::begin(&user, &[("GET", format!("/f/{}/warm", user.handle))]);
    let mut bursts = 0;
    for how in [Away::Killed, Away::Hung] {
        let [gone, cold] = ["gone", "cold"].map(|name| format!("{name}-{how:?}").to_lowercase());
        let before = engine.containers()?;
        for name in [&gone, &cold] {
            user.deploy(name, seldom()).await?.expect(201)?;
        }
        user.invoke(&gone, json!({})).await?.expect(200)?;
        let left: Vec<_> = engine.containers()?.into_iter().filter(|id| !before.contains(id)).collect();
        ensure!(left.len() == 1, "{left:?}");
        load.more(STEADY).await?;
        let meanwhile = async {
            // Each has its turn.
            let burst = try_join_all((0..BURST).map(|_| user.invoke("warm", json!({})))).await?;
            burst.into_iter().try_for_each(|answer| answer.expect(200).map(drop))?;
            cold_is_refused(&user, &cold).await?;
            user.delete(&format!("/api/functions/{gone}")).await?.expect(204)?;
            load.more(STEADY).await
        };
        without(&mut engine, how, meanwhile).await.with_context(|| platform.log())?;
        bursts += BURST;
        let called = async || Ok((user.invoke(&cold, json!({})).await?.status == 200).then_some(()));
        until("what is cold is started", PATIENCE, called).await.with_context(|| platform.log())?;
        let swept = async || Ok((!engine.containers()?.contains(&left[0])).then_some(()));
        until("what nobody wants is removed", PATIENCE, swept).await.with_context(|| platform.log())?;
    }
    load.more(STEADY).await?;
    let answered = load.end().await.with_context(|| platform.log())?;
    println!("The Engine was killed and hung for {:?} each: {answered}", outage());
    let records = user.records("warm", answered.ids.len() + bursts).await?;
    ensure!(records.len() == answered.ids.len() + bursts, "{} records", records.len());
    platform.stop().await?;
    // What an Engine that was just busy removes, it may list a moment longer.
    let removed = until("no container is left after a stop", PATIENCE, async || {
        Ok(engine.containers()?.is_empty().then_some(()))
    });
    removed.await.with_context(|| platform.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn others_start_what_a_node_without_an_engine_cannot() -> Result<()> {
    let mut engine = Engine::start("local/sh:bookworm").await?;
    let fleet = Fleet::start(&[]).await?;
    let lame = fleet.machine_with("lame", &[("DOCKER_HOST", engine.host().leak())]).await?;
    let sound = fleet.machine("sound").await?;
    let logs = || [lame.log(), sound.log(), fleet.platform.log()].join("\n");
    let names: Vec<_> = (0..COLD).map(|number| format!("cold{number}")).collect();
    for name in &names {
        fleet.operator.deploy(name, seldom()).await?.expect(201).with_context(logs)?;
    }
    engine.leave(Away::Hung).await?;
    let meanwhile = async {
        fleet.until_state("lame", "no_engine").await?;
        for name in &names {
            fleet.operator.invoke(name, json!({})).await?.expect(200)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let done = meanwhile.await;
    // Also after a failure, so that the agent's end does not wait for it.
    engine.come_back(Away::Hung).await?;
    done.with_context(logs)?;
    fleet.until_state("lame", "linked").await.with_context(logs).map(drop)
}
