//! Workspaces that are a sandbox's own: made for it, named by its id, gone with it.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path};

use ringfence_api::CreateSandbox;

use crate::complain;
use crate::error::Error;

/// Links of one sandbox.
const MOST_LINKS: usize = 16;

/// Where the workspace of the sandbox `id` is.
pub(crate) fn path(root: &Path, id: &str) -> Result<String, Error> {
    let path = root.join(id);
    path.to_str().map(ToOwned::to_owned).ok_or_else(|| {
        Error::internal(format!("{}: its path is not utf-8, which workspaces need", root.display()))
    })
}

/// Makes it, and the directories that links lead to.
pub(crate) fn make(made_of: &CreateSandbox) -> Result<(), Error> {
    let workspace = Path::new(&made_of.workspace);
    let private = |path: &Path| {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| Error::internal(format!("cannot make {}: {e}", path.display())))
    };
    private(workspace)?;
    made_of.links.values().try_for_each(|target| private(&workspace.join(target)))
}

/// Nothing runs in it any more.
pub(crate) async fn remove(root: &Path, id: &str) {
    let path = root.join(id);
    if path.symlink_metadata().is_err() {
        return;
    }
    let removed = tokio::task::spawn_blocking(move || discard(&path)).await;
    if removed.is_err() {
        complain("a thread that removed a workspace ended");
    }
}

pub(crate) fn discard(path: &Path) {
    open_up(path);
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            complain(&format!("cannot remove {}: {e}", path.display()));
        }
        _ => {}
    }
}

/// A command may have closed its own directories.
fn open_up(directory: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(meta) = std::fs::symlink_metadata(directory) else { return };
    if !meta.is_dir() {
        return;
    }
    if meta.permissions().mode() & 0o700 != 0o700 {
        let _ = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700));
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// Removes what sandboxes left that nobody knows any more: their daemon was killed.
pub(crate) fn sweep(root: &Path, known: &HashSet<String>) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|n| n.starts_with("sb_") && !known.contains(n));
        if ours {
            discard(&entry.path());
        }
    }
}

/// Names directly below the root, to places inside of the workspace.
pub(crate) fn check(links: &BTreeMap<String, String>) -> Result<(), Error> {
    if links.len() > MOST_LINKS {
        return Err(Error::invalid(format!("links: at most {MOST_LINKS}")));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    for (name, target) in links {
        let below = name.strip_prefix('/').unwrap_or_default();
        let named = !below.is_empty() && !below.starts_with('.') && below.chars().all(plain);
        let inside = Path::new(target).components().all(|c| matches!(c, Component::Normal(_)));
        if !named || !inside || target.is_empty() || target.contains('\0') || target.len() > 256 {
            return Err(Error::invalid(format!(
                "links: {name:?} is not a name at the root, or {target:?} not a place inside of the workspace"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_from_the_root_into_the_workspace() {
        let of = |name: &str, target: &str| check(&[(name.into(), target.into())].into());
        assert!(of("/app", "app").is_ok());
        assert!(of("/app", "src/app").is_ok());
        for (name, target) in [
            ("app", "app"),
            ("/", "app"),
            ("/a/b", "app"),
            ("/..", "app"),
            ("/app", "/etc"),
            ("/app", "../x"),
            ("/app", "a/../../x"),
            ("/app", ""),
        ] {
            assert!(of(name, target).is_err(), "{name} {target}");
        }
    }

    #[test]
    fn only_what_nobody_knows_is_swept() {
        let root = tempfile::tempdir().unwrap();
        for name in ["sb_1", "sb_2", "other"] {
            std::fs::create_dir_all(root.path().join(name).join("a/b")).unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.path().join("sb_1/a/link")).unwrap();
        sweep(root.path(), &["sb_2".to_owned()].into());
        assert!(!root.path().join("sb_1").exists());
        assert!(root.path().join("sb_2/a/b").exists() && root.path().join("other").exists());
        assert!(Path::new("/etc/passwd").exists());
    }
}
