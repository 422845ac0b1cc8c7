//! Commands: whole, or as streams both ways.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, unfold};
use ringfence_api::{ExecRequest, TerminalSize};
use ringfence_supervisor::{Chunk, Command, Exec, Following, Input, Reply, Stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Streaming};

use super::wire::execs_server::Execs;
use super::wire::from_exec::Message as From;
use super::wire::to_exec::Message as To;
use super::{Answer, Ask, Grpc, Handled, asked, fields, invalid, told, unexpected, wire};

/// Of the message and not of the request.
const APART: [&str; 3] = ["sandbox", "stdin", "idempotency_key"];
/// Parts of input that are on their way.
const PARTS: usize = 8;
const SIGKILL: i32 = 9;

pub(super) type Events = BoxStream<'static, Handled<wire::FromExec>>;

pub(super) fn exec_of(reply: Reply) -> Handled<Arc<Exec>> {
    match reply {
        Reply::Exec(exec) => Ok(exec),
        other => Err(unexpected(&other)),
    }
}

fn output(chunk: Chunk) -> wire::Output {
    wire::Output { offset: chunk.offset, data: chunk.bytes, lost: chunk.lost }
}

/// At its end.
pub(super) async fn result(exec: &Exec) -> Answer<wire::ExecResult> {
    exec.finished().await;
    let [stdout, stderr] = exec.output().map(output);
    Ok(Response::new(wire::ExecResult {
        exec: Some(told(&exec.described())?),
        stdout: Some(stdout),
        stderr: Some(stderr),
    }))
}

fn event(message: From) -> wire::FromExec {
    wire::FromExec { message: Some(message) }
}

/// The next piece is taken when the last one was sent: a slow reader slows the command down.
pub(super) fn events(exec: Arc<Exec>, from: (u64, u64)) -> Handled<Events> {
    let following = exec.follow(from.0, from.1);
    let started = event(From::Started(told(&exec.described())?));
    let begin = futures_util::stream::iter([Ok(started)]);
    Ok(begin.chain(unfold(Some((exec, following)), next)).boxed())
}

type State = Option<(Arc<Exec>, Following)>;

async fn next(state: State) -> Option<(Handled<wire::FromExec>, State)> {
    let (exec, mut following) = state?;
    let Some(chunk) = following.next().await else {
        let ended = told(&exec.described()).map(|exec| event(From::Ended(exec)));
        return Some((ended, None));
    };
    let message = match chunk.stream {
        Stream::Stdout => From::Stdout(output(chunk)),
        Stream::Stderr => From::Stderr(output(chunk)),
    };
    Some((Ok(event(message)), Some((exec, following))))
}

async fn begin(
    ask: &Ask,
    message: wire::ExecRequest,
    input: Option<Input>,
    (background, whole): (bool, bool),
) -> Handled<Arc<Exec>> {
    let request: ExecRequest = asked(fields(&message, &APART)?)?;
    let request = Box::new(ExecRequest { background, ..request });
    let key = Some(message.idempotency_key).filter(|key| !key.is_empty());
    exec_of(ask.run(Command::Exec { sandbox: message.sandbox, request, input, whole, key }).await?)
}

async fn find(ask: &Ask, sandbox: String, exec: String) -> Handled<Arc<Exec>> {
    exec_of(ask.run(Command::FindExec { sandbox, exec }).await?)
}

/// What comes after the first message, until the other side has said its last.
async fn hear(
    ask: Ask,
    sandbox: String,
    exec: Arc<Exec>,
    mut from: Streaming<wire::ToExec>,
    input: Option<mpsc::Sender<Vec<u8>>>,
) {
    while let Ok(Some(wire::ToExec { message: Some(message) })) = from.message().await {
        let heard = match message {
            To::Stdin(bytes) => match (exec.terminal(), &input) {
                (Some(terminal), _) => terminal.write(&bytes).await.is_ok(),
                (None, Some(input)) => input.send(bytes).await.is_ok(),
                (None, None) => false,
            },
            To::Resize(size) => resize(&exec, size),
            To::Signal(signal) => {
                let (sandbox, exec) = (sandbox.clone(), exec.described().id);
                ask.run(Command::Kill { sandbox, exec, signal }).await.is_ok()
            }
            // It was started already.
            To::Start(_) => return,
        };
        // Input that nobody reads any more is no reason not to hear of a signal.
        let _ = heard;
    }
}

fn resize(exec: &Exec, size: wire::TerminalSize) -> bool {
    let (Ok(rows), Ok(columns)) = (size.rows.try_into(), size.columns.try_into()) else {
        return false;
    };
    exec.terminal().is_some_and(|t| t.resize(TerminalSize { rows, columns }).is_ok())
}

#[tonic::async_trait]
impl Execs for Grpc {
    type StreamStream = Events;
    type FollowStream = Events;

    async fn run(&self, request: Request<wire::ExecRequest>) -> Answer<wire::ExecResult> {
        let (ask, mut message) = self.of(request)?;
        let input = message.stdin.take().map(Input::Whole);
        result(&*begin(&ask, message, input, (false, true)).await?).await
    }

    async fn start(&self, request: Request<wire::ExecRequest>) -> Answer<wire::Exec> {
        let (ask, mut message) = self.of(request)?;
        let input = message.stdin.take().map(Input::Whole);
        let exec = begin(&ask, message, input, (true, false)).await?;
        super::answer(&exec.described())
    }

    async fn stream(&self, request: Request<Streaming<wire::ToExec>>) -> Answer<Events> {
        let (ask, mut from) = self.of(request)?;
        let first = from.message().await?.and_then(|message| message.message);
        let Some(To::Start(message)) = first else {
            return Err(invalid("the first message does not start a command"));
        };
        if message.stdin.is_some() || !message.idempotency_key.is_empty() {
            return Err(invalid("stdin and idempotency_key: not of a stream"));
        }
        let sandbox = message.sandbox.clone();
        let (sender, parts) = mpsc::channel(PARTS);
        let has_terminal = message.terminal.is_some();
        let input = (!has_terminal).then(|| Input::parts(parts));
        let exec = begin(&ask, message, input, (false, false)).await?;
        let sender = (!has_terminal).then_some(sender);
        tokio::spawn(hear(ask, sandbox, exec.clone(), from, sender));
        Ok(Response::new(events(exec, (0, 0))?))
    }

    async fn follow(&self, request: Request<wire::FollowExec>) -> Answer<Events> {
        let (ask, message) = self.of(request)?;
        let wire::FollowExec { sandbox, exec, stdout_offset, stderr_offset } = message;
        let exec = find(&ask, sandbox, exec).await?;
        Ok(Response::new(events(exec, (stdout_offset, stderr_offset))?))
    }

    async fn list(&self, request: Request<wire::SandboxName>) -> Answer<wire::ExecList> {
        let (ask, name) = self.of(request)?;
        match ask.run(Command::Execs(name.sandbox)).await? {
            Reply::Execs(execs) => Ok(Response::new(wire::ExecList { execs: told(&execs)? })),
            other => Err(unexpected(&other)),
        }
    }

    async fn get(&self, request: Request<wire::ExecName>) -> Answer<wire::Exec> {
        let (ask, wire::ExecName { sandbox, exec }) = self.of(request)?;
        super::answer(&find(&ask, sandbox, exec).await?.described())
    }

    async fn kill(&self, request: Request<wire::KillExec>) -> Answer<wire::Nothing> {
        let (ask, wire::KillExec { sandbox, exec, signal }) = self.of(request)?;
        let signal = if signal == 0 { SIGKILL } else { signal };
        ask.done(Command::Kill { sandbox, exec, signal }).await
    }
}
