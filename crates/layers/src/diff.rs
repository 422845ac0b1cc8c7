//! Changes as a patch that `git apply` and `patch -p1` take, as numbers, and as data.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::delta::ChangeKind;
use crate::object::{self, Kind, Meta};
use crate::review::{self, Item, Review, Verdict};
use crate::{Error, bytes_of, text};

mod binary;

/// How far a bar of `--stat` goes.
const BAR: usize = 40;

/// A side of a change, as a patch has it: git's mode and the content.
struct Side {
    mode: &'static str,
    /// `None`: not a text.
    content: Option<Vec<u8>>,
    /// What is no text and was asked for.
    raw: Option<Vec<u8>>,
}

impl Side {
    fn text(mode: &'static str, content: Vec<u8>) -> Self {
        Self { mode, content: Some(content), raw: None }
    }

    /// A regular file; `read` gives up to so many bytes of its content.
    fn file(
        meta: &Meta,
        content: Option<Vec<u8>>,
        binary: bool,
        read: impl FnOnce(u64) -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<Self, Error> {
        let mode = if meta.mode & 0o111 == 0 { "100644" } else { "100755" };
        let raw = if binary && content.is_none() { read(binary::MAX_BINARY)? } else { None };
        Ok(Self { mode, content, raw })
    }

    fn bytes(&self) -> Option<&[u8]> {
        self.content.as_deref().or(self.raw.as_deref())
    }
}

/// The patch from what the host has to what an apply would make of it. With several roots each part
/// says which directory it is for; `git apply` and `patch` skip such lines. `binary`: with the content of
/// what is no text, which only git takes; else that it differs.
pub fn patch(review: &Review, items: &[&Item], binary: bool) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let several = items.iter().any(|i| i.root != items[0].root);
    let mut last = None;
    for item in items {
        if several && last != Some(item.root) {
            let _ = writeln!(out, "# in {}", crate::shown(&review.roots[item.root]));
        }
        last = Some(item.root);
        patch_of(review, item, binary, &mut out)?;
    }
    Ok(out)
}

fn patch_of(review: &Review, item: &Item, binary: bool, out: &mut Vec<u8>) -> Result<(), Error> {
    let path = &item.change.path;
    let old = item.change.old;
    let new = item.change.new.map(|(m, _)| m);
    let (before, after) = review.texts(item)?;
    let trees = &review.trees[item.root];
    let link = |ours: bool| -> Result<Vec<u8>, Error> {
        let (dir, name) = match item.change.new {
            Some((_, tree)) if ours => trees.parent(tree, path)?,
            _ => trees.host_parent(path)?,
        };
        object::link(dir.as_fd(), name)
            .map(|t| t.as_os_str().as_bytes().to_vec())
            .map_err(Error::os("read", trees.root.join(path)))
    };
    let side = |meta: Option<Meta>, text: Option<Vec<u8>>, ours: bool| -> Result<_, Error> {
        Ok(match meta {
            Some(m) if m.kind == Kind::File => Some(Side::file(&m, text, binary, |most| {
                // Of what only its mode is taken, the host's content stays.
                let ours = ours && !matches!(item.verdict, Verdict::Mode(_));
                let (dir, name) = match item.change.new {
                    Some((_, tree)) if ours => trees.parent(tree, path)?,
                    _ => trees.host_parent(path)?,
                };
                object::content(dir.as_fd(), name, most, ours)
                    .map_err(Error::os("read", trees.root.join(path)))
            })?),
            Some(m) if m.kind == Kind::Symlink => Some(Side::text("120000", link(ours)?)),
            _ => None,
        })
    };
    let mode = match &item.verdict {
        Verdict::Merge(_, mode) | Verdict::Mode(mode) => Some(*mode),
        _ => None,
    };
    let new = new.map(|m| Meta { mode: mode.unwrap_or(m.mode), ..m });
    let before = side(old, before, false)?;
    let after = side(new, after, true)?;
    let vanishes = old.is_some_and(|m| m.is_dir()) && new.is_none_or(|m| !m.is_dir());
    if vanishes {
        deleted_below(review, item, binary, out)?;
    }
    // git shows another kind of object as one that goes and one that comes.
    match (before, after) {
        (Some(b), Some(a)) if b.mode[..3] != a.mode[..3] => {
            entry(path, Some(&b), None, out);
            entry(path, None, Some(&a), out);
        }
        (b, a) => entry(path, b.as_ref(), a.as_ref(), out),
    }
    Ok(())
}

