//! The filter against an agent that remembers what it was asked.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::choose::{Granted, Key, fingerprint};
use super::serve::Server;
use super::{Event, Outcome, Sink, wire};

/// Filter, agent and the events of the filter.
struct Scene {
    dir: tempfile::TempDir,
    stop: Option<UnixStream>,
    filter: Option<JoinHandle<()>>,
    events: Receiver<Event>,
    /// What reached the agent.
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
    key: Vec<u8>,
    other: Vec<u8>,
}

fn blob(fill: u8) -> Vec<u8> {
    let mut blob = Vec::new();
    wire::put_string(&mut blob, b"ssh-ed25519");
    wire::put_string(&mut blob, &[fill; 32]);
    blob
}

fn read_frame(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut length = [0u8; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

fn agent_answers(keys: &[Vec<u8>], body: &[u8]) -> Vec<u8> {
    match body.first() {
        Some(11) => {
            let keys: Vec<(&[u8], &[u8])> =
                keys.iter().map(|k| (k.as_slice(), &b"comment"[..])).collect();
            wire::answer(&keys)
        }
        Some(13) => vec![14, 0, 0, 0, 3, 1, 2, 3],
        _ => vec![wire::SUCCESS],
    }
}

impl Scene {
    fn new(sign: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = UnixListener::bind(dir.path().join("agent")).unwrap();
        let (key, other) = (blob(1), blob(2));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (keys, log) = (vec![key.clone(), other.clone()], Arc::clone(&asked));
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = agent.accept() {
                let (keys, log) = (keys.clone(), Arc::clone(&log));
                std::thread::spawn(move || {
                    while let Some(body) = read_frame(&mut stream) {
                        let answer = agent_answers(&keys, &body);
                        log.lock().unwrap().push(body);
                        if stream.write_all(&wire::framed(&answer)).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let granted = Granted {
            agent: dir.path().join("agent"),
            keys: vec![Key {
                blob: key.clone(),
                fingerprint: fingerprint(&key),
                comment: "mine".into(),
            }],
            sign: sign.iter().map(|s| (*s).to_owned()).collect(),
        };
        let (tell, events) = channel();
        let tell = Mutex::new(tell);
        let sink = Sink(Arc::new(move |event: &Event| {
            let _ = tell.lock().unwrap().send(event.clone());
        }));
        let listener = UnixListener::bind(dir.path().join("inside")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let filter = std::thread::spawn(move || {
            Server::new(granted, Some(sink)).run(&listener, &stopped);
        });
        Self { dir, stop: Some(stop), filter: Some(filter), events, asked, key, other }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("inside")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn ask(&self, body: &[u8]) -> Vec<u8> {
        ask(&mut self.connect(), body)
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    fn asked(&self) -> Vec<Vec<u8>> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.filter.take().unwrap().join().unwrap();
    }
}

fn ask(stream: &mut UnixStream, body: &[u8]) -> Vec<u8> {
    stream.write_all(&wire::framed(body)).unwrap();
    read_frame(stream).unwrap()
}

fn login(key: &[u8], session: &[u8], host: Option<&[u8]>) -> Vec<u8> {
    let mut d = Vec::new();
    wire::put_string(&mut d, session);
    d.push(50);
    wire::put_string(&mut d, b"git");
    wire::put_string(&mut d, b"ssh-connection");
    let bound: &[u8] = b"publickey-hostbound-v00@openssh.com";
    wire::put_string(&mut d, if host.is_some() { bound } else { b"publickey" });
    d.push(1);
    wire::put_string(&mut d, b"ssh-ed25519");
    wire::put_string(&mut d, key);
    if let Some(host) = host {
        wire::put_string(&mut d, host);
    }
    d
}

fn signing(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut body = vec![13];
    wire::put_string(&mut body, key);
    wire::put_string(&mut body, data);
    body.extend([0; 4]);
    body
}

fn bind(session: &[u8], host: &[u8]) -> Vec<u8> {
    let mut body = vec![27];
    for part in [b"session-bind@openssh.com", host, session, b"signature"] {
        wire::put_string(&mut body, part);
    }
    body.push(0);
    body
}

const SESSION: &[u8] = &[5; 32];

#[test]
fn only_chosen_keys_are_listed_and_sign() {
    let scene = Scene::new(&[]);
    let answer = scene.ask(&[11]);
    assert_eq!(wire::identities(&answer), Some(vec![(scene.key.as_slice(), &b"comment"[..])]));
    let request = signing(&scene.key, &login(&scene.key, SESSION, None));
    assert_eq!(scene.ask(&request), [14, 0, 0, 0, 3, 1, 2, 3]);
    let event = scene.event();
    assert_eq!(event.outcome, Outcome::Signed);
    assert_eq!(event.user.as_deref(), Some("git"));
    assert_eq!(event.key, Some(fingerprint(&scene.key)));
    assert_eq!(event.pid, Some(std::process::id() as i32));
    assert_eq!(scene.asked(), [vec![11], request], "passed on as it came, and nothing else");

    let request = signing(&scene.other, &login(&scene.other, SESSION, None));
    assert_eq!(scene.ask(&request), [wire::FAILURE]);
    let event = scene.event();
    assert_eq!((event.outcome, event.key), (Outcome::Refused, Some(fingerprint(&scene.other))));
    assert_eq!(scene.asked().len(), 2, "the agent was not asked");
}

#[test]
fn nothing_but_listing_and_signing_reaches_the_agent() {
    let scene = Scene::new(&[]);
    let mut stream = scene.connect();
    for kind in (0..=255u8).filter(|k| *k != 11) {
        assert_eq!(ask(&mut stream, &[kind, 0, 0, 0, 0]), [wire::FAILURE], "{kind}");
    }
    assert_eq!(ask(&mut stream, &signing(&scene.key, b"any bytes")), [wire::FAILURE]);
    assert!(scene.asked().is_empty());
    let told = scene.events.try_iter().count();
    assert!((1..=64).contains(&told), "refusals do not fill the log: {told}");
}

#[test]
fn signatures_that_are_not_logins_need_their_namespace() {
    let mut data = b"SSHSIG".to_vec();
    for part in [&b"git"[..], b"", b"sha512", &[0; 64]] {
        wire::put_string(&mut data, part);
    }
    let without = Scene::new(&[]);
    assert_eq!(without.ask(&signing(&without.key, &data)), [wire::FAILURE]);
    assert!(without.asked().is_empty());
    let with = Scene::new(&["git"]);
    assert_eq!(with.ask(&signing(&with.key, &data))[0], 14);
    assert_eq!(with.event().namespace.as_deref(), Some("git"));
}

#[test]
fn a_binding_belongs_to_its_connection_and_names_the_host() {
    let scene = Scene::new(&[]);
    let mut bound = scene.connect();
    assert_eq!(ask(&mut bound, &bind(SESSION, b"host")), [wire::SUCCESS]);
    let plain = signing(&scene.key, &login(&scene.key, SESSION, None));
    assert_eq!(ask(&mut bound, &plain)[0], 14);
    let event = scene.event();
    assert_eq!((event.host_key, event.host_checked), (Some(fingerprint(b"host")), true));
    let lie = signing(&scene.key, &login(&scene.key, SESSION, Some(b"another host")));
    assert_eq!(ask(&mut bound, &lie), [wire::FAILURE]);
    assert_eq!(scene.event().outcome, Outcome::Refused);
    let mut other = scene.connect();
    assert_eq!(ask(&mut other, &lie)[0], 14, "another connection knows nothing of it");
    let event = scene.event();
    assert_eq!((event.host_key, event.host_checked), (Some(fingerprint(b"another host")), false));
}

#[test]
fn signatures_are_bounded() {
    let scene = Scene::new(&[]);
    let mut stream = scene.connect();
    let request = signing(&scene.key, &login(&scene.key, SESSION, None));
    let signed = (0..200).filter(|_| ask(&mut stream, &request)[0] == 14).count();
    assert!((64..190).contains(&signed), "{signed}");
}

#[test]
fn messages_that_are_too_long_or_empty_end_the_connection_and_only_it() {
    let scene = Scene::new(&[]);
    for length in [0u32, wire::LONGEST as u32 + 1, u32::MAX] {
        let mut stream = scene.connect();
        stream.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "{length}");
    }
    // One that hangs does not keep another waiting, and pieces are put together.
    let mut slow = scene.connect();
    slow.write_all(&[0, 0]).unwrap();
    assert_eq!(scene.ask(&[11])[0], 12);
    slow.write_all(&[0, 1, 11]).unwrap();
    assert_eq!(read_frame(&mut slow).unwrap()[0], 12);
    // Two requests at once are answered one after the other.
    let mut two = wire::framed(&[11]);
    two.extend(wire::framed(&[19]));
    slow.write_all(&two).unwrap();
    assert_eq!(read_frame(&mut slow).unwrap()[0], 12);
    assert_eq!(read_frame(&mut slow).unwrap(), [wire::FAILURE]);
}

#[test]
fn many_connections_wait_for_a_free_place() {
    let scene = Scene::new(&[]);
    let held: Vec<UnixStream> = (0..16).map(|_| scene.connect()).collect();
    let mut late = scene.connect();
    late.write_all(&wire::framed(&[11])).unwrap();
    late.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(late.read(&mut [0; 1]).is_err(), "not served yet");
    drop(held);
    late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(read_frame(&mut late).unwrap()[0], 12);
}

#[test]
fn an_agent_that_went_away_is_a_failure_and_not_the_end() {
    let scene = Scene::new(&[]);
    let mut stream = scene.connect();
    assert_eq!(ask(&mut stream, &[11])[0], 12);
    std::fs::remove_file(scene.dir.path().join("agent")).unwrap();
    let request = signing(&scene.key, &login(&scene.key, SESSION, None));
    assert_eq!(scene.ask(&request), [wire::FAILURE], "a new connection");
    assert_eq!(scene.event().outcome, Outcome::Declined);
    assert_eq!(ask(&mut stream, &[11])[0], 12, "the old one goes on");
}
