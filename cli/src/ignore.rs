//! `.dartcloudignore`: which files of a folder are not deployed. The patterns are those of `.gitignore`: one a
//! line, the last that fits wins, `!` takes back, a trailing `/` means folders, a `/` elsewhere ties the pattern
//! to the root, `*` and `?` stay within a name, `**` does not.

/// The file's name, at the root of the folder.
pub(crate) const FILE: &str = ".dartcloudignore";

/// The patterns of a folder.
#[derive(Debug, Default)]
pub(crate) struct Ignore(Vec<Pattern>);

#[derive(Debug)]
struct Pattern {
    parts: Vec<String>,
    folders_only: bool,
    takes_back: bool,
}

impl Ignore {
    /// Reads the file's text.
    pub(crate) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(Pattern::parse).collect())
    }

    /// Whether `path`, relative to the root, is left out. What is below a folder that is left out is never asked.
    pub(crate) fn covers(&self, path: &str, folder: bool) -> bool {
        // Version control is no part of a function, and may be larger than it.
        if path.rsplit('/').next() == Some(".git") {
            return true;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let fits = |pattern: &&Pattern| (folder || !pattern.folders_only) && matches(&pattern.parts, &parts);
        self.0.iter().rev().find(fits).is_some_and(|pattern| !pattern.takes_back)
    }
}

impl Pattern {
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (line, takes_back) = line.strip_prefix('!').map_or((line, false), |rest| (rest, true));
        let (line, folders_only) = line.strip_suffix('/').map_or((line, false), |rest| (rest, true));
        let mut parts: Vec<String> =
            line.split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned).collect();
        if !line.contains('/') {
            parts.insert(0, "**".into());
        }
        if parts.len() > 1 && parts.last().is_some_and(|last| last == "**") {
            // What is in the folder, and not the folder: something in it may be taken back.
            parts.push("*".into());
        }
        (!parts.is_empty()).then_some(Self { parts, folders_only, takes_back })
    }
}

/// Whether the names of `path` fit the names of `pattern`, where `**` stands for any number of names.
fn matches(pattern: &[String], path: &[&str]) -> bool {
    wild(pattern.len(), path.len(), |at| pattern[at] == "**", |p, n| name_matches(&pattern[p], path[n]))
}

fn name_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    wild(pattern.len(), name.len(), |at| pattern[at] == '*', |p, n| pattern[p] == '?' || pattern[p] == name[n])
}

/// Wildcard matching in at most `pattern` × `text` steps: on a mismatch only the last star takes one more.
fn wild(pattern: usize, text: usize, star: impl Fn(usize) -> bool, one: impl Fn(usize, usize) -> bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text {
        if p < pattern && star(p) {
            back = Some((p, t));
            p += 1;
        } else if p < pattern && one(p, t) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((star_at, taken)) = back {
            back = Some((star_at, taken + 1));
            (p, t) = (star_at + 1, taken + 1);
        } else {
            return false;
        }
    }
    (p..pattern).all(star)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(patterns: &str, path: &str, expected: bool) {
        let (path, folder) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        assert_eq!(Ignore::parse(patterns).covers(path, folder), expected, "{patterns:?} {path}");
    }

    #[test]
    fn patterns() {
        check("", "main.py", false);
        check("", ".git/", true);
        check("", "sub/.git", true);
        check("", ".gitignore", false);
        check("*.pyc", "a/b.pyc", true);
        check("*.pyc", "a/b.py", false);
        check("# *.py\n\n", "main.py", false);
        check("build/", "build/", true);
        check("build/", "a/build/", true);
        check("build/", "build", false);
        check("/build", "build/", true);
        check("/build", "a/build", false);
        check("a/*.txt", "a/b.txt", true);
        check("a/*.txt", "a/b/c.txt", false);
        check("a/**/c", "a/c", true);
        check("a/**/c", "a/x/y/c", true);
        check("**/c", "x/c", true);
        check("a/**", "a/", false);
        check("a/**", "a/b.txt", true);
        check("a/**", "a/b/", true);
        check("a/**", "b/a/c", false);
        check("a/**\n!a/keep.txt", "a/", false);
        check("a/**\n!a/keep.txt", "a/keep.txt", false);
        check("a/**\n!a/keep.txt", "a/other.txt", true);
        check("a/**/", "a/b/", true);
        check("a/**/", "a/b", false);
        check("**", "a", true);
        check("/**", "a", true);
        check("?.py", "a.py", true);
        check("?.py", "ab.py", false);
        check("*.log\n!keep.log", "keep.log", false);
        check("!keep.log\n*.log", "keep.log", true);
        check("/", "a", false);
        check(&"*a".repeat(40), &"a".repeat(200), true);
        check(&format!("{}b", "*a".repeat(40)), &"a".repeat(200), false);
    }
}
