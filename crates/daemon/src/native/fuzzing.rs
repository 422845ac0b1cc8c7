//! What the fuzzer calls (`fuzz/`): what stands behind the question mark, and bodies, as handlers read them.
//! Not in a release.

use axum::extract::Query;
use axum::http::Uri;
use ringfence_api::codebases::CreateCodebase;
use ringfence_api::layers::{Chosen, Fork, Undo};
use ringfence_api::{
    Attach, BatchCreate, BatchExec, CreateSandbox, CreateSession, ExecRequest, Extend, Follow,
    Kill, MoveFile, Search, SessionExec, Watch,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::extract::parsed;
use super::{codebases, files, layers, trees};

fn of<T: DeserializeOwned>(uri: &Uri) -> Option<T> {
    Query::<T>::try_from_uri(uri).ok().map(|Query(query)| query)
}

/// A query, of every handler that takes one.
pub fn queries(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(uri) = format!("/v1/x?{text}").parse::<Uri>() else { return };
    let _ = of::<Follow>(&uri);
    let _ = of::<Attach>(&uri);
    let _ = of::<Search>(&uri);
    let _ = of::<Watch>(&uri);
    let _ = of::<files::At>(&uri);
    let _ = of::<layers::At>(&uri);
    let _ = of::<codebases::At>(&uri);
    let _ = of::<trees::At>(&uri);
    if let Some(permissions) = of::<trees::Permissions>(&uri)
        && let Ok(mode) = permissions.mode()
    {
        assert!(mode <= 0o777);
    }
    let _ = trees::mode(text);
}

fn body<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(taken) = parsed::<T>(bytes) else { return };
    let written = serde_json::to_vec(&taken).unwrap_or_else(|e| panic!("{e}: {taken:?}"));
    let again = parsed::<T>(&written).unwrap_or_else(|e| panic!("{e}: {taken:?}"));
    assert_eq!(taken, again);
}

/// A body, of every handler that takes one: what is taken is written and taken alike.
pub fn bodies(bytes: &[u8]) {
    body::<CreateSandbox>(bytes);
    body::<ExecRequest>(bytes);
    body::<CreateSession>(bytes);
    body::<SessionExec>(bytes);
    body::<BatchCreate>(bytes);
    body::<BatchExec>(bytes);
    body::<Extend>(bytes);
    body::<Kill>(bytes);
    body::<MoveFile>(bytes);
    body::<Chosen>(bytes);
    body::<Fork>(bytes);
    body::<Undo>(bytes);
    body::<CreateCodebase>(bytes);
}

pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let seeds: &[&str] = match target {
        "queries" => &[
            "path=src%2Fmain.rs&offset=5&length=7&durable=true",
            "stdout_offset=1&stderr_offset=2",
            "path=.&recursive=true",
            "path=x&mode=644",
            "name=*.rs&content=TODO&limit=10",
            "offset=0&hangup=true",
            "snapshot=one&zstd=true&binary=false&create=true&owner=a&sealed=true",
        ],
        _ => &[
            r#"{"items": [{"sandbox": "box", "exec": {"argv": ["true"], "timeout_ms": 5.0}}], "concurrency": 2}"#,
            r#"{"items": [{"workspace": "/w", "layer": "kept"}]}"#,
            r#"{"seconds": 5e2}"#,
            r#"{"signal": 15}"#,
            r#"{"from": "a", "to": "b"}"#,
            r#"{"paths": ["a"], "dry_run": true, "theirs": true}"#,
            r#"{"name": "app", "directory": "/d", "exclude": ["*.o"], "sealed": true}"#,
            r#"{"shell": "bash", "environment": {"A": "1"}, "cwd": "/w"}"#,
        ],
    };
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}
