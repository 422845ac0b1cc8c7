//! HTTP/2 and TLS: that clients get them, and who gets nothing by them.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;

use serde_json::json;

use super::attacks::free_port;
use super::world::{Daemon, answer, environment};
use crate::harness::{Place, Ran, as_each_user, binary, has, mode};

/// The certificate's name besides those of loopback.
const NAME: &str = "box.example";

pub fn token(place: &Place) -> String {
    let file = place.home().join("state/daemon/token");
    format!("Authorization: Bearer {}", std::fs::read_to_string(file).unwrap().trim())
}

/// A certificate of its own authority, and its key, for the user alone.
pub fn certificate(place: &Place, name: &str) -> (PathBuf, PathBuf) {
    let names = ["localhost", "127.0.0.1", NAME].map(ToOwned::to_owned);
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let file = |end: &str, text: String| {
        let path = place.home().join(format!("{name}.{end}"));
        std::fs::write(&path, text).unwrap();
        mode(&path, 0o600);
        place.own(&path);
        path
    };
    (file("crt", made.cert.pem()), file("key", made.signing_key.serialize_pem()))
}

pub fn flags<'a>(listen: &'a str, (cert, key): &'a (PathBuf, PathBuf)) -> [&'a str; 6] {
    let [cert, key] = [cert, key].map(|path| path.to_str().unwrap());
    ["--listen", listen, "--tls-cert", cert, "--tls-key", key]
}

fn has_http2() -> bool {
    if !has("curl") {
        return false;
    }
    let can = Ran::of(std::process::Command::new("curl").arg("--version")).out.contains("HTTP2");
    if !can {
        println!("skipped: curl speaks no HTTP/2 here");
    }
    can
}

#[test]
fn http2_beside_http1() {
    if !has_http2() {
        return;
    }
    as_each_user(|place| {
        let port = free_port();
        let daemon = Daemon::listening(place, &[format!("127.0.0.1:{port}")]);
        daemon.create(&["--name", "box"]);
        let token = token(place);
        let socket = daemon.socket();
        let body = json!({ "shell": "echo out; echo err >&2; exit 3" }).to_string();
        let ask = |over_tcp: bool, flag: &str, more: &[&str], path: &str| {
            let mut curl = place.command("curl");
            curl.args(["-sS", "-w", " %{http_version} %{http_code}", flag]).args(more);
            let host = if over_tcp {
                curl.args(["-H", &token]);
                format!("127.0.0.1:{port}")
            } else {
                curl.arg("--unix-socket").arg(&socket);
                "localhost".to_owned()
            };
            Ran::of(curl.arg(format!("http://{host}{path}"))).ok().out
        };
        let json = ["-H", "Content-Type: application/json", "-d", &body];
        for over_tcp in [false, true] {
            for (flag, version) in [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1")] {
                let out = ask(over_tcp, flag, &[], "/v1/health");
                assert!(out.ends_with(&format!(" {version} 200")), "{out}");
                let out = ask(over_tcp, flag, &json, "/v1/sandboxes/box/exec");
                assert!(out.contains("\"exit_code\":3"), "{out}");
                let out = ask(over_tcp, flag, &json, "/v1/sandboxes/box/exec/stream");
                assert!(out.contains("event: ended"), "{out}");
                // Who may not ask may not by either.
                let out = ask(over_tcp, flag, &["-H", "Origin: http://localhost"], "/v1/health");
                assert!(out.ends_with(&format!(" {version} 403")), "{out}");
            }
        }
        for flag in ["--http2-prior-knowledge", "--http1.1"] {
            let out = ask(true, flag, &["-H", "Host: example.com"], "/v1/health");
            assert!(out.ends_with(" 403"), "{out}");
            let mut curl = place.command("curl");
            curl.arg(flag).arg(format!("http://127.0.0.1:{port}/v1/health"));
            assert_eq!(answer(&mut curl).is(401).reason(), "unauthorized");
        }
    });
}

