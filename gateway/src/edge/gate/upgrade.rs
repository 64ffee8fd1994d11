//! The way in for WebSockets, which is apart from all other requests: only what is beyond doubt goes over to another
//! protocol, and what merely looks so is an ordinary request, whose wish the rest of the gate drops.

use common::error::{Code, PublicError};
use common::stream::{WEBSOCKET, names_websocket};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Method, Version};

/// Whether the client asks for a WebSocket. Look before the gate strips what ends at this hop.
///
/// A wish for another protocol, for a choice of several, or one that `Connection` does not confirm, may be ignored
/// (RFC 9110, section 7.8), and one of HTTP/1.0 must be.
///
/// # Errors
/// It asks in a way that no WebSocket begins: not by GET, or with a body (RFC 6455, section 4.1).
pub(crate) fn wants_websocket(parts: &Parts) -> Result<bool, PublicError> {
    // Nearly all requests end here.
    if !parts.headers.contains_key(UPGRADE) || parts.version != Version::HTTP_11 || !names_websocket(&parts.headers) {
        return Ok(false);
    }
    let bad = |sentence: &str| Err(PublicError::new(Code::BadRequest, format!("{sentence} to {WEBSOCKET}")));
    if parts.method != Method::GET {
        return bad("only a GET can be upgraded");
    }
    let length = parts.headers.get(CONTENT_LENGTH);
    if parts.headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length.as_bytes() != b"0") {
        return bad("a request with a body cannot be upgraded");
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, version: Version, lines: &[(&str, &str)], expected: Result<bool, u16>) {
        let mut request = http::Request::builder().method(method).version(version);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let got = wants_websocket(&parts).map_err(|error| error.code.status());
        assert_eq!(got, expected, "{method} {version:?} {lines:?}");
    }

    #[test]
    fn what_is_upgraded() {
        const UP: [(&str, &str); 2] = [("upgrade", "websocket"), ("connection", "Upgrade")];
        let with = |line| [UP[0], UP[1], line];
        let v11 = Version::HTTP_11;
        check("GET", v11, &[], Ok(false));
        check("GET", v11, &UP, Ok(true));
        check("GET", v11, &with(("content-length", "0")), Ok(true));
        check("GET", Version::HTTP_10, &UP, Ok(false));
        check("GET", v11, &UP[..1], Ok(false));
        check("GET", v11, &UP[1..], Ok(false));
        check("GET", v11, &[("upgrade", "h2c"), UP[1]], Ok(false));
        check("GET", v11, &[("upgrade", "websocket, h2c"), UP[1]], Ok(false));
        check("GET", v11, &with(("upgrade", "h2c")), Ok(false));
        check("POST", v11, &UP, Err(400));
        check("HEAD", v11, &UP, Err(400));
        check("GET", v11, &with(("content-length", "1")), Err(400));
        check("GET", v11, &with(("content-length", "00")), Err(400));
        check("GET", v11, &with(("transfer-encoding", "chunked")), Err(400));
    }
}
