//! Registering, logging in, refreshing, logging out.

use futures_util::future::join_all;
use http::header::{AUTHORIZATION, CONTENT_TYPE};

use super::{Api, get, json, request};
use crate::control::tokens;

#[tokio::test]
async fn register_and_log_in() {
    let api = Api::start().await;
    let ada = r#"{"email":"Ada.L@example.com","password":"correct horse","more":1}"#;
    let answer = api.check(json("/api/auth/register", ada), 201, "").await.json();
    assert_eq!((answer["email"].as_str(), answer["handle"].as_str()), (Some("Ada.L@example.com"), Some("ada-l")));
    api.check(json("/api/auth/register", ada), 409, "email_taken").await;
    let other_case = r#"{"email":"ADA.l@example.com","password":"correct horse"}"#;
    api.check(json("/api/auth/register", other_case), 409, "log in instead").await;
    let same_local = r#"{"email":"ada.l@example.org","password":"correct horse"}"#;
    let second = api.check(json("/api/auth/register", same_local), 201, "").await.json();
    assert_eq!(second["handle"], "ada-l-2");

    let tokens = api.check(json("/api/auth/login", other_case), 200, "").await.json();
    assert_eq!((tokens["tokenType"].as_str(), tokens["expiresIn"].as_u64()), (Some("Bearer"), Some(3600)));
    assert_eq!(tokens["refreshToken"].as_str().unwrap().len(), 43);
    let me = api.check(get("/api/auth/me", tokens["accessToken"].as_str().unwrap()), 200, "createdAt").await.json();
    assert_eq!((&me["id"], &me["operator"], &me["handle"]), (&answer["id"], &true.into(), &"ada-l".into()));
}

