//! What the daemon's answers cost: a sandbox's life step by step, commands and files in one that is there,
//! sessions beside single commands, many at once, and how all of that goes when there are more and more.

use std::cell::RefCell;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringfence_api::{
    BatchCreate, BatchCreated, CreateSandbox, CreateSession, ExecRequest, Sandbox, Session,
    SessionExec,
};
use ringfence_client::{Client, DELETE, GET, NOTHING, POST};
use serde_json::Value;

use super::Bench;
use super::place::Place;
use super::warm::{Daemon, create, remove};
use crate::model::{Better, Case, Curve, Group, Line, Report, failed};
use crate::runner::{self, Contestant, Plan, Sampler};
use crate::stats;

/// How many times the rounds of what takes a millisecond or less, so that a p99 is one.
const MANY: usize = 10;
/// Clients at once, where rates are taken.
const CLIENTS: usize = 8;
/// Sandboxes made by one request, or one after the other.
const BATCH: usize = 20;
/// Commands, as others count them.
const FIFTY: usize = 50;
/// Sandboxes that go through their lives at once, as others count them.
const TEN: usize = 10;
/// Sandboxes that are there at once.
const RAMP: [usize; 11] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000];
const QUICK_RAMP: [usize; 2] = [1, 4];
/// Connections that they are asked by, at most.
const CONNECTIONS: usize = 100;
/// One sample of a rate.
const WINDOW: Duration = Duration::from_millis(500);
const QUICK_WINDOW: Duration = Duration::from_millis(50);

/// A sandbox's life, in this order.
pub const LIFE: [&str; 5] = ["create", "start", "exec", "stop", "remove"];

fn micros(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / 1000.0
}

fn timed<T>(done: impl FnOnce() -> Result<T, String>) -> Result<(f64, T), String> {
    let start = Instant::now();
    let done = done()?;
    Ok((micros(start), done))
}

fn words(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Beside it: the same program started by this process.
fn spawn() -> Result<(), String> {
    let mut command = Command::new("/bin/true");
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().map_err(words)?;
    if status.success() { Ok(()) } else { Err(format!("/bin/true: {status}")) }
}

fn argv(words: &[&str]) -> ExecRequest {
    let argv = words.iter().map(ToString::to_string).collect();
    ExecRequest { argv, ..ExecRequest::default() }
}

/// It has to end well.
fn exec(client: &mut Client, id: &str, request: &ExecRequest) -> Result<(), String> {
    let done = client.exec(id, request).map_err(words)?;
    match done.exec.ended {
        Some(ended) if ended.exit_code == Some(0) => Ok(()),
        ended => Err(format!("{:?} ended with {ended:?}", request.argv)),
    }
}

fn contestant<'a>(name: &str, what: &str, sampler: Sampler<'a>) -> Contestant<'a> {
    Contestant { name: name.into(), what: what.into(), sampler: Ok(sampler) }
}

fn alone(name: &str, title: &str, unit: &str, better: Better, cases: Vec<Case>) -> Group {
    let (name, title, unit) = (format!("server/{name}"), title.into(), unit.into());
    Group { name, title, unit, better, baseline: None, cases }
}

/// What fails is in the result as failed; the next is measured all the same.
pub fn part(bench: &Bench<'_>, report: &mut Report) -> Result<(), String> {
    let place = &bench.place;
    let all = &mut report.groups;
    let add = |all: &mut Vec<Group>, name: &str, title: &str, done: Result<Vec<Group>, String>| {
        let failed = |why: String| vec![failed(&format!("server/{name}"), title, &why)];
        all.extend(done.unwrap_or_else(failed));
    };
    let one = |group: Group| vec![group];
    add(all, "ready", "the daemon's start", ready(bench).map(one));
    let daemon = Daemon::start(place)?;
    let client = RefCell::new(daemon.client()?);
    let id = create(&mut client.borrow_mut(), place)?;
    let many = Plan { rounds: bench.plan.rounds * MANY, ..bench.plan.clone() };
    all.push(commands(&client, &id, &many));
    add(all, "session", "sessions", sessions(&client, &id, &many).map(one));
    add(all, "files", "files of a sandbox", files(place, &client, &id, &many));
    all.push(fifty(bench, &client, &id));
    add(all, "rates", "rates", rates(bench, &daemon, &id));
    // It goes with its daemon in any case.
    let _ = remove(&mut client.borrow_mut(), &id);
    add(all, "life", "a sandbox's life", life(bench, &mut client.borrow_mut()).map(one));
    all.push(batch(bench, &client));
    add(all, "ten", "ten lives at a time", ten(bench, &daemon));
    match ramp(bench, &daemon) {
        Ok(curves) => report.curves.extend(curves),
        Err(why) => report.groups.push(failed("server/ramp", "sandboxes at once", &why)),
    }
    Ok(())
}

