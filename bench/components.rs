//! The components of a start, one by one, by criterion: `cargo bench -p ringfence-cli --bench components`.
//! Every test run goes through each of them once, untimed, to see that they work.
//!
//! Whole commands beside other sandboxes are `ringfence bench`'s; this is for whoever changes a part and
//! wants to know what that did: `-- --save-baseline before`, then `-- --baseline before`.
#![allow(clippy::unwrap_used)] // a bench that cannot set up its place has nothing to say
#![allow(clippy::cast_precision_loss)] // figures for people

#[cfg(target_os = "linux")]
#[path = "../tests/stress/harness.rs"]
mod harness;

#[cfg(target_os = "linux")]
mod linux {
    use std::hint::black_box;
    use std::net::{IpAddr, TcpListener, UdpSocket};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::time::Duration;

    use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
    use ringfence::{Network, Sandbox};
    use ringfence_api::ExecRequest;
    use ringfence_policy::net::{Host, Name, Rules};
    use ringfence_policy::{CompiledRules, Fragment, Places, pattern, profiles};
    use ringfence_proxy::{Config, Filter, Sockets, Way, measured};
    use ringfence_sys::seccomp;

    use super::harness::World;

    /// Files of the tree that tools look at.
    const FILES: usize = 500;

    fn binary() -> PathBuf {
        std::env::var_os("RINGFENCE_BIN")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ringfence")), PathBuf::from)
    }

    /// A home and a workspace with a repository.
    struct Place {
        root: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::Builder::new().prefix("ringfence-components").tempdir().unwrap();
            let place = Self { root };
            std::fs::create_dir(place.home()).unwrap();
            for i in 0..FILES {
                let dir = place.work().join(format!("d{}", i / 50));
                std::fs::create_dir_all(&dir).unwrap();
                let word = if i == 7 { "needle" } else { "hay" };
                std::fs::write(dir.join(format!("f{i}.txt")), format!("{word}\n").repeat(50))
                    .unwrap();
            }
            let who = ["-c", "user.name=b", "-c", "user.email=b@example.com"];
            for args in [&["init", "-q"][..], &["add", "."], &["commit", "-qm", "all"]] {
                let words: Vec<&str> =
                    ["git"].into_iter().chain(who).chain(args.iter().copied()).collect();
                // Without git there is no repository, and nobody looks at it.
                let _ = place.command(&words).status();
            }
            place
        }

        fn home(&self) -> PathBuf {
            self.root.path().join("home")
        }

        fn work(&self) -> PathBuf {
            self.root.path().join("work")
        }

