//! What the filter costs: throughput of 1 and 16 streams, connect and first byte, idle connections;
//! each direct over loopback and through the filter from a network namespace of its own.
//!
//! ```sh
//! cargo run --release -p ringfence-proxy --example relay_bench
//! ```
//!
//! Four processes, so that each is measured alone: this one (the filter), a server, a client beside
//! it and a client in the namespace. Needs `unshare` and `ip`, and root or user namespaces.

#![allow(clippy::cast_precision_loss)] // figures for people

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfence_policy::net::Rules;
use ringfence_policy::{HostRule, Origin};
use ringfence_proxy::{Config, Filter, Sockets, Way};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ROUNDS: usize = 5;
const BYTES: u64 = 2 << 30;
const CONNECTS: usize = 2_000;
const IDLE: usize = 1_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server"] => server(),
        ["client", port] => client(port.parse()?),
        ["inside", port, path] => {
            let port = port.parse()?;
            hand_out(port, path)?;
            client(port)
        }
        _ => measure(),
    }
}

/// Sends zeroes as asked (`D` and a length) or echoes one byte (`E`).
fn server() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::Builder::new().stack_size(64 * 1024).spawn(move || -> io::Result<()> {
            stream.set_nodelay(true)?;
            let zeroes = vec![0; 256 * 1024];
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

fn download(port: u16, bytes: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let mut request = vec![0];
    request.extend_from_slice(&bytes.to_be_bytes());
    stream.write_all(&request)?;
    let (mut left, mut buffer) = (bytes, vec![0; 256 * 1024]);
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n as u64,
        }
    }
    Ok(())
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])
}

/// Does what lines of its input say, answers each with a figure.
fn client(port: u16) -> Result<()> {
    let mut idle = Vec::new();
    for line in io::stdin().lines() {
        let line = line?;
        let started = Instant::now();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["stream", count, bytes] => {
                let (count, bytes): (u64, u64) = (count.parse()?, bytes.parse()?);
                let threads: Vec<_> = (0..count)
                    .map(|_| std::thread::spawn(move || download(port, bytes / count)))
                    .collect();
                for thread in threads {
                    thread.join().map_err(|_| "a stream panicked")??;
                }
                println!("{}", bytes as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9);
            }
            ["connect", count] => {
                let mut times = Vec::new();
                for _ in 0..count.parse::<usize>()? {
                    let started = Instant::now();
                    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
                    stream.set_nodelay(true)?;
                    echo(&mut stream)?;
                    times.push(started.elapsed());
                }
                times.sort();
                println!("{}", times[times.len() / 2].as_secs_f64() * 1e6);
            }
            ["idle", count] => {
                for _ in 0..count.parse::<usize>()? {
                    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
                    echo(&mut stream)?;
                    idle.push(stream);
                }
                println!("{}", started.elapsed().as_secs_f64() * 1e3);
            }
            _ => return Err(format!("what is {line}?").into()),
        }
    }
    Ok(())
}

/// Makes the listener in this namespace and gives it away.
fn hand_out(port: u16, path: &str) -> Result<()> {
    if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        return Err("ip link set lo up".into());
    }
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    rustix::net::listen(&listener, 1024)?;
    let socket = UnixStream::connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [listener.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&socket, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

fn take(listener: &UnixListener) -> Result<OwnedFd> {
    let (socket, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty())?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return fds.next().ok_or_else(|| "no descriptor came".into());
        }
    }
    Err("no descriptor came".into())
}

struct Worker {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { child, answers })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, what: &str) -> Result<f64> {
        let input = self.child.stdin.as_mut().ok_or("no input")?;
        writeln!(input, "{what}")?;
        Ok(self.line()?.parse()?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor time of a process.
fn processor(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').ok_or("no stat")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).ok_or("no ticks");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// Resident memory of this process, KiB.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure() -> Result<()> {
    let own = std::env::current_exe()?;
    let mut server = Worker::spawn(Command::new(&own).arg("server"))?;
    let port = server.line()?;
    let mut direct = Worker::spawn(Command::new(&own).args(["client", &port]))?;
    let path = std::env::temp_dir().join(format!("relay-bench-{}", std::process::id()));
    let listener = UnixListener::bind(&path)?;
    let mut unshare = Command::new("unshare");
    unshare.args(if rustix::process::getuid().is_root() { &["-n"][..] } else { &["-rn"] });
    let mut inside = Worker::spawn(unshare.arg(&own).args(["inside", &port]).arg(&path))?;
    let socket = take(&listener);
    std::fs::remove_file(&path)?;
    let entry = HostRule {
        host: format!("localhost:{port}"),
        origin: Origin { layer: "bench".into(), line: None },
    };
    let rules = Rules::of(&[entry], &[]).map_err(|e| format!("{e:?}"))?;
    let config = Config {
        sockets: Sockets { tcp: vec![socket?], way: Way::Local, ..Sockets::default() },
        inspector: None,
        rules: Arc::new(rules),
        sink: Arc::new(|_| {}),
        upstream: None,
        proxy_port: 808,
        init: None,
        control: None,
    };
    let started = Instant::now();
    let filter = Filter::start(config)?;
    println!("start: {:.0} us of the caller's time", started.elapsed().as_secs_f64() * 1e6);
    inside.ask("connect 10")?;

    for (name, ask, unit, more_is_better) in [
        ("1 stream", format!("stream 1 {BYTES}"), "Gbit/s", true),
        ("16 streams", format!("stream 16 {BYTES}"), "Gbit/s", true),
        ("connect and first byte", format!("connect {CONNECTS}"), "us", false),
    ] {
        let (mut plain, mut filtered) = (Vec::new(), Vec::new());
        let (mut ends, mut own) = (0.0, 0.0);
        for _ in 0..ROUNDS {
            plain.push(direct.ask(&ask)?);
            let before = processor(server.child.id())? + processor(inside.child.id())?;
            let mine = processor(std::process::id())?;
            filtered.push(inside.ask(&ask)?);
            ends += processor(server.child.id())? + processor(inside.child.id())? - before;
            own += processor(std::process::id())? - mine;
        }
        let (plain, filtered) = (median(plain), median(filtered));
        let ratio = filtered / plain;
        let goal = if more_is_better { ">= 0.9" } else { "<= 2.0" };
        println!(
            "{name}: direct {plain:.1}, filtered {filtered:.1} {unit}, ratio {ratio:.2} (goal {goal})"
        );
        println!("    processor time: filter {own:.2} s, both ends {ends:.2} s");
    }

    let before = resident()?;
    let elapsed = inside.ask(&format!("idle {IDLE}"))?;
    std::thread::sleep(Duration::from_millis(200));
    let each = (resident()?.saturating_sub(before)) as f64 / IDLE as f64;
    println!("{IDLE} idle connections: {each:.2} KiB each (goal <= 32), opened in {elapsed:.0} ms");
    let started = Instant::now();
    drop(filter);
    println!("stop with {IDLE} connections: {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    Ok(())
}
