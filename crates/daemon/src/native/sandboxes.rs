//! Sandboxes: from the wire to a command and back.

use axum::Json;
use axum::http::StatusCode;
use ringfence_api::{CreateSandbox, Extend, Sandbox, SandboxLimits, Sandboxes};
use ringfence_supervisor::{Command, Reply};

use super::{Ask, Body, Handled, Path, unexpected};

fn one(reply: Reply) -> Handled<Json<Sandbox>> {
    match reply {
        Reply::Sandbox(sandbox) => Ok(Json(*sandbox)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn create(
    ask: Ask,
    Body(made_of): Body<CreateSandbox>,
) -> Handled<(StatusCode, Json<Sandbox>)> {
    let key = ask.key.clone();
    let made = ask.run(Command::Create { made_of: Box::new(made_of), key }).await?;
    Ok((StatusCode::CREATED, one(made)?))
}

pub(crate) async fn list(ask: Ask) -> Handled<Json<Sandboxes>> {
    match ask.run(Command::List).await? {
        Reply::Sandboxes(sandboxes) => Ok(Json(Sandboxes { sandboxes })),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn get(ask: Ask, Path(id): Path<String>) -> Handled<Json<Sandbox>> {
    one(ask.run(Command::Get(id)).await?)
}

pub(crate) async fn delete(ask: Ask, Path(id): Path<String>) -> Handled<StatusCode> {
    ask.run(Command::Delete(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn start(ask: Ask, Path(id): Path<String>) -> Handled<Json<Sandbox>> {
    one(ask.run(Command::Start(id)).await?)
}

pub(crate) async fn stop(ask: Ask, Path(id): Path<String>) -> Handled<Json<Sandbox>> {
    one(ask.run(Command::Stop(id)).await?)
}

pub(crate) async fn freeze(ask: Ask, Path(id): Path<String>) -> Handled<Json<Sandbox>> {
    one(ask.run(Command::Freeze(id)).await?)
}

pub(crate) async fn extend(
    ask: Ask,
    Path(id): Path<String>,
    Body(Extend { seconds }): Body<Extend>,
) -> Handled<Json<Sandbox>> {
    one(ask.run(Command::Extend { sandbox: id, seconds }).await?)
}

pub(crate) async fn limit(
    ask: Ask,
    Path(id): Path<String>,
    Body(limits): Body<SandboxLimits>,
) -> Handled<Json<Sandbox>> {
    one(ask.run(Command::Limit { sandbox: id, limits }).await?)
}
