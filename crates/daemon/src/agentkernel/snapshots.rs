//! Snapshots of a sandbox's files, and sandboxes made from them.

use axum::Json;
use axum::http::StatusCode;
use ringfence_supervisor::snapshots::{Ask as Wish, Snapshot};
use ringfence_supervisor::{Command, Kind, Reply, random};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::{Ask, BACKEND, Body, DIALECT, Handled, LABEL, Path, Raw, names, sandboxes, success};
use super::{OURS, unexpected};
use crate::stamp::rfc3339;

/// Digits that end a name that nobody chose, and bytes of what is before them.
const DIGITS: usize = 8;
const MOST_BEFORE: usize = 54;

fn is_ours(snapshot: &Snapshot) -> bool {
    snapshot.made_of.labels.get(LABEL).is_some_and(|label| label == DIALECT)
}

fn absent() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "Snapshot not found")
}

fn described(snapshot: &Snapshot) -> Value {
    let labels = &snapshot.made_of.labels;
    let mut described = json!({
        "name": snapshot.name,
        "sandbox": snapshot.sandbox,
        "image_tag": format!("agentkernel-snap:{}", snapshot.name),
        "backend": BACKEND,
        "created_at": rfc3339(snapshot.created_ms),
    });
    if let Some(described) = described.as_object_mut() {
        described.extend(sandboxes::resources(labels));
        if let Some(image) = labels.get(&format!("{OURS}image")) {
            described.insert("base_image".into(), image.clone().into());
        }
    }
    described
}

impl Ask {
    async fn snapshots(&self, wish: Wish) -> Handled<Vec<Snapshot>> {
        match self.run(Command::Snapshots(wish)).await {
            Ok(Reply::Snapshots(all)) => Ok(all),
            Ok(other) => Err(unexpected(&other)),
            Err(e) if e.kind == Kind::NotFound => Err(absent()),
            Err(e) => Err(e.into()),
        }
    }

    /// One of a sandbox that was made here.
    async fn snapshot(&self, name: &str) -> Handled<Snapshot> {
        names::sandbox(name)?;
        let found = self.snapshots(Wish::Get(name.to_owned())).await?;
        found.into_iter().find(is_ours).ok_or_else(absent)
    }
}

pub(super) async fn list(ask: Ask) -> Handled<Json<Value>> {
    let all = ask.snapshots(Wish::List).await?;
    Ok(success(all.iter().filter(|s| is_ours(s)).map(described).collect::<Vec<_>>()))
}

#[derive(Debug, Deserialize)]
pub(super) struct Take {
    sandbox: String,
    #[serde(default)]
    name: Option<String>,
}

/// Their clients need not name it.
fn invented(sandbox: &str) -> Handled<String> {
    let random = random()?;
    let before: String = sandbox.chars().take(MOST_BEFORE).collect();
    let before = before.trim_end_matches(['-', '_']);
    Ok(format!("{before}-{}", random.get(..DIGITS).unwrap_or(&random)))
}

pub(super) async fn take(ask: Ask, Body(take): Body<Take>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&take.sandbox).await?;
    let name = match take.name {
        Some(name) => name,
        None => invented(&take.sandbox)?,
    };
    names::sandbox(&name)?;
    let taken = ask.snapshots(Wish::Take { sandbox: sandbox.id, name }).await?;
    let taken = taken.first().ok_or_else(absent)?;
    Ok(success(described(taken)))
}

pub(super) async fn get(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    Ok(success(described(&ask.snapshot(&name).await?)))
}

pub(super) async fn forget(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let name = ask.snapshot(&name).await?.name;
    match ask.run(Command::Snapshots(Wish::Forget(name))).await {
        Ok(_) => Ok(success("Snapshot deleted")),
        Err(e) if e.kind == Kind::NotFound => Err(absent()),
        Err(e) => Err(e.into()),
    }
}

#[derive(Debug, Default, Deserialize)]
struct Restore {
    #[serde(default)]
    as_name: Option<String>,
}

/// The body may be missing. What is made is not started.
pub(super) async fn restore(
    ask: Ask,
    Path(name): Path<String>,
    Raw(body): Raw,
) -> Handled<Json<Value>> {
    let Restore { as_name } = if body.is_empty() {
        Restore::default()
    } else {
        serde_json::from_slice(&body).map_err(|e| Fault::invalid(format!("Invalid JSON: {e}")))?
    };
    let snapshot = ask.snapshot(&name).await?;
    let name = as_name.unwrap_or_else(|| format!("{}-restored", snapshot.sandbox));
    names::sandbox(&name)?;
    let began = std::time::Instant::now();
    let wish = Wish::Restore { snapshot: snapshot.name, name };
    match ask.run(Command::Snapshots(wish)).await {
        Ok(Reply::Sandbox(sandbox)) => {
            sandboxes::made(&ask, &sandbox, began.elapsed());
            Ok(success(sandboxes::described(&sandbox)))
        }
        Ok(other) => Err(unexpected(&other)),
        Err(e) if e.kind == Kind::NotFound => Err(absent()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_chose_are_names() {
        for sandbox in ["a".to_owned(), "x".repeat(63), format!("{}-{}", "y".repeat(53), "z")] {
            let name = invented(&sandbox).unwrap();
            assert!(names::sandbox(&name).is_ok(), "{name}");
        }
    }
}
