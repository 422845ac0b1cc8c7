//! Our own gRPC interface, by the code that Python's own generator makes of its document.

use super::attacks::free_port;
use super::clients::python;
use super::transports::{certificate, flags, token};
use super::world::Daemon;
use crate::harness::as_each_user;

const SCRIPT: &str = include_str!("grpc.py");
const PROTO: &str = include_str!("../../../crates/daemon/proto/ringfence.proto");

fn run(what: &str) {
    as_each_user(|place| {
        let port = free_port();
        let files = certificate(place, "server");
        let daemon = Daemon::with(place, &flags(&format!("127.0.0.1:{port}"), &files));
        let made = place.home().join("made");
        std::fs::create_dir(&made).unwrap();
        std::fs::write(made.join("ringfence.proto"), PROTO).unwrap();
        place.own(&made);
        let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let token = token(place).rsplit_once(' ').unwrap().1.to_owned();
        let environment = [
            ("WHAT", what.to_owned()),
            ("SOCKET", path(&daemon.socket())),
            ("PORT", port.to_string()),
            ("CERT", path(&files.0)),
            ("TOKEN", token),
            ("PROTO", path(&made)),
            ("OUT", path(&made)),
            ("WORKSPACE", path(&place.workspace())),
        ];
        if let Some(ran) = python(place, SCRIPT, &environment) {
            assert_eq!(ran.ok().out, "all is well\n");
        }
    });
}

#[test]
fn a_python_client_does_everything() {
    run("everything");
}

#[test]
fn who_may_not_ask_is_told_so() {
    run("attacks");
}