#[tokio::test]
async fn wrong_credentials_all_look_the_same() {
    let api = Api::start().await;
    api.user("ada@example.com").await;
    let long = format!(r#"{{"email":"ada@example.com","password":"{}"}}"#, "x".repeat(2000));
    for body in [
        r#"{"email":"ada@example.com","password":"wrong horse"}"#,
        r#"{"email":"nobody@example.com","password":"correct horse"}"#,
        r#"{"email":"","password":""}"#,
        r#"{"email":"a\u0000b","password":"correct horse"}"#,
        &long,
    ] {
        let answer = api.check(json("/api/auth/login", body), 401, "bad_credentials").await.json();
        assert_eq!(answer["error"], "e-mail or password are wrong");
    }
}

#[tokio::test]
async fn bodies_that_are_wrong() {
    let api = Api::start().await;
    let check = async |body: &str, status: u16, part: &str| {
        api.check(json("/api/auth/register", body), status, part).await;
    };
    check("", 400, "the body is not JSON").await;
    check("{", 400, "the body is not JSON").await;
    check(r#"{"email":"a@b.c""#, 400, "bad_request").await;
    check("[]", 422, "must be a JSON object").await;
    check("null", 422, "must be a JSON object").await;
    check("{}", 422, "`email` is missing").await;
    check(r#"{"email":"a@b.c"}"#, 422, "`password` is missing").await;
    check(r#"{"email":7,"password":"correct horse"}"#, 422, "`email` must be a string").await;
    check(r#"{"email":"a@b.c","password":null}"#, 422, "`password` must be a string").await;
    check(r#"{"email":"a","password":"correct horse"}"#, 422, "must be an e-mail address").await;
    check(r#"{"email":"a@b.c","password":"short"}"#, 422, "weak_password").await;
    check(r#"{"email":"a@b.c","password":"short"}"#, 422, "8 to 1024 characters").await;
    check(&"[".repeat(60_000), 400, "bad_request").await;
    check(&format!(r#"{{"email":"{}"}}"#, "a".repeat(70_000)), 413, "over 64 KiB").await;
    let mut form = json("/api/auth/register", "email=a");
    form.headers_mut().insert(CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap());
    api.check(form, 415, "application/json").await;
    api.check(request(http::Method::POST, "/api/auth/login", ""), 415, "unsupported_media_type").await;
    let mut charset = json("/api/auth/register", "{}");
    charset.headers_mut().insert(CONTENT_TYPE, "Application/JSON; charset=utf-8".parse().unwrap());
    api.check(charset, 422, "`email` is missing").await;
}

#[tokio::test]
async fn a_refresh_token_works_once() {
    let api = Api::start().await;
    api.user("ada@example.com").await;
    let login = r#"{"email":"ada@example.com","password":"correct horse"}"#;
    let refresh = |token: &str| json("/api/auth/refresh", &format!(r#"{{"refreshToken":"{token}"}}"#));
    let text = |answer: serde_json::Value| answer["refreshToken"].as_str().unwrap().to_owned();

    let first = text(api.check(json("/api/auth/login", login), 200, "").await.json());
    let second = text(api.check(refresh(&first), 200, "accessToken").await.json());
    let third = text(api.check(refresh(&second), 200, "").await.json());
    api.check(refresh(&first), 401, "was used before").await;
    api.check(refresh(&third), 401, "unauthorized").await;
    api.check(refresh("no such token"), 401, "not valid").await;
    api.check(json("/api/auth/refresh", "{}"), 422, "`refreshToken` is missing").await;

    let logout = |token: &str| json("/api/auth/logout", &format!(r#"{{"refreshToken":"{token}"}}"#));
    let fresh = text(api.check(json("/api/auth/login", login), 200, "").await.json());
    let other = text(api.check(json("/api/auth/login", login), 200, "").await.json());
    api.check(logout(&fresh), 204, "").await;
    api.check(logout(&fresh), 204, "").await;
    api.check(refresh(&fresh), 401, "unauthorized").await;
    api.check(refresh(&other), 200, "").await;
}

#[tokio::test]
async fn a_session_that_ends_at_another_gateway_ends_here() {
    let api = Api::start().await;
    api.user("ada@example.com").await;
    let login = r#"{"email":"ada@example.com","password":"correct horse"}"#;
    let log_in = async || api.check(json("/api/auth/login", login), 200, "").await.json();
    let (left, other) = (log_in().await, log_in().await);
    let feed = api.feed();
    let check = async |tokens: &serde_json::Value, status: u16, part: &str| {
        feed.catch_up().await.unwrap();
        api.check(get("/api/auth/me", tokens["accessToken"].as_str().unwrap()), status, part).await;
    };
    check(&left, 200, "ada").await;
    let hash = tokens::hash(left["refreshToken"].as_str().unwrap());
    assert!(api.state.store.revoke_refresh_token(hash, 60).await.unwrap());
    check(&left, 401, "log in again").await;
    check(&other, 200, "ada").await;
}

#[tokio::test]
async fn closed_registration_lets_the_first_user_in() {
    let api = Api::start_with(&["--registration", "closed"]).await;
    let (_, operator) = api.user("ada@example.com").await;
    let body = r#"{"email":"bob@example.com","password":"correct horse"}"#;
    api.check(json("/api/auth/register", body), 403, "registration is closed").await;
    let register = |token: &str, body: &str| {
        let mut request = json("/api/auth/register", body);
        request.headers_mut().insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        request
    };
    // The operator makes accounts for others, who make none.
    api.check(register(&operator, body), 201, "bob@example.com").await;
    let tokens = api.check(json("/api/auth/login", body), 200, "").await.json();
    let carol = r#"{"email":"carol@example.com","password":"correct horse"}"#;
    api.check(register(tokens["accessToken"].as_str().unwrap(), carol), 403, "registration is closed").await;
}

#[tokio::test]
async fn closed_registration_lets_one_of_a_race_in() {
    let api = Api::start_with(&["--registration", "closed"]).await;
    let bodies = (0..6).map(|n| format!(r#"{{"email":"user{n}@example.com","password":"correct horse"}}"#));
    let calls: Vec<_> = bodies.map(|body| api.call(json("/api/auth/register", &body))).collect();
    let mut statuses: Vec<u16> = join_all(calls).await.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 403, 403, 403, 403, 403]);
}
