//! The spool against real files and a sink that fails on command.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use chrono::Utc;
use common::ids::{DeploymentId, FunctionId, InvocationId, NodeId};
use common::invocation::{Logs, Outcome, RequestInfo};
use common::phases::Phases;
use prometheus::Registry;

use super::segment::{encode, scan};
use super::sink::ShipError;
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn record() -> Record {
    Record {
        id: InvocationId::new(),
        function: FunctionId::new(),
        deployment: DeploymentId::new(),
        node: NodeId::new(),
        outcome: Outcome::Success,
        duration_ms: 1,
        error: None,
        logs: Logs::default(),
        request_info: RequestInfo::default(),
        result: None,
        cold: false,
        peak_memory_bytes: 0,
        created_at: Utc::now(),
        phases: Phases::default(),
    }
}

#[test]
fn a_record_of_an_older_agent_is_read() {
    let record = record();
    let mut json = serde_json::to_value(&record).unwrap();
    json.as_object_mut().unwrap().remove("phases").unwrap();
    assert_eq!(serde_json::from_value::<Record>(json).unwrap(), record);
}

const TAKES: u8 = 0;
const AWAY: u8 = 1;
/// Refuses every batch with one of `poison` in it.
const PICKY: u8 = 2;

#[derive(Default)]
struct Sink {
    mood: AtomicU8,
    poison: Mutex<BTreeSet<InvocationId>>,
    taken: Mutex<Vec<InvocationId>>,
    attempts: AtomicU8,
}

#[async_trait]
impl Ship for Sink {
    async fn ship(&self, records: &[Record]) -> Result<(), ShipError> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let mood = self.mood.load(Ordering::Relaxed);
        if mood == AWAY {
            return Err(ShipError::Unreachable("away".into()));
        }
        if mood == PICKY && records.iter().any(|record| self.poison.lock().unwrap().contains(&record.id)) {
            return Err(ShipError::Refused("no".into()));
        }
        self.taken.lock().unwrap().extend(records.iter().map(|record| record.id));
        Ok(())
    }
}

/// A spool in a directory, and what runs it.
struct Running {
    spool: Arc<Spool>,
    sink: Arc<Sink>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn open(directory: &Path, max_bytes: u64, segment_bytes: u64) -> (Spool, Arc<Metrics>) {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    (Spool::with_sizes(directory, max_bytes, segment_bytes, Arc::clone(&metrics)).unwrap(), metrics)
}

impl Running {
    fn start(directory: &Path, mood: u8) -> Self {
        let (spool, metrics) = open(directory, 1 << 20, 4096);
        let (spool, sink, stop) = (Arc::new(spool), Arc::new(Sink::default()), CancellationToken::new());
        sink.mood.store(mood, Ordering::Relaxed);
        let task = tokio::spawn(Arc::clone(&spool).run(Arc::clone(&sink) as Arc<dyn Ship>, stop.clone()));
        Self { spool, sink, metrics, stop, task }
    }

    fn append(&self, count: usize) -> Vec<InvocationId> {
        let records: Vec<_> = (0..count).map(|_| record()).collect();
        records.iter().for_each(|record| self.spool.append(record).unwrap());
        records.iter().map(|record| record.id).collect()
    }

    async fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) -> Arc<Sink> {
        self.stop.cancel();
        self.task.await.unwrap();
        self.sink
    }

    fn taken(&self) -> Vec<InvocationId> {
        self.sink.taken.lock().unwrap().clone()
    }
}

fn files(directory: &Path) -> usize {
    segment::list(directory).unwrap().len()
}

#[tokio::test]
async fn records_leave_soon_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), TAKES);
    let started = Instant::now();
    let ids = running.append(50);
    running.wait("all shipped", |running| running.spool.pending() == 0).await;
    // 200 ms are promised; the rest is for a busy machine.
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(running.taken(), ids);
    assert_eq!(files(directory.path()), 1, "shipped segments are removed");
    running.wait("all synced", |running| !running.spool.has_unsynced()).await;
    running.stop().await;
}

