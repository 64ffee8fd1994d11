//! Functions: found, listed, and deleted with all that is theirs.

use common::ids::FunctionId;
use common::invocation::Outcome;

use super::bench::{Bench, close, new_deployment, record};
use super::on_both;
use crate::endings::PURGE_ROWS;
use crate::{Error, LogLine, RecordQuery};

on_both!(
    a_function_is_found_by_id_and_by_name_by_its_owner_only,
    functions_are_listed_by_name_in_pages,
    a_deletion_takes_everything_along,
    a_deleted_name_is_free_at_once,
    a_deletion_is_ended_by_whoever_comes_next,
    a_change_moves_updated_at,
);

async fn a_function_is_found_by_id_and_by_name_by_its_owner_only(bench: &Bench) {
    let (ada, eve) = (bench.user("ada@example.org").await, bench.user("eve@example.org").await);
    let function = bench.serving(ada.id, "hello").await;
    // A name may look like an id.
    let lookalike = bench.serving(ada.id, &function.id.to_string()).await;
    let stranger = bench.serving(ada.id, &FunctionId::new().to_string()).await;
    let id = function.id.to_string();
    assert_eq!(bench.store.function(ada.id, &id).await.unwrap().as_ref(), Some(&function));
    assert_eq!(bench.store.function(ada.id, "hello").await.unwrap().as_ref(), Some(&function));
    assert_eq!(bench.store.function(ada.id, &lookalike.id.to_string()).await.unwrap(), Some(lookalike));
    assert_eq!(bench.store.function(ada.id, stranger.name.as_str()).await.unwrap().as_ref(), Some(&stranger));
    assert_eq!(function.owner_handle.as_str(), "ada");
    for key in [id.as_str(), "hello", "", "no\0such", "' OR 1=1 --"] {
        assert_eq!(bench.store.function(eve.id, key).await.unwrap(), None, "{key:?}");
    }
    let foreign = bench.store.delete_function(eve.id, function.id).await;
    assert!(matches!(foreign, Err(Error::NotFound)), "{foreign:?}");
    assert_eq!(bench.store.function(ada.id, "hello").await.unwrap(), Some(function));
}

async fn functions_are_listed_by_name_in_pages(bench: &Bench) {
    let (ada, eve) = (bench.user("ada@example.org").await, bench.user("eve@example.org").await);
    bench.serving(eve.id, "c").await;
    for name in ["b", "a", "a-2", "a2", "d"] {
        bench.serving(ada.id, name).await;
    }
    let mut names = Vec::new();
    loop {
        let after: Option<&String> = names.last();
        let page = bench.store.functions(ada.id, 2, after.map(String::as_str)).await.unwrap();
        if page.is_empty() {
            break;
        }
        names.extend(page.into_iter().map(|function| function.name.to_string()));
    }
    assert_eq!(names, ["a", "a-2", "a2", "b", "d"]);
    assert!(bench.store.functions(ada.id, 9, Some("d")).await.unwrap().is_empty());
    assert_eq!(bench.store.serving().await.unwrap().len(), 6);
}

async fn a_deletion_takes_everything_along(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let (doomed, kept) = (bench.serving(ada.id, "doomed").await, bench.serving(ada.id, "kept").await);
    for function in [&doomed, &kept] {
        bench.store.insert_records(&[record(function, Outcome::Success)]).await.unwrap();
        let line = LogLine { source: "deploy", message: "ready".to_owned() };
        let deployment = function.active.as_ref().unwrap().spec.deployment;
        bench.store.append_log(deployment, &[line]).await.unwrap();
        insert_value(bench, function.id).await;
    }
    bench.store.delete_function(ada.id, doomed.id).await.unwrap();
    let again = bench.store.delete_function(ada.id, doomed.id).await;
    assert!(matches!(again, Err(Error::NotFound)), "{again:?}");
    bench.purge_deleted().await;
    for table in ["functions", "function_deployments", "function_invocations", "function_logs"] {
        assert_eq!(bench.number(&format!("SELECT COUNT(*) FROM {table}")).await, 1, "{table}");
    }
    assert_eq!(count_values(bench).await, 1);
    assert_eq!(bench.store.serving().await.unwrap(), [kept]);
}

