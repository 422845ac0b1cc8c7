//! Sandboxes, their commands and their sessions.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream as Parts;
use futures_util::stream::unfold;
use ringfence_api::codebases::{FilePermission, FileRule, PatternType};
use ringfence_api::{CreateSandbox, CreateSession, Ended, ExecRequest, SessionExec, State};
use ringfence_supervisor::session::Ask as About;
use ringfence_supervisor::{Chunk, Command, Exec, Following, Kind, Reply, Stream};
use serde_json::{Value, json};
use tonic::{Code, Request, Response, Status};

use super::convert::{required, tail};
use super::wire::sandbox_service_server::SandboxService;
use super::{Ask, DIALECT, Fense, Handled, LABEL, MOST_ANSWER, OURS};
use super::{convert, page, said, unexpected, wire};
use crate::stamp::now_ms;

const SIGKILL: i32 = 9;
/// Their unit of time for processors: a quota is of each 100 ms.
const PERIOD_US: i64 = 100_000;
/// How long a command may take where nobody says: theirs.
const TIMEOUT_MS: u64 = 30_000;

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
            Reply::Sandbox(sandbox) => Ok(self.described(&sandbox)),
            other => Err(unexpected(&other)),
        }
    }

    fn described(&self, sandbox: &ringfence_api::Sandbox) -> wire::Sandbox {
        let (started, stopped) =
            self.known.memory().times.get(&sandbox.id).copied().unwrap_or_default();
        let (started_at, stopped_at) =
            (started.map(convert::timestamp), stopped.map(convert::timestamp));
        wire::Sandbox { started_at, stopped_at, ..convert::sandbox(sandbox) }
    }

    /// One that was made here. By its id alone: a name could be another's.
    pub(super) async fn find(&self, id: &str) -> Handled<ringfence_api::Sandbox> {
        required(id, "sandbox_id")?;
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
        let made_of = Box::new(CreateSandbox {
            codebase: Some(self.codebase(&asked.codebase_id).await?.id),
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
        Ok(self.described(&self.find(id).await?))
    }

    pub(super) async fn list(
        &self,
        asked: wire::ListSandboxesRequest,
    ) -> Handled<wire::ListSandboxesResponse> {
        let mut all = match self.run(Command::List).await.map_err(said)? {
            Reply::Sandboxes(all) => all,
            other => return Err(unexpected(&other)),
        };
        // Those whose time was over, or that were removed elsewhere.
        self.known.forget(|known| !all.iter().any(|sandbox| sandbox.id == known));
        let wanted = &asked.codebase_id;
        all.retain(|s| {
            convert::is_ours(s)
                && (wanted.is_empty() || s.codebase.as_ref().is_some_and(|c| c == wanted))
        });
        let all = all.iter().map(|sandbox| self.described(sandbox)).collect();
        let (sandboxes, next_page_token) = page(all, asked.page_size, &asked.page_token);
        Ok(wire::ListSandboxesResponse { sandboxes, next_page_token })
    }

    pub(super) async fn start(&self, id: &str) -> Handled<wire::Sandbox> {
        let found = self.find(id).await?;
        if is_running(&found) {
            return Err(Status::failed_precondition("sandbox is already running"));
        }
        let started = self.sandbox(Command::Start(found.id.clone())).await?;
        let at = now_ms();
        self.known.started(&found.id, at);
        Ok(wire::Sandbox { started_at: Some(convert::timestamp(at)), stopped_at: None, ..started })
    }

    pub(super) async fn stop(&self, id: &str) -> Handled<wire::Sandbox> {
        let found = self.find(id).await?;
        if !is_running(&found) && found.state != State::Frozen {
            return Err(not_running());
        }
        let stopped = self.sandbox(Command::Stop(found.id.clone())).await?;
        let at = now_ms();
        self.known.memory().times.entry(found.id).or_default().1 = Some(at);
        Ok(wire::Sandbox { stopped_at: Some(convert::timestamp(at)), ..stopped })
    }

    pub(super) async fn destroy(&self, id: &str) -> Handled<wire::Empty> {
        let id = self.find(id).await?.id;
        self.run(Command::Delete(id.clone())).await.map_err(said)?;
        self.known.forget(|known| known == id);
        Ok(wire::Empty {})
    }

    /// One that a command can run in.
    async fn find_running(&self, id: &str) -> Handled<String> {
        let found = self.find(id).await?;
        let ready = is_running(&found) || found.state == State::Creating;
        if ready { Ok(found.id) } else { Err(not_running()) }
    }

    async fn begin(&self, asked: wire::ExecRequest, whole: bool) -> Handled<Arc<Exec>> {
        required(&asked.command, "command")?;
        let sandbox = self.find_running(&asked.sandbox_id).await?;
        let request = Box::new(ExecRequest {
            shell: Some(asked.command),
            environment: asked.env.into_iter().collect(),
            cwd: (!asked.workdir.is_empty()).then_some(asked.workdir),
            timeout_ms: convert::milliseconds(asked.timeout, "timeout")?.or(Some(TIMEOUT_MS)),
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
        let absent = || Status::not_found("session not found");
        match self.run(Command::InSession(about)).await {
            // Who closed it has none any more.
            Ok(Reply::Session(session)) if is_deleted(&session) => Err(absent()),
            Ok(Reply::Session(session)) => Ok(convert::session(&session)),
            Ok(other) => Err(unexpected(&other)),
            Err(e) if e.kind == Kind::NotFound => Err(absent()),
            Err(e) => Err(said(e)),
        }
    }

    pub(super) async fn create_session(
        &self,
        asked: wire::CreateSessionRequest,
    ) -> Handled<wire::Session> {
        let sandbox = self.find_running(&asked.sandbox_id).await?;
        let request = CreateSession {
            shell: (!asked.shell.is_empty()).then_some(asked.shell),
            environment: asked.env.into_iter().collect(),
            cwd: None,
        };
        self.session(About::Create { sandbox, request }).await
    }

    pub(super) async fn get_session(&self, id: &str) -> Handled<wire::Session> {
        required(id, "session_id")?;
        let session = self.session(About::Get { sandbox: None, session: id.into() }).await?;
        // Of a sandbox that was made here.
        self.find(&session.sandbox_id).await?;
        Ok(session)
    }

    pub(super) async fn sessions(&self, id: &str) -> Handled<wire::ListSessionsResponse> {
        let sandbox = match self.find(id).await {
            Ok(found) => found.id,
            Err(status) if status.code() == Code::NotFound => {
                return Ok(wire::ListSessionsResponse { sessions: Vec::new() });
            }
            Err(status) => return Err(status),
        };
        let about = About::List { sandbox };
        match self.run(Command::InSession(about)).await.map_err(said)? {
            Reply::Sessions(all) => Ok(wire::ListSessionsResponse {
                sessions: all.iter().filter(|s| !is_deleted(s)).map(convert::session).collect(),
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
        required(&asked.command, "command")?;
        let request = Box::new(SessionExec {
            command: asked.command,
            timeout_ms: convert::milliseconds(asked.timeout, "timeout")?.or(Some(TIMEOUT_MS)),
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
        together(self.begin_in(asked, true).await?).await
    }
}

fn is_running(sandbox: &ringfence_api::Sandbox) -> bool {
    matches!(sandbox.state, State::Running | State::Idle)
}

fn not_running() -> Status {
    Status::failed_precondition("sandbox is not running")
}

fn is_deleted(session: &ringfence_api::Session) -> bool {
    session.reason.as_deref() == Some("deleted")
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
    let [out, err] = exec.output();
    let lost = out.lost + err.lost;
    let [out, err] = [out, err].map(|c| String::from_utf8_lossy(&c.bytes).into_owned());
    let mut stderr = tail(&err, MOST_ANSWER / 4).to_owned();
    let stdout = tail(&out, MOST_ANSWER - stderr.len()).to_owned();
    let cut = lost + (out.len() - stdout.len() + err.len() - stderr.len()) as u64;
    left_out(&mut stderr, cut);
    let duration = ended.map(|ended| convert::span(ended.duration_us));
    Ok(wire::ExecResult { stdout, stderr, exit_code, duration })
}

/// There is no other place to say it.
fn left_out(stderr: &mut String, bytes: u64) {
    use std::fmt::Write as _;
    if bytes > 0 {
        let _ = writeln!(stderr, "\nringfence: the first {bytes} bytes of the output are left out");
    }
}

/// What a session's command wrote: theirs comes from a terminal, both streams in one and without what
/// surrounds it.
async fn together(exec: Arc<Exec>) -> Handled<wire::ExecResult> {
    let mut following = exec.follow(0, 0);
    let (mut bytes, mut cut) = (Vec::new(), 0);
    while let Some(Chunk { bytes: part, lost, .. }) = following.next().await {
        bytes.extend(part);
        let surplus = bytes.len().saturating_sub(MOST_ANSWER);
        bytes.drain(..surplus);
        cut += lost + surplus as u64;
    }
    drop(following);
    let ended = exec.finished().await;
    let exit_code = code(ended.as_ref())?;
    let text = String::from_utf8_lossy(&bytes);
    let stdout = tail(text.trim(), MOST_ANSWER).to_owned();
    let mut stderr = String::new();
    left_out(&mut stderr, cut);
    let duration = ended.map(|ended| convert::span(ended.duration_us));
    Ok(wire::ExecResult { stdout, stderr, exit_code, duration })
}

/// A command whose output is sent. Who goes away ends it.
struct Sent {
    ask: Ask,
    exec: Arc<Exec>,
    following: Following,
    /// Whether another code than 0 is an error: nothing else tells it.
    failing: bool,
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
        let status = match code(ended.as_ref()) {
            Ok(code) if code != 0 && self.failing => {
                Status::internal(format!("command failed with exit code {code}"))
            }
            Ok(_) => return None,
            // Theirs has another code for it there.
            Err(status) if !self.failing => Status::internal(status.message()),
            Err(status) => status,
        };
        Some((Err(status), self))
    }
}

/// The next piece is taken when the last one was sent: a slow reader slows the command down.
fn outputs(ask: Ask, exec: Arc<Exec>, failing: bool) -> Outputs {
    let following = exec.follow(0, 0);
    Box::pin(unfold(Sent { ask, exec, following, failing, over: false }, Sent::next))
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
        Ok(Response::new(outputs(ask, exec, true)))
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
        Ok(Response::new(outputs(ask, exec, false)))
    }
}
