//! What happens, and what happened.

use std::collections::VecDeque;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, unfold};
use ringfence_supervisor::{Command, Reply};
use tonic::{Request, Response};

use super::wire::events_server::Events;
use super::{Answer, Grpc, Handled, answer, asked, fields, said, told, unexpected, wire};

#[tonic::async_trait]
impl Events for Grpc {
    type FollowStream = BoxStream<'static, Handled<wire::Event>>;

    async fn follow(&self, request: Request<wire::FollowEvents>) -> Answer<Self::FollowStream> {
        let (ask, which) = self.of(request)?;
        let events = match ask.run(Command::Events(asked(fields(&which, &[])?)?)).await? {
            Reply::Events(events) => events,
            other => return Err(unexpected(&other)),
        };
        // The next ones are taken when the last were sent: nothing is collected for a slow reader.
        let stream = unfold(Some((events, VecDeque::new())), |state| async move {
            let (mut events, mut ready) = state?;
            while ready.is_empty() {
                match events.next().await {
                    Ok(more) => ready.extend(more),
                    Err(e) => return Some((Err(said(e)), None)),
                }
            }
            let event = told(&*ready.pop_front()?);
            Some((event, Some((events, ready))))
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn audit(&self, request: Request<wire::AuditQuery>) -> Answer<wire::Audited> {
        let (ask, which) = self.of(request)?;
        match ask.run(Command::Audit(asked(fields(&which, &[])?)?)).await? {
            Reply::Audit(audit) => answer(&audit),
            other => Err(unexpected(&other)),
        }
    }
}
