//! What the fuzzer calls (`fuzz/`): archives, which may be anybody's, with the laws that hold for
//! whatever is accepted. A broken law panics. Not in a release.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::pack::tar::{self, Kind, Member, Reader};
use crate::pack::{Format, Import, Limits, export};
use crate::{copy, object};

/// Members that were read are written and read alike.
pub fn tar(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    while let Ok(Some(member)) = reader.next_member() {
        let mut content = vec![0; 4096];
        while matches!(reader.content(&mut content), Ok(n) if n > 0) {}
        let mut again = Vec::new();
        // Without a destination there are no blocks between the header and what follows.
        let Ok(()) = tar::write_header(&mut again, &member) else { panic!("cannot write") };
        let mut second = Reader::new(&again[..]);
        match second.next_member() {
            Ok(Some(read)) => assert_eq!(read, written(&member)),
            // A file whose name ends in a slash is a directory to every reader.
            other => assert!(ambiguous(&member), "{member:?}: {other:?}"),
        }
    }
}

/// What does not come back as it was told: a device's numbers are nobody's here.
fn written(member: &Member) -> Member {
    let mut member = member.clone();
    member.mode &= 0o7777;
    member
}

fn ambiguous(member: &Member) -> bool {
    member.kind == Kind::File && member.path.ends_with(b"/")
}

fn place() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let place = std::env::temp_dir().join(format!("ringfence-fuzz-{}", std::process::id()));
        fs::create_dir_all(place.join("outside")).unwrap_or_else(|e| panic!("{e}"));
        fs::write(place.join("outside/kept"), "kept").unwrap_or_else(|e| panic!("{e}"));
        place
    })
}

fn import(name: &str, bytes: &[u8]) -> Option<PathBuf> {
    let tree = place().join(name);
    let parent = open(place());
    copy::remove_tree(std::os::fd::AsFd::as_fd(&parent), name.as_ref())
        .unwrap_or_else(|e| panic!("{e}"));
    fs::create_dir(&tree).unwrap_or_else(|e| panic!("{e}"));
    let limits =
        Limits { written: 1 << 20, content: 16 << 20, members: 1000, free: 0, ..Limits::default() };
    let trees = [Import { tree: open(&tree), lower: None }];
    Import::read(&trees, bytes, limits).is_ok().then_some(tree)
}

/// Also what an archive closes to its owner.
fn open(path: &Path) -> std::os::fd::OwnedFd {
    object::open_tree(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Nothing outside changes, and what was taken is exported, taken and exported alike.
pub fn archive(bytes: &[u8]) {
    let first = import("first", bytes);
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap_or_else(|e| panic!("{e}"))
            .map(|e| e.unwrap_or_else(|e| panic!("{e}")).file_name())
            .collect();
        names.sort();
        names
    };
    assert!(names(place()).iter().all(|n| n == "first" || n == "second" || n == "outside"));
    assert_eq!(names(&place().join("outside")), ["kept"]);
    assert_eq!(fs::read(place().join("outside/kept")).ok().as_deref(), Some(&b"kept"[..]));
    let Some(first) = first else { return };
    let packed = |tree: &Path| {
        let mut out = Vec::new();
        let trees = vec![open(tree)];
        export(&[(PathBuf::from("/r"), trees)], &mut out, Format::Tar)
            .unwrap_or_else(|e| panic!("{e}"));
        out
    };
    let once = packed(&first);
    let Some(second) = import("second", &once) else { panic!("what was exported is refused") };
    assert_eq!(once, packed(&second));
}

/// Archives to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    use Kind::{Device, Directory, Fifo, File, HardLink, Symlink};
    let archive = |members: &[(&[u8], Kind, &[u8], &[u8])]| {
        let mut out = Vec::new();
        for (path, kind, link, content) in members {
            let mut member = Member::new(path.to_vec(), *kind);
            member.link = link.to_vec();
            member.size = content.len() as u64;
            member.mtime = (1, 5);
            member.attributes.insert(b"user.x".to_vec(), b"v".to_vec());
            let _ = tar::write_header(&mut out, &member);
            out.extend_from_slice(content);
            out.extend(vec![0; tar::padding(member.size)]);
        }
        let _ = tar::write_end(&mut out);
        out
    };
    vec![
        archive(&[(b"./", Directory, b"", b""), (b"f", File, b"", b"content")]),
        archive(&[(b"d/", Directory, b"", b""), (b"d/.wh..wh..opq", File, b"", b"")]),
        archive(&[
            (b".wh.d", File, b"", b""),
            (b"d/f", File, b"", b"x"),
            (b"h", HardLink, b"d/f", b""),
        ]),
        archive(&[(b"l", Symlink, b"../outside", b""), (b"l/kept", File, b"", b"evil")]),
        archive(&[(b"l", Symlink, b"../outside", b""), (b"k", HardLink, b"l/kept", b"")]),
        archive(&[(b"../outside/evil", File, b"", b""), (b"/etc/x", Fifo, b"", b"")]),
        archive(&[(b"dev", Device, b"", b""), (b"p", Fifo, b"", b"")]),
        archive(&[(&[b'n'; 180], File, b"", b"long"), (b"s", Symlink, &[b't'; 200], b"")]),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]
        /// What the fuzzer does, for where there is none: seeds with some bytes changed.
        #[test]
        fn laws_hold_for_seeds_that_were_changed(
            seed in 0..8usize,
            second in 0..8usize,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
        ) {
            let seeds = super::seeds();
            let mut bytes = seeds[seed].clone();
            // The end of an archive is two blocks.
            bytes.truncate(bytes.len() - 1024);
            bytes.extend(&seeds[second]);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            super::tar(&bytes);
            super::archive(&bytes);
        }
    }
}