async fn a_deleted_name_is_free_at_once(bench: &Bench) {
    let store = &bench.store;
    let ada = bench.user("ada@example.org").await;
    let doomed = bench.serving(ada.id, "hello").await;
    let call = record(&doomed, Outcome::Success);
    store.insert_records(std::slice::from_ref(&call)).await.unwrap();
    let under_way = store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap().spec.deployment;
    store.delete_function(ada.id, doomed.id).await.unwrap();

    // Its rows are there, and nobody sees them.
    assert_eq!(bench.number("SELECT COUNT(*) FROM function_invocations").await, 1);
    for key in ["hello".to_owned(), doomed.id.to_string(), crate::endings::deleted_name(doomed.id)] {
        assert_eq!(store.function(ada.id, &key).await.unwrap(), None, "{key}");
    }
    assert!(store.functions(ada.id, 9, None).await.unwrap().is_empty());
    assert!(store.serving().await.unwrap().is_empty());
    let all = RecordQuery { owner: ada.id, function: doomed.id, limit: 9, before: None, success: None };
    let listed = store.records(all).await;
    assert!(matches!(listed, Err(Error::NotFound)), "{listed:?}");
    assert_eq!(store.recorded_call(ada.id, call.id).await.unwrap(), None);
    let activated = store.activate_deployment(under_way, 1).await;
    assert!(matches!(activated, Err(Error::NotFound)), "{activated:?}");
    store.abandon_deployment(under_way, "too late").await.unwrap();

    let anew = bench.serving(ada.id, "hello").await;
    assert_eq!(anew.active.as_ref().unwrap().spec.version, 1);
    assert_ne!(anew.id, doomed.id);
    bench.purge_deleted().await;
    assert_eq!(store.functions(ada.id, 9, None).await.unwrap(), [anew]);
    assert_eq!(bench.number("SELECT COUNT(*) FROM functions").await, 1);
}

async fn a_deletion_is_ended_by_whoever_comes_next(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let (doomed, kept) = (bench.serving(ada.id, "doomed").await, bench.serving(ada.id, "kept").await);
    let page = usize::try_from(PURGE_ROWS).unwrap();
    let records: Vec<_> = (0..page + 5).map(|_| record(&doomed, Outcome::Success)).collect();
    bench.store.insert_records(&records).await.unwrap();
    bench.store.insert_records(&[record(&kept, Outcome::Success)]).await.unwrap();
    assert_eq!(bench.store.purge_deleted().await.unwrap(), 0, "nothing is deleted yet");
    bench.store.delete_function(ada.id, doomed.id).await.unwrap();
    assert_eq!(bench.store.purge_deleted().await.unwrap(), u64::try_from(page).unwrap());

    // A gateway that starts, and a call whose record comes late.
    let next = bench.place.open().await;
    next.insert_records(&[record(&doomed, Outcome::Crashed)]).await.unwrap();
    assert_eq!(next.purge_deleted().await.unwrap(), 6);
    assert_eq!(next.purge_deleted().await.unwrap(), 1, "the function itself");
    assert_eq!(next.purge_deleted().await.unwrap(), 0);
    for table in ["functions", "function_deployments", "function_invocations"] {
        assert_eq!(bench.number(&format!("SELECT COUNT(*) FROM {table}")).await, 1, "{table}");
    }
}

const INSERT_VALUE: &str = "INSERT INTO function_data (function_id, key, value) VALUES ($1, 'k', '1')";
const COUNT_VALUES: &str = "SELECT COUNT(*) FROM function_data";

async fn insert_value(bench: &Bench, function: FunctionId) {
    if bench.is_postgres() {
        let mut connection = bench.function_db().await;
        sqlx::query(INSERT_VALUE).bind(function.uuid()).execute(&mut connection).await.unwrap();
        close(connection).await;
    } else {
        sqlx::query(INSERT_VALUE).bind(function.uuid()).execute(&mut bench.file().await).await.unwrap();
    }
}

async fn count_values(bench: &Bench) -> i64 {
    if bench.is_postgres() {
        let mut connection = bench.function_db().await;
        let count = sqlx::query_scalar(COUNT_VALUES).fetch_one(&mut connection).await.unwrap();
        close(connection).await;
        count
    } else {
        bench.number(COUNT_VALUES).await
    }
}

async fn a_change_moves_updated_at(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let before = bench.serving(ada.id, "hello").await;
    let after = bench.serving(ada.id, "hello").await;
    assert_eq!(after.created_at, before.created_at);
    assert!(after.updated_at > after.created_at, "{after:?}");
}
