//! `ringfence top` and `ringfence stats`: what sandboxes use.

// Of figures that are rounded for people.
#![allow(clippy::cast_precision_loss)]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_api::{DiskIo, SandboxStats, State, Stats};
use ringfence_client::keys::{Happened, Keys};
use ringfence_client::{Client, GET, NOTHING};
use serde::Serialize;

use super::attach::{Raw, size};
use super::daemon::connect;
use super::sandboxes::{json, place, sandbox, text, time, value};
use crate::exit::ExitCode;
use crate::help;
use crate::output::{self, printable};

/// Between two looks, where nothing else is said.
const DELAY: Duration = Duration::from_secs(2);
/// For rates where one table only is wanted.
const GLANCE: Duration = Duration::from_millis(500);
/// Signals end with this and their number.
const SIGNALLED: i32 = 128;

pub fn commands() -> [Command; 2] {
    [
        Command::new("top")
            .about("Show what the daemon's sandboxes use, as it changes")
            .arg(
                value("sort", "COLUMN", "Sort by this column")
                    .value_parser(PossibleValuesParser::new(Sort::ALL.map(Sort::text)))
                    .default_value(Sort::Cpu.text()),
            )
            .arg(value("delay", "TIME", "Between two looks (default: 2s)"))
            .arg(
                Arg::new("once")
                    .long("once")
                    .action(ArgAction::SetTrue)
                    .help("Print the table once; so it does where it is not to a terminal"),
            )
            .arg(json().help("Print JSON, a line for each look"))
            .after_help(
                "Keys: q quits; c, m, p, e, n sort by cpu, memory, pids, execs, name; r turns the order.\n\nExamples:\n  ringfence top\n  ringfence top --sort memory --once\n  ringfence top --json --once",
            ),
        Command::new("stats")
            .about("Say what a sandbox uses")
            .arg(sandbox())
            .arg(json())
            .after_help("Examples:\n  ringfence stats box\n  ringfence stats box --json"),
    ]
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let done = match matches.subcommand() {
        Some(("top", m)) => top(m),
        Some(("stats", m)) => stats(m),
        _ => Err("no such verb".into()),
    };
    done.unwrap_or_else(output::fail)
}

/// By what the table is sorted; the largest first, names from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Cpu,
    Memory,
    Pids,
    Execs,
    Name,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Cpu, Self::Memory, Self::Pids, Self::Execs, Self::Name];

    fn text(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Execs => "execs",
            Self::Name => "name",
        }
    }

    /// By the first letter of its name.
    fn of_key(key: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.text().as_bytes().first() == Some(&key))
    }
}

/// A sandbox as it is shown.
#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    stats: SandboxStats,
    /// Of one CPU, since the look before.
    cpu_percent: f64,
    execs_per_second: f64,
}

impl Row {
    fn name(&self) -> &str {
        self.stats.name.as_deref().unwrap_or(&self.stats.id)
    }
}

/// The daemon itself, where that is for whoever asks.
#[derive(Clone, Debug, Serialize)]
struct Daemon {
    #[serde(flatten)]
    stats: ringfence_api::DaemonStats,
    cpu_percent: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Table {
    at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<Daemon>,
    sandboxes: Vec<Row>,
}

/// How much more there is per second. What was begun anew has less than before.
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

impl Table {
    fn of(before: &Stats, now: Stats) -> Self {
        let seconds = now.at_ms.saturating_sub(before.at_ms) as f64 / 1000.0;
        let known: HashMap<&str, &SandboxStats> =
            before.sandboxes.iter().map(|s| (s.id.as_str(), s)).collect();
        let percent = |before: u64, now: u64| rate(before, now, seconds) / 10_000.0;
        let rows = now.sandboxes.into_iter().map(|stats| {
            let (cpu, execs) = match known.get(stats.id.as_str()) {
                Some(was) => (was.cpu_us, was.execs),
                None => (stats.cpu_us, stats.execs),
            };
            Row {
                cpu_percent: percent(cpu, stats.cpu_us),
                execs_per_second: rate(execs, stats.execs, seconds),
                stats,
            }
        });
        Self {
            at_ms: now.at_ms,
            daemon: now.daemon.map(|stats| Daemon {
                cpu_percent: percent(
                    before.daemon.map_or(stats.cpu_us, |b| b.cpu_us),
                    stats.cpu_us,
                ),
                stats,
            }),
            sandboxes: rows.collect(),
        }
    }

