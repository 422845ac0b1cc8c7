//! Between their messages and ours. No I/O.

use std::time::Duration;

use prost_types::Timestamp;
use ringfence_api::State;
use ringfence_api::codebases::{FilePermission, FileRule, PatternType as Kind};
use tonic::Status;

use super::{DIALECT, Handled, LABEL, OURS, wire};

/// Digits that end the name of a codebase: theirs need not be unique.
const SUFFIX: usize = 16;
/// Bytes of a name as we have it.
const MOST_NAME: usize = 64;

pub(super) fn timestamp(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000 * 1_000_000) as i32 }
}

pub(super) fn span(us: u64) -> prost_types::Duration {
    let (seconds, nanos) = ((us / 1_000_000) as i64, (us % 1_000_000 * 1000) as i32);
    prost_types::Duration { seconds, nanos }
}

/// What they call it where it has to be there.
pub(super) fn required(value: &str, field: &str) -> Handled<()> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is required")));
    }
    Ok(())
}

/// The end of a text, of at most so many bytes.
pub(super) fn tail(text: &str, most: usize) -> &str {
    let from = text.len().saturating_sub(most);
    (from..=text.len()).find_map(|at| text.get(at..)).unwrap_or_default()
}

/// Milliseconds; nothing where it is none.
pub(super) fn milliseconds(of: Option<prost_types::Duration>, what: &str) -> Handled<Option<u64>> {
    let Some(of) = of else { return Ok(None) };
    let duration = Duration::try_from(of)
        .map_err(|_| Status::invalid_argument(format!("{what}: not a time to wait")))?;
    let ms = duration.as_millis().min(u128::from(u64::MAX)) as u64;
    Ok((ms > 0).then_some(ms))
}

/// A rule of theirs. One without a permission grants nothing.
pub(super) fn rule(rule: &wire::PermissionRule) -> FileRule {
    use wire::{PatternType, Permission};
    let permission = match rule.permission() {
        Permission::Unspecified | Permission::None => FilePermission::None,
        Permission::View => FilePermission::View,
        Permission::Read => FilePermission::Read,
        Permission::Write => FilePermission::Write,
    };
    let kind = match rule.r#type() {
        PatternType::Unspecified | PatternType::Glob => Kind::Glob,
        PatternType::Directory => Kind::Directory,
        PatternType::File => Kind::File,
    };
    FileRule { pattern: rule.pattern.clone(), permission, priority: rule.priority, kind }
}

fn rule_of(rule: &FileRule) -> wire::PermissionRule {
    use wire::{PatternType, Permission};
    let permission = match rule.permission {
        FilePermission::None => Permission::None,
        FilePermission::View => Permission::View,
        FilePermission::Read => Permission::Read,
        FilePermission::Write => Permission::Write,
    };
    let kind = match rule.kind {
        Kind::Glob => PatternType::Glob,
        Kind::Directory => PatternType::Directory,
        Kind::File => PatternType::File,
    };
    wire::PermissionRule {
        pattern: rule.pattern.clone(),
        r#type: kind.into(),
        permission: permission.into(),
        priority: rule.priority,
    }
}

/// Whether it was made here.
pub(super) fn is_ours(sandbox: &ringfence_api::Sandbox) -> bool {
    sandbox.labels.get(LABEL).is_some_and(|label| label == DIALECT)
}

pub(super) fn sandbox(sandbox: &ringfence_api::Sandbox) -> wire::Sandbox {
    use wire::SandboxStatus;
    let status = match sandbox.state {
        State::Running | State::Idle | State::Frozen => SandboxStatus::Running,
        // It was made, and not started yet.
        State::Stopped if sandbox.reason == "created" => SandboxStatus::Pending,
        State::Creating => SandboxStatus::Pending,
        State::Stopped | State::Destroyed => SandboxStatus::Stopped,
        State::Failed => SandboxStatus::Error,
    };
    let remembered = |name: &str| sandbox.labels.get(&format!("{OURS}{name}")).cloned();
    let number = |name: &str| remembered(name).and_then(|n| n.parse().ok()).unwrap_or_default();
    let resources = wire::ResourceLimits {
        memory_bytes: number("memory-bytes"),
        cpu_quota: number("cpu-quota"),
        cpu_shares: number("cpu-shares"),
        pids_limit: number("pids-limit"),
    };
    let theirs = |name: &String| !name.starts_with(OURS) && name != LABEL;
    wire::Sandbox {
        id: sandbox.id.clone(),
        codebase_id: sandbox.codebase.clone().unwrap_or_default(),
        permissions: sandbox.rules.iter().map(rule_of).collect(),
        status: status.into(),
        labels: sandbox.labels.clone().into_iter().filter(|(name, _)| theirs(name)).collect(),
        created_at: Some(timestamp(sandbox.created_ms)),
        started_at: None,
        stopped_at: None,
        expires_at: sandbox.expires_ms.map(timestamp),
        runtime: number("runtime") as i32,
        image: remembered("image").unwrap_or_default(),
        resources: (resources != wire::ResourceLimits::default()).then_some(resources),
    }
}

