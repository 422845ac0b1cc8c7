//! Sandboxes, their commands and their sessions.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream as Parts;
use futures_util::stream::unfold;
use ringfence_api::codebases::{FilePermission, FileRule, PatternType};
use ringfence_api::{CreateSandbox, CreateSession, Ended, ExecRequest, SessionExec};
use ringfence_supervisor::session::Ask as About;
use ringfence_supervisor::{Chunk, Command, Exec, Following, Kind, Reply, Stream};
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use super::wire::sandbox_service_server::SandboxService;
use super::{Ask, DIALECT, Fense, Handled, LABEL, OURS, convert, page, said, unexpected, wire};

const SIGKILL: i32 = 9;
/// Their unit of time for processors: a quota is of each 100 ms.
const PERIOD_US: i64 = 100_000;

type Answer<T> = Result<Response<T>, Status>;
type Outputs = Pin<Box<dyn Parts<Item = Handled<wire::ExecOutput>> + Send>>;

/// The system readable, the workspace by the rules alone, no network; what is set here is asked for.
fn policy(resources: Option<&wire::ResourceLimits>) -> Handled<Value> {
    let mut limits = json!({ "memory": "unlimited", "cpu": "unlimited" });
    let resources = resources.copied().unwrap_or_default();
    let wire::ResourceLimits { memory_bytes, cpu_quota, cpu_shares, pids_limit } = resources;
    if [memory_bytes, cpu_quota, cpu_shares, pids_limit].iter().any(|n| *n < 0) {
        return Err(Status::invalid_argument("resources: a limit is negative"));
    }
    if let Some(limits) = limits.as_object_mut() {
        if memory_bytes > 0 {
            limits.insert("memory".into(), memory_bytes.into());
        }
        if cpu_quota > 0 {
            let percent = (cpu_quota.saturating_mul(100) / PERIOD_US).max(1);
            limits.insert("cpu".into(), format!("{percent}%").into());
        }
        if pids_limit > 0 {
            limits.insert("pids".into(), pids_limit.into());
        }
    }
    Ok(json!({
        "files": { "toolchains": true },
        "lift": ["guard", "secret"],
        "accept_missing": ["cgroup"],
        "limits": limits,
    }))
}

impl Ask {
    async fn sandbox(&self, command: Command) -> Handled<wire::Sandbox> {
        match self.run(command).await.map_err(said)? {
            Reply::Sandbox(sandbox) => Ok(convert::sandbox(&sandbox)),
            other => Err(unexpected(&other)),
        }
    }

    /// One that was made here. By its id alone: a name could be another's.
    pub(super) async fn find(&self, id: &str) -> Handled<ringfence_api::Sandbox> {
        let absent = || Status::not_found(format!("sandbox not found: {id}"));
        if !id.starts_with("sb_") {
            return Err(absent());
        }
        match self.run(Command::Get(id.to_owned())).await {
            Ok(Reply::Sandbox(sandbox)) if convert::is_ours(&sandbox) => Ok(*sandbox),
            Ok(Reply::Sandbox(_)) => Err(absent()),
            Ok(other) => Err(unexpected(&other)),
            Err(e) if e.kind == Kind::NotFound => Err(absent()),
            Err(e) => Err(said(e)),
        }
    }

