//! Why a call was cold, as it stands on its lease.

use common::phases::ColdCause;
use futures_util::FutureExt as _;

use super::*;

/// Leases a sandbox, which has to be started for this cause; `None` means a warm one.
async fn check(node: &Node, function: &(DeploymentSpec, Build), cause: Option<ColdCause>) -> Lease {
    let lease = node.lease(function).await.unwrap();
    assert_eq!(lease.cold().map(|cold| cold.cause.unwrap()), cause);
    lease
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_the_second_and_after_a_death() {
    on_node(
        |_| {},
        async |node| {
            let function = node.function("native");
            let first = check(node, &function, Some(ColdCause::FirstCall)).await;
            drop(check(node, &function, Some(ColdCause::AllBusy)).await);
            drop(check(node, &function, None).await);
            drop(first);
            // Two calls that are broken off leave two sandboxes that nobody may use.
            let leases = [check(node, &function, None).await, check(node, &function, None).await];
            for mut lease in leases {
                assert!(lease.invoke(b"sleep 60", RESULT_CAP).now_or_never().is_none());
            }
            check(node, &function, Some(ColdCause::Died)).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_it_was_retired() {
    on_node(
        |_| {},
        async |node| {
            let function = node.function("native");
            drop(check(node, &function, Some(ColdCause::FirstCall)).await);
            node.sandboxes.retire(function.0.deployment);
            drop(check(node, &function, Some(ColdCause::Retired)).await);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_it_was_idle() {
    on_node(
        |args| args.sandbox_idle_seconds = 1,
        async |node| {
            let function = node.function("native");
            drop(check(node, &function, Some(ColdCause::FirstCall)).await);
            node.settles_at(0).await;
            assert_eq!(node.metric("dartcloud_sandbox_idle_removals_total"), 1.0);
            drop(check(node, &function, Some(ColdCause::Idle)).await);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_it_made_room() {
    on_node(
        |args| args.sandbox_memory_mb = Some(64),
        async |node| {
            let (small, other) = (node.function("native"), node.function("native"));
            drop(check(node, &small, Some(ColdCause::FirstCall)).await);
            drop(check(node, &other, Some(ColdCause::FirstCall)).await);
            drop(check(node, &small, Some(ColdCause::Memory)).await);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_agent_started() {
    on_node(
        |_| {},
        async |node| {
            let mut older = node.function("native");
            // Of version 7, and with the time zero.
            older.0.deployment = uuid::uuid!("00000000-0000-7000-8000-000000000001").into();
            drop(check(node, &older, Some(ColdCause::AgentStarted)).await);
        },
    )
    .await;
}
