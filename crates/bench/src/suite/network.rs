//! `curl` of a server on this machine, allowed and refused.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Bench;
use super::work::{self, Work};
use crate::model::Group;
use crate::runner;

/// Answers every request with two bytes, until it is dropped.
#[derive(Debug)]
struct Server {
    port: u16,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let end = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&end);
        let thread = std::thread::Builder::new().name("server".into()).spawn(move || {
            for stream in listener.incoming() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    let _ = answer(stream);
                }
            }
        })?;
        Ok(Self { port, end, thread: Some(thread) })
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut seen, mut room) = (Vec::new(), [0; 1024]);
    while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut room)? {
            0 => return Ok(()),
            n => seen.extend_from_slice(&room[..n]),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn curl(name: &str, title: &str, url: String) -> Work {
    let words = ["curl", "-fsS", "-o", "/dev/null", "--max-time", "10"];
    let mut argv: Vec<std::ffi::OsString> = words.map(Into::into).to_vec();
    argv.push(url.into());
    let (name, title) = (name.into(), title.into());
    Work { name, title, argv, dir: "".into(), env: Vec::new(), flags: Vec::new() }
}

pub fn groups(bench: &Bench<'_>) -> Result<Vec<Group>, String> {
    if !work::has("curl") {
        return Err("no curl; install it: apt-get install curl".into());
    }
    let server = Server::start().map_err(|e| format!("cannot serve on loopback: {e}"))?;
    // Nobody listens there as long as it is held, and then it is closed.
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let closed = closed.map_err(|e| format!("cannot bind to loopback: {e}"))?.port();
    let place = &bench.place;
    let allow = format!("localhost:{}", server.port);
    let run = ["run", "--no-config", "--allow-host", &allow, "--"];
    let allowed =
        curl("allowed", "curl of an allowed host", format!("http://localhost:{}/", server.port));
    let cases = [place.timed("host", &allowed, &[]), place.confined("ringfence", &allowed, &run)];
    let first = runner::group("network/allowed", &allowed.title, &cases, &bench.plan);
    // Outside it is a port where nobody listens: the quickest refusal that there is.
    let refused = curl("refused", "curl of a refused host", "http://refused.example/".into());
    let outside = curl("refused", "", format!("http://127.0.0.1:{closed}/"));
    let mut cases = [
        place.timed("host", &outside, &[]),
        place.confined("ringfence", &refused, &run),
        place.confined("ringfence no network", &refused, &["run", "--no-config", "--"]),
    ];
    for case in &mut cases {
        case.fails = true;
    }
    let second = runner::group("network/refused", &refused.title, &cases, &bench.plan);
    Ok(vec![first, second])
}
