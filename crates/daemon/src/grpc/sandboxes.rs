//! Sandboxes.

use ringfence_api::CreateSandbox;
use ringfence_supervisor::stats::{Answer as Looked, Ask as Look};
use ringfence_supervisor::{Command, Reply};
use serde_json::Value;
use tonic::{Request, Response};

use super::wire::sandboxes_server::Sandboxes;
use super::{Answer, Ask, Grpc, Handled, answer, asked, fields, invalid, told, unexpected, wire};

/// Of the message and not of the request: each is said in another way there.
const APART: [&str; 4] = ["idempotency_key", "own_layer", "layer", "policy_json"];

fn made_of(message: &wire::CreateSandbox) -> Handled<CreateSandbox> {
    let mut fields = fields(message, &APART)?;
    match (&message.layer, message.own_layer) {
        (Some(_), true) => return Err(invalid("layer and own_layer exclude each other")),
        (Some(name), false) => drop(fields.insert("layer".into(), Value::from(name.as_str()))),
        (None, true) => drop(fields.insert("layer".into(), Value::from(true))),
        (None, false) => {}
    }
    if !message.policy_json.is_empty() {
        let policy: Value = serde_json::from_str(&message.policy_json)
            .map_err(|e| invalid(format!("policy_json: {e}")))?;
        fields.insert("policy".into(), policy);
    }
    // The default is not written down.
    for rule in fields.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(rule) = rule.as_object_mut() {
            rule.retain(|_, value| value.as_str() != Some(""));
        }
    }
    asked(fields)
}

impl Ask {
    async fn sandbox(&self, command: Command) -> Answer<wire::Sandbox> {
        match self.run(command).await? {
            Reply::Sandbox(sandbox) => answer(&sandbox),
            other => Err(unexpected(&other)),
        }
    }
}

#[tonic::async_trait]
impl Sandboxes for Grpc {
    async fn create(&self, request: Request<wire::CreateSandbox>) -> Answer<wire::Sandbox> {
        let (ask, message) = self.of(request)?;
        let made_of = Box::new(made_of(&message)?);
        let key = Some(message.idempotency_key).filter(|key| !key.is_empty());
        ask.sandbox(Command::Create { made_of, key }).await
    }

    async fn list(&self, request: Request<wire::Nothing>) -> Answer<wire::SandboxList> {
        let (ask, _) = self.of(request)?;
        match ask.run(Command::List).await? {
            Reply::Sandboxes(sandboxes) => {
                let sandboxes = told(&sandboxes)?;
                Ok(Response::new(wire::SandboxList { sandboxes }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn get(&self, request: Request<wire::SandboxName>) -> Answer<wire::Sandbox> {
        let (ask, name) = self.of(request)?;
        ask.sandbox(Command::Get(name.sandbox)).await
    }

    async fn delete(&self, request: Request<wire::SandboxName>) -> Answer<wire::Nothing> {
        let (ask, name) = self.of(request)?;
        ask.done(Command::Delete(name.sandbox)).await
    }

    async fn start(&self, request: Request<wire::SandboxName>) -> Answer<wire::Sandbox> {
        let (ask, name) = self.of(request)?;
        ask.sandbox(Command::Start(name.sandbox)).await
    }

    async fn stop(&self, request: Request<wire::SandboxName>) -> Answer<wire::Sandbox> {
        let (ask, name) = self.of(request)?;
        ask.sandbox(Command::Stop(name.sandbox)).await
    }

    async fn freeze(&self, request: Request<wire::SandboxName>) -> Answer<wire::Sandbox> {
        let (ask, name) = self.of(request)?;
        ask.sandbox(Command::Freeze(name.sandbox)).await
    }

    async fn extend(&self, request: Request<wire::Extension>) -> Answer<wire::Sandbox> {
        let (ask, wire::Extension { sandbox, seconds }) = self.of(request)?;
        ask.sandbox(Command::Extend { sandbox, seconds }).await
    }

    async fn stats(&self, request: Request<wire::SandboxName>) -> Answer<wire::SandboxStats> {
        let (ask, name) = self.of(request)?;
        match ask.run(Command::Stats(Look::One(name.sandbox))).await? {
            Reply::Stats(Looked::One(stats)) => answer(&stats),
            other => Err(unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_the_json_says() {
        let rule = wire::FileRule {
            pattern: "/docs/**".into(),
            permission: "write".into(),
            priority: 3,
            r#type: String::new(),
        };
        let message = wire::CreateSandbox {
            name: Some("box".into()),
            own_layer: true,
            rules: vec![rule],
            policy_json: r#"{"limits": {"pids": 9}}"#.into(),
            ttl_seconds: Some(5),
            idempotency_key: "k".into(),
            ..wire::CreateSandbox::default()
        };
        let json = serde_json::json!({
            "name": "box", "layer": true, "ttl_seconds": 5, "policy": { "limits": { "pids": 9 } },
            "rules": [{ "pattern": "/docs/**", "permission": "write", "priority": 3 }],
        });
        assert_eq!(made_of(&message).unwrap(), serde_json::from_value(json).unwrap());
        for wrong in [
            wire::CreateSandbox { layer: Some("x".into()), ..message.clone() },
            wire::CreateSandbox { policy_json: "[]".into(), ..message.clone() },
            wire::CreateSandbox { policy_json: "{".into(), ..message },
        ] {
            assert_eq!(made_of(&wrong).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
