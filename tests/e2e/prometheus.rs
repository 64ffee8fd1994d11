//! A real Prometheus with our configuration, and what it is asked.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::dashboards::{Kind, repository};
use crate::platform::{Program, free_ports, until};

/// How long Prometheus may take to start and see its targets, or what becomes of one.
const PATIENCE: Duration = Duration::from_secs(90);
/// The time range of the panels, in seconds.
const RANGE: u64 = 120;
/// The gateway that our configuration names.
const DEFAULT_GATEWAY: &str = "127.0.0.1:9464";

/// A Prometheus with our configuration, but for the scrapes, which come every second.
pub(crate) struct Prometheus {
    program: Program,
    url: String,
    directory: TempDir,
}

impl Prometheus {
    /// For one gateway, by its ops address, and the nodes that it names.
    pub(crate) fn start(gateway: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("dc-prometheus-").tempdir()?;
        let (from, to) = (repository("deploy/prometheus"), directory.path());
        for rules in ["rules.yml", "alerts.yml"] {
            std::fs::copy(from.join(rules), to.join(rules))?;
        }
        let config = std::fs::read_to_string(from.join("prometheus.yml"))?;
        ensure!(config.contains(": 15s") && config.contains(": 10s"), "other intervals than this test knows");
        ensure!(config.matches(DEFAULT_GATEWAY).count() == 1, "another gateway than this test knows");
        let config = config.replace(": 15s", ": 1s").replace(": 10s", ": 1s").replace(DEFAULT_GATEWAY, gateway);
        std::fs::write(to.join("prometheus.yml"), config)?;
        std::fs::create_dir(to.join("targets"))?;
        std::fs::write(to.join("targets/gateways.yml"), format!("- targets: [\"{gateway}\"]\n"))?;
        let [port] = free_ports()?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "prometheus"]);
        command.arg(format!("--config.file={}", to.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", to.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let program = Program::spawn(command, &to.join("log"))?;
        Ok(Self { program, url: format!("http://127.0.0.1:{port}"), directory })
    }

    pub(crate) async fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let request = reqwest::Client::new().get(format!("{}/api/v1/{path}", self.url)).query(parameters);
        let answer: Value = request.timeout(Duration::from_secs(30)).send().await?.json().await?;
        ensure!(answer["status"] == "success", "{path} {parameters:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// Waits until a query finds a number.
    pub(crate) async fn until(&mut self, query: &str) -> Result<()> {
        let log = self.directory.path().join("log");
        until(query, PATIENCE, async || {
            if let Some(status) = self.program.child.try_wait()? {
                bail!("Prometheus ended with {status}: {}", std::fs::read_to_string(&log)?);
            }
            // Nobody listens yet, at first.
            Ok(self.has_data(Kind::Instant, query).await.unwrap_or_default().then_some(()))
        })
        .await
    }

    /// Whether a query finds a number.
    pub(crate) async fn has_data(&self, kind: Kind, query: &str) -> Result<bool> {
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
    pub(crate) async fn has_label(&self, query: &str, value: &str) -> Result<bool> {
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) =
            inner.and_then(|inner| inner.split_once(", ")).context("not label_values(metric, label)")?;
        let values = self.api(&format!("label/{label}/values"), &[("match[]", metric)]).await?;
        Ok(values.as_array().is_some_and(|values| values.iter().any(|found| found == value)))
    }

    /// The rules that have this type, each of which was evaluated without an error.
    pub(crate) async fn rules(&self, kind: &str) -> Result<Vec<Value>> {
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

pub(crate) fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
