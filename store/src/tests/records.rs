//! Records: batches that come twice, functions that are gone, and pages.

use common::ids::{FunctionId, InvocationId};
use common::invocation::{ContainerLogs, ExecutionError, Metadata, Outcome, Record};
use common::phases::Phases;

use super::bench::{Bench, new_user, record};
use super::on_both;
use crate::{Error, Function, LogLine, RecordQuery, RecordedCall};

on_both!(
    a_record_comes_back_as_it_was,
    a_batch_that_comes_twice_counts_once,
    records_of_a_deleted_function_are_dropped,
    functions_may_be_deleted_while_their_records_come,
    nul_in_output_fails_no_batch,
    records_are_paged_newest_first,
    a_page_has_a_size,
    history_ends,
    a_foreign_functions_records_are_not_found,
    one_call_is_found_by_its_owner,
    the_seeds_columns_hold_what_the_seed_says,
    numbers_beyond_a_columns_range_are_capped,
    the_sink_alone_inserts_too,
);

fn all_of(function: &Function) -> RecordQuery {
    RecordQuery { owner: function.owner, function: function.id, limit: 10_000, before: None, success: None }
}

async fn function(bench: &Bench) -> Function {
    let ada = bench.user("ada@example.org").await;
    bench.serving(ada.id, "hello").await
}

async fn a_record_comes_back_as_it_was(bench: &Bench) {
    let function = function(bench).await;
    let mut full = record(&function, Outcome::TimedOut);
    full.logs.container = Some(ContainerLogs {
        stdout: "Grüße \u{1f980} \"\\u0000\"\n".to_owned(),
        stderr: String::new(),
        exit_code: -1,
        timestamp: "2024-01-15T10:30:00Z".to_owned(),
        truncated: true,
    });
    full.logs.errors =
        vec![ExecutionError { phase: "execution".into(), message: "late".into(), code: "timeout".into() }];
    full.logs.metadata = Some(Metadata {
        function_uuid: function.id,
        start_time: "2024-01-15T10:30:00Z".to_owned(),
        end_time: "2024-01-15T10:30:05Z".to_owned(),
        timeout_ms: 5000,
        memory_limit_mb: 128,
        status_code: None,
    });
    full.request_info.headers = [("accept".to_owned(), "*/*".to_owned())].into();
    full.request_info.content_type = Some("application/json".to_owned());
    let mut records = vec![full];
    records.extend(
        [Outcome::Success, Outcome::Crashed, Outcome::InvalidResult, Outcome::OutOfMemory]
            .map(|outcome| record(&function, outcome)),
    );
    records.extend([Outcome::BadRequest, Outcome::NoSandbox].map(|outcome| record(&function, outcome)));
    bench.store.insert_records(&records).await.unwrap();
    records.reverse();
    records.iter_mut().for_each(|record| record.result = None);
    assert_eq!(bench.store.records(all_of(&function)).await.unwrap().records, records);
}

async fn a_batch_that_comes_twice_counts_once(bench: &Bench) {
    let function = function(bench).await;
    let mut batch: Vec<Record> = (0..1234).map(|_| record(&function, Outcome::Success)).collect();
    bench.store.insert_records(&batch).await.unwrap();
    batch[0].duration_ms += 1;
    batch.push(record(&function, Outcome::Crashed));
    batch.push(batch[0].clone());
    let (one, other) = tokio::join!(bench.store.insert_records(&batch), bench.store.insert_records(&batch));
    one.and(other).unwrap();
    bench.store.insert_records(&[]).await.unwrap();
    let stored = bench.store.records(all_of(&function)).await.unwrap().records;
    assert_eq!(stored.len(), 1235);
    assert_eq!(stored.last().unwrap().duration_ms, 12);
}

async fn records_of_a_deleted_function_are_dropped(bench: &Bench) {
    let kept = function(bench).await;
    let gone = bench.serving(kept.owner, "gone").await;
    bench.store.delete_function(gone.owner, gone.id).await.unwrap();
    bench.purge_deleted().await;
    let batch = [record(&gone, Outcome::Success), record(&kept, Outcome::Success), record(&gone, Outcome::Crashed)];
    bench.store.insert_records(&batch).await.unwrap();
    assert_eq!(bench.store.records(all_of(&kept)).await.unwrap().records.len(), 1);
    assert_eq!(bench.number("SELECT COUNT(*) FROM function_invocations").await, 1);
}

