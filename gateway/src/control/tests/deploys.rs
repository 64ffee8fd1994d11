//! Deploys as far as they come without a node.

use axum::body::Body;
use common::settings::MIB;
use http::header::{ACCEPT, CONTENT_TYPE, EXPECT};
use http::{Method, Request};

use super::{Api, MAX_ARCHIVE_MB, get, request};

const BOUNDARY: &str = "frontier";

/// A multipart form of these fields, in this order.
pub(super) fn form(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let file = if *name == "archive" { "; filename=\"a.tar.gz\"" } else { "" };
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(value);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

pub(super) fn upload(token: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = request(Method::POST, "/api/functions/deploy", token).map(|_| body.into());
    let kind = format!("multipart/form-data; boundary={BOUNDARY}").parse().unwrap();
    request.headers_mut().insert(CONTENT_TYPE, kind);
    request
}

/// A `tar.gz` of these files.
pub(super) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

pub(super) fn python() -> Vec<u8> {
    archive(&[("main.py", "print('hello')")])
}

/// A body of pieces, so that fields and boundaries fall across them.
fn in_pieces(body: Vec<u8>, size: usize) -> Body {
    let pieces: Vec<_> = body.chunks(size).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    Body::from_stream(futures_util::stream::iter(pieces))
}

#[tokio::test]
async fn forms_that_are_wrong() {
    let api = Api::start().await;
    let (_, token) = api.user("ada@example.com").await;
    let good = python();
    let good = good.as_slice();
    let long_name = "a".repeat(64);
    let huge_name = "a".repeat(1000);
    let check = async |fields: &[(&str, &[u8])], status: u16, part: &str| {
        api.check(upload(&token, form(fields)), status, part).await;
    };
    check(&[], 422, "`name` is missing").await;
    check(&[("archive", good)], 422, "`name` is missing").await;
    check(&[("name", b"a")], 422, "`archive` is missing").await;
    for name in ["", "A", "a_b", "../x", "a b", "ü", &long_name] {
        check(&[("name", name.as_bytes()), ("archive", good)], 422, "the function name").await;
        check(&[("archive", good), ("name", name.as_bytes())], 422, "lower-case letters, digits and hyphens").await;
    }
    check(&[("name", huge_name.as_bytes()), ("archive", good)], 422, "`name` is over").await;
    check(&[("name", b"\xff"), ("archive", good)], 422, "not UTF-8").await;
    check(&[("name", b"a"), ("name", b"b"), ("archive", good)], 422, "`name` twice").await;
    check(&[("name", b"a"), ("archive", good), ("archive", good)], 422, "`archive` twice").await;
    check(&[("name", b"a"), ("color", b"red"), ("archive", good)], 422, "`color` is unknown").await;
    check(&[("name", b"a"), ("archive", good), ("settings", b"{")], 422, "settings:").await;
    check(&[("settings", b"{\"color\":1}"), ("name", b"a"), ("archive", good)], 422, "unknown field `color`").await;
    check(&[("settings", b"{}"), ("settings", b"{}")], 422, "`settings` twice").await;
    nothing_is_left(&api, &token).await;
}

#[tokio::test]
async fn requests_that_are_no_forms() {
    let api = Api::start().await;
    let (_, token) = api.user("ada@example.com").await;
    let mut json = upload(&token, "{}");
    json.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
    api.check(json, 415, "multipart").await;
    let mut bare = upload(&token, python());
    bare.headers_mut().remove(CONTENT_TYPE);
    api.check(bare, 415, "unsupported_media_type").await;
    let mut no_boundary = upload(&token, form(&[]));
    no_boundary.headers_mut().insert(CONTENT_TYPE, "multipart/form-data".parse().unwrap());
    api.check(no_boundary, 400, "no boundary").await;
    for body in ["", "garbage", "--frontier", "--frontier\r\nContent-Disposition: form-data; na"] {
        api.check(upload(&token, body), 400, "multipart").await;
    }
    let nameless = "--frontier\r\nContent-Disposition: nonsense\r\n\r\nx\r\n--frontier--\r\n";
    api.check(upload(&token, nameless), 422, "has no name").await;
    let mut cut = form(&[("name", b"a"), ("archive", &python())]);
    cut.truncate(cut.len() - 30);
    api.check(upload(&token, cut), 400, "broke off").await;
    nothing_is_left(&api, &token).await;
}

#[tokio::test]
async fn archives_that_are_refused() {
    let api = Api::start().await;
    let (_, token) = api.user("ada@example.com").await;
    let check = async |archive: Vec<u8>, part: &str| {
        let answer = api.check(upload(&token, form(&[("name", b"a"), ("archive", &archive)])), 422, part).await;
        assert_eq!(answer.json()["code"], "bad_archive");
    };
    check(Vec::new(), "refused").await;
    check(b"not a tar.gz".to_vec(), "refused").await;
    check(archive(&[]), "no files").await;
    check(archive(&[("README.md", "x")]), "no runtime found").await;
    check(archive(&[("pubspec.yaml", "name: a")]), "pubspec.yaml and main.dart").await;
    check(archive(&[("requirements.txt", "")]), "no entrypoint for python").await;
    check(archive(&[("main.py", ""), ("dartcloud.toml", "color = 'red'")]), "unknown field `color`").await;
    check(archive(&[("main.py", ""), ("dartcloud.toml", "runtime = 'cobol'")]), "runtime `cobol` is unknown").await;
    check(archive(&[("main.py", ""), ("dartcloud.toml", "entrypoint = 'b.py'")]), "`b.py` is not in").await;
    let mut cut = python();
    cut.truncate(cut.len() / 2);
    check(cut, "refused").await;
    nothing_is_left(&api, &token).await;
}

#[tokio::test]
async fn archives_that_are_too_large() {
    let api = Api::start().await;
    let (_, token) = api.user("ada@example.com").await;
    let large = vec![7; MAX_ARCHIVE_MB as usize * MIB + 1];
    let body = form(&[("name", b"a"), ("archive", &large)]);
    api.check(upload(&token, body.clone()), 413, "over 1 MiB").await;
    api.check(upload(&token, in_pieces(body.clone(), 16 * 1024)), 413, "too_large").await;
    let mut waiting = upload(&token, body);
    waiting.headers_mut().insert(EXPECT, "100-continue".parse().unwrap());
    api.check(waiting, 413, "too_large").await;
    nothing_is_left(&api, &token).await;
}

/// What the parser keeps until it has found an end is small, however it comes.
#[tokio::test]
async fn heads_that_are_too_long() {
    let api = Api::start().await;
    let (_, token) = api.user("ada@example.com").await;
    let long = "x".repeat(MIB / 4);
    let preamble = [long.as_bytes(), &form(&[("name", b"a")])].concat();
    let endless = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{long}");
    let mut second = form(&[("name", b"a")]);
    second.truncate(second.len() - b"--\r\n".len());
    second.extend_from_slice(format!("\r\nX-Long: {long}").as_bytes());
    for body in [preamble, endless.into_bytes(), second] {
        for size in [1000, 64 * 1024, body.len()] {
            let answer = api.check(upload(&token, in_pieces(body.clone(), size)), 413, "over 16 KiB").await;
            assert_eq!(answer.json()["code"], "too_large");
        }
    }
    nothing_is_left(&api, &token).await;
}

/// A sound form is one however it is cut: it comes as far as the node that is not there.
#[tokio::test]
async fn forms_in_frames_of_any_size() {
    let api = Api::start().await;
    let (_, token) = api.user("ada@example.com").await;
    let mut seed = 1_u32;
    let mut digit = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'!' + (seed >> 26) as u8)
    };
    // Too much for one frame, and for a compressor.
    let noise: String = (0..400_000).map(|_| digit()).collect();
    let large = archive(&[("main.py", "print('hello')"), ("noise", noise.as_str())]);
    assert!(large.len() > 4 * 64 * 1024 && large.len() < MAX_ARCHIVE_MB as usize * MIB, "{}", large.len());
    let check = async |archive: &[u8], pieces: &dyn Fn(Vec<u8>) -> Body| {
        let body = form(&[("name", b"a"), ("archive", archive), ("settings", b"{}")]);
        api.check(upload(&token, pieces(body)), 503, "no node").await;
    };
    check(&python(), &|body| in_pieces(body, 1)).await;
    for size in [100, 8 * 1024, 64 * 1024, 100 * 1024, usize::MAX] {
        check(&large, &|body| in_pieces(body, size)).await;
    }
    // A first frame that ends within the first boundary, and all the rest in the second.
    for first in [1, 5, 20, 200] {
        let in_two = |body: Vec<u8>| {
            let (head, rest) = body.split_at(first);
            let pieces = [head.to_vec(), rest.to_vec()].map(Ok::<_, std::io::Error>);
            Body::from_stream(futures_util::stream::iter(pieces))
        };
        check(&large, &in_two).await;
    }
    assert_eq!(api.files("incoming"), 0);
}

