//! Standard output for results, standard error for remarks, and neither panics when nobody reads.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Standard output is gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub(crate) struct Closed(#[source] pub(crate) io::Error);

/// Prints a line of the result.
pub(crate) fn line(text: impl Display) -> Result<(), Closed> {
    writeln!(io::stdout(), "{text}").map_err(Closed)
}

/// Prints a remark; whether anybody reads it does not matter.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a remark that stays on its line, until another is written over it.
pub(crate) fn note_in_place(text: impl Display) {
    let mut stderr = io::stderr();
    let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
}

/// A word of a command line that a shell takes as it is.
pub(crate) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "./_-@:+,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Prints a table: columns as wide as their widest cell, two spaces between.
pub(crate) fn table(rows: &[Vec<String>]) -> Result<(), Closed> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell() {
        let check = |text: &str, expected: &str| assert_eq!(word(text), expected);
        check("a/hello-2.x", "a/hello-2.x");
        check("Bad Name!", "'Bad Name!'");
        check("it's", r"'it'\''s'");
        check("", "''");
    }
}
