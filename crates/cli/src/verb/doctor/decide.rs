//! From trials and facts to a diagnosis: which layer of the host refuses, and the one command that
//! mends it. Pure, so that hosts that are not at hand can be tested by their recorded answers.

use super::facts::Facts;
use super::trials::{Layer, Trial};

/// Why something does not work here.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    pub layer: Layer,
    pub problem: String,
    /// To be typed (or pasted) as it is; empty where no command helps.
    pub command: String,
    pub note: String,
}

/// What is left to confine with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Best {
    /// Namespaces, Landlock and seccomp.
    Full,
    /// Namespaces and seccomp.
    WithoutLandlock,
    /// Landlock and seccomp.
    Landlock,
    Nothing,
}

impl Best {
    pub fn of(trials: &[Trial]) -> Self {
        let works = |layer| trials.iter().any(|t| t.layer == layer && t.failed.is_none());
        let namespaces = [
            Layer::UserNamespace,
            Layer::MountNamespace,
            Layer::ProcMount,
            Layer::NetworkNamespace,
        ];
        match (namespaces.into_iter().all(works), works(Layer::Landlock), works(Layer::Seccomp)) {
            (true, true, true) => Self::Full,
            (true, false, true) => Self::WithoutLandlock,
            (false, true, true) => Self::Landlock,
            (_, _, false) | (false, false, _) => Self::Nothing,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Full => "namespaces + landlock + seccomp",
            Self::WithoutLandlock => "namespaces + seccomp, without landlock",
            Self::Landlock => "landlock + seccomp, without namespaces",
            Self::Nothing => "none: `run` refuses",
        }
    }

    /// What no longer holds, compared with the full rung.
    pub fn losses(self) -> &'static [&'static str] {
        match self {
            Self::Full => &[],
            Self::WithoutLandlock => &["mounts hold the file policy alone, without a second layer"],
            Self::Landlock => &[
                "nothing can be hidden or protected inside a writable directory: a git workspace with the default profile is refused, `-t read-only` works where nothing in it is to be hidden",
                "hidden files answer `permission denied` and their names stay visible",
                "processes of the host are visible, though out of reach",
                "no sockets at all instead of a private loopback",
                "a root caller keeps host id 0, without capabilities",
            ],
            Self::Nothing => &["no command is run: ringfence never runs one unconfined"],
        }
    }
}

/// What stands in the way. Later layers need earlier ones, so only the first namespace that fails is
/// explained.
pub fn diagnose(facts: &Facts, trials: &[Trial]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut namespaces_explained = false;
    for trial in trials {
        let Some((step, errno)) = &trial.failed else { continue };
        let of_namespaces = !matches!(trial.layer, Layer::Landlock | Layer::Seccomp);
        if of_namespaces && std::mem::replace(&mut namespaces_explained, true) {
            continue;
        }
        let (problem, command, note) = match trial.layer {
            Layer::UserNamespace => user_namespace(facts, step, *errno),
            Layer::MountNamespace | Layer::NetworkNamespace => withheld(facts, step, *errno),
            Layer::ProcMount => proc_mount(facts, step, *errno),
            Layer::Landlock => landlock(),
            Layer::Seccomp => (
                "this kernel has no system call filters, or this processor has no table here"
                    .into(),
                String::new(),
                "needs CONFIG_SECCOMP_FILTER on x86_64 or aarch64".into(),
            ),
        };
        findings.push(Finding { layer: trial.layer, problem, command, note });
    }
    findings
}

type Words = (String, String, String);

fn user_namespace(facts: &Facts, step: &str, errno: i32) -> Words {
    if !facts.has_user_namespaces || errno == libc::ENOSYS || errno == libc::EINVAL {
        return (
            "this kernel has no user namespaces".into(),
            String::new(),
            "needs a kernel with CONFIG_USER_NS=y".into(),
        );
    }
    if facts.max_user_namespaces == Some(0) {
        return (
            "user.max_user_namespaces is 0".into(),
            sysctl("user.max_user_namespaces=16384"),
            if facts.nested {
                "in a user namespace of its own: it must be set by whoever made that".into()
            } else {
                persist("user.max_user_namespaces=16384")
            },
        );
    }
    if facts.unprivileged_userns_clone == Some(0) && facts.uid != 0 {
        return (
            "kernel.unprivileged_userns_clone is 0".into(),
            sysctl("kernel.unprivileged_userns_clone=1"),
            persist("kernel.unprivileged_userns_clone=1"),
        );
    }
    if errno == libc::ENOSPC || errno == libc::EUSERS {
        return (
            "the limit of user namespaces, or of their nesting (32), is reached".into(),
            sysctl("user.max_user_namespaces=16384"),
            String::new(),
        );
    }
    if facts.apparmor_restrict == Some(1) && step != "unshare" {
        return apparmor(facts);
    }
    if facts.filtered {
        return filter(facts);
    }
    if facts.apparmor_restrict == Some(1) {
        return apparmor(facts);
    }
    (
        format!("user namespaces are refused ({step}: error {errno})"),
        String::new(),
        "a chroot around this process, or a security module, does that".into(),
    )
}

