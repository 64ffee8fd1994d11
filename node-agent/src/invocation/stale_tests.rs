//! What may be kept, what it does for, and how much there is room for.

use common::function::Limits;
use http_body_util::{Empty, Full};

use super::*;

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let line =
        |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    lines.iter().map(line).collect()
}

fn spec(stale_while_cold_ms: u32) -> DeploymentSpec {
    DeploymentSpec {
        deployment: DeploymentId::new(),
        function: common::ids::FunctionId::new(),
        version: 1,
        runtime: "native".parse().unwrap(),
        entrypoint: "main".into(),
        archive: common::digest::Digest::of(b""),
        archive_root: None,
        limits: Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 10, min_warm: 0 },
        env: BTreeMap::new(),
        contract: Contract::File,
        egress: false,
        stale_while_cold_ms,
        node_selector: common::labels::Labels::NONE,
    }
}

fn wish(spec: &DeploymentSpec, path: &'static str) -> Wish {
    let limit = Duration::from_millis(spec.stale_while_cold_ms.into());
    Wish { key: (spec.deployment, path.into()), limit }
}

fn answer(body: &'static str) -> Response<Bytes> {
    let answer = Response::builder().header(OUTCOME, "success").header(TIMING, "fn;dur=1").header("x-fn", "1");
    answer.body(Bytes::from_static(body.as_bytes())).unwrap()
}

#[test]
fn requests_that_anybody_might_send() {
    let check =
        |method: Method, form: Form, stale_ms: u32, line: Option<(&'static str, &'static str)>, wished: bool| {
            let order = Order {
                id: InvocationId::new(),
                deployment: DeploymentId::new(),
                form,
                once: None,
                phases: Phases::default(),
            };
            let mut request = Request::builder().method(method).uri("/a?b=c").body(Empty::<Bytes>::new()).unwrap();
            request.headers_mut().extend(headers(line.as_slice()));
            let wish = Wish::of(&order, &spec(stale_ms), &request);
            assert_eq!(
                wish.as_ref().map(|wish| &*wish.key.1),
                wished.then_some("/a?b=c"),
                "{request:?} {form:?} {stale_ms}"
            );
            let with_body = request.map(|_| Full::new(Bytes::from_static(b"x")));
            assert!(Wish::of(&order, &spec(stale_ms), &with_body).is_none());
        };
    check(Method::GET, Form::Http, 1, None, true);
    check(Method::GET, Form::Http, 1, Some(("accept", "*/*")), true);
    check(Method::GET, Form::Http, 0, None, false);
    check(Method::GET, Form::Envelope, 1, None, false);
    check(Method::POST, Form::Http, 1, None, false);
    check(Method::HEAD, Form::Http, 1, None, false);
    for line in [
        ("authorization", "Basic eA=="),
        ("cookie", "a=b"),
        ("x-api-key", "k"),
        ("range", "bytes=0-1"),
        ("pragma", "no-cache"),
        ("cache-control", "max-age=0"),
        ("cache-control", "x, No-Store"),
    ] {
        check(Method::GET, Form::Http, 1, Some(line), false);
    }
}

#[test]
fn answers_that_anybody_may_see() {
    let check = |status: u16, lines: &[(&'static str, &'static str)], kept: bool| {
        let mut headers = headers(lines);
        headers.insert(OUTCOME, HeaderValue::from_static("success"));
        assert_eq!(may_be_kept(StatusCode::from_u16(status).unwrap(), &headers), kept, "{status} {lines:?}");
    };
    check(200, &[], true);
    check(200, &[("cache-control", "public, max-age=60"), ("etag", "x")], true);
    check(201, &[], false);
    check(404, &[], false);
    check(200, &[("set-cookie", "a=b")], false);
    check(200, &[("vary", "accept")], false);
    check(200, &[("cache-control", "max-age=60, private")], false);
    check(200, &[("cache-control", "Private=\"x-secret\"")], false);
    check(200, &[("cache-control", "public"), ("cache-control", "no-store")], false);
    assert!(!may_be_kept(StatusCode::OK, &HeaderMap::new()));
}

#[test]
fn an_answer_is_sent_until_it_is_too_old() {
    let (spec, begin) = (spec(10_000), Instant::now());
    let mut shelf = Shelf::new(1 << 20);
    shelf.put(wish(&spec, "/").key, InvocationId::new(), &answer("one"), begin);
    let check = |shelf: &Shelf, path, seconds: u64, body: Option<&str>| {
        let found = shelf.get(&wish(&spec, path), begin + Duration::from_secs(seconds));
        assert_eq!(found.as_ref().map(|answer| &answer.body()[..]), body.map(str::as_bytes), "{path} {seconds}");
        if let Some(found) = found {
            let words = [AGE, X_DARTCLOUD_STALE, HeaderName::from_static("x-fn")].map(|name| &found.headers()[name]);
            assert!(found.headers()["original-request"].to_str().unwrap().parse::<InvocationId>().is_ok());
            assert_eq!(words, [&seconds.to_string(), "cold", "1"]);
            assert_eq!(found.headers()[TIMING], "stale;desc=\"cold\"");
        }
    };
    check(&shelf, "/", 3, Some("one"));
    check(&shelf, "/", 10, Some("one"));
    check(&shelf, "/", 11, None);
    check(&shelf, "/?a", 3, None);
    shelf.put(wish(&spec, "/").key, InvocationId::new(), &answer("two"), begin);
    check(&shelf, "/", 3, Some("two"));
    assert_eq!((shelf.answers.len(), shelf.ages.len()), (1, 1));
}

#[test]
fn the_oldest_make_room() {
    let (one, two) = (spec(10_000), spec(10_000));
    let stale = Stale(Mutex::new(Shelf::new(3 * (OVERHEAD_BYTES + 64))));
    let now = Instant::now();
    for (spec, path) in [(&one, "/1"), (&two, "/2"), (&one, "/3"), (&one, "/4")] {
        stale.lock().put(wish(spec, path).key, InvocationId::new(), &answer("x"), now);
    }
    let has = |spec, path| stale.lock().get(&wish(spec, path), now).is_some();
    assert_eq!([has(&one, "/1"), has(&two, "/2"), has(&one, "/3"), has(&one, "/4")], [false, true, true, true]);
    stale.forget(one.deployment);
    assert_eq!([has(&two, "/2"), has(&one, "/3"), has(&one, "/4")], [true, false, false]);
    stale.lock().put(wish(&two, "/large").key, InvocationId::new(), &Response::new(Bytes::from(vec![0; 4096])), now);
    assert!(stale.lock().answers.is_empty() && stale.lock().bytes == 0);
}
