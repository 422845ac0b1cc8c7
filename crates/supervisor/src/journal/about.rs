//! What is to be said of a command that was carried out, or was refused.

use std::sync::Arc;

use ringfence_api::{Ended, Event};

use super::{Journal, Owner, Source};
use crate::codebases::Ask as OfCodebase;
use crate::error::{Error, Kind};
use crate::layers::Ask as OfLayer;
use crate::session::Ask as OfSession;
use crate::supervisor::Command;
use crate::trees::Ask as OfTree;

/// A sandbox, for what is recorded of it, and who asked.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub journal: Arc<Journal>,
    pub owner: Owner,
    pub source: Source,
    pub sandbox: String,
    pub name: Option<String>,
}

impl About {
    pub(crate) fn record(&self, event: Event) {
        let (sandbox, name) = (Some(self.sandbox.clone()), self.name.clone());
        self.journal.record(self.owner, self.source, Event { sandbox, name, ..event });
    }

    pub(crate) fn started(&self, exec: &str, argv: &[String]) {
        self.record(Event {
            kind: "exec.started".into(),
            subject: Some(exec.to_owned()),
            argv: argv.to_vec(),
            ..Event::default()
        });
    }

    pub(crate) fn ended(&self, exec: &str, argv: Vec<String>, started_ms: u64, ended: &Ended) {
        self.record(Event {
            kind: "exec.ended".into(),
            subject: Some(exec.to_owned()),
            argv,
            started_ms: Some(started_ms),
            exit_code: ended.exit_code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            duration_us: Some(ended.duration_us),
            ..Event::default()
        });
    }
}

/// What a command does, for the record.
#[derive(Debug)]
pub(crate) struct Deed {
    /// Of what is recorded when it was done; empty where that says it itself, or nothing changed.
    kind: &'static str,
    action: &'static str,
    /// As it was named.
    pub sandbox: Option<String>,
    subject: Option<String>,
}

impl Deed {
    pub(crate) fn of(command: &Command) -> Self {
        let read = |action, sandbox: &String| Self {
            kind: "",
            action,
            sandbox: Some(sandbox.clone()),
            subject: None,
        };
        let file = |action, sandbox: &String, path: &String| Self {
            kind: "file.changed",
            subject: Some(path.clone()),
            ..read(action, sandbox)
        };
        match command {
            Command::Create { made_of, .. } => {
                Self { kind: "", action: "create", sandbox: None, subject: made_of.name.clone() }
            }
            Command::Get(id) => read("get", id),
            Command::Start(id) => read("start", id),
            Command::Stop(id) => read("stop", id),
            Command::Freeze(id) => read("freeze", id),
            Command::Delete(id) => read("remove", id),
            Command::Extend { sandbox, seconds } => Self {
                kind: "sandbox.changed",
                subject: Some(format!("{seconds} s")),
                ..read("extend", sandbox)
            },
            Command::Limit { sandbox, limits } => Self {
                kind: "sandbox.changed",
                subject: serde_json::to_string(limits).ok(),
                ..read("limit", sandbox)
            },
            Command::Exec { sandbox, .. } => read("exec", sandbox),
            Command::Kill { sandbox, exec, .. } => Self {
                kind: "exec.signalled",
                subject: Some(exec.clone()),
                ..read("kill", sandbox)
            },
            Command::ReadFile { sandbox, path, .. } => {
                Self { kind: "", ..file("read", sandbox, path) }
            }
            Command::StatFile { sandbox, path } => Self { kind: "", ..file("stat", sandbox, path) },
            Command::ListFiles { sandbox, path } => {
                Self { kind: "", ..file("list", sandbox, path) }
            }
            Command::WriteFile { sandbox, path, .. } => file("write", sandbox, path),
            Command::MakeDirectory { sandbox, path } => file("directory", sandbox, path),
            Command::RemoveFile { sandbox, path } => file("remove", sandbox, path),
            Command::InFiles(ask) => match ask {
                OfTree::Move { sandbox, from, to } => {
                    Self { subject: Some(format!("{from} to {to}")), ..file("move", sandbox, from) }
                }
                OfTree::Unpack { sandbox, path, .. } => file("unpack", sandbox, path),
                OfTree::Search { sandbox, .. } => read("search", sandbox),
                OfTree::Pack { sandbox, .. } => read("pack", sandbox),
                OfTree::Chmod { sandbox, path, mode } => Self {
                    subject: Some(format!("{path} to {mode:o}")),
                    ..file("chmod", sandbox, path)
                },
                OfTree::Watch { sandbox, .. } => read("watch", sandbox),
            },
            Command::InSession(ask) => match ask {
                OfSession::Create { sandbox, .. } => read("session", sandbox),
                OfSession::List { sandbox } => read("sessions", sandbox),
                OfSession::Get { sandbox, session }
                | OfSession::Delete { sandbox, session }
                | OfSession::Exec { sandbox, session, .. } => Self {
                    kind: "",
                    action: "session",
                    sandbox: sandbox.clone(),
                    subject: Some(session.clone()),
                },
            },
            Command::Layer { sandbox, ask } => of_layer(sandbox, ask),
            Command::Codebases(ask) => of_codebase(ask),
            _ => Self { kind: "", action: "other", sandbox: None, subject: None },
        }
    }

