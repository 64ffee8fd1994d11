//! Registering, logging in and staying so.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Extract;
use chrono::{DateTime, SecondsFormat, Utc};
use common::error::Code;
use common::ids::{SessionId, UserId};
use common::names::Handle;
use http::StatusCode;
use serde_json::{Value, json};
use store::{NewUser, Rotation, User};

use super::State;
use super::caller::{Caller, Operator};
use super::config::Registration;
use super::error::Failure;
use super::request::Fields;
use super::tokens::{self, FreshToken, TokenPair};
use crate::config::Founder;

/// Longest e-mail address, in bytes (RFC 5321, section 4.5.3.1.3, less its angle brackets).
const MAX_EMAIL_BYTES: usize = 254;
/// Shortest password, in characters.
const MIN_PASSWORD_CHARS: usize = 8;
/// Longest password, in characters.
const MAX_PASSWORD_CHARS: usize = 1024;
/// Longest handle that is made from an e-mail; the rest is for the number that a taken one gets.
const MAX_HANDLE_CHARS: usize = 48;

/// `POST /api/auth/register`. Where registration is closed, the operator makes accounts by it for others.
pub(crate) async fn register(
    Extract(state): Extract<Arc<State>>,
    operator: Result<Operator, Failure>,
    mut fields: Fields,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let email = checked_email(fields.text("email")?)?;
    let password = checked_password(fields.text("password")?)?;
    let only_first = state.args.registration == Registration::Closed && operator.is_err();
    // Asked first, so that it costs no hash; the insert decides.
    if only_first && state.store.has_users().await? {
        return Err(store::Error::NotFirst.into());
    }
    let taken = || Failure::new(Code::EmailTaken, "somebody has registered with this e-mail: log in instead");
    // Asked first, so that a taken e-mail costs no hash; the insert decides.
    if state.store.user_by_email(&email).await?.is_some() {
        return Err(taken());
    }
    match create(&state, email, password, only_first).await? {
        Some(user) => {
            let body = json!({"id": user.id, "email": user.email, "handle": user.handle});
            Ok((StatusCode::CREATED, Json(body)))
        }
        None => Err(taken()),
    }
}

/// Makes `founder`'s account, if there is nobody yet.
pub(crate) async fn found(state: &State, founder: &Founder) -> Result<(), Failure> {
    if !state.store.has_users().await? {
        let founded = create(state, founder.email.clone(), founder.password.clone(), true).await;
        // Somebody was quicker, and the operator is there.
        return founded
            .map(drop)
            .or_else(|failure| if failure.code() == Code::Forbidden { Ok(()) } else { Err(failure) });
    }
    Ok(())
}

