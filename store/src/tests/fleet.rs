//! The fleet: its authority and the exchange of it, tokens that are good once and not for long, nodes and what they may do.

use chrono::{SubsecRound as _, TimeDelta, Utc};
use common::digest::Digest;
use common::ids::{GatewayId, NodeId};
use common::labels::Labels;

use super::bench::Bench;
use super::on_both;
use crate::Error;
use crate::fleet::{Authorities, Authority, CertificateFacts, Duty, Joining, NewNode, Node};

on_both!(
    the_first_authority_stays,
    an_authority_is_exchanged,
    who_depends_on_the_authority_before,
    nodes_of_before_the_first_exchange,
    a_token_is_good_once,
    a_token_expires_by_the_databases_clock,
    duties_and_removal,
    a_node_of_this_machine_comes_back,
    who_is_linked_to_whom,
    labels_of_two_sources,
);

fn hash(token: &str) -> Digest {
    Digest::of(token.as_bytes())
}

fn certificate(serial: &str, seconds: i64) -> CertificateFacts {
    let expires_at = (Utc::now() + TimeDelta::seconds(seconds)).trunc_subsecs(6);
    CertificateFacts { serial: serial.into(), expires_at }
}

/// Hands out `token` for `seconds`.
async fn token(bench: &Bench, token: &str, seconds: u32) {
    let user = match bench.store.user_by_email("ada@example.org").await.unwrap() {
        Some(user) => user,
        None => bench.user("ada@example.org").await,
    };
    let until = bench.store.add_join_token(hash(token), user.id, seconds).await.unwrap();
    let left = until - Utc::now();
    assert!((left - TimeDelta::seconds(seconds.into())).abs() < TimeDelta::seconds(30), "{left}");
}

async fn join(bench: &Bench, token: &str, seconds: i64) -> (NodeId, Joining) {
    let (id, certificate) = (NodeId::new(), certificate("01ab", seconds));
    let node = NewNode { id, name: "one".into(), certificate, authority: hash("one") };
    (id, bench.store.join_node(hash(token), node).await.unwrap())
}

async fn node(bench: &Bench, id: NodeId) -> Option<Node> {
    bench.store.nodes().await.unwrap().into_iter().find(|node| node.id == id)
}

fn authority(text: &str) -> Authority {
    Authority { certificate: text.into(), sealed_key: format!("key of {text}").into() }
}

async fn the_first_authority_stays(bench: &Bench) {
    let one = Authorities { current: authority("one"), former: None };
    assert_eq!(bench.store.authorities().await.unwrap(), None);
    assert_eq!(bench.store.found_authority(authority("one")).await.unwrap(), one);
    assert_eq!(bench.store.found_authority(authority("other")).await.unwrap(), one);
    assert_eq!(bench.store.authorities().await.unwrap(), Some(one));
    for (old, expected) in [("key of other", "key of one"), ("key of one", "new"), ("key of one", "new")] {
        bench.store.reseal_authority(old.as_bytes(), b"new").await.unwrap();
        assert_eq!(bench.store.authorities().await.unwrap().unwrap().current.sealed_key, expected.as_bytes());
    }
}

async fn an_authority_is_exchanged(bench: &Bench) {
    let store = &bench.store;
    let rotate = async |before: &str, next| store.rotate_authority(before.as_bytes(), authority(next)).await.unwrap();
    let end = async |former: &str| store.end_former_authority(former.as_bytes(), false).await.unwrap();
    let check = async |current, former: Option<&str>| {
        let expected = Authorities { current: authority(current), former: former.map(authority) };
        assert_eq!(store.authorities().await.unwrap(), Some(expected));
    };
    assert!(!rotate("one", "two").await, "there is none");
    store.found_authority(authority("one")).await.unwrap();
    let (first, second) = tokio::join!(rotate("one", "two"), rotate("one", "two"));
    assert!(first != second, "{first}, {second}");
    check("two", Some("one")).await;
    assert!(!rotate("two", "three").await, "the one before is trusted still");
    assert!(!end("two").await);
    check("two", Some("one")).await;
    for (old, new) in [("key of one", "1"), ("key of two", "2"), ("1", "key of one"), ("2", "key of two")] {
        store.reseal_authority(old.as_bytes(), new.as_bytes()).await.unwrap();
    }
    check("two", Some("one")).await;
    assert!(end("one").await);
    check("two", None).await;
    assert!(!end("one").await);
    assert!(rotate("two", "three").await);
    check("three", Some("two")).await;
}

