//! Functions: found, listed, and deleted with all that is theirs.

use common::ids::FunctionId;
use common::invocation::Outcome;

use super::bench::{Bench, close, record};
use super::on_both;
use crate::{Error, LogLine};

on_both!(
    a_function_is_found_by_id_and_by_name_by_its_owner_only,
    functions_are_listed_by_name_in_pages,
    a_deletion_takes_everything_along,
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
    for table in ["functions", "function_deployments", "function_invocations", "function_logs"] {
        assert_eq!(bench.number(&format!("SELECT COUNT(*) FROM {table}")).await, 1, "{table}");
    }
    assert_eq!(count_values(bench).await, 1);
    assert_eq!(bench.store.serving().await.unwrap(), [kept]);
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
