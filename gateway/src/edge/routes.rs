//! The route table: every function that serves, in one immutable picture that is swapped in whole. The invoke path
//! reads it and never waits for the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use common::function::{Access, DeploymentSpec};
use common::ids::{DeploymentId, FunctionId, UserId};
use http::HeaderValue;
use store::{Function, Store};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::limits::Admission;
use crate::fleet::warmth::Wish;

/// The table, and the one way to replace it.
pub(crate) struct Routes {
    table: ArcSwap<Table>,
    /// Held while a table is read and put in, so that an older reading never replaces a newer one.
    /// What it holds is the database's number of the table.
    reloading: tokio::sync::Mutex<Option<i64>>,
    /// A table was put in.
    swapped: Notify,
}

/// All that the invoke path has to know of one function.
pub(crate) struct Route {
    /// Whose it is.
    pub(crate) owner: UserId,
    /// Who may call it.
    pub(crate) access: Access,
    /// The version that serves.
    pub(crate) spec: DeploymentSpec,
    /// The version's id, as a header.
    pub(crate) deployment: HeaderValue,
    /// The time limit of a call.
    pub(crate) timeout: Duration,
    /// The calls that are under way; the same counter in every table.
    pub(crate) admission: Arc<Admission>,
}

/// What a new table leaves out of the one before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// Versions that served and serve no more: they get no new calls.
    pub(crate) retired: Vec<DeploymentId>,
    /// Versions that no call is on its way to any more.
    pub(crate) forgotten: Vec<DeploymentId>,
}

type Names = HashMap<Box<str>, Arc<Route>>;

/// One picture of all that serves.
#[derive(Default)]
pub(crate) struct Table {
    functions: HashMap<FunctionId, Arc<Route>>,
    deployments: HashMap<DeploymentId, Arc<Route>>,
    /// Of each function that serves, the version before: calls that were let in before the swap still go to it.
    replaced: HashMap<DeploymentId, Arc<Route>>,
    by_handle: HashMap<Box<str>, Names>,
    by_owner: HashMap<UserId, Names>,
    /// Of those that are to be warm whether or not anybody calls.
    wishes: Vec<Wish>,
}

impl Routes {
    /// An empty table.
    pub(crate) fn new() -> Self {
        Self {
            table: ArcSwap::from_pointee(Table::default()),
            reloading: tokio::sync::Mutex::new(None),
            swapped: Notify::new(),
        }
    }

    /// Reads the store and swaps the table. Functions keep their admission counters. What the table before had and this one
    /// has not, each told once.
    ///
    /// # Errors
    /// The store does not answer; the table stays as it was.
    pub(crate) async fn reload(&self, store: &dyn Store) -> Result<LeftOut, store::Error> {
        self.read(&mut *self.reloading.lock().await, store).await
    }

    /// The same, unless the table has this number of the store's already.
    ///
    /// # Errors
    /// The store does not answer; the table stays as it was.
    pub(crate) async fn catch_up(&self, store: &dyn Store, number: i64) -> Result<LeftOut, store::Error> {
        let mut turn = self.reloading.lock().await;
        if *turn == Some(number) { Ok(LeftOut::default()) } else { self.read(&mut turn, store).await }
    }

    async fn read(&self, turn: &mut Option<i64>, store: &dyn Store) -> Result<LeftOut, store::Error> {
        // Before the table, which may be newer than its number, but never older.
        let number = store.changes().await?.routes;
        let serving = store.serving().await?;
        let before = self.table.load_full();
        let table = Table::of(serving, &before);
        let left_out = table.leaves_out(&before);
        tracing::debug!(functions = table.functions.len(), "routes reloaded");
        self.table.store(Arc::new(table));
        *turn = Some(number);
        self.swapped.notify_waiters();
        Ok(left_out)
    }

    /// Waits for the next table, from this call on.
    pub(crate) fn swapped(&self) -> Notified<'_> {
        self.swapped.notified()
    }

    /// Nothing is reloaded for as long as the guard is held.
    #[cfg(test)]
    pub(crate) async fn hold(&self) -> tokio::sync::MutexGuard<'_, Option<i64>> {
        self.reloading.lock().await
    }

    /// The table of this moment. Do not hold it over an await.
    pub(crate) fn now(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }
}