async fn who_depends_on_the_authority_before(bench: &Bench) {
    let store = &bench.store;
    store.found_authority(authority("one")).await.unwrap();
    token(bench, "a", 60).await;
    let (id, _) = join(bench, "a", 60).await;
    let moved = async |to: &str| store.node_moved(id, hash(to)).await.unwrap();
    let end = async |force| store.end_former_authority(b"one", force).await.unwrap();
    assert!(store.rotate_authority(b"one", authority("two")).await.unwrap());
    let check = async |what: &str, expected: bool| {
        assert_eq!(node(bench, id).await.unwrap().depends_on(hash("one"), Utc::now()), expected, "{what}");
        assert_eq!(end(false).await, !expected, "{what}");
        if !expected {
            // Once more from the beginning.
            assert!(store.rotate_authority(b"two", authority("one")).await.unwrap());
            assert!(store.end_former_authority(b"two", true).await.unwrap());
            assert!(store.rotate_authority(b"one", authority("two")).await.unwrap());
        }
    };
    check("it joined by the one before", true).await;
    store.renew_node(id, certificate("02", 60)).await.unwrap();
    check("it got another certificate, and has not shown it yet", true).await;
    moved("two").await;
    check("it has", false).await;
    moved("one").await;
    check("it came back", true).await;
    store.renew_node(id, certificate("03", -60)).await.unwrap();
    check("its certificate has ended", false).await;
    // A node of the gateway's own machine has none.
    store.node_linked(NodeId::new(), "here", &Labels::default()).await.unwrap();
    store.renew_node(id, certificate("04", 60)).await.unwrap();
    check("another one was given out", true).await;
    store.set_duty(id, Duty::Removed).await.unwrap();
    check("removed", false).await;
    token(bench, "b", 60).await;
    join(bench, "b", 60).await;
    assert!(!end(false).await && end(true).await, "by force alone");
}

/// What nodes are like that joined before it was noted by which authority.
const FORGET: &str = "UPDATE nodes SET certificate_authority = NULL RETURNING CAST(1 AS BIGINT)";

async fn nodes_of_before_the_first_exchange(bench: &Bench) {
    let store = &bench.store;
    store.found_authority(authority("one")).await.unwrap();
    token(bench, "a", 60).await;
    let (id, _) = join(bench, "a", 60).await;
    assert_eq!(bench.number(FORGET).await, 1);
    assert!(node(bench, id).await.unwrap().depends_on(hash("one"), Utc::now()));
    assert!(store.rotate_authority(b"one", authority("two")).await.unwrap());
    assert_eq!(node(bench, id).await.unwrap().authority, Some(hash("one")));
    // An older gateway takes one in.
    assert_eq!(bench.number(FORGET).await, 1);
    assert!(!store.end_former_authority(b"one", false).await.unwrap());
}

async fn a_token_is_good_once(bench: &Bench) {
    token(bench, "a", 60).await;
    let ((id, first), (other, second)) = tokio::join!(join(bench, "a", 60), join(bench, "a", 60));
    let (id, lost) = if first == Joining::Joined { (id, second) } else { (other, first) };
    assert_eq!(lost, Joining::Used);
    assert_eq!(join(bench, "a", 60).await.1, Joining::Used);
    assert_eq!(join(bench, "never given", 60).await.1, Joining::Unknown);
    let nodes = bench.store.nodes().await.unwrap();
    assert_eq!(nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [id]);
    assert_eq!((nodes[0].name.as_str(), nodes[0].duty, nodes[0].last_seen_at), ("one", Duty::Active, None));
}

async fn a_token_expires_by_the_databases_clock(bench: &Bench) {
    token(bench, "old", 0).await;
    assert_eq!(join(bench, "old", 60).await.1, Joining::Expired);
    assert!(bench.store.nodes().await.unwrap().is_empty());
    // For a day it is known that it was one.
    assert_eq!(bench.store.purge_fleet().await.unwrap(), 0);
}

