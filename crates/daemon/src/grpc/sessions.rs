//! Sessions.

use ringfence_supervisor::session::Ask as About;
use ringfence_supervisor::{Command, Exec, Reply};
use std::sync::Arc;
use tonic::{Request, Response};

use super::execs::{Events, events, exec_of, result};
use super::wire::sessions_server::Sessions;
use super::{Answer, Ask, Grpc, Handled, answer, asked, fields, told, unexpected, wire};

impl Ask {
    async fn session(&self, about: About) -> Answer<wire::Session> {
        match self.run(Command::InSession(about)).await? {
            Reply::Session(session) => answer(&session),
            other => Err(unexpected(&other)),
        }
    }

    async fn in_session(&self, mut message: wire::SessionExec, whole: bool) -> Handled<Arc<Exec>> {
        let input = message.stdin.take();
        let request = Box::new(asked(fields(&message, &["sandbox", "session"])?)?);
        let wire::SessionExec { sandbox, session, .. } = message;
        let about = About::Exec { sandbox: Some(sandbox), session, request, input, whole };
        exec_of(self.run(Command::InSession(about)).await?)
    }
}

#[tonic::async_trait]
impl Sessions for Grpc {
    type StreamStream = Events;

    async fn create(&self, request: Request<wire::CreateSession>) -> Answer<wire::Session> {
        let (ask, message) = self.of(request)?;
        let request = asked(fields(&message, &["sandbox"])?)?;
        ask.session(About::Create { sandbox: message.sandbox, request }).await
    }

    async fn list(&self, request: Request<wire::SandboxName>) -> Answer<wire::SessionList> {
        let (ask, wire::SandboxName { sandbox }) = self.of(request)?;
        match ask.run(Command::InSession(About::List { sandbox })).await? {
            Reply::Sessions(sessions) => {
                Ok(Response::new(wire::SessionList { sessions: told(&sessions)? }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn get(&self, request: Request<wire::SessionName>) -> Answer<wire::Session> {
        let (ask, wire::SessionName { sandbox, session }) = self.of(request)?;
        ask.session(About::Get { sandbox: Some(sandbox), session }).await
    }

    async fn delete(&self, request: Request<wire::SessionName>) -> Answer<wire::Nothing> {
        let (ask, wire::SessionName { sandbox, session }) = self.of(request)?;
        ask.done(Command::InSession(About::Delete { sandbox: Some(sandbox), session })).await
    }

    async fn run(&self, request: Request<wire::SessionExec>) -> Answer<wire::ExecResult> {
        let (ask, message) = self.of(request)?;
        result(&*ask.in_session(message, true).await?).await
    }

    async fn stream(&self, request: Request<wire::SessionExec>) -> Answer<Events> {
        let (ask, message) = self.of(request)?;
        Ok(Response::new(events(ask.in_session(message, false).await?, (0, 0))?))
    }
}