/// A user namespace could be made, but what it should allow is refused.
fn withheld(facts: &Facts, step: &str, errno: i32) -> Words {
    if facts.apparmor_restrict == Some(1) {
        return apparmor(facts);
    }
    if facts.filtered {
        return filter(facts);
    }
    (
        format!("user namespaces can be made, but {step} is refused in them (error {errno})"),
        String::new(),
        "a security module (SELinux, AppArmor, a BPF LSM) does that".into(),
    )
}

fn proc_mount(facts: &Facts, step: &str, errno: i32) -> Words {
    if !facts.proc_covered {
        return withheld(facts, step, errno);
    }
    let flag = match facts.container.as_deref() {
        Some("podman") => "--security-opt unmask=ALL",
        _ => "--security-opt systempaths=unconfined",
    };
    let mut words = container_flags(facts, flag);
    words.0 = "parts of /proc are covered in this container, so a fresh /proc is refused".into();
    words
}

fn filter(facts: &Facts) -> Words {
    // The outer filter is of little use once ringfence puts a tighter one around the command.
    let mut words = container_flags(facts, "--security-opt seccomp=unconfined");
    words.0 = "a system call filter around this process refuses namespaces, as containers have by default"
        .into();
    words
}

fn container_flags(facts: &Facts, flag: &str) -> Words {
    let engine = match facts.container.as_deref() {
        Some("podman") => "podman",
        Some("kubernetes") => {
            return (
                String::new(),
                String::new(),
                "in the pod's securityContext: seccompProfile.type Unconfined, procMount Unmasked (with hostUsers: false)".into(),
            );
        }
        _ => "docker",
    };
    (
        String::new(),
        format!("{engine} run {flag} IMAGE COMMAND"),
        "start the container so; ringfence's own filter is tighter for what runs inside".into(),
    )
}

fn apparmor(facts: &Facts) -> Words {
    let binary = &facts.binary;
    let profile = format!(
        "abi <abi/4.0>,\ninclude <tunables/global>\n\nprofile ringfence \"{binary}\" flags=(unconfined) {{\n  userns,\n}}"
    );
    (
        "AppArmor withholds capabilities in user namespaces from programs without a profile (kernel.apparmor_restrict_unprivileged_userns=1)".into(),
        format!(
            "sudo tee /etc/apparmor.d/ringfence > /dev/null <<'EOF' && sudo apparmor_parser -r /etc/apparmor.d/ringfence\n{profile}\nEOF"
        ),
        format!("the profile is for {binary} only; other programs stay restricted"),
    )
}

fn landlock() -> Words {
    (
        "this kernel has no landlock, or it is not switched on".into(),
        "sudo grubby --update-kernel=ALL --args=lsm=landlock,lockdown,yama,integrity,apparmor,bpf".into(),
        "needs Linux 5.13 with CONFIG_SECURITY_LANDLOCK=y and `landlock` in the boot parameter `lsm=` (without grubby: in GRUB_CMDLINE_LINUX of /etc/default/grub, then update-grub)".into(),
    )
}

fn sysctl(setting: &str) -> String {
    format!("sudo sysctl -w {setting}")
}

