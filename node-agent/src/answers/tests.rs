//! Keys that come again: while the first call runs, after it, and after the process died.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::digest::Digest;
use common::ids::{FunctionId, InvocationId};
use http::Response;
use prometheus::Registry;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const ROOM: Bounds = Bounds { total: 1 << 20, function: 1 << 20 };

fn open(directory: &Path, bounds: Bounds) -> (Arc<Answers>, Arc<Metrics>) {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    (Answers::with_bounds(directory, bounds, Arc::clone(&metrics)).unwrap(), metrics)
}

fn asked(function: FunctionId, key: &str, request: &str) -> Asked {
    Asked { key: Digest::of(key.as_bytes()), print: Digest::of(request.as_bytes()), function, id: InvocationId::new() }
}

fn answer(body: &str) -> Response<Bytes> {
    Response::builder().status(201).header("x-fn", "1").body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
}

/// Claims, and says what came of it in a word: the body of a kept answer behind `repeat`.
async fn word(answers: &Arc<Answers>, asked: Asked, patience: Duration) -> (String, Option<Turn>) {
    match answers.claim(asked, patience).await.unwrap() {
        Claim::First(turn) => ("first".to_owned(), Some(turn)),
        Claim::Repeat(id, Some(answer)) => {
            assert_eq!((answer.status().as_u16(), &answer.headers()["x-fn"]), (201, &"1".parse().unwrap()));
            (format!("repeat {} {id}", String::from_utf8_lossy(answer.body())), None)
        }
        Claim::Repeat(id, None) => (format!("lost {id}"), None),
        Claim::Reused => ("reused".to_owned(), None),
        Claim::UnderWay => ("under way".to_owned(), None),
    }
}

async fn check(answers: &Arc<Answers>, asked: Asked, expected: &str) -> Option<Turn> {
    let (word, turn) = word(answers, asked, PATIENCE).await;
    assert_eq!(word, expected);
    turn
}

#[tokio::test]
async fn a_call_runs_once() {
    let directory = tempfile::tempdir().unwrap();
    let (answers, _) = open(directory.path(), ROOM);
    let call = asked(FunctionId::new(), "k", "request");
    let other = Asked { print: Digest::of(b"other"), ..call };
    // One that did not run leaves no trace.
    check(&answers, call, "first").await.unwrap().forget();
    let turn = check(&answers, call, "first").await.unwrap();
    assert_eq!(word(&answers, call, Duration::ZERO).await.0, "under way");
    check(&answers, other, "reused").await;
    // Those who wait get the first one's answer; there are only so many.
    let again = |answers: &Arc<Answers>| {
        let answers = Arc::clone(answers);
        tokio::spawn(async move { word(&answers, call, PATIENCE).await.0 })
    };
    let waiting: Vec<_> = (0..MAX_WAITING).map(|_| again(&answers)).collect();
    let count = || answers.lock().running[&call.key].over.receiver_count();
    while count() < MAX_WAITING {
        tokio::task::yield_now().await;
    }
    check(&answers, call, "under way").await;
    turn.keep(&answer("one"));
    let expected = format!("repeat one {}", call.id);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), expected);
    }
    check(&answers, Asked { id: InvocationId::new(), ..call }, &expected).await;
    check(&answers, other, "reused").await;
    check(&answers, asked(call.function, "k2", "request"), "first").await;
}

#[tokio::test]
async fn a_call_runs_once_whoever_dies() {
    let directory = tempfile::tempdir().unwrap();
    let (answers, _) = open(directory.path(), ROOM);
    let function = FunctionId::new();
    let calls = ["ended", "cut off", "dropped", "torn"].map(|key| asked(function, key, "request"));
    check(&answers, calls[0], "first").await.unwrap().keep(&answer("one"));
    let cut_off = check(&answers, calls[1], "first").await;
    drop(check(&answers, calls[2], "first").await);
    check(&answers, calls[2], &format!("lost {}", calls[2].id)).await;
    check(&answers, calls[3], "first").await.unwrap().keep(&answer("four"));
    answers.sync().await;
    // Nothing more is written of a call that is dropped.
    drop((cut_off, answers));
    let torn = file::path(directory.path(), calls[3].key);
    let bytes = std::fs::read(&torn).unwrap();
    std::fs::write(torn, &bytes[..bytes.len() - 1]).unwrap();
    std::fs::write(directory.path().join("x"), "no answer").unwrap();

    let (answers, metrics) = open(directory.path(), ROOM);
    check(&answers, calls[0], &format!("repeat one {}", calls[0].id)).await;
    for call in &calls[1..] {
        check(&answers, *call, &format!("lost {}", call.id)).await;
        check(&answers, Asked { print: Digest::of(b"other"), ..*call }, "reused").await;
    }
    assert!(!directory.path().join("x").exists());
    assert_eq!(metrics.answers_bytes.get(), 4 * 4096);
    // A file that cannot be read any more says nothing against its call having run.
    std::fs::remove_file(file::path(directory.path(), calls[0].key)).unwrap();
    check(&answers, calls[0], &format!("lost {}", calls[0].id)).await;
}

#[tokio::test]
async fn there_is_room_for_so_many() {
    let directory = tempfile::tempdir().unwrap();
    let bounds = Bounds { total: 3 * 4096, function: 2 * 4096 };
    let (answers, metrics) = open(directory.path(), bounds);
    let (loud, quiet) = (FunctionId::new(), FunctionId::new());
    check(&answers, asked(quiet, "q", "request"), "first").await.unwrap().keep(&answer("quiet"));
    for key in ["1", "2", "3", "4"] {
        check(&answers, asked(loud, key, "request"), "first").await.unwrap().keep(&answer(key));
    }
    assert_eq!((metrics.answers_evicted.get(), metrics.answers_bytes.get()), (2, 3 * 4096));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    // What is left is found by the next process, which has less room.
    let (answers, metrics) = open(directory.path(), Bounds { total: 2 * 4096, ..bounds });
    assert_eq!((metrics.answers_evicted.get(), std::fs::read_dir(directory.path()).unwrap().count()), (1, 2));
    assert!(word(&answers, asked(loud, "4", "request"), PATIENCE).await.0.starts_with("repeat 4"));
}

#[tokio::test]
async fn answers_are_kept_for_a_day() {
    let directory = tempfile::tempdir().unwrap();
    let (answers, metrics) = open(directory.path(), ROOM);
    let call = asked(FunctionId::new(), "k", "request");
    check(&answers, call, "first").await.unwrap().keep(&answer("one"));
    let day = 24 * 60 * 60 * 1000;
    answers.expire(&mut answers.lock(), now_ms() + day - 60_000);
    check(&answers, call, &format!("repeat one {}", call.id)).await;
    answers.expire(&mut answers.lock(), now_ms() + day);
    assert_eq!((metrics.answers_bytes.get(), std::fs::read_dir(directory.path()).unwrap().count()), (0, 0));
    assert_eq!(metrics.answers_evicted.get(), 0);
    check(&answers, call, "first").await;
}
