//! Commands in a sandbox of their own, which is gone afterwards.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body as Content, Bytes};
use axum::http::{StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use futures_util::stream::{iter, unfold};
use ringfence_supervisor::{Chunk, Command, Exec, Stream};
use serde::Deserialize;
use serde_json::{Value, json};

use super::exec::{self, Request, code, output};
use super::fault::Fault;
use super::sandboxes::{Profile, make};
use super::{Ask, Body, Handled, names, success};
use crate::stamp::{now_ms, rfc3339};

/// Commands of one batch, and how many of them run at once.
const MOST_COMMANDS: usize = 1000;
const AT_ONCE: usize = 16;
/// A client that hears nothing for half a minute goes away.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
pub(super) struct Run {
    command: Vec<String>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    profile: Option<String>,
    /// All runs are.
    #[serde(default)]
    fast: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Batch {
    commands: Vec<One>,
}

#[derive(Debug, Deserialize)]
pub(super) struct One {
    command: Vec<String>,
}

impl Run {
    fn profile(&self) -> Handled<Profile> {
        self.image.as_deref().map_or(Ok(()), names::image)?;
        Profile::named(self.profile.as_deref())
    }
}

/// A sandbox that goes when this does, also where whoever asked went away.
struct Ephemeral {
    ask: Ask,
    sandbox: ringfence_api::Sandbox,
}

impl Ephemeral {
    async fn make(ask: &Ask, profile: Profile) -> Handled<Self> {
        let sandbox = make(ask, None, profile, super::sandboxes::Asked::default()).await?;
        Ok(Self { ask: ask.clone(), sandbox })
    }
}

impl Drop for Ephemeral {
    fn drop(&mut self) {
        let (ask, id) = (self.ask.clone(), self.sandbox.id.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            // It has no name that somebody could wait for.
            let _ = ask.run(Command::Delete(id)).await;
            ask.dialect.counts.life("removed", began.elapsed());
        });
    }
}

async fn once(ask: &Ask, profile: Profile, command: Vec<String>) -> Handled<Value> {
    if command.is_empty() {
        return Err(Fault::invalid("command is required"));
    }
    let ephemeral = Ephemeral::make(ask, profile).await?;
    let (began, words) = (Instant::now(), command.clone());
    let done = match exec::start(ask, &ephemeral.sandbox, Request::of(command), true).await {
        Ok(exec) => exec::finish(&exec).await,
        Err(fault) => Err(fault),
    };
    let failed = done.as_ref().err().and_then(|fault| fault.command.as_ref());
    ran(ask, &ephemeral.sandbox.id, &words, failed.map_or(0, |(code, _)| *code), began);
    done
}

fn ran(ask: &Ask, sandbox: &str, command: &[String], code: i32, began: Instant) {
    ask.dialect.counts.command(true, began.elapsed());
    ask.dialect.audit.ran(sandbox, sandbox, command, code);
}

pub(super) async fn run(ask: Ask, Body(run): Body<Run>) -> Handled<Json<Value>> {
    let profile = run.profile()?;
    Ok(success(once(&ask, profile, run.command).await?))
}

pub(super) async fn batch(ask: Ask, Body(Batch { commands }): Body<Batch>) -> Handled<Json<Value>> {
    if commands.is_empty() {
        return Err(Fault::invalid("commands is required"));
    }
    if commands.len() > MOST_COMMANDS {
        let message = format!("{} commands, at most {MOST_COMMANDS} are taken", commands.len());
        return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let profile = Profile::named(None)?;
    let each = commands.into_iter().map(|One { command }| {
        let ask = ask.clone();
        async move {
            match once(&ask, profile, command).await {
                Ok(said) => json!({ "output": said["output"], "error": null }),
                Err(fault) => json!({ "output": null, "error": fault.message }),
            }
        }
    });
    let results: Vec<Value> = iter(each).buffered(AT_ONCE).collect().await;
    Ok(success(json!({ "results": results })))
}

fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// Text of one stream. What ends within a character waits for the rest of it.
#[derive(Default)]
struct Text {
    rest: Vec<u8>,
}

impl Text {
    fn take(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() - begun(&self.rest);
        let tail = self.rest.split_off(whole);
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        self.rest = tail;
        text
    }

    fn end(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// Bytes at the end that begin a character and do not finish it.
fn begun(bytes: &[u8]) -> usize {
    let of = |n: usize| bytes.len().checked_sub(n).and_then(|from| bytes.get(from..));
    let is = |tail: &[u8]| {
        std::str::from_utf8(tail).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
    };
    (1..4).find(|n| of(*n).is_some_and(is)).unwrap_or(0)
}

/// A comment: no event, and not nothing.
const NOTHING: Bytes = Bytes::from_static(b":\n\n");

fn written(stream: Stream, text: &str) -> Bytes {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    event("output", &json!({ "data": text, "stream": stream }))
}

type Coming = Pin<Box<dyn Future<Output = (Vec<Bytes>, Option<Running>)> + Send>>;

/// What a stream of events is made from.
struct Feed {
    ready: VecDeque<Bytes>,
    /// What comes after that: a sandbox and a command in it.
    coming: Option<Coming>,
    running: Option<Running>,
}

struct Running {
    exec: Arc<Exec>,
    following: ringfence_supervisor::Following,
    texts: [Text; 2],
    began: Instant,
    /// Gone with the stream, however that ends.
    ephemeral: Ephemeral,
}

impl Feed {
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some((Ok(bytes), self));
            }
            if let Some(mut coming) = self.coming.take() {
                let Ok((ready, running)) = tokio::time::timeout(SILENCE, &mut coming).await else {
                    self.coming = Some(coming);
                    return Some((Ok(NOTHING), self));
                };
                self.ready.extend(ready);
                self.running = running;
                continue;
            }
            let mut running = self.running.take()?;
            let Ok(next) = tokio::time::timeout(SILENCE, running.following.next()).await else {
                self.running = Some(running);
                return Some((Ok(NOTHING), self));
            };
            match next {
                Some(Chunk { stream, bytes, .. }) => {
                    let [stdout, stderr] = &mut running.texts;
                    let text = match stream {
                        Stream::Stdout => stdout.take(&bytes),
                        Stream::Stderr => stderr.take(&bytes),
                    };
                    if !text.is_empty() {
                        self.ready.push_back(written(stream, &text));
                    }
                    self.running = Some(running);
                }
                None => self.ready.extend(last(running)),
            }
        }
    }
}

fn last(running: Running) -> Vec<Bytes> {
    let Running { exec, mut texts, began, ephemeral, .. } = running;
    let mut all = Vec::new();
    let [stdout, stderr] = &mut texts;
    all.extend(stdout.end().map(|text| written(Stream::Stdout, &text)));
    all.extend(stderr.end().map(|text| written(Stream::Stderr, &text)));
    let exec_now = exec.described();
    let code = code(exec_now.ended.as_ref());
    ran(&ephemeral.ask, &ephemeral.sandbox.id, &exec_now.argv, code, began);
    let mut done = json!({ "exit_code": code, "success": code == 0 });
    if code != 0
        && let Some(done) = done.as_object_mut()
    {
        let (output, cut) = output(&exec);
        done.insert("output".into(), output.into());
        if cut {
            done.insert("truncated".into(), true.into());
        }
    }
    all.push(event("done", &done));
    all
}

/// The next piece is taken when the last one was sent: a slow reader slows the command down.
fn events(ready: VecDeque<Bytes>, coming: Option<Coming>) -> Handled<Response> {
    let stream = unfold(Feed { ready, coming, running: None }, Feed::next);
    Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-cache")
        .header(header::CONNECTION, "keep-alive")
        .body(Content::from_stream(stream))
        .map_err(|e| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

fn failed(message: &str) -> Bytes {
    event("error", &json!({ "message": message }))
}

/// Whatever is wrong is said as an event: the answer is 200, and the first event is sent at once.
pub(super) async fn stream(ask: Ask, Body(run): Body<Run>) -> Handled<Response> {
    let profile = match run.profile() {
        Ok(profile) => profile,
        Err(fault) => return events([failed(&fault.message)].into(), None),
    };
    if run.command.is_empty() {
        return events([failed("command is required")].into(), None);
    }
    let fast = run.fast.unwrap_or(true);
    let started = json!({ "command": run.command, "fast": fast, "timestamp": rfc3339(now_ms()) });
    let coming = Box::pin(begin(ask, profile, run.command, fast));
    events([event("started", &started)].into(), Some(coming))
}

/// Makes the sandbox and starts the command: what there is to say of it, and what runs.
async fn begin(
    ask: Ask,
    profile: Profile,
    command: Vec<String>,
    fast: bool,
) -> (Vec<Bytes>, Option<Running>) {
    let mut ready = Vec::new();
    let ephemeral = match Ephemeral::make(&ask, profile).await {
        Ok(ephemeral) => ephemeral,
        Err(fault) => return (vec![failed(&fault.message)], None),
    };
    if !fast {
        let created = json!({ "stage": "sandbox_created", "sandbox": ephemeral.sandbox.id });
        ready.push(event("progress", &created));
        ready.push(event("progress", &json!({ "stage": "sandbox_started" })));
    }
    let (began, words) = (Instant::now(), command.clone());
    match exec::start(&ask, &ephemeral.sandbox, Request::of(command), false).await {
        Ok(exec) => {
            let following = exec.follow(0, 0);
            let texts = <[Text; 2]>::default();
            (ready, Some(Running { exec, following, texts, began, ephemeral }))
        }
        Err(fault) => {
            ready.push(match &fault.command {
                Some((code, output)) => {
                    ran(&ask, &ephemeral.sandbox.id, &words, *code, began);
                    let done = json!({ "exit_code": code, "success": false, "output": output });
                    event("done", &done)
                }
                None => failed(&fault.message),
            });
            (ready, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn a_character_is_not_cut_in_two() {
        let mut text = Text::default();
        assert_eq!(text.take(b"a\xc3"), "a");
        assert_eq!(text.take(b"\xa4b"), "\u{e4}b");
        assert_eq!(text.take(b"\xff\xf0\x9f"), "\u{fffd}");
        assert_eq!(text.take(b"\x98\x80"), "\u{1f600}");
        assert_eq!(text.take(b"\xe2"), "");
        assert_eq!(text.end().as_deref(), Some("\u{fffd}"));
        assert_eq!(text.end(), None);
    }
}