    pub(super) async fn create(&self, asked: wire::CreateSandboxRequest) -> Handled<wire::Sandbox> {
        let policy = policy(asked.resources.as_ref())?.as_object().cloned();
        let mut rules: Vec<FileRule> = asked.permissions.iter().map(convert::rule).collect();
        if rules.is_empty() {
            // Without rules nothing is there.
            let (pattern, permission) = ("**/*".to_owned(), FilePermission::None);
            rules.push(FileRule { pattern, permission, priority: 0, kind: PatternType::Glob });
        }
        let mut labels: BTreeMap<String, String> = asked.labels.into_iter().collect();
        if labels.keys().any(|k| k.starts_with(OURS) || k == LABEL) {
            return Err(Status::invalid_argument(format!("labels: {OURS} begins ours")));
        }
        labels.insert(LABEL.into(), DIALECT.into());
        let resources = asked.resources.unwrap_or_default();
        let number = |n: i64| (n != 0).then(|| n.to_string());
        let remembered = [
            ("runtime", number(asked.runtime.into())),
            ("image", (!asked.image.is_empty()).then_some(asked.image)),
            ("memory-bytes", number(resources.memory_bytes)),
            ("cpu-quota", number(resources.cpu_quota)),
            ("cpu-shares", number(resources.cpu_shares)),
            ("pids-limit", number(resources.pids_limit)),
        ];
        labels.extend(remembered.into_iter().filter_map(|(k, v)| Some((format!("{OURS}{k}"), v?))));
        let ttl = convert::milliseconds(asked.expires_in, "expires_in")?;
        if asked.codebase_id.is_empty() {
            return Err(Status::invalid_argument("codebase_id is required"));
        }
        let made_of = Box::new(CreateSandbox {
            codebase: Some(asked.codebase_id),
            rules,
            labels,
            profiles: vec!["restrictive".into()],
            policy,
            stopped: true,
            persistent: true,
            ttl_seconds: ttl.map(|ms| ms.div_ceil(1000)),
            ..CreateSandbox::default()
        });
        self.sandbox(Command::Create { made_of, key: None }).await
    }

    pub(super) async fn get(&self, id: &str) -> Handled<wire::Sandbox> {
        Ok(convert::sandbox(&self.find(id).await?))
    }

    pub(super) async fn list(
        &self,
        asked: wire::ListSandboxesRequest,
    ) -> Handled<wire::ListSandboxesResponse> {
        let mut all = match self.run(Command::List).await.map_err(said)? {
            Reply::Sandboxes(all) => all,
            other => return Err(unexpected(&other)),
        };
        let wanted = &asked.codebase_id;
        all.retain(|s| {
            convert::is_ours(s)
                && (wanted.is_empty() || s.codebase.as_ref().is_some_and(|c| c == wanted))
        });
        let all = all.iter().map(convert::sandbox).collect();
        let (sandboxes, next_page_token) = page(all, asked.page_size, &asked.page_token)?;
        Ok(wire::ListSandboxesResponse { sandboxes, next_page_token })
    }

    pub(super) async fn start(&self, id: &str) -> Handled<wire::Sandbox> {
        let id = self.find(id).await?.id;
        self.sandbox(Command::Start(id)).await
    }

    pub(super) async fn stop(&self, id: &str) -> Handled<wire::Sandbox> {
        let id = self.find(id).await?.id;
        self.sandbox(Command::Stop(id)).await
    }

    pub(super) async fn destroy(&self, id: &str) -> Handled<wire::Empty> {
        let id = self.find(id).await?.id;
        self.run(Command::Delete(id)).await.map_err(said)?;
        Ok(wire::Empty {})
    }

    async fn begin(&self, asked: wire::ExecRequest, whole: bool) -> Handled<Arc<Exec>> {
        let sandbox = self.find(&asked.sandbox_id).await?.id;
        if asked.command.is_empty() {
            return Err(Status::invalid_argument("command is required"));
        }
        let request = Box::new(ExecRequest {
            shell: Some(asked.command),
            environment: asked.env.into_iter().collect(),
            cwd: (!asked.workdir.is_empty()).then_some(asked.workdir),
            timeout_ms: convert::milliseconds(asked.timeout, "timeout")?,
            ..ExecRequest::default()
        });
        let input = (!asked.stdin.is_empty()).then(|| asked.stdin.into_bytes());
        let command =
            Command::Exec { sandbox, request, input: input.map(Into::into), whole, key: None };
        exec_of(self.run(command).await.map_err(said)?)
    }

    pub(super) async fn exec(&self, asked: wire::ExecRequest) -> Handled<wire::ExecResult> {
        finished(&*self.begin(asked, true).await?).await
    }

