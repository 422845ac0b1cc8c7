//! Private copies of git configuration after a run: what the command changed in them, in words. The
//! copies end with the sandbox; what is in them was written by whatever ran there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::discover::{self, ConfigFile, Entry};
use crate::plan::{Action, Plan, shown};

/// Keys named, with their commands, for one file.
const MOST: usize = 24;
/// Bytes of a key and of a value that are told; longer ones are none that git made.
const MOST_BYTES: usize = 256;

/// A file that the command had a copy of.
#[derive(Debug)]
struct Copied {
    file: PathBuf,
    /// Name of the copy's directory in the directory of all.
    name: PathBuf,
    before: Arc<ConfigFile>,
    /// The file itself, so that no other gets its number.
    _held: Option<OwnedFd>,
}

/// The files that the command had copies of.
#[derive(Debug, Default)]
pub struct Copies(Vec<Copied>);

/// What is known at the end.
#[derive(Debug)]
pub enum After {
    /// Init has looked, and no copy differs.
    Same,
    /// One or more differ; the directory of all.
    Changed(OwnedFd),
    /// Init was killed and could not look.
    Unknown,
}

impl Copies {
    pub fn new(plan: &Plan) -> Self {
        let copied = plan.steps.iter().filter_map(|step| match &step.action {
            Action::Copy { config, directory, object } => Some(Copied {
                file: step.path.clone(),
                name: PathBuf::from(directory.file_name()?),
                before: config.clone(),
                _held: object.open().ok(),
            }),
            _ => None,
        });
        Self(copied.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One line for each file whose copy came to say something else.
    pub fn lines(&self, after: &After, lines: &mut Vec<String>) {
        lines.extend(self.0.iter().filter_map(Copied::replaced));
        match after {
            After::Same => {}
            After::Changed(directory) => {
                lines.extend(self.0.iter().filter_map(|c| c.line(directory.as_fd())));
            }
            After::Unknown => {
                let Some(first) = self.0.first() else { return };
                let more = match self.0.len() {
                    1 => String::new(),
                    n => format!(" and {} more", n - 1),
                };
                lines.push(format!(
                    "{}{more}: what the run may have changed there was not kept, and not looked at since it was killed",
                    shown(&first.file)
                ));
            }
        }
    }
}

impl Copied {
    /// What is mounted over a name holds until a program of the host replaces what lies there.
    fn replaced(&self) -> Option<String> {
        let now = discover::identity(&self.file).ok()?;
        (now != self.before.id).then(|| {
            format!(
                "{} was replaced on the host during the run, which could write it from then on: read it before using git there",
                shown(&self.file)
            )
        })
    }

    fn line(&self, directory: BorrowedFd<'_>) -> Option<String> {
        match discover::read_copy(directory, &self.name) {
            Ok(after) => compare(&self.file, &self.before.bytes, &after),
            Err(problem) => Some(format!(
                "{}: the run's private copy was not kept, and cannot be compared: {problem}",
                shown(&self.file)
            )),
        }
    }
}

/// Values by key, as git would count them.
type Values = BTreeMap<(String, Option<Vec<u8>>, String), Vec<Entry>>;

fn values(bytes: &[u8]) -> Values {
    let mut all = Values::new();
    for entry in discover::parse(bytes) {
        let key = (entry.section.clone(), entry.subsection.clone(), entry.key.clone());
        all.entry(key).or_default().push(entry);
    }
    all
}

/// What differs between two configurations, and how to have the harmless part of it; `None` where no
/// key does.
fn compare(file: &Path, before: &[u8], after: &[u8]) -> Option<String> {
    let (before, after) = (values(before), values(after));
    let mut names = Vec::new();
    let mut commands = Vec::new();
    let mut more = 0;
    for key in before.keys().chain(after.keys().filter(|k| !before.contains_key(*k))) {
        let empty = Vec::new();
        let (old, new) = (before.get(key).unwrap_or(&empty), after.get(key).unwrap_or(&empty));
        if old == new {
            continue;
        }
        if names.len() == MOST {
            more += 1;
            continue;
        }
        let Some(entry) = new.first().or(old.first()) else { continue };
        let mut name = cut(&entry.name());
        if new.is_empty() {
            name.push_str(" (removed)");
        } else if new.iter().any(|e| e.is_executable() || leads_to_a_helper(e)) {
            name.push_str(" (makes git run something, or read or connect elsewhere)");
        } else if let Some(command) = command(file, old, new) {
            commands.push(command);
        }
        names.push(name);
    }
    if names.is_empty() {
        return None;
    }
    let mut line = format!(
        "{}: the run changed a private copy of it, which was not kept: {}",
        shown(file),
        names.join(", ")
    );
    if more > 0 {
        let _ = write!(line, " and {more} more");
    }
    if !commands.is_empty() {
        let _ = write!(line, "; to have it: {}", commands.join(" && "));
    }
    Some(line)
}

fn cut(text: &str) -> String {
    match text.char_indices().find(|(at, _)| *at >= MOST_BYTES) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// `git config` for a key that only tells git where and what, never how.
fn command(file: &Path, old: &[Entry], new: &[Entry]) -> Option<String> {
    // Which of several values was meant to be replaced is not known.
    if old.len() > 1 || (old.len() == 1 && new.len() > 1) || !new.iter().all(is_harmless) {
        return None;
    }
    let path = quoted(file.as_os_str().as_bytes())?;
    let key = quoted(plain_name(new.first()?)?.as_bytes())?;
    let mut out = String::new();
    for (i, entry) in new.iter().enumerate() {
        let value = quoted(entry.value.as_deref().unwrap_or(b"true"))?;
        let add = if i > 0 { "--add " } else { "" };
        let and = if i > 0 { " && " } else { "" };
        let _ = write!(out, "{and}git config -f {path} {add}{key} {value}");
    }
    Some(out)
}

fn plain_name(entry: &Entry) -> Option<String> {
    let valid = entry.subsection.as_deref().is_none_or(|s| std::str::from_utf8(s).is_ok());
    valid.then(|| entry.name())
}

/// Keys that work with branches, remotes and submodules sets. Nothing of them names a program or a
/// file that git obeys; addresses are looked at besides.
const HARMLESS: &[(&str, bool, &[&str])] = &[
    ("branch", true, &["merge", "pushremote", "rebase", "remote"]),
    (
        "core",
        false,
        &[
            "autocrlf",
            "eol",
            "filemode",
            "ignorecase",
            "logallrefupdates",
            "precomposeunicode",
            "repositoryformatversion",
            "sparsecheckout",
            "sparsecheckoutcone",
        ],
    ),
    (
        "extensions",
        false,
        &["objectformat", "partialclone", "refstorage", "relativeworktrees", "worktreeconfig"],
    ),
    ("pull", false, &["ff", "rebase"]),
    ("push", false, &["autosetupremote", "default"]),
    (
        "remote",
        true,
        &["fetch", "partialclonefilter", "promisor", "prune", "push", "pushurl", "tagopt", "url"],
    ),
    ("submodule", false, &["active", "recurse"]),
    ("submodule", true, &["active", "branch", "shallow", "url"]),
    ("user", false, &["email", "name"]),
];

fn is_harmless(entry: &Entry) -> bool {
    HARMLESS.iter().any(|(section, sub, keys)| {
        entry.section == *section
            && entry.subsection.is_some() == *sub
            && keys.contains(&&*entry.key)
    }) && !leads_to_a_helper(entry)
}

/// `ext::command` and the like: an address that names a helper program. A remote may be given by its
/// address as well.
fn leads_to_a_helper(entry: &Entry) -> bool {
    matches!(&*entry.key, "url" | "pushurl" | "remote" | "pushremote")
        && entry.value.as_deref().is_some_and(|v| v.windows(2).any(|w| w == b"::"))
}

/// A word for a shell; `None` for what nobody should copy: long, not text, not printable, or to be
/// taken for an option.
fn quoted(word: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(word).ok().filter(|t| t.len() <= MOST_BYTES * 4)?;
    // Letters of every script; but nothing that turns text around or hides in it.
    let printable = |c: char| c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric();
    if text.starts_with('-') || !text.chars().all(printable) {
        return None;
    }
    let bare = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(bare) {
        return Some(text.to_owned());
    }
    Some(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &[u8] =
        b"[core]\n\tbare = false\n[user]\n\tname = A\n[branch \"m\"]\n\tremote = o\n";

    fn told(after: &str) -> Option<String> {
        let after = [BEFORE, after.as_bytes()].concat();
        compare(Path::new("/w/it's/.git/config"), BEFORE, &after)
    }

    #[test]
    fn harmless_changes_are_told_with_their_commands() {
        let line = told(
            "[submodule \"lib\"]\n\turl = ../my lib\n\tactive = true\n[remote \"origin\"]\n\
             \tfetch = +refs/heads/*:refs/remotes/origin/*\n",
        )
        .unwrap();
        let at = r"git config -f '/w/it'\''s/.git/config'";
        assert_eq!(
            line,
            format!(
                "/w/it's/.git/config: the run changed a private copy of it, which was not kept: \
                 remote.origin.fetch, submodule.lib.active, submodule.lib.url; to have it: \
                 {at} remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*' && \
                 {at} submodule.lib.active true && {at} submodule.lib.url '../my lib'"
            )
        );
    }

    #[test]
    fn what_git_would_run_is_named_and_never_offered() {
        for (text, key) in [
            ("[core]\n\tfsmonitor = ./x\n", "core.fsmonitor"),
            ("[core]\n\thooksPath = /tmp\n", "core.hookspath"),
            ("[alias]\n\tx = !sh\n", "alias.x"),
            ("[filter \"f\"]\n\tclean = sh\n", "filter.f.clean"),
            ("[include]\n\tpath = x\n", "include.path"),
            ("[submodule \"s\"]\n\tupdate = !x\n", "submodule.s.update"),
            ("[remote \"o\"]\n\turl = ext::sh -c id\n", "remote.o.url"),
            ("[branch \"m\"]\n\tremote = ext::sh\n", "branch.m.remote"),
        ] {
            let line = told(text).unwrap();
            assert!(line.contains(&format!("{key} (makes git run something")), "{line}");
            assert!(!line.contains("git config -f"), "{line}");
        }
        // Neither is what nobody knows, or what could command a terminal.
        for text in [
            "[new]\n\tthing = sh\n",
            "[user]\n\tname = \"a\\tb\"\n",
            "[remote \"-x\"]\n\turl = \u{202e}x\n",
            "[user]\n\temail = --global\n",
        ] {
            let line = told(text).unwrap();
            assert!(!line.contains("git config -f"), "{line}");
        }
    }

    #[test]
    fn nothing_is_told_where_no_key_differs() {
        assert_eq!(told(""), None);
        assert_eq!(told("# a comment\n[branch \"n\"]\n"), None);
    }

    #[test]
    fn removals_and_floods_are_told_briefly() {
        let line = compare(Path::new("/c"), BEFORE, b"[core]\nbare = false\n").unwrap();
        assert!(line.ends_with("branch.m.remote (removed), user.name (removed)"), "{line}");
        let mut flood = String::from("[a]\n");
        for i in 0..1000 {
            let _ = writeln!(flood, "k{i} = {}", "v".repeat(50));
        }
        let _ = writeln!(flood, "[x \"{}\"]\nk = v", "s".repeat(10_000));
        let line = told(&flood).unwrap();
        assert!(line.ends_with(" and 977 more") && line.len() < 8_000, "{}", line.len());
    }
}
