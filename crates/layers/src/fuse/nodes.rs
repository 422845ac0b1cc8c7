//! What the kernel knows of the tree: a node for each *name* that it looked up, as a link to its
//! parent's. Permissions belong to paths, so two names of one file are two nodes. No descriptor is held
//! for a node: it is found again by its path, and what is found must be what it stands for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use ringfence_policy::Permission;

use super::serve::Handle;

pub(super) const ROOT: u64 = 1;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub dev: u64,
    pub ino: u64,
    /// Numbers are used again: the type and, where the file system tells it, the time of birth.
    pub kind: u16,
    pub born: (i64, u32),
}

#[derive(Debug)]
pub(super) struct Node {
    /// `None`: the name is gone (removed, replaced, or never there).
    pub link: Option<(u64, OsString)>,
    pub identity: Identity,
    pub directory: bool,
    /// How often the kernel was told of it and has not forgotten.
    lookups: u64,
    /// Nodes whose link leads here.
    children: u64,
    /// The permission of its path, and when that was found.
    known: Option<(u64, Permission)>,
    /// Descriptors that are open for it.
    pub handles: Vec<Arc<Handle>>,
    /// Change time and size when the kernel last read it.
    pub read_at: Option<(i64, u32, u64)>,
    /// What the kernel reads and writes itself, and how many open files do.
    pub backing: Option<(u32, u64)>,
}

impl Node {
    fn new(link: Option<(u64, OsString)>, identity: Identity, directory: bool) -> Self {
        Self {
            link,
            identity,
            directory,
            lookups: 0,
            children: 0,
            known: None,
            handles: Vec::new(),
            read_at: None,
            backing: None,
        }
    }
}

/// Where a node is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Relative to the root; empty for it.
    pub path: Vec<u8>,
    pub permission: Permission,
    pub identity: Identity,
}

#[derive(Debug, Default)]
pub(super) struct Nodes {
    all: HashMap<u64, Node>,
    names: HashMap<(u64, OsString), u64>,
    next: u64,
    /// Grows with everything that may change what a known path is permitted.
    epoch: u64,
}

pub(super) fn below(path: &[u8], name: &OsStr) -> Vec<u8> {
    let mut whole = Vec::with_capacity(path.len() + 1 + name.len());
    if !path.is_empty() {
        whole.extend_from_slice(path);
        whole.push(b'/');
    }
    whole.extend_from_slice(name.as_bytes());
    whole
}

impl Nodes {
    pub fn new(root: Identity) -> Self {
        let mut node = Node::new(None, root, true);
        node.lookups = 1;
        Self { all: HashMap::from([(ROOT, node)]), names: HashMap::new(), next: ROOT + 1, epoch: 0 }
    }

