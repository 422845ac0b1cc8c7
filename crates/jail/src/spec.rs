//! What a jail is made of: a finished list of steps. Every string is a C string already, so that
//! nothing has to be allocated after the clone.

use std::ffi::CString;

use ringfence_sys::egress;
use ringfence_sys::raw::{CStringArray, FileId};
use ringfence_sys::seccomp::SockFilter;

/// Where a bind takes its tree from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Opened by the child in its own copy of the mount table, without following symlinks. With
    /// `expect`, anything but that very object is refused: what was decided about is what is bound.
    Path { path: CString, expect: Option<FileId> },
    /// A detached tree that the parent holds (index into [`Parent::trees`]): root callers, whose
    /// child has no right to open the source any more.
    Tree(usize),
    /// Lies in the stage, see [`Overlay`]. Resolved without symlinks.
    Stage(CString),
}

/// One set-up step inside the new root. Paths are relative to it, without leading `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Dir {
        path: CString,
        mode: u32,
    },
    /// A new file in a private tmpfs.
    File {
        path: CString,
        mode: u32,
        content: Vec<u8>,
    },
    Symlink {
        path: CString,
        target: CString,
    },
    /// `options` as mount(8) would take them: `mode=1777,size=...`.
    Tmpfs {
        path: CString,
        options: CString,
    },
    Proc {
        path: CString,
        /// So that a process can describe a user namespace that it makes.
        writable: bool,
    },
    DevPts {
        path: CString,
    },
    /// `attributes`: `mnt::ATTR_*`, applied to the whole tree.
    Bind {
        source: Source,
        path: CString,
        recursive: bool,
        attributes: u64,
    },
    /// As `Bind`, over an object inside another bind: the place is resolved without symlinks and
    /// must be the expected object.
    Over {
        source: Source,
        path: CString,
        expect: Option<FileId>,
        recursive: bool,
        attributes: u64,
    },
    /// An overlay of directories of the host over the directory at a place.
    Overlay(Overlay),
    /// A file system whose server is the supervisor.
    Fuse(Fuse),
    /// Binds what lies at `path` over itself: with `ATTR_RDONLY` a seal, with 0 a pin (a mount point
    /// cannot be renamed or removed). Resolved without symlinks, since the tree may be hostile.
    Rebind {
        path: CString,
        expect: Option<FileId>,
        attributes: u64,
        /// See [`Step::Mask`].
        lower: Option<CString>,
    },
    /// Makes what lies at `path` in a read-only mount of ours writable again, from here down. Resolved
    /// without symlinks.
    Reopen {
        path: CString,
        expect: Option<FileId>,
        /// See [`Step::Mask`].
        lower: Option<CString>,
    },
    /// Covers `path` with an object that can be neither read nor changed.
    Mask {
        path: CString,
        expect: Option<FileId>,
        directory: bool,
        /// In an overlay `expect` is the object below it, which lies here in the stage. What an
        /// earlier run put over it is covered as well, whatever it is; where that run took it away,
        /// nothing is left to cover.
        lower: Option<CString>,
    },
    /// Puts a private file that was made before over the file at `path`, read-only.
    Cover {
        file: CString,
        /// Resolved without symlinks.
        path: CString,
        expect: Option<FileId>,
    },
    /// A stream socket of the private root, for its owner alone, handed out over `channel`
    /// (`SOCK_SEQPACKET`, one byte and the descriptor): whoever has it accepts outside what connects
    /// inside.
    Listen {
        path: CString,
        channel: i32,
    },
    /// Puts a link to a private copy over the file at `path`, see [`Copy`].
    Copy(Copy),
    /// Makes the mount at `path` (`.` for the root) read-only, not what is mounted below it.
    ReadOnly {
        path: CString,
    },
    /// Removes a private file or directory that was only needed as a mount source.
    Remove {
        path: CString,
        directory: bool,
    },
}