#[test]
fn tls_for_callers_with_the_token() {
    if !has_http2() {
        return;
    }
    as_each_user(|place| {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let files = certificate(place, "server");
        let daemon = Daemon::with(place, &flags(&listen, &files));
        daemon.create(&["--name", "box"]);
        let right = token(place);
        let curl = |args: &[&str], url: &str| {
            let mut curl = place.command("curl");
            curl.arg("--cacert").arg(&files.0).args(args).arg(url);
            curl
        };
        let health = format!("https://localhost:{port}/v1/health");
        for (flag, version) in [("--http2", "2\n"), ("--http1.1", "1.1\n")] {
            let out = Ran::of(curl(&[flag, "-H", &right], &health).args([
                "-sS",
                "-o",
                "/dev/null",
                "-w",
                "%{http_version}\n",
            ]));
            assert_eq!(out.ok().out, version);
        }
        // By the other name of the certificate.
        let resolve = format!("{NAME}:{port}:127.0.0.1");
        let named = format!("https://{NAME}:{port}/v1/health");
        answer(&mut curl(&["--resolve", &resolve, "-H", &right], &named)).is(200);
        let body = json!({ "argv": ["echo", "by tls"] }).to_string();
        let exec = format!("https://localhost:{port}/v1/sandboxes/box/exec");
        let json = ["-H", &right, "-H", "Content-Type: application/json", "-d", &body];
        let ran = answer(&mut curl(&json, &exec)).is(200).json();
        assert_eq!(ran["stdout"]["data"], "by tls\n");

        // No token, a wrong one, a page, a name that somebody made to lead here.
        assert_eq!(answer(&mut curl(&[], &health)).is(401).reason(), "unauthorized");
        let wrong = "Authorization: Bearer 00112233445566778899aabbccddeeff";
        answer(&mut curl(&["-H", wrong], &health)).is(401);
        answer(&mut curl(&["-H", &right, "-H", "Origin: https://localhost"], &health)).is(403);
        answer(&mut curl(&["-H", &right, "-H", "Host: example.com"], &health)).is(403);
        // Without encryption, or with what was broken long ago: no answer at all.
        let plain = format!("http://localhost:{port}/v1/health");
        for (args, url) in [
            (&["-H", right.as_str()] as &[&str], &plain),
            (&["-H", &right, "--http2-prior-knowledge"], &plain),
            (&["-H", &right, "--tls-max", "1.1"], &health),
        ] {
            let ran =
                Ran::of(curl(args, url).args(["-sS", "-o", "/dev/null", "-w", "%{http_code}"]));
            assert_eq!((ran.out.as_str(), ran.code == Some(0)), ("000", false), "{args:?}");
        }
        // Who checks does not take us for another.
        let other = certificate(place, "other");
        let mut unknown = place.command("curl");
        unknown.arg("--cacert").arg(&other.0).args(["-sS", "-H", &right, &health]);
        assert_eq!(Ran::of(&mut unknown).code, Some(60));
        // Those that say nothing keep nobody out.
        let silent: Vec<TcpStream> =
            (0..100).map(|_| TcpStream::connect(&listen).unwrap()).collect();
        for stream in &silent[..50] {
            (&mut &*stream).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        }
        answer(&mut curl(&["-H", &right], &health)).is(200);
    });
}

#[test]
fn what_cannot_be_kept_secret_is_not_begun() {
    as_each_user(|place| {
        let files = certificate(place, "server");
        let other = certificate(place, "other");
        let fails = |flags: &[&str], says: &str| {
            let mut command = place.command(binary());
            environment(place, &mut command);
            Ran::of(command.arg("daemon").args(flags)).failed_with(125).says(says);
        };
        std::fs::create_dir(place.root().join("run")).unwrap();
        mode(&place.root().join("run"), 0o700);
        place.own(&place.root().join("run"));
        // An address for documentation, that nobody has: nothing is ever listened at.
        let far = "192.0.2.1:1";
        fails(&["--listen", far], "give --tls-cert and --tls-key");
        fails(&["--listen", "0.0.0.0:1"], "give --tls-cert and --tls-key");
        fails(&["--listen", "[::]:1"], "give --tls-cert and --tls-key");
        // The control: with TLS it is tried.
        fails(&flags(far, &files), "cannot assign requested address");
        fails(&flags("127.0.0.1:0", &(files.0.clone(), other.1.clone())), "--tls-key");
        fails(&flags("127.0.0.1:0", &(files.1.clone(), files.1.clone())), "no certificate in it");
        fails(&flags("127.0.0.1:0", &(files.0.clone(), files.0.clone())), "--tls-key");
        mode(&files.1, 0o644);
        fails(&flags("127.0.0.1:0", &files), "others can use it");
        mode(&files.1, 0o600);
        fails(&["--tls-cert", files.0.to_str().unwrap()], "--tls-key");
        fails(&flags("127.0.0.1:0", &files)[2..], "nothing to encrypt");
    });
}

/// The key lies in the workspace, where everything can be read.
#[test]
fn no_sandbox_sees_the_key() {
    as_each_user(|place| {
        let (cert, key) = certificate(place, "server");
        let [inside, control] = ["served", "control"].map(|name| place.workspace().join(name));
        std::fs::copy(&key, &control).unwrap();
        std::fs::rename(&key, &inside).unwrap();
        place.own(&inside);
        place.own(&control);
        let listen = format!("127.0.0.1:{}", free_port());
        let daemon = Daemon::with(place, &flags(&listen, &(cert, inside)));
        daemon.create(&["--name", "box"]);
        let seen = daemon.shell("box", "cat served; grep -c BEGIN control");
        assert!(!seen.out.contains("PRIVATE") && seen.out.ends_with("1\n"), "{seen:?}");
    });
}