/// Of a directory that goes away, every file.
fn deleted_below(
    review: &Review,
    item: &Item,
    binary: bool,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let trees = &review.trees[item.root];
    let mut found = Vec::new();
    review::each_below(trees, &item.change.path, &mut |path, meta| {
        found.push((path.to_owned(), *meta));
        true
    })?;
    found.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, meta) in found {
        let (dir, name) = trees.host_parent(&path)?;
        let fail = |errno| Error::os("read", trees.root.join(&path))(errno);
        let side = match meta.kind {
            Kind::File => {
                let content = object::content(dir.as_fd(), name, text::MAX_TEXT, false)
                    .map_err(fail)?
                    .filter(|b| text::is_text(b));
                Side::file(&meta, content, binary, |most| {
                    object::content(dir.as_fd(), name, most, false).map_err(fail)
                })?
            }
            Kind::Symlink => {
                let target = object::link(dir.as_fd(), name).map_err(fail)?;
                Side::text("120000", target.as_os_str().as_bytes().to_vec())
            }
            _ => continue,
        };
        entry(&path, Some(&side), None, out);
    }
    Ok(())
}

fn entry(path: &Path, before: Option<&Side>, after: Option<&Side>, out: &mut Vec<u8>) {
    let name = |prefix: &str| quoted(prefix, path);
    let mut head = Vec::new();
    head.extend([&b"diff --git "[..], &name("a/"), b" ", &name("b/"), b"\n"].concat());
    match (before, after) {
        (None, None) => return,
        (None, Some(a)) => {
            let _ = writeln!(head, "new file mode {}", a.mode);
        }
        (Some(b), None) => {
            let _ = writeln!(head, "deleted file mode {}", b.mode);
        }
        (Some(b), Some(a)) if b.mode != a.mode => {
            let _ = writeln!(head, "old mode {}\nnew mode {}", b.mode, a.mode);
        }
        (Some(b), Some(a)) if b.bytes().is_some() && b.bytes() == a.bytes() => return,
        _ => {}
    }
    out.extend(head);
    let empty = Some(Vec::new());
    let old = before.map_or(&empty, |b| &b.content);
    let new = after.map_or(&empty, |a| &a.content);
    let label = |side: Option<&Side>, prefix: &str| match side {
        Some(_) => name(prefix),
        None => b"/dev/null".to_vec(),
    };
    let (from, to) = (label(before, "a/"), label(after, "b/"));
    let bytes = |side: Option<&'_ Side>| side.map(|s| s.bytes().map(<[u8]>::to_vec));
    match (old, new) {
        (Some(old), Some(new)) if old == new => {}
        (Some(old), Some(new)) => {
            // A tab ends a name with spaces, for readers that would cut it.
            let tab: &[u8] = if path.as_os_str().as_bytes().contains(&b' ') { b"\t" } else { b"" };
            let tab_of = |side: Option<&Side>| if side.is_some() { tab } else { &b""[..] };
            out.extend([&b"--- "[..], &from, tab_of(before), b"\n"].concat());
            out.extend([&b"+++ "[..], &to, tab_of(after), b"\n"].concat());
            text::unified(old, new, out);
        }
        _ => match (bytes(before), bytes(after)) {
            // A mode alone.
            (Some(Some(old)), Some(Some(new))) if old == new => {}
            (Some(None), _) | (_, Some(None)) => {
                out.extend([&b"Binary files "[..], &from, b" and ", &to, b" differ\n"].concat());
            }
            (old, new) => binary::write(old.flatten().as_deref(), new.flatten().as_deref(), out),
        },
    }
}