    /// It was done.
    pub(crate) fn done(self) -> Option<Event> {
        (!self.kind.is_empty()).then(|| Event {
            kind: self.kind.into(),
            action: Some(self.action.into()),
            subject: self.subject,
            ..Event::default()
        })
    }

    /// It was refused, if it was.
    pub(crate) fn refused(self, e: &Error) -> Option<Event> {
        matches!(e.kind, Kind::Refused | Kind::Limit).then(|| Event {
            action: Some(self.action.into()),
            subject: self.subject,
            reason: Some(e.kind.text().into()),
            ..Event::default()
        })
    }
}

fn of_layer(sandbox: &str, ask: &OfLayer) -> Deed {
    let (action, subject) = match ask {
        OfLayer::Info => ("", None),
        OfLayer::Diff { .. } => ("diff", None),
        OfLayer::Patch { .. } => ("patch", None),
        OfLayer::Export { .. } => ("export", None),
        OfLayer::Apply(chosen) if chosen.dry_run => ("apply", None),
        OfLayer::Apply(_) => ("apply", None),
        OfLayer::Discard(_) => ("discard", None),
        OfLayer::Checkpoint => ("checkpoint", None),
        OfLayer::Undo { .. } => ("undo", None),
        OfLayer::Snapshot(name) => ("snapshot", Some(name.clone())),
        OfLayer::Forget(name) => ("forget", Some(name.clone())),
        OfLayer::Restore(name) => ("restore", Some(name.clone())),
        OfLayer::Fork(name) => ("fork", Some(name.clone())),
    };
    // What needs rest changes something, but for what is only read.
    let changes = ask.needs_rest() && !matches!(ask, OfLayer::Export { .. });
    let kind = if changes { "layer.changed" } else { "" };
    Deed { kind, action, sandbox: Some(sandbox.to_owned()), subject }
}

fn of_codebase(ask: &OfCodebase) -> Deed {
    let at = |name: &String, path: &String| format!("{name}:{path}");
    let (action, subject) = match ask {
        OfCodebase::Create(made) => ("create", made.name.clone()),
        OfCodebase::CreateFrom { name, .. } => ("create", name.clone()),
        OfCodebase::Seal(name) => ("seal", name.clone()),
        OfCodebase::PutArchive { name, path, .. } => ("unpack", at(name, path)),
        OfCodebase::Write { name, path, .. } => ("write", at(name, path)),
        OfCodebase::MakeDirectory { name, path } => ("directory", at(name, path)),
        OfCodebase::Remove { name, path, .. } => ("remove", at(name, path)),
        OfCodebase::Move { name, from, to } => ("move", format!("{name}:{from} to {to}")),
        // Said where it is known whether there was one.
        OfCodebase::Delete(_)
        | OfCodebase::List
        | OfCodebase::Get(_)
        | OfCodebase::Export { .. }
        | OfCodebase::Read { .. }
        | OfCodebase::Stat { .. }
        | OfCodebase::ListFiles { .. } => {
            return Deed { kind: "", action: "read", sandbox: None, subject: None };
        }
    };
    Deed { kind: "codebase.changed", action, sandbox: None, subject: Some(subject) }
}
