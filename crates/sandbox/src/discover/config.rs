//! A reader of git's configuration format, and the list of keys by which git runs something.
//!
//! git refuses a whole file for one bad line; this reader skips the line and goes on, so that it sees
//! at least what any version of git may see.

/// Entries read from one file; git's own files have dozens.
const MAX_ENTRIES: usize = 65_536;

/// One `key = value` of a git configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Lower case.
    pub section: String,
    /// The part in quotes as written, or the lower-cased rest of the old form `[section.sub]`.
    pub subsection: Option<Vec<u8>>,
    /// Lower case.
    pub key: String,
    /// `None` for a key without `=`, which means true.
    pub value: Option<Vec<u8>>,
}

impl Entry {
    /// Section and key are these, whatever the subsection.
    pub fn is(&self, section: &str, key: &str) -> bool {
        self.section == section && self.key == key
    }

    /// `section.subsection.key`, for people.
    pub fn name(&self) -> String {
        match &self.subsection {
            Some(sub) => {
                format!("{}.{}.{}", self.section, String::from_utf8_lossy(sub), self.key)
            }
            None => format!("{}.{}", self.section, self.key),
        }
    }

    /// git's idea of true.
    pub fn is_true(&self) -> bool {
        match self.value.as_deref() {
            None => true,
            Some(value) => {
                let value = value.to_ascii_lowercase();
                matches!(&*value, b"true" | b"yes" | b"on")
                    || std::str::from_utf8(&value)
                        .is_ok_and(|v| v.parse::<i64>().is_ok_and(|n| n != 0))
            }
        }
    }

    fn is_boolean(&self) -> bool {
        let value = self.value.as_deref().map(<[u8]>::to_ascii_lowercase);
        self.is_true() || matches!(value.as_deref(), Some(b"false" | b"no" | b"off" | b"0" | b""))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// The next byte, with CR LF read as LF; `None` at the end.
    fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        if byte == b'\r' && self.bytes.get(self.at) == Some(&b'\n') {
            self.at += 1;
            return Some(b'\n');
        }
        Some(byte)
    }

    fn skip_line(&mut self) {
        while let Some(byte) = self.next() {
            if byte == b'\n' {
                return;
            }
        }
    }

    /// The rest of a section header, after `[`.
    fn section(&mut self) -> Option<(String, Option<Vec<u8>>)> {
        let mut name = String::new();
        loop {
            match self.next()? {
                b']' => break,
                byte if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' => {
                    name.push(char::from(byte.to_ascii_lowercase()));
                }
                b' ' | b'\t' => return Some((name, Some(self.quoted_subsection()?))),
                _ => {
                    self.at -= 1;
                    return None;
                }
            }
        }
        match name.split_once('.') {
            Some((section, sub)) => Some((section.to_owned(), Some(sub.as_bytes().to_vec()))),
            None => Some((name, None)),
        }
    }

    fn quoted_subsection(&mut self) -> Option<Vec<u8>> {
        let mut byte = self.next()?;
        while byte == b' ' || byte == b'\t' {
            byte = self.next()?;
        }
        if byte != b'"' {
            self.at -= 1;
            return None;
        }
        let mut name = Vec::new();
        loop {
            match self.next()? {
                b'"' => break,
                b'\n' => {
                    self.at -= 1;
                    return None;
                }
                b'\\' => match self.next()? {
                    b'\n' => {
                        self.at -= 1;
                        return None;
                    }
                    escaped => name.push(escaped),
                },
                byte => name.push(byte),
            }
        }
        (self.next()? == b']').then_some(name)
    }

    /// A key and its value; `first` is the key's first letter.
    fn entry(&mut self, first: u8) -> Option<(String, Option<Vec<u8>>)> {
        let mut key = String::from(char::from(first.to_ascii_lowercase()));
        let mut byte = self.next();
        while let Some(letter) = byte.filter(|b| b.is_ascii_alphanumeric() || *b == b'-') {
            key.push(char::from(letter.to_ascii_lowercase()));
            byte = self.next();
        }
        while matches!(byte, Some(b' ' | b'\t')) {
            byte = self.next();
        }
        match byte {
            None | Some(b'\n') => Some((key, None)),
            Some(b'=') => Some((key, Some(self.value()?))),
            Some(_) => {
                self.at -= 1;
                None
            }
        }
    }

    fn value(&mut self) -> Option<Vec<u8>> {
        let mut value = Vec::new();
        // Length up to the last byte that is not white space outside quotes.
        let mut kept = 0;
        let mut quoted = false;
        loop {
            match self.next() {
                None => break,
                Some(b'\n') => {
                    if quoted {
                        return None;
                    }
                    break;
                }
                Some(b'#' | b';') if !quoted => {
                    self.skip_line();
                    break;
                }
                Some(b'"') => {
                    quoted = !quoted;
                    kept = value.len();
                }
                Some(b'\\') => match self.next() {
                    None => break,
                    Some(b'\n') => {}
                    Some(escaped) => {
                        value.push(match escaped {
                            b'n' => b'\n',
                            b't' => b'\t',
                            b'b' => 8,
                            other => other,
                        });
                        kept = value.len();
                    }
                },
                Some(byte) if byte.is_ascii_whitespace() && !quoted => {
                    if !value.is_empty() {
                        value.push(byte);
                    }
                }
                Some(byte) => {
                    value.push(byte);
                    kept = value.len();
                }
            }
        }
        value.truncate(kept);
        Some(value)
    }
}

