//! The latency receipt: each answer says what its time went into, and each call's story can be read afterwards.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::archive::{archive, python};
use crate::client::{Answer, Client};
use crate::platform::{program, until};
use crate::shared;

/// The phases of an answer: names in their order, milliseconds, and the cause where there is one.
fn phases(answer: &Answer) -> Result<Vec<(String, f64, Option<String>)>> {
    let text = answer.headers.get("server-timing").context("no Server-Timing")?.to_str()?;
    let phase = |part: &str| {
        let mut words = part.split(';');
        let name = words.next().unwrap_or_default().to_owned();
        let (mut ms, mut cause) = (None, None);
        for word in words {
            match word.split_once('=') {
                Some(("dur", number)) => ms = Some(number.parse::<f64>()?),
                Some(("desc", quoted)) => cause = Some(quoted.trim_matches('"').to_owned()),
                _ => {}
            }
        }
        Ok((name, ms.with_context(|| format!("no duration: {text}"))?, cause))
    };
    text.split(", ").map(phase).collect()
}

/// Checks the phases' names, and that all but the last come to no more than the last, which is the total.
fn check(answer: &Answer, names: &[&str], cause: Option<&str>) -> Result<()> {
    let phases = phases(answer)?;
    let found: Vec<&str> = phases.iter().map(|(name, ..)| name.as_str()).collect();
    ensure!(found == names, "{phases:?}");
    let (total, parts) = phases.split_last().context("no phases")?;
    let sum: f64 = parts.iter().map(|(_, ms, _)| ms).sum();
    ensure!(sum <= total.1 + 0.0005, "{sum} in parts: {phases:?}");
    ensure!(phases.iter().find_map(|(.., cause)| cause.as_deref()) == cause, "{phases:?}");
    Ok(())
}

fn id(answer: &Answer) -> Result<String> {
    Ok(answer.headers.get("x-request-id").context("no X-Request-Id")?.to_str()?.to_owned())
}

/// The story of a call, once its record has reached the store.
async fn story(user: &Client, id: &str) -> Result<Value> {
    until("the call's record", Duration::from_secs(30), async || {
        let answer = user.get(&format!("/api/invocations/{id}")).await?;
        if answer.status == 404 {
            let sentence = answer.body["error"].as_str().unwrap_or_default();
            ensure!(sentence.contains("try again in a moment"), "{answer:?}");
            return Ok(None);
        }
        answer.expect(200).map(Some)
    })
    .await
}

fn why(user: &Client, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program("dartcloud"));
    command.arg("why").args(arguments).env("DARTCLOUD_URL", &user.url).env("DARTCLOUD_TOKEN", &user.token);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn a_cold_call_then_a_warm_one() -> Result<()> {
    let platform = shared().await?;
    let user = platform.user().await?;
    user.deploy("told", python("print('a line')\nprint('another', file=sys.stderr)\nanswer(1)")).await?.expect(201)?;
    let cold = user.invoke("told", json!({})).await?;
    check(&cold, &["gate", "auth", "queue", "cold", "fn", "link", "total"], Some("first_call"))?;
    let warm = user.get(&format!("/f/{}/told", user.handle)).await?;
    check(&warm, &["gate", "auth", "queue", "fn", "link", "total"], None)?;

    let first = story(&user, &id(&cold)?).await?;
    ensure!(first["cold"] == json!({"is": true, "cause": "first_call"}), "{first}");
    ensure!(first["function"]["name"] == "told" && first["version"] == 1 && first["outcome"] == "success", "{first}");
    ensure!(first["node"] == platform.node()?.as_str() && first["deploymentId"].is_string(), "{first}");
    ensure!(first["logs"] == json!({"stdout": "a line\n", "stderr": "another\n", "truncated": false}), "{first}");
    ensure!(first["limits"]["hit"] == json!([]) && first["error"].is_null(), "{first}");
    ensure!(first["peakMemoryBytes"].as_u64() > Some(0) && first["requestInfo"]["method"] == "POST", "{first}");
    let second = story(&user, &id(&warm)?).await?;
    ensure!(second["cold"] == json!({"is": false, "cause": null}) && second["phases"]["coldMs"].is_null(), "{second}");
    // The record has what the header had.
    for (answer, story) in [(&cold, &first), (&warm, &second)] {
        for (name, ms, _) in phases(answer)? {
            if !["link", "total"].contains(&name.as_str()) {
                ensure!(story["phases"][format!("{name}Ms")] == ms, "{name} {ms}: {story}");
            }
        }
    }

    let other = platform.user().await?;
    let path = format!("/api/invocations/{}", id(&cold)?);
    other.get(&path).await?.expect_error(404, "not_found")?;
    other.with_token("").get(&path).await?.expect_error(401, "unauthorized")?;

    let text = why(&user, &[&id(&cold)?])?;
    for part in ["told v1: success", "cold: the first call", "fn ", "#", "hit: none", "out: a line", "err: another"] {
        ensure!(text.contains(part), "no `{part}` in:\n{text}");
    }
    ensure!(
        serde_json::from_str::<Value>(&why(&user, &[&id(&warm)?, "--json"])?)? == second,
        "not the answer as it is"
    );
    let metrics = platform.metrics().await?;
    for part in [
        r#"dartcloud_gateway_phase_seconds_count{phase="link"}"#,
        r#"dartcloud_agent_phase_seconds_count{phase="cold"}"#,
        r#"dartcloud_agent_cold_starts_total{cause="first_call"}"#,
    ] {
        ensure!(metrics.contains(part), "no {part}");
    }
    Ok(())
}

