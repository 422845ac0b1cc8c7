//! What the egress filter costs, beside no filter and beside what others put in its place.
//!
//! One server outside; a client that does as it is told, started directly and behind each filter. The
//! same server and the same client for all, and every round asks each of them in turn.

#![allow(clippy::cast_precision_loss)] // figures for people

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Place, has, pss};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Connections that are held open while memory is read.
const IDLE: u64 = 1000;
/// Peers that hang instead of answering are given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a stream asks for; the client ends it when its time is over.
const ENDLESS: u64 = 1 << 50;

/// Echoes bytes; after a zero byte and a length sends as many bytes.
pub fn server() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || -> io::Result<()> {
            stream.set_nodelay(true)?;
            let zeroes = vec![0; 256 << 10];
            let mut kind = [0];
            while stream.read(&mut kind)? == 1 {
                if kind[0] != 0 {
                    stream.write_all(&kind)?;
                    continue;
                }
                let mut length = [0; 8];
                stream.read_exact(&mut length)?;
                let mut left = u64::from_be_bytes(length);
                while left > 0 {
                    let n = left.min(zeroes.len() as u64) as usize;
                    stream.write_all(&zeroes[..n])?;
                    left -= n as u64;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// To the server, by way of the proxy of the environment if `proxied`.
fn connect(port: u16, proxied: bool) -> io::Result<TcpStream> {
    if !proxied {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        return Ok(stream);
    }
    let url = std::env::var("HTTPS_PROXY").or_else(|_| std::env::var("HTTP_PROXY"));
    let url = url.map_err(io::Error::other)?;
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let (user, address) = address.rsplit_once('@').unwrap_or(("", address));
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let proof = match user {
        "" => String::new(),
        user => format!("Proxy-Authorization: Basic {}\r\n", base64(&unescaped(user))),
    };
    let to = format!("localhost:{port}");
    stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{proof}\r\n").as_bytes())?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 200") && !head.starts_with(b"HTTP/1.0 200") {
        return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    Ok(stream)
}

/// A part of a URL without its percent signs.
fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        out.extend(u8::from_str_radix(code, 16).ok());
        out.extend(rest.bytes());
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let word = (0..3).fold(0, |w, i| w << 8 | three.get(i).copied().map_or(0, usize::from));
        for i in 0..4 {
            let digit = char::from(DIGITS[word >> (18 - 6 * i) & 63]);
            out.push(if i <= three.len() { digit } else { '=' });
        }
    }
    out
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])
}

/// Bytes of one stream until the time is over.
fn download(port: u16, proxied: bool, end: Instant) -> io::Result<u64> {
    let mut stream = connect(port, proxied)?;
    let mut request = vec![0];
    request.extend_from_slice(&ENDLESS.to_be_bytes());
    stream.write_all(&request)?;
    let (mut sum, mut buffer) = (0, vec![0; 256 << 10]);
    while Instant::now() < end {
        sum += stream.read(&mut buffer)? as u64;
    }
    Ok(sum)
}

/// Does what the lines of its input say and answers each with a figure.
pub fn client(port: u16, proxied: bool) -> Result<()> {
    let mut open = Vec::new();
    let mut held = None;
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|n| n.parse::<u64>().ok()).unwrap_or(1);
        let started = Instant::now();
        let answer = match words[0] {
            // Gbit/s of so many streams within so many milliseconds.
            "streams" => {
                let end = started + Duration::from_millis(number(2));
                let streams: Vec<_> = (0..number(1))
                    .map(|_| std::thread::spawn(move || download(port, proxied, end)))
                    .collect();
                let mut sum = 0;
                for stream in streams {
                    sum += stream.join().map_err(|_| "a stream panicked")??;
                }
                sum as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9
            }
            // Microseconds of the median.
            "connect" => median(number(1), || echo(&mut connect(port, proxied)?))?,
            "trip" => {
                let stream = match &mut held {
                    Some(stream) => stream,
                    None => held.insert(connect(port, proxied)?),
                };
                median(number(1), || echo(stream))?
            }
            // Milliseconds for all.
            "open" => {
                for _ in 0..number(1) {
                    let mut stream = connect(port, proxied)?;
                    echo(&mut stream)?;
                    open.push(stream);
                }
                started.elapsed().as_secs_f64() * 1e3
            }
            "close" => {
                open.clear();
                0.0
            }
            other => return Err(format!("what is {other}?").into()),
        };
        println!("{answer}");
    }
    Ok(())
}