/// Reads a configuration. Never fails: what is not understood is skipped to the end of its line.
pub fn parse(bytes: &[u8]) -> Vec<Entry> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = Reader { bytes, at: 0 };
    let mut section = (String::new(), None);
    let mut entries = Vec::new();
    while let Some(byte) = reader.next() {
        match byte {
            b'#' | b';' => reader.skip_line(),
            b'[' => match reader.section() {
                Some(found) => section = found,
                None => reader.skip_line(),
            },
            byte if byte.is_ascii_whitespace() => {}
            byte if byte.is_ascii_alphabetic() => match reader.entry(byte) {
                Some((key, value)) => {
                    let (section, subsection) = section.clone();
                    entries.push(Entry { section, subsection, key, value });
                    if entries.len() == MAX_ENTRIES {
                        break;
                    }
                }
                None => reader.skip_line(),
            },
            _ => reader.skip_line(),
        }
    }
    entries
}

/// When a key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// Only with `!` in front: otherwise it names a git command or a mode.
    Bang,
    /// Not for true and false, which choose what git itself brings.
    NotBoolean,
}

/// Whether a key has a subsection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sub {
    No,
    Yes,
    Either,
}

/// Section, subsection, key (`*`: any), condition. All lower case. What git, git-lfs and git's own
/// helper scripts run as a program, read further configuration from, or connect to instead.
const EXECUTABLE: &[(&str, Sub, &str, When)] = &[
    ("alias", Sub::Either, "*", When::Bang),
    ("browser", Sub::Yes, "cmd", When::Always),
    ("browser", Sub::Yes, "path", When::Always),
    ("core", Sub::No, "alternaterefscommand", When::Always),
    ("core", Sub::No, "askpass", When::Always),
    ("core", Sub::No, "attributesfile", When::Always),
    ("core", Sub::No, "editor", When::Always),
    ("core", Sub::No, "fsmonitor", When::NotBoolean),
    ("core", Sub::No, "gitproxy", When::Always),
    ("core", Sub::No, "hookspath", When::Always),
    ("core", Sub::No, "pager", When::Always),
    ("core", Sub::No, "sshcommand", When::Always),
    ("core", Sub::No, "worktree", When::Always),
    ("credential", Sub::Either, "helper", When::Always),
    ("diff", Sub::No, "external", When::Always),
    ("diff", Sub::Yes, "command", When::Always),
    ("diff", Sub::Yes, "textconv", When::Always),
    ("difftool", Sub::Yes, "cmd", When::Always),
    ("difftool", Sub::Yes, "path", When::Always),
    ("filter", Sub::Yes, "clean", When::Always),
    ("filter", Sub::Yes, "process", When::Always),
    ("filter", Sub::Yes, "smudge", When::Always),
    ("gc", Sub::No, "recentobjectshook", When::Always),
    ("gpg", Sub::Either, "program", When::Always),
    ("gpg", Sub::Yes, "defaultkeycommand", When::Always),
    ("guitool", Sub::Yes, "cmd", When::Always),
    ("hook", Sub::Yes, "command", When::Always),
    ("imap", Sub::Either, "tunnel", When::Always),
    ("include", Sub::No, "path", When::Always),
    ("includeif", Sub::Yes, "path", When::Always),
    ("init", Sub::No, "templatedir", When::Always),
    ("instaweb", Sub::No, "browser", When::Always),
    ("instaweb", Sub::No, "httpd", When::Always),
    ("interactive", Sub::No, "difffilter", When::Always),
    ("lfs", Sub::Yes, "clean", When::Always),
    ("lfs", Sub::Yes, "path", When::Always),
    ("lfs", Sub::Yes, "smudge", When::Always),
    ("man", Sub::Yes, "cmd", When::Always),
    ("man", Sub::Yes, "path", When::Always),
    ("merge", Sub::Yes, "driver", When::Always),
    ("mergetool", Sub::Yes, "cmd", When::Always),
    ("mergetool", Sub::Yes, "path", When::Always),
    ("pager", Sub::Either, "*", When::NotBoolean),
    ("protocol", Sub::Either, "allow", When::Always),
    ("remote", Sub::Yes, "proxy", When::Always),
    ("remote", Sub::Yes, "receivepack", When::Always),
    ("remote", Sub::Yes, "uploadpack", When::Always),
    ("remote", Sub::Yes, "vcs", When::Always),
    ("sendemail", Sub::Either, "cccmd", When::Always),
    ("sendemail", Sub::Either, "headercmd", When::Always),
    ("sendemail", Sub::Either, "sendmailcmd", When::Always),
    ("sendemail", Sub::Either, "smtpserver", When::Always),
    ("sendemail", Sub::Either, "tocmd", When::Always),
    ("sequence", Sub::No, "editor", When::Always),
    ("submodule", Sub::Yes, "update", When::Bang),
    ("tar", Sub::Yes, "command", When::Always),
    ("trailer", Sub::Yes, "cmd", When::Always),
    ("trailer", Sub::Yes, "command", When::Always),
    ("uploadpack", Sub::No, "packobjectshook", When::Always),
    ("url", Sub::Yes, "insteadof", When::Always),
    ("url", Sub::Yes, "pushinsteadof", When::Always),
];