async fn functions_may_be_deleted_while_their_records_come(bench: &Bench) {
    let kept = function(bench).await;
    for round in 0..10 {
        let doomed = bench.serving(kept.owner, &format!("doomed-{round}")).await;
        let batch: Vec<Record> =
            (0..50).flat_map(|_| [record(&doomed, Outcome::Success), record(&kept, Outcome::Success)]).collect();
        let deletion = async {
            bench.store.delete_function(doomed.owner, doomed.id).await.unwrap();
            bench.purge_deleted().await;
        };
        let (inserted, ()) = tokio::join!(bench.store.insert_records(&batch), deletion);
        inserted.unwrap();
    }
    assert_eq!(bench.number("SELECT COUNT(*) FROM function_invocations").await, 500);
}

async fn nul_in_output_fails_no_batch(bench: &Bench) {
    let function = function(bench).await;
    let mut batch = vec![record(&function, Outcome::Success), record(&function, Outcome::Crashed)];
    let output = batch[0].logs.container.as_mut().unwrap();
    output.stdout = "a\0b\\u0000\\\0".to_owned();
    output.stderr = "\0".to_owned();
    batch[0].request_info.headers = [("x-\0".to_owned(), "\0".to_owned())].into();
    batch[0].request_info.path = "/\0".to_owned();
    batch[0].result = Some("\0".to_owned());
    batch[1].error = Some("not\0base64".to_owned());
    bench.store.insert_records(&batch).await.unwrap();
    let stored = bench.store.records(all_of(&function)).await.unwrap().records;
    assert_eq!(stored.len(), 2);
    let output = stored[1].logs.container.as_ref().unwrap();
    assert_eq!(output.stdout, "a\u{fffd}b\\u0000\\\u{fffd}");
    assert_eq!(output.stderr, "\u{fffd}");
    assert_eq!(stored[1].request_info.path, "/\u{fffd}");
    assert_eq!(stored[0].error.as_deref(), Some("not\u{fffd}base64"));
}

async fn records_are_paged_newest_first(bench: &Bench) {
    let function = function(bench).await;
    let other = bench.serving(function.owner, "other").await;
    let batch: Vec<Record> =
        (0..30).map(|n| record(&function, if n % 3 == 0 { Outcome::TimedOut } else { Outcome::Success })).collect();
    bench.store.insert_records(&batch).await.unwrap();
    bench.store.insert_records(&[record(&other, Outcome::Success)]).await.unwrap();
    for (success, expected) in [(None, 30), (Some(true), 20), (Some(false), 10)] {
        let mut listed: Vec<Record> = Vec::new();
        loop {
            let before = listed.last().map(|record| record.id);
            let query = RecordQuery { limit: 7, before, success, ..all_of(&function) };
            let page = bench.store.records(query).await.unwrap();
            assert!(page.records.len() == 7 || (page.records.len() < 7 && !page.more));
            listed.extend(page.records);
            if !page.more {
                break;
            }
        }
        assert_eq!(listed.len(), expected, "{success:?}");
        assert!(listed.is_sorted_by(|newer, older| newer.id > older.id));
        assert!(
            listed.iter().all(|record| success.is_none_or(|wanted| wanted == (record.outcome == Outcome::Success)))
        );
    }
}

async fn a_page_has_a_size(bench: &Bench) {
    let function = function(bench).await;
    let large = |n: usize| {
        let mut large = record(&function, Outcome::Success);
        large.logs.container.as_mut().unwrap().stdout = "x".repeat(n);
        large
    };
    let batch: Vec<Record> = (0..30).map(|_| large(300_000)).chain([large(5_000_000)]).collect();
    bench.store.insert_records(&batch).await.unwrap();
    let (mut sizes, mut before) = (Vec::new(), None);
    loop {
        let page = bench.store.records(RecordQuery { before, ..all_of(&function) }).await.unwrap();
        sizes.push(page.records.len());
        before = page.records.last().map(|record| record.id);
        if !page.more {
            break;
        }
    }
    assert_eq!(sizes, [6, 6, 6, 6, 6, 1], "as many as have room, or one that is too large by itself");
}

