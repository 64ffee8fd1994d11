//! Calls that go well: what the function sees of a request, and what the client gets of its answer.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::archive::{archive, python, script};
use crate::client::Answer;
use crate::shared;

const ECHO: &str =
    "answer({key: request.get(key) for key in ('body', 'query', 'method', 'path', 'headers', 'isBase64Encoded')})";

#[tokio::test]
async fn the_envelope_reaches_the_function() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("echo", python(ECHO)).await?.expect(201)?;
    let envelope =
        json!({"body": {"n": 1}, "query": {"q": "x"}, "headers": {"x-a": "b"}, "method": "PUT", "path": "/p"});
    let result = user.post("/api/functions/echo/invoke", &envelope).await?.expect(200)?["result"].take();
    ensure!(result["body"] == json!({"n": 1}) && result["query"] == json!({"q": "x"}), "{result}");
    ensure!(result["method"] == "PUT" && result["path"] == "/p" && result["headers"]["x-a"] == "b", "{result}");
    Ok(())
}

#[tokio::test]
async fn a_real_request_reaches_the_function() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("echo", python(ECHO)).await?.expect(201)?;
    let path = format!("/f/{}/echo/some/path?a=1&b=two%20words", user.handle);
    let request = user.with_token("").request("PATCH", &path).header("x-own", "yes").body("plain text");
    let seen = Answer::of(request.header("content-type", "text/plain").send().await?).await?.expect(200)?;
    ensure!(seen["method"] == "PATCH" && seen["path"] == "/some/path", "{seen}");
    ensure!(seen["query"] == json!({"a": "1", "b": "two words"}) && seen["body"] == "plain text", "{seen}");
    ensure!(seen["headers"]["x-own"] == "yes" && seen["headers"]["x-forwarded-for"] == "127.0.0.1", "{seen}");
    let bytes = user.with_token("").request("POST", &path).header("content-type", "image/png").body(vec![0, 159, 146]);
    let seen = Answer::of(bytes.send().await?).await?.expect(200)?;
    ensure!(seen["body"] == "AJ+S" && seen["isBase64Encoded"] == true, "{seen}");
    Ok(())
}

#[tokio::test]
async fn status_headers_and_bytes_reach_the_client() -> Result<()> {
    let user = shared().await?.user().await?;
    let source =
        "answer('AJ+S', statusCode=201, headers={'Content-Type': 'image/png', 'X-Own': 'yes'}, isBase64Encoded=True)";
    user.deploy("image", python(source)).await?.expect(201)?;
    let response = user.request("GET", &format!("/f/{}/image", user.handle)).send().await?;
    ensure!(response.status() == 201, "{response:?}");
    ensure!(response.headers()["content-type"] == "image/png" && response.headers()["x-own"] == "yes", "{response:?}");
    ensure!(response.headers().contains_key("x-request-id"), "{response:?}");
    ensure!(response.headers()["server-timing"].to_str()?.contains("fn;dur="), "{response:?}");
    ensure!(!response.headers().keys().any(|name| name.as_str().starts_with("dartcloud-")), "{response:?}");
    ensure!(response.bytes().await?.as_ref() == [0, 159, 146]);
    Ok(())
}

#[tokio::test]
async fn a_private_function_is_its_owners() -> Result<()> {
    let platform = shared().await?;
    let (owner, other) = (platform.user().await?, platform.user().await?);
    let files = [("main*", "#!/bin/sh\nprintf '{\"body\":\"mine\"}' >/result.json\n")];
    owner.deploy("private", archive(&files)).await?.expect(201)?;
    let path = format!("/f/{}/private", owner.handle);
    ensure!(owner.get(&path).await?.expect(200)? == "mine");
    owner.with_token("").get(&path).await?.expect_error(401, "unauthorized")?;
    other.get(&path).await?.expect_error(404, "not_found")?;
    other.invoke("private", json!({})).await?.expect_error(404, "not_found")?;
    owner.with_token("").invoke("private", json!({})).await?.expect_error(401, "unauthorized")?;
    Ok(())
}

#[tokio::test]
async fn the_platforms_secrets_stay_outside() -> Result<()> {
    let user = shared().await?.user().await?;
    let files = [
        (
            "main.py",
            "import json, os\nrequest = json.load(open('/request.json'))\njson.dump({'body': {'env': dict(os.environ), 'config': open('/.env.config').read(), 'headers': request['headers'], 'cwd': os.getcwd(), 'uid': os.getuid()}}, open('/result.json', 'w'))\n",
        ),
        ("dartcloud.toml", "[env]\nGREETING = 'hello'\n"),
    ];
    user.deploy("secrets", archive(&files)).await?.expect(201)?;
    let seen = user.get(&format!("/f/{}/secrets", user.handle)).await?.expect(200)?;
    ensure!(seen["env"]["GREETING"] == "hello" && seen["cwd"] == "/function", "{seen}");
    ensure!(seen["uid"].as_u64().is_some_and(|uid| uid >= 65534), "{seen}");
    ensure!(seen["headers"].get("authorization").is_none(), "{seen}");
    let text = seen.to_string();
    ensure!(!text.contains(&user.token) && !text.contains("JWT_SECRET") && !text.contains("DATABASE_URL"), "{seen}");
    Ok(())
}

#[tokio::test]
async fn every_call_is_a_fresh_process() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("fresh", script("printf '{\"body\":%s}' \"$$\" >/result.json; read -r x <&0; exit 0"))
        .await?
        .expect(201)?;
    let first = user.invoke("fresh", json!({})).await?.expect(200)?;
    let second = user.invoke("fresh", json!({})).await?.expect(200)?;
    ensure!(first["result"] != second["result"], "{first} {second}");
    let records = user.records("fresh", 2).await?;
    ensure!(records.len() == 2, "{records:?}");
    Ok(())
}

#[tokio::test]
async fn over_the_concurrency_is_429() -> Result<()> {
    let user = shared().await?.user().await?;
    let files = [
        ("main.py", "import json, time\ntime.sleep(1)\njson.dump({'body': 1}, open('/result.json', 'w'))\n"),
        ("dartcloud.toml", "concurrency = 2\n"),
    ];
    user.deploy("narrow", archive(&files)).await?.expect(201)?;
    let calls = (0..6).map(|_| user.invoke("narrow", json!({})));
    let answers = futures_util::future::try_join_all(calls).await?;
    let limited: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    ensure!(limited.len() + served == 6 && served >= 2 && !limited.is_empty(), "{answers:?}");
    ensure!(limited.iter().all(|answer| answer.body["code"] == "concurrency_limited"), "{answers:?}");
    ensure!(limited.iter().all(|answer| answer.headers.contains_key("retry-after")), "{answers:?}");
    Ok(())
}

#[tokio::test]
async fn a_body_up_to_the_limit_passes() -> Result<()> {
    let user = shared().await?.user().await?;
    user.deploy("length", python("answer(len(request['body']))")).await?.expect(201)?;
    let path = format!("/f/{}/length", user.handle);
    let send =
        |size: usize| user.request("POST", &path).header("content-type", "text/plain").body("x".repeat(size)).send();
    let most = 6 * 1024 * 1024;
    ensure!(Answer::of(send(most).await?).await?.expect(200)? == json!(most));
    Answer::of(send(most + 1).await?).await?.expect_error(413, "too_large")?;
    ensure!(user.invoke("length", json!("abc")).await?.expect(200)?["result"] == 3);
    let metrics = shared().await?.metrics().await?;
    ensure!(
        metrics.contains("dartcloud_gateway_requests_total") && metrics.contains("dartcloud_agent_invocations_total")
    );
    Ok(())
}
