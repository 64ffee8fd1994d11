//! Who may build from an archive, and what becomes of those that nobody needs.

use std::time::Duration;

use common::digest::Digest;
use store::artifacts::Artifact;
use store::claims::{Claim, Holder};
use tower::ServiceExt as _;

use super::deploys::{form, python, upload};
use super::sweep::sweep;
use super::{Api, delete, until};

const LONG: Duration = Duration::from_secs(3600);

fn deploy(token: &str, name: &str) -> http::Request<axum::body::Body> {
    upload(token, form(&[("name", name.as_bytes()), ("archive", &python())]))
}

fn archive() -> Claim {
    Claim::Archive(Digest::of(&python()))
}

#[tokio::test]
async fn an_archive_is_built_by_one_gateway_at_a_time() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    let another = Holder::new();
    assert!(api.state.store.claim(archive(), another, 60).await.unwrap());
    let waiting = tokio::spawn(api.router.clone().oneshot(deploy(&token, "a")));
    until("the archive is uploaded", || api.files("incoming") == 1).await;
    let other = upload(&token, form(&[("name", b"b"), ("archive", &super::deploys::archive(&[("main.py", "2")]))]));
    api.check(other, 201, "").await;
    assert_eq!(node.orders().len(), 1, "it was built meanwhile");
    api.state.store.give_up(archive(), another).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 201);
    assert!(api.state.store.claim(archive(), another, 60).await.unwrap(), "the claim is not given up");
}

#[tokio::test]
async fn a_gateway_that_died_keeps_nobody_waiting() {
    let api = Api::start().await;
    let _node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    assert!(api.state.store.claim(archive(), Holder::new(), 1).await.unwrap());
    api.check(deploy(&token, "a"), 201, "").await;
}

#[tokio::test]
async fn deploys_of_one_archive_build_one_after_the_other() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    node.hold().await;
    let calls = ["a", "b", "c"].map(|name| tokio::spawn(api.router.clone().oneshot(deploy(&token, name))));
    until("one build is ordered and the rest wait", || node.orders().len() == 1 && api.files("incoming") == 2).await;
    node.go_on();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 201);
    }
    assert_eq!((node.orders().len(), api.files("archives")), (3, 1));
}

#[tokio::test]
async fn what_no_version_needs_is_swept_away() {
    let api = Api::start().await;
    let node = api.node().await;
    let (_, token) = api.user("ada@example.com").await;
    api.check(deploy(&token, "a"), 201, "").await;
    let order = node.orders().remove(0);
    let of_it = api.state.runtimes.build_digest(order.archive, &order.runtime, &order.entrypoint).unwrap();
    for build in [of_it, Digest::of(b"of another recipe")] {
        let mut incoming = api.state.artifacts.begin().await.unwrap();
        incoming.write(b"packed").await.unwrap();
        incoming.keep(Artifact::Build(build)).await.unwrap();
    }
    let check = async |grace, removed, archives, builds| {
        assert_eq!(sweep(&api.state, grace).await.unwrap(), removed);
        assert_eq!((api.files("archives"), api.files("builds")), (archives, builds));
    };
    check(LONG, 0, 1, 2).await;
    check(Duration::ZERO, 1, 1, 1).await;
    api.check(delete("/api/functions/a", &token), 204, "").await;
    while api.state.store.purge_deleted().await.unwrap() > 0 {}
    check(LONG, 0, 1, 1).await;

    // A deploy that has not come to its row yet.
    let another = Holder::new();
    assert!(api.state.store.claim(archive(), another, 60).await.unwrap());
    check(Duration::ZERO, 1, 1, 0).await;
    api.state.store.give_up(archive(), another).await.unwrap();
    assert!(api.state.store.claim(Claim::Sweep, another, 60).await.unwrap());
    check(Duration::ZERO, 0, 1, 0).await;
    api.state.store.give_up(Claim::Sweep, another).await.unwrap();
    check(Duration::ZERO, 1, 0, 0).await;
}