#[tokio::test]
async fn a_sink_that_is_away_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), AWAY);
    let ids = running.append(100);
    running.wait("two attempts", |running| running.sink.attempts.load(Ordering::Relaxed) >= 2).await;
    assert_eq!(running.spool.pending(), 100);
    let oldest = running.metrics.spool_oldest.get();
    assert!((Utc::now().timestamp() - oldest).abs() < DEADLINE.as_secs() as i64, "{oldest}");
    running.sink.mood.store(TAKES, Ordering::Relaxed);
    running.wait("all shipped", |running| running.spool.pending() == 0).await;
    assert_eq!(running.taken(), ids);
    assert_eq!(running.metrics.spool_oldest.get(), 0, "none waits");
    running.stop().await;
}

#[tokio::test]
async fn what_a_restart_finds_is_shipped() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path(), 1 << 20, 4096);
    let records: Vec<_> = (0..40).map(|_| record()).collect();
    records.iter().for_each(|record| spool.append(record).unwrap());
    // As after kill -9: nothing is closed, and the last entry is torn.
    let newest = segment::path(directory.path(), spool.lock().newest());
    drop(spool);
    let torn = encode(&record());
    let mut bytes = std::fs::read(&newest).unwrap();
    let whole = bytes.len();
    bytes.extend_from_slice(&torn[..torn.len() - 3]);
    std::fs::write(&newest, bytes).unwrap();
    let running = Running::start(directory.path(), TAKES);
    assert_eq!(std::fs::metadata(&newest).map_or(whole as u64, |metadata| metadata.len()), whole as u64);
    running.wait("all shipped", |running| running.spool.pending() == 0).await;
    assert_eq!(running.taken(), records.iter().map(|record| record.id).collect::<Vec<_>>());
    assert_eq!(running.metrics.spool_corrupt.get(), 0);
    let sink = running.stop().await;
    let taken = sink.taken.lock().unwrap().len();
    let again = Running::start(directory.path(), TAKES);
    assert_eq!(again.spool.pending(), 0);
    let sink = again.stop().await;
    assert_eq!((taken, sink.taken.lock().unwrap().len()), (40, 0), "what was shipped is not shipped again");
}

#[tokio::test]
async fn the_stop_ships_what_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), TAKES);
    let ids = running.append(1200);
    let sink = running.stop().await;
    assert_eq!(*sink.taken.lock().unwrap(), ids);
}

#[tokio::test]
async fn a_record_that_is_refused_does_not_hold_up_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), AWAY);
    let ids = running.append(20);
    running.sink.poison.lock().unwrap().extend([ids[3], ids[17]]);
    running.sink.mood.store(PICKY, Ordering::Relaxed);
    running.wait("all shipped", |running| running.spool.pending() == 0).await;
    let mut expected = ids;
    expected.remove(17);
    expected.remove(3);
    assert_eq!(running.taken(), expected);
    assert_eq!(running.metrics.spool_dropped.get(), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_sink_that_refuses_everything_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(directory.path(), AWAY);
    let ids = running.append(20);
    running.sink.poison.lock().unwrap().extend(&ids);
    running.sink.mood.store(PICKY, Ordering::Relaxed);
    let before = running.sink.attempts.load(Ordering::Relaxed);
    running.wait("two rounds", |running| running.sink.attempts.load(Ordering::Relaxed) > before + 20).await;
    assert_eq!((running.spool.pending(), running.metrics.spool_dropped.get()), (20, 0));
    running.sink.mood.store(TAKES, Ordering::Relaxed);
    running.wait("all shipped", |running| running.spool.pending() == 0).await;
    assert_eq!(running.taken(), ids);
    running.stop().await;
}