impl Table {
    /// A table of `serving`; functions that `before` has keep their counters.
    fn of(serving: Vec<Function>, before: &Self) -> Self {
        let mut table = Self::default();
        let replaced: HashMap<_, _> = before.replaced.values().map(|route| (route.spec.function, route)).collect();
        for function in serving {
            let Some(active) = function.active else { continue };
            let earlier = before.functions.get(&function.id);
            let admission = earlier.map(|route| route.admission.clone());
            let previous = match earlier {
                Some(earlier) if earlier.spec.deployment != active.spec.deployment => Some(earlier),
                _ => replaced.get(&function.id).copied(),
            };
            if let Some(previous) = previous {
                table.replaced.insert(previous.spec.deployment, previous.clone());
            }
            let route = Arc::new(Route {
                owner: function.owner,
                access: active.access,
                deployment: HeaderValue::try_from(active.spec.deployment.to_string())
                    .expect("a UUID is a valid header value"),
                timeout: Duration::from_millis(active.spec.limits.timeout_ms.into()),
                spec: active.spec,
                admission: admission.unwrap_or_default(),
            });
            table.wishes.extend(Wish::of(&route.spec));
            let name: Box<str> = function.name.as_str().into();
            table.deployments.insert(route.spec.deployment, route.clone());
            let handle = table.by_handle.entry(function.owner_handle.as_str().into()).or_default();
            handle.insert(name.clone(), route.clone());
            table.by_owner.entry(function.owner).or_default().insert(name, route.clone());
            table.functions.insert(function.id, route);
        }
        table
    }

    /// What it has not that `before` has.
    fn leaves_out(&self, before: &Self) -> LeftOut {
        let known = before.deployments.keys().chain(before.replaced.keys());
        LeftOut {
            retired: before.deployments.keys().filter(|id| !self.serves(**id)).copied().collect(),
            forgotten: known.filter(|id| self.by_deployment(**id).is_none()).copied().collect(),
        }
    }

    /// The function at `/f/{handle}/{name}`.
    pub(crate) fn by_path(&self, handle: &str, name: &str) -> Option<&Arc<Route>> {
        self.by_handle.get(handle)?.get(name)
    }

    /// A function of `owner`, by id or by name; somebody else's is not there.
    pub(crate) fn by_key(&self, owner: UserId, key: &str) -> Option<&Arc<Route>> {
        let by_id = key.parse().ok().and_then(|id: FunctionId| self.functions.get(&id));
        let by_name = || self.by_owner.get(&owner)?.get(key);
        by_id.filter(|route| route.owner == owner).or_else(by_name)
    }

    /// A version that calls may be on their way to: one that serves, or the one that it replaced.
    pub(crate) fn by_deployment(&self, id: DeploymentId) -> Option<&Arc<Route>> {
        self.deployments.get(&id).or_else(|| self.replaced.get(&id))
    }

    /// What is to be warm of those that serve.
    pub(crate) fn wishes(&self) -> &[Wish] {
        &self.wishes
    }

    /// Whether a version serves.
    pub(crate) fn serves(&self, id: DeploymentId) -> bool {
        self.deployments.contains_key(&id)
    }
}

