//! Prometheus and Grafana: the rules pass their own tests, and a real Prometheus that scraped a real load, and the real
//! database behind it, have data for every panel of every dashboard.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::archive::archive;
use crate::client::Client;
use crate::dashboards::{self, Kind, Query, repository};
use crate::platform::{Form, Platform, Program, free_ports, until};
use crate::two_processes::Database;

/// How long Prometheus may take to start, and then to see its targets.
const PROMETHEUS_STARTS: Duration = Duration::from_secs(60);
/// How long the load may go on until every query has data.
const LOAD: Duration = Duration::from_secs(240);
/// The time range of the panels, in seconds.
const RANGE: u64 = 120;

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

/// A Prometheus with our configuration, but for the scrapes, which come every second.
struct Prometheus {
    program: Program,
    url: String,
    directory: TempDir,
}

impl Prometheus {
    fn start(platform: &Platform) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("dc-prometheus-").tempdir()?;
        let (from, to) = (repository("deploy/prometheus"), directory.path());
        for rules in ["rules.yml", "alerts.yml"] {
            std::fs::copy(from.join(rules), to.join(rules))?;
        }
        let config = std::fs::read_to_string(from.join("prometheus.yml"))?;
        ensure!(config.contains(": 15s") && config.contains(": 10s"), "other intervals than this test knows");
        std::fs::write(to.join("prometheus.yml"), config.replace(": 15s", ": 1s").replace(": 10s", ": 1s"))?;
        std::fs::create_dir(to.join("targets"))?;
        for (file, address) in ["gateways.yml", "agents.yml"].into_iter().zip(platform.ops_addresses()) {
            std::fs::write(to.join("targets").join(file), format!("- targets: [\"{address}\"]\n"))?;
        }
        let [port] = free_ports()?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "prometheus"]);
        command.arg(format!("--config.file={}", to.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", to.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let program = Program::spawn(command, &to.join("log"))?;
        Ok(Self { program, url: format!("http://127.0.0.1:{port}"), directory })
    }

    async fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let request = reqwest::Client::new().get(format!("{}/api/v1/{path}", self.url)).query(parameters);
        let answer: Value = request.timeout(Duration::from_secs(30)).send().await?.json().await?;
        ensure!(answer["status"] == "success", "{path} {parameters:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// Waits until both programs were scraped.
    async fn wait(&mut self) -> Result<()> {
        let log = self.directory.path().join("log");
        until("Prometheus has scraped both programs", PROMETHEUS_STARTS, async || {
            if let Some(status) = self.program.child.try_wait()? {
                bail!("Prometheus ended with {status}: {}", std::fs::read_to_string(&log)?);
            }
            // Nobody listens yet, at first.
            let up = self.api("query", &[("query", "sum(up)")]).await.unwrap_or_default();
            Ok((up["result"][0]["value"][1] == "2").then_some(()))
        })
        .await
    }

    /// Whether a query finds a number.
    async fn has_data(&self, kind: Kind, query: &str) -> Result<bool> {
        let number = |sample: &Value| sample[1].as_str().is_some_and(|text| text != "NaN" && !text.contains("Inf"));
        let now = seconds_now();
        let (start, end) = ((now - RANGE).to_string(), now.to_string());
        let data = match kind {
            Kind::Range => {
                let range = [("query", query), ("start", start.as_str()), ("end", end.as_str()), ("step", "1")];
                self.api("query_range", &range).await?
            }
            _ => self.api("query", &[("query", query)]).await?,
        };
        let series = data["result"].as_array().context("no result")?;
        let samples = |series: &Value| match series["values"].as_array() {
            Some(values) => values.iter().any(number),
            None => number(&series["value"]),
        };
        Ok(series.iter().any(samples))
    }

    /// Whether `label_values(metric, label)` finds one.
    async fn has_label(&self, query: &str, value: &str) -> Result<bool> {
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) =
            inner.and_then(|inner| inner.split_once(", ")).context("not label_values(metric, label)")?;
        let values = self.api(&format!("label/{label}/values"), &[("match[]", metric)]).await?;
        Ok(values.as_array().is_some_and(|values| values.iter().any(|found| found == value)))
    }

    /// The rules that have this type, each of which was evaluated without an error.
    async fn rules(&self, kind: &str) -> Result<Vec<Value>> {
        let data = self.api("rules", &[("type", kind)]).await?;
        let groups = data["groups"].as_array().context("no groups")?;
        let rules: Vec<_> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect();
        for rule in &rules {
            ensure!(rule["health"] == "ok", "{rule}");
        }
        Ok(rules)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Its data goes with its directory; there is nothing to flush.
        let _ = self.program.child.kill();
        let _ = self.program.child.wait();
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
    let settings = [("DATABASE_URL", database.url()), ("SANDBOX_BLANKS", "1")];
    let platform = Platform::start(Form::TwoProcesses, &settings).await?;
    let reader = Reader::create(&database)?;
    let mut prometheus = Prometheus::start(&platform)?;
    prometheus.wait().await?;
    let (mut load, function) = Load::begin(&platform).await?;
    let [_, node] = platform.ops_addresses();
    let values = Values { node, owner: load.user.handle.clone(), function, from_ms };

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
