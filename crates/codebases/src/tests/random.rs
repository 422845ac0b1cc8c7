//! Random trees: whatever way they go, they arrive as they were.

use proptest::prelude::*;

use super::{World, seen};
use crate::remote::{Place, Remote, Wanted};
use crate::{From, Options};

#[derive(Clone, Debug)]
enum Thing {
    File(Vec<u8>, u32),
    Directory(u32),
    Link(String),
    Same,
    Big(u64, u8),
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        12 => (prop::collection::vec(any::<u8>(), 0..64), 0o400_u32..0o777)
            .prop_map(|(content, mode)| Thing::File(content, mode | 0o400)),
        8 => (0o700_u32..0o777).prop_map(|mode| Thing::Directory(mode | 0o700)),
        3 => "[a-z./]{1,12}".prop_map(Thing::Link),
        3 => Just(Thing::Same),
        1 => ((4_u64 << 20) - 2..(4 << 20) + 2, any::<u8>()).prop_map(|(at, byte)| Thing::Big(at, byte)),
    ]
}

fn tree() -> impl Strategy<Value = Vec<(u8, String, Thing, i32)>> {
    let name = prop_oneof![Just("ü ".to_owned()), "[a-c]{1,2}", "[ -.0-9A-z]{1,8}"];
    let name =
        name.prop_filter("a name", |n| !n.starts_with(".wh.") && !matches!(n.as_str(), "." | ".."));
    prop::collection::vec((any::<u8>(), name, thing(), any::<i32>()), 0..24)
}

fn build(root: &std::path::Path, tree: &[(u8, String, Thing, i32)]) {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<std::path::PathBuf> = Vec::new();
    let mut made = Vec::new();
    for (parent, name, thing, time) in tree {
        let path = directories[*parent as usize % directories.len()].join(name);
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match thing {
            Thing::File(content, mode) => {
                std::fs::write(&path, content).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
                files.push(path.clone());
            }
            Thing::Directory(mode) => {
                std::fs::create_dir(&path).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
                directories.push(path.clone());
            }
            Thing::Link(text) => symlink(text, &path).unwrap(),
            Thing::Same => {
                let Some(first) = files.get(*parent as usize % files.len().max(1)) else {
                    continue;
                };
                std::fs::hard_link(first, &path).unwrap();
            }
            Thing::Big(at, byte) => {
                use std::os::unix::fs::FileExt as _;
                let file = std::fs::File::create(&path).unwrap();
                file.write_at(&[*byte], *at).unwrap();
            }
        }
        made.push((path, *time));
    }
    for (path, time) in made.iter().rev() {
        let when = rustix::fs::Timespec { tv_sec: (*time).into(), tv_nsec: 123_456_789 };
        let times = rustix::fs::Timestamps { last_access: when, last_modification: when };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_survives_all_ways(tree in tree()) {
        let w = World::new();
        let source = w.source();
        build(&source, &tree);
        let wanted = seen(&source);
        w.make("one", From::Directory(&source)).unwrap();
        let of = |name: &str| seen(&w.all.get(name).unwrap().tree());
        prop_assert_eq!(&of("one"), &wanted, "copied");
        let archive = w.archive("one");
        w.make("two", From::Stream(Box::new(&archive[..]))).unwrap();
        prop_assert_eq!(&of("two"), &wanted, "exported and unpacked");
        prop_assert_eq!(w.archive("two"), archive);
        let url = format!("file://{}", w.dir.path().join("remote").display());
        let remote = Remote::open(&Place { url, ..Place::default() }).unwrap();
        let pushed = w.all.push("one", None, &remote, false, &mut |_| {}).unwrap();
        prop_assert!(pushed.new && pushed.version == 1);
        let again = w.all.push("two", Some("one"), &remote, false, &mut |_| {}).unwrap();
        prop_assert!(!again.new && again.uploaded == 0, "the same tree is there");
        let wish = Wanted { theirs: "one", version: None, force: false };
        w.all.pull("three", &remote, &wish, &Options::default(), &mut |_| {}).unwrap();
        prop_assert_eq!(&of("three"), &wanted, "pushed and pulled");
    }
}