fn median(count: u64, mut what: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        what()?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(middle(&mut times))
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A process that is asked by lines.
struct Worker {
    name: &'static str,
    child: Child,
    answers: Receiver<String>,
}

impl Worker {
    fn spawn(name: &'static str, command: &mut Command) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        // A group of its own, so that what a script started ends with it.
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.stderr(Stdio::null()).spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        Ok(Self { name, child, answers: lines(output) })
    }

    fn line(&self) -> Result<String> {
        self.answers.recv_timeout(PATIENCE).map_err(|_| "no answer".into())
    }

    fn ask(&mut self, what: &str) -> Result<f64> {
        writeln!(self.child.stdin.as_mut().ok_or("no input")?, "{what}")?;
        Ok(self.line()?.parse()?)
    }
}

fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(io::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its input ends the client, and with it what it is in.
        drop(self.child.stdin.take());
        for _ in 0..20 {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Everything about the data path: groups of figures, the first row of each is without any filter.
pub fn groups(place: &Place, srt: Option<&Path>) -> Vec<Value> {
    match measure(place, srt) {
        Ok(groups) => groups,
        Err(e) => vec![json!({ "group": "egress", "rows": [absent("direct", &e.to_string())] })],
    }
}

fn absent(name: &str, why: &str) -> Value {
    json!({ "case": name, "absent": why })
}

fn measure(place: &Place, srt: Option<&Path>) -> Result<Vec<Value>> {
    let own = std::env::current_exe()?;
    // Inside the workspace, where every sandbox lets it be run.
    std::fs::create_dir_all(place.dir("egress"))?;
    let program = place.dir("egress").join("client");
    std::fs::copy(own, &program)?;
    let server = Worker::spawn("server", Command::new(&program).arg("--server"))?;
    let port = server.line()?;
    let mut workers = Vec::new();
    let mut missing = Vec::new();
    for (name, command) in peers(place, &program, &port, srt) {
        let worker = command.and_then(|mut command| {
            let mut worker = Worker::spawn(name, &mut command).map_err(|e| e.to_string())?;
            worker.ask("connect 5").map_err(|e| format!("does not run here: {e}"))?;
            Ok(worker)
        });
        match worker {
            Ok(worker) => workers.push(worker),
            Err(why) if name == "direct" => return Err(why.into()),
            Err(why) => {
                eprintln!("egress: {name}: absent: {why}");
                missing.push(absent(name, &why));
            }
        }
    }
    let mut groups = Vec::new();
    for (name, ask, unit, aim, rounds) in [
        ("connect and first byte", "connect 200", "us", "<= 2", 9),
        ("round trip", "trip 500", "us", "", 9),
        ("throughput, 1 stream", "streams 1 300", "Gbit/s", ">= 0.9", 7),
        ("throughput, 16 streams", "streams 16 300", "Gbit/s", ">= 0.9", 7),
    ] {
        eprintln!("{name}: {} cases, {rounds} rounds", workers.len());
        let mut figures = vec![Vec::new(); workers.len()];
        for _ in 0..rounds {
            for (worker, figures) in workers.iter_mut().zip(&mut figures) {
                figures.extend(worker.ask(ask).ok());
            }
        }
        let rows = workers.iter().zip(&mut figures).map(|(worker, figures)| {
            if figures.len() < rounds {
                return absent(worker.name, "stopped answering");
            }
            json!({ "case": worker.name, "value": middle(figures), "unit": unit })
        });
        let rows: Vec<Value> = rows.chain(missing.iter().cloned()).collect();
        groups.push(json!({ "group": name, "rounds": rounds, "aim": aim, "rows": rows }));
    }
    groups.push(idle(&mut workers));
    Ok(groups)
}

/// Many connections at a time, and what the supervisor needs for each.
fn idle(workers: &mut [Worker]) -> Value {
    let name = format!("{IDLE} open connections");
    eprintln!("{name}");
    let mut rows = Vec::new();
    for worker in workers {
        let before = pss(worker.child.id());
        // A process or two for each connection is not to be waited for.
        let count = if ["direct", RINGFENCE].contains(&worker.name) { IDLE } else { IDLE / 10 };
        let row = match worker.ask(&format!("open {count}")) {
            Ok(all) => json!({
                "case": format!("{}: opening each of {count}", worker.name),
                "value": all * 1e3 / count as f64,
                "unit": "us",
            }),
            Err(e) => absent(worker.name, &e.to_string()),
        };
        rows.push(row);
        if worker.name == RINGFENCE
            && let (Some(before), Some(after)) = (before, pss(worker.child.id()))
        {
            let each = after.saturating_sub(before) as f64 / IDLE as f64;
            let case = "ringfence: supervisor's memory for each";
            rows.push(json!({ "case": case, "value": each, "unit": "KiB" }));
        }
        let _ = worker.ask("close");
    }
    json!({ "group": name, "aim": "memory <= 32 KiB", "rows": rows })
}

const RINGFENCE: &str = "ringfence";

type Peer = (&'static str, std::result::Result<Command, String>);

fn peers(place: &Place, program: &Path, port: &str, srt: Option<&Path>) -> Vec<Peer> {
    let dir = place.dir("egress");
    let base = |argv: &[&str]| {
        let mut command = Command::new(argv[0]);
        command
            .args(&argv[1..])
            .current_dir(&dir)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", place.dir("home"))
            .env("LANG", "C.UTF-8");
        command
    };
    let (binary, client) = (place.binary.to_string_lossy(), program.to_string_lossy());
    let rule = format!("localhost:{port}");
    let needs = |programs: &[&str]| match programs.iter().find(|p| !has(p)) {
        Some(missing) => Err(format!("{missing} is not installed")),
        None => Ok(()),
    };
    let bridge = || {
        needs(&["socat", "bwrap"])?;
        // Two relays, one on each side of the wall, and a unix socket that goes through it.
        let inside = format!(
            "socat TCP4-LISTEN:{port},fork,reuseaddr,backlog=1024,bind=127.0.0.1 \
             UNIX-CONNECT:./s >/dev/null 2>&1 & exec '{client}' --client {port}"
        );
        let script = format!(
            "rm -f s; socat UNIX-LISTEN:./s,fork,reuseaddr,backlog=1024 TCP4:127.0.0.1:{port} \
             >/dev/null 2>&1 </dev/null & \
             while ! [ -S s ]; do sleep 0.01; done; \
             exec bwrap --dev-bind / / --unshare-net --die-with-parent \
             sh -c \"$0\""
        );
        // The inner relay must listen before the client comes.
        let inside = inside.replace("& exec", "& sleep 0.3; exec");
        Ok(base(&["sh", "-c", &script, &inside]))
    };
    let pasta = || {
        needs(&["pasta"])?;
        Ok(base(&["pasta", "-q", "-T", port, "--", &client, "--client", port]))
    };
    let srt = || {
        let srt = srt.ok_or("not asked for (--srt PROGRAM)")?;
        let settings = dir.join("srt.json");
        let text = json!({
            "network": { "allowedDomains": ["localhost"], "deniedDomains": [] },
            "filesystem": { "denyRead": [], "allowWrite": ["."], "denyWrite": [] },
        });
        std::fs::write(&settings, text.to_string()).map_err(|e| e.to_string())?;
        let (srt, settings) = (srt.to_string_lossy(), settings.to_string_lossy());
        let run = format!("'{client}' --client {port} --proxied");
        Ok(base(&[&srt, "--settings", &settings, "-c", &run]))
    };
    vec![
        ("direct", Ok(base(&[&client, "--client", port]))),
        (
            RINGFENCE,
            Ok(base(&[&binary, "run", "--allow-host", &rule, "--", &client, "--client", port])),
        ),
        ("socat on both sides of bubblewrap", bridge()),
        ("pasta", pasta()),
        ("srt, by its proxy", srt()),
    ]
}

/// Where to find the settings of a peer that is installed only for the bench.
pub fn path(value: Option<&str>) -> Option<PathBuf> {
    value.map(PathBuf::from).filter(|p| p.is_file())
}
