//! A plain path: one that no two programs read differently, whether they decode it never, once or twice.

use percent_encoding::percent_decode_str;

/// Checks a path. The error is a sentence for the client.
pub(super) fn plain(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("the request target must begin with a slash");
    }
    if !path.bytes().all(|c| c.is_ascii_graphic()) {
        return Err("the path holds bytes that must be percent-encoded");
    }
    // Nearly all paths end here.
    if !path.contains(['%', '\\']) && !path.contains("/.") {
        return Ok(());
    }
    path.split('/').try_for_each(segment)
}

fn segment(text: &str) -> Result<(), &'static str> {
    if !escapes_are_whole(text.as_bytes()) {
        return Err("the path holds a percent sign that escapes nothing");
    }
    let once: Vec<u8> = percent_decode_str(text).collect();
    if once.iter().any(|c| matches!(c, b'/' | b'\\') || c.is_ascii_control()) {
        return Err("the path holds an encoded slash, a backslash or a control character");
    }
    let twice: Vec<u8> = percent_encoding::percent_decode(&once).collect();
    let thrice: Vec<u8> = percent_encoding::percent_decode(&twice).collect();
    if [&once, &twice, &thrice].into_iter().any(|decoded| climbs(decoded)) {
        return Err("the path holds a dot segment: send the path that it leads to");
    }
    Ok(())
}

/// Whether a part between slashes, once something decodes it, is `.` or `..`, with parameters or without.
fn climbs(decoded: &[u8]) -> bool {
    decoded.split(|c| matches!(c, b'/' | b'\\')).any(|part| {
        let name = part.split(|c| *c == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    })
}

fn escapes_are_whole(text: &[u8]) -> bool {
    let hex = |at: usize| text.get(at).is_some_and(u8::is_ascii_hexdigit);
    text.iter().enumerate().all(|(at, c)| *c != b'%' || (hex(at + 1) && hex(at + 2)))
}
