//! The gate's readings, as data.

use super::*;
use http::Request;

fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request.body(()).unwrap().into_parts().0
}

fn admitted(mut parts: Parts) -> Result<Parts, PublicError> {
    admit(&mut parts, &HeaderValue::from_static("192.0.2.1"), "http").map(|()| parts)
}

/// A `GET` of `uri` with one good Host.
fn path(uri: &str, expected: Result<(), Code>) {
    let result = admitted(parts("GET", uri, &[("host", "a.example")]));
    assert_eq!(result.map(|_| ()).map_err(|error| error.code), expected, "{uri}");
}

fn headers(headers: &[(&str, &str)], expected: Result<(), Code>) {
    let result = admitted(parts("POST", "/f/a/b", headers));
    assert_eq!(result.map(|_| ()).map_err(|error| error.code), expected, "{headers:?}");
}

const REFUSED: Result<(), Code> = Err(Code::BadRequest);

#[test]
fn plain_paths() {
    for uri in [
        "/",
        "/f/a/b",
        "/f/a/b/c.txt",
        "/f/a/b/..c",
        "/f/a/b/c..",
        "/f/a/b/.well-known/x",
        "/f/a/b/...",
        "/f/a/b/%C3%BC",
        "/f/a/b/a%20b",
        "/f/a/b/a%252Fb",
        "/f/a/b?path=../../x%00%2f",
        "/f/a/b//c",
    ] {
        path(uri, Ok(()));
    }
}

#[test]
fn doubtful_paths() {
    for uri in [
        "/..",
        "/.",
        "/f/a/b/../c",
        "/f/a/b/..",
        "/f/a/b/./c",
        "/f/a/b/%2e%2e/c",
        "/f/a/b/%2E./c",
        "/f/a/b/.%2e",
        "/f/a/b/%2e",
        "/f/a/b/%252e%252e/c",
        "/f/a/b/%25252e%25252e/c",
        "/f/a/b/..%252fc",
        "/f/a/b/..%2fc",
        "/f/a/b/c%2Fd",
        "/f/a/b/c%5cd",
        "/f/a/b/c\\d",
        "/f/a/b/..\\d",
        "/f/a/b/..;x/d",
        "/f/a/b/%00",
        "/f/a/b/c%0d%0ad",
        "/f/a/b/%7f",
        "/f/a/b/%",
        "/f/a/b/%2",
        "/f/a/b/%zz",
        "/f/a/b/%+1",
    ] {
        path(uri, REFUSED);
    }
    path(&format!("/{}", "a".repeat(MAX_TARGET_BYTES - 1)), Ok(()));
    path(&format!("/{}", "a".repeat(MAX_TARGET_BYTES)), Err(Code::UriTooLong));
    path(&format!("/?{}", "a".repeat(MAX_TARGET_BYTES)), Err(Code::UriTooLong));
}

#[test]
fn hosts() {
    for host in ["a", "a.example:8080", "A.Example", "127.0.0.1", "[::1]", "[::1]:80", "a_b.example", "a."] {
        headers(&[("host", host)], Ok(()));
    }
    for host in
        ["", " ", "a b", "a,b", "a/b", "u@a", "a:", "a:+1", "a:65536", "a:x", ":80", "[::1", "[::g]", "[::1]x", "ü"]
    {
        headers(&[("host", host)], REFUSED);
    }
    headers(&[], REFUSED);
    headers(&[("host", "a"), ("host", "a")], REFUSED);
}

#[test]
fn an_absolute_target_agrees_with_its_host() {
    let check = |uri: &str, host: &str, expected: Option<&str>| {
        let result = admitted(parts("GET", uri, &[("host", host)]));
        assert_eq!(result.ok().map(|parts| parts.uri.to_string()).as_deref(), expected, "{uri} {host}");
    };
    check("http://a.example/x?y", "a.example", Some("/x?y"));
    check("http://A.example/x", "a.Example:80", Some("/x"));
    check("https://a.example:443/x", "a.example", Some("/x"));
    check("http://a.example", "a.example", Some("/"));
    check("http://a.example/x", "b.example", None);
    check("http://a.example:81/x", "a.example", None);
    check("http://u@a.example/x", "a.example", None);
    check("ftp://a.example/x", "a.example", None);
    check("a.example:80", "a.example:80", None);
    check("*", "a.example", None);
}

#[test]
fn methods() {
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PURGE"] {
        assert!(admitted(parts(method, "/f/a/b", &[("host", "a")])).is_ok(), "{method}");
    }
    for method in ["TRACE", "CONNECT"] {
        let error = admitted(parts(method, "/f/a/b", &[("host", "a")])).unwrap_err();
        assert_eq!(error.code, Code::MethodNotAllowed, "{method}");
    }
}