#[tokio::test]
async fn limits_that_were_hit() -> Result<()> {
    let user = shared().await?.user().await?;
    let source = "import sys, time\nsys.stdout.write('x' * 2000000)\nsys.stdout.flush()\ntime.sleep(60)\n";
    let files = [("main.py", source), ("dartcloud.toml", "timeout_ms = 700\nmemory_mb = 64\n")];
    user.deploy("late", archive(&files)).await?.expect(201)?;
    let late = user.invoke("late", json!({})).await?;
    check(&late, &["gate", "auth", "queue", "cold", "fn", "link", "total"], Some("first_call"))?;
    let told = story(&user, &id(&late)?).await?;
    late.expect_error(504, "timeout")?;
    ensure!(told["limits"] == json!({"timeoutMs": 700, "memoryMb": 64, "hit": ["timeout", "output"]}), "{told}");
    ensure!(told["status"] == "error" && told["error"] == "Function execution timed out (700ms)", "{told}");
    ensure!(told["phases"]["fnMs"].as_f64() >= Some(700.0) && told["logs"]["truncated"] == true, "{told}");

    let source = "held = bytearray(512 * 1024 * 1024)\nheld[::4096] = b'x' * len(held[::4096])\n";
    // On a busy machine the kernel takes its time to give up.
    let files = [("main.py", source), ("dartcloud.toml", "timeout_ms = 60000\nmemory_mb = 64\n")];
    user.deploy("eats", archive(&files)).await?.expect(201)?;
    let eaten = user.invoke("eats", json!({})).await?;
    ensure!(story(&user, &id(&eaten)?).await?["limits"]["hit"] == json!(["memory"]), "{eaten:?}");
    eaten.expect_error(502, "out_of_memory")?;
    // The sandbox went with it.
    let next = user.invoke("eats", json!({})).await?;
    check(&next, &["gate", "auth", "queue", "cold", "fn", "link", "total"], Some("died"))
}

#[tokio::test]
async fn refused_calls_say_how_far_they_came() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("ours", archive(&[("main*", "#!/bin/sh\nprintf '{\"body\":1}' >/result.json\n")]))
        .await?
        .expect(201)?;
    let path = format!("/f/{}/ours", user.handle);
    check(&user.with_token("").get(&path).await?, &["gate", "auth", "total"], None)?;
    check(&user.get(&format!("/f/{}/theirs", user.handle)).await?, &["gate", "total"], None)?;
    check(&user.with_token("no.such.token").invoke("ours", json!({})).await?, &["gate", "auth", "total"], None)?;
    Ok(())
}