/// A new user, with `only_first` the first of all; `None` when somebody has this e-mail.
async fn create(state: &State, email: String, password: String, only_first: bool) -> Result<Option<User>, Failure> {
    let password_hash = state.passwords.hash(password).await?;
    let new = NewUser { id: UserId::new(), handle: handle_of(&email), email, password_hash, only_first };
    match state.store.create_user(new).await {
        Ok(user) => {
            tracing::info!(user = %user.id, operator = user.operator, "registered");
            Ok(Some(user))
        }
        Err(store::Error::Taken) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `POST /api/auth/login`.
pub(crate) async fn login(Extract(state): Extract<Arc<State>>, mut fields: Fields) -> Result<Json<TokenPair>, Failure> {
    let email = fields.text("email")?;
    let password = fields.text("password")?;
    let denied = || Failure::new(Code::BadCredentials, "e-mail or password are wrong");
    // What no password can be is not hashed either: it says nothing about who is registered.
    if password.chars().count() > MAX_PASSWORD_CHARS || email.contains('\0') {
        return Err(denied());
    }
    let user = state.store.user_by_email(&email).await?;
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    let verified = state.passwords.verify(password, hash).await?;
    let user = user.filter(|_| verified).ok_or_else(denied)?;
    let (token, session) = (FreshToken::new(state.args.refresh_token_lifetime()), SessionId::new());
    state.store.add_refresh_token(token.row(user.id, session)).await?;
    Ok(Json(token.pair(&state, user.id, session)))
}

/// `POST /api/auth/refresh`: the old token is spent. One that was spent before is in a second pair of hands, so its
/// whole session ends.
pub(crate) async fn refresh(
    Extract(state): Extract<Arc<State>>,
    mut fields: Fields,
) -> Result<Json<TokenPair>, Failure> {
    let old = tokens::hash(&fields.text("refreshToken")?);
    let token = FreshToken::new(state.args.refresh_token_lifetime());
    let ended_seconds = state.args.ended_session_seconds();
    let refused = |sentence| Err(Failure::new(Code::Unauthorized, sentence));
    match state.store.rotate_refresh_token(old, token.hash, token.expires_at, ended_seconds).await? {
        Rotation::Rotated { user, session } => Ok(Json(token.pair(&state, user, session))),
        Rotation::Reused => {
            state.sessions.reload(&*state.store).await?;
            refused("the refresh token was used before, so all of its session has ended: log in again")
        }
        Rotation::Unknown => refused("the refresh token is not valid or has expired: log in again"),
    }
}

/// `POST /api/auth/logout`: the session ends, with its refresh tokens and its access tokens. This gateway refuses them at
/// once, the others as soon as the database tells them.
pub(crate) async fn logout(Extract(state): Extract<Arc<State>>, mut fields: Fields) -> Result<StatusCode, Failure> {
    let token = tokens::hash(&fields.text("refreshToken")?);
    if state.store.revoke_refresh_token(token, state.args.ended_session_seconds()).await? {
        state.sessions.reload(&*state.store).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/auth/me`.
pub(crate) async fn me(Extract(state): Extract<Arc<State>>, Caller(user): Caller) -> Result<Json<Value>, Failure> {
    let Some(user) = state.store.user(user).await? else {
        return Err(Failure::new(Code::Unauthorized, "the account behind this token is gone"));
    };
    Ok(Json(json!({
        "id": user.id,
        "email": user.email,
        "handle": user.handle,
        "operator": user.operator,
        "createdAt": rfc3339(user.created_at),
    })))
}

/// RFC 3339 in UTC, to the millisecond.
pub(crate) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn checked_email(email: String) -> Result<String, Failure> {
    let plain = |c: char| c.is_ascii_graphic() && !"()<>[],;:\\\"@".contains(c);
    let valid = email.rsplit_once('@').is_some_and(|(local, domain)| {
        (1..=64).contains(&local.len())
            && local.chars().all(plain)
            && domain
                .split('.')
                .all(|label| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
    });
    if !valid || email.len() > MAX_EMAIL_BYTES {
        let sentence = format!("the field `email` must be an e-mail address of at most {MAX_EMAIL_BYTES} characters");
        return Err(Failure::new(Code::Invalid, sentence));
    }
    Ok(email)
}

fn checked_password(password: String) -> Result<String, Failure> {
    if (MIN_PASSWORD_CHARS..=MAX_PASSWORD_CHARS).contains(&password.chars().count()) {
        return Ok(password);
    }
    let sentence = format!("the password must have {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters");
    Err(Failure::new(Code::WeakPassword, sentence))
}

/// The handle to try first: what of the e-mail's local part may stand in a URL.
fn handle_of(email: &str) -> Handle {
    let local = email.split('@').next().unwrap_or_default().to_ascii_lowercase();
    let words: Vec<&str> = local.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let joined: String = words.join("-").chars().take(MAX_HANDLE_CHARS).collect();
    let text = if joined.is_empty() { "user" } else { &joined };
    text.parse().expect("letters, digits and hyphens, 1 to 48 of them, are a handle")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails() {
        let check = |email: &str, valid: bool| assert_eq!(checked_email(email.into()).is_ok(), valid, "{email:?}");
        check("ada@example.com", true);
        check("a.b+c_d@sub.example.com", true);
        check("operator@localhost", true);
        check("", false);
        check("ada", false);
        check("@example.com", false);
        check("ada@", false);
        check("ada@example..com", false);
        check("ada@exam ple.com", false);
        check("a da@example.com", false);
        check("ada@@example.com", false);
        check("ada@example.com\n", false);
        check("ada\0@example.com", false);
        check("<ada@example.com>", false);
        check(&format!("{}@example.com", "a".repeat(65)), false);
        check(&format!("a@{}.com", "a".repeat(260)), false);
    }

    #[test]
    fn handles() {
        let check = |email: &str, handle: &str| assert_eq!(handle_of(email).as_str(), handle, "{email:?}");
        check("ada@example.com", "ada");
        check("Ada.Love_Lace+x@example.com", "ada-love-lace-x");
        check("...@example.com", "user");
        check(&format!("{}@example.com", "a".repeat(64)), &"a".repeat(48));
    }

    #[test]
    fn passwords() {
        let check = |password: &str, valid: bool| {
            assert_eq!(checked_password(password.into()).is_ok(), valid, "{} chars", password.len());
        };
        check("1234567", false);
        check("12345678", true);
        check("äöüäöüäö", true);
        check(&"a".repeat(1024), true);
        check(&"a".repeat(1025), false);
    }
}
