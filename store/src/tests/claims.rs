//! Claims: one holder at a time, and none for ever; and what keeps an archive.

use std::time::Duration;

use common::digest::Digest;

use super::bench::{Bench, new_deployment};
use super::on_both;
use crate::claims::{Claim, Holder};

on_both!(one_holder_at_a_time, a_claim_that_nobody_renews_ends, versions_keep_their_archives);

async fn one_holder_at_a_time(bench: &Bench) {
    let store = &bench.store;
    let (one, other, what) = (Holder::new(), Holder::new(), Claim::Archive(Digest::of(b"a")));
    assert!(store.claim(what, one, 60).await.unwrap());
    assert!(!store.claim(what, other, 60).await.unwrap());
    assert!(store.claim(what, one, 60).await.unwrap(), "it is not renewed");
    assert!(store.claim(Claim::Sweep, other, 60).await.unwrap());
    store.give_up(what, other).await.unwrap();
    assert!(!store.claim(what, other, 60).await.unwrap(), "somebody else gave it up");
    store.give_up(what, one).await.unwrap();
    assert!(store.claim(what, other, 60).await.unwrap());

    let many = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.claim(Claim::Archive(Digest::of(b"b")), Holder::new(), 60).await.unwrap() })
    });
    let taken = futures_util::future::join_all(many).await;
    assert_eq!(taken.into_iter().filter(|taken| *taken.as_ref().unwrap()).count(), 1);
    assert_eq!(store.purge_claims().await.unwrap(), 0);
}

async fn a_claim_that_nobody_renews_ends(bench: &Bench) {
    let (gone, next) = (Holder::new(), Holder::new());
    assert!(bench.store.claim(Claim::Sweep, gone, 1).await.unwrap());
    let taken = async {
        while !bench.store.claim(Claim::Sweep, next, 60).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), taken).await.unwrap();
    assert!(!bench.store.claim(Claim::Sweep, gone, 1).await.unwrap());
}

async fn versions_keep_their_archives(bench: &Bench) {
    let store = &bench.store;
    let user = bench.user("ada@example.com").await;
    let mut made = Vec::new();
    for name in ["a", "b", "c"] {
        let mut new = new_deployment(user.id, name);
        new.archive = Digest::of(name.as_bytes());
        made.push(store.create_deployment(new).await.unwrap().spec);
    }
    let first = store.sources(None, 2).await.unwrap();
    let rest = store.sources(Some(first[1].deployment), 2).await.unwrap();
    let found: Vec<_> = first.iter().chain(&rest).map(|source| (source.deployment, source.archive)).collect();
    assert_eq!(found, made.iter().map(|spec| (spec.deployment, spec.archive)).collect::<Vec<_>>());
    assert_eq!((&rest[0].runtime, &rest[0].entrypoint), (&made[2].runtime, &made[2].entrypoint));
    assert!(store.sources(Some(rest[0].deployment), 2).await.unwrap().is_empty());

    // Failed or not.
    store.fail_deployment(made[0].deployment, "no").await.unwrap();
    assert!(store.is_wanted(made[0].archive).await.unwrap());
    store.delete_function(user.id, made[0].function).await.unwrap();
    bench.purge_deleted().await;
    assert!(!store.is_wanted(made[0].archive).await.unwrap());
    assert!(store.is_wanted(made[1].archive).await.unwrap());
}
