//! Commands in a sandbox of their own, which is gone afterwards.

use std::collections::VecDeque;
use std::sync::Arc;

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
        super::count(&ask.dialect.counts.removed);
        tokio::spawn(async move {
            // It has no name that somebody could wait for.
            let _ = ask.run(Command::Delete(id)).await;
        });
    }
}

async fn once(ask: &Ask, profile: Profile, command: Vec<String>) -> Handled<String> {
    if command.is_empty() {
        return Err(Fault::invalid("command is required"));
    }
    let ephemeral = Ephemeral::make(ask, profile).await?;
    let exec = exec::start(ask, &ephemeral.sandbox, Request::of(command), true).await?;
    exec::finish(&exec).await
}

pub(super) async fn run(ask: Ask, Body(run): Body<Run>) -> Handled<Json<Value>> {
    let profile = run.profile()?;
    Ok(success(json!({ "output": once(&ask, profile, run.command).await? })))
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
                Ok(output) => json!({ "output": output, "error": null }),
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

fn written(stream: Stream, text: &str) -> Bytes {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    event("output", &json!({ "data": text, "stream": stream }))
}

/// What a stream of events is made from.
struct Feed {
    ready: VecDeque<Bytes>,
    running: Option<Running>,
}

struct Running {
    exec: Arc<Exec>,
    following: ringfence_supervisor::Following,
    texts: [Text; 2],
    /// Gone with the stream, however that ends.
    _ephemeral: Ephemeral,
}

impl Feed {
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some((Ok(bytes), self));
            }
            let mut running = self.running.take()?;
            match running.following.next().await {
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
    let Running { exec, mut texts, .. } = running;
    let mut all = Vec::new();
    let [stdout, stderr] = &mut texts;
    all.extend(stdout.end().map(|text| written(Stream::Stdout, &text)));
    all.extend(stderr.end().map(|text| written(Stream::Stderr, &text)));
    let code = code(exec.described().ended.as_ref());
    let mut done = json!({ "exit_code": code, "success": code == 0 });
    if code != 0
        && let Some(done) = done.as_object_mut()
    {
        done.insert("output".into(), output(&exec).into());
    }
    all.push(event("done", &done));
    all
}

/// The next piece is taken when the last one was sent: a slow reader slows the command down.
fn events(ready: VecDeque<Bytes>, running: Option<Running>) -> Handled<Response> {
    let stream = unfold(Feed { ready, running }, Feed::next);
    Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-cache")
        .body(Content::from_stream(stream))
        .map_err(|e| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

pub(super) async fn stream(ask: Ask, Body(run): Body<Run>) -> Handled<Response> {
    let profile = run.profile()?;
    let failed = |message: &str| event("error", &json!({ "message": message }));
    if run.command.is_empty() {
        return events(VecDeque::from([failed("command is required")]), None);
    }
    let started = json!({
        "command": run.command,
        "fast": run.fast.unwrap_or(true),
        "timestamp": rfc3339(now_ms()),
    });
    let mut ready = VecDeque::from([event("started", &started)]);
    let ephemeral = match Ephemeral::make(&ask, profile).await {
        Ok(ephemeral) => ephemeral,
        Err(fault) => {
            ready.push_back(failed(&fault.message));
            return events(ready, None);
        }
    };
    match exec::start(&ask, &ephemeral.sandbox, Request::of(run.command), false).await {
        Ok(exec) => {
            let following = exec.follow(0, 0);
            let texts = <[Text; 2]>::default();
            let running = Running { exec, following, texts, _ephemeral: ephemeral };
            events(ready, Some(running))
        }
        Err(fault) => {
            ready.push_back(match &fault.command {
                Some((code, output)) => {
                    let done = json!({ "exit_code": code, "success": false, "output": output });
                    event("done", &done)
                }
                None => failed(&fault.message),
            });
            events(ready, None)
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
