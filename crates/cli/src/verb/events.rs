//! `ringfence events` and `ringfence audit`: what happens in the daemon, and what happened.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{ArgMatches, Command};
use ringfence_api::{Audit, Event};
use ringfence_client::{GET, NOTHING, segment};

use super::daemon::connect;
use super::sandboxes::{json, text, time, value};
use crate::exit::ExitCode;
use crate::help;
use crate::output::{self, printable};

/// Records that are asked for at once.
const PAGE: u64 = 1000;

pub fn commands() -> [Command; 2] {
    let sandbox = || value("sandbox", "SANDBOX", "Only of this one, by name or id");
    let kind = || value("kind", "KIND", "Only of this kind (exec.ended), or that begin so (exec.)");
    [
        Command::new("events")
            .about("Follow what happens in the daemon")
            .arg(sandbox())
            .arg(kind())
            .arg(value("after", "ID", "Begin after this event, also where it was long ago"))
            .arg(
                value("count", "N", "End after so many")
                    .value_parser(clap::value_parser!(u64).range(1..)),
            )
            .arg(json())
            .after_help(
                "Prints a line for each event, until it is interrupted.\n\nExamples:\n  ringfence events\n  ringfence events --sandbox box --kind exec.\n  ringfence events --json --after 1790000000000000",
            ),
        Command::new("audit")
            .about("Say who ran what where, when, and how it ended")
            .arg(sandbox())
            .arg(kind())
            .arg(value("since", "TIME", "Only what happened in the last TIME (10m, 24h)"))
            .arg(
                value("limit", "N", "The last N records (default 100)")
                    .value_parser(clap::value_parser!(u64).range(1..)),
            )
            .arg(value("owner", "NAME", "Of an owner that a token was made for"))
            .arg(json())
            .after_help(
                "Examples:\n  ringfence audit\n  ringfence audit --sandbox box --kind exec.ended --json\n  ringfence audit --since 1h --kind refused",
            ),
    ]
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let done = match matches.subcommand() {
        Some(("events", m)) => follow(m),
        Some(("audit", m)) => audit(m),
        _ => Err("no such verb".into()),
    };
    done.unwrap_or_else(output::fail)
}

/// The flags that were given, behind a question mark.
fn query(path: &str, given: &[(&str, Option<String>)]) -> String {
    let mut out = path.to_owned();
    for (name, value) in given {
        if let Some(value) = value {
            let mark = if out.contains('?') { '&' } else { '?' };
            let _ = write!(out, "{mark}{name}={}", segment(value));
        }
    }
    out
}

fn own(m: &ArgMatches, name: &str) -> Option<String> {
    text(m, name).map(ToOwned::to_owned)
}

fn follow(m: &ArgMatches) -> Result<ExitCode, String> {
    let given = [("sandbox", own(m, "sandbox")), ("after", own(m, "after"))];
    let kind = text(m, "kind").unwrap_or_default();
    let as_json = m.get_flag("json");
    let mut left = m.get_one::<u64>("count").copied().unwrap_or(u64::MAX);
    let mut printed = ExitCode::SUCCESS;
    connect()?
        .happens(&query("/v1/events", &given), &mut |event| {
            let wanted = kind.is_empty()
                || event.kind == kind
                || (kind.ends_with('.') && event.kind.starts_with(kind));
            if wanted {
                let text = if as_json { on_a_line(&event) } else { line(&event) };
                printed = output::print(&format!("{text}\n"));
                left -= 1;
            }
            left > 0 && printed == ExitCode::SUCCESS
        })
        .map_err(|e| e.to_string())?;
    Ok(printed)
}

fn audit(m: &ArgMatches) -> Result<ExitCode, String> {
    let since = time(m, "since")?.map(|ms| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        now.saturating_sub(ms).to_string()
    });
    let last = m.get_one::<u64>("limit").copied().unwrap_or(100) as usize;
    let mut client = connect()?;
    let mut events = std::collections::VecDeque::new();
    let mut after = None;
    loop {
        let given = [
            ("sandbox", own(m, "sandbox")),
            ("kind", own(m, "kind")),
            ("owner", own(m, "owner")),
            ("since_ms", since.clone()),
            ("limit", Some(PAGE.to_string())),
            ("after", after),
        ];
        let path = query("/v1/audit", &given);
        let page: Audit = client.call(GET, &path, NOTHING).map_err(|e| e.to_string())?;
        events.extend(page.events);
        while events.len() > last {
            events.pop_front();
        }
        match page.next {
            Some(next) => after = Some(next.to_string()),
            None => break,
        }
    }
    if m.get_flag("json") {
        return Ok(output::print_json(&events));
    }
    let mut out = String::new();
    for event in &events {
        let _ = writeln!(out, "{}", line(event));
    }
    Ok(output::print(&out))
}

fn on_a_line(event: &Event) -> String {
    serde_json::to_string(event).unwrap_or_default()
}

/// For people: when, who, what, where, and how it ended.
fn line(event: &Event) -> String {
    let mut out = format!("{}  {:16}", ringfence_daemon::rfc3339(event.at_ms), event.kind);
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(out, "  {name}{}", printable(&value));
        }
    };
    say("", event.name.clone().or_else(|| event.sandbox.clone()));
    say("", event.action.clone());
    say("", event.state.map(|s| s.text().to_owned()));
    say("", event.subject.clone());
    say("", (!event.argv.is_empty()).then(|| event.argv.join(" ")));
    say("exit ", event.exit_code.map(|n| n.to_string()));
    say("signal ", event.signal.map(|n| n.to_string()));
    say("", event.reason.clone());
    say("", event.duration_us.map(|us| format!("{}.{:03} s", us / 1_000_000, us / 1000 % 1000)));
    say("times ", event.count.map(|n| n.to_string()));
    let who = match (event.uid, event.pid) {
        (Some(uid), Some(pid)) => format!("uid {uid} pid {pid}"),
        (Some(uid), None) => format!("uid {uid}"),
        _ => String::new(),
    };
    say("by ", Some(format!("{} ({}) {who}", event.owner, event.interface).trim().to_owned()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_ran_what_where_when_and_how_it_ended() {
        let event = Event {
            at_ms: 1_735_689_599_999,
            kind: "exec.ended".into(),
            owner: "1000".into(),
            interface: "api".into(),
            uid: Some(1000),
            pid: Some(7),
            name: Some("box".into()),
            subject: Some("ex_1".into()),
            argv: vec!["make".into(), "te\x1bst".into()],
            exit_code: Some(2),
            duration_us: Some(1_500_000),
            ..Event::default()
        };
        let text = line(&event);
        assert!(
            text.starts_with("2024-12-31T23:59:59.999Z  exec.ended        box  ex_1  make te"),
            "{text}"
        );
        assert!(text.ends_with("exit 2  1.500 s  by 1000 (api) uid 1000 pid 7"), "{text}");
        assert!(!text.contains('\x1b'));
    }
}
