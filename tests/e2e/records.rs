//! Every answered call has one record that says what happened, and no record holds a request's body.

use anyhow::{Result, ensure};
use common::base64;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use crate::archive::archive;
use crate::platform::{Form, Platform};

const CALLS: u64 = 500;
const AT_ONCE: usize = 16;
const SECRET: &str = "the-body-is-nobodys-business";

/// Of ten calls one crashes and one times out.
fn expected(number: u64) -> (u16, &'static str) {
    match number % 10 {
        3 => (502, "crash"),
        7 => (504, "hang"),
        _ => (200, "well"),
    }
}

#[tokio::test]
async fn five_hundred_calls_sixteen_at_once() -> Result<()> {
    let database = crate::two_processes::Database::create()?;
    let platform = Platform::start(Form::TwoProcesses, &[("DATABASE_URL", database.url())]).await?;
    let user = platform.user().await?;
    let source = "import json, sys, time\nrequest = json.load(open('/request.json'))\ndeed = request['query']['deed']\n\
                  print('deed', deed)\nif deed == 'crash': sys.exit(9)\nif deed == 'hang': time.sleep(60)\n\
                  json.dump({'body': {'number': request['body']['number']}}, open('/result.json', 'w'))\n";
    let files = [("main.py", source), ("dartcloud.toml", "timeout_ms = 3000\nconcurrency = 16\nmemory_mb = 64\n")];
    user.deploy("mixed", archive(&files)).await?.expect(201)?;
    let calls = futures_util::stream::iter(0..CALLS).map(|number| {
        let user = &user;
        async move {
            let (status, deed) = expected(number);
            let envelope = json!({"body": {"number": number, "secret": SECRET}, "query": {"deed": deed, "n": number.to_string()},
                                  "headers": {"authorization": "Bearer abc", "x-number": number.to_string()}});
            user.post("/api/functions/mixed/invoke", &envelope).await?.expect(status).map(drop)
        }
    });
    calls.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;

    let records = user.records("mixed", CALLS as usize).await?;
    ensure!(records.len() as u64 == CALLS, "{} records", records.len());
    let mut seen = vec![false; CALLS as usize];
    for record in &records {
        let number = check(record)?;
        ensure!(!std::mem::replace(&mut seen[number as usize], true), "two records of call {number}");
    }
    check_rows(&database)
}

fn check(record: &Value) -> Result<u64> {
    let text = record.to_string();
    ensure!(!text.contains(SECRET) && !text.contains(&base64::encode(SECRET)), "a record holds the body: {record}");
    let info = &record["requestInfo"];
    let number: u64 = info["query"]["n"].as_str().unwrap_or_default().parse()?;
    let (status, deed) = expected(number);
    ensure!(info["method"] == "POST" && info["path"] == "/" && info["timestamp"].is_string(), "{record}");
    ensure!(info["headers"]["x-number"] == number.to_string().as_str(), "{record}");
    ensure!(info["headers"]["authorization"] == "[redacted]", "{record}");
    let logs = &record["logs"];
    ensure!(logs["metadata"]["timeout_ms"] == 3000 && logs["metadata"]["memory_limit_mb"] == 64, "{record}");
    let (success, exit_code) = match deed {
        "crash" => (false, 9),
        "hang" => (false, -1),
        _ => (true, 0),
    };
    ensure!(record["success"] == success && record["status"] == if success { "success" } else { "error" }, "{record}");
    ensure!(logs["container"]["exit_code"] == exit_code, "{record}");
    ensure!(status == 504 || logs["container"]["stdout"] == format!("deed {deed}\n").as_str(), "{record}");
    ensure!(logs["errors"].as_array().is_some_and(|errors| errors.is_empty() == success), "{record}");
    Ok(number)
}

/// Looks at the seed's own columns, as the seed's own tools would.
fn check_rows(database: &crate::two_processes::Database) -> Result<()> {
    let count =
        |condition: &str| database.query(&format!("SELECT count(*) FROM function_invocations WHERE {condition}"));
    ensure!(count("true")? == "500");
    ensure!(
        count(
            "status = 'success' AND success AND error IS NULL AND result IS NOT NULL AND exists (select 1 from functions f where f.id = function_id)"
        )? == "400"
    );
    ensure!(count("status = 'error' AND NOT success AND result IS NULL AND error IS NOT NULL")? == "100");
    let timeout = "convert_from(decode(error, 'base64'), 'UTF8') = 'Function execution timed out (3000ms)'";
    ensure!(count(&format!("{timeout} AND duration_ms >= 3000"))? == "50");
    ensure!(
        count(
            "success AND convert_from(decode(result, 'base64'), 'UTF8')::jsonb ->> 'number' = request_info -> 'query' ->> 'n'"
        )? == "400"
    );
    ensure!(count(&format!("logs::text LIKE '%{SECRET}%' OR request_info::text LIKE '%{SECRET}%'"))? == "0");
    Ok(())
}
