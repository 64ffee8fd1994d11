//! The search for a free handle.

use std::collections::HashSet;

use common::ids::UserId;
use common::names::Handle;

/// The last number that is tried behind a handle.
const LAST_NUMBER: u32 = 99;

/// Longest handle, in bytes.
const MAX_BYTES: usize = 63;

/// The wished one, then `-2`, `-3`, … behind it.
pub(crate) fn candidates(wished: &Handle) -> Vec<String> {
    let numbered = (2..=LAST_NUMBER).map(|number| with_suffix(wished, &number.to_string()));
    std::iter::once(wished.as_str().to_owned()).chain(numbered).collect()
}

/// The first candidate that is not in `taken`; when all are, one that ends in the random part of the user's id.
pub(crate) fn free(wished: &Handle, taken: &HashSet<String>, user: UserId) -> String {
    let free = candidates(wished).into_iter().find(|handle| !taken.contains(handle));
    free.unwrap_or_else(|| {
        let id = user.uuid().simple().to_string();
        with_suffix(wished, &id[id.len() - 12..])
    })
}

fn with_suffix(wished: &Handle, suffix: &str) -> String {
    let text = wished.as_str();
    let room = MAX_BYTES - 1 - suffix.len();
    format!("{}-{suffix}", &text[..text.len().min(room)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wished: &str, taken: &[&str], expected: &str) {
        let taken = taken.iter().map(|handle| (*handle).to_owned()).collect();
        let handle = free(&wished.parse().unwrap(), &taken, UserId::new());
        assert_eq!(handle, expected);
        assert!(handle.parse::<Handle>().is_ok());
    }

    #[test]
    fn numbers_are_added_until_one_is_free() {
        let long = "a".repeat(63);
        check("ada", &[], "ada");
        check("ada", &["ada"], "ada-2");
        check("ada", &["ada", "ada-2", "ada-4"], "ada-3");
        check(&long, &[&long], &format!("{}-2", "a".repeat(61)));
    }

    #[test]
    fn when_all_numbers_are_taken_the_id_decides() {
        let wished: Handle = "a".repeat(63).parse().unwrap();
        let taken = candidates(&wished).into_iter().collect();
        let (one, other) = (free(&wished, &taken, UserId::new()), free(&wished, &taken, UserId::new()));
        assert_ne!(one, other);
        assert!(one.parse::<Handle>().is_ok() && !taken.contains(&one));
    }
}
