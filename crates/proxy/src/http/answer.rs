//! What the filter says itself: refusals that a program can act on, and a page about the proxy.

use super::head::{self, Request};
use crate::gate::Refusal;
use crate::record::{self, Record};

const HELP: &str = "This is the egress filter of ringfence. What runs here reaches the hosts that \
its policy allows, and no others.

As a proxy it takes `GET http://host/` and `CONNECT host:port`, and SOCKS 5 at the same port; a
direct connection gets the same decision. Each refusal says why: status 403, a JSON body, and the
reason as one word in X-Ringfence-Reason.

Ask before you try:

    ringfence policy explain HOST:PORT
";

/// A refusal as an answer. `request`: what it answers, where that could be read.
pub(crate) fn refusal(refusal: &Refusal, request: Option<&Request>, close: bool) -> Vec<u8> {
    with_status(refusal, request, close, None)
}

/// The same with a status that only the caller knows.
pub(crate) fn with_status(
    refusal: &Refusal,
    request: Option<&Request>,
    close: bool,
    status: Option<u16>,
) -> Vec<u8> {
    let record = &refusal.0;
    let status = status.unwrap_or(match record.reason {
        "malformed" => 400,
        "unreachable" if late(record) => 504,
        "unresolvable" | "unreachable" | "upstream" => 502,
        "limit" => 503,
        _ => 403,
    });
    let (kind, body) = if request.is_some_and(wants_text) {
        let mut text = record.to_string();
        if let Some(remedy) = &record.remedy {
            text = format!("{text}\n{remedy}");
        }
        ("text/plain; charset=utf-8", text + "\n")
    } else {
        ("application/json", record::explain_json(record) + "\n")
    };
    let reason = format!("X-Ringfence-Reason: {}\r\n", record.reason);
    write(status, kind, &reason, &body, request, close)
}

/// Whether nobody answered in time.
pub(crate) fn late(record: &Record) -> bool {
    record.detail.contains("timed out") || record.detail.contains("too long")
}

/// The page about the proxy.
pub(crate) fn help(request: &Request) -> Vec<u8> {
    let close = request.old || head::lists(&request.fields, "connection", "close");
    write(200, "text/plain; charset=utf-8", "", HELP, Some(request), close)
}

fn write(
    status: u16,
    kind: &str,
    more: &str,
    body: &str,
    request: Option<&Request>,
    close: bool,
) -> Vec<u8> {
    let words = match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Gateway Timeout",
    };
    let close = if close { "Connection: close\r\n" } else { "" };
    let length = body.len();
    let body = if request.is_some_and(|r| r.method == "HEAD") { "" } else { body };
    format!(
        "HTTP/1.1 {status} {words}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\n{more}{close}\r\n{body}"
    )
    .into_bytes()
}

/// Whether text was asked for, and not JSON; who asks for nothing gets JSON.
fn wants_text(request: &Request) -> bool {
    let mut text = false;
    for wish in head::list(&request.fields, "accept") {
        let wish = wish.to_ascii_lowercase();
        if wish.windows(4).any(|w| w == b"json") {
            return false;
        }
        text |= wish.starts_with(b"text/");
    }
    text
}
