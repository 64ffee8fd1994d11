//! While a server that the platform uses is away: calls of what is warm go on, records wait, and afterwards all is as it
//! was.
//!
//! `OUTAGE_SECONDS` says how long each server is away; what is promised is 60.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::json;

use crate::archive::{archive, script};
use crate::client::{Answer, Client};
use crate::fleet::Fleet;
use crate::platform::{Form, Platform, until};
use crate::two_processes::psql;

mod engine;
mod load;
mod servers;

use load::Load;
use servers::{Away, Postgres, Redis, Server};

/// For how long a server is away where nobody says so.
const SECONDS: u64 = 10;
/// Calls before, between and after.
const STEADY: usize = 50;
/// How long a control call may take to its refusal.
const REFUSED_WITHIN: Duration = Duration::from_secs(9);
const PATIENCE: Duration = Duration::from_secs(60);

fn outage() -> Duration {
    let seconds = std::env::var("OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(SECONDS))
}

/// Takes a moment, so that calls meet, and is kept warm.
fn file(access: &str) -> Vec<u8> {
    let manifest = format!("access = \"{access}\"\nconcurrency = 50\nmin_warm = 2\n");
    archive(&[("main.sh", "sleep 0.02\nprintf '{\"body\":1}' >/result.json\n"), ("dartcloud.toml", &manifest)])
}

fn server() -> Vec<u8> {
    let source = "require('http').createServer((_, answer) => answer.end('1')).listen(process.env.PORT);";
    archive(&[("index.js", source), ("dartcloud.toml", "contract = \"http\"\nmin_warm = 1\n")])
}

/// What is warm, and is called in turn.
async fn deploy(user: &Client) -> Result<Vec<(&'static str, String)>> {
    user.deploy("private", file("private")).await?.expect(201)?;
    user.deploy("public", file("public")).await?.expect(201)?;
    user.deploy("server", server()).await?.expect(201)?;
    let path = |name: &str| format!("/f/{}/{name}", user.handle);
    let envelope = "/api/functions/private/invoke".to_owned();
    Ok(vec![("GET", path("private")), ("GET", path("public")), ("GET", path("server")), ("POST", envelope)])
}

/// Is away for as long as is said, and does this meanwhile.
async fn without<S: Server>(server: &mut S, how: Away, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
    let begun = Instant::now();
    server.leave(how).await?;
    let done = meanwhile.await;
    tokio::time::sleep(outage().saturating_sub(begun.elapsed())).await;
    // Also after a failure, so that what is asked of it then is answered.
    server.come_back(how).await?;
    done.with_context(|| format!("{how:?}"))
}

/// A refusal that is no fault of the caller, in time, and with a word on when to try again.
async fn refused(what: &str, answer: impl Future<Output = Result<Answer>>) -> Result<()> {
    let begun = Instant::now();
    let answer = answer.await?;
    let took = begun.elapsed();
    ensure!(answer.headers.contains_key("retry-after"), "{what}: {answer:?}");
    answer.expect_error(503, "store_unavailable").with_context(|| what.to_owned())?;
    ensure!(took < REFUSED_WITHIN, "{what} was refused after {took:?}");
    Ok(())
}

/// What needs the database says so; what does not is there.
async fn control_is_refused(user: &Client) -> Result<()> {
    let login = json!({"email": "nobody@example.com", "password": "correct horse"});
    tokio::try_join!(
        refused("a list", user.get("/api/functions")),
        refused("a login", user.post("/api/auth/login", &login)),
        refused("a deploy", user.deploy("private", file("private"))),
        refused("a deletion", user.delete("/api/functions/public")),
    )?;
    // Else whatever spreads calls over gateways would take all of them out.
    user.get("/api/health/ready").await?.expect(200)?;
    let health = user.get("/api/health").await?.expect(200)?;
    ensure!(health["parts"]["store"] == "down", "{health}");
    Ok(())
}

/// A call that runs once is known again.
async fn repeats(user: &Client) -> Result<String> {
    let request = user.request("POST", &format!("/f/{}/once", user.handle)).header("idempotency-key", "a");
    let answer = Answer::of(request.json(&json!(1)).send().await?).await?;
    ensure!(answer.status == 200, "{answer:?}");
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    header("original-request").or_else(|| header("x-request-id")).context("no id")
}

/// How many records wait for the database, by an agent's metrics.
async fn waiting(ops: &str) -> Result<u64> {
    let metrics = reqwest::get(format!("http://{ops}/metrics")).await?.text().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("dartcloud_agent_spool_records "));
    Ok(line.context("no metric")?.parse()?)
}