#[tokio::test]
async fn without_a_node_nothing_is_half_made() {
    let api = Api::start().await;
    let (_, token) = api.user("ada@example.com").await;
    let archive = python();
    for fields in [
        [("name", b"a".as_slice()), ("archive", archive.as_slice()), ("settings", b"{\"access\":\"public\"}")],
        [("settings", b"{}"), ("archive", archive.as_slice()), ("name", b"a")],
    ] {
        let body = form(&fields);
        let answer = api.check(upload(&token, in_pieces(body, 3)), 503, "no node").await;
        assert_eq!(
            (answer.json()["code"].as_str(), answer.headers.get("retry-after").is_some()),
            (Some("no_node"), true)
        );
        api.check(get("/api/functions", &token), 200, r#"{"functions":[],"next":null}"#).await;
    }
    // The same as a stream.
    let mut follow = upload(&token, form(&[("name", b"a"), ("archive", &archive)]));
    follow.headers_mut().insert(ACCEPT, "text/event-stream".parse().unwrap());
    let answer = api.call(follow).await;
    assert_eq!(
        (answer.status.as_u16(), answer.headers["content-type"].as_bytes()),
        (200, b"text/event-stream".as_slice())
    );
    assert!(answer.text.contains("event: error\ndata: {") && answer.text.contains("no_node"), "{}", answer.text);
    api.check(get("/api/functions/a", &token), 404, "not_found").await;
    assert_eq!(api.files("incoming"), 0);
}

#[tokio::test]
async fn a_gateway_that_stops_takes_no_deploy() {
    let api = Api::start().await;
    let (_, token) = api.user("ada@example.com").await;
    api.state.stop.cancel();
    api.check(upload(&token, form(&[("name", b"a"), ("archive", &python())])), 503, "stopping").await;
}

async fn nothing_is_left(api: &Api, token: &str) {
    api.check(get("/api/functions", token), 200, r#"{"functions":[],"next":null}"#).await;
    assert_eq!((api.files("incoming"), api.files("")), (0, 0), "files are left");
}