/// How long it takes until a daemon answers.
fn ready(bench: &Bench<'_>) -> Result<Group, String> {
    let mut times = Vec::new();
    for round in 0..=bench.plan.rounds.div_ceil(3) {
        let (time, _daemon) = timed(|| Daemon::start(&bench.place))?;
        // The first makes the store.
        if round > 0 {
            times.push(time);
        }
    }
    let case = Case::of("ringfence", "ringfence daemon, until it answers", times);
    Ok(alone("ready", "the daemon's start", "us", Better::Lower, vec![case]))
}

fn commands(client: &RefCell<Client>, id: &str, plan: &Plan) -> Group {
    let request = argv(&["/bin/true"]);
    let contestants = vec![
        contestant("host", "/bin/true", Box::new(|| timed(spawn).map(|t| t.0))),
        contestant(
            "ringfence",
            "POST /v1/sandboxes/{id}/exec: /bin/true",
            Box::new(|| timed(|| exec(&mut client.borrow_mut(), id, &request)).map(|t| t.0)),
        ),
        contestant(
            "an answer alone",
            "GET /v1/health",
            Box::new(|| {
                let ask = || client.borrow_mut().call::<Value>(GET, "/v1/health", NOTHING);
                timed(|| ask().map_err(words)).map(|t| t.0)
            }),
        ),
    ];
    runner::in_turn("server/exec", "a command over one connection", "us", contestants, plan)
}

/// A command of a shell that stays, beside a shell for each.
fn sessions(client: &RefCell<Client>, id: &str, plan: &Plan) -> Result<Group, String> {
    let path = format!("/v1/sandboxes/{id}/sessions");
    let made: Session =
        client.borrow_mut().call(POST, &path, Some(&CreateSession::default())).map_err(words)?;
    let path = format!("{path}/{}", made.id);
    let line = "cd . && test -d .";
    let asked = SessionExec { command: line.into(), ..SessionExec::default() };
    let request = argv(&["/bin/sh", "-c", line]);
    let contestants = vec![
        contestant(
            "one-shot",
            "POST /v1/sandboxes/{id}/exec: sh -c 'cd . && test -d .'",
            Box::new(|| timed(|| exec(&mut client.borrow_mut(), id, &request)).map(|t| t.0)),
        ),
        contestant(
            "session",
            "POST /v1/sandboxes/{id}/sessions/{session}/exec: cd . && test -d .",
            Box::new(|| {
                let path = format!("{path}/exec");
                let ask = || client.borrow_mut().call::<Value>(POST, &path, Some(&asked));
                timed(|| ask().map_err(words)).map(|t| t.0)
            }),
        ),
    ];
    let title = "a line of shell: in a session, and by itself";
    let group = runner::in_turn("server/session", title, "us", contestants, plan);
    client.borrow_mut().call::<Value>(DELETE, &path, NOTHING).map_err(words)?;
    Ok(group)
}

fn files(
    place: &Place,
    client: &RefCell<Client>,
    id: &str,
    plan: &Plan,
) -> Result<Vec<Group>, String> {
    let at = |name: &str| format!("/v1/sandboxes/{id}/files?path={name}");
    let mut groups = Vec::new();
    for (name, title, size) in [("1k", "1 KB", 1000_usize), ("1m", "1 MB", 1_000_000)] {
        let (read, written) = (format!("read-{name}"), format!("written-{name}"));
        let file = place.workspace().join(&read);
        let bytes = vec![b'x'; size];
        std::fs::write(&file, &bytes).map_err(|e| format!("{}: {e}", file.display()))?;
        let (asked, there) = (at(&read), place.workspace().join(&written));
        let mut room = Vec::with_capacity(size);
        let contestants = vec![
            contestant(
                "host",
                "read",
                Box::new(|| timed(|| std::fs::read(&file).map_err(words)).map(|t| t.0)),
            ),
            contestant(
                "ringfence",
                "GET /v1/sandboxes/{id}/files?path=",
                Box::new(|| {
                    room.clear();
                    let get = || client.borrow_mut().download(&asked, &mut room).map_err(words);
                    let (time, ()) = timed(get)?;
                    if room.len() == size { Ok(time) } else { Err("not all of it came".into()) }
                }),
            ),
        ];
        let title_of = |verb: &str| format!("{verb} a file of {title}");
        let group = format!("server/read-{name}");
        groups.push(runner::in_turn(&group, &title_of("read"), "us", contestants, plan));
        let contestants = vec![
            contestant(
                "host",
                "write",
                Box::new(|| timed(|| std::fs::write(&there, &bytes).map_err(words)).map(|t| t.0)),
            ),
            contestant(
                "ringfence",
                "PUT /v1/sandboxes/{id}/files?path=",
                Box::new(|| {
                    let (path, bytes) = (at(&written), bytes.clone());
                    let put = || client.borrow_mut().put::<Value>(&path, bytes).map_err(words);
                    timed(put).map(|t| t.0)
                }),
            ),
        ];
        let group = format!("server/write-{name}");
        groups.push(runner::in_turn(&group, &title_of("write"), "us", contestants, plan));
    }
    Ok(groups)
}