/// Exactly what was answered has its record, but for the one call that runs once.
async fn until_recorded(url: &str, answered: &BTreeSet<String>) -> Result<()> {
    let sql = "SELECT id FROM function_invocations i WHERE success
               AND function_id IN (SELECT id FROM functions WHERE name <> 'once')";
    let recorded = || -> Result<BTreeSet<String>> { Ok(psql(url, sql)?.lines().map(str::to_owned).collect()) };
    let all = until("each call has its record", PATIENCE, async || Ok((recorded()? == *answered).then_some(()))).await;
    all.with_context(|| {
        let recorded = recorded().unwrap_or_default();
        let lost: Vec<_> = answered.difference(&recorded).take(10).collect();
        format!("{} answered, {} recorded; without a record: {lost:?}", answered.len(), recorded.len())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_away() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    let urls = [postgres.database("direct")?, postgres.database("linked")?];
    // The agent of one writes its records itself, that of the other sends them by its gateway.
    let direct = Platform::start(Form::TwoProcesses, &[("DATABASE_URL", urls[0].as_str())]).await?;
    let linked = Fleet::start(&[("DATABASE_URL", urls[1].as_str())]).await?;
    let machine = linked.machine("one").await?;
    let log = || format!("{}\n{}\n{}", direct.log(), linked.platform.log(), machine.log());
    let users = [direct.user().await?, linked.operator.clone()];
    let agents = [direct.ops_addresses()[1].clone(), format!("127.0.0.1:{}", machine.ops)];
    let (mut loads, mut once) = (Vec::new(), Vec::new());
    for user in &users {
        let targets = deploy(user).await.with_context(log)?;
        user.deploy("once", file("private")).await?.expect(201)?;
        once.push(repeats(user).await.with_context(log)?);
        loads.push(Load::begin(user, &targets));
    }
    for how in [Away::Killed, Away::Hung] {
        try_join_all(loads.iter().map(|load| load.more(STEADY))).await?;
        let meanwhile = async {
            try_join_all(users.iter().map(control_is_refused)).await?;
            for (user, once) in users.iter().zip(&once) {
                ensure!(repeats(user).await? == *once, "it ran again");
            }
            try_join_all(loads.iter().map(|load| load.more(STEADY))).await?;
            for agent in &agents {
                ensure!(waiting(agent).await? > 0, "no records wait");
            }
            Ok(())
        };
        without(&mut postgres, how, meanwhile).await.with_context(log)?;
        for (user, agent) in users.iter().zip(&agents) {
            let listed = until("it answers again", PATIENCE, async || {
                Ok((user.get("/api/functions").await?.status == 200).then_some(()))
            });
            listed.await.with_context(log)?;
            user.deploy(&format!("after-{how:?}").to_lowercase(), script("printf '{\"body\":1}' >/result.json"))
                .await?
                .expect(201)
                .with_context(log)?;
            until("the records are shipped", PATIENCE, async || Ok((waiting(agent).await? < 20).then_some(())))
                .await
                .with_context(log)?;
        }
    }
    for (load, url) in loads.into_iter().zip(&urls) {
        load.more(STEADY).await?;
        let answered = load.end().await.with_context(log)?;
        println!("PostgreSQL was killed and hung for {:?} each: {answered}", outage());
        until_recorded(url, &answered.ids).await.with_context(log)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_away() -> Result<()> {
    let mut redis = Redis::start()?;
    // A rate that has to be asked for again and again, and is never reached.
    let settings = [("REDIS_URL", redis.url()), ("RATE_LIMIT_PER_CLIENT", "300".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let platform = Platform::start(Form::TwoProcesses, &settings).await?;
    let user = platform.user().await?;
    let targets = deploy(&user).await.with_context(|| platform.log())?;
    let up = async |expected: &str| {
        let line = format!("\ndartcloud_limits_redis_up {expected}\n");
        until(&line, PATIENCE, async || Ok(platform.metrics().await?.contains(&line).then_some(()))).await
    };
    up("1").await?;
    let load = Load::begin(&user, &targets);
    for how in [Away::Killed, Away::Hung] {
        load.more(STEADY).await?;
        let meanwhile = async {
            up("0").await?;
            // Control calls have limits there, too, and so has who wants to log in.
            user.get("/api/functions").await?.expect(200)?;
            Client::register(&platform.url()).await.map(drop)?;
            user.get("/api/health/ready").await?.expect(200)?;
            load.more(STEADY).await
        };
        without(&mut redis, how, meanwhile).await.with_context(|| platform.log())?;
        up("1").await?;
    }
    load.more(STEADY).await?;
    let answered = load.end().await.with_context(|| platform.log())?;
    println!("Redis was killed and hung for {:?} each: {answered}", outage());
    let recorded = async || {
        let records = try_join_all(["private", "public", "server"].map(|name| user.records(name, 0))).await?;
        let ids = records.iter().flatten().filter_map(|record| record["id"].as_str().map(str::to_owned));
        Ok((ids.collect::<BTreeSet<_>>() == answered.ids).then_some(()))
    };
    until("each call has its record", PATIENCE, recorded).await
}
