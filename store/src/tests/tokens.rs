//! Refresh tokens: rotation, reuse, revocation, expiry.

use chrono::{TimeDelta, Utc};
use common::digest::Digest;

use super::bench::Bench;
use super::on_both;
use crate::{RefreshToken, Rotation};

on_both!(
    a_token_rotates_once_and_its_reuse_ends_the_family,
    of_two_who_rotate_at_once_one_is_the_reuse,
    a_revoked_family_is_unknown,
    an_expired_token_is_unknown_and_purged,
);

fn hash(token: &str) -> Digest {
    Digest::of(token.as_bytes())
}

/// Begins a family with `token`, which lives for `seconds`.
async fn begin(bench: &Bench, token: &str, seconds: i64) -> RefreshToken {
    let user = match bench.store.user_by_email("ada@example.org").await.unwrap() {
        Some(user) => user,
        None => bench.user("ada@example.org").await,
    };
    let expires_at = Utc::now() + TimeDelta::seconds(seconds);
    let token = RefreshToken { hash: hash(token), user: user.id, expires_at };
    bench.store.add_refresh_token(token).await.unwrap();
    token
}

async fn rotate(bench: &Bench, old: &str, new: &str) -> Rotation {
    let expires_at = Utc::now() + TimeDelta::seconds(60);
    bench.store.rotate_refresh_token(hash(old), hash(new), expires_at).await.unwrap()
}

async fn a_token_rotates_once_and_its_reuse_ends_the_family(bench: &Bench) {
    let token = begin(bench, "a", 60).await;
    begin(bench, "another family", 60).await;
    assert_eq!(rotate(bench, "a", "b").await, Rotation::Rotated(token.user));
    assert_eq!(rotate(bench, "b", "c").await, Rotation::Rotated(token.user));
    assert_eq!(rotate(bench, "a", "thief").await, Rotation::Reused);
    assert_eq!(rotate(bench, "c", "d").await, Rotation::Unknown);
    assert_eq!(rotate(bench, "thief", "d").await, Rotation::Unknown);
    assert_eq!(rotate(bench, "never given", "d").await, Rotation::Unknown);
    assert_eq!(rotate(bench, "another family", "e").await, Rotation::Rotated(token.user));
}

async fn of_two_who_rotate_at_once_one_is_the_reuse(bench: &Bench) {
    for round in 0..5 {
        let old = format!("old {round}");
        let token = begin(bench, &old, 60).await;
        let (one, other) = (format!("one {round}"), format!("other {round}"));
        let (first, second) = tokio::join!(rotate(bench, &old, &one), rotate(bench, &old, &other));
        let mut outcomes = [first, second];
        outcomes.sort_by_key(|outcome| *outcome == Rotation::Reused);
        assert_eq!(outcomes, [Rotation::Rotated(token.user), Rotation::Reused]);
        assert_eq!(rotate(bench, &one, "x").await, Rotation::Unknown);
        assert_eq!(rotate(bench, &other, "x").await, Rotation::Unknown);
    }
}

async fn a_revoked_family_is_unknown(bench: &Bench) {
    begin(bench, "a", 60).await;
    rotate(bench, "a", "b").await;
    bench.store.revoke_refresh_token(hash("b")).await.unwrap();
    assert_eq!(rotate(bench, "b", "c").await, Rotation::Unknown);
    assert_eq!(rotate(bench, "a", "c").await, Rotation::Unknown);
    bench.store.revoke_refresh_token(hash("b")).await.unwrap();
    bench.store.revoke_refresh_token(hash("never given")).await.unwrap();
}

async fn an_expired_token_is_unknown_and_purged(bench: &Bench) {
    let living = begin(bench, "living", 60).await;
    begin(bench, "expired", -1).await;
    assert_eq!(rotate(bench, "expired", "b").await, Rotation::Unknown);
    assert_eq!(bench.store.purge_refresh_tokens().await.unwrap(), 1);
    assert_eq!(bench.store.purge_refresh_tokens().await.unwrap(), 0);
    assert_eq!(rotate(bench, "living", "c").await, Rotation::Rotated(living.user));
}