/// Fifty commands, one after the other.
fn fifty(bench: &Bench<'_>, client: &RefCell<Client>, id: &str) -> Group {
    let place = &bench.place;
    let run = ["run", "--no-config", "--", "/bin/true"];
    let mut words: Vec<std::ffi::OsString> = vec![place.binary().into()];
    words.extend(run.map(Into::into));
    let (bare, cold) =
        (place.command("host", vec!["/bin/true".into()]), place.command("ringfence", words));
    let request = argv(&["/bin/true"]);
    let sum = |each: &mut dyn FnMut() -> Result<f64, String>| {
        (0..FIFTY).map(|_| each()).sum::<Result<f64, String>>()
    };
    let contestants = vec![
        contestant("host", &bare.what(), Box::new(|| sum(&mut || bare.sampled()))),
        contestant("ringfence", &cold.what(), Box::new(|| sum(&mut || cold.sampled()))),
        contestant(
            "ringfence connection",
            "POST /v1/sandboxes/{id}/exec: /bin/true",
            Box::new(|| {
                let ask = || exec(&mut client.borrow_mut(), id, &request);
                sum(&mut || timed(ask).map(|t| t.0))
            }),
        ),
    ];
    let warmups = usize::from(!bench.ask.quick);
    let plan = Plan { rounds: bench.plan.rounds.div_ceil(5), warmups, ..bench.plan.clone() };
    let title = "50 commands, one after the other";
    runner::in_turn("server/fifty", title, "us", contestants, &plan)
}

