//! Layers of sandboxes.

use ringfence_api::layers::Chosen;
use ringfence_supervisor::layers::{Answer as Came, Ask as Wish};
use ringfence_supervisor::{Command, Reply};
use serde_json::Value;
use tonic::{Request, Response};

use super::wire::layers_server::Layers;
use super::{Answer, Ask, Grpc, Handled, Parts, answer, cut, unexpected, wire};

impl Ask {
    async fn layer(&self, sandbox: String, ask: Wish) -> Handled<Came> {
        match self.run(Command::Layer { sandbox, ask }).await? {
            Reply::Layer(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    async fn to_layer(&self, sandbox: String, ask: Wish) -> Answer<wire::Nothing> {
        self.layer(sandbox, ask).await?;
        Ok(Response::new(wire::Nothing {}))
    }
}

fn chosen(message: wire::ChosenPaths) -> (String, Chosen) {
    let wire::ChosenPaths { sandbox, paths, dry_run, theirs } = message;
    (sandbox, Chosen { paths, dry_run, theirs })
}

fn change(line: serde_json::Map<String, Value>) -> wire::LayerChange {
    let text = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (path, status) = (text("path"), text("status"));
    wire::LayerChange { path, status, json: Value::Object(line).to_string() }
}

#[tonic::async_trait]
impl Layers for Grpc {
    type PatchStream = Parts;

    async fn get(&self, request: Request<wire::SandboxName>) -> Answer<wire::LayerInfo> {
        let (ask, name) = self.of(request)?;
        match ask.layer(name.sandbox, Wish::Info).await? {
            Came::Info(info) => answer(&info),
            other => Err(unexpected(&other)),
        }
    }

    async fn diff(&self, request: Request<wire::LayerPath>) -> Answer<wire::LayerChanges> {
        let (ask, wire::LayerPath { sandbox, path, .. }) = self.of(request)?;
        let path = Some(path).filter(|path| !path.is_empty());
        match ask.layer(sandbox, Wish::Diff { path }).await? {
            Came::Changes(all) => {
                let changes = all.changes.into_iter().map(change).collect();
                let (layer, in_use) = (all.layer, all.in_use);
                Ok(Response::new(wire::LayerChanges { layer, in_use, changes }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn patch(&self, request: Request<wire::LayerPath>) -> Answer<Parts> {
        let (ask, wire::LayerPath { sandbox, path, binary }) = self.of(request)?;
        let path = Some(path).filter(|path| !path.is_empty());
        match ask.layer(sandbox, Wish::Patch { path, binary }).await? {
            Came::Patch(bytes) => Ok(Response::new(cut(&bytes))),
            other => Err(unexpected(&other)),
        }
    }

    async fn apply(&self, request: Request<wire::ChosenPaths>) -> Answer<wire::Applied> {
        let (ask, message) = self.of(request)?;
        let (sandbox, chosen) = chosen(message);
        match ask.layer(sandbox, Wish::Apply(chosen)).await? {
            Came::Applied(applied) => answer(&applied),
            other => Err(unexpected(&other)),
        }
    }

    async fn discard(&self, request: Request<wire::ChosenPaths>) -> Answer<wire::Nothing> {
        let (ask, message) = self.of(request)?;
        let (sandbox, chosen) = chosen(message);
        ask.to_layer(sandbox, Wish::Discard(chosen)).await
    }

    async fn checkpoint(&self, request: Request<wire::SandboxName>) -> Answer<wire::Nothing> {
        let (ask, name) = self.of(request)?;
        ask.to_layer(name.sandbox, Wish::Checkpoint).await
    }

    async fn undo(&self, request: Request<wire::UndoSteps>) -> Answer<wire::Nothing> {
        let (ask, wire::UndoSteps { sandbox, steps }) = self.of(request)?;
        ask.to_layer(sandbox, Wish::Undo { steps: steps.max(1) as usize }).await
    }

    async fn fork(&self, request: Request<wire::ForkLayer>) -> Answer<wire::Nothing> {
        let (ask, wire::ForkLayer { sandbox, layer }) = self.of(request)?;
        ask.to_layer(sandbox, Wish::Fork(layer)).await
    }

    async fn snapshot(&self, request: Request<wire::SnapshotName>) -> Answer<wire::Nothing> {
        let (ask, wire::SnapshotName { sandbox, snapshot }) = self.of(request)?;
        ask.to_layer(sandbox, Wish::Snapshot(snapshot)).await
    }

    async fn forget(&self, request: Request<wire::SnapshotName>) -> Answer<wire::Nothing> {
        let (ask, wire::SnapshotName { sandbox, snapshot }) = self.of(request)?;
        ask.to_layer(sandbox, Wish::Forget(snapshot)).await
    }

    async fn restore(&self, request: Request<wire::SnapshotName>) -> Answer<wire::Nothing> {
        let (ask, wire::SnapshotName { sandbox, snapshot }) = self.of(request)?;
        ask.to_layer(sandbox, Wish::Restore(snapshot)).await
    }
}
