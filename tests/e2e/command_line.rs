//! `dartcloud` as a person uses it.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};

use crate::platform::{Form, Platform, program};

fn dartcloud(data_dir: &Path, folder: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program("dartcloud"));
    command.args(arguments).current_dir(folder).env("DATA_DIR", data_dir).env("XDG_CONFIG_HOME", folder);
    Ok(command.output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn from_new_to_delete() -> Result<()> {
    let platform = Platform::start(Form::Dev, &[]).await?;
    let folder = tempfile::tempdir()?;
    let run = |arguments: &[&str]| -> Result<String> {
        let output = dartcloud(platform.data_dir(), folder.path(), arguments)?;
        let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
        ensure!(output.status.success(), "{arguments:?} failed:\n{out}\n{err}");
        Ok(out)
    };
    for runtime in ["python", "node", "native", "dart", "python --http", "node --http"] {
        let name = runtime.replace(" --", "-");
        let mut new = vec!["new", name.as_str(), "--runtime"];
        new.extend(runtime.split(' '));
        run(&new)?;
        let runtime = name.as_str();
        ensure!(run(&["deploy", runtime])?.contains(&format!("/{runtime}")), "no URL");
        let answer = run(&["invoke", runtime, "--body", r#"{"name": "Ada"}"#])?;
        ensure!(answer.contains("Hello, Ada!"), "{runtime}: {answer}");
    }
    ensure!(run(&["list"])?.contains("python"), "not listed");
    ensure!(run(&["deploy", "python"])?.contains('2'), "no second version");
    ensure!(!run(&["logs", "node"])?.is_empty(), "no logs");
    run(&["new", "late", "--runtime", "python"])?;
    std::fs::write(folder.path().join("late/main.py"), "import time\ntime.sleep(60)\n")?;
    run(&["deploy", "late", "--set", "timeout_ms=300"])?;
    let late = dartcloud(platform.data_dir(), folder.path(), &["invoke", "late"])?;
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    ensure!(!late.status.success() && said.contains("(timeout)"), "{said}");
    let (_, id) = said.split_once("dartcloud why ").context("no hint")?;
    let story = run(&["why", id.split_whitespace().next().unwrap_or_default()])?;
    ensure!(story.contains("late v1: timed_out") && story.contains("hit: timeout"), "{story}");
    run(&["delete", "native", "--yes"])?;
    ensure!(!run(&["list"])?.contains("native"), "still listed");
    let gone = dartcloud(platform.data_dir(), folder.path(), &["invoke", "native"])?;
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    // It did not run, so there is nothing to be told.
    ensure!(!gone.status.success() && said.contains("not_found") && !said.contains("dartcloud why"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_account_is_the_operators() -> Result<()> {
    let platform = Platform::start(Form::Gateway, &[]).await?;
    let folder = tempfile::tempdir()?;
    let password = folder.path().join("password");
    std::fs::write(&password, "correct horse\n")?;
    let register = |email: &str| -> Result<(bool, String)> {
        let mut command = Command::new(program("dartcloud"));
        command.args(["register", "--url", &platform.url(), "--email", email, "--password-stdin"]);
        command.current_dir(folder.path()).env("DATA_DIR", folder.path()).env("XDG_CONFIG_HOME", folder.path());
        let output = command.stdin(File::open(&password)?).output()?;
        let said = [&output.stdout[..], &output.stderr].concat();
        Ok((output.status.success(), String::from_utf8(said)?))
    };
    let (done, said) = register("ada@example.com")?;
    ensure!(done && said.contains("Signed in"), "{said}");
    let whoami = dartcloud(folder.path(), folder.path(), &["whoami"])?;
    let whoami = String::from_utf8(whoami.stdout)?;
    ensure!(whoami.contains("ada@example.com") && whoami.contains("operator"), "{whoami}");
    let (done, said) = register("ada@example.com")?;
    ensure!(!done && said.contains("log in instead"), "{said}");
    Ok(())
}

#[test]
fn dev_checks_before_it_starts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let check = |settings: &[(&str, &str)], sentence: &str| -> Result<()> {
        let mut command = Command::new(program("dartcloud"));
        command.arg("dev").env("DATA_DIR", folder.path()).env("OPS_ADDR", "127.0.0.1:0").envs(settings.iter().copied());
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(sentence), "{:?}: {said}", output.status);
        Ok(())
    };
    check(&[("PORT", &port)], "PORT")?;
    check(&[("PORT", "0"), ("DOCKER_HOST", "unix:///nowhere/docker.sock")], "Docker")?;
    check(&[("PORT", "not-a-port")], "PORT")?;
    Ok(())
}
