//! The gate: a request has one reading, or it is refused. What passes has one `Host`, a plain path, a framing that
//! hyper settled, and only headers that the client may set.
//!
//! hyper has already refused what cannot be parsed, and settled lengths as RFC 9112, section 6.3 allows.

use common::error::{Code, PublicError};
use common::protocol::OWN_HEADER_PREFIX;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};

use super::proxies::{X_FORWARDED_FOR, X_FORWARDED_PROTO};

mod path;
#[cfg(test)]
mod tests;
mod upgrade;

pub(crate) use upgrade::wants_websocket;

/// Most header lines of a request.
pub(crate) const MAX_HEADER_LINES: usize = 100;

/// Largest head of a request, in bytes.
pub(crate) const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Longest path with its query, in bytes.
pub(crate) const MAX_TARGET_BYTES: usize = 8 * 1024;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Lets a request in, stripped of what is not the client's to say and marked with where it came from, or refuses it.
///
/// # Errors
/// The request has more than one reading, or is over a limit.
pub(crate) fn admit(parts: &mut Parts, client_address: &HeaderValue, scheme: &'static str) -> Result<(), PublicError> {
    if matches!(parts.method, Method::TRACE | Method::CONNECT) {
        return Err(PublicError::new(Code::MethodNotAllowed, format!("{} is not allowed", parts.method)));
    }
    size(parts)?;
    if parts.version == Version::HTTP_2 {
        as_http1(parts)?;
    }
    let host = host(parts)?;
    target(parts)?;
    framing(&parts.headers)?;
    strip(&mut parts.headers)?;
    parts.headers.insert(X_FORWARDED_FOR, client_address.clone());
    parts.headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    parts.headers.insert(X_FORWARDED_HOST, host);
    Ok(())
}

fn bad(sentence: &'static str) -> PublicError {
    PublicError::new(Code::BadRequest, sentence)
}

fn size(parts: &Parts) -> Result<(), PublicError> {
    if parts.uri.path_and_query().map_or(0, |target| target.as_str().len()) > MAX_TARGET_BYTES {
        return Err(PublicError::new(Code::UriTooLong, "path and query are over 8 KiB: shorten them"));
    }
    // Each line is its name, a colon, a space, its value and an end of two bytes.
    let bytes: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if parts.headers.len() > MAX_HEADER_LINES || bytes > MAX_HEAD_BYTES {
        return Err(PublicError::new(Code::HeadersTooLarge, "headers are over 100 lines or 32 KiB: send fewer"));
    }
    Ok(())
}

/// HTTP/2 names the host in its target, and has cookies in as many lines as it likes: functions get one of each
/// (RFC 9113, sections 8.3.1 and 8.2.3).
fn as_http1(parts: &mut Parts) -> Result<(), PublicError> {
    if let (Some(authority), false) = (parts.uri.authority(), parts.headers.contains_key(HOST)) {
        let host = HeaderValue::from_str(authority.as_str());
        parts.headers.insert(HOST, host.map_err(|_| bad("the request's :authority is not valid"))?);
    }
    let crumbs: Vec<&[u8]> = parts.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let cookie = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).map_err(|_| bad("the cookies are not valid"))?;
        parts.headers.insert(COOKIE, cookie);
    }
    Ok(())
}

/// The one `Host`, which agrees with an absolute target.
fn host(parts: &Parts) -> Result<HeaderValue, PublicError> {
    let mut values = parts.headers.get_all(HOST).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(bad("a request needs exactly one Host header"));
    };
    let text = value.to_str().map_err(|_| bad("the Host header is not valid"))?;
    let named = Authority::of(text).ok_or_else(|| bad("the Host header is not valid"))?;
    if let Some(authority) = parts.uri.authority() {
        let default_port = match parts.uri.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => return Err(bad("the request target is not valid")),
        };
        let agrees = Authority::of(authority.as_str()).is_some_and(|target| target.same(&named, default_port));
        if !agrees {
            return Err(bad("the Host header and the request target name different hosts"));
        }
    }
    Ok(value.clone())
}

struct Authority<'a> {
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads `host[:port]`: a name, an IPv4 address or an IPv6 address in brackets. No user, no escapes.
    fn of(text: &'a str) -> Option<Self> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(tail) => {
                let (address, rest) = tail.split_once(']')?;
                address.parse::<std::net::Ipv6Addr>().ok()?;
                (address, rest)
            }
            None => {
                let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~');
                if host.is_empty() || !host.bytes().all(plain) {
                    return None;
                }
                (host, rest)
            }
        };
        let port = match rest.strip_prefix(':') {
            // `u16::from_str` would take a plus sign.
            Some(digits) if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
            None if rest.is_empty() => None,
            None => return None,
        };
        Some(Self { host, port })
    }

    fn same(&self, other: &Self, default_port: u16) -> bool {
        self.host.eq_ignore_ascii_case(other.host)
            && self.port.unwrap_or(default_port) == other.port.unwrap_or(default_port)
    }
}

/// The target in origin form, its path plain.
fn target(parts: &mut Parts) -> Result<(), PublicError> {
    let target = parts.uri.path_and_query().ok_or_else(|| bad("the request target is not valid"))?;
    path::plain(target.path()).map_err(bad)?;
    if target.query().is_some_and(|query| !query.bytes().all(|c| c.is_ascii_graphic())) {
        return Err(bad("the query holds bytes that must be percent-encoded"));
    }
    if parts.uri.authority().is_some() {
        let target: PathAndQuery = target.clone();
        parts.uri = Uri::from(target);
    }
    Ok(())
}

fn framing(headers: &HeaderMap) -> Result<(), PublicError> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
        if !digits || lengths.next().is_some() || headers.contains_key(TRANSFER_ENCODING) {
            return Err(bad("the length of the body is not clear"));
        }
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(bad("no transfer coding but chunked is taken"));
        }
    }
    if headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(bad("no expectation but 100-continue is taken"));
    }
    Ok(())
}

/// Removes what ends at this hop and what only a proxy may say.
fn strip(headers: &mut HeaderMap) -> Result<(), PublicError> {
    let mut gone: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        if ends_here(name) || is_forged(name.as_str()) {
            gone.push(name.clone());
        }
    }
    for value in headers.get_all(CONNECTION) {
        let text = value.to_str().map_err(|_| bad("the Connection header is not valid"))?;
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let name: HeaderName = option.parse().map_err(|_| bad("the Connection header is not valid"))?;
            if matches!(name, HOST | CONTENT_LENGTH | TRANSFER_ENCODING) {
                return Err(bad("the Connection header names a header that the message needs"));
            }
            gone.push(name);
        }
    }
    for name in gone {
        headers.remove(name);
    }
    Ok(())
}

/// Whether a header is between two neighbours only (RFC 9110, section 7.6.1), in either direction.
pub(crate) fn ends_here(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "expect"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn is_forged(name: &str) -> bool {
    matches!(name, "forwarded" | "x-real-ip" | "x-request-id")
        || name.starts_with("x-forwarded-")
        || name.starts_with(OWN_HEADER_PREFIX)
}
