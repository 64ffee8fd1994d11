//! Refresh tokens: rotation, reuse, revocation, expiry; and the sessions that end by these.

use chrono::{TimeDelta, Utc};
use common::digest::Digest;
use common::ids::SessionId;

use super::bench::Bench;
use super::on_both;
use crate::{RefreshToken, Rotation};

on_both!(
    a_token_rotates_once_and_its_reuse_ends_the_family,
    of_two_who_rotate_at_once_one_is_the_reuse,
    a_revoked_family_is_unknown,
    an_expired_token_is_unknown_and_purged,
    a_session_that_ended_is_known_until_its_time,
);

/// How long access tokens live here, in seconds.
const ACCESS_SECONDS: u32 = 60;

fn hash(token: &str) -> Digest {
    Digest::of(token.as_bytes())
}

/// Begins a session with `token`, which lives for `seconds`.
async fn begin(bench: &Bench, token: &str, seconds: i64) -> RefreshToken {
    let user = match bench.store.user_by_email("ada@example.org").await.unwrap() {
        Some(user) => user,
        None => bench.user("ada@example.org").await,
    };
    let expires_at = Utc::now() + TimeDelta::seconds(seconds);
    let token = RefreshToken { hash: hash(token), session: SessionId::new(), user: user.id, expires_at };
    bench.store.add_refresh_token(token).await.unwrap();
    token
}

async fn rotate(bench: &Bench, old: &str, new: &str) -> Rotation {
    let expires_at = Utc::now() + TimeDelta::seconds(60);
    bench.store.rotate_refresh_token(hash(old), hash(new), expires_at, ACCESS_SECONDS).await.unwrap()
}

/// What comes of it when a session goes on that began with `token`.
fn rotated(token: RefreshToken) -> Rotation {
    Rotation::Rotated { user: token.user, session: token.session }
}

async fn revoke(bench: &Bench, token: &str, access_seconds: u32) -> bool {
    bench.store.revoke_refresh_token(hash(token), access_seconds).await.unwrap()
}

async fn a_token_rotates_once_and_its_reuse_ends_the_family(bench: &Bench) {
    let token = begin(bench, "a", 60).await;
    let other = begin(bench, "another family", 60).await;
    assert_eq!(rotate(bench, "a", "b").await, rotated(token));
    assert_eq!(rotate(bench, "b", "c").await, rotated(token));
    assert_eq!(rotate(bench, "a", "thief").await, Rotation::Reused);
    assert_eq!(rotate(bench, "c", "d").await, Rotation::Unknown);
    assert_eq!(rotate(bench, "thief", "d").await, Rotation::Unknown);
    assert_eq!(rotate(bench, "never given", "d").await, Rotation::Unknown);
    assert_eq!(rotate(bench, "another family", "e").await, rotated(other));
}

async fn of_two_who_rotate_at_once_one_is_the_reuse(bench: &Bench) {
    for round in 0..5 {
        let old = format!("old {round}");
        let token = begin(bench, &old, 60).await;
        let (one, other) = (format!("one {round}"), format!("other {round}"));
        let (first, second) = tokio::join!(rotate(bench, &old, &one), rotate(bench, &old, &other));
        let mut outcomes = [first, second];
        outcomes.sort_by_key(|outcome| *outcome == Rotation::Reused);
        assert_eq!(outcomes, [rotated(token), Rotation::Reused]);
        assert_eq!(rotate(bench, &one, "x").await, Rotation::Unknown);
        assert_eq!(rotate(bench, &other, "x").await, Rotation::Unknown);
    }
}

async fn a_revoked_family_is_unknown(bench: &Bench) {
    begin(bench, "a", 60).await;
    rotate(bench, "a", "b").await;
    assert!(revoke(bench, "b", ACCESS_SECONDS).await);
    assert_eq!(rotate(bench, "b", "c").await, Rotation::Unknown);
    assert_eq!(rotate(bench, "a", "c").await, Rotation::Unknown);
    assert!(!revoke(bench, "b", ACCESS_SECONDS).await);
    assert!(!revoke(bench, "never given", ACCESS_SECONDS).await);
}

async fn an_expired_token_is_unknown_and_purged(bench: &Bench) {
    let living = begin(bench, "living", 60).await;
    begin(bench, "expired", -1).await;
    assert_eq!(rotate(bench, "expired", "b").await, Rotation::Unknown);
    assert_eq!(bench.store.purge_refresh_tokens().await.unwrap(), 1);
    assert_eq!(bench.store.purge_refresh_tokens().await.unwrap(), 0);
    assert_eq!(rotate(bench, "living", "c").await, rotated(living));
}

/// Which sessions are known to have ended after a step, and whether it is a change that gateways see.
async fn check(bench: &Bench, what: &str, step: impl Future<Output = ()>, ended: &[RefreshToken], is_seen: bool) {
    let before = bench.store.changes().await.unwrap().sessions;
    step.await;
    let after = bench.store.changes().await.unwrap().sessions;
    assert_eq!(after > before, is_seen, "{what}: {before}, {after}");
    let mut found = bench.store.ended_sessions().await.unwrap();
    found.sort_unstable();
    let mut expected: Vec<_> = ended.iter().map(|token| token.session).collect();
    expected.sort_unstable();
    assert_eq!(found, expected, "{what}");
}

async fn a_session_that_ended_is_known_until_its_time(bench: &Bench) {
    let (left, reused) = (begin(bench, "left", 60).await, begin(bench, "reused", 60).await);
    let rotation = async |old: &str, new: &str, expected: Rotation| assert_eq!(rotate(bench, old, new).await, expected);
    let begun = async {
        begin(bench, "brief", 60).await;
    };
    check(bench, "one begins", begun, &[], false).await;
    check(bench, "one goes on", rotation("reused", "next", rotated(reused)), &[], false).await;
    let revoked = async { assert!(revoke(bench, "left", ACCESS_SECONDS).await) };
    check(bench, "one is left", revoked, &[left], true).await;
    let again = async { assert!(!revoke(bench, "left", ACCESS_SECONDS).await) };
    check(bench, "it has ended already", again, &[left], false).await;
    check(bench, "a token comes again", rotation("reused", "x", Rotation::Reused), &[left, reused], true).await;
    check(bench, "and its successor", rotation("next", "x", Rotation::Unknown), &[left, reused], false).await;
    // Nothing of it can be good any more.
    let brief = async { assert!(revoke(bench, "brief", 0).await) };
    check(bench, "one without access tokens", brief, &[left, reused], true).await;
    let purged = async { assert_eq!(bench.store.purge_refresh_tokens().await.unwrap(), 1) };
    check(bench, "it is purged", purged, &[left, reused], false).await;
}