    fn sort(&mut self, sort: Sort, turned: bool) {
        let by = |a: &Row, b: &Row| match sort {
            Sort::Cpu => b.cpu_percent.total_cmp(&a.cpu_percent),
            Sort::Memory => b.stats.memory_bytes.cmp(&a.stats.memory_bytes),
            Sort::Pids => b.stats.pids.cmp(&a.stats.pids),
            Sort::Execs => b.execs_per_second.total_cmp(&a.execs_per_second),
            Sort::Name => a.name().cmp(b.name()),
        };
        self.sandboxes.sort_by(|a, b| by(a, b).then_with(|| a.name().cmp(b.name())));
        if turned {
            self.sandboxes.reverse();
        }
    }

    /// Lines of at most `width`; of at most `height` of them the last says what is left out.
    fn lines(&self, width: usize, height: usize, colours: bool) -> Vec<String> {
        let in_state = |state| self.sandboxes.iter().filter(|r| r.stats.state == state).count();
        let mut first = format!(
            "{} sandboxes, {} running, {} frozen",
            self.sandboxes.len(),
            in_state(State::Running),
            in_state(State::Frozen),
        );
        if let Some(Daemon { stats, cpu_percent }) = &self.daemon {
            let _ = write!(
                first,
                "; daemon: {}, {cpu_percent:.1} % cpu, up {}",
                amount(stats.memory_bytes),
                span(stats.uptime_ms / 1000),
            );
        }
        let head = format!(
            "{:24} {:8} {:>7} {:>10} {:>6} {:>5} {:>8} {:>10} {:>10}",
            "SANDBOX", "STATE", "CPU %", "MEMORY", "PIDS", "RUNS", "EXECS/S", "READ", "WRITTEN"
        );
        let mut lines = vec![cut(&first, width), output::bold(&cut(&head, width), colours)];
        let room = height.saturating_sub(lines.len());
        let all = self.sandboxes.len();
        let shown = if all <= room { all } else { room.saturating_sub(1) };
        for row in self.sandboxes.iter().take(shown) {
            let line = cut(&row.line(), width);
            lines.push(match row.stats.state {
                State::Failed => output::red(&line, colours),
                State::Running => output::green(&line, colours),
                State::Frozen => output::yellow(&line, colours),
                _ => line,
            });
        }
        if shown < all && room > 0 {
            lines.push(cut(&format!("and {} more", all - shown), width));
        }
        lines
    }
}

impl Row {
    fn line(&self) -> String {
        let s = &self.stats;
        let io = |of: fn(DiskIo) -> u64| s.io.map_or_else(|| "-".to_owned(), |io| amount(of(io)));
        format!(
            "{:24} {:8} {:>7.1} {:>10} {:>6} {:>5} {:>8.1} {:>10} {:>10}",
            cut(&printable(self.name()), 24),
            s.state.text(),
            self.cpu_percent,
            amount(s.memory_bytes),
            s.pids,
            s.commands,
            self.execs_per_second,
            io(|io| io.read_bytes),
            io(|io| io.written_bytes),
        )
    }
}

fn cut(line: &str, width: usize) -> String {
    line.chars().take(width).collect::<String>().trim_end().to_owned()
}

/// Bytes, for people.
fn amount(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// Seconds, for people.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

fn look(client: &mut Client) -> Result<Stats, String> {
    client.call(GET, "/v1/stats", NOTHING).map_err(|e| e.to_string())
}

fn top(m: &ArgMatches) -> Result<ExitCode, String> {
    let delay = time(m, "delay")?.map_or(DELAY, Duration::from_millis);
    let sort = text(m, "sort").and_then(|name| Sort::ALL.into_iter().find(|s| s.text() == name));
    let sort = sort.unwrap_or(Sort::Cpu);
    let mut client = connect()?;
    let on_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if m.get_flag("once") || !(on_terminal || m.get_flag("json")) {
        return once(&mut client, sort, m.get_flag("json"));
    }
    // Less would only show what looking costs.
    let delay = delay.max(Duration::from_millis(100));
    if m.get_flag("json") {
        follow(&mut client, sort, delay)
    } else {
        live(&mut client, sort, delay)
    }
}

fn once(client: &mut Client, sort: Sort, json: bool) -> Result<ExitCode, String> {
    let before = look(client)?;
    std::thread::sleep(GLANCE);
    let mut table = Table::of(&before, look(client)?);
    table.sort(sort, false);
    if json {
        return Ok(output::print_json(&table));
    }
    let colours = output::colours(&std::io::stdout());
    let mut out = String::new();
    for line in table.lines(usize::MAX, usize::MAX, colours) {
        let _ = writeln!(out, "{line}");
    }
    Ok(output::print(&out))
}

/// Until nobody reads any more, or it is interrupted.
fn follow(client: &mut Client, sort: Sort, delay: Duration) -> Result<ExitCode, String> {
    let mut before = look(client)?;
    loop {
        std::thread::sleep(delay);
        let now = look(client)?;
        let mut table = Table::of(&before, now.clone());
        before = now;
        table.sort(sort, false);
        let mut line = serde_json::to_string(&table).map_err(|e| e.to_string())?;
        line.push('\n');
        let mut out = std::io::stdout().lock();
        if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The terminal's other page, without a cursor; what was there before is back when this is dropped.
struct Page;

impl Page {
    fn turn() -> Self {
        write_out("\x1b[?1049h\x1b[?25l");
        Self
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        write_out("\x1b[?25h\x1b[?1049l");
    }
}

/// A terminal that is gone is told by its keys.
fn write_out(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn live(client: &mut Client, mut sort: Sort, delay: Duration) -> Result<ExitCode, String> {
    let stdin = std::io::stdin();
    let mut before = look(client)?;
    let mut keys = Keys::new(stdin.as_fd()).map_err(|e| e.to_string())?;
    // Dropped in the other order, also where the daemon is lost.
    let _raw = Raw::new(stdin.as_fd())?;
    let _page = Page::turn();
    let colours = output::colours(&std::io::stdout());
    let mut turned = false;
    let mut table = Table::of(&before.clone(), before.clone());
    let mut next = Instant::now() + GLANCE.min(delay);
    loop {
        table.sort(sort, turned);
        draw(&table, sort, colours);
        match keys.wait(next.saturating_duration_since(Instant::now())) {
            Happened::Key(b'q' | b'Q' | 3) => return Ok(ExitCode::SUCCESS),
            Happened::Key(b'r') => turned = !turned,
            Happened::Key(key) => sort = Sort::of_key(key).unwrap_or(sort),
            Happened::Resized => {}
            Happened::Told(signal) => return Ok(ExitCode::from((SIGNALLED + signal) as u8)),
            Happened::Nothing => {
                let now = look(client)?;
                table = Table::of(&before, now.clone());
                before = now;
                next = Instant::now() + delay;
            }
        }
    }
}

fn draw(table: &Table, sort: Sort, colours: bool) {
    let size = size();
    let (width, height) = size.map_or((80, 24), |s| (usize::from(s.columns), usize::from(s.rows)));
    let foot = format!("sorted by {}; c m p e n sort, r turns, q quits", sort.text());
    let mut page = String::from("\x1b[H");
    let mut lines = table.lines(width, height.saturating_sub(1), colours);
    lines.push(cut(&foot, width));
    for (at, line) in lines.iter().take(height).enumerate() {
        let end = if at == 0 { "" } else { "\r\n" };
        let _ = write!(page, "{end}{line}\x1b[K");
    }
    page.push_str("\x1b[J");
    write_out(&page);
}

fn stats(m: &ArgMatches) -> Result<ExitCode, String> {
    let path = format!("{}/stats", place(m));
    let stats: SandboxStats = connect()?.call(GET, &path, NOTHING).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&stats));
    }
    let from = |figure: &str| {
        let group = stats.from_cgroup.iter().any(|name| name == figure);
        if group { "its control group" } else { "its processes" }
    };
    let mut out = String::new();
    let _ = writeln!(out, "state    {}, {} commands run", stats.state.text(), stats.commands);
    let _ = writeln!(out, "execs    {}", stats.execs);
    let _ = writeln!(out, "memory   {} ({})", amount(stats.memory_bytes), from("memory"));
    let cpu = stats.cpu_us as f64 / 1e6;
    let _ = writeln!(out, "cpu      {cpu:.2} s ({})", from("cpu"));
    let _ = writeln!(out, "pids     {} ({})", stats.pids, from("pids"));
    if let Some(DiskIo { read_bytes, written_bytes }) = stats.io {
        let (read, written) = (amount(read_bytes), amount(written_bytes));
        let _ = writeln!(out, "disk     {read} read, {written} written ({})", from("io"));
    }
    if let Some(disk) = stats.disk {
        let _ = writeln!(out, "layer    {} in {} files", amount(disk.bytes), disk.inodes);
    }
    Ok(output::print(&out))
}

#[cfg(test)]
mod tests {
    use ringfence_api::DaemonStats;

    use super::*;

    fn sandbox(name: &str, cpu_us: u64, memory_bytes: u64, execs: u64) -> SandboxStats {
        SandboxStats {
            id: format!("sb_{name}"),
            name: Some(name.into()),
            state: State::Idle,
            commands: 0,
            execs,
            memory_bytes,
            cpu_us,
            pids: 1,
            io: None,
            disk: None,
            from_cgroup: Vec::new(),
        }
    }

    fn looked(at_ms: u64, sandboxes: Vec<SandboxStats>) -> Stats {
        Stats { at_ms, daemon: Some(DaemonStats::default()), sandboxes }
    }

    #[test]
    fn rates_are_of_what_happened_between_two_looks() {
        let before = looked(1000, vec![sandbox("a", 0, 10, 4), sandbox("b", 500_000, 20, 9)]);
        // b was made anew, and c is new: neither has a rate yet.
        let after = vec![
            sandbox("a", 1_000_000, 10, 24),
            sandbox("b", 100, 30, 0),
            sandbox("c", 9_000_000, 5, 3),
        ];
        let mut table = Table::of(&before, looked(3000, after));
        let rates: Vec<(f64, f64)> =
            table.sandboxes.iter().map(|r| (r.cpu_percent, r.execs_per_second)).collect();
        assert_eq!(rates, [(50.0, 10.0), (0.0, 0.0), (0.0, 0.0)]);
        let names = |t: &Table| t.sandboxes.iter().map(|r| r.name().to_owned()).collect::<String>();
        table.sort(Sort::Memory, false);
        assert_eq!(names(&table), "bac");
        table.sort(Sort::Memory, true);
        assert_eq!(names(&table), "cab");
        table.sort(Sort::Name, false);
        assert_eq!(names(&table), "abc");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let many = (0..20).map(|n| sandbox(&format!("box{n:02}"), 0, 0, 0)).collect();
        let table = Table::of(&looked(0, Vec::new()), looked(0, many));
        let lines = table.lines(40, 10, false);
        assert_eq!(lines.len(), 10);
        assert!(lines.iter().all(|line| line.chars().count() <= 40));
        assert_eq!(lines.last().map(String::as_str), Some("and 13 more"));
        assert_eq!(table.lines(400, 100, false).len(), 22);
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(amount(1023), "1023 B");
        assert_eq!(amount(1536), "1.5 KiB");
        assert_eq!(amount(3 << 40), "3.0 TiB");
        assert_eq!([span(59), span(61), span(7260)], ["59s", "1m01s", "2h01m"]);
        assert_eq!(Sort::of_key(b'm'), Some(Sort::Memory));
        assert_eq!(Sort::of_key(b'x'), None);
    }
}
