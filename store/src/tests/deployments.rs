//! Versions: their numbers, their order, and which one serves.

use std::collections::BTreeSet;

use common::function::{Contract, Status};
use common::ids::{DeploymentId, UserId};
use common::labels::Labels;

use super::bench::{Bench, new_deployment};
use super::on_both;
use crate::{Error, LogLine, NewDeployment};

on_both!(
    versions_count_up_and_the_newest_serves,
    deploys_at_once_get_different_versions,
    an_older_version_that_is_ready_later_does_not_serve,
    a_failed_build_leaves_the_old_one_serving,
    an_abandoned_first_version_takes_its_function_along,
    an_abandoned_version_leaves_what_others_made,
    a_crash_leaves_failed_versions_behind,
    replaced_versions_end,
    what_may_be_needed_stays,
    a_deleted_functions_build_is_not_found,
    log_lines_keep_their_order,
    a_version_keeps_its_contract,
    a_version_keeps_how_stale_it_may_be,
    a_version_keeps_which_nodes_it_wants,
);

async fn versions_count_up_and_the_newest_serves(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let first = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    assert!(first.is_first);
    assert_eq!(first.spec.version, 1);
    let building = bench.store.function(ada.id, "hello").await.unwrap().unwrap();
    assert_eq!((building.status, building.active), (Status::Building, None));
    assert!(bench.store.serving().await.unwrap().is_empty());

    let active = bench.store.activate_deployment(first.spec.deployment, 42).await.unwrap();
    assert_eq!(active.status, Status::Active);
    assert_eq!(active.active.as_ref().unwrap().spec, first.spec);

    let second = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    assert!(!second.is_first);
    assert_eq!((second.spec.version, second.spec.function), (2, first.spec.function));
    let meanwhile = bench.store.function(ada.id, "hello").await.unwrap().unwrap();
    assert_eq!((meanwhile.status, meanwhile.active), (Status::Active, active.active));
    let active = bench.store.activate_deployment(second.spec.deployment, 1).await.unwrap();
    assert_eq!(active.active.as_ref().unwrap().spec, second.spec);
    assert!(active.updated_at >= active.created_at);
    assert_eq!(bench.store.serving().await.unwrap(), [active]);
}

async fn deploys_at_once_get_different_versions(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let deploys = (0..10).map(|_| bench.store.create_deployment(new_deployment(ada.id, "hello")));
    let pending = futures_util::future::try_join_all(deploys).await.unwrap();
    let versions: BTreeSet<_> = pending.iter().map(|pending| pending.spec.version).collect();
    assert_eq!(versions, (1..=10).collect());
    assert_eq!(pending.iter().filter(|pending| pending.is_first).count(), 1);
    let activations = pending.iter().map(|pending| bench.store.activate_deployment(pending.spec.deployment, 1));
    futures_util::future::try_join_all(activations).await.unwrap();
    let function = bench.store.function(ada.id, "hello").await.unwrap().unwrap();
    assert_eq!(function.active.unwrap().spec.version, 10);
}

async fn an_older_version_that_is_ready_later_does_not_serve(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let slow = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    let fast = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    bench.store.activate_deployment(fast.spec.deployment, 1).await.unwrap();
    let function = bench.store.activate_deployment(slow.spec.deployment, 1).await.unwrap();
    assert_eq!(function.active.unwrap().spec, fast.spec);
    bench.store.activate_deployment(fast.spec.deployment, 1).await.unwrap();
}

async fn a_failed_build_leaves_the_old_one_serving(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let first = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    bench.store.fail_deployment(first.spec.deployment, "exit code 1\0").await.unwrap();
    let failed = bench.store.function(ada.id, "hello").await.unwrap().unwrap();
    assert_eq!((failed.status, failed.active), (Status::Failed, None));

    let good = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    let building = bench.store.function(ada.id, "hello").await.unwrap().unwrap();
    assert_eq!(building.status, Status::Building);
    let good = bench.store.activate_deployment(good.spec.deployment, 1).await.unwrap();
    let bad = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    bench.store.fail_deployment(bad.spec.deployment, "exit code 1").await.unwrap();
    let function = bench.store.function(ada.id, "hello").await.unwrap().unwrap();
    assert_eq!((function.status, function.active), (Status::Active, good.active));
    bench.store.fail_deployment(DeploymentId::new(), "gone").await.unwrap();
}

