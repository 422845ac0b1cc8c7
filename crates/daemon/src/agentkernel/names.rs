//! What names, images and paths may look like, and what a path means here.

use super::fault::Fault;

/// Bytes of a name, and of an image's.
const MOST_NAME: usize = 63;
const MOST_IMAGE: usize = 256;

/// A sandbox's name, by their rules.
pub(super) fn sandbox(name: &str) -> Result<(), Fault> {
    let wrong = if name.is_empty() {
        "Sandbox name cannot be empty".to_owned()
    } else if name.len() > MOST_NAME {
        format!("Sandbox name too long (max {MOST_NAME} characters)")
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "Sandbox name must start with a letter or number".to_owned()
    } else if !name.ends_with(|c: char| c.is_ascii_alphanumeric()) {
        "Sandbox name must end with a letter or number".to_owned()
    } else if let Some(c) =
        name.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_'))
    {
        format!(
            "Sandbox name contains invalid character {c:?}. Only letters, numbers, hyphens, and underscores are allowed"
        )
    } else if ["--", "__", "-_", "_-"].iter().any(|two| name.contains(two)) {
        "Sandbox name cannot contain consecutive hyphens or underscores".to_owned()
    } else {
        return Ok(());
    };
    Err(Fault::invalid(wrong))
}

/// An image's name. Which one it is makes no difference: the system is the host's.
pub(super) fn image(name: &str) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::invalid("Docker image name cannot be empty"));
    }
    if name.len() > MOST_IMAGE {
        return Err(Fault::invalid(format!(
            "Docker image name too long (max {MOST_IMAGE} characters)"
        )));
    }
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':' | '@');
    match name.chars().find(|c| !plain(*c)) {
        Some(c) => {
            Err(Fault::invalid(format!("Docker image name contains invalid character {c:?}")))
        }
        None => Ok(()),
    }
}

/// What is not for the interface of files, by their rules: the segments that a path begins with.
const BLOCKED: [&[&str]; 7] = [
    &["proc"],
    &["sys"],
    &["dev"],
    &["etc", "passwd"],
    &["etc", "shadow"],
    &["etc", "sudoers"],
    &["root", ".ssh"],
];

/// Where a path of the interface of files is here.
pub(super) fn file(path: &str, workspace: &str) -> Result<String, Fault> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if BLOCKED.iter().any(|blocked| parts.starts_with(blocked)) {
        return Err(Fault::invalid(format!("Access to '/{}' is not allowed", parts.join("/"))));
    }
    place(path, workspace)
}

/// Names at the root that are the host's, or private ones of every sandbox.
const SYSTEM: [&str; 21] = [
    "bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "opt",
    "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var",
];

/// Where a path of theirs is here. Their sandboxes have a system of their own, in which anything can be
/// made anywhere; here what has no place in the system has it in the workspace: `/app/x` is `app/x` there.
pub(super) fn place(path: &str, workspace: &str) -> Result<String, Fault> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.is_empty() {
        return Ok(workspace.to_owned());
    }
    if parts.contains(&"..") {
        return Err(Fault::invalid("Path cannot contain parent directory references (..)"));
    }
    if path.contains('\0') {
        return Err(Fault::invalid("Path cannot contain null bytes"));
    }
    let whole = format!("/{}", parts.join("/"));
    let inside =
        |w: &str| whole.strip_prefix(w).is_some_and(|r| r.is_empty() || r.starts_with('/'));
    if inside(workspace) || parts.first().is_some_and(|first| SYSTEM.contains(first)) {
        return Ok(whole);
    }
    Ok(format!("{workspace}{whole}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_they_have_them() {
        for good in ["a", "my-sandbox", "test123", "My_Sandbox_1"] {
            assert!(sandbox(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "_a", "a_", "a--b", "a__b", "a-_b", "a b", "../x", "a;b", "ä"]
        {
            assert!(sandbox(bad).is_err(), "{bad}");
        }
        assert!(sandbox(&"a".repeat(64)).is_err());
        for good in ["alpine:3.20", "python:3.12-alpine", "ghcr.io/u/i@sha256:abc"] {
            assert!(image(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a;b", "$(x)", "a\n"] {
            assert!(image(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_lead_to_the_system_or_into_the_workspace() {
        let of = |path: &str| place(path, "/home/u/w").unwrap();
        assert_eq!(of("app/main.py"), "/home/u/w/app/main.py");
        assert_eq!(of("/app//main.py"), "/home/u/w/app/main.py");
        assert_eq!(of("/tmp/x"), "/tmp/x");
        assert_eq!(of("/etc/passwd"), "/etc/passwd");
        assert_eq!(of("/home/u/w/a"), "/home/u/w/a");
        assert_eq!(of("/"), "/home/u/w");
        for bad in ["../x", "app/../../x", "/tmp/../etc", "a\0b"] {
            assert!(place(bad, "/home/u/w").is_err(), "{bad}");
        }
        for blocked in ["/etc/passwd", "etc//shadow", "proc/1/environ", "/root/.ssh/id", "dev"] {
            assert!(file(blocked, "/w").is_err(), "{blocked}");
        }
        for fine in ["/etc/passwd-", "/etc/hosts", "/root/x", "app/proc/x", "device"] {
            assert_eq!(file(fine, "/w").unwrap(), place(fine, "/w").unwrap());
        }
    }
}
