//! The OpenAPI 3.1 document: a table of routes, and schemas made from the types.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::codebases::{Codebase, Codebases, CreateCodebase};
use crate::layers::{Applied, Chosen, Fork, LayerChanges, LayerInfo, Undo};
use crate::{
    Audit, BatchCreate, BatchCreated, BatchExec, BatchExecuted, CreateSandbox, CreateSession,
    ErrorBody, Event, Exec, ExecRequest, ExecResult, Execs, Extend, FileChange, FileInfo,
    FoundFiles, FromTerminal, Health, Kill, Listing, MoveFile, Output, OwnerInfo, Sandbox,
    SandboxLimits, SandboxStats, Sandboxes, Session, SessionExec, Sessions, Stats, ToTerminal,
    Unpacked, WatchEnded,
};

type Schema = fn(&mut SchemaGenerator) -> Value;

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

/// What a request or an answer carries.
#[derive(Clone, Copy)]
enum Body {
    Nothing,
    Json(Schema),
    Bytes,
    /// For Prometheus.
    Metrics,
    /// Server-sent events, each with this as its data.
    Events(Schema),
}

struct Route {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    says: &'static str,
    query: &'static [(&'static str, bool, &'static str)],
    asks: Body,
    status: &'static str,
    answers: Body,
}

/// Names that people give things, as JSON Schema says it.
pub(crate) const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";

/// Text that the kernel can be told.
pub(crate) const PLAIN: &str = "^[^\\u0000]*$";

const PATH: (&str, bool, &str) = ("path", true, "as it is seen inside; relative to the workspace");

const CHANGED: (&str, bool, &str) =
    ("path", false, "only what lies there or below; relative to the workspace");

const IN_CODEBASE: (&str, bool, &str) =
    ("path", true, "relative to the codebase, or below /workspace");