        fn command(&self, argv: &[&str]) -> Command {
            let mut command = Command::new(argv[0]);
            command.args(&argv[1..]).current_dir(self.work()).env_clear();
            command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.home());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        }

        fn cold(&self, argv: &[&str]) -> Command {
            let binary = binary();
            let words = [&[binary.to_str().unwrap(), "run", "--no-config", "--"], argv].concat();
            self.command(&words)
        }
    }

    const WORKS: [(&str, &[&str]); 5] = [
        ("true", &["/bin/true"]),
        ("echo", &["/bin/echo", "hello"]),
        ("python", &["python3", "-c", "pass"]),
        ("git_status", &["git", "status"]),
        ("rg", &["rg", "-c", "needle", "."]),
    ];

    fn succeeds(mut command: Command) {
        let status = command.status();
        assert!(
            status.as_ref().is_ok_and(std::process::ExitStatus::success),
            "{command:?}: {status:?}"
        );
    }

    /// What of the work this machine has the programs for.
    fn works(place: &Place) -> Vec<(&'static str, &'static [&'static str])> {
        let there = |(name, argv): &(&str, &'static [&'static str])| {
            let runs = place.command(argv).status().is_ok_and(|s| s.success());
            if !runs {
                println!("skipped: {name}: {} does not run here", argv[0]);
            }
            runs
        };
        WORKS.into_iter().filter(there).collect()
    }

    /// Whole processes: fewer samples than of what takes nanoseconds.
    fn processes<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
        let mut group = c.benchmark_group(name);
        group.sample_size(30).warm_up_time(Duration::from_secs(1));
        group.measurement_time(Duration::from_secs(4));
        group
    }

    /// The same command bare, in a sandbox of its own, and in one that is there.
    pub fn commands(c: &mut Criterion) {
        let place = Place::new();
        let works = works(&place);
        let world = World::start_in(&place.work());
        let mut client = world.client();
        let id = world.create(&mut client).unwrap();
        let mut warm = |argv: &[&str]| {
            let argv = argv.iter().map(ToString::to_string).collect();
            let done = client.exec(&id, &ExecRequest { argv, ..ExecRequest::default() }).unwrap();
            assert!(done.exec.ended.as_ref().is_some_and(|e| e.exit_code == Some(0)), "{done:?}");
        };
        for (name, argv) in &works {
            let mut group = processes(c, "commands");
            group.bench_function(format!("Baseline_{name}"), |b| {
                b.iter(|| succeeds(place.command(argv)));
            });
            group.bench_function(format!("ColdSandbox_{name}"), |b| {
                b.iter(|| succeeds(place.cold(argv)));
            });
            group.bench_function(format!("WarmSandbox_{name}"), |b| b.iter(|| warm(argv)));
        }
        for (name, argv) in works.iter().filter(|(name, _)| ["true", "python"].contains(name)) {
            let mut group = processes(c, &format!("Overhead/{name}"));
            group.bench_function("bare", |b| b.iter(|| succeeds(place.command(argv))));
            group.bench_function("cold", |b| b.iter(|| succeeds(place.cold(argv))));
            group.bench_function("warm", |b| b.iter(|| warm(argv)));
        }
    }

    fn sandbox(place: &Place, profile: &str) -> Sandbox {
        Sandbox::builder().workspace(place.work()).profile(profile).build().unwrap()
    }

    /// A filter on sockets of this process's own, and its end.
    fn filter() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sockets = Sockets {
            tcp: vec![tcp.into()],
            udp: vec![udp.into()],
            diagnosis: None,
            way: Way::default(),
        };
        let filter = Filter::start(Config {
            sockets,
            rules: Arc::new(rules()),
            inspector: None,
            sink: Arc::new(|_| {}),
            upstream: None,
            proxy_port: 1,
            init: None,
            control: None,
        });
        let filter = filter.unwrap();
        assert!(filter.is_running());
        filter.stop();
    }

    /// What has to be there before a command can be run.
    pub fn initialize(c: &mut Criterion) {
        let place = Place::new();
        let mut group = c.benchmark_group("ManagerInitialize");
        group.bench_function("without_egress", |b| b.iter(|| sandbox(&place, "workspace")));
        group.bench_function("with_egress", |b| {
            b.iter(|| {
                let builder = Sandbox::builder().workspace(place.work());
                let sandbox = builder.allow_host("example.com").build().unwrap();
                filter();
                sandbox
            });
        });
        drop(group);
        let mut group = processes(c, "ManagerInitialize");
        group.sample_size(10);
        group.bench_function("daemon", |b| b.iter(|| World::start().client()));
    }

    /// From a policy to the plan of a start.
    pub fn wrap(c: &mut Criterion) {
        let place = Place::new();
        let mut group = c.benchmark_group("WrapCommand");
        for profile in ["workspace", "agent-safe", "development"] {
            let sandbox = sandbox(&place, profile);
            group.bench_function(profile, |b| b.iter(|| sandbox.plan().unwrap()));
        }
    }

    const FILTERED: &[u8] = br#"
