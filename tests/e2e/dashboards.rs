//! Grafana's dashboards as files: they are read here, found to be whole, and turned into the queries that Grafana would
//! send.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The width of Grafana's grid.
const COLUMNS: u64 = 24;

/// What is asked of a data source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// PromQL, of now.
    Instant,
    /// PromQL, over the time range.
    Range,
    /// SQL.
    Sql,
    /// Prometheus' values of a label, for a variable.
    Label,
}

/// A query of a dashboard, its variables still in it.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// The dashboard and the panel or variable.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// A folder of the repository.
pub(crate) fn repository(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)
}

/// Every dashboard.
pub(crate) fn all() -> Result<Vec<Value>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(repository("dashboards"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    files.iter().map(|file| serde_json::from_slice(&std::fs::read(file)?).context(file.display().to_string())).collect()
}

/// The panels that show something.
pub(crate) fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    array(dashboard, "panels").iter().filter(|panel| panel["type"] != "row")
}

/// All that a dashboard asks for, its variables first.
pub(crate) fn queries(dashboard: &Value) -> Result<Vec<Query>> {
    let title = text(dashboard, "title")?;
    let mut queries = Vec::new();
    for variable in array(&dashboard["templating"], "list").iter().filter(|variable| variable["type"] == "query") {
        let (kind, query) = match variable["datasource"]["uid"].as_str() {
            Some("${postgres}") => (Kind::Sql, &variable["query"]),
            _ => (Kind::Label, &variable["query"]["query"]),
        };
        let query = query.as_str().context("a variable without a query")?.to_owned();
        queries.push(Query { name: format!("{title}: ${}", text(variable, "name")?), kind, text: query });
    }
    for panel in panels(dashboard) {
        for target in array(panel, "targets") {
            let (kind, key) = match (target["datasource"]["uid"].as_str(), target["instant"] == true) {
                (Some("${postgres}"), _) => (Kind::Sql, "rawSql"),
                (_, true) => (Kind::Instant, "expr"),
                (_, false) => (Kind::Range, "expr"),
            };
            let name = format!("{title}: {} {}", text(panel, "title")?, text(target, "refId")?);
            queries.push(Query { name, kind, text: text(target, key)?.to_owned() });
        }
    }
    Ok(queries)
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().filter(|text| !text.is_empty()).with_context(|| format!("no `{key}` in {value}"))
}

/// Where a panel lies: x, y, width, height.
fn place(panel: &Value) -> Result<[u64; 4]> {
    let side = |key: &str| panel["gridPos"][key].as_u64().with_context(|| format!("no `{key}` in {panel}"));
    Ok([side("x")?, side("y")?, side("w")?, side("h")?])
}

fn overlap([x1, y1, w1, h1]: [u64; 4], [x2, y2, w2, h2]: [u64; 4]) -> bool {
    x1 < x2 + w2 && x2 < x1 + w1 && y1 < y2 + h2 && y2 < y1 + h1
}

/// Each data source is a variable of the dashboard, so that the dashboard works wherever it is imported.
fn check_sources(dashboard: &Value) -> Result<()> {
    let variables: BTreeSet<String> = array(&dashboard["templating"], "list")
        .iter()
        .filter(|variable| variable["type"] == "datasource")
        .map(|variable| Ok(format!("${{{}}}", text(variable, "name")?)))
        .collect::<Result<_>>()?;
    let mut used = BTreeSet::new();
    for panel in panels(dashboard) {
        for holder in [panel].into_iter().chain(array(panel, "targets")) {
            used.insert(text(&holder["datasource"], "uid")?.to_owned());
        }
    }
    ensure!(used == variables, "used are {used:?}, there are {variables:?}");
    Ok(())
}

fn check_panels(dashboard: &Value) -> Result<()> {
    let (mut ids, mut places) = (BTreeSet::new(), Vec::new());
    for panel in array(dashboard, "panels") {
        let title = text(panel, "title")?;
        ensure!(ids.insert(panel["id"].as_u64().context("no id")?), "{title}: its id is another's");
        let mine @ [x, _, width, height] = place(panel)?;
        ensure!(width > 0 && height > 0 && x + width <= COLUMNS, "{title} is not on the grid");
        if let Some((other, _)) = places.iter().find(|(_, other)| overlap(mine, *other)) {
            bail!("{title} lies over {other}");
        }
        places.push((title, mine));
        if panel["type"] == "row" {
            continue;
        }
        text(&panel["fieldConfig"]["defaults"], "unit").context(title.to_owned())?;
        ensure!(!array(panel, "targets").is_empty(), "{title} asks for nothing");
        let references: BTreeSet<_> =
            array(panel, "targets").iter().map(|target| target["refId"].to_string()).collect();
        ensure!(references.len() == array(panel, "targets").len(), "{title}: a refId stands there twice");
    }
    Ok(())
}

#[test]
fn they_are_whole() -> Result<()> {
    let (dashboards, mut uids) = (all()?, BTreeSet::new());
    for dashboard in &dashboards {
        let (title, uid) = (text(dashboard, "title")?, text(dashboard, "uid")?);
        ensure!(uids.insert(uid), "{title}: its uid is another's");
        ensure!(dashboard["id"].is_null() && dashboard["schemaVersion"] == 39, "{title}: id or schemaVersion");
        check_sources(dashboard).and_then(|()| check_panels(dashboard)).context(title.to_owned())?;
        ensure!(!queries(dashboard)?.is_empty(), "{title} asks for nothing");
    }
    let names = ["cold-starts", "function", "node", "overview", "tenants"].map(|name| format!("dartcloud-{name}"));
    ensure!(uids.iter().copied().eq(names.iter()), "{uids:?}");
    Ok(())
}