impl Step {
    /// Whether every directory that could be reached by its path before still can be: nothing but
    /// files was covered.
    pub(crate) fn leaves_directories(&self) -> bool {
        match self {
            Self::Mask { directory, .. } => !directory,
            Self::Copy(copy) => copy.expect.is_some_and(|object| !object.is_dir),
            Self::Cover { expect, .. } | Self::Rebind { expect, .. } => {
                expect.is_some_and(|object| !object.is_dir)
            }
            _ => false,
        }
    }
}

/// A FUSE file system over the directory at a place. Init opens the connection, before it gives up the
/// right to (the kernel wants it opened in the user namespace that mounts), mounts it, and hands it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fuse {
    /// Resolved without symlinks.
    pub path: CString,
    pub expect: Option<FileId>,
    /// A descriptor of the supervisor whose number the connection gets in init.
    pub device: i32,
    /// `SOCK_SEQPACKET`: one byte and the connection, once it is mounted.
    pub channel: i32,
    pub options: ringfence_sys::fuse::Options,
}

/// An overlay. What it is made of is attached to the stage first, a tmpfs that lies under the private
/// root and goes with the host's: kernels before 6.15 take attached mounts only, none takes a
/// detached one of another user namespace, and an attached clone of an object that was checked is that
/// object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    pub sources: Vec<Staged>,
    /// Paths in the stage: directories below, top first, never empty; at most
    /// [`ringfence_sys::overlay::MOST_LOWER`].
    pub lower: Vec<CString>,
    /// The directory that gets the changes, and an empty one on the same mount; `None`: read-only, and at
    /// least two are below.
    pub upper: Option<(CString, CString)>,
    pub place: Place,
    pub attributes: u64,
    /// Where those of `upper` are to be made: a tmpfs in the stage, gone with it.
    pub private: Option<Private>,
    /// The run goes on without it and without the binds of what lies in it.
    pub optional: bool,
}

/// A tmpfs in the stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Private {
    pub name: CString,
    pub options: CString,
}

/// A directory for the stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    pub name: CString,
    pub source: Source,
}

/// Where an overlay is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Over this directory, resolved without symlinks.
    Root { path: CString, expect: Option<FileId> },
    /// In the stage, for binds from it.
    Stage(CString),
}

/// A file that is written inside and must not change outside. A program that replaces it (git does:
/// `config.lock` beside it, then a rename) cannot replace a mount, but it follows a link first; so a
/// symbolic link is mounted over the file and leads to a copy in a directory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The file. Resolved without symlinks.
    pub path: CString,
    pub expect: Option<FileId>,
    /// Made for it; may be written by the command.
    pub directory: CString,
    /// The copy, in that directory.
    pub file: CString,
    pub mode: u32,
    pub content: Vec<u8>,
    /// The link that is mounted, in that directory, and what it says.
    pub link: CString,
    pub target: CString,
}

/// Where masks are bound from; the plan makes these two before the first mask and removes the names
/// after the last.
pub const MASK_FILE: &std::ffi::CStr = c".mask-file";
pub const MASK_DIR: &std::ffi::CStr = c".mask-dir";

/// How ids inside relate to the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub inside_uid: u32,
    pub outside_uid: u32,
    pub inside_gid: u32,
    pub outside_gid: u32,
    /// The parent writes the maps (a privileged caller mapped to a foreign id) and the child then
    /// takes the inside ids.
    pub by_parent: bool,
}

/// File-system part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Directory of the old root under which the new one is attached for a moment; never an
    /// ancestor of a source.
    pub scaffold: CString,
    pub root_options: CString,
    pub steps: Vec<Step>,
    /// The directory of the directories of every [`Copy`], where there is one: handed to the
    /// supervisor at the end when the command changed a copy.
    pub copies: Option<CString>,
}

/// Landlock part. Rules name paths as the command will see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Landlock {
    pub abi: u32,
    pub handled_fs: u64,
    pub handled_net: u64,
    pub scoped: u64,
    pub rules: Vec<LandlockRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LandlockRule {
    pub path: CString,
    pub access: u64,
    /// The path may be gone by now (a device that this host lacks) without it being an error.
    pub optional: bool,
}

