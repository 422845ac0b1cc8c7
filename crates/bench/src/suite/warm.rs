//! Commands in a sandbox that is there already: by the command line, and over one connection.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringfence_api::{CreateSandbox, ExecRequest, Sandbox};
use ringfence_client::{Client, DELETE, NOTHING, POST};

use super::work::{self, Work};
use super::{Bench, Place};
use crate::model::Group;
use crate::runner::{self, Contestant, Sampler};

/// A daemon of the bench's own; it ends with this, and with this process.
#[derive(Debug)]
pub struct Daemon<'a> {
    place: &'a Place,
    child: Child,
}

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

impl<'a> Daemon<'a> {
    pub fn start(place: &'a Place) -> Result<Self, String> {
        let mut command = runner::kept(&[place.binary().into(), "daemon".into()]);
        command.current_dir(place.workspace()).env_clear().envs(place.env());
        command.env("XDG_RUNTIME_DIR", place.path("home"));
        let child = command.spawn().map_err(|e| format!("cannot start a daemon: {e}"))?;
        let daemon = Self { place, child };
        let end = Instant::now() + PATIENCE;
        while let Err(e) = daemon.client() {
            if Instant::now() > end {
                return Err(e);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(daemon)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.place.binary());
        command.args(args).current_dir(self.place.workspace()).env_clear().envs(self.place.env());
        command.env("XDG_RUNTIME_DIR", self.place.path("home")).stdin(Stdio::null());
        command
    }

    fn asked(&self, args: &[&str]) -> Result<String, String> {
        let output = self.command(args).output().map_err(|e| e.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("ringfence {}: {}", args.join(" "), said.trim()))
    }

    /// A connection, over the socket that `daemon status` names at its end.
    pub fn client(&self) -> Result<Client, String> {
        let said = self.asked(&["daemon", "status"])?;
        let socket = said.rsplit_once(", socket ").ok_or("daemon status names no socket")?.1;
        Client::connect(socket.as_ref()).map_err(|e| e.to_string())
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Makes a sandbox in the workspace, and says its id.
pub fn create(client: &mut Client, place: &Place) -> Result<String, String> {
    let asked = CreateSandbox {
        workspace: place.workspace().to_string_lossy().into_owned(),
        ..CreateSandbox::default()
    };
    let made: Sandbox =
        client.call(POST, "/v1/sandboxes", Some(&asked)).map_err(|e| e.to_string())?;
    Ok(made.id)
}

pub fn remove(client: &mut Client, id: &str) -> Result<(), String> {
    client.call::<()>(DELETE, &format!("/v1/sandboxes/{id}"), NOTHING).map_err(|e| e.to_string())
}

pub fn groups(bench: &Bench<'_>) -> Result<Vec<Group>, String> {
    let place = &bench.place;
    let daemon = Daemon::start(place)?;
    let mut client = daemon.client()?;
    let id = create(&mut client, place)?;
    let mut all = Vec::new();
    for work in work::all(place, true)? {
        all.push(one(bench, &mut client, &id, &work));
    }
    all.push(life(bench, &mut client));
    // It goes with its daemon in any case.
    let _ = remove(&mut client, &id);
    Ok(all)
}

fn one(bench: &Bench<'_>, client: &mut Client, id: &str, work: &Work) -> Group {
    let place = &bench.place;
    let xdg = ("XDG_RUNTIME_DIR".into(), place.path("home").into());
    let host = place.timed("host", work, &[]);
    let cold = place.confined("ringfence", work, super::WAYS[0].1);
    let mut exec = place.timed(
        "ringfence exec",
        work,
        &[place.binary().into(), "exec".into(), id.into(), "--".into()],
    );
    exec.env.push(xdg);
    let mut contestants: Vec<Contestant<'_>> = [&host, &cold, &exec]
        .into_iter()
        .map(|timed| Contestant {
            name: timed.name.clone(),
            what: timed.what(),
            sampler: timed.check().map(|()| -> Sampler<'_> { Box::new(|| timed.sampled()) }),
        })
        .collect();
    let request = ExecRequest {
        argv: work.argv.iter().map(|w| w.to_string_lossy().into_owned()).collect(),
        ..ExecRequest::default()
    };
    contestants.push(Contestant {
        name: "ringfence connection".into(),
        what: format!("POST /v1/sandboxes/{{id}}/exec: {}", runner::shell_words(&work.argv)),
        sampler: Ok(Box::new(move || {
            let start = Instant::now();
            client.exec(id, &request).map_err(|e| e.to_string())?;
            Ok(start.elapsed().as_nanos() as f64 / 1000.0)
        })),
    });
    let title = format!("{} in a sandbox that is there", work.title);
    runner::in_turn(&format!("warm/{}", work.name), &title, "us", contestants, &bench.plan)
}

/// A sandbox's making and its end.
fn life(bench: &Bench<'_>, client: &mut Client) -> Group {
    let place = &bench.place;
    let client = std::cell::RefCell::new(client);
    let made = std::cell::RefCell::new(Vec::new());
    let time = |done: &mut dyn FnMut() -> Result<(), String>| {
        let start = Instant::now();
        done()?;
        Ok(start.elapsed().as_nanos() as f64 / 1000.0)
    };
    let create: Sampler<'_> = Box::new(|| {
        time(&mut || {
            let id = create(&mut client.borrow_mut(), place)?;
            made.borrow_mut().push(id);
            Ok(())
        })
    });
    let destroy: Sampler<'_> = Box::new(|| {
        // In whichever order the two are asked, there is one to destroy.
        let last = made.borrow_mut().pop();
        let id = match last {
            Some(id) => id,
            None => super::warm::create(&mut client.borrow_mut(), place)?,
        };
        time(&mut || remove(&mut client.borrow_mut(), &id))
    });
    let contestant = |name: &str, what: &str, sampler| Contestant {
        name: name.into(),
        what: what.into(),
        sampler: Ok(sampler),
    };
    let contestants = vec![
        contestant("ringfence create", "POST /v1/sandboxes", create),
        contestant("ringfence destroy", "DELETE /v1/sandboxes/{id}", destroy),
    ];
    let mut group =
        runner::in_turn("warm/life", "a sandbox's making and end", "us", contestants, &bench.plan);
    group.baseline = None;
    // Where two were made in a row, some are left.
    let left: Vec<String> = made.borrow_mut().drain(..).collect();
    for id in left {
        let _ = remove(&mut client.borrow_mut(), &id);
    }
    group
}