/// Where a path leads, before anything is looked up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// `/`: a word about what this is.
    Home,
    /// Everything below `/api/` but the invocations.
    Control,
    /// `/f/{handle}/{name}`, with what follows, which is empty or begins with a slash.
    Http { handle: &'a str, name: &'a str, rest: &'a str },
    /// `/api/functions/{key}/invoke`.
    Envelope { key: &'a str },
    /// Nothing of ours.
    Unknown,
}

impl<'a> Target<'a> {
    /// Reads a path that the gate let through.
    pub(crate) fn of(path: &'a str) -> Self {
        if let Some(tail) = path.strip_prefix("/f/") {
            let Some((handle, tail)) = tail.split_once('/') else { return Self::Unknown };
            let (name, rest) = tail.split_at(tail.find('/').unwrap_or(tail.len()));
            return Self::Http { handle, name, rest };
        }
        if let Some(tail) = path.strip_prefix("/api/functions/") {
            return match tail.strip_suffix("/invoke") {
                Some(key) if !key.is_empty() && !key.contains('/') => Self::Envelope { key },
                _ => Self::Control,
            };
        }
        match path {
            "/" => Self::Home,
            "/api" => Self::Control,
            _ if path.starts_with("/api/") => Self::Control,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::digest::Digest;
    use common::function::{Limits, Status};
    use store::ActiveDeployment;

    fn check(path: &str, expected: Target<'_>) {
        assert_eq!(Target::of(path), expected, "{path}");
    }

    #[test]
    fn paths() {
        check("/", Target::Home);
        check("/api/health", Target::Control);
        check("/api", Target::Control);
        check("/api/functions", Target::Control);
        check("/api/functions/x", Target::Control);
        check("/api/functions/x/logs", Target::Control);
        check("/api/functions/x/invoke", Target::Envelope { key: "x" });
        check("/api/functions//invoke", Target::Control);
        check("/api/functions/x/y/invoke", Target::Control);
        check("/apis", Target::Unknown);
        check("/f/me/hello", Target::Http { handle: "me", name: "hello", rest: "" });
        check("/f/me/hello/", Target::Http { handle: "me", name: "hello", rest: "/" });
        check("/f/me/hello/a/b", Target::Http { handle: "me", name: "hello", rest: "/a/b" });
        check("/f/me", Target::Unknown);
        check("/f", Target::Unknown);
        check("/metrics", Target::Unknown);
    }

    pub(crate) fn function(owner: UserId, handle: &str, name: &str) -> Function {
        let id = FunctionId::new();
        Function {
            id,
            owner,
            owner_handle: handle.parse().unwrap(),
            name: name.parse().unwrap(),
            status: Status::Active,
            active: Some(ActiveDeployment {
                access: Access::Private,
                spec: DeploymentSpec {
                    deployment: DeploymentId::new(),
                    function: id,
                    version: 1,
                    runtime: "native".parse().unwrap(),
                    entrypoint: "main".into(),
                    archive: Digest::of(b""),
                    archive_root: None,
                    limits: Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 1, min_warm: 0 },
                    env: Default::default(),
                    contract: common::function::Contract::File,
                    egress: false,
                    stale_while_cold_ms: 0,
                    node_selector: common::labels::Labels::NONE,
                },
            }),
            created_at: chrono::Utc::now(),
            updated_at: chrono::Utc::now(),
        }
    }

    #[test]
    fn what_belongs_to_someone_else_is_not_there() {
        let (ann, bob) = (UserId::new(), UserId::new());
        let (hers, his) = (function(ann, "ann", "hello"), function(bob, "bob", "hello"));
        let table = Table::of(vec![hers.clone(), his.clone()], &Table::default());
        let found = |owner, key: &str| table.by_key(owner, key).map(|route| route.spec.function);
        assert_eq!(found(ann, "hello"), Some(hers.id));
        assert_eq!(found(bob, "hello"), Some(his.id));
        assert_eq!(found(ann, &hers.id.to_string()), Some(hers.id));
        assert_eq!(found(ann, &his.id.to_string()), None);
        assert_eq!(found(ann, "other"), None);
        assert_eq!(table.by_path("bob", "hello").map(|route| route.spec.function), Some(his.id));
        assert!(table.by_path("bob", "Hello").is_none());
        assert!(table.by_path("eve", "hello").is_none());
    }

    #[test]
    fn a_reload_keeps_the_calls_under_way() {
        let ann = UserId::new();
        let mut hers = function(ann, "ann", "hello");
        let before = Table::of(vec![hers.clone()], &Table::default());
        let permit = before.by_key(ann, "hello").unwrap().admission.admit(1);
        assert!(permit.is_some());
        hers.active.as_mut().unwrap().spec.deployment = DeploymentId::new();
        let after = Table::of(vec![hers], &before);
        let route = after.by_key(ann, "hello").unwrap();
        assert!(route.admission.admit(1).is_none());
        drop(permit);
        assert!(route.admission.admit(1).is_some());
    }

    #[test]
    fn the_version_before_can_be_asked_for_until_the_next_one() {
        let ann = UserId::new();
        let mut hers = function(ann, "ann", "hello");
        let mut table = Table::default();
        let mut versions = Vec::new();
        let mut check = |hers: &[Function], known: [bool; 3], serves: [bool; 3]| {
            // Twice: a reload for another function's sake changes nothing.
            for _ in 0..2 {
                let next = Table::of(hers.to_vec(), &table);
                let before = std::mem::replace(&mut table, next);
                versions.extend(hers.first().map(|hers| hers.active.as_ref().unwrap().spec.deployment));
                versions.dedup();
                let (mut found, mut serving) = ([false; 3], [false; 3]);
                for (place, id) in versions.iter().enumerate() {
                    found[place] = table.by_deployment(*id).is_some_and(|route| route.spec.deployment == *id);
                    serving[place] = table.serves(*id);
                }
                assert_eq!((found, serving), (known, serves));
                let left_out = table.leaves_out(&before);
                let is_in = |ids: &[DeploymentId]| versions.iter().map(|id| ids.contains(id)).collect::<Vec<_>>();
                let was = |table: fn(&Table, DeploymentId) -> bool, now: [bool; 3]| {
                    versions.iter().zip(now).map(|(id, now)| table(&before, *id) && !now).collect::<Vec<_>>()
                };
                assert_eq!(is_in(&left_out.retired), was(Table::serves, serves));
                assert_eq!(is_in(&left_out.forgotten), was(|table, id| table.by_deployment(id).is_some(), known));
            }
        };
        check(&[hers.clone()], [true, false, false], [true, false, false]);
        hers.active.as_mut().unwrap().spec.deployment = DeploymentId::new();
        check(&[hers.clone()], [true, true, false], [false, true, false]);
        hers.active.as_mut().unwrap().spec.deployment = DeploymentId::new();
        check(&[hers.clone()], [false, true, true], [false, false, true]);
        check(&[], [false; 3], [false; 3]);
    }
}
