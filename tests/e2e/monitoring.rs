//! Prometheus and Grafana: the rules pass their own tests, and a real Prometheus that scraped a real load, and the real
//! database behind it, have data for every panel of every dashboard.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::archive::archive;
use crate::client::Client;
use crate::dashboards::{self, Kind, Query, repository};
use crate::fleet::Fleet;
use crate::platform::{Form, Platform, until};
use crate::prometheus::{Prometheus, seconds_now};
use crate::two_processes::Database;

/// How long the load may go on until every query has data.
const LOAD: Duration = Duration::from_secs(240);
/// How the node is called.
const NODE: &str = "worker";

/// Calls at once, two more than the function may have.
const BURST: usize = 8;

/// Panels without data in a run in which all is well, and why.
const WITHOUT_DATA: [(&str, &str); 1] =
    [("Dart Cloud / Overview: What fires A", "no alert fires while all is well, which is looked at for itself")];

/// Does as its request's body says.
const MIXED: &str = "import json, sys, time
wish = json.load(open('/request.json'))['body']
if wish == 'crash':
    sys.exit(3)
time.sleep({'wait': 1, 'late': 60}.get(wish, 0))
if wish != 'nothing':
    json.dump({'body': 'done'}, open('/result.json', 'w'))
";

fn promtool(arguments: &[&str]) -> Result<String> {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(repository("deploy/prometheus"))
        .output()
        .context("no promtool: script/setup test installs it")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "promtool {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

#[test]
fn rules_are_valid_and_pass_their_tests() -> Result<()> {
    promtool(&["check", "config", "prometheus.yml"])?;
    let checked = promtool(&["check", "rules", "rules.yml", "alerts.yml"])?;
    promtool(&["test", "rules", "tests.yml"])?;
    println!("{}", checked.lines().filter(|line| line.contains("found")).collect::<Vec<_>>().join("\n"));
    let read = |path: &str| std::fs::read_to_string(repository("deploy").join(path));
    let (alerts, tests, manual) = (read("prometheus/alerts.yml")?, read("prometheus/tests.yml")?, read("README.md")?);
    let names: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(!names.is_empty());
    for name in names {
        let looked_at = format!(r#"alertname="{name}", alertstate="firing""#);
        ensure!(tests.contains(&format!("{looked_at}, ")), "no test in which {name} fires");
        ensure!(tests.contains(&format!("{looked_at}}}")), "no test of {name}");
        ensure!(manual.contains(&format!("`{name}`")), "deploy/README.md does not say what {name} means");
    }
    Ok(())
}

/// The role that Grafana reads the database by; it goes before the database does.
struct Reader<'a> {
    database: &'a Database,
    role: String,
}

impl<'a> Reader<'a> {
    fn create(database: &'a Database) -> Result<Self> {
        let role = format!("grafana_{}", uuid::Uuid::now_v7().simple());
        let script = repository("deploy/grafana/reader.sql");
        // Twice: an operator may run it again.
        for _ in 0..2 {
            let mut command = Command::new("psql");
            command.args(["-X", "-q", "-v", "password=secret", "-v", &format!("role={role}"), "-f"]);
            let output = command.arg(&script).arg(database.url()).output()?;
            ensure!(output.status.success(), "reader.sql: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self { database, role })
    }

    /// What the role gets.
    fn query(&self, sql: &str) -> Result<String> {
        self.database.query(&format!("SET ROLE {}; {sql}", self.role))
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // What is left of it is gone with the suite's server.
        let _ = self.database.query(&format!("DROP OWNED BY {0}; DROP ROLE {0}", self.role));
    }
}

/// What Grafana puts in for its variables and macros.
struct Values {
    node: String,
    owner: String,
    function: String,
    from_ms: u64,
}

impl Values {
    fn put_into(&self, query: &str) -> Result<String> {
        let to_ms = (seconds_now() + 60) * 1000;
        let put = [
            ("$__rate_interval", "10s"),
            ("$__timeGroup(i.created_at, $__interval)", "floor(extract(epoch FROM i.created_at) / 60) * 60"),
            ("$__interval_ms", "60000"),
            ("${__from}", &self.from_ms.to_string()),
            ("${__to}", &to_ms.to_string()),
            ("${owner:sqlstring}", &format!("'{}'", self.owner)),
            ("${function:sqlstring}", &format!("'{}'", self.function)),
            ("$node", &self.node),
        ];
        let text = put.iter().fold(query.to_owned(), |text, (name, value)| text.replace(name, value));
        ensure!(!text.contains('$'), "a variable that this test does not know: {text}");
        Ok(text)
    }
}

/// Somebody who uses the platform in every way there is.
struct Load {
    user: Client,
    rounds: u32,
}

impl Load {
    /// The function whose dashboard is looked at, with a build of its own and a cold start each time.
    async fn deploy_mixed(&self) -> Result<String> {
        let source = format!("{MIXED}# {}\n", self.rounds);
        let manifest = "access = \"public\"\ntimeout_ms = 5000\nconcurrency = 6\n";
        let answer = self.user.deploy("mixed", archive(&[("main.py", &source), ("dartcloud.toml", manifest)])).await?;
        ensure!([200, 201].contains(&answer.status), "{answer:?}");
        Ok(answer.body["id"].as_str().context("no id")?.to_owned())
    }

    async fn begin(platform: &Platform) -> Result<(Self, String)> {
        let load = Self { user: platform.user().await?, rounds: 0 };
        let server = [
            ("index.js", include_str!("programs/probe.js")),
            ("dartcloud.toml", "contract = \"http\"\naccess = \"public\"\n"),
        ];
        load.user.deploy("server", archive(&server)).await?.expect(201)?;
        let id = load.deploy_mixed().await?;
        Ok((load, id))
    }

    /// Every kind of call once.
    async fn round(&mut self, platform: &Platform) -> Result<()> {
        self.rounds += 1;
        self.deploy_mixed().await?;
        let call = |what: &'static str| self.user.invoke("mixed", json!(what));
        // More than it may have, and more than there are blank sandboxes for.
        let statuses: Vec<u16> =
            try_join_all((0..BURST).map(|_| call("wait"))).await?.iter().map(|it| it.status).collect();
        ensure!(statuses.contains(&429) && statuses.contains(&200), "{statuses:?}");
        call("well").await?.expect(200)?;
        call("well").await?.expect(200)?;
        call("crash").await?.expect_error(502, "function_crashed")?;
        call("nothing").await?.expect_error(502, "invalid_result")?;
        if self.rounds == 1 {
            call("late").await?.expect_error(504, "timeout")?;
        }
        let path = format!("/f/{}", self.user.handle);
        self.user.get(&format!("{path}/server/count")).await?.expect(200)?;
        self.user.get(&format!("{path}/mixed")).await?.expect(200)?;
        self.user.get(&format!("{path}/nobody")).await?.expect_error(404, "not_found")?;
        self.user.with_token("no.such.token").invoke("mixed", json!(1)).await?.expect_error(401, "unauthorized")?;
        for _ in 0..2 {
            let once = self.user.request("POST", &format!("{path}/mixed")).header("idempotency-key", self.rounds);
            ensure!(once.json("well").send().await?.status().is_success());
        }
        self.user.get("/api/functions").await?.expect(200)?;
        // Hashes a password or two.
        platform.user().await?;
        Ok(())
    }
}

/// Whether a query of a dashboard finds data.
async fn found(query: &Query, values: &Values, prometheus: &Prometheus, reader: &Reader<'_>) -> Result<bool> {
    let text = values.put_into(&query.text)?;
    let found = match query.kind {
        Kind::Label => prometheus.has_label(&text, &values.node).await,
        Kind::Sql => Ok(reader.query(&text)?.lines().any(|row| row.split('|').any(|column| !column.is_empty()))),
        kind => prometheus.has_data(kind, &text).await,
    };
    found.with_context(|| format!("{}: {text}", query.name))
}

#[tokio::test]
async fn every_panel_has_data() -> Result<()> {
    let from_ms = seconds_now() * 1000;
    let database = Database::create()?;
    let settings = [("DATABASE_URL", database.url()), ("SANDBOX_BLANKS", "1"), ("NODE_NAME", NODE)];
    let platform = Platform::start(Form::TwoProcesses, &settings).await?;
    let reader = Reader::create(&database)?;
    let [gateway, _] = platform.ops_addresses();
    let mut prometheus = Prometheus::start(&gateway)?;
    prometheus.until("count(up == 1) == 2").await.with_context(|| platform.log())?;
    let (mut load, function) = Load::begin(&platform).await?;
    let values = Values { node: NODE.into(), owner: load.user.handle.clone(), function, from_ms };

    let boards = dashboards::all()?;
    let queries: Vec<Query> = boards.iter().map(dashboards::queries).collect::<Result<Vec<_>>>()?.concat();
    for (name, _) in WITHOUT_DATA {
        ensure!(queries.iter().any(|query| query.name == name), "there is no {name}");
    }
    let recorded = prometheus.rules("record").await?;
    let of_rule = |rule: &Value| {
        let name = rule["name"].as_str().unwrap_or_default().to_owned();
        Query { name: format!("rule {name}"), kind: Kind::Instant, text: name }
    };
    let mut waiting: Vec<Query> = queries.iter().cloned().chain(recorded.iter().map(of_rule)).collect();
    waiting.retain(|query| !WITHOUT_DATA.iter().any(|(name, _)| *name == query.name));
    let looked_at = waiting.len();
    let mut last = Vec::new();
    let all_found = until("every query has data", LOAD, async || {
        load.round(&platform).await.with_context(|| platform.log())?;
        let mut still = Vec::new();
        for query in std::mem::take(&mut waiting) {
            if !found(&query, &values, &prometheus, &reader).await? {
                still.push(query);
            }
        }
        waiting = still;
        last = waiting.iter().map(|query| format!("{}: {}", query.name, query.text)).collect();
        Ok(waiting.is_empty().then_some(()))
    })
    .await;
    all_found.with_context(|| format!("without data:\n{}", last.join("\n")))?;

    // What the role may not see, it does not.
    for secret in ["SELECT result FROM function_invocations", "SELECT password_hash FROM users"] {
        ensure!(reader.query(secret).is_err(), "{secret}");
    }
    let alerts = prometheus.rules("alert").await?;
    let firing: Vec<_> = alerts.iter().filter(|rule| rule["state"] == "firing").map(|rule| &rule["name"]).collect();
    ensure!(firing.is_empty(), "all is well, and {firing:?}");
    let count = |kind| queries.iter().filter(|query| query.kind == kind).count();
    println!(
        "{} dashboards, {} panels: {} PromQL and {} SQL queries, {} of them of variables; {} recording rules, {} alerts; \
         {looked_at} queries with data after {} rounds, without: {WITHOUT_DATA:?}",
        boards.len(),
        boards.iter().map(|board| dashboards::panels(board).count()).sum::<usize>(),
        queries.len() - count(Kind::Sql),
        count(Kind::Sql),
        queries.iter().filter(|query| query.name.contains(": $")).count(),
        recorded.len(),
        alerts.len(),
        load.rounds,
    );
    Ok(())
}

/// The names of all metrics that a page has.
async fn names(url: &str) -> Result<BTreeSet<String>> {
    let text = reqwest::get(url).await?.error_for_status()?.text().await?;
    Ok(text.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_scraped_from_its_joining_to_its_removal() -> Result<()> {
    let fleet = Fleet::start(&[]).await?;
    let [gateway, _] = fleet.platform.ops_addresses();
    let mut prometheus = Prometheus::start(&gateway)?;
    prometheus.until(&format!("up{{job=\"dartcloud-gateway\", instance=\"{gateway}\"}} == 1")).await?;
    let begun = Instant::now();
    let mut machine = fleet.machine("web-1").await?;
    let there = r#"dartcloud_agent_link_connections{job="dartcloud-agent", instance="web-1", node="web-1"} > 0"#;
    prometheus.until(there).await.with_context(|| machine.log())?;
    println!("scraped {:?} after the machine was begun", begun.elapsed());
    let (own, id) = (format!("http://127.0.0.1:{}/metrics", machine.ops), fleet.nodes().await?[0]["id"].clone());
    let passed = format!("http://{gateway}/nodes/{}/metrics", id.as_str().context("no id")?);
    let (own, passed_on) = (names(&own).await?, names(&passed).await?);
    ensure!(own == passed_on && own.len() > 20, "{own:?}, {passed_on:?}");

    // Whoever is gone is missed.
    machine.stop().await?;
    prometheus.until(r#"max_over_time(up{instance="web-1"}[5s]) == 0 and up{instance="web-1"}"#).await?;
    let answer = reqwest::get(&passed).await?;
    ensure!(answer.status() == 503 && answer.text().await?.contains("not linked"));
    machine.run("web-1", "dartcloud-node-agent")?;
    prometheus.until(r#"up{instance="web-1"} == 1"#).await.with_context(|| machine.log())?;

    fleet.node(&["remove", "web-1"])?;
    until("nobody but the gateway is scraped", Duration::from_secs(30), async || {
        let targets = prometheus.api("targets", &[("state", "active")]).await?;
        let jobs =
            targets["activeTargets"].as_array().context("no targets")?.iter().map(|target| &target["labels"]["job"]);
        Ok(jobs.eq(["dartcloud-gateway"]).then_some(()))
    })
    .await?;
    ensure!(reqwest::get(&passed).await?.status() == 404);
    Ok(())
}
