//! The numbers of what gateways keep a picture of, and the word that one grew.

use std::time::Duration;

use common::ids::{GatewayId, NodeId};
use common::labels::Labels;

use super::bench::{Bench, new_deployment};
use super::on_both;
use crate::fleet::{Authority, Duty};

on_both!(what_gateways_see_is_numbered, a_change_is_told, each_gateway_fails_its_own);

/// What a step adds to the numbers of routes and nodes.
async fn check(bench: &Bench, what: &str, step: impl Future<Output = ()>, expected: (bool, bool)) {
    let before = bench.store.changes().await.unwrap();
    step.await;
    let after = bench.store.changes().await.unwrap();
    assert_eq!((after.routes > before.routes, after.nodes > before.nodes), expected, "{what}: {before:?}, {after:?}");
}

/// Whether a step is a change of the authorities.
async fn check_authority(bench: &Bench, what: &str, step: impl Future<Output = ()>, expected: bool) {
    let before = bench.store.changes().await.unwrap().authority;
    step.await;
    let after = bench.store.changes().await.unwrap().authority;
    assert_eq!(after > before, expected, "{what}: {before}, {after}");
}

async fn what_gateways_see_is_numbered(bench: &Bench) {
    let store = &bench.store;
    let ada = bench.user("ada@example.org").await;
    let pending = store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap();
    let failing = store.create_deployment(new_deployment(ada.id, "hello")).await.unwrap().spec.deployment;
    let (function, deployment) = (pending.spec.function, pending.spec.deployment);
    let activate = async || drop(store.activate_deployment(deployment, 1).await.unwrap());
    check(bench, "a version serves", activate(), (true, false)).await;
    check(bench, "it serves already", activate(), (false, false)).await;
    check(bench, "a build fails", async { store.fail_deployment(failing, "no").await.unwrap() }, (false, false)).await;
    check(bench, "a deletion", async { store.delete_function(ada.id, function).await.unwrap() }, (true, false)).await;

    let (id, labels): (_, Labels) = (NodeId::new(), "a=b".parse().unwrap());
    let link = async |labels: &Labels| store.node_linked(id, "one", labels).await.unwrap();
    check(bench, "a node", link(&labels), (false, true)).await;
    check(bench, "it is back", link(&labels), (false, false)).await;
    check(bench, "it is seen", async { store.nodes_seen(GatewayId::new(), &[id]).await.unwrap() }, (false, false))
        .await;
    check(bench, "other labels", link(&Labels::default()), (false, true)).await;
    let none = Labels::NONE;
    let given = async { assert!(store.label_node(id, &none, &labels).await.unwrap()) };
    check(bench, "labelled", given, (false, true)).await;
    check(bench, "cordoned", async { store.set_duty(id, Duty::Cordoned).await.unwrap() }, (false, true)).await;
    check(bench, "removed", async { store.set_duty(id, Duty::Removed).await.unwrap() }, (false, true)).await;
    check(bench, "purged", async { assert_eq!(store.purge_fleet().await.unwrap(), 1) }, (false, true)).await;

    let authority = |text: &str| Authority { certificate: text.into(), sealed_key: format!("key of {text}").into() };
    store.found_authority(authority("one")).await.unwrap();
    let sealed = async { store.reseal_authority(b"key of one", b"another").await.unwrap() };
    check_authority(bench, "sealed anew", sealed, false).await;
    let rotated = async { assert!(store.rotate_authority(b"one", authority("two")).await.unwrap()) };
    check_authority(bench, "rotated", rotated, true).await;
    let ended = async { assert!(store.end_former_authority(b"one", false).await.unwrap()) };
    check_authority(bench, "the one before is ended", ended, true).await;
}

async fn a_change_is_told(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let mut watch = bench.store.watch();
    if !bench.is_postgres() {
        let silence = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(silence.is_err(), "nobody says a word in SQLite");
        return;
    }
    let mut heard = async || tokio::time::timeout(Duration::from_secs(20), watch.changed()).await.unwrap();
    heard().await.unwrap();
    bench.serving(ada.id, "hello").await;
    heard().await.unwrap();
    // Who lost the connection hears something, whatever it missed.
    assert_eq!(
        bench
            .number(
                "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'
                      AND datname = current_database()"
            )
            .await,
        1
    );
    while heard().await.is_err() {}
    bench.serving(ada.id, "again").await;
    heard().await.unwrap();
}

async fn each_gateway_fails_its_own(bench: &Bench) {
    let ada = bench.user("ada@example.org").await;
    let (ours, theirs) = (GatewayId::new(), GatewayId::new());
    for gateway in [ours, theirs] {
        let new = crate::NewDeployment { gateway, ..new_deployment(ada.id, "hello") };
        bench.store.create_deployment(new).await.unwrap();
    }
    assert_eq!(bench.store.fail_deployments_of(ours).await.unwrap(), 1);
    assert_eq!(bench.store.fail_overdue_deployments(60).await.unwrap(), 0);
    assert_eq!(bench.store.fail_overdue_deployments(0).await.unwrap(), 1);
}
