//! The end of a session: its access tokens are taken nowhere any more, those of other sessions still are.

use serde_json::json;

use super::house::{Answer, House, get, post};
use super::node::Node;

/// Whose sessions they are.
const ANN: &str = "ann@example.com";

/// There are many logins here.
const FLAGS: [&str; 2] = ["--rate-limit-login", "10000"];

/// An access token and a refresh token.
struct Tokens {
    access: String,
    refresh: String,
}

impl Tokens {
    fn of(answer: &Answer) -> Self {
        let pair = answer.json();
        let [access, refresh] = ["accessToken", "refreshToken"].map(|name| pair[name].as_str().unwrap().to_owned());
        Self { access, refresh }
    }

    /// Those of one more session of Ann's.
    async fn log_in(house: &House) -> Self {
        let credentials = json!({"email": ANN, "password": "correct horse"}).to_string();
        Self::of(&house.ask(post("/api/auth/login", "", &credentials)).await.expect(200, ""))
    }

    /// Shows the refresh token.
    async fn show(&self, house: &House, path: &str) -> Answer {
        house.ask(post(path, "", &json!({"refreshToken": self.refresh}).to_string())).await
    }

    async fn renewed(&self, house: &House) -> Self {
        Self::of(&self.show(house, "/api/auth/refresh").await.expect(200, ""))
    }
}

/// A gateway with a node, and Ann's private function `mine` and public one `open`: also her handle, and an access token of a
/// session that goes on.
async fn start() -> (House, Node, String, String) {
    let (house, node) = House::with_node(&FLAGS).await;
    let (handle, token) = house.user(ANN).await;
    house.deploy(&token, "mine", "{}").await;
    house.deploy(&token, "open", r#"{"access":"public"}"#).await;
    (house, node, handle, token)
}

/// Whether the token opens what is its user's: a function by either way, and the control API.
async fn check(house: &House, handle: &str, token: &str, is_good: bool) {
    let requests = [
        get(&format!("/f/{handle}/mine"), token),
        post("/api/functions/mine/invoke", token, "{}"),
        get("/api/auth/me", token),
    ];
    for request in requests {
        let answer = house.ask(request).await;
        if is_good {
            answer.expect(200, "");
        } else {
            let refused = answer.expect(401, "unauthorized");
            assert_eq!(refused.headers["www-authenticate"], "Bearer");
            let body = refused.json();
            assert!(body["error"].as_str().unwrap().contains("has ended: log in again"), "{body}");
        }
    }
    // A public function never sees it.
    let open = house.ask(get(&format!("/f/{handle}/open"), token)).await.expect(200, "");
    assert!(open.json()["headers"].get("authorization").is_none());
}

#[tokio::test]
async fn a_logout_ends_the_access_tokens_of_its_session() {
    let (house, _node, handle, other) = start().await;
    let first = Tokens::log_in(&house).await;
    let second = first.renewed(&house).await;
    for token in [&other, &first.access, &second.access] {
        check(&house, &handle, token, true).await;
    }
    second.show(&house, "/api/auth/logout").await.expect(204, "");
    for token in [&first.access, &second.access] {
        check(&house, &handle, token, false).await;
    }
    check(&house, &handle, &other, true).await;
    check(&house, &handle, &Tokens::log_in(&house).await.access, true).await;
    house.stopped().await;
}

#[tokio::test]
async fn a_refresh_token_that_comes_again_ends_the_access_tokens_of_its_session() {
    let (house, _node, handle, other) = start().await;
    let first = Tokens::log_in(&house).await;
    let second = first.renewed(&house).await;
    check(&house, &handle, &second.access, true).await;
    first.show(&house, "/api/auth/refresh").await.expect(401, "unauthorized");
    for token in [&first.access, &second.access] {
        check(&house, &handle, token, false).await;
    }
    check(&house, &handle, &other, true).await;
    house.stopped().await;
}