async fn duties_and_removal(bench: &Bench) {
    token(bench, "a", 60).await;
    let (id, joined) = join(bench, "a", -1).await;
    assert_eq!(joined, Joining::Joined);
    for duty in [Duty::Cordoned, Duty::Draining, Duty::Active] {
        bench.store.set_duty(id, duty).await.unwrap();
        assert_eq!(node(bench, id).await.unwrap().duty, duty);
    }
    let labels: Labels = "zone=a,disk=ssd".parse().unwrap();
    bench.store.node_linked(id, "renamed", &labels).await.unwrap();
    bench.store.nodes_seen(GatewayId::new(), &[id, NodeId::new()]).await.unwrap();
    let kept = node(bench, id).await.unwrap();
    assert!(kept.name == "renamed" && kept.labels == labels && kept.last_seen_at.is_some(), "{kept:?}");

    let renewed = certificate("02cd", 60);
    bench.store.renew_node(id, renewed.clone()).await.unwrap();
    assert_eq!(node(bench, id).await.unwrap().certificate, Some(renewed.clone()));
    bench.store.set_duty(id, Duty::Removed).await.unwrap();
    assert!(matches!(bench.store.set_duty(id, Duty::Active).await, Err(Error::NotFound)));
    assert!(matches!(bench.store.renew_node(id, renewed).await, Err(Error::NotFound)));
    bench.store.node_linked(id, "back", &Labels::default()).await.unwrap();
    assert_eq!(node(bench, id).await.unwrap().duty, Duty::Removed);
    // As long as its certificate is valid, it is known that it was removed.
    assert_eq!(bench.store.purge_fleet().await.unwrap(), 0);
    assert!(matches!(bench.store.set_duty(NodeId::new(), Duty::Active).await, Err(Error::NotFound)));
}

async fn labels_of_two_sources(bench: &Bench) {
    let id = NodeId::new();
    let labels = |text: &str| text.parse::<Labels>().unwrap();
    bench.store.node_linked(id, "here", &labels("zone=a,disk=ssd")).await.unwrap();
    let (none, gpu) = (Labels::NONE, labels("gpu=true,zone=b"));
    assert!(bench.store.label_node(id, &none, &gpu).await.unwrap());
    assert!(!bench.store.label_node(id, &none, &labels("zone=c")).await.unwrap(), "somebody was quicker");
    assert!(!bench.store.label_node(NodeId::new(), &none, &gpu).await.unwrap());
    // What the agent says stays beside it.
    bench.store.node_linked(id, "here", &labels("zone=a,disk=hdd")).await.unwrap();
    let kept = node(bench, id).await.unwrap();
    assert_eq!((&kept.given_labels, kept.all_labels()), (&gpu, labels("disk=hdd,gpu=true,zone=b")));
    assert!(bench.store.label_node(id, &gpu, &none).await.unwrap());
    assert_eq!(node(bench, id).await.unwrap().all_labels(), labels("zone=a,disk=hdd"));
}

async fn who_is_linked_to_whom(bench: &Bench) {
    let [one, two] = [NodeId::new(), NodeId::new()];
    for node in [one, two] {
        bench.store.node_linked(node, "here", &Labels::default()).await.unwrap();
    }
    let [here, there] = [GatewayId::new(), GatewayId::new()];
    let see = async |gateway, nodes: &[NodeId]| bench.store.nodes_seen(gateway, nodes).await.unwrap();
    let check = async |seconds, expected: &[(NodeId, GatewayId)]| {
        let (mut links, mut expected) = (bench.store.node_links(seconds).await.unwrap(), expected.to_vec());
        links.sort_unstable();
        expected.sort_unstable();
        assert_eq!(links, expected);
    };
    check(60, &[]).await;
    see(here, &[one, two]).await;
    see(there, &[two, NodeId::new()]).await;
    check(60, &[(one, here), (two, here), (two, there)]).await;
    check(0, &[]).await;
    see(here, &[one]).await;
    check(60, &[(one, here), (two, there)]).await;
    see(there, &[]).await;
    check(60, &[(one, here)]).await;
    assert_eq!(bench.store.purge_fleet().await.unwrap(), 0);
}

async fn a_node_of_this_machine_comes_back(bench: &Bench) {
    let id = NodeId::new();
    bench.store.node_linked(id, "here", &Labels::default()).await.unwrap();
    assert_eq!(node(bench, id).await.unwrap().certificate, None);
    bench.store.set_duty(id, Duty::Removed).await.unwrap();
    bench.store.node_linked(id, "here", &Labels::default()).await.unwrap();
    assert_eq!(node(bench, id).await.unwrap().duty, Duty::Active);
    bench.store.set_duty(id, Duty::Removed).await.unwrap();
    assert_eq!(bench.store.purge_fleet().await.unwrap(), 1);
    assert_eq!(node(bench, id).await, None);
}
