//! `Idempotency-Key`: a call runs once, however often it comes and whatever dies meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::archive::{archive, script};
use crate::client::{Answer, Client};
use crate::platform::{Form, Platform, until};
use crate::shared;

const PATIENCE: Duration = Duration::from_secs(60);

/// Says the id of the call that ran, after a moment.
const SAY_ID: &str = r#"
id=$(sed 's/.*"invocation_id":"\([^"]*\)".*/\1/' /request.json)
sleep 0.5
case "$(cat /request.json)" in *'"path":"/crash"'*) exit 3 ;; esac
printf '{"body":{"id":"%s","version":VERSION},"statusCode":201,"headers":{"x-fn":"1"}}' "$id" >/result.json"#;

fn private(version: &str) -> Vec<u8> {
    let main = format!("#!/bin/sh{}", SAY_ID.replace("VERSION", version));
    archive(&[("main*", &main), ("dartcloud.toml", "concurrency = 50\n")])
}

/// A POST with a key.
async fn call(user: &Client, path: &str, key: &str, body: &Value) -> Result<Answer> {
    Answer::of(user.request("POST", path).header("idempotency-key", key).json(body).send().await?).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether it is what was answered before.
fn is_repeat(answer: &Answer) -> bool {
    header(answer, "idempotent-replayed") == Some("true")
}

/// A repeat of `first`: the same status, body and header, and the id of the call that ran.
fn ensure_repeats(again: &Answer, first: &Answer) -> Result<()> {
    let same = (again.status, &again.body, header(again, "x-fn")) == (first.status, &first.body, header(first, "x-fn"));
    let original = header(again, "original-request");
    ensure!(
        same && is_repeat(again) && original == header(first, "x-request-id"),
        "{again:?} does not repeat {first:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_call_with_a_key_runs_once() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("once", private("1")).await?.expect(201)?;
    let path = format!("/f/{}/once/x?y=z", user.handle);
    let body = json!({"n": 1});

    let at_once = try_join_all((0..20).map(|_| call(&user, &path, "order-1", &body))).await?;
    let (repeats, first): (Vec<_>, Vec<_>) = at_once.iter().partition(|answer| is_repeat(answer));
    ensure!(first.len() == 1, "{} of 20 calls ran", first.len());
    let first = first[0];
    ensure!(first.status == 201 && header(first, "x-request-id") == first.body["id"].as_str(), "{first:?}");
    repeats.iter().try_for_each(|again| ensure_repeats(again, first))?;
    // As the draft writes keys, and for another version of the function.
    ensure_repeats(&call(&user, &path, "\"order-1\"", &body).await?, first)?;
    user.deploy("once", private("2")).await?.expect(200)?;
    ensure_repeats(&call(&user, &path, "order-1", &body).await?, first)?;
    ensure!(call(&user, &path, "order-2", &body).await?.expect(201)?["version"] == 2);

    let other = json!({"n": 2});
    call(&user, &path, "order-1", &other).await?.expect_error(422, "idempotency_key_reused")?;
    call(&user, &format!("{path}z"), "order-1", &body).await?.expect_error(422, "idempotency_key_reused")?;
    for key in ["", "a b", "\"open", &"x".repeat(256)] {
        call(&user, &path, key, &body).await?.expect_error(400, "bad_request")?;
    }

    // What failed in the function has run; what never reached it has not.
    let crash = format!("/f/{}/once/crash", user.handle);
    let failed = call(&user, &crash, "order-3", &body).await?;
    ensure_repeats(&call(&user, &crash, "order-3", &body).await?, &failed)?;
    failed.expect_error(502, "function_crashed")?;
    let broken = user.request("POST", &path).header("idempotency-key", "order-4").body("{");
    let broken = broken.header("content-type", "application/json").send().await?;
    ensure!(broken.status() == 400);
    call(&user, &path, "order-4", &body).await?.expect(201)?;

    let invoke = "/api/functions/once/invoke";
    let described = call(&user, invoke, "order-5", &json!({"body": 1})).await?;
    ensure_repeats(&call(&user, invoke, "order-5", &json!({"body": 1})).await?, &described)?;
    ensure!(described.expect(200)?["success"] == true);
    // The two of the orders 1 and 2, the crash, and the last two.
    ensure!(user.records("once", 5).await?.len() == 5);
    Ok(())
}

#[tokio::test]
async fn a_key_whose_function_did_not_start_is_free_again() -> Result<()> {
    let user = shared().await?.user().await?;
    let works = "#!/bin/sh\nprintf '{\"body\":1}' >/result.json";
    let unspawned = ("unspawned", "", "#!/no/such/interpreter\n");
    let ends_early = ("ends-early", "contract = \"http\"\n", "#!/bin/sh\nexit 3\n");
    for (name, manifest, broken) in [unspawned, ends_early] {
        let path = format!("/f/{}/{name}", user.handle);
        user.deploy(name, archive(&[("main*", broken), ("dartcloud.toml", manifest)])).await?.expect(201)?;
        call(&user, &path, "k", &json!({})).await?.expect_error(502, "function_crashed")?;
        user.deploy(name, archive(&[("main*", works)])).await?.expect(200)?;
        call(&user, &path, "k", &json!({})).await?.expect(200)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_key_is_of_one_caller() -> Result<()> {
    let platform = shared().await?;
    let (ann, bob) = (platform.user().await?, platform.user().await?);
    ann.deploy("open", script(&SAY_ID.replace("VERSION", "1"))).await?.expect(201)?;
    bob.deploy("open", script(&SAY_ID.replace("VERSION", "1"))).await?.expect(201)?;
    let path = format!("/f/{}/open", ann.handle);
    let mut answers = Vec::new();
    for who in [&ann, &bob, &ann.with_token("")] {
        let first = call(who, &path, "k", &json!({})).await?;
        ensure_repeats(&call(who, &path, "k", &json!({})).await?, &first)?;
        answers.push(first);
    }
    answers.push(call(&ann, "/api/functions/open/invoke", "k", &json!({})).await?);
    answers.push(call(&bob, "/api/functions/open/invoke", "k", &json!({})).await?);
    answers.push(call(&bob, &format!("/f/{}/open", bob.handle), "k", &json!({})).await?);
    ensure!(!answers.iter().any(is_repeat), "{answers:?}");
    Ok(())
}

#[tokio::test]
async fn a_call_runs_once_whatever_dies() -> Result<()> {
    let mut platform = Platform::start(Form::Dev, &[("IDEMPOTENCY_FUNCTION_MAX_MB", "1")]).await?;
    let user = platform.user().await?;
    user.deploy("once", private("1")).await?.expect(201)?;
    user.deploy("slow", script("sleep 30; printf '{\"body\":1}' >/result.json")).await?.expect(201)?;
    let (path, slow) = (format!("/f/{}/once", user.handle), "/api/functions/slow/invoke");
    let body = json!({});
    let first = call(&user, &path, "k", &body).await?;
    let cut_off = call(&user, slow, "k", &body);
    let cut = async {
        let answers = platform.data_dir().join("answers");
        let begun = async || Ok((std::fs::read_dir(&answers)?.count() == 2).then_some(()));
        until("the slow call has begun", PATIENCE, begun).await?;
        platform.kill()
    };
    let (_, cut) = futures_util::future::join(cut_off, cut).await;
    cut?;
    platform.launch().await?;
    ensure_repeats(&call(&user, &path, "k", &body).await?, &first)?;
    let lost = call(&user, slow, "k", &body).await?;
    ensure!(is_repeat(&lost) && header(&lost, "original-request").is_some(), "{lost:?}");
    lost.expect_error(502, "node_lost")?;

    // There is room for two of these, so the third makes room for itself.
    let large = r#"{ printf '{"body":"'; head -c 400000 /dev/zero | tr '\0' x; printf '"}'; } >/result.json"#;
    user.deploy("large", script(large)).await?.expect(201)?;
    let large = format!("/f/{}/large", user.handle);
    for key in ["1", "2", "3"] {
        ensure!(!is_repeat(&call(&user, &large, key, &body).await?));
    }
    ensure!(is_repeat(&call(&user, &large, "3", &body).await?) && is_repeat(&call(&user, &large, "2", &body).await?));
    ensure!(!is_repeat(&call(&user, &large, "1", &body).await?));
    let metrics = platform.metrics().await?;
    ensure!(metrics.contains("dartcloud_agent_idempotent_evicted_total 2"), "{metrics}");
    ensure_repeats(&call(&user, &path, "k", &body).await?, &first)
}

#[tokio::test]
async fn a_servers_answer_is_kept_whole() -> Result<()> {
    let user = shared().await?.user().await?;
    let manifest = "contract = \"http\"\naccess = \"public\"\ntimeout_ms = 3000\n";
    let probe = archive(&[("index.js", include_str!("programs/probe.js")), ("dartcloud.toml", manifest)]);
    user.deploy("probe", probe).await?.expect(201)?;
    let path = format!("/f/{}/probe", user.handle);
    let body = json!({"text": "x".repeat(100_000)});
    let first = call(&user, &format!("{path}/echo"), "k", &body).await?;
    ensure!(first.status == 200 && first.body == body, "{}", first.status);
    ensure_repeats(&call(&user, &format!("{path}/echo"), "k", &body).await?, &first)?;

    let plain = call(&user, &format!("{path}/status"), "t", &body).await?;
    let again = call(&user, &format!("{path}/status"), "t", &body).await?;
    ensure_repeats(&again, &plain)?;
    ensure!((plain.status, &plain.body) == (418, &json!("short and stout")), "{plain:?}");
    let cookies: Vec<_> = again.headers.get_all("set-cookie").iter().collect();
    ensure!(cookies == ["a=1", "b=2"] && again.headers["x-own"] == "kept", "{again:?}");

    // A stream without an end is over time, once.
    let endless = call(&user, &format!("{path}/forever"), "f", &body).await?;
    ensure_repeats(&call(&user, &format!("{path}/forever"), "f", &body).await?, &endless)?;
    endless.expect_error(504, "timeout")?;
    ensure!(user.get(&format!("{path}/count")).await?.expect(200)?["opened"] == 1);
    let envelope = json!({"path": "/echo", "body": {"a": 1}});
    let described = call(&user, "/api/functions/probe/invoke", "e", &envelope).await?;
    ensure_repeats(&call(&user, "/api/functions/probe/invoke", "e", &envelope).await?, &described)?;
    let described = described.expect(200)?;
    ensure!(described["result"]["a"] == 1, "{described}");
    user.records("probe", 4).await?.last().context("no record").map(drop)
}
