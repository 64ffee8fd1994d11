//! `docker inspect` of a running sandbox, setting by setting.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::archive::archive;
use crate::platform::{Form, Platform};

#[tokio::test]
async fn a_sandbox_is_hardened() -> Result<()> {
    let platform = Platform::start(Form::Dev, &[("SANDBOX_BLANKS", "0")]).await?;
    let user = platform.user().await?;
    let files = [("main*", "#!/bin/sh\nprintf '{\"body\":1}' >/result.json\n"), ("dartcloud.toml", "memory_mb = 96\n")];
    user.deploy("f", archive(&files)).await?.expect(201)?;
    user.invoke("f", json!({})).await?.expect(200)?;
    let containers = platform.containers()?;
    ensure!(containers.len() == 1, "{containers:?}");
    let inspected = inspect(&containers[0])?;
    let host = &inspected["HostConfig"];
    let check = |name: &str, got: &Value, expected: Value| {
        ensure!(*got == expected, "{name} is {got}, expected {expected}");
        Ok(())
    };
    check("CapDrop", &host["CapDrop"], json!(["ALL"]))?;
    check("CapAdd", &host["CapAdd"], Value::Null)?;
    check("Privileged", &host["Privileged"], json!(false))?;
    check("ReadonlyRootfs", &host["ReadonlyRootfs"], json!(true))?;
    check("NetworkMode", &host["NetworkMode"], json!("none"))?;
    check("Memory", &host["Memory"], json!(96 * 1024 * 1024))?;
    check("MemorySwap", &host["MemorySwap"], json!(96 * 1024 * 1024))?;
    check("LogConfig", &host["LogConfig"]["Type"], json!("none"))?;
    check("PidMode", &host["PidMode"], json!(""))?;
    check("UsernsMode", &host["UsernsMode"], json!(""))?;
    check("Devices", &host["Devices"], inspected_empty(&host["Devices"]))?;
    check("RestartPolicy", &host["RestartPolicy"]["Name"], json!("no"))?;
    ensure!(host["IpcMode"] == "private" || host["IpcMode"] == "none", "IpcMode is {}", host["IpcMode"]);
    ensure!(
        host["PidsLimit"].as_i64().is_some_and(|pids| (1..=256).contains(&pids)),
        "PidsLimit is {}",
        host["PidsLimit"]
    );
    ensure!(host["NanoCpus"].as_i64().is_some_and(|cpus| cpus > 0), "NanoCpus is {}", host["NanoCpus"]);
    let options = host["SecurityOpt"].as_array().context("no SecurityOpt")?;
    let has =
        |start: &str| options.iter().any(|option| option.as_str().is_some_and(|option| option.starts_with(start)));
    ensure!(has("no-new-privileges") && has("seccomp={") && !has("seccomp=unconfined"), "{options:?}");
    let limits = host["Ulimits"].as_array().context("no Ulimits")?;
    for name in ["nofile", "fsize", "core"] {
        ensure!(limits.iter().any(|limit| limit["Name"] == name), "no {name} in {limits:?}");
    }
    let tmp = host["Tmpfs"]["/tmp"].as_str().context("no tmpfs at /tmp")?;
    ensure!(tmp.contains("size=") && tmp.contains("nosuid") && tmp.contains("nodev"), "/tmp is {tmp}");
    let user_id: u32 =
        inspected["Config"]["User"].as_str().and_then(|user| user.split(':').next()).context("no User")?.parse()?;
    ensure!(user_id >= 65534, "User is {user_id}");
    for mount in inspected["Mounts"].as_array().context("no Mounts")? {
        let target = mount["Destination"].as_str().unwrap_or_default();
        let writable = mount["RW"] == true;
        ensure!(!writable || target == "/result.json" || target.starts_with("/run/dartcloud"), "{mount} is writable");
        ensure!(!mount["Source"].as_str().unwrap_or_default().contains("docker.sock"), "{mount}");
    }
    let labels = &inspected["Config"]["Labels"];
    ensure!(labels["dartcloud.node"] == platform.node()?.as_str(), "{labels}");
    Ok(())
}

/// The Engine says "none" as null or as an empty list, by its version.
fn inspected_empty(value: &Value) -> Value {
    if value.is_null() { Value::Null } else { json!([]) }
}

fn inspect(container: &str) -> Result<Value> {
    let output = Command::new("docker").args(["inspect", container]).output()?;
    ensure!(output.status.success(), "docker inspect: {}", String::from_utf8_lossy(&output.stderr));
    let mut all: Value = serde_json::from_slice(&output.stdout)?;
    Ok(all[0].take())
}