async fn an_abandoned_first_version_takes_its_function_along(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let kept = bench.serving(ada.id, "kept").await;
    let first = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    let line = LogLine { source: "deploy", message: "the node is gone".to_owned() };
    bench.store.append_log(first.spec.deployment, &[line]).await.unwrap();
    for _ in 0..2 {
        bench.store.abandon_deployment(first.spec.deployment, "the node is gone").await.unwrap();
        assert_eq!(bench.store.functions(ada.id, 9, None).await.unwrap(), std::slice::from_ref(&kept));
    }
    for (table, rows) in [("functions", 1), ("function_deployments", 1), ("function_logs", 0)] {
        assert_eq!(bench.number(&format!("SELECT COUNT(*) FROM {table}")).await, rows, "{table}");
    }
}

async fn an_abandoned_version_leaves_what_others_made(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let find = async || bench.store.function(ada.id, "hello").await.unwrap().unwrap();
    let first = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    let second = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    bench.store.abandon_deployment(first.spec.deployment, "stopping\0").await.unwrap();
    assert_eq!(find().await.status, Status::Building);
    let active = bench.store.activate_deployment(second.spec.deployment, 1).await.unwrap();
    let failed = "SELECT COUNT(*) FROM function_deployments WHERE status = 'failed' AND failure IS NOT NULL";
    assert_eq!(bench.number(failed).await, 1);

    // It serves already, though its gateway was not told.
    bench.store.abandon_deployment(second.spec.deployment, "the database did not answer").await.unwrap();
    assert_eq!((find().await, bench.number(failed).await), (active, 1));

    // A version that is added at the same moment either has the function for itself or keeps it.
    for round in 0..10 {
        let name = format!("hello-{round}");
        let first = bench.store.create_deployment(new_deployment(ada.id, &name)).await.unwrap();
        let (abandoned, added) = tokio::join!(
            bench.store.abandon_deployment(first.spec.deployment, "stopping"),
            bench.store.create_deployment(new_deployment(ada.id, &name)),
        );
        abandoned.unwrap();
        let added = added.unwrap();
        let function = bench.store.activate_deployment(added.spec.deployment, 1).await.unwrap();
        assert_eq!(function.active.unwrap().spec, added.spec);
    }
}

async fn a_crash_leaves_failed_versions_behind(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let serving = bench.serving(ada.id, "serving").await;
    for name in ["serving", "new"] {
        bench.store.create_deployment(new_deployment(ada.id, name)).await.unwrap();
    }
    assert_eq!(bench.store.fail_overdue_deployments(0).await.unwrap(), 2);
    assert_eq!(bench.store.fail_overdue_deployments(0).await.unwrap(), 0);
    assert_eq!(bench.store.serving().await.unwrap(), [serving]);
    let new = bench.store.function(ada.id, "new").await.unwrap().unwrap();
    assert_eq!(new.status, Status::Failed);
}

/// A version of `hello` that was made so many days ago.
async fn version(bench: &Bench, owner: UserId, days: i64) -> DeploymentId {
    let made_at = chrono::Utc::now() - chrono::Duration::days(days);
    let new = NewDeployment { id: crate::rows::first_id(made_at).into(), ..new_deployment(owner, "hello") };
    bench.store.create_deployment(new).await.unwrap().spec.deployment
}

/// Purges versions that were replaced 30 days ago; the numbers of those that are left.
async fn left(bench: &Bench) -> Vec<i64> {
    let before = chrono::Utc::now() - chrono::Duration::days(30);
    while bench.store.purge_versions(before).await.unwrap() > 0 {}
    let (mut left, mut last) = (Vec::new(), 0);
    loop {
        let next = "SELECT CAST(COALESCE(MIN(version), 0) AS BIGINT) FROM function_deployments WHERE version";
        last = bench.number(&format!("{next} > {last}")).await;
        if last == 0 {
            return left;
        }
        left.push(last);
    }
}

async fn replaced_versions_end(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    for days in [90, 80, 60, 40, 20] {
        let id = version(bench, ada.id, days).await;
        if days == 80 {
            bench.store.fail_deployment(id, "exit code 1").await.unwrap();
        } else {
            bench.store.activate_deployment(id, 1).await.unwrap();
        }
    }
    // The fourth served until 20 days ago.
    assert_eq!(left(bench).await, [4, 5]);
    let function = bench.store.function(ada.id, "hello").await.unwrap().unwrap();
    assert_eq!(function.active.unwrap().spec.version, 5);
    let next = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    assert_eq!(next.spec.version, 6);
}

