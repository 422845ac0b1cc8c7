//! The filter's thread: accepts outside what connects inside, judges each request, and asks the
//! caller's agent over a connection of its own for each of the client's.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, sockopt};

use super::choose::{Granted, Key, fingerprint};
use super::wire::{self, Data, Request};
use super::{Event, Outcome, Sink, connect};

/// Connections at one time; more wait.
const MOST: usize = 16;
/// Without a request: `ssh` asks for keys, then may wait for its user to accept a host's key.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// For the rest of a message that was begun, in either direction.
const BRISK: Duration = Duration::from_secs(10);
/// For the agent: its user may have to confirm, or to touch a token.
const PATIENT: Duration = Duration::from_secs(3 * 60);
/// Sessions that one connection can be bound to, as in OpenSSH.
const MOST_BOUND: usize = 16;

/// So much at once, then so many a second.
#[derive(Debug)]
struct Bucket {
    left: f64,
    most: f64,
    a_second: f64,
    at: Instant,
}

impl Bucket {
    fn new(most: f64, a_second: f64) -> Self {
        Self { left: most, most, a_second, at: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * self.a_second).min(self.most);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// What the agent was asked on behalf of a client.
#[derive(Debug)]
enum Asked {
    List,
    /// The record, if it succeeds.
    Sign(Box<Event>),
    Bind {
        host_key: Vec<u8>,
        session: Vec<u8>,
    },
}

#[derive(Debug)]
enum Phase {
    /// Of the client.
    Reading,
    Asking(Asked),
    Answering,
}

#[derive(Debug)]
struct Connection {
    client: UnixStream,
    pid: Option<i32>,
    agent: Option<UnixStream>,
    phase: Phase,
    /// What was read of the current message, its length in front.
    input: Vec<u8>,
    /// What is still to be written, to whom the phase says.
    output: Vec<u8>,
    deadline: Instant,
    /// Session and key of the host, as the agent has accepted them.
    bound: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The connection is over.
struct Over;

pub(super) struct Server {
    granted: Granted,
    sink: Option<Sink>,
    connections: Vec<Connection>,
    requests: Bucket,
    signatures: Bucket,
    refusals: Bucket,
    unsaid: u64,
}

/// Waits for the socket that init makes; `None` where there will be none.
pub(super) fn receive(channel: &OwnedFd, stop: &UnixStream) -> Option<UnixListener> {
    let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    if !fds[0].revents().contains(PollFlags::IN) {
        return None;
    }
    let mut byte = [0u8; 1];
    let (_, fd) = ringfence_sys::raw::recv_owned(channel.as_fd(), &mut byte).ok()?;
    let listener = UnixListener::from(fd?);
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}

impl Server {
    pub fn new(granted: Granted, sink: Option<Sink>) -> Self {
        Self {
            granted,
            sink,
            connections: Vec::new(),
            requests: Bucket::new(256.0, 32.0),
            signatures: Bucket::new(64.0, 2.0),
            refusals: Bucket::new(32.0, 1.0),
            unsaid: 0,
        }
    }

    /// Until `stop` is closed.
    pub fn run(mut self, listener: &UnixListener, stop: &UnixStream) {
        loop {
            let Ok(ready) = self.wait(listener, stop) else { return };
            if ready.stop {
                return;
            }
            let now = Instant::now();
            let mut connections = std::mem::take(&mut self.connections);
            let mut ready_ones = ready.connections.into_iter();
            connections.retain_mut(|c| {
                let flags = ready_ones.next().unwrap_or((PollFlags::empty(), PollFlags::empty()));
                self.go_on(c, flags, now).is_ok()
            });
            self.connections = connections;
            if ready.listener {
                self.accept(listener, now);
            }
        }
    }

    fn wait(&self, listener: &UnixListener, stop: &UnixStream) -> rustix::io::Result<Ready> {
        let mut fds = Vec::with_capacity(2 + 2 * MOST);
        fds.push(PollFd::new(stop, PollFlags::IN));
        let room = self.connections.len() < MOST;
        let more = if room { PollFlags::IN } else { PollFlags::empty() };
        fds.push(PollFd::new(listener, more));
        let none = PollFlags::empty();
        for c in &self.connections {
            let (client, agent) = match (&c.phase, c.output.is_empty()) {
                (Phase::Reading, _) => (PollFlags::IN, none),
                (Phase::Answering, _) => (PollFlags::OUT, none),
                (Phase::Asking(_), false) => (none, PollFlags::OUT),
                (Phase::Asking(_), true) => (none, PollFlags::IN),
            };
            fds.push(PollFd::new(&c.client, client));
            match &c.agent {
                // Hung up while nothing is asked: it is told when something is.
                Some(stream) if !agent.is_empty() => fds.push(PollFd::new(stream, agent)),
                _ => fds.push(PollFd::new(stop, none)),
            }
        }
        let timeout = self.connections.iter().map(|c| c.deadline).min().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            // Rounded up, so that the deadline has passed then.
            Timespec { tv_sec: left.as_secs() as i64 + 1, tv_nsec: 0 }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        Ok(Ready {
            stop: !fds[0].revents().is_empty(),
            listener: fds[1].revents().contains(PollFlags::IN),
            connections: fds[2..].chunks(2).map(|p| (p[0].revents(), p[1].revents())).collect(),
        })
    }

    fn accept(&mut self, listener: &UnixListener, now: Instant) {
        match listener.accept() {
            Ok((client, _)) => {
                if client.set_nonblocking(true).is_err() {
                    return;
                }
                let pid = sockopt::socket_peercred(&client).ok();
                self.connections.push(Connection {
                    pid: pid.map(|c| c.pid.as_raw_nonzero().get()),
                    client,
                    agent: None,
                    phase: Phase::Reading,
                    input: Vec::new(),
                    output: Vec::new(),
                    deadline: now + IDLE,
                    bound: Vec::new(),
                });
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            // No descriptor left: later.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }

    fn go_on(
        &mut self,
        c: &mut Connection,
        (client, agent): (PollFlags, PollFlags),
        now: Instant,
    ) -> Result<(), Over> {
        if now >= c.deadline || client.intersects(PollFlags::ERR | PollFlags::NVAL) {
            return Err(Over);
        }
        match (&c.phase, c.output.is_empty()) {
            (Phase::Reading, _) if !client.is_empty() => {
                let fresh = c.input.is_empty();
                match read_message(&mut c.client, &mut c.input) {
                    Ok(true) => {
                        self.judge(c, now);
                        Ok(())
                    }
                    Ok(false) => {
                        if fresh && !c.input.is_empty() {
                            c.deadline = now + BRISK;
                        }
                        Ok(())
                    }
                    Err(Over) => Err(Over),
                }
            }
            // Nobody is left to answer.
            (Phase::Asking(_), _) if client.contains(PollFlags::HUP) => Err(Over),
            (Phase::Asking(_), false) if !agent.is_empty() => {
                let sent = c.agent.as_ref().map(|a| write_some(a, &mut c.output));
                if let Some(Ok(())) = sent { Ok(()) } else { self.lost(c, now) }
            }
            (Phase::Asking(_), true) if !agent.is_empty() => {
                let read = c.agent.as_mut().map(|a| read_message(a, &mut c.input));
                match read {
                    Some(Ok(true)) => self.heard(c, now),
                    Some(Ok(false)) => Ok(()),
                    _ => self.lost(c, now),
                }
            }
            (Phase::Answering, _) if !client.is_empty() => {
                write_some(&c.client, &mut c.output)?;
                if c.output.is_empty() {
                    c.phase = Phase::Reading;
                    c.deadline = now + IDLE;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A message of the client is complete.
    fn judge(&mut self, c: &mut Connection, now: Instant) {
        let message = std::mem::take(&mut c.input);
        let body = message.get(4..).unwrap_or_default();
        match self.passes(c, body, now) {
            Ok(asked) => {
                if c.agent.is_none() {
                    let Ok(agent) = connect(&self.granted.agent) else {
                        return self.lost_with(c, asked, now);
                    };
                    c.agent = Some(agent);
                }
                c.output = message;
                c.phase = Phase::Asking(asked);
                c.deadline = now + PATIENT;
            }
            Err(event) => {
                self.refused(*event, now);
                reply(c, &[wire::FAILURE], now);
            }
        }
    }

    fn passes(&mut self, c: &Connection, body: &[u8], now: Instant) -> Result<Asked, Box<Event>> {
        let mut event = Event {
            outcome: Outcome::Refused,
            reason: None,
            key: None,
            comment: None,
            user: None,
            host_key: None,
            host_checked: false,
            namespace: None,
            pid: c.pid,
            unsaid: 0,
        };
        let refuse =
            |event: Event, reason: &str| Box::new(Event { reason: Some(reason.into()), ..event });
        let request = match wire::request(body) {
            Ok(request) => request,
            Err(reason) => return Err(refuse(event, reason)),
        };
        if !self.requests.take(now) {
            return Err(refuse(event, "too many requests"));
        }
        let (key, data) = match request {
            Request::List => return Ok(Asked::List),
            Request::Bind { host_key, session } => {
                let (host_key, session) = (host_key.to_vec(), session.to_vec());
                return Ok(Asked::Bind { host_key, session });
            }
            Request::Sign { key, data } => (key, data),
        };
        event.key = Some(fingerprint(key));
        let Some(known) = self.granted.keys.iter().find(|k| k.blob == key) else {
            return Err(refuse(event, "this key was not chosen"));
        };
        event.comment = Some(known.comment.clone());
        match data {
            Data::Login { session, user, host_key } => {
                event.user = Some(user.to_owned());
                let bound = c.bound.iter().find(|(s, _)| s == session).map(|(_, h)| h.as_slice());
                if let (Some(told), Some(bound)) = (host_key, bound)
                    && told != bound
                {
                    return Err(refuse(event, "the host's key is not that of its session"));
                }
                event.host_checked = bound.is_some();
                event.host_key = host_key.or(bound).map(fingerprint);
            }
            Data::Namespace(namespace) => {
                event.namespace = Some(namespace.to_owned());
                if !self.granted.sign.iter().any(|n| n == namespace) {
                    return Err(refuse(event, "ssh.sign does not list it"));
                }
            }
        }
        if !self.signatures.take(now) {
            return Err(refuse(event, "too many signatures in a short time"));
        }
        Ok(Asked::Sign(Box::new(Event { outcome: Outcome::Signed, ..event })))
    }

    /// The agent's answer is complete.
    fn heard(&mut self, c: &mut Connection, now: Instant) -> Result<(), Over> {
        let message = std::mem::take(&mut c.input);
        let body = message.get(4..).unwrap_or_default();
        let Phase::Asking(asked) = std::mem::replace(&mut c.phase, Phase::Answering) else {
            return Err(Over);
        };
        match asked {
            Asked::List => {
                let answer = wire::identities(body).map_or_else(
                    || vec![wire::FAILURE],
                    |keys| {
                        let chosen = |blob: &[u8]| self.key(blob).is_some();
                        let keys: Vec<_> = keys.into_iter().filter(|(b, _)| chosen(b)).collect();
                        wire::answer(&keys)
                    },
                );
                reply(c, &answer, now);
            }
            Asked::Sign(event) if wire::is_signature(body) => {
                self.tell(&event);
                reply(c, body, now);
            }
            Asked::Sign(event) => {
                self.tell(&Event { outcome: Outcome::Declined, ..*event });
                reply(c, &[wire::FAILURE], now);
            }
            Asked::Bind { host_key, session } => {
                let answer = match body {
                    [wire::SUCCESS] => {
                        if c.bound.len() < MOST_BOUND {
                            c.bound.push((session, host_key));
                        }
                        wire::SUCCESS
                    }
                    [wire::EXTENSION_FAILURE] => wire::EXTENSION_FAILURE,
                    _ => wire::FAILURE,
                };
                reply(c, &[answer], now);
            }
        }
        Ok(())
    }

    fn key(&self, blob: &[u8]) -> Option<&Key> {
        self.granted.keys.iter().find(|k| k.blob == blob)
    }

    /// The agent went away, or was never there.
    fn lost(&mut self, c: &mut Connection, now: Instant) -> Result<(), Over> {
        match std::mem::replace(&mut c.phase, Phase::Answering) {
            Phase::Asking(asked) => {
                self.lost_with(c, asked, now);
                Ok(())
            }
            _ => Err(Over),
        }
    }

    fn lost_with(&mut self, c: &mut Connection, asked: Asked, now: Instant) {
        c.agent = None;
        c.bound.clear();
        c.input.clear();
        if let Asked::Sign(event) = asked {
            let reason = Some("it cannot be reached".into());
            self.tell(&Event { outcome: Outcome::Declined, reason, ..*event });
        }
        reply(c, &[wire::FAILURE], now);
    }

    /// Refusals cost the client nothing, so they must not fill the log.
    fn refused(&mut self, event: Event, now: Instant) {
        if self.refusals.take(now) {
            let unsaid = std::mem::take(&mut self.unsaid);
            self.tell(&Event { unsaid, ..event });
        } else {
            self.unsaid += 1;
        }
    }

    fn tell(&self, event: &Event) {
        if let Some(sink) = &self.sink {
            (sink.0)(event);
        }
    }
}

/// What poll found.
struct Ready {
    stop: bool,
    listener: bool,
    /// Client and agent of each.
    connections: Vec<(PollFlags, PollFlags)>,
}

fn reply(c: &mut Connection, body: &[u8], now: Instant) {
    c.output = wire::framed(body);
    c.phase = Phase::Answering;
    c.deadline = now + BRISK;
}

/// Reads on; true when a whole message is there. Never reads beyond its end.
fn read_message(from: &mut UnixStream, input: &mut Vec<u8>) -> Result<bool, Over> {
    /// At a time, so that a length alone costs no memory.
    const PIECE: usize = 16 * 1024;
    loop {
        let wanted = match input.first_chunk::<4>() {
            None => 4 - input.len(),
            Some(length) => {
                let length = u32::from_be_bytes(*length) as usize;
                if length == 0 || length > wire::LONGEST {
                    return Err(Over);
                }
                match length + 4 - input.len() {
                    0 => return Ok(true),
                    n => n.min(PIECE),
                }
            }
        };
        let start = input.len();
        input.resize(start + wanted, 0);
        let read = from.read(&mut input[start..]);
        input.truncate(start + read.as_ref().map_or(0, |n| *n));
        match read {
            Ok(0) => return Err(Over),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Over),
        }
    }
}

fn write_some(to: &UnixStream, output: &mut Vec<u8>) -> Result<(), Over> {
    while !output.is_empty() {
        match rustix::net::send(to, output, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(n) => drop(output.drain(..n)),
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(Over),
        }
    }
    Ok(())
}