/// A name as git writes it: in quotes, with escapes, where it holds anything unusual.
fn quoted(prefix: &str, path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let odd = |b: &u8| *b < 0x20 || *b >= 0x7f || matches!(b, b'"' | b'\\');
    if !bytes.iter().any(odd) {
        return [prefix.as_bytes(), bytes].concat();
    }
    let mut out = format!("\"{prefix}").into_bytes();
    for byte in bytes {
        match byte {
            b'\n' => out.extend(b"\\n"),
            b'\t' => out.extend(b"\\t"),
            b'"' => out.extend(b"\\\""),
            b'\\' => out.extend(b"\\\\"),
            b if odd(b) => {
                let _ = write!(out, "\\{b:03o}");
            }
            b => out.push(*b),
        }
    }
    out.push(b'"');
    out
}

/// Lines added and removed; `None` for what is not a text.
pub fn numbers(review: &Review, item: &Item) -> Result<Option<(usize, usize)>, Error> {
    Ok(match review.texts(item)? {
        (Some(before), Some(after)) => Some(text::count(&text::edits(&before, &after))),
        _ => None,
    })
}

/// As `git diff --stat`.
pub fn stat(review: &Review, items: &[&Item]) -> Result<String, Error> {
    use std::fmt::Write as _;
    let mut rows = Vec::new();
    for item in items {
        let directory = item.change.new.map(|(m, _)| m).or(item.change.old);
        if directory.is_some_and(|m| m.is_dir()) && item.change.kind != ChangeKind::Deleted {
            continue;
        }
        rows.push((crate::shown(&review.absolute(item)), numbers(review, item)?));
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let most = rows.iter().filter_map(|(_, n)| n.map(|(p, m)| p + m)).max().unwrap_or(0).max(1);
    let (mut plus, mut minus) = (0, 0);
    let mut out = String::new();
    for (name, counted) in &rows {
        let pad = " ".repeat(width - name.chars().count());
        match counted {
            Some((p, m)) => {
                plus += p;
                minus += m;
                let scale = |n: usize| if most > BAR { (n * BAR).div_ceil(most) } else { n };
                let bar = "+".repeat(scale(*p)) + &"-".repeat(scale(*m));
                let _ = writeln!(out, " {name}{pad} | {:>5} {bar}", p + m);
            }
            None => {
                let _ = writeln!(out, " {name}{pad} |   Bin");
            }
        }
    }
    let files = if rows.len() == 1 { "file" } else { "files" };
    let _ = writeln!(out, " {} {files} changed, {plus} lines added, {minus} removed", rows.len());
    Ok(out)
}

/// One change as data. Paths that are not UTF-8 come a second time, as base64 of their bytes.
pub fn json(review: &Review, item: &Item) -> Value {
    let absolute = review.absolute(item);
    let object = |meta: &Meta| {
        json!({
            "type": meta.kind,
            "mode": format!("{:04o}", meta.mode),
            "uid": meta.uid,
            "gid": meta.gid,
            "size": meta.size,
            "mtime": meta.mtime.0,
        })
    };
    let (verdict, why) = match &item.verdict {
        Verdict::Take => ("clean", None),
        Verdict::Merge(..) | Verdict::Mode(_) => ("merged", None),
        Verdict::Conflict(why) => ("conflict", Some(why)),
        Verdict::Refused(why) => ("refused", Some(why)),
    };
    json!({
        "path": absolute.to_string_lossy(),
        "path_bytes": bytes_of(&absolute),
        "root": review.roots[item.root].to_string_lossy(),
        "relative": item.change.path.to_string_lossy(),
        "status": item.change.kind.letter().to_string(),
        "change": item.change.kind,
        "old": item.change.old.as_ref().map(object),
        "new": item.change.new.as_ref().map(|(m, _)| object(m)),
        "apply": verdict,
        "reason": why,
        "executable": item.executable,
        "note": item.note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_as_git_does() {
        assert_eq!(quoted("a/", Path::new("x y")), b"a/x y");
        assert_eq!(quoted("a/", Path::new("n\u{e4}")), b"\"a/n\\303\\244\"");
        assert_eq!(quoted("b/", Path::new("q\"\n\\")), b"\"b/q\\\"\\n\\\\\"");
    }
}
