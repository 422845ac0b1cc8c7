//! What the fuzzer calls (`fuzz/`): what the spawner is told, what the interface is asked, archives that are
//! unpacked, output that is followed; with the laws that hold for what is taken. A broken law panics.
//! Not in a release.

use std::fmt::Debug;
use std::sync::Arc;

use ringfence_api::{CreateSandbox, ExecRequest, Search, SessionExec};
use ringfence_layers::pack::tar::Reader;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::absolute;
use crate::log::{Follower, Log};
use crate::spawner::{Order, Word, policy_of};
use crate::{supervisor, tended, trees};

/// What is taken is written and read alike.
fn read<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) -> Option<T> {
    let taken: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_value(&taken).unwrap_or_else(|e| panic!("{e}: {taken:?}"));
    let again: T =
        serde_json::from_value(written.clone()).unwrap_or_else(|e| panic!("{e}: {written}"));
    assert_eq!(format!("{taken:?}"), format!("{again:?}"));
    Some(taken)
}

/// A message between daemon and spawner.
pub fn spawner(bytes: &[u8]) {
    if let Some(Order::Make { made_of, .. }) = read::<Order>(bytes) {
        let _ = policy_of(&made_of);
    }
    let _ = read::<Word>(bytes);
}

/// A body of the interface, up to what looks at the host.
pub fn requests(bytes: &[u8]) {
    if let Some(made_of) = read::<CreateSandbox>(bytes)
        && supervisor::check(&made_of).is_ok()
    {
        assert!(tended::check(&made_of).is_ok() && policy_of(&made_of).is_ok());
        assert!(made_of.name.is_none_or(|name| !name.is_empty() && !name.contains('/')));
    }
    if let Some(request) = read::<ExecRequest>(bytes)
        && let Ok(argv) = supervisor::argv(&request)
    {
        assert!(argv.first().is_some_and(|program| !program.is_empty()));
    }
    let _ = read::<SessionExec>(bytes);
    if let Some(Search { name: Some(name), .. }) = read::<Search>(bytes) {
        let _ = trees::glob(&name);
    }
}

/// An archive for a sandbox, and its bytes as a path of a request.
pub fn unpack(bytes: &[u8]) {
    let mut archive = Reader::new(bytes);
    while let Ok(Some(member)) = archive.next_member() {
        if let Ok(Some(below)) = trees::below(&member) {
            assert!(!below.starts_with('/') && !below.contains('\0'), "{below}");
            let plain = |part: &str| !matches!(part, "" | "." | "..");
            assert!(below.split('/').all(plain), "{below}");
        }
        let mut content = [0; 4096];
        while matches!(archive.content(&mut content), Ok(n) if n > 0) {}
    }
    if let Ok(path) = std::str::from_utf8(bytes)
        && let Ok(path) = absolute(path, "/workspace")
    {
        assert!(path.starts_with('/') && !path.contains('\0'));
    }
}

/// Pieces are written and followed from any offset: no byte comes twice, none is missing without being
/// counted, and none that a follower has not read is dropped.
pub fn offsets(steps: &[u8]) {
    let log = Arc::new(Log::new(64));
    let mut written: Vec<u8> = Vec::new();
    let mut follower: Option<(Follower, u64)> = None;
    for (n, step) in steps.chunks_exact(2).enumerate() {
        match step[0] % 4 {
            0 | 1 => {
                let room = crate::log::room(&log);
                let bytes: Vec<u8> = (0..step[1]).map(|m| m ^ n as u8).take(room).collect();
                written.extend(&bytes);
                log.push(&bytes);
            }
            2 => {
                drop(follower.take());
                let from = u64::from(step[1]) * 3;
                follower = Some((Follower::new(&log, from), from));
            }
            _ => {
                let Some((reader, at)) = &mut follower else { continue };
                let Some(piece) = reader.try_next() else { continue };
                assert_eq!(piece.offset, *at + piece.lost);
                let begin = piece.offset as usize;
                let end = begin + piece.bytes.len();
                assert_eq!(written.get(begin..end), Some(&piece.bytes[..]));
                *at = end as u64;
            }
        }
        assert_eq!(log.len(), written.len() as u64);
    }
}

pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let made_of = r#"{"name": "box", "labels": {"a": "b"}, "workspace": "/w", "profiles": ["agent-safe"], "rules": [{"pattern": "**/*.key", "permission": "none", "priority": 3, "type": "glob"}], "layer": true, "links": {"/app": "src"}, "policy": {"network": {"allow": ["example.com"]}, "limits": {"timeout": "5s"}}, "ttl_seconds": 5, "persistent": true}"#;
    let seeds: &[&str] = match target {
        "spawner" => &[
            r#"{"Kill": {"number": 1}}"#,
            r#"{"Ended": {"number": 1, "reason": "oom", "held": ["a"]}}"#,
            r#"{"Made": {"number": 1, "made": {"environment": {"A": "1"}, "cwd": "/w", "timeout_ms": null, "degraded": []}}}"#,
        ],
        "requests" => &[
            made_of,
            r#"{"argv": ["make", "test"], "environment": {"A": "1"}, "cwd": "/w", "stdin": "aGk=", "stdin_base64": true, "timeout_ms": 5, "background": true, "terminal": {"rows": 24, "columns": 80}}"#,
            r#"{"shell": "make"}"#,
            r#"{"command": "cd src", "timeout_ms": 5}"#,
            r#"{"path": "src", "name": "**/{a,b}[0-9]*.rs", "content": "x", "limit": 5}"#,
        ],
        _ => &["src/main.rs", "\u{0}\u{9}\u{2}\u{0}\u{3}\u{0}\u{1}\u{50}\u{3}\u{0}"],
    };
    let mut seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    if target == "spawner" {
        let order = format!(
            r#"{{"Make": {{"number": 1, "made_of": {made_of}, "hidden": ["/h"], "tended": null}}}}"#
        );
        seeds.push(order.into_bytes());
    }
    seeds
}