/// Options by which a git command that an alias stands for runs a program.
const RUNNING_OPTIONS: [&[u8]; 7] = [
    b"--exec",
    b"-x",
    b"--extcmd",
    b"--open-files-in-pager",
    b"-O",
    b"--upload-pack",
    b"--receive-pack",
];

impl Entry {
    /// Whether git runs a program named by this entry, or reads or connects elsewhere because of it.
    pub fn is_executable(&self) -> bool {
        EXECUTABLE.iter().any(|(section, sub, key, when)| {
            let sub_fits = match sub {
                Sub::No => self.subsection.is_none(),
                Sub::Yes => self.subsection.is_some(),
                Sub::Either => true,
            };
            let value = self.value.as_deref().unwrap_or_default();
            sub_fits
                && self.section == *section
                && (*key == "*" || self.key == *key)
                && match when {
                    When::Always => true,
                    When::Bang => {
                        value.trim_ascii_start().first() == Some(&b'!')
                            || self.section == "alias"
                                && value.split(u8::is_ascii_whitespace).any(|word| {
                                    RUNNING_OPTIONS.iter().any(|option| word.starts_with(option))
                                })
                    }
                    When::NotBoolean => !self.is_boolean(),
                }
        })
    }
}

/// Names of the keys in a configuration that make git run a program, or read or send elsewhere;
/// sorted, each once.
pub fn executable_keys(bytes: &[u8]) -> Vec<String> {
    let mut keys: Vec<String> =
        parse(bytes).iter().filter(|e| e.is_executable()).map(Entry::name).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> Vec<u8> {
        parse(bytes).pop().unwrap().value.unwrap()
    }

    #[test]
    fn values_are_read_as_git_reads_them() {
        assert_eq!(value(b"[a]\nk = x y  # comment"), b"x y");
        assert_eq!(value(b"[a]\nk = \"x ; \" y ;c"), b"x ;  y");
        assert_eq!(value(b"[a]\nk = x\\\n  y"), b"x  y");
        assert_eq!(value(b"[a]\nk = \\\"a\\\\b\\n"), b"\"a\\b\n");
        assert_eq!(value(b"\xef\xbb\xbf[a]\r\nk = x\r\n"), b"x");
        assert_eq!(value(b"[core] hooksPath = here"), b"here");
        assert_eq!(parse(b"[a]\nk\n")[0].value, None);
    }

    #[test]
    fn sections_are_read_as_git_reads_them() {
        let entries = parse(b"[Diff \"A\\\"b\\\\\"]\nTextConv = x\n[Old.Form]\nk=1\n[bad\nk=2\n");
        assert_eq!(entries[0].subsection.as_deref(), Some(&b"A\"b\\"[..]));
        assert_eq!(entries[0].name(), "diff.A\"b\\.textconv");
        assert_eq!(entries[1].name(), "old.form.k");
    }

    #[test]
    fn executable_keys_are_found() {
        let text = b"[core]\n\tfsmonitor = true\n\tbare = false\n[core]\nfsmonitor=./x\nHooksPath=h
[alias]\n\tst = status\n\trun = !sh -c id\n\tg = grep -Oevil x\n[filter \"lfs\"]\nclean = c\n
[includeIf \"gitdir:/x/\"]\npath = y\n[pager]\nlog = false\ndiff = less\n[submodule \"s\"]
update = !x\n[submodule \"t\"]\nupdate = merge\n[remote \"origin\"]\nurl = https://h/\nvcs = ext\n";
        assert_eq!(
            executable_keys(text),
            [
                "alias.g",
                "alias.run",
                "core.fsmonitor",
                "core.hookspath",
                "filter.lfs.clean",
                "includeif.gitdir:/x/.path",
                "pager.diff",
                "remote.origin.vcs",
                "submodule.s.update",
            ]
        );
    }

    #[test]
    fn odd_bytes_are_survived() {
        for text in
            [&b"[\n"[..], b"[a \"", b"[a \"\n\"]", b"=", b"[a]\nk = \"\n", b"\\", b"[a]k", b"[]"]
        {
            let _ = executable_keys(text);
        }
        let long = [&b"[a]\nk = "[..], &vec![b'x'; 1 << 20]].concat();
        assert_eq!(value(&long).len(), 1 << 20);
    }
}