    async fn session(&self, about: About) -> Handled<wire::Session> {
        match self.run(Command::InSession(about)).await.map_err(said)? {
            Reply::Session(session) => Ok(convert::session(&session)),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn create_session(
        &self,
        asked: wire::CreateSessionRequest,
    ) -> Handled<wire::Session> {
        let sandbox = self.find(&asked.sandbox_id).await?.id;
        let request = CreateSession {
            shell: (!asked.shell.is_empty()).then_some(asked.shell),
            environment: asked.env.into_iter().collect(),
            cwd: None,
        };
        self.session(About::Create { sandbox, request }).await
    }

    pub(super) async fn get_session(&self, id: &str) -> Handled<wire::Session> {
        let session = self.session(About::Get { sandbox: None, session: id.into() }).await?;
        // Of a sandbox that was made here.
        self.find(&session.sandbox_id).await?;
        Ok(session)
    }

    pub(super) async fn sessions(&self, id: &str) -> Handled<wire::ListSessionsResponse> {
        let sandbox = self.find(id).await?.id;
        let about = About::List { sandbox };
        match self.run(Command::InSession(about)).await.map_err(said)? {
            Reply::Sessions(all) => Ok(wire::ListSessionsResponse {
                sessions: all.iter().map(convert::session).collect(),
            }),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn destroy_session(&self, id: &str) -> Handled<wire::Empty> {
        let sandbox = Some(self.get_session(id).await?.sandbox_id);
        let about = About::Delete { sandbox, session: id.into() };
        self.run(Command::InSession(about)).await.map_err(said)?;
        Ok(wire::Empty {})
    }

    async fn begin_in(&self, asked: wire::SessionExecRequest, whole: bool) -> Handled<Arc<Exec>> {
        let sandbox = Some(self.get_session(&asked.session_id).await?.sandbox_id);
        let request = Box::new(SessionExec {
            command: asked.command,
            timeout_ms: convert::milliseconds(asked.timeout, "timeout")?,
            ..SessionExec::default()
        });
        let session = asked.session_id;
        let about = About::Exec { sandbox, session, request, input: None, whole };
        exec_of(self.run(Command::InSession(about)).await.map_err(said)?)
    }

    pub(super) async fn session_exec(
        &self,
        asked: wire::SessionExecRequest,
    ) -> Handled<wire::ExecResult> {
        finished(&*self.begin_in(asked, true).await?).await
    }
}

fn exec_of(reply: Reply) -> Handled<Arc<Exec>> {
    match reply {
        Reply::Exec(exec) => Ok(exec),
        other => Err(unexpected(&other)),
    }
}

/// The code that a shell gives it; or that it took too long.
fn code(ended: Option<&Ended>) -> Handled<i32> {
    match ended {
        Some(Ended { reason, .. }) if reason == "timeout" => {
            Err(Status::deadline_exceeded("command timed out"))
        }
        Some(Ended { exit_code: Some(code), .. }) => Ok(*code),
        Some(Ended { signal: Some(signal), .. }) => Ok(128 + signal),
        _ => Ok(137),
    }
}

async fn finished(exec: &Exec) -> Handled<wire::ExecResult> {
    let ended = exec.finished().await;
    let exit_code = code(ended.as_ref())?;
    let [stdout, stderr] = exec.output().map(|c| String::from_utf8_lossy(&c.bytes).into_owned());
    let duration = ended.map(|ended| convert::span(ended.duration_us));
    Ok(wire::ExecResult { stdout, stderr, exit_code, duration })
}

/// A command whose output is sent. Who goes away ends it.
struct Sent {
    ask: Ask,
    exec: Arc<Exec>,
    following: Following,
    over: bool,
}

impl Drop for Sent {
    fn drop(&mut self) {
        let exec = self.exec.described();
        if self.over || exec.ended.is_some() {
            return;
        }
        let ask = self.ask.clone();
        tokio::spawn(async move {
            let (sandbox, exec) = (exec.sandbox, exec.id);
            // It has ended by itself, perhaps.
            let _ = ask.run(Command::Kill { sandbox, exec, signal: SIGKILL }).await;
        });
    }
}

impl Sent {
    async fn next(mut self) -> Option<(Handled<wire::ExecOutput>, Self)> {
        use wire::exec_output::OutputType;
        if self.over {
            return None;
        }
        if let Some(Chunk { stream, bytes, .. }) = self.following.next().await {
            let kind = match stream {
                Stream::Stdout => OutputType::Stdout,
                Stream::Stderr => OutputType::Stderr,
            };
            return Some((Ok(wire::ExecOutput { r#type: kind.into(), data: bytes }), self));
        }
        self.over = true;
        let ended = self.exec.described().ended;
        code(ended.as_ref()).err().map(|status| (Err(status), self))
    }
}

/// The next piece is taken when the last one was sent: a slow reader slows the command down.
fn outputs(ask: Ask, exec: Arc<Exec>) -> Outputs {
    let following = exec.follow(0, 0);
    Box::pin(unfold(Sent { ask, exec, following, over: false }, Sent::next))
}

#[tonic::async_trait]
impl SandboxService for Fense {
    type ExecStreamStream = Outputs;
    type SessionExecStreamStream = Outputs;

    async fn create_sandbox(
        &self,
        request: Request<wire::CreateSandboxRequest>,
    ) -> Answer<wire::Sandbox> {
        let (ask, asked) = self.of(request)?;
        ask.create(asked).await.map(Response::new)
    }

    async fn get_sandbox(
        &self,
        request: Request<wire::GetSandboxRequest>,
    ) -> Answer<wire::Sandbox> {
        let (ask, asked) = self.of(request)?;
        ask.get(&asked.sandbox_id).await.map(Response::new)
    }

    async fn list_sandboxes(
        &self,
        request: Request<wire::ListSandboxesRequest>,
    ) -> Answer<wire::ListSandboxesResponse> {
        let (ask, asked) = self.of(request)?;
        ask.list(asked).await.map(Response::new)
    }

    async fn start_sandbox(
        &self,
        request: Request<wire::StartSandboxRequest>,
    ) -> Answer<wire::Sandbox> {
        let (ask, asked) = self.of(request)?;
        ask.start(&asked.sandbox_id).await.map(Response::new)
    }

    async fn stop_sandbox(
        &self,
        request: Request<wire::StopSandboxRequest>,
    ) -> Answer<wire::Sandbox> {
        let (ask, asked) = self.of(request)?;
        ask.stop(&asked.sandbox_id).await.map(Response::new)
    }

    async fn destroy_sandbox(
        &self,
        request: Request<wire::DestroySandboxRequest>,
    ) -> Answer<wire::Empty> {
        let (ask, asked) = self.of(request)?;
        ask.destroy(&asked.sandbox_id).await.map(Response::new)
    }

    async fn exec(&self, request: Request<wire::ExecRequest>) -> Answer<wire::ExecResult> {
        let (ask, asked) = self.of(request)?;
        ask.exec(asked).await.map(Response::new)
    }

    async fn exec_stream(&self, request: Request<wire::ExecRequest>) -> Answer<Outputs> {
        let (ask, asked) = self.of(request)?;
        let exec = ask.begin(asked, false).await?;
        Ok(Response::new(outputs(ask, exec)))
    }

    async fn create_session(
        &self,
        request: Request<wire::CreateSessionRequest>,
    ) -> Answer<wire::Session> {
        let (ask, asked) = self.of(request)?;
        ask.create_session(asked).await.map(Response::new)
    }

    async fn get_session(
        &self,
        request: Request<wire::GetSessionRequest>,
    ) -> Answer<wire::Session> {
        let (ask, asked) = self.of(request)?;
        ask.get_session(&asked.session_id).await.map(Response::new)
    }

    async fn list_sessions(
        &self,
        request: Request<wire::ListSessionsRequest>,
    ) -> Answer<wire::ListSessionsResponse> {
        let (ask, asked) = self.of(request)?;
        ask.sessions(&asked.sandbox_id).await.map(Response::new)
    }

    async fn destroy_session(
        &self,
        request: Request<wire::DestroySessionRequest>,
    ) -> Answer<wire::Empty> {
        let (ask, asked) = self.of(request)?;
        ask.destroy_session(&asked.session_id).await.map(Response::new)
    }

    async fn session_exec(
        &self,
        request: Request<wire::SessionExecRequest>,
    ) -> Answer<wire::ExecResult> {
        let (ask, asked) = self.of(request)?;
        ask.session_exec(asked).await.map(Response::new)
    }

    async fn session_exec_stream(
        &self,
        request: Request<wire::SessionExecRequest>,
    ) -> Answer<Outputs> {
        let (ask, asked) = self.of(request)?;
        let exec = ask.begin_in(asked, false).await?;
        Ok(Response::new(outputs(ask, exec)))
    }
}