pub(super) fn session(session: &ringfence_api::Session) -> wire::Session {
    let status = match session.state {
        ringfence_api::SessionState::Active => wire::SessionStatus::Active,
        ringfence_api::SessionState::Closed => wire::SessionStatus::Closed,
    };
    wire::Session {
        id: session.id.clone(),
        sandbox_id: session.sandbox.clone(),
        status: status.into(),
        shell: session.shell.clone(),
        created_at: Some(timestamp(session.created_ms)),
        closed_at: session.closed_ms.map(timestamp),
    }
}

pub(super) fn codebase(codebase: &ringfence_api::codebases::Codebase) -> wire::Codebase {
    wire::Codebase {
        id: codebase.id.clone(),
        name: name_of(&codebase.name),
        owner_id: codebase.owner.clone(),
        size: codebase.size as i64,
        file_count: codebase.files.min(i32::MAX as u64) as i32,
        created_at: Some(timestamp(codebase.created_ms.max(0) as u64)),
        updated_at: Some(timestamp(codebase.updated_ms.max(0) as u64)),
    }
}

/// A name of theirs as one of ours, which are of few characters and unique: others are written as `_` and
/// two digits, and random digits end it. A long one is cut: its id is what it is found by.
pub(super) fn name(name: &str, random: &str) -> Handled<String> {
    use std::fmt::Write as _;
    required(name, "name")?;
    let mut plain = String::from("c");
    for c in name.chars() {
        let mut piece = String::new();
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            if byte.is_ascii_alphanumeric() || byte == b'-' {
                piece.push(byte.into());
            } else {
                let _ = write!(piece, "_{byte:02x}");
            }
        }
        if plain.len() + piece.len() + 1 + SUFFIX > MOST_NAME {
            break;
        }
        plain.push_str(&piece);
    }
    let suffix = random.get(..SUFFIX).unwrap_or(random);
    Ok(format!("{plain}.{suffix}"))
}

/// The other way round; a name that was not made here is as it is.
fn name_of(ours: &str) -> String {
    let theirs = || {
        let (plain, suffix) = ours.strip_prefix('c')?.rsplit_once('.')?;
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        if suffix.len() != SUFFIX || !digits(suffix) {
            return None;
        }
        let mut bytes = Vec::new();
        let mut rest = plain;
        while let Some((before, after)) = rest.split_once('_') {
            bytes.extend(before.bytes());
            bytes.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
            rest = after.get(2..)?;
        }
        bytes.extend(rest.bytes());
        String::from_utf8(bytes).ok()
    };
    theirs().unwrap_or_else(|| ours.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let random = "0123456789abcdef0123";
        for theirs in ["my-project", "a b", "gr\u{fc}n", "under_score", ".hidden", "-x"] {
            let ours = name(theirs, random).unwrap();
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            assert!(ours.chars().all(plain) && ours.starts_with('c'), "{ours}");
            assert_eq!(name_of(&ours), theirs);
        }
        assert!(name("", random).is_err());
        let cut = |theirs: &str| name_of(&name(theirs, random).unwrap());
        assert_eq!(cut(&"x".repeat(60)), "x".repeat(46));
        assert_eq!(cut(&"\u{44f}".repeat(20)), "\u{44f}".repeat(7));
        assert_eq!(
            cut("my_agent_project_for_big_customer_2026_again"),
            "my_agent_project_for_big_customer_20"
        );
        for native in ["other", "c", "c.x", "co.0123456789abcdeg", "c_zz.0123456789abcdef"] {
            assert_eq!(name_of(native), native);
        }
    }

    #[test]
    fn ends_are_whole_characters() {
        assert_eq!(tail("abc", 5), "abc");
        assert_eq!(tail("abc", 2), "bc");
        assert_eq!(tail("a\u{e4}c", 2), "c");
        assert_eq!(tail("abc", 0), "");
    }

    #[test]
    fn times_go_both_ways() {
        assert_eq!(timestamp(1_500), Timestamp { seconds: 1, nanos: 500_000_000 });
        assert_eq!(milliseconds(Some(span(2_500_000)), "x").unwrap(), Some(2500));
        assert_eq!(milliseconds(Some(span(0)), "x").unwrap(), None);
        let before = prost_types::Duration { seconds: -1, nanos: 0 };
        assert!(milliseconds(Some(before), "x").is_err());
    }
}