fn persist(setting: &str) -> String {
    format!("to keep it after a reboot: echo {setting} | sudo tee /etc/sysctl.d/60-ringfence.conf")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Facts {
        Facts {
            uid: 1000,
            max_user_namespaces: Some(96365),
            has_user_namespaces: true,
            binary: "/usr/local/bin/ringfence".into(),
            ..Facts::default()
        }
    }

    /// Every layer works but these.
    fn trials(failed: &[(Layer, &str, i32)]) -> Vec<Trial> {
        Layer::ALL
            .into_iter()
            .map(|layer| Trial {
                layer,
                failed: failed
                    .iter()
                    .find(|(l, ..)| *l == layer)
                    .map(|(_, step, errno)| ((*step).to_owned(), *errno)),
            })
            .collect()
    }

    fn no_namespaces(step: &str, errno: i32) -> Vec<Trial> {
        let layers = [
            Layer::UserNamespace,
            Layer::MountNamespace,
            Layer::ProcMount,
            Layer::NetworkNamespace,
        ];
        trials(&layers.map(|l| (l, step, errno)))
    }

    fn only(facts: &Facts, trials: &[Trial]) -> Finding {
        let mut found = diagnose(facts, trials);
        assert_eq!(found.len(), 1, "one cause, one finding: {found:#?}");
        found.remove(0)
    }

    #[test]
    fn a_host_that_has_everything_has_no_finding() {
        assert_eq!(diagnose(&host(), &trials(&[])), []);
        assert_eq!(Best::of(&trials(&[])), Best::Full);
    }

    #[test]
    fn a_limit_of_zero_is_mended_by_sysctl() {
        let facts = Facts { max_user_namespaces: Some(0), ..host() };
        let t = no_namespaces("unshare", libc::ENOSPC);
        assert_eq!(only(&facts, &t).command, "sudo sysctl -w user.max_user_namespaces=16384");
        assert_eq!(Best::of(&t), Best::Landlock);
    }

    #[test]
    fn debians_switch_is_mended_by_sysctl() {
        let facts = Facts { unprivileged_userns_clone: Some(0), ..host() };
        let found = only(&facts, &no_namespaces("unshare", libc::EPERM));
        assert_eq!(found.command, "sudo sysctl -w kernel.unprivileged_userns_clone=1");
    }

    #[test]
    fn ubuntus_restriction_gets_a_profile_for_this_binary_only() {
        let facts = Facts { apparmor_restrict: Some(1), ..host() };
        // The namespace is made; the first thing that needs a capability in it is refused.
        for t in [
            no_namespaces("write uid_map", libc::EPERM),
            trials(&[(Layer::MountNamespace, "make mounts private", libc::EACCES)]),
        ] {
            let found = only(&facts, &t);
            assert!(found.command.contains("profile ringfence \"/usr/local/bin/ringfence\""));
            assert!(found.command.contains("apparmor_parser -r /etc/apparmor.d/ringfence"));
            assert!(found.command.contains("userns,"));
        }
    }

    #[test]
    fn a_containers_filter_is_told_from_a_sysctl() {
        let facts = Facts { filtered: true, container: Some("docker".into()), uid: 0, ..host() };
        let found = only(&facts, &no_namespaces("unshare", libc::EPERM));
        assert!(found.problem.contains("system call filter"));
        assert_eq!(found.command, "docker run --security-opt seccomp=unconfined IMAGE COMMAND");
    }

    #[test]
    fn a_masked_proc_is_told_from_a_filter() {
        let t = trials(&[(Layer::ProcMount, "mount proc", libc::EPERM)]);
        let docker = Facts {
            filtered: true,
            proc_covered: true,
            container: Some("docker".into()),
            ..host()
        };
        assert!(only(&docker, &t).command.contains("systempaths=unconfined"));
        let podman = Facts { container: Some("podman".into()), ..docker };
        assert!(only(&podman, &t).command.starts_with("podman run --security-opt unmask=ALL"));
        assert_eq!(Best::of(&t), Best::Landlock);
    }

    #[test]
    fn a_kernel_without_the_feature_is_named() {
        let facts = Facts { has_user_namespaces: false, ..host() };
        let found = only(&facts, &no_namespaces("unshare", libc::EINVAL));
        assert!(found.command.is_empty() && found.note.contains("CONFIG_USER_NS"));
        let t = trials(&[(Layer::Landlock, "ask for its version", libc::ENOSYS)]);
        assert!(only(&host(), &t).note.contains("CONFIG_SECURITY_LANDLOCK"));
        assert_eq!(Best::of(&t), Best::WithoutLandlock);
    }

    #[test]
    fn without_a_filter_or_without_both_others_nothing_is_left() {
        assert_eq!(Best::of(&trials(&[(Layer::Seccomp, "install", libc::EINVAL)])), Best::Nothing);
        let mut t = no_namespaces("unshare", libc::EPERM);
        t[4].failed = Some(("ask for its version".into(), libc::ENOSYS));
        assert_eq!(Best::of(&t), Best::Nothing);
        assert_eq!(diagnose(&host(), &t).len(), 2);
    }
}
