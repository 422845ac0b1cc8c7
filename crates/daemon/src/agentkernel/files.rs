//! Files of a sandbox, as it sees them.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ringfence_supervisor::{Command, Error, Kind, Part, Reply, When, Written};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::{Ask, Body, Handled, Path, names, success, unexpected};

#[derive(Debug, Deserialize)]
pub(super) struct Content {
    content: String,
    /// `utf8` or `base64`.
    #[serde(default)]
    encoding: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct All {
    files: BTreeMap<String, String>,
}

/// The sandbox's id, and the path as it is there and as it is said.
async fn at(ask: &Ask, name: &str, path: &str) -> Handled<(String, String, String)> {
    let sandbox = ask.find_running(name).await?;
    let there = names::file(path, &sandbox.workspace)?;
    Ok((sandbox.id, there, format!("/{}", path.trim_start_matches('/'))))
}

pub(super) async fn read(
    ask: Ask,
    Path((name, path)): Path<(String, String)>,
) -> Handled<Json<Value>> {
    let (sandbox, path, said) = at(&ask, &name, &path).await?;
    let id = sandbox.clone();
    let read = Command::ReadFile { sandbox, path, part: Part::WHOLE, when: When::default() };
    let bytes = match ask.run(read).await {
        Ok(Reply::Read(read)) => read.bytes(),
        Ok(other) => return Err(unexpected(&other)),
        // Whatever the reason is.
        Err(e) => return Err(Fault::new(StatusCode::NOT_FOUND, e.message)),
    };
    ask.dialect.audit.note(&id, "file_read", json!({ "sandbox": name, "path": said }));
    let size = bytes.len();
    let (content, encoding) = match String::from_utf8(bytes) {
        Ok(text) => (text, "utf8"),
        Err(e) => (STANDARD.encode(e.as_bytes()), "base64"),
    };
    Ok(success(json!({ "content": content, "encoding": encoding, "size": size })))
}

/// Writes it; the directories that are missing are made.
async fn put(ask: &Ask, sandbox: &str, path: &str, bytes: Vec<u8>) -> Result<(), Error> {
    let write = |bytes| Command::WriteFile {
        sandbox: sandbox.into(),
        path: path.into(),
        bytes: Written::Whole(bytes),
        durable: false,
        when: When::default(),
    };
    match ask.run(write(bytes.clone())).await {
        Err(e) if e.kind == Kind::NotFound => {}
        other => return other.map(drop),
    }
    let mut above: Vec<&str> = path.match_indices('/').map(|(i, _)| &path[..i]).skip(1).collect();
    above.dedup();
    for directory in above {
        let make = Command::MakeDirectory { sandbox: sandbox.into(), path: directory.into() };
        // Those that are there, or are the system's: the write says what is wrong.
        let _ = ask.run(make).await;
    }
    ask.run(write(bytes)).await.map(drop)
}

pub(super) async fn write(
    ask: Ask,
    Path((name, path)): Path<(String, String)>,
    Body(Content { content, encoding }): Body<Content>,
) -> Handled<Json<Value>> {
    let (sandbox, path, said) = at(&ask, &name, &path).await?;
    let bytes = match encoding.as_deref() {
        Some("base64") => {
            STANDARD.decode(content).map_err(|e| Fault::invalid(format!("Invalid base64: {e}")))?
        }
        None | Some("utf8" | "utf-8") => content.into_bytes(),
        Some(other) => return Err(Fault::invalid(format!("Invalid encoding '{other}'"))),
    };
    let size = bytes.len();
    put(&ask, &sandbox, &path, bytes).await?;
    let of = json!({ "sandbox": name, "path": said });
    ask.dialect.audit.note(&sandbox, "file_written", of);
    Ok(success(format!("Wrote {size} bytes to {said}")))
}

pub(super) async fn remove(
    ask: Ask,
    Path((name, path)): Path<(String, String)>,
) -> Handled<Json<Value>> {
    let (sandbox, path, said) = at(&ask, &name, &path).await?;
    ask.run(Command::RemoveFile { sandbox, path }).await?;
    Ok(success(format!("Deleted {said}")))
}

pub(super) async fn write_all(
    ask: Ask,
    Path(name): Path<String>,
    Body(All { files }): Body<All>,
) -> Handled<Json<Value>> {
    if files.is_empty() {
        return Err(Fault::invalid("files map is empty"));
    }
    let sandbox = ask.find_running(&name).await?;
    let mut placed = Vec::with_capacity(files.len());
    // None is written where one cannot be.
    for (path, content) in files {
        let there = names::file(&path, &sandbox.workspace)?;
        placed.push((path, there, content));
    }
    let written = placed.len();
    for (path, there, content) in placed {
        put(&ask, &sandbox.id, &there, content.into_bytes()).await.map_err(|e| {
            let mut fault = Fault::from(e);
            fault.message = format!("Failed to write {path}: {}", fault.message);
            fault
        })?;
        let said = format!("/{}", path.trim_start_matches('/'));
        let of = json!({ "sandbox": name, "path": said });
        ask.dialect.audit.note(&sandbox.id, "file_written", of);
    }
    Ok(success(json!({ "written": written })))
}
