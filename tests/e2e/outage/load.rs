//! Calls of warm functions at a fixed rate, whatever becomes of those before; and what became of each.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::client::Client;
use crate::platform::until;

/// Between two calls.
const PERIOD: Duration = Duration::from_millis(40);
/// Most calls under way; then the load waits for one.
const MOST: usize = 200;
const PATIENCE: Duration = Duration::from_secs(90);

/// Calls until it is told to end.
pub(super) struct Load {
    shared: Arc<Shared>,
    task: JoinHandle<Result<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    calls: Mutex<Vec<Call>>,
}

/// What became of a call.
struct Call {
    /// Its request id, where it was answered by success.
    done: Result<String>,
    took: Duration,
}

/// All calls of a load, of which none failed.
pub(super) struct Answered {
    /// The ids of all.
    pub(super) ids: BTreeSet<String>,
    median: Duration,
    longest: Duration,
}

impl Load {
    /// Each of these in turn: a method and a path.
    pub(super) fn begin(user: &Client, targets: &[(&'static str, String)]) -> Self {
        let shared = Arc::new(Shared::default());
        let (user, targets, sharing) = (user.clone(), targets.to_owned(), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut under_way = JoinSet::new();
            for (method, path) in targets.iter().cycle() {
                if sharing.is_over.load(Ordering::Relaxed) {
                    break;
                }
                ticks.tick().await;
                while under_way.len() >= MOST {
                    sharing.note(under_way.join_next().await)?;
                }
                let (user, method, path) = (user.clone(), *method, path.clone());
                under_way.spawn(async move { call(&user, method, &path).await });
                while let Some(done) = under_way.try_join_next() {
                    sharing.note(Some(done))?;
                }
            }
            while let Some(done) = under_way.join_next().await {
                sharing.note(Some(done))?;
            }
            Ok(())
        });
        Self { shared, task }
    }

    /// Waits until so many more were answered.
    pub(super) async fn more(&self, calls: usize) -> Result<()> {
        let count = || self.shared.calls.lock().expect("no holder panics").len();
        let wanted = count() + calls;
        until("more calls are answered", PATIENCE, async || Ok((count() >= wanted).then_some(()))).await
    }

    /// Ends it; an error if any call failed.
    pub(super) async fn end(self) -> Result<Answered> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.task.await??;
        let calls = std::mem::take(&mut *self.shared.calls.lock().expect("no holder panics"));
        let mut times: Vec<_> = calls.iter().map(|call| call.took).collect();
        times.sort_unstable();
        let (count, mut ids, mut failed) = (calls.len(), BTreeSet::new(), Vec::new());
        for call in calls {
            match call.done {
                Ok(id) => drop(ids.insert(id)),
                Err(error) => failed.push(format!("after {:?}: {error:#}", call.took)),
            }
        }
        ensure!(failed.is_empty(), "{} of {count} calls failed: {:#?}", failed.len(), &failed[..failed.len().min(10)]);
        let median = times.get(count / 2).copied().unwrap_or_default();
        Ok(Answered { ids, median, longest: times.last().copied().unwrap_or_default() })
    }
}

impl Shared {
    fn note(&self, call: Option<Result<Call, tokio::task::JoinError>>) -> Result<()> {
        self.calls.lock().expect("no holder panics").push(call.context("no call is under way")??);
        Ok(())
    }
}

async fn call(user: &Client, method: &str, path: &str) -> Call {
    let begun = Instant::now();
    let done = async {
        let mut request = user.request(method, path);
        if method == "POST" {
            request = request.json(&json!({"body": {}}));
        }
        let response = request.send().await?;
        let (status, id) = (response.status(), response.headers()["x-request-id"].to_str()?.to_owned());
        let said = response.text().await?;
        ensure!(status == 200, "{method} {path}: {status} {said}");
        Ok(id)
    };
    let done = done.await;
    Call { done, took: begun.elapsed() }
}

impl std::fmt::Display for Answered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ids, median, longest } = self;
        write!(f, "{} calls, none failed, median {median:?}, longest {longest:?}", ids.len())
    }
}
