//! The power cut: what was acknowledged is there afterwards, and what nobody wants is gone.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use serde_json::json;

use crate::archive::script;
use crate::platform::{Form, Platform, until};

const FUNCTIONS: usize = 3;
const CALLERS: usize = 8;

#[tokio::test]
async fn kill_nine_under_load() -> Result<()> {
    let mut platform = Platform::start(Form::Dev, &[]).await?;
    let user = platform.user().await?;
    for number in 0..FUNCTIONS {
        let source = format!("printf '{{\"body\":{number}}}' >/result.json");
        user.deploy(&format!("f{number}"), script(&source)).await?.expect(201)?;
    }

    let answered = Mutex::new(Vec::new());
    let callers = (0..CALLERS).map(|caller| {
        let (user, answered) = (&user, &answered);
        async move {
            let name = format!("f{}", caller % FUNCTIONS);
            while let Ok(answer) = user.invoke(&name, json!({})).await {
                if answer.status == 200 {
                    let id = answer.headers["x-request-id"].to_str().unwrap_or_default().to_owned();
                    answered.lock().expect("no holder panics").push((name.clone(), id));
                }
            }
        }
    });
    let cut = async {
        let load = async || Ok((answered.lock().expect("no holder panics").len() > 200).then_some(()));
        until("200 calls are answered", Duration::from_secs(60), load).await?;
        platform.kill()
    };
    let (cut, _) = futures_util::future::join(cut, join_all(callers)).await;
    cut?;
    platform.launch().await?;

    let answered = answered.into_inner().expect("no holder panics");
    for number in 0..FUNCTIONS {
        let name = format!("f{number}");
        let answer = user.invoke(&name, json!({})).await?.expect(200)?;
        ensure!(answer["result"] == number, "{answer}");
        let ids: Vec<_> = answered.iter().filter(|(called, _)| *called == name).map(|(_, id)| id).collect();
        let records = user.records(&name, ids.len() + 1).await?;
        let kept = |id: &String| records.iter().any(|record| record["id"] == id.as_str());
        let lost: Vec<_> = ids.into_iter().filter(|id| !kept(id)).collect();
        ensure!(lost.is_empty(), "answered calls of {name} without a record: {lost:?}");
    }
    // Those of the functions, and the blank ones, of which there are two of each kind.
    let kinds = std::fs::read_dir("../deploy/runtimes")?.count();
    let wanted = async || Ok((platform.containers()?.len() <= FUNCTIONS + 2 * kinds).then_some(()));
    until("the dead agent's containers are removed", Duration::from_secs(30), wanted).await?;
    platform.stop().await?;
    ensure!(platform.containers()?.is_empty(), "containers are left after a stop");
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let data_dir = platform.data_dir().display().to_string();
    ensure!(!mounts.contains(&data_dir), "mounts are left after a stop: {mounts}");
    Ok(())
}

#[tokio::test]
async fn a_stop_answers_what_is_in_flight() -> Result<()> {
    let mut platform = Platform::start(Form::Dev, &[]).await?;
    let user = platform.user().await?;
    user.deploy("slow", script("sleep 2; printf '{\"body\":\"done\"}' >/result.json")).await?.expect(201)?;
    let call = user.invoke("slow", json!({}));
    let stop = async {
        let node = platform.node()?;
        let started = async || {
            let metrics = platform.metrics().await?;
            let busy = metrics
                .lines()
                .any(|line| line.starts_with("dartcloud_gateway_requests_in_flight") && line.ends_with(" 1"));
            Ok(busy.then_some(()))
        };
        until("the call is in flight", Duration::from_secs(20), started).await?;
        platform.stop().await?;
        Ok(node)
    };
    let (answer, stopped) = futures_util::future::join(call, stop).await;
    let answer = answer?.expect(200)?;
    ensure!(answer["result"] == "done", "{answer}");
    stopped.map(drop)
}