/// How often a second they all together do it, window by window.
fn rate(
    daemon: &Daemon<'_>,
    windows: usize,
    window: Duration,
    once: impl Fn(&mut Client, usize) -> Result<(), String> + Sync,
) -> Result<Vec<f64>, String> {
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|_| daemon.client()).collect::<Result<_, _>>()?;
    let mut rates = Vec::new();
    for _ in 0..=windows {
        let begin = Instant::now();
        let done: Result<usize, String> = std::thread::scope(|scope| {
            let threads: Vec<_> = clients
                .iter_mut()
                .enumerate()
                .map(|(n, client)| {
                    let once = &once;
                    scope.spawn(move || {
                        let mut done = 0_usize;
                        while begin.elapsed() < window {
                            once(client, n)?;
                            done += 1;
                        }
                        Ok::<_, String>(done)
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|t| t.join().map_err(|_| "a thread panicked"));
            joined.map(|done| done.map_err(str::to_owned)?).sum()
        });
        rates.push(done? as f64 / begin.elapsed().as_secs_f64());
    }
    // The first is the warm-up.
    rates.remove(0);
    Ok(rates)
}

fn rates(bench: &Bench<'_>, daemon: &Daemon<'_>, id: &str) -> Result<Vec<Group>, String> {
    let quick = bench.ask.quick;
    let (windows, window) =
        if quick { (2, QUICK_WINDOW) } else { (bench.plan.rounds.div_ceil(6).max(3), WINDOW) };
    let request = argv(&["/bin/true"]);
    let read = format!("/v1/sandboxes/{id}/files?path=read-1k");
    let write = |n: usize| format!("/v1/sandboxes/{id}/files?path=rate-{n}");
    let spawns = rate(daemon, windows, window, |_, _| spawn())?;
    let execs = rate(daemon, windows, window, |client, _| exec(client, id, &request))?;
    let reads = rate(daemon, windows, window, |client, _| {
        client.download(&read, &mut std::io::sink()).map_err(words)
    })?;
    let writes = rate(daemon, windows, window, |client, n| {
        client.put::<Value>(&write(n), vec![b'y'; 1000]).map(drop).map_err(words)
    })?;
    let what = |what: &str| format!("{what}, {CLIENTS} connections");
    let mut exec = alone(
        "rate-exec",
        "commands a second",
        "/s",
        Better::Higher,
        vec![
            Case::of("host", &what("/bin/true"), spawns),
            Case::of("ringfence", &what("POST /v1/sandboxes/{id}/exec: /bin/true"), execs),
        ],
    );
    exec.baseline = Some("host".into());
    let case = |name: &str, verb: &str, samples| {
        Case::of(name, &what(&format!("{verb} /v1/sandboxes/{{id}}/files, 1 KB")), samples)
    };
    let files = vec![case("read", "GET", reads), case("write", "PUT", writes)];
    Ok(vec![exec, alone("rate-files", "files of 1 KB a second", "/s", Better::Higher, files)])
}

/// One life: made stopped, started, used, stopped, removed; microseconds of each.
fn one_life(place: &Place, client: &mut Client) -> Result<[f64; 5], String> {
    let workspace = place.workspace().to_string_lossy().into_owned();
    let asked = CreateSandbox { workspace, stopped: true, ..CreateSandbox::default() };
    let (made, id) = timed(|| {
        let made: Sandbox = client.call(POST, "/v1/sandboxes", Some(&asked)).map_err(words)?;
        Ok(made.id)
    })?;
    let path = format!("/v1/sandboxes/{id}");
    let mut turn = |verb: &str| {
        let path = format!("{path}/{verb}");
        timed(|| client.call::<Value>(POST, &path, NOTHING).map_err(words)).map(|t| t.0)
    };
    let started = turn("start")?;
    let used = timed(|| exec(client, &id, &argv(&["/bin/true"])))?.0;
    let mut turn = |verb: &str| {
        let path = format!("{path}/{verb}");
        timed(|| client.call::<Value>(POST, &path, NOTHING).map_err(words)).map(|t| t.0)
    };
    let stopped = turn("stop")?;
    let removed = timed(|| remove(client, &id))?.0;
    Ok([made, started, used, stopped, removed])
}

/// A case for each step, and one for all of them together.
fn steps(lives: &[[f64; 5]]) -> Vec<Case> {
    let mut cases: Vec<Case> = LIFE
        .iter()
        .enumerate()
        .map(|(i, step)| Case::of(step, step, lives.iter().map(|life| life[i]).collect()))
        .collect();
    let whole = lives.iter().map(|life| life.iter().sum()).collect();
    cases.push(Case::of("whole", "all of it", whole));
    cases
}

fn life(bench: &Bench<'_>, client: &mut Client) -> Result<Group, String> {
    let mut lives = Vec::new();
    for round in 0..bench.plan.rounds * 3 + bench.plan.warmups {
        let life = one_life(&bench.place, client)?;
        if round >= bench.plan.warmups {
            lives.push(life);
        }
    }
    Ok(alone("life", "a sandbox's life, step by step", "us", Better::Lower, steps(&lives)))
}

/// Ten lives at a time.
fn ten(bench: &Bench<'_>, daemon: &Daemon<'_>) -> Result<Vec<Group>, String> {
    let (mut lives, mut all) = (Vec::new(), Vec::new());
    let mut clients: Vec<Client> = (0..TEN).map(|_| daemon.client()).collect::<Result<_, _>>()?;
    for round in 0..=bench.plan.rounds.div_ceil(3) {
        let start = Instant::now();
        let done: Result<Vec<_>, String> = std::thread::scope(|scope| {
            let threads: Vec<_> = clients
                .iter_mut()
                .map(|client| scope.spawn(|| one_life(&bench.place, client)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().map_err(|_| "a thread panicked".to_owned())?)
                .collect()
        });
        let (done, took) = (done?, micros(start));
        if round > 0 {
            lives.extend(done);
            all.push(took);
        }
    }
    let what = "ten lives at a time, until the last is over";
    let rate = all.iter().map(|took| TEN as f64 * 1e6 / took).collect();
    let rate = vec![Case::of("ringfence", what, rate)];
    let mut cases = steps(&lives);
    cases.push(Case::of("all ten", what, all));
    Ok(vec![
        alone("ten", "ten lives at a time", "us", Better::Lower, cases),
        alone("rate-lives", "lives a second, ten at a time", "/s", Better::Higher, rate),
    ])
}

/// As many sandboxes by one request as one after the other.
fn batch(bench: &Bench<'_>, client: &RefCell<Client>) -> Group {
    let place = &bench.place;
    let of = CreateSandbox {
        workspace: place.workspace().to_string_lossy().into_owned(),
        ..CreateSandbox::default()
    };
    let asked = BatchCreate { items: vec![of; BATCH], concurrency: None };
    let away = |ids: Vec<String>| -> Result<(), String> {
        ids.iter().try_for_each(|id| remove(&mut client.borrow_mut(), id))
    };
    let contestants = vec![
        contestant(
            "loop",
            "POST /v1/sandboxes, 20 times",
            Box::new(|| {
                let make = || (0..BATCH).map(|_| create(&mut client.borrow_mut(), place)).collect();
                let (time, ids) = timed(make)?;
                away(ids).map(|()| time)
            }),
        ),
        contestant(
            "batch",
            "POST /v1/batch/sandboxes, 20 items",
            Box::new(|| {
                let path = "/v1/batch/sandboxes";
                let ask = || client.borrow_mut().call::<BatchCreated>(POST, path, Some(&asked));
                let (time, made) = timed(|| ask().map_err(words))?;
                let made = made.results.into_iter().map(|one| match one.result {
                    Some(made) => Ok(made.id),
                    None => Err("one of them was not made".to_owned()),
                });
                away(made.collect::<Result<_, _>>()?).map(|()| time)
            }),
        ),
    ];
    let plan = Plan { rounds: bench.plan.rounds.div_ceil(3), warmups: 1, ..bench.plan.clone() };
    let title = "20 sandboxes, one after the other and in one request";
    runner::in_turn("server/batch", title, "us", contestants, &plan)
}

/// Carries out as many pieces of work by some connections; microseconds of each.
fn spread(
    clients: &mut [Client],
    count: usize,
    work: impl Fn(&mut Client, usize) -> Result<(), String> + Sync,
) -> Result<Vec<f64>, String> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(|| {
                    let mut times = Vec::new();
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if i >= count {
                            return Ok::<_, String>(times);
                        }
                        times.push(timed(|| work(client, i))?.0);
                    }
                })
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a thread panicked".to_owned())??);
        }
        Ok(all)
    })
}