async fn what_may_be_needed_stays(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let (store, fail) = (&bench.store, "exit code 1");
    // Nothing serves yet: the last number is not given twice.
    for days in [90, 80] {
        store.fail_deployment(version(bench, ada.id, days).await, fail).await.unwrap();
    }
    assert_eq!(left(bench).await, [2]);
    // One serves, whatever failed after it, and whatever is still being built.
    let building = version(bench, ada.id, 70).await;
    let serving = version(bench, ada.id, 60).await;
    store.activate_deployment(serving, 1).await.unwrap();
    for days in [50, 40] {
        store.fail_deployment(version(bench, ada.id, days).await, fail).await.unwrap();
    }
    assert_eq!(left(bench).await, [3, 4, 6]);
    // One that was overtaken while it was built never served.
    store.activate_deployment(building, 1).await.unwrap();
    assert_eq!(left(bench).await, [4, 6]);
    assert_eq!(store.serving().await.unwrap()[0].active.as_ref().unwrap().spec.deployment, serving);
    store.fail_deployment(version(bench, ada.id, 1).await, fail).await.unwrap();
    assert_eq!(left(bench).await, [4, 6, 7]);
}

async fn a_deleted_functions_build_is_not_found(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let pending = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    bench.store.delete_function(ada.id, pending.spec.function).await.unwrap();
    let activated = bench.store.activate_deployment(pending.spec.deployment, 1).await;
    assert!(matches!(activated, Err(Error::NotFound)), "{activated:?}");
    bench.store.fail_deployment(pending.spec.deployment, "too late").await.unwrap();
    let line = LogLine { source: "deploy", message: "too late".to_owned() };
    bench.store.append_log(pending.spec.deployment, &[line]).await.unwrap();
    let again = bench.store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    assert!(again.is_first);
    assert_ne!(again.spec.function, pending.spec.function);
}

async fn a_version_keeps_its_contract(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    for contract in [Contract::Http { idle_timeout_ms: 60_000 }, Contract::File, Contract::Http { idle_timeout_ms: 1 }]
    {
        let new = NewDeployment { contract, ..new_deployment(ada.id, "hello") };
        let pending = bench.store.create_deployment(new).await.unwrap();
        let function = bench.store.activate_deployment(pending.spec.deployment, 1).await.unwrap();
        assert_eq!(function.active.unwrap().spec.contract, contract);
    }
}

async fn a_version_keeps_how_stale_it_may_be(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    for stale_while_cold_ms in [0, 60_000] {
        let new = NewDeployment { stale_while_cold_ms, ..new_deployment(ada.id, "hello") };
        let pending = bench.store.create_deployment(new).await.unwrap();
        let function = bench.store.activate_deployment(pending.spec.deployment, 1).await.unwrap();
        assert_eq!(function.active.unwrap().spec.stale_while_cold_ms, stale_while_cold_ms);
    }
}

async fn a_version_keeps_which_nodes_it_wants(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    for selector in ["", "gpu=true,zone=a"] {
        let node_selector: Labels = selector.parse().unwrap();
        let new = NewDeployment { node_selector: node_selector.clone(), ..new_deployment(ada.id, "hello") };
        let pending = bench.store.create_deployment(new).await.unwrap();
        let function = bench.store.activate_deployment(pending.spec.deployment, 1).await.unwrap();
        assert_eq!(function.active.unwrap().spec.node_selector, node_selector);
    }
}

async fn log_lines_keep_their_order(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let deployment = bench.serving(ada.id, "hello").await.active.unwrap().spec.deployment;
    let line = |n: usize| LogLine { source: "build", message: format!("line\0 {n:03}") };
    bench.store.append_log(deployment, &(0..100).map(line).collect::<Vec<_>>()).await.unwrap();
    bench.store.append_log(deployment, &(100..150).map(line).collect::<Vec<_>>()).await.unwrap();
    bench.store.append_log(deployment, &[]).await.unwrap();
    let in_order =
        "SELECT COUNT(*) FROM (SELECT message, LAG(message) OVER (ORDER BY id) AS before FROM function_logs) l
        WHERE before IS NULL OR before < message";
    assert_eq!(bench.number(in_order).await, 150);
}
