//! `Idempotency-Key`: what a call is known by to whoever repeats it. Pure.
//!
//! The IETF's draft (draft-ietf-httpapi-idempotency-key-header) has a string in quotes; most clients send the bare
//! characters, which are taken for the same.

use common::digest::Digest;
use common::error::{Code, PublicError};
use common::ids::FunctionId;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::limits::Client;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Longest key, in characters.
const MAX_KEY: usize = 255;

/// What the node knows a call by that has an `Idempotency-Key`: a key belongs to one function and one caller. Who calls
/// without telling the platform who he is, is told from others by his address and all credentials that he sends to
/// the function.
///
/// # Errors
/// The header is no key.
pub(crate) fn key(
    headers: &HeaderMap,
    function: FunctionId,
    caller: Client,
) -> Result<Option<Box<Digest>>, PublicError> {
    let mut lines = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    let key = line.to_str().ok().and_then(content).filter(|_| lines.next().is_none());
    let key = key.ok_or_else(|| {
        let sentence = "Idempotency-Key is one string in quotes, or bare, of 1 to 255 visible characters: send a fresh \
                        UUID with each call that you may have to repeat";
        PublicError::new(Code::BadRequest, sentence)
    })?;
    let of_function = function.uuid();
    let digest = match caller {
        Client::User(user) => {
            Digest::of_parts(&[b"user", user.uuid().as_bytes(), of_function.as_bytes(), key.as_bytes()])
        }
        Client::Address(address) => {
            let address = address.to_string();
            let mut parts = vec![&b"address"[..], address.as_bytes(), of_function.as_bytes(), key.as_bytes()];
            for name in [AUTHORIZATION, COOKIE, X_API_KEY] {
                parts.push(b"");
                parts.extend(headers.get_all(name).iter().map(HeaderValue::as_bytes));
            }
            Digest::of_parts(&parts)
        }
    };
    // Rare, so that it should not make every call larger.
    Ok(Some(Box::new(digest)))
}

/// The characters of a key.
fn content(text: &str) -> Option<String> {
    let content = match text.strip_prefix('"') {
        Some(quoted) => unquoted(quoted)?,
        None if text.bytes().all(|byte| byte.is_ascii_graphic()) => text.to_owned(),
        None => return None,
    };
    (1..=MAX_KEY).contains(&content.len()).then_some(content)
}

/// A string as structured fields have it (RFC 9651, section 3.3.3), after its first quote.
fn unquoted(quoted: &str) -> Option<String> {
    let (mut content, mut rest) = (String::with_capacity(quoted.len()), quoted.chars());
    loop {
        match rest.next()? {
            '"' => break,
            '\\' => content.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            plain @ ' '..='~' => content.push(plain),
            _ => return None,
        }
    }
    rest.as_str().is_empty().then_some(content)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use common::ids::UserId;

    use super::*;

    #[test]
    fn syntax() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(content(text).as_deref(), expected, "{text}");
        check("8e03978e-40d5-43dd-bc93-6894a57f9324", Some("8e03978e-40d5-43dd-bc93-6894a57f9324"));
        check(r#""8e03978e""#, Some("8e03978e"));
        check(r#""a b\"c\\""#, Some(r#"a b"c\"#));
        check(&"x".repeat(255), Some(&"x".repeat(255)));
        check(&"x".repeat(256), None);
        check("", None);
        check(r#""""#, None);
        check(r#""open"#, None);
        check(r#""a"b"#, None);
        check(r#""a";p=1"#, None);
        check(r#""\n""#, None);
        check("a b", None);
        check("a\tb", None);
        check("\"a\tb\"", None);
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn a_key_is_of_one_caller_and_one_function() {
        let (ann, bob) = (Client::User(UserId::new()), Client::User(UserId::new()));
        let at = |last| Client::Address(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)));
        let (near, far) = (at(1), at(2));
        let (hello, other) = (FunctionId::new(), FunctionId::new());
        let plain: &[(&'static str, &str)] = &[("idempotency-key", "k")];
        let with = |name, value| headers(&[("idempotency-key", "k"), (name, value)]);
        let calls = [
            (headers(plain), hello, ann),
            (headers(plain), hello, bob),
            (headers(plain), other, ann),
            (headers(&[("idempotency-key", "K")]), hello, ann),
            (headers(plain), hello, near),
            (headers(plain), hello, far),
            (with("authorization", "Bearer a"), hello, near),
            (with("authorization", "Bearer b"), hello, near),
            (with("cookie", "Bearer a"), hello, near),
            (with("x-api-key", "Bearer a"), hello, near),
        ];
        let digests: Vec<_> =
            calls.iter().map(|(headers, id, who)| key(headers, *id, *who).unwrap().unwrap()).collect();
        for (place, digest) in digests.iter().enumerate() {
            assert!(!digests[..place].contains(digest), "call {place} has the key of another one");
        }
        // Quotes make no other key, nor does a token that the platform knew the caller by.
        let quoted = headers(&[("idempotency-key", "\"k\""), ("authorization", "Bearer c")]);
        assert_eq!(key(&quoted, hello, ann).unwrap(), Some(digests[0].clone()));
        assert_eq!(key(&HeaderMap::new(), hello, ann).unwrap(), None);
        let twice = headers(&[("idempotency-key", "k"), ("idempotency-key", "k")]);
        assert_eq!(key(&twice, hello, ann).unwrap_err().code, Code::BadRequest);
    }
}