    pub fn get(&self, id: u64) -> Option<&Node> {
        self.all.get(&id)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Node> {
        self.all.get_mut(&id)
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn expire(&mut self) {
        self.epoch += 1;
    }

    /// Where `id` is. `None` where its name is gone, or that of a directory above it.
    pub fn place(&mut self, id: u64, judge: &dyn Fn(&[u8]) -> Permission) -> Option<Place> {
        let node = self.all.get(&id)?;
        let (identity, known) = (node.identity, node.known);
        let fresh = known.filter(|(epoch, _)| *epoch == self.epoch).map(|(_, p)| p);
        let Some((parent, name)) = &node.link else {
            return (id == ROOT).then(|| Place {
                path: Vec::new(),
                permission: judge(&[]).max(Permission::View),
                identity,
            });
        };
        if let Some(permission) = fresh {
            return Some(Place { path: self.path(id)?, permission, identity });
        }
        let (parent, name) = (*parent, name.clone());
        let above = self.place(parent, judge)?;
        let path = below(&above.path, &name);
        let permission = match above.permission {
            Permission::None => Permission::None,
            _ => judge(&path),
        };
        let epoch = self.epoch;
        self.all.get_mut(&id)?.known = Some((epoch, permission));
        Some(Place { path, permission, identity })
    }

    fn path(&self, id: u64) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            let (parent, name) = self.all.get(&at)?.link.as_ref()?;
            names.push(name.as_bytes());
            at = *parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// The kernel is told that `name` in `parent` leads to this.
    pub fn met(
        &mut self,
        parent: u64,
        name: &OsStr,
        identity: Identity,
        directory: bool,
        permission: Permission,
    ) -> u64 {
        if let Some(&id) = self.names.get(&(parent, name.to_owned())) {
            let epoch = self.epoch;
            match self.all.get_mut(&id) {
                Some(node) if node.identity == identity && node.directory == directory => {
                    node.lookups += 1;
                    node.known = Some((epoch, permission));
                    return id;
                }
                _ => self.detach(id),
            }
        }
        let id = self.add(Node::new(None, identity, directory));
        self.attach(id, parent, name);
        let epoch = self.epoch;
        if let Some(node) = self.all.get_mut(&id) {
            node.known = Some((epoch, permission));
        }
        id
    }

    /// A file without a name, which the kernel is told of.
    pub fn nameless(&mut self, identity: Identity) -> u64 {
        self.add(Node::new(None, identity, false))
    }

    fn add(&mut self, mut node: Node) -> u64 {
        let id = self.next;
        self.next += 1;
        node.lookups = 1;
        self.all.insert(id, node);
        id
    }

    /// A node that the kernel is told of once more, under a name of its own.
    pub fn adopt(&mut self, id: u64, parent: u64, name: &OsStr) {
        if let Some(node) = self.all.get_mut(&id) {
            node.lookups += 1;
        }
        self.attach(id, parent, name);
    }

    /// The node of a name, where the kernel knows it.
    pub fn named(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.names.get(&(parent, name.to_owned())).copied()
    }

    fn attach(&mut self, id: u64, parent: u64, name: &OsStr) {
        if let Some(other) = self.named(parent, name) {
            self.detach(other);
        }
        let Some(node) = self.all.get_mut(&id) else { return };
        node.link = Some((parent, name.to_owned()));
        node.known = None;
        self.names.insert((parent, name.to_owned()), id);
        if let Some(parent) = self.all.get_mut(&parent) {
            parent.children += 1;
        }
    }

    /// The name of `id` is gone.
    pub fn detach(&mut self, id: u64) {
        let Some(node) = self.all.get_mut(&id) else { return };
        node.known = None;
        let directory = node.directory;
        if let Some((parent, name)) = node.link.take() {
            if let Entry::Occupied(entry) = self.names.entry((parent, name))
                && *entry.get() == id
            {
                entry.remove();
            }
            if let Some(parent) = self.all.get_mut(&parent) {
                parent.children -= 1;
            }
            self.drop_if_unknown(parent);
        }
        if directory {
            self.expire();
        }
        self.drop_if_unknown(id);
    }

    /// A name was moved, or two were exchanged.
    pub fn moved(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), exchanged: bool) {
        let (moving, other) = (self.named(from.0, from.1), self.named(to.0, to.1));
        if let Some(id) = other {
            self.detach_for_move(id);
        }
        if let Some(id) = moving {
            self.detach_for_move(id);
            self.attach(id, to.0, to.1);
        }
        if let Some(id) = other {
            if exchanged {
                self.attach(id, from.0, from.1);
            } else {
                self.drop_if_unknown(id);
            }
        }
        // What lies below has other paths now.
        self.expire();
    }

    /// As [`Nodes::detach`], for what gets another name at once.
    fn detach_for_move(&mut self, id: u64) {
        let Some(node) = self.all.get_mut(&id) else { return };
        if let Some((parent, name)) = node.link.take() {
            self.names.remove(&(parent, name));
            if let Some(parent) = self.all.get_mut(&parent) {
                parent.children -= 1;
            }
        }
    }

    /// The kernel has forgotten `id` as often as said.
    pub fn forget(&mut self, id: u64, times: u64) {
        if id == ROOT {
            return;
        }
        if let Some(node) = self.all.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(times);
        }
        self.drop_if_unknown(id);
    }