/// `RLIMIT_*` by number; only ever lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    pub resource: u32,
    pub name: &'static str,
    pub value: u64,
}

/// What runs inside.
#[derive(Debug)]
pub struct Exec {
    /// Tried in order, as `execvp` does along PATH.
    pub candidates: Vec<CString>,
    pub argv: CStringArray,
    pub envp: CStringArray,
    pub cwd: CString,
}

/// How the command's standard descriptors are wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stdio {
    /// Descriptors of the caller that become 0, 1, 2; usually 0, 1, 2 themselves.
    pub fds: [i32; 3],
    /// Which of the three are replaced by a terminal of the sandbox's own.
    pub pty: [bool; 3],
}

impl Default for Stdio {
    fn default() -> Self {
        Self { fds: [0, 1, 2], pty: [false; 3] }
    }
}

impl Stdio {
    pub fn wants_pty(&self) -> bool {
        self.pty.iter().any(|p| *p)
    }
}

/// A finished jail.
#[derive(Debug)]
pub struct JailSpec {
    /// `ns::flags`; 0 on the rung without namespaces.
    pub namespaces: u64,
    pub ids: Option<Ids>,
    pub view: Option<View>,
    pub loopback: bool,
    /// Everything that leaves arrives at sockets of the supervisor ([`crate::Jailed::network`]);
    /// needs a network namespace.
    pub egress: Option<egress::Config>,
    pub landlock: Option<Landlock>,
    /// Empty: no filter (only where a test's control asks for it).
    pub seccomp: Vec<SockFilter>,
    /// A second filter: what it holds is carried out by init as [`Parent::judge`] allows. Needs a view.
    /// Empty: nothing is held.
    pub watch: Vec<SockFilter>,
    /// Init's own filter with `watch`: as `seccomp`, but it may read memory and take descriptors of
    /// the sandbox's processes.
    pub init_seccomp: Vec<SockFilter>,
    pub rlimits: Vec<Rlimit>,
    pub exec: Exec,
    pub stdio: Stdio,
    /// Open `cgroup.procs` files that the child enters before anything else.
    pub cgroup_procs: Vec<i32>,
    /// Init's end of a channel over which the supervisor asks for connections to the sandbox's
    /// loopback (`SOCK_SEQPACKET`: family 4 or 6 and port in, descriptor out); -1 for none.
    pub connector: i32,
    /// A descriptor that init keeps until every other process of the sandbox has ended, also when the
    /// supervisor was killed: the lock on what they write to. -1 for none. Goes with
    /// `die_with_parent` unset, or init could end before them.
    pub lock: i32,
    /// Init's end of the channel of [`crate::asks`], with `watch`; -1 where the rules of names stay as they are.
    pub asks: i32,
    /// Init's end of the channel over which it is asked for commands, see [`crate::resident`]; -1 for the
    /// one command of `exec`. Needs namespaces, and no terminal.
    pub resident: i32,
    /// Soft limit of open files for a resident init's commands, where the supervisor raised its own; 0
    /// leaves it.
    pub resident_files: u64,
    /// Die with the thread that made the jail (the command line; a library user may not want it).
    pub die_with_parent: bool,
}

/// What the parent does while the child waits: see [`Source::Tree`].
#[derive(Debug, Default)]
pub struct Parent<'a> {
    pub trees: Vec<Tree>,
    /// The rules of names for [`JailSpec::watch`]; used by init's copy of the caller's memory.
    pub judge: Option<&'a dyn crate::broker::Judge>,
}

/// A source that the parent opens.
#[derive(Debug)]
pub struct Tree {
    /// An `O_PATH` descriptor of the object that was decided about.
    pub object: std::os::fd::OwnedFd,
    pub recursive: bool,
    /// Translate the owner on disk to the sandbox's id. The ids are those of `Ids::inside_*`.
    pub idmap: bool,
}
