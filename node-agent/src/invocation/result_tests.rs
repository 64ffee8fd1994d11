//! Exits and result files, and what they come to.

use std::time::Duration;

use super::*;

const LIMITS: Limits = Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 10, min_warm: 0 };

fn exit(how: How, result: &[u8]) -> Exit {
    Exit {
        how,
        stdout: b"printed".to_vec(),
        stderr: b"a secret".to_vec(),
        truncated: false,
        peak_memory_bytes: 0,
        duration: Duration::from_millis(3),
        result: if result.is_empty() { ResultFile::Empty } else { ResultFile::Bytes(result.to_vec()) },
    }
}

/// Status, content type and body that the client of the HTTP form gets.
fn check_http(result: &str, expected: (u16, &str, &[u8])) {
    let reply = judge(&exit(How::Exited(0), result.as_bytes()), Form::Http, &LIMITS, 0).answer.unwrap();
    let content_type = reply.headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap());
    assert_eq!((reply.status.as_u16(), content_type, &reply.body[..]), expected, "{result}");
}

#[test]
fn the_http_form() {
    check_http(r#"{"body":"hi"}"#, (200, "text/plain; charset=utf-8", b"hi"));
    check_http(r#"{"body":{"b":1,"a":1.0}}"#, (200, "application/json", br#"{"b":1,"a":1.0}"#));
    check_http(r#"{"body":null}"#, (200, "application/json", b"null"));
    check_http(r#"{"body":"x","statusCode":404,"headers":null}"#, (404, "text/plain; charset=utf-8", b"x"));
    check_http(r#"{"body":"<p>","headers":{"Content-Type":"text/html"}}"#, (200, "text/html", b"<p>"));
    check_http(r#"{"body":"AAE=","isBase64Encoded":true}"#, (200, "application/octet-stream", &[0, 1]));
    check_http(r#"{"body":"x","statusCode":204}"#, (204, "", b""));
}

#[test]
fn headers_of_a_result() {
    let result = br#"{"body":"","headers":{"X-N":7,"Set-Cookie":["a=1","b=2"],"Connection":"close",
        "Content-Length":"99","Transfer-Encoding":"chunked","Dartcloud-Outcome":"success"}}"#;
    let headers = judge(&exit(How::Exited(0), result), Form::Http, &LIMITS, 0).answer.unwrap().headers;
    assert_eq!(headers["x-n"], "7");
    assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(headers.len(), 4, "{headers:?}");
}

#[test]
fn the_envelope_keeps_the_body_as_it_was_written() {
    let result = br#"{"body": {"b":12345678901234567890.10, "a":[]}, "statusCode": 999}"#;
    let reply = judge(&exit(How::Exited(0), result), Form::Envelope, &LIMITS, 0).answer.unwrap();
    assert_eq!(reply.body, r#"{"success":true,"result":{"b":12345678901234567890.10, "a":[]}}"#);
    assert_eq!(reply.status, StatusCode::OK);
}

fn check_failure(exit: &Exit, outcome: Outcome, exit_code: i32, status: u16, public: &str, message: &str) {
    let verdict = judge(exit, Form::Http, &LIMITS, 6 * 1024 * 1024);
    let error = verdict.answer.unwrap_err();
    assert_eq!((verdict.outcome, verdict.exit_code, error.code.status()), (outcome, exit_code, status), "{exit:?}");
    assert!(error.message.contains(public), "{}", error.message);
    let failure = verdict.failure.unwrap();
    assert!(failure.message.contains(message), "{}", failure.message);
    assert!(!error.message.contains("secret") && !failure.message.contains("a secret"));
    assert!(verdict.body.is_none());
}

#[test]
fn failures() {
    let timed_out = "Function execution timed out (5000ms)";
    check_failure(&exit(How::TimedOut, b""), Outcome::TimedOut, -1, 504, timed_out, timed_out);
    check_failure(&exit(How::OutOfMemory, b""), Outcome::OutOfMemory, 137, 502, "128 MiB", "128 MiB");
    check_failure(&exit(How::Signaled(11), b""), Outcome::Crashed, 139, 502, "signal 11", "signal 11");
    check_failure(&exit(How::Exited(3), b""), Outcome::Crashed, 3, 502, "exit code 3", "exit code 3");
    let spawn = exit(How::SpawnFailed("no such file".into()), b"");
    check_failure(&spawn, Outcome::Crashed, 126, 502, "could not be started", "no such file");
    let with_error = exit(How::Exited(1), br#"{"body":{"error":"no row 7"}}"#);
    check_failure(&with_error, Outcome::Crashed, 1, 502, "exit code 1", "exit code 1: no row 7");
    let answer = judge(&with_error, Form::Http, &LIMITS, 0).answer.unwrap_err();
    assert!(!answer.message.contains("row 7"));
}

fn check_invalid(result: &[u8], reason: &str) {
    let exit = exit(How::Exited(0), result);
    check_failure(&exit, Outcome::InvalidResult, 0, 502, reason, reason);
}

#[test]
fn results_that_are_none() {
    check_invalid(b"", "wrote nothing");
    check_invalid(b"hello", "not JSON");
    check_invalid(b"{\"body\":1", "not JSON");
    check_invalid(b"\xff", "not UTF-8");
    check_invalid(b"[1]", "an object with a `body`");
    check_invalid(br#"{"result":1}"#, "an object with a `body`");
    check_invalid(br#"{"body":1,"statusCode":99}"#, "200 to 599");
    check_invalid(br#"{"body":1,"statusCode":101}"#, "200 to 599");
    check_invalid(br#"{"body":1,"statusCode":"200"}"#, "200 to 599");
    check_invalid(br#"{"body":1,"headers":[]}"#, "an object of strings");
    check_invalid(br#"{"body":1,"headers":{"a":{}}}"#, "an object of strings");
    check_invalid(br#"{"body":1,"headers":{"a b":"c"}}"#, "a name in `headers`");
    check_invalid(br#"{"body":1,"headers":{"a":"b\r\nc: d"}}"#, "value of `a`");
    check_invalid(br#"{"body":"?","isBase64Encoded":true}"#, "not Base64");
    check_invalid(br#"{"body":1,"isBase64Encoded":true}"#, "not a string");
    check_invalid(br#"{"body":1,"isBase64Encoded":"yes"}"#, "true or false");
    let large = Exit { result: ResultFile::TooLarge, ..exit(How::Exited(0), b"x") };
    check_failure(&large, Outcome::InvalidResult, 0, 502, "larger than 6 MiB", "larger than 6 MiB");
}