async fn history_ends(bench: &Bench) {
    let function = function(bench).await;
    let now = chrono::Utc::now();
    let mut batch: Vec<Record> = (0..5).map(|_| record(&function, Outcome::Success)).collect();
    for (days, record) in batch[..3].iter_mut().enumerate() {
        record.id = crate::rows::first_id(now - chrono::Duration::days(31 + days as i64)).into();
    }
    bench.store.insert_records(&batch).await.unwrap();
    let line = LogLine { source: "build", message: "built".to_owned() };
    bench.store.append_log(function.active.as_ref().unwrap().spec.deployment, &[line]).await.unwrap();
    let purge = async |before| bench.store.purge_history(before).await.unwrap();
    let then = now - chrono::Duration::days(30);
    assert_eq!((purge(then).await, purge(then).await), (3, 0));
    assert_eq!(bench.store.records(all_of(&function)).await.unwrap().records.len(), 2);
    let later = now + chrono::Duration::days(1);
    assert_eq!((purge(later).await, purge(later).await), (3, 0));
}

async fn a_foreign_functions_records_are_not_found(bench: &Bench) {
    let function = function(bench).await;
    let eve = bench.store.create_user(new_user("eve@example.org")).await.unwrap();
    assert_eq!(bench.store.records(all_of(&function)).await.unwrap().records, []);
    bench.store.insert_records(&[record(&function, Outcome::Success)]).await.unwrap();
    for query in [
        RecordQuery { owner: eve.id, ..all_of(&function) },
        RecordQuery { function: FunctionId::new(), ..all_of(&function) },
    ] {
        let foreign = bench.store.records(query).await;
        assert!(matches!(foreign, Err(Error::NotFound)), "{foreign:?}");
    }
}

async fn one_call_is_found_by_its_owner(bench: &Bench) {
    let function = function(bench).await;
    let eve = bench.store.create_user(new_user("eve@example.org")).await.unwrap();
    let mut records =
        [Outcome::Success, Outcome::OutOfMemory, Outcome::Crashed].map(|outcome| record(&function, outcome));
    // As an older agent has it.
    records[2].phases = Phases::default();
    bench.store.insert_records(&records).await.unwrap();
    let spec = &function.active.as_ref().unwrap().spec;
    for record in records {
        let id = record.id;
        assert_eq!(bench.store.recorded_call(eve.id, id).await.unwrap(), None);
        let (name, version, limits) = (function.name.clone(), spec.version, spec.limits);
        let expected = RecordedCall { record: Record { result: None, ..record }, name, version, limits };
        assert_eq!(bench.store.recorded_call(function.owner, id).await.unwrap(), Some(expected));
    }
    assert_eq!(bench.store.recorded_call(function.owner, InvocationId::new()).await.unwrap(), None);
}

async fn the_seeds_columns_hold_what_the_seed_says(bench: &Bench) {
    let function = function(bench).await;
    let batch = [record(&function, Outcome::Success), record(&function, Outcome::TimedOut)];
    bench.store.insert_records(&batch).await.unwrap();
    for (condition, expected) in [
        ("status = 'success' AND success AND error IS NULL AND result IS NOT NULL", 1),
        ("status = 'error' AND NOT success AND error IS NOT NULL AND result IS NULL", 1),
        ("logs->'container'->>'stdout' IS NOT NULL AND request_info->>'method' = 'POST'", 2),
        ("created_at IS NOT NULL AND duration_ms = 12 AND peak_memory_bytes = 5000000000", 2),
    ] {
        let sql = format!("SELECT COUNT(*) FROM function_invocations WHERE {condition}");
        assert_eq!(bench.number(&sql).await, expected, "{condition}");
    }
}

async fn numbers_beyond_a_columns_range_are_capped(bench: &Bench) {
    let function = function(bench).await;
    let mut huge = record(&function, Outcome::Success);
    huge.duration_ms = u32::MAX;
    huge.peak_memory_bytes = u64::MAX;
    huge.phases.total_us = Some(u64::MAX);
    bench.store.insert_records(&[huge]).await.unwrap();
    let stored = bench.store.records(all_of(&function)).await.unwrap().records;
    assert_eq!(stored[0].duration_ms, i32::MAX.unsigned_abs());
    assert_eq!(stored[0].peak_memory_bytes, i64::MAX.unsigned_abs());
    assert_eq!(stored[0].phases.total_us, Some(i64::MAX.unsigned_abs()));
}

async fn the_sink_alone_inserts_too(bench: &Bench) {
    let function = function(bench).await;
    let sink = crate::record_sink(&bench.place.args).await.unwrap();
    assert_eq!(sink.is_some(), bench.is_postgres());
    if let Some(sink) = sink {
        let batch = [Record { result: None, ..record(&function, Outcome::Success) }];
        sink.insert_records(&batch).await.unwrap();
        assert_eq!(bench.store.records(all_of(&function)).await.unwrap().records, batch);
    }
}