/// More and more sandboxes that are there at once: how fast they are made, and answer.
fn ramp(bench: &Bench<'_>, daemon: &Daemon<'_>) -> Result<Vec<Curve>, String> {
    let steps = if bench.ask.quick { &QUICK_RAMP[..] } else { &RAMP[..] };
    let bar = runner::bar("sandboxes at once", steps.len() as u64, bench.plan.progress);
    let place = &bench.place;
    let request = argv(&["/bin/true"]);
    let names = ["create", "exec", "remove"];
    let mut rates: [Vec<(f64, f64)>; 3] = Default::default();
    let mut times: [Vec<(f64, f64)>; 3] = Default::default();
    let most = steps.iter().copied().max().unwrap_or(1).min(CONNECTIONS);
    let mut clients: Vec<Client> = (0..most).map(|_| daemon.client()).collect::<Result<_, _>>()?;
    let mut absent = None;
    'steps: for &count in steps {
        let clients = &mut clients[..count.min(most)];
        let ids = std::sync::Mutex::new(vec![String::new(); count]);
        let id_of = |i: usize| ids.lock().map(|ids| ids[i].clone()).map_err(words);
        for (k, _) in names.iter().enumerate() {
            let start = Instant::now();
            let took = spread(clients, count, |client, i| match k {
                0 => {
                    let id = create(client, place)?;
                    ids.lock().map(|mut ids| ids[i] = id).map_err(words)
                }
                1 => exec(client, &id_of(i)?, &request),
                _ => remove(client, &id_of(i)?),
            });
            let took = match took {
                Ok(took) => took,
                Err(why) => {
                    absent = Some(format!("failed with {count} at once: {why}"));
                    break 'steps;
                }
            };
            let across = count as f64;
            rates[k].push((across, across / start.elapsed().as_secs_f64()));
            times[k].push((across, stats::median(&took) / 1000.0));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let curve = |name: &str, title: &str, y: &str, all: [Vec<(f64, f64)>; 3]| Curve {
        name: name.into(),
        title: title.into(),
        x: "sandboxes at once".into(),
        y: y.into(),
        lines: names
            .iter()
            .zip(all)
            .map(|(name, points)| Line { name: (*name).into(), points, absent: absent.clone() })
            .collect(),
    };
    let rate = "a second";
    Ok(vec![
        curve("server/ramp-rate", "so many sandboxes made, used and removed", rate, rates),
        curve("server/ramp-latency", "the same, each by itself", "p50, ms", times),
    ])
}