#[test]
fn a_full_spool_drops_its_oldest() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, metrics) = open(directory.path(), 16 * 1024, 4096);
    for _ in 0..100 {
        spool.append(&record()).unwrap();
    }
    let dropped = metrics.spool_dropped.get();
    assert!(dropped > 0);
    assert_eq!(spool.pending() + dropped, 100);
    assert!(spool.lock().bytes() <= 16 * 1024 + 4096);
    drop(spool);
    let (again, _) = open(directory.path(), 16 * 1024, 4096);
    assert_eq!(again.pending() + dropped, 100);
}

/// Three entries; `damage` does something to the bytes, of which the second entry is the range.
fn check(damage: impl Fn(&mut Vec<u8>, std::ops::Range<usize>), whole: &[usize], corrupt: u64, torn: bool) {
    let records = [record(), record(), record()];
    let entries = records.each_ref().map(encode);
    let second = entries[0].len()..entries[0].len() + entries[1].len();
    let mut bytes = entries.concat();
    damage(&mut bytes, second);
    let found = scan(&bytes, usize::MAX, true);
    let expected: Vec<_> = whole.iter().map(|index| records[*index].id).collect();
    assert_eq!(found.records.iter().map(|record| record.id).collect::<Vec<_>>(), expected);
    assert_eq!((found.corrupt, found.torn), (corrupt, torn));
}

#[test]
fn damage_costs_only_what_is_damaged() {
    check(|_, _| {}, &[0, 1, 2], 0, false);
    check(|bytes, second| bytes[second.start + 20] ^= 1, &[0, 2], 1, false);
    check(|bytes, second| bytes[second.start] ^= 1, &[0, 2], 1, false);
    check(|bytes, second| bytes[second.start + 3] = 0xff, &[0, 2], 1, false);
    check(|bytes, second| bytes[second].fill(0), &[0, 2], 1, false);
    check(|bytes, second| drop(bytes.drain(second.start + 5..second.end - 5)), &[0, 2], 1, false);
    check(|bytes, second| bytes[second.start..].fill(0), &[0], 1, false);
    check(|bytes, _| bytes.truncate(bytes.len() - 1), &[0, 1], 0, true);
    check(|bytes, second| bytes.truncate(second.start + 3), &[0], 0, true);
    check(|bytes, _| bytes.clear(), &[], 0, false);
}

#[test]
fn a_stream_without_an_end_is_shipped_by_the_next_process() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path(), 1 << 20, 1 << 16);
    let (ended, cut_off) = (record(), record());
    let begun = spool.begin(&ended).unwrap();
    assert_eq!(spool.pending(), 0);
    spool.append(&ended).unwrap();
    spool.end(begun);
    spool.begin(&cut_off).unwrap();
    assert_eq!(spool.pending(), 1);
    drop(spool);
    // What was being written when the process died began no stream.
    let journal = directory.path().join("begun");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes.extend(&encode(&record())[..50]);
    std::fs::write(&journal, bytes).unwrap();
    let (again, metrics) = open(directory.path(), 1 << 20, 1 << 16);
    assert_eq!((again.pending(), metrics.spool_corrupt.get()), (2, 0));
    drop(again);
    let (again, _) = open(directory.path(), 1 << 20, 1 << 16);
    assert_eq!(again.pending(), 2);
}

#[test]
fn the_journal_of_streams_does_not_grow_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path(), 1 << 30, 1 << 24);
    let long = record();
    spool.begin(&long).unwrap();
    let size = || std::fs::metadata(directory.path().join("begun")).unwrap().len();
    let mut largest = 0;
    for _ in 0..20_000 {
        let begun = spool.begin(&record()).unwrap();
        spool.end(begun);
        largest = largest.max(size());
    }
    assert!((4 << 20..5 << 20).contains(&largest) && size() < largest, "{largest}");
    drop(spool);
    let (again, _) = open(directory.path(), 1 << 30, 1 << 24);
    assert_eq!(again.pending(), 1);
}