[network]
allow = ["example.com", "*.example.org:443", "npm", "pypi", "github", "10.0.0.0/8:8000-8100"]
deny = ["bad.example.org", "169.254.0.0/16"]
"#;

    fn rules() -> Rules {
        let policy = Fragment::parse("bench.toml", FILTERED).unwrap().finish().unwrap();
        assert!(matches!(policy.network, Network::Filtered { .. }));
        Rules::compile(&policy.network).unwrap()
    }

    pub fn policy(c: &mut Criterion) {
        let mut group = c.benchmark_group("Policy");
        group.bench_function("resolve_workspace", |b| {
            b.iter(|| profiles::policy("workspace").unwrap());
        });
        group.bench_function("resolve_agent-safe", |b| {
            b.iter(|| profiles::policy("agent-safe").unwrap());
        });
        group.bench_function("parse", |b| {
            b.iter(|| Fragment::parse("bench.toml", black_box(FILTERED)).unwrap());
        });
        let places = Places { workspace: "/w".into(), home: "/h".into() };
        let policy = profiles::policy("agent-safe").unwrap();
        group.bench_function("compile_rules", |b| b.iter(|| CompiledRules::new(&policy, &places)));
        let compiled = CompiledRules::new(&policy, &places);
        let paths = [
            "/w/src/main.rs",
            "/w/.env",
            "/w/a/b/c/d/e/f/key.pem",
            "/h/.ssh/id_ed25519",
            "/usr/bin/env",
        ];
        group.bench_function("decide", |b| {
            b.iter(|| paths.map(|path| compiled.decide(Path::new(black_box(path))).permission));
        });
        let mut room = compiled.room();
        group.bench_function("decide_in_the_view", |b| {
            b.iter(|| paths.map(|path| compiled.permission(black_box(path).as_bytes(), &mut room)));
        });
        let globs = compiled.glob_rules();
        assert!(!globs.is_empty());
        group.bench_function("globs", |b| {
            b.iter(|| {
                let hits =
                    |path: &&str| globs.iter().filter(|g| g.matches(Path::new(path))).count();
                paths.iter().map(hits).sum::<usize>()
            });
        });
        group.bench_function("pattern", |b| {
            b.iter(|| pattern::parse_native(black_box("~/**/{a,b}/*.[ch]")).unwrap());
        });
        let policy = Fragment::parse("bench.toml", FILTERED).unwrap().finish().unwrap();
        group.bench_function("compile_hosts", |b| {
            b.iter(|| Rules::compile(&policy.network).unwrap());
        });
        let rules = rules();
        let names = ["example.com", "a.b.example.org", "registry.npmjs.org", "elsewhere.example"];
        let names = names.map(|name| Name::parse(name.as_bytes()).unwrap());
        group.bench_function("decide_host", |b| {
            b.iter(|| {
                for name in &names {
                    black_box(rules.name(black_box(name), Some(443)));
                }
            });
        });
        let address: IpAddr = "10.1.2.3".parse().unwrap();
        group.bench_function("decide_address", |b| {
            b.iter(|| rules.address(black_box(address), 8080));
        });
    }

    /// Names of hosts in the one form that rules are asked with.
    pub fn canonicaliser(c: &mut Criterion) {
        let mut group = c.benchmark_group("Canonicaliser");
        for (name, text) in [
            ("plain", "registry.npmjs.org"),
            ("mixed", "Registry.NPMJS.org."),
            ("unicode", "bücher.example"),
            ("number", "0x7f.1"),
            ("v6", "[::ffff:127.0.0.1]"),
        ] {
            group.bench_function(name, |b| {
                b.iter(|| Host::parse(black_box(text.as_bytes())).unwrap());
            });
        }
    }

    pub fn seccomp(c: &mut Criterion) {
        let Some(arch) = seccomp::native() else {
            println!("skipped: there is no table of system calls for this architecture");
            return;
        };
        let options = |on| seccomp::Options {
            ptrace: on,
            io_uring: on,
            nested_namespaces: on,
            inet: true,
            fake_chown: on,
            unix: true,
            reserve: true,
        };
        let mut group = c.benchmark_group("Seccomp");
        for (name, options) in [("emit", options(false)), ("emit_relaxed", options(true))] {
            group.bench_function(name, |b| b.iter(|| seccomp::compile(arch, black_box(&options))));
        }
    }

    pub fn parsers(c: &mut Criterion) {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";
        assert!(measured::dns(query).is_some());
        let socks = b"\x05\x01\0\x05\x01\0\x03\x09a.example\x01\xbb";
        assert!(measured::socks(socks));
        let http = b"GET http://a.example/x?y HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n";
        assert!(measured::http(http));
        let hello = measured::client_hello_of("a.example");
        assert!(measured::client_hello(&hello));
        let mut group = c.benchmark_group("Parsers");
        group.bench_function("dns", |b| b.iter(|| measured::dns(black_box(query))));
        group.bench_function("socks", |b| b.iter(|| measured::socks(black_box(socks))));
        group.bench_function("http", |b| b.iter(|| measured::http(black_box(http))));
        group.bench_function("client_hello", |b| {
            b.iter(|| measured::client_hello(black_box(&hello)));
        });
    }
}

#[cfg(target_os = "linux")]
criterion::criterion_group!(
    all,
    linux::commands,
    linux::initialize,
    linux::wrap,
    linux::policy,
    linux::canonicaliser,
    linux::seccomp,
    linux::parsers
);
#[cfg(target_os = "linux")]
criterion::criterion_main!(all);

#[cfg(not(target_os = "linux"))]
fn main() {}
