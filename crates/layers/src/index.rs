//! Which names of a tree rules hide or only list, asked name by name on a walk. Most names of a
//! directory are decided alike: the rules are asked once for the directory, and again only for names
//! that some pattern singles out.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ringfence_policy::{CompiledRules, Permission};

use crate::mask::Cover;

/// What a walk does about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is seen as it is; look below if it is a directory.
    Plain,
    /// It is not; nothing below it has to be looked at.
    Covered(Cover),
}

/// Rules over one tree.
#[derive(Debug)]
pub struct Covering<'a> {
    rules: &'a CompiledRules<'a>,
    /// Where the sandbox sees the tree.
    root: PathBuf,
    id: u64,
}

/// What the directory that was last asked about gives to names that nothing singles out.
struct Last {
    covering: u64,
    directory: Vec<u8>,
    permission: Permission,
}

thread_local! {
    static LAST: RefCell<Last> = const {
        RefCell::new(Last { covering: 0, directory: Vec::new(), permission: Permission::None })
    };
}

impl<'a> Covering<'a> {
    pub fn new(rules: &'a CompiledRules<'a>, root: &Path) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { rules, root: root.to_owned(), id }
    }

    /// `path` is relative to the root. Of what lies below a covered name nobody has to ask.
    pub fn seen(&self, path: &[u8], is_dir: bool) -> Seen {
        match self.permission(path) {
            Permission::None => Seen::Covered(Cover::Hidden),
            Permission::View if !is_dir => Seen::Covered(Cover::Listed),
            _ => Seen::Plain,
        }
    }

    fn permission(&self, path: &[u8]) -> Permission {
        let cut = path.iter().rposition(|b| *b == b'/');
        let (directory, name) = match cut {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        if self.rules.name_may_differ(OsStr::from_bytes(name)) {
            return self.rules.decide(&self.root.join(OsStr::from_bytes(path))).permission;
        }
        LAST.with_borrow_mut(|last| {
            if last.covering != self.id || last.directory != directory {
                let path = self.root.join(OsStr::from_bytes(path));
                last.permission = self.rules.decide(&path).permission;
                last.covering = self.id;
                last.directory.clear();
                last.directory.extend_from_slice(directory);
            }
            last.permission
        })
    }
}

/// Changes whenever rules could decide otherwise.
pub fn fingerprint(rules: &CompiledRules<'_>, root: &Path) -> [u8; 16] {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        root.hash(&mut hasher);
        rules.switches().hash(&mut hasher);
        rules.each(|rule, base| {
            (&rule.pattern, base, rule.kind, rule.effect, rule.permission, rule.priority)
                .hash(&mut hasher);
        });
        hasher.finish().to_le_bytes()
    };
    let mut both = [0; 16];
    both[..8].copy_from_slice(&half(1));
    both[8..].copy_from_slice(&half(2));
    both
}

/// A path from bytes.
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
}