#[test]
fn lengths_and_expectations() {
    let host = ("host", "a");
    headers(&[host, ("content-length", "5")], Ok(()));
    headers(&[host, ("transfer-encoding", "chunked")], Ok(()));
    headers(&[host, ("transfer-encoding", "Chunked")], Ok(()));
    headers(&[host, ("expect", "100-Continue")], Ok(()));
    headers(&[host, ("content-length", "5"), ("content-length", "5")], REFUSED);
    headers(&[host, ("content-length", "5, 5")], REFUSED);
    headers(&[host, ("content-length", "+5")], REFUSED);
    headers(&[host, ("content-length", "")], REFUSED);
    headers(&[host, ("content-length", "5"), ("transfer-encoding", "chunked")], REFUSED);
    headers(&[host, ("transfer-encoding", "gzip, chunked")], REFUSED);
    headers(&[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], REFUSED);
    headers(&[host, ("transfer-encoding", "identity")], REFUSED);
    headers(&[host, ("expect", "the unexpected")], REFUSED);
}

#[test]
fn heads_have_a_size() {
    let long = "v".repeat(MAX_HEAD_BYTES);
    headers(&[("host", "a"), ("x-long", &long)], Err(Code::HeadersTooLarge));
    let names: Vec<String> = (0..MAX_HEADER_LINES).map(|n| format!("x-{n}")).collect();
    let mut lines = vec![("host", "a")];
    lines.extend(names.iter().map(|name| (name.as_str(), "v")));
    headers(&lines, Err(Code::HeadersTooLarge));
    headers(&lines[..MAX_HEADER_LINES], Ok(()));
}

#[test]
fn only_the_clients_own_headers_pass() {
    let given = [
        ("host", "a.example"),
        ("accept", "*/*"),
        ("authorization", "Bearer x"),
        ("connection", "keep-alive, x-mine"),
        ("content-length", "0"),
        ("dartcloud-order", "build"),
        ("expect", "100-continue"),
        ("forwarded", "for=1.1.1.1"),
        ("http2-settings", "x"),
        ("keep-alive", "1"),
        ("proxy-authorization", "x"),
        ("proxy-connection", "x"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("upgrade", "websocket"),
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-port", "1"),
        ("x-mine", "1"),
        ("x-other", "1"),
        ("x-real-ip", "1.1.1.1"),
        ("x-request-id", "1"),
    ];
    let passed = admitted(parts("POST", "/f/a/b", &given)).unwrap().headers;
    let mut left: Vec<_> = passed.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    left.sort_unstable();
    assert_eq!(
        left,
        [
            ("accept", "*/*"),
            ("authorization", "Bearer x"),
            ("content-length", "0"),
            ("host", "a.example"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "a.example"),
            ("x-forwarded-proto", "http"),
            ("x-other", "1"),
        ]
    );
    headers(&[("host", "a"), ("connection", "host")], REFUSED);
    headers(&[("host", "a"), ("content-length", "1"), ("connection", "content-length")], REFUSED);
    headers(&[("host", "a"), ("connection", "a b")], REFUSED);
}

#[test]
fn http2_names_its_host_in_the_target() {
    let check = |uri: &str, headers: &[(&str, &str)], expected: Option<&str>| {
        let mut parts = parts("GET", uri, headers);
        parts.version = Version::HTTP_2;
        let passed = admitted(parts).ok();
        let host = passed.as_ref().map(|parts| parts.headers[HOST].to_str().unwrap());
        assert_eq!(host, expected, "{uri} {headers:?}");
        assert!(passed.is_none_or(|parts| parts.uri.authority().is_none()));
    };
    check("https://a.example/x", &[], Some("a.example"));
    check("https://a.example:8443/x", &[], Some("a.example:8443"));
    check("https://a.example/x", &[("host", "a.example:443")], Some("a.example:443"));
    check("https://a.example/x", &[("host", "b.example")], None);
    check("https://u@a.example/x", &[], None);
    check("/x", &[("host", "a.example")], Some("a.example"));
    check("/x", &[], None);
}

#[test]
fn http2_has_its_cookies_in_crumbs() {
    let mut parts = parts("GET", "https://a.example/", &[("cookie", "a=1"), ("cookie", "b=2")]);
    parts.version = Version::HTTP_2;
    let headers = admitted(parts).unwrap().headers;
    let cookies: Vec<_> = headers.get_all(COOKIE).iter().collect();
    assert_eq!(cookies, ["a=1; b=2"]);
}
