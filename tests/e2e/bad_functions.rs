//! Functions that misbehave: each gets its own status, its record says what happened, and the next call works.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::archive::python;
use crate::shared;

/// What a misbehaving function is answered, and what its record says.
struct Expected {
    status: u16,
    code: &'static str,
    exit_code: i64,
}

/// Deploys a function that behaves when `body.well` is set and else does `deed`.
async fn check(name: &str, deed: &str, expected: Expected) -> Result<Value> {
    let user = shared().await?.user().await?;
    let source = format!("if (request['body'] or {{}}).get('well'):\n    answer('well')\n    sys.exit(0)\n{deed}");
    user.deploy(name, python(&source)).await?.expect(201)?;
    user.invoke(name, json!({"well": true})).await?.expect(200)?;
    let failure = user.invoke(name, json!({})).await?.expect_error(expected.status, expected.code)?;
    ensure!(failure["success"] == false, "{failure}");
    let next = user.invoke(name, json!({"well": true})).await?.expect(200)?;
    ensure!(next["result"] == "well", "{next}");
    let records = user.records(name, 3).await?;
    let record = records.iter().find(|record| record["success"] == false).expect("the failure has a record").clone();
    ensure!(record["status"] == "error", "{record}");
    ensure!(record["logs"]["container"]["exit_code"] == expected.exit_code, "{record}");
    ensure!(record["error"].as_str().is_some_and(|error| !error.is_empty()), "{record}");
    Ok(record)
}

#[tokio::test]
async fn crashes() -> Result<()> {
    let expected = Expected { status: 502, code: "function_crashed", exit_code: 3 };
    let record = check("crashes", "print('on stderr', file=sys.stderr)\nsys.exit(3)", expected).await?;
    ensure!(record["logs"]["container"]["stderr"] == "on stderr\n", "{record}");
    Ok(())
}

#[tokio::test]
async fn is_killed_by_a_signal() -> Result<()> {
    let expected = Expected { status: 502, code: "function_crashed", exit_code: 139 };
    check("segfaults", "import signal\nos.kill(os.getpid(), signal.SIGSEGV)", expected).await.map(drop)
}

#[tokio::test]
async fn fails_with_a_valid_result() -> Result<()> {
    let expected = Expected { status: 502, code: "function_crashed", exit_code: 1 };
    let record = check("fails", "answer({'error': 'the details'})\nsys.exit(1)", expected).await?;
    ensure!(record["error"].as_str().is_some_and(|error| error.contains("the details")), "{record}");
    Ok(())
}

#[tokio::test]
async fn hangs() -> Result<()> {
    let user = shared().await?.user().await?;
    let archive = crate::archive::archive(&[
        ("main.py", "import time\ntime.sleep(60)\n"),
        ("dartcloud.toml", "timeout_ms = 300\n"),
    ]);
    user.deploy("hangs", archive).await?.expect(201)?;
    let failure = user.invoke("hangs", json!({})).await?.expect_error(504, "timeout")?;
    ensure!(failure["error"] == "Function execution timed out (300ms)", "{failure}");
    let records = user.records("hangs", 1).await?;
    ensure!(records[0]["logs"]["container"]["exit_code"] == -1, "{records:?}");
    ensure!(records[0]["error"] == "Function execution timed out (300ms)", "{records:?}");
    Ok(())
}

#[tokio::test]
async fn forks_without_end() -> Result<()> {
    let bomb =
        "while True:\n    try:\n        if os.fork() == 0: time.sleep(30)\n    except OSError:\n        sys.exit(7)";
    check("forks", bomb, Expected { status: 502, code: "function_crashed", exit_code: 7 }).await.map(drop)
}

#[tokio::test]
async fn leaves_a_process_behind() -> Result<()> {
    let user = shared().await?.user().await?;
    // The runner and the fork server are out of its reach, and so the kernel says that their files are root's.
    let source = "mine = lambda p: os.stat(f'/proc/{p}/mem').st_uid == os.getuid()\n\
                  left = [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid() and mine(p)]\n\
                  if os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nanswer(left)";
    user.deploy("leaves", python(source)).await?.expect(201)?;
    for _ in 0..3 {
        let answer = user.invoke("leaves", json!({})).await?.expect(200)?;
        ensure!(answer["result"] == json!([]), "a process of an earlier call is alive: {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn floods_stdout() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("floods", python("for _ in range(2000): print('x' * 1000)\nanswer('done')")).await?.expect(201)?;
    let answer = user.invoke("floods", json!({})).await?.expect(200)?;
    ensure!(answer["result"] == "done", "{answer}");
    let records = user.records("floods", 1).await?;
    let container = &records[0]["logs"]["container"];
    ensure!(container["truncated"] == true, "not marked as truncated");
    ensure!(container["stdout"].as_str().is_some_and(|text| text.len() <= 64 * 1024), "more than the cap");
    Ok(())
}

#[tokio::test]
async fn writes_no_result() -> Result<()> {
    check("silent", "pass", Expected { status: 502, code: "invalid_result", exit_code: 0 }).await.map(drop)
}

#[tokio::test]
async fn writes_what_is_not_json() -> Result<()> {
    let deed = "open('/result.json', 'w').write('{')";
    check("not-json", deed, Expected { status: 502, code: "invalid_result", exit_code: 0 }).await.map(drop)
}

#[tokio::test]
async fn writes_no_body() -> Result<()> {
    let deed = "json.dump({'answer': 42}, open('/result.json', 'w'))";
    check("no-body", deed, Expected { status: 502, code: "invalid_result", exit_code: 0 }).await.map(drop)
}

#[tokio::test]
async fn writes_too_much() -> Result<()> {
    let deed = "answer('x' * (7 * 1024 * 1024))";
    check("too-much", deed, Expected { status: 502, code: "invalid_result", exit_code: 0 }).await.map(drop)
}

#[tokio::test]
async fn eats_memory() -> Result<()> {
    let deed = "held = bytearray(512 * 1024 * 1024)\nheld[::4096] = b'x' * len(held[::4096])";
    check("eats", deed, Expected { status: 502, code: "out_of_memory", exit_code: 137 }).await.map(drop)
}
