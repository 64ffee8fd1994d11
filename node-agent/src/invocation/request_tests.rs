//! Requests, and what the function and the record get of them.

use serde_json::json;

use super::*;

fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = http::Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn file(handed: &Handed) -> Value {
    let mut file: Value = serde_json::from_slice(&handed.json).unwrap();
    assert!(file.as_object_mut().unwrap().remove("invocation_id").unwrap().is_string());
    file
}

fn check_body(content_type: &str, body: &[u8], expected: Result<Value, u16>) {
    let head = head("POST", "/", &[("content-type", content_type)]);
    match (from_http(&head, body, InvocationId::new(), Utc::now()), expected) {
        (Ok(handed), Ok(expected)) => {
            let file = file(&handed);
            let is_base64 = file.get("isBase64Encoded").is_some();
            assert_eq!(json!([file["body"], is_base64]), expected, "{content_type} {body:?}");
        }
        (Err(error), Err(status)) => assert_eq!(error.code.status(), status, "{content_type} {body:?}"),
        (got, expected) => panic!("{content_type} {body:?}: {got:?}, expected {expected:?}"),
    }
}

#[test]
fn the_content_type_decides_the_bodys_form() {
    check_body("application/json", br#"{"a":1}"#, Ok(json!([{"a": 1}, false])));
    check_body("Application/JSON; charset=utf-8", b" [1] ", Ok(json!([[1], false])));
    check_body("application/problem+json", b"null", Ok(json!([null, false])));
    check_body("application/json", b"", Ok(json!([null, false])));
    check_body("application/json", b"{", Err(400));
    check_body("application/json", b"{} {}", Err(400));
    check_body("application/json", b"\"\xff\"", Err(400));
    check_body("text/plain", "grüß".as_bytes(), Ok(json!(["grüß", false])));
    check_body("application/x-www-form-urlencoded", b"a=1", Ok(json!(["a=1", false])));
    check_body("text/plain", b"\xff", Ok(json!(["/w==", true])));
    check_body("image/png", b"\x00\x01", Ok(json!(["AAE=", true])));
    check_body("", b"x", Ok(json!(["eA==", true])));
}

#[test]
fn a_number_keeps_its_digits() {
    let head = head("POST", "/", &[("content-type", "application/json")]);
    let handed = from_http(&head, b"12345678901234567890.10", InvocationId::new(), Utc::now()).unwrap();
    assert!(String::from_utf8(handed.json).unwrap().starts_with(r#"{"body":12345678901234567890.10,"#));
}

#[test]
fn the_clients_request_is_the_functions() {
    let head = head(
        "PUT",
        "/a%20b?x=1&x=2&y=%C3%BC+z&flag",
        &[
            ("Host", "example.test"),
            ("Accept", "a"),
            ("Accept", "b"),
            ("Cookie", "a=1"),
            ("Connection", "keep-alive, X-Gone"),
            ("X-Gone", "1"),
            ("TE", "trailers"),
            ("dartcloud-form", "http"),
            ("Authorization", "Bearer secret"),
        ],
    );
    let handed = from_http(&head, b"", InvocationId::new(), Utc::now()).unwrap();
    assert_eq!(
        file(&handed),
        json!({
            "body": null, "method": "PUT", "path": "/a%20b",
            "query": {"x": "2", "y": "ü z", "flag": ""},
            "headers": {"host": "example.test", "accept": "a, b", "cookie": "a=1", "authorization": "Bearer secret"},
        })
    );
    assert_eq!(handed.info.headers["authorization"], "[redacted]");
    assert_eq!(handed.info.headers["cookie"], "[redacted]");
    assert_eq!(handed.info.headers["accept"], "a, b");
    assert_eq!(handed.info.query["y"], "ü z");
}

fn check_envelope(body: &str, expected: Result<Value, u16>) {
    let head = head("POST", "/", &[("content-type", "application/json"), ("user-agent", "the client's")]);
    match (from_envelope(&head, body.as_bytes(), InvocationId::new(), Utc::now()), expected) {
        (Ok(handed), Ok(expected)) => assert_eq!(file(&handed), expected, "{body}"),
        (Err(error), Err(status)) => assert_eq!(error.code.status(), status, "{body}"),
        (got, expected) => panic!("{body}: {got:?}, expected {expected:?}"),
    }
}

#[test]
fn envelopes() {
    let empty = json!({"body": null, "query": {}, "headers": {}, "method": "POST", "path": "/"});
    check_envelope("", Ok(empty.clone()));
    check_envelope("{}", Ok(empty.clone()));
    check_envelope(r#"{"body":null,"query":null,"method":null}"#, Ok(empty));
    check_envelope(
        r#"{"body":{"b":1,"a":2},"query":{"n":1,"t":true},"headers":{"X-A":"b"},"method":"get","path":"/x?y"}"#,
        Ok(json!({
            "body": {"b": 1, "a": 2}, "query": {"n": "1", "t": "true"}, "headers": {"x-a": "b"},
            "method": "GET", "path": "/x?y"
        })),
    );
    check_envelope("{", Err(400));
    check_envelope("hello", Err(400));
    check_envelope("[]", Err(422));
    check_envelope("7", Err(422));
    check_envelope(r#"{"name":"x"}"#, Err(422));
    check_envelope(r#"{"query":{"a":[]}}"#, Err(422));
    check_envelope(r#"{"query":7}"#, Err(422));
    check_envelope(r#"{"method":"a b"}"#, Err(422));
    check_envelope(r#"{"path":"x"}"#, Err(422));
}

#[test]
fn a_record_keeps_little_of_a_large_head() {
    let long = "x".repeat(5000);
    let map = (0..50).map(|n| (format!("h{n}"), format!("{long}\0"))).collect();
    let kept = kept(&map);
    assert!(kept.values().all(|value| value.len() <= MAX_INFO_VALUE_BYTES + '…'.len_utf8()));
    assert!(kept.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= MAX_INFO_MAP_BYTES);
    assert_eq!(storable("a\0b", 10), "a\u{fffd}b");
    assert_eq!(storable("üü", 3), "ü…");
}

fn check_real(envelope: Value, expected: Result<(&str, &str, &str), u16>) {
    let head = head("POST", "/", &[("content-type", "application/json")]);
    match (real_from_envelope(&head, envelope.to_string().as_bytes(), Utc::now()), expected) {
        (Ok((request, _)), Ok((method, target, body))) => {
            assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), (method, target), "{envelope}");
            assert_eq!(request.body(), body, "{envelope}");
        }
        (Err(error), Err(status)) => assert_eq!(error.code.status(), status, "{envelope}"),
        (got, expected) => panic!("{envelope}: {got:?}, expected {expected:?}"),
    }
}

#[test]
fn an_envelope_becomes_a_real_request() {
    check_real(json!({}), Ok(("POST", "/", "")));
    check_real(json!({"body": {"a": 1.50}}), Ok(("POST", "/", r#"{"a":1.5}"#)));
    check_real(json!({"method": "get", "path": "/a b/ü"}), Ok(("GET", "/a%20b/%C3%BC", "")));
    check_real(json!({"path": "/a%20b", "query": {"x": "1&2", "y": true}}), Ok(("POST", "/a%20b?x=1%262&y=true", "")));
    check_real(json!({"path": "/a?b=c", "query": {"x": 1}}), Ok(("POST", "/a?b=c&x=1", "")));
    check_real(json!({"headers": {"a b": "c"}}), Err(422));
    check_real(json!({"headers": {"a": "b\r\nc: d"}}), Err(422));
    check_real(json!({"path": "x"}), Err(422));
}

#[test]
fn a_real_request_has_its_own_headers() {
    let head = head("POST", "/", &[]);
    let headers =
        json!({"X-Own": "yes", "Host": "evil", "Content-Length": "9", "dartcloud-order": "build", "upgrade": "h2c"});
    let envelope = json!({"headers": headers, "body": 1}).to_string();
    let (request, info) = real_from_envelope(&head, envelope.as_bytes(), Utc::now()).unwrap();
    let seen: Vec<_> = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(seen, [("x-own", "yes"), ("host", "localhost"), ("content-type", "application/json")]);
    assert_eq!((info.method.as_str(), info.path.as_str()), ("POST", "/"));
}