    fn drop_if_unknown(&mut self, mut id: u64) {
        while id != ROOT {
            let Some(node) = self.all.get(&id) else { return };
            if node.lookups > 0 || node.children > 0 || !node.handles.is_empty() {
                return;
            }
            let Some(node) = self.all.remove(&id) else { return };
            let Some((parent, name)) = node.link else { return };
            self.names.remove(&(parent, name));
            let Some(above) = self.all.get_mut(&parent) else { return };
            above.children -= 1;
            id = parent;
        }
    }

    /// Closed: the node may go if nothing else needs it.
    pub fn closed(&mut self, id: u64, handle: &Arc<Handle>) {
        if let Some(node) = self.all.get_mut(&id) {
            node.handles.retain(|h| !Arc::ptr_eq(h, handle));
        }
        self.drop_if_unknown(id);
    }

    pub fn ids(&self) -> Vec<u64> {
        self.all.keys().copied().collect()
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn identity(ino: u64) -> Identity {
        Identity { dev: 1, ino, kind: 0, born: (0, 0) }
    }

    fn write(_: &[u8]) -> Permission {
        Permission::Write
    }

    fn met(nodes: &mut Nodes, parent: u64, name: &str, ino: u64) -> u64 {
        nodes.met(parent, OsStr::new(name), identity(ino), true, Permission::Write)
    }

    #[test]
    fn paths_follow_moves_and_end_with_their_names() {
        let mut nodes = Nodes::new(identity(1));
        let a = met(&mut nodes, ROOT, "a", 2);
        let b = met(&mut nodes, a, "b", 3);
        let c = met(&mut nodes, b, "c", 4);
        assert_eq!(nodes.place(c, &write).unwrap().path, b"a/b/c");
        nodes.moved((a, OsStr::new("b")), (ROOT, OsStr::new("x")), false);
        assert_eq!(nodes.place(c, &write).unwrap().path, b"x/c");
        assert_eq!(met(&mut nodes, ROOT, "x", 3), b);
        // Another object at the name: what was there has no path any more, nor what lay below.
        let other = met(&mut nodes, ROOT, "x", 9);
        assert_ne!(other, b);
        assert!(nodes.place(b, &write).is_none());
        assert!(nodes.place(c, &write).is_none());
    }

    #[test]
    fn permissions_are_asked_again_after_a_move_and_nothing_is_below_none() {
        let mut nodes = Nodes::new(identity(1));
        let a = met(&mut nodes, ROOT, "a", 2);
        let b = nodes.met(a, OsStr::new("b"), identity(3), false, Permission::Write);
        let judge = |path: &[u8]| match path {
            b"hidden" => Permission::None,
            _ => Permission::Write,
        };
        assert_eq!(nodes.place(b, &judge).unwrap().permission, Permission::Write);
        nodes.moved((ROOT, OsStr::new("a")), (ROOT, OsStr::new("hidden")), false);
        assert_eq!(nodes.place(b, &judge).unwrap().permission, Permission::None);
    }

    #[test]
    fn what_the_kernel_forgot_is_dropped_from_the_leaves_up() {
        let mut nodes = Nodes::new(identity(1));
        let a = met(&mut nodes, ROOT, "a", 2);
        let b = met(&mut nodes, a, "b", 3);
        nodes.forget(a, 1);
        assert_eq!(nodes.count(), 3, "b still needs a");
        nodes.forget(b, 1);
        assert_eq!(nodes.count(), 1);
    }

    #[test]
    fn exchanged_names_keep_their_nodes() {
        let mut nodes = Nodes::new(identity(1));
        let (a, b) = (met(&mut nodes, ROOT, "a", 2), met(&mut nodes, ROOT, "b", 3));
        nodes.moved((ROOT, OsStr::new("a")), (ROOT, OsStr::new("b")), true);
        assert_eq!(nodes.place(a, &write).unwrap().path, b"b");
        assert_eq!(nodes.place(b, &write).unwrap().path, b"a");
    }
}
