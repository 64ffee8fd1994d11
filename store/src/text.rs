//! Text as both databases can keep it. Postgres has no NUL in text and no `\u0000` in JSONB, and one such
//! character in a function's output must not cost the whole batch: it becomes U+FFFD, in SQLite as well.

use std::borrow::Cow;

use serde::Serialize;

/// `text` without NUL characters.
pub(crate) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// `value` as JSON without `\u0000` escapes.
pub(crate) fn storable_json(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("its maps have text for keys, and nothing in it can fail");
    without_nul_escapes(json)
}

fn without_nul_escapes(json: String) -> String {
    const NUL: &str = "\\u0000";
    if !json.contains(NUL) {
        return json;
    }
    let mut clean = String::with_capacity(json.len());
    let mut rest = json.as_str();
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        clean.push_str(before);
        // An escaped backslash is taken as a pair, so that `\\u0000` stays the six characters that it means.
        let length = if escape.starts_with(NUL) { NUL.len() } else { 2.min(escape.len()) };
        let (escape, after) = escape.split_at(length);
        clean.push_str(if escape == NUL { "\\ufffd" } else { escape });
        rest = after;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(storable(text), expected);
        let json = storable_json(&text);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), expected, "{json}");
    }

    #[test]
    fn nul_becomes_the_replacement_character() {
        check("plain", "plain");
        check("", "");
        check("a\0b", "a\u{fffd}b");
        check("\0\0", "\u{fffd}\u{fffd}");
        check("\\u0000", "\\u0000");
        check("\\\0", "\\\u{fffd}");
        check("\\\\u0000\0\"\n", "\\\\u0000\u{fffd}\"\n");
        check("ü\0€", "ü\u{fffd}€");
    }
}
