//! What the host says of itself. Only explains what the trials found; never decides whether a layer
//! works.

use std::path::Path;

/// Settings that explain a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Facts {
    pub kernel: String,
    pub uid: u32,
    /// `user.max_user_namespaces`.
    pub max_user_namespaces: Option<u64>,
    /// `kernel.unprivileged_userns_clone` (Debian's older kernels, Arch's hardened one).
    pub unprivileged_userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu).
    pub apparmor_restrict: Option<u64>,
    /// A seccomp filter lies around this very process.
    pub filtered: bool,
    /// `docker`, `podman`, ..., where this is known to be a container.
    pub container: Option<String>,
    /// In a user namespace already.
    pub nested: bool,
    /// Parts of /proc are covered by other mounts, so that a fresh one is refused.
    pub proc_covered: bool,
    /// The kernel has user namespaces at all.
    pub has_user_namespaces: bool,
    /// Path of this program.
    pub binary: String,
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &str) -> Option<u64> {
    text(path).trim().parse().ok()
}

impl Facts {
    pub fn read(binary: &Path) -> Self {
        Self {
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            uid: rustix::process::geteuid().as_raw(),
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restrict: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            filtered: is_filtered(&text("/proc/self/status")),
            container: container(),
            nested: is_nested(&text("/proc/self/uid_map")),
            proc_covered: is_covered(&text("/proc/self/mountinfo")),
            has_user_namespaces: Path::new("/proc/self/ns/user").exists(),
            binary: binary.display().to_string(),
        }
    }
}

fn container() -> Option<String> {
    if Path::new("/.dockerenv").exists() {
        return Some("docker".into());
    }
    if Path::new("/run/.containerenv").exists() {
        return Some("podman".into());
    }
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return Some("kubernetes".into());
    }
    let said = text("/run/systemd/container");
    let said = said.trim();
    (!said.is_empty()).then(|| said.to_owned())
}

fn is_filtered(status: &str) -> bool {
    status.lines().any(|l| l.strip_prefix("Seccomp:").is_some_and(|v| v.trim() == "2"))
}

fn is_nested(uid_map: &str) -> bool {
    !uid_map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// A mount below /proc, other than the ones that are usual on hosts and are not in the kernel's way.
fn is_covered(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let point = line.split(' ').nth(4).unwrap_or_default();
        point.starts_with("/proc/") && point != "/proc/sys/fs/binfmt_misc"
    })
}

#[cfg(test)]
mod tests {
    use super::{is_covered, is_filtered, is_nested};

    #[test]
    fn filters_are_seen() {
        assert!(is_filtered("Name:\tx\nNoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!is_filtered("Seccomp:\t0\nSeccomp_filters:\t0\n"));
    }

    #[test]
    fn user_namespaces_are_seen() {
        assert!(!is_nested("         0          0 4294967295\n"));
        assert!(is_nested("         0       1000          1\n"));
    }

    #[test]
    fn covered_parts_of_proc_are_seen() {
        let host = "22 28 0:20 / /proc rw,nosuid - proc proc rw\n\
                    40 22 0:35 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n";
        assert!(!is_covered(host));
        // As docker mounts it.
        let docker = "531 525 0:59 / /proc rw,nosuid - proc proc rw\n\
                      571 531 0:59 /sys /proc/sys ro,nosuid - proc proc rw\n\
                      573 531 0:64 / /proc/acpi ro,relatime - tmpfs tmpfs ro\n";
        assert!(is_covered(docker));
    }
}