#[rustfmt::skip]
const ROUTES: &[Route] = &[
    Route { method: "get", path: "/v1/health", id: "health", says: "Whether the daemon is there", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Health>) },
    Route { method: "get", path: "/v1/openapi.json", id: "openapi", says: "This document", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(|_| json!({ "type": "object" })) },
    Route { method: "post", path: "/v1/sandboxes", id: "createSandbox", says: "Make a sandbox", query: &[], asks: Body::Json(of::<CreateSandbox>), status: "201", answers: Body::Json(of::<Sandbox>) },
    Route { method: "get", path: "/v1/sandboxes", id: "listSandboxes", says: "One's own sandboxes", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Sandboxes>) },
    Route { method: "get", path: "/v1/sandboxes/{id}", id: "getSandbox", says: "A sandbox, by id or name", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Sandbox>) },
    Route { method: "delete", path: "/v1/sandboxes/{id}", id: "deleteSandbox", says: "End it and forget it; again is no error", query: &[], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/sandboxes/{id}/start", id: "startSandbox", says: "Make it again after a stop, or let it go on after a freeze", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Sandbox>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/stop", id: "stopSandbox", says: "End every process in it", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Sandbox>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/freeze", id: "freezeSandbox", says: "Stop every process in it where it stands", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Sandbox>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/extend", id: "extendSandbox", says: "Let it live longer", query: &[], asks: Body::Json(of::<Extend>), status: "200", answers: Body::Json(of::<Sandbox>) },
    Route { method: "patch", path: "/v1/sandboxes/{id}/limits", id: "limitSandbox", says: "Change limits, also while it runs; what cannot be is refused by its name", query: &[], asks: Body::Json(of::<SandboxLimits>), status: "200", answers: Body::Json(of::<Sandbox>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/exec", id: "exec", says: "Run a command to its end, or in the background", query: &[], asks: Body::Json(of::<ExecRequest>), status: "200", answers: Body::Json(of::<ExecResult>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/exec/stream", id: "execStream", says: "Run a command and stream its output", query: &[], asks: Body::Json(of::<ExecRequest>), status: "200", answers: Body::Events(output) },
    Route { method: "get", path: "/v1/sandboxes/{id}/execs", id: "listExecs", says: "Commands that run, and the last that ended", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Execs>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/execs/{exec}", id: "getExec", says: "A command", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Exec>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/execs/{exec}/stream", id: "followExec", says: "Its output from an offset on, as it comes", query: &[("stdout_offset", false, "first byte of stdout"), ("stderr_offset", false, "first byte of stderr")], asks: Body::Nothing, status: "200", answers: Body::Events(output) },
    Route { method: "post", path: "/v1/sandboxes/{id}/execs/{exec}/kill", id: "killExec", says: "Send it and what it started a signal", query: &[], asks: Body::Json(of::<Kill>), status: "204", answers: Body::Nothing },
    Route { method: "get", path: "/v1/sandboxes/{id}/execs/{exec}/terminal", id: "attachTerminal", says: "A WebSocket to its terminal: binary messages are bytes both ways, text messages as described", query: &[("offset", false, "first byte of its output"), ("hangup", false, "send it SIGHUP when the connection ends first: true or false")], asks: Body::Nothing, status: "101", answers: Body::Json(terminal) },
    Route { method: "post", path: "/v1/batch/sandboxes", id: "batchCreate", says: "Make many sandboxes", query: &[], asks: Body::Json(of::<BatchCreate>), status: "200", answers: Body::Json(of::<BatchCreated>) },
    Route { method: "post", path: "/v1/batch/exec", id: "batchExec", says: "Run many commands, in one sandbox or several, each to its end", query: &[], asks: Body::Json(of::<BatchExec>), status: "200", answers: Body::Json(of::<BatchExecuted>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/sessions", id: "createSession", says: "Start a shell that keeps directory, variables and functions", query: &[], asks: Body::Json(of::<CreateSession>), status: "201", answers: Body::Json(of::<Session>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/sessions", id: "listSessions", says: "Its sessions, and the last that were closed", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Sessions>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/sessions/{session}", id: "getSession", says: "A session", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Session>) },
    Route { method: "delete", path: "/v1/sandboxes/{id}/sessions/{session}", id: "deleteSession", says: "End the shell and what it started; again is no error", query: &[], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/sandboxes/{id}/sessions/{session}/exec", id: "sessionExec", says: "Run a command in the shell, to its end", query: &[], asks: Body::Json(of::<SessionExec>), status: "200", answers: Body::Json(of::<ExecResult>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/sessions/{session}/exec/stream", id: "sessionExecStream", says: "Run a command in the shell and stream its output", query: &[], asks: Body::Json(of::<SessionExec>), status: "200", answers: Body::Events(output) },
    Route { method: "get", path: "/v1/sandboxes/{id}/files", id: "readFile", says: "A file's bytes", query: &[PATH, ("offset", false, "first byte"), ("length", false, "at most this many")], asks: Body::Nothing, status: "200", answers: Body::Bytes },
    Route { method: "put", path: "/v1/sandboxes/{id}/files", id: "writeFile", says: "Put a file in place as a whole", query: &[PATH, ("durable", false, "true: it is on the disk before the answer is")], asks: Body::Bytes, status: "204", answers: Body::Nothing },
    Route { method: "delete", path: "/v1/sandboxes/{id}/files", id: "removeFile", says: "Remove a file or an empty directory", query: &[PATH], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "get", path: "/v1/sandboxes/{id}/files/stat", id: "statFile", says: "What a name is; a link is not followed", query: &[PATH], asks: Body::Nothing, status: "200", answers: Body::Json(of::<FileInfo>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/files/list", id: "listFiles", says: "The names in a directory", query: &[PATH], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Listing>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/files/move", id: "moveFile", says: "Give a file or directory another name", query: &[], asks: Body::Json(of::<MoveFile>), status: "204", answers: Body::Nothing },
    Route { method: "get", path: "/v1/sandboxes/{id}/files/search", id: "searchFiles", says: "Names that match below a directory, or lines that have a text", query: &[("path", false, "the directory; default: the workspace"), ("name", false, "a pattern of names, or with a slash of paths"), ("content", false, "a text that a line has"), ("limit", false, "answers at most")], asks: Body::Nothing, status: "200", answers: Body::Json(of::<FoundFiles>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/files/archive", id: "packFiles", says: "What is below a directory, as a tar archive", query: &[("path", false, "the directory; default: the workspace")], asks: Body::Nothing, status: "200", answers: Body::Bytes },
    Route { method: "put", path: "/v1/sandboxes/{id}/files/archive", id: "unpackFiles", says: "Put what a tar archive has below a directory: files and directories", query: &[("path", false, "the directory; default: the workspace")], asks: Body::Bytes, status: "200", answers: Body::Json(of::<Unpacked>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/files/watch", id: "watchFiles", says: "What changes in a directory, as it comes: events ready, created, changed, attributes, moved, removed, overflow, ended", query: &[("path", false, "the directory; default: the workspace"), ("recursive", false, "true: also below it")], asks: Body::Nothing, status: "200", answers: Body::Events(changes) },
    Route { method: "post", path: "/v1/sandboxes/{id}/files/chmod", id: "chmodFile", says: "Set the permissions of a file or directory; a link is refused", query: &[PATH, ("mode", true, "permissions in octal digits")], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/sandboxes/{id}/files/directory", id: "makeDirectory", says: "Make a directory", query: &[PATH], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "get", path: "/v1/sandboxes/{id}/layer", id: "layer", says: "What is kept of its layer", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<LayerInfo>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/layer/diff", id: "layerDiff", says: "What it changed", query: &[CHANGED], asks: Body::Nothing, status: "200", answers: Body::Json(of::<LayerChanges>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/layer/patch", id: "layerPatch", says: "What it changed, as git apply and patch take it", query: &[CHANGED, ("binary", false, "true: binary files too")], asks: Body::Nothing, status: "200", answers: Body::Bytes },
    Route { method: "get", path: "/v1/sandboxes/{id}/layer/archive", id: "exportLayer", says: "Its layer as a tar archive; the sandbox must be stopped", query: &[("snapshot", false, "what it held then"), ("zstd", false, "true: compressed")], asks: Body::Nothing, status: "200", answers: Body::Bytes },
    Route { method: "post", path: "/v1/sandboxes/{id}/layer/apply", id: "applyLayer", says: "Bring what it changed to the real files, as far as its policy lets it write there; it must be stopped", query: &[], asks: Body::Json(of::<Chosen>), status: "200", answers: Body::Json(of::<Applied>) },
    Route { method: "post", path: "/v1/sandboxes/{id}/layer/discard", id: "discardLayer", says: "Throw away what it changed; it must be stopped", query: &[], asks: Body::Json(of::<Chosen>), status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/sandboxes/{id}/layer/checkpoint", id: "checkpointLayer", says: "Remember what the layer holds, for an undo; it must be stopped", query: &[], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/sandboxes/{id}/layer/undo", id: "undoLayer", says: "Take back what was changed since a checkpoint; it must be stopped", query: &[], asks: Body::Json(of::<Undo>), status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/sandboxes/{id}/layer/fork", id: "forkLayer", says: "Another layer that holds the same; it must be stopped", query: &[], asks: Body::Json(of::<Fork>), status: "204", answers: Body::Nothing },
    Route { method: "put", path: "/v1/sandboxes/{id}/layer/snapshots/{snapshot}", id: "snapshotLayer", says: "Give what the layer holds a name; it must be stopped", query: &[], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "delete", path: "/v1/sandboxes/{id}/layer/snapshots/{snapshot}", id: "forgetSnapshot", says: "Forget a snapshot", query: &[], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/sandboxes/{id}/layer/snapshots/{snapshot}/restore", id: "restoreLayer", says: "Let the layer hold what it held then; it must be stopped", query: &[], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "get", path: "/v1/owner", id: "owner", says: "Who asks, and what they may have and have", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<OwnerInfo>) },
    Route { method: "get", path: "/v1/events", id: "events", says: "What happens, as it happens", query: &[("sandbox", false, "only of this one, by id or name"), ("after", false, "those after this id, as the header Last-Event-ID; default: from now on")], asks: Body::Nothing, status: "200", answers: Body::Events(of::<Event>) },
    Route { method: "get", path: "/v1/audit", id: "audit", says: "What happened: who ran what where, when, and how it ended", query: &[("sandbox", false, "only of this one, by id or name"), ("kind", false, "only of this kind; with a dot at the end all that begin so"), ("since_ms", false, "milliseconds since 1970"), ("until_ms", false, "milliseconds since 1970"), ("after", false, "those after this id"), ("limit", false, "at most so many: default 100, at most 1000"), ("owner", false, "of a named owner; for the daemon's user alone")], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Audit>) },
    Route { method: "get", path: "/v1/sandboxes/{id}/stats", id: "sandboxStats", says: "What a sandbox uses", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<SandboxStats>) },
    Route { method: "get", path: "/v1/stats", id: "stats", says: "What one's own sandboxes and the daemon use", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Stats>) },
    Route { method: "get", path: "/metrics", id: "metrics", says: "Figures of the daemon, for Prometheus", query: &[], asks: Body::Nothing, status: "200", answers: Body::Metrics },
    Route { method: "post", path: "/v1/codebases", id: "createCodebase", says: "Make a codebase, empty or of a directory", query: &[], asks: Body::Json(of::<CreateCodebase>), status: "201", answers: Body::Json(of::<Codebase>) },
    Route { method: "get", path: "/v1/codebases", id: "listCodebases", says: "One's own codebases", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Codebases>) },
    Route { method: "get", path: "/v1/codebases/{codebase}", id: "getCodebase", says: "A codebase, by id or name", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Codebase>) },
    Route { method: "delete", path: "/v1/codebases/{codebase}", id: "deleteCodebase", says: "Remove a codebase that no sandbox is made from", query: &[], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/codebases/{codebase}/seal", id: "sealCodebase", says: "Let nothing be changed in it any more", query: &[], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Codebase>) },
    Route { method: "get", path: "/v1/codebases/{codebase}/archive", id: "exportCodebase", says: "Its tree as a tar archive", query: &[("zstd", false, "true: compressed")], asks: Body::Nothing, status: "200", answers: Body::Bytes },
    Route { method: "put", path: "/v1/codebases/{codebase}/archive", id: "importCodebase", says: "Put a tar archive, also of zstd or gzip, over what is there", query: &[("path", false, "the directory to put it below"), ("create", false, "true: make the codebase of it"), ("owner", false, "with create: whose it is said to be"), ("sealed", false, "with create: true")], asks: Body::Bytes, status: "200", answers: Body::Json(of::<Codebase>) },
    Route { method: "get", path: "/v1/codebases/{codebase}/files", id: "readCodebaseFile", says: "A file's bytes", query: &[IN_CODEBASE, ("offset", false, "first byte"), ("length", false, "at most this many")], asks: Body::Nothing, status: "200", answers: Body::Bytes },
    Route { method: "put", path: "/v1/codebases/{codebase}/files", id: "writeCodebaseFile", says: "Put a file in place as a whole; directories on the way are made", query: &[IN_CODEBASE, ("mode", false, "permissions in octal digits; default: as before, or 644")], asks: Body::Bytes, status: "200", answers: Body::Json(of::<FileInfo>) },
    Route { method: "delete", path: "/v1/codebases/{codebase}/files", id: "removeCodebaseFile", says: "Remove a file or an empty directory", query: &[IN_CODEBASE, ("recursive", false, "true: a directory with all that is in it")], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "get", path: "/v1/codebases/{codebase}/files/stat", id: "statCodebaseFile", says: "What a name is; a link is not followed", query: &[IN_CODEBASE], asks: Body::Nothing, status: "200", answers: Body::Json(of::<FileInfo>) },
    Route { method: "get", path: "/v1/codebases/{codebase}/files/list", id: "listCodebaseFiles", says: "The names in a directory", query: &[("path", false, "default: the codebase itself"), ("recursive", false, "true: all below it, by their paths")], asks: Body::Nothing, status: "200", answers: Body::Json(of::<Listing>) },
    Route { method: "post", path: "/v1/codebases/{codebase}/files/directory", id: "makeCodebaseDirectory", says: "Make a directory, and those on the way", query: &[IN_CODEBASE], asks: Body::Nothing, status: "204", answers: Body::Nothing },
    Route { method: "post", path: "/v1/codebases/{codebase}/files/move", id: "moveCodebaseFile", says: "Give a file or directory another name", query: &[IN_CODEBASE, ("to", true, "its path then")], asks: Body::Nothing, status: "204", answers: Body::Nothing },
];

/// What text messages over a terminal's socket say, from either side.
fn terminal(generator: &mut SchemaGenerator) -> Value {
    json!({ "oneOf": [of::<ToTerminal>(generator), of::<FromTerminal>(generator)] })
}

/// The routes, for whoever serves them: method and path.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|route| (route.method, route.path))
}

/// What a body is said to be, where it is bytes.
fn media(id: &str) -> &'static [&'static str] {
    match id {
        "layerPatch" => &["text/x-diff"],
        "packFiles" => &["application/x-tar"],
        "exportLayer" | "exportCodebase" => &["application/x-tar", "application/zstd"],
        _ => &["application/octet-stream"],
    }
}

fn content(id: &str, body: Body, generator: &mut SchemaGenerator) -> Option<Value> {
    Some(match body {
        Body::Nothing => return None,
        Body::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
        Body::Metrics => {
            json!({ "application/openmetrics-text": { "schema": { "type": "string" } } })
        }
        Body::Bytes => media(id).iter().map(|kind| ((*kind).to_owned(), json!({}))).collect(),
        // One event: its name, and its data as text.
        Body::Events(schema) => json!({ "text/event-stream": { "schema": {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": { "type": "string" },
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": schema(generator),
                },
            },
        } } }),
    })
}

/// What the events of a command's output say: `started` and `ended` the command, others its bytes.
fn output(generator: &mut SchemaGenerator) -> Value {
    json!({ "anyOf": [of::<Output>(generator), of::<Exec>(generator)] })
}

/// What the events of a watched directory say; `ready` and `overflow` say no more than their names.
fn changes(generator: &mut SchemaGenerator) -> Value {
    let nothing = json!({ "type": "object", "maxProperties": 0 });
    json!({ "anyOf": [of::<FileChange>(generator), of::<WatchEnded>(generator), nothing] })
}

/// Of a parameter behind the question mark, by its name and whether it must be given.
fn parameter(route: &str, name: &str, required: bool) -> Value {
    match name {
        "limit" if route == "audit" => json!({ "type": "integer", "minimum": 1, "maximum": 1000 }),
        "limit" => json!({ "type": "integer", "minimum": 1, "maximum": 10_000 }),
        "length" | "after" | "since_ms" | "until_ms" => json!({ "type": "integer", "minimum": 0 }),
        name if name.ends_with("offset") => json!({ "type": "integer", "minimum": 0 }),
        "hangup" | "binary" | "zstd" | "create" | "sealed" | "recursive" | "durable" => {
            json!({ "type": "boolean" })
        }
        "mode" => json!({ "type": "string", "pattern": "^[0-7]{1,3}$" }),
        // Of a path, and nothing that the kernel cannot be told.
        "path" | "to" if required => json!({ "type": "string", "pattern": "^[^\\u0000]+$" }),
        "path" => json!({ "type": "string", "pattern": "^[^\\u0000]*$" }),
        _ => json!({ "type": "string" }),
    }
}

/// `*`, or tags as `ETag` has them.
const TAGS: &str = r#"^(\*|(W/)?"[!#-~]*"(, (W/)?"[!#-~]*")*)$"#;

/// Of a request about a file: what its head may say besides.
fn conditions(id: &str) -> &'static [(&'static str, &'static str)] {
    const SAME: (&str, &str) = ("If-None-Match", "tags (ETag): 304 where it is so still");
    match id {
        "readFile" => &[
            SAME,
            (
                "Range",
                "one range, as bytes=0-99, bytes=100- or bytes=-100; passed over with offset or length",
            ),
            ("If-Range", "with it, Range is passed over: no tag is strong"),
        ],
        "writeFile" => &[
            ("If-Match", "tags (ETag) or *: 412 where it is otherwise by now"),
            ("If-None-Match", "*: 412 where there is a file already; tags: 412 where it is so"),
        ],
        _ => &[],
    }
}

/// Other good answers of a route, and what heads they and the usual one have.
fn others(id: &str) -> &'static [(&'static str, &'static str)] {
    match id {
        "readFile" => {
            &[("206", "The range that was asked for"), ("304", "It is what the caller has")]
        }
        _ => &[],
    }
}

fn heads(id: &str, status: &str) -> Value {
    let text = |says: &str| json!({ "description": says, "schema": { "type": "string" } });
    let mut all = Map::new();
    if matches!((id, status), ("readFile", _) | ("writeFile", "204")) {
        let says = "the state of the file, weak; of a small one that was written without condition not told";
        all.insert("ETag".into(), text(says));
    }
    if id == "readFile" {
        all.insert("Accept-Ranges".into(), text("bytes"));
    }
    if id == "readFile" && matches!(status, "206" | "416") {
        all.insert("Content-Range".into(), text("which bytes of how many"));
    }
    Value::Object(all)
}

/// Every status that is an error and can be answered, and when.
fn errors(route: &Route) -> Vec<(&'static str, &'static str)> {
    let named = route.path.contains('{');
    let acts = named || route.method == "post";
    let asks = named || !route.query.is_empty() || !matches!(route.asks, Body::Nothing);
    let again = matches!(route.id, "deleteSandbox" | "deleteSession");
    let absent = acts && !again || route.id == "audit";
    let sent = !matches!(route.asks, Body::Nothing);
    let large = sent || route.id.starts_with("read");
    [
        (asks, "400", "The request makes no sense"),
        (true, "401", "The token is missing or wrong; over TCP"),
        (true, "403", "The caller may not ask, or policy, rules or host refuse it"),
        (absent, "404", "There is no such thing, or it is not the caller's"),
        (acts, "409", "Not in the state that it is in, or something is in the way"),
        (route.id == "writeFile", "412", "It is not as the caller takes it to be"),
        (acts && large, "413", "Larger than is taken or given at once"),
        (matches!(route.asks, Body::Json(_)), "415", "The body is not said to be JSON"),
        (route.id == "readFile", "416", "Nothing of the range is there"),
        (route.status == "101", "426", "Not by WebSocket"),
        (acts, "429", "A limit is reached"),
        (true, "500", "A failure of the daemon's own"),
        (acts, "503", "Not yet: try again soon"),
    ]
    .into_iter()
    .filter_map(|(can, status, says)| can.then_some((status, says)))
    .collect()
}

fn responses(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut all = Map::new();
    let mut done = Map::new();
    done.insert("description".into(), route.says.into());
    if let Some(content) = content(route.id, route.answers, generator) {
        done.insert("content".into(), content);
    }
    let heads_of = |status: &str| Some(heads(route.id, status)).filter(|h| *h != json!({}));
    if let Some(heads) = heads_of(route.status) {
        done.insert("headers".into(), heads);
    }
    for (status, says) in others(route.id) {
        let mut other = done.clone();
        other.insert("description".into(), (*says).into());
        other.extend(heads_of(status).map(|heads| ("headers".to_owned(), heads)));
        if *status == "304" {
            other.remove("content");
        }
        all.insert((*status).into(), Value::Object(other));
    }
    // A command in the background has been begun, and not more.
    let begun = (route.id == "exec").then(|| done.clone());
    all.extend(begun.map(|begun| ("202".to_owned(), Value::Object(begun))));
    all.insert(route.status.into(), Value::Object(done));
    let error = of::<ErrorBody>(generator);
    for (status, says) in errors(route) {
        let mut answer = json!({
            "description": says,
            "content": { "application/json": { "schema": error } },
        });
        if let (true, Some(answer)) = (matches!(status, "429" | "503"), answer.as_object_mut()) {
            let when = json!({ "Retry-After": {
                "description": "seconds", "schema": { "type": "integer", "minimum": 0 },
            } });
            answer.insert("headers".into(), when);
        }
        if let (Some(heads), Some(answer)) =
            (heads_of(status).filter(|_| status == "416"), answer.as_object_mut())
        {
            answer.insert("headers".into(), heads);
        }
        all.insert(status.into(), answer);
    }
    Value::Object(all)
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let in_path =
        route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| {
            let schema = json!({ "type": "string", "minLength": 1 });
            json!({ "name": name, "in": "path", "required": true, "schema": schema })
        })
        .collect();
    for (name, required, says) in route.query {
        parameters.push(json!({
            "name": name, "in": "query", "required": required, "description": says,
            "schema": parameter(route.id, name, *required),
        }));
    }
    if matches!(route.id, "createSandbox" | "exec" | "execStream") {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "schema": { "type": "string", "pattern": "^[!-~]{1,128}$" },
            "description": "the same request with the same key is carried out once",
        }));
    }
    for (name, says) in conditions(route.id) {
        parameters.push(json!({
            "name": name, "in": "header", "required": false, "description": says,
            "schema": match *name {
                "Range" | "If-Range" => json!({ "type": "string" }),
                _ => json!({ "type": "string", "pattern": TAGS }),
            },
        }));
    }
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.says,
        "parameters": parameters,
        "responses": responses(route, generator),
    });
    if let (Some(content), Some(operation)) =
        (content("", route.asks, generator), operation.as_object_mut())
    {
        // No bytes are an empty file.
        let required = !matches!(route.asks, Body::Bytes);
        let body = json!({ "required": required, "content": content });
        operation.insert("requestBody".into(), body);
    }
    operation
}

/// The whole document.
pub fn document(version: &str) -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut generator);
        let entry = paths.entry(route.path).or_insert_with(|| Value::Object(Map::new()));
        if let Some(methods) = entry.as_object_mut() {
            methods.insert(route.method.into(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "ringfence", "version": version },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
        "security": [{}, { "token": [] }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference of the document leads to a schema that is in it.
    #[test]
    fn the_document_is_closed() {
        fn look(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        found.push(to.clone());
                    }
                    map.values().for_each(|value| look(value, found));
                }
                Value::Array(all) => all.iter().for_each(|value| look(value, found)),
                _ => {}
            }
        }
        let document = document("1");
        let mut references = Vec::new();
        look(&document, &mut references);
        assert!(references.len() > ROUTES.len());
        for to in references {
            assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
        }
        let ids: std::collections::HashSet<_> = ROUTES.iter().map(|route| route.id).collect();
        assert_eq!(ids.len(), ROUTES.len());
    }
}
