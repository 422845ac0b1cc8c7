//! A sandbox from what was asked for: profiles below, single wishes above, as on the command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_policy::{
    Bytes, Count, Cpu, Entry, Fragment, Millis, Network, NetworkMode, NoFiles, Origin, Permission,
    Policy, Rule, resolve_layers,
};
use ringfence_proxy::{Record, Sink};
use ringfence_sandbox::layer::LayerRequest;
use ringfence_sandbox::plan::Plan;
use ringfence_sandbox::prepare::{Request, prepare};
use ringfence_sandbox::run::RunError;

use crate::command::Command;
use crate::error::Error;

/// The layer that the builder's methods make, as rules name it.
const LAYER: &str = "program";

/// A finished policy and the directory to work in.
#[derive(Clone, Debug)]
pub struct Sandbox {
    policy: Policy,
    workspace: Option<PathBuf>,
    cache: bool,
    delta: Option<String>,
    pub(crate) ear: Ear,
}

/// Who hears of what leaves.
#[derive(Clone, Default)]
pub(crate) struct Ear(pub(crate) Option<Sink>);

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Ear" } else { "None" })
    }
}

impl Sandbox {
    /// Starts from the default profile, `workspace`.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A command to run inside; searched along `PATH` as it is inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command<'_> {
        Command::new(self, program.as_ref())
    }

    /// What was decided.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What a command would be confined by on this host right now; runs nothing. `Display` shows it
    /// as `ringfence run --explain` does.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let sandbox = ringfence::Sandbox::builder().workspace(dir.path()).build()?;
    /// assert!(sandbox.plan()?.to_string().contains("network     none"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn plan(&self) -> Result<Plan, Error> {
        Ok(prepare(&self.policy, &self.request()).map_err(RunError::from)?)
    }

    pub(crate) fn request(&self) -> Request {
        let mut request =
            Request { workspace: self.workspace.clone(), cache: self.cache, ..Request::current() };
        request.layer = self.delta.as_ref().map(|name| LayerRequest {
            name: name.clone(),
            auto: false,
            store: request.store(),
            checkpoint: false,
            quota: None,
        });
        request
    }
}

/// Makes a [`Sandbox`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    workspace: Option<PathBuf>,
    profiles: Fragment,
    layers: Vec<Fragment>,
    own: Fragment,
    policy: Option<Policy>,
    cache: bool,
    delta: Option<String>,
    ear: Ear,
    problem: Option<Error>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            workspace: None,
            profiles: Fragment::default(),
            layers: Vec::new(),
            own: Fragment::named(LAYER),
            policy: None,
            cache: true,
            delta: None,
            ear: Ear::default(),
            problem: None,
        }
    }
}

fn entry(value: impl Into<String>) -> Entry {
    Entry::new(value.into(), Origin { layer: LAYER.into(), line: None })
}

impl Builder {
    /// The directory to work in, writable unless the profile says otherwise. Default: the current
    /// directory, unless that is home or the system, which are not shared.
    pub fn workspace(mut self, dir: impl AsRef<Path>) -> Self {
        self.workspace = Some(dir.as_ref().to_owned());
        self
    }

    /// A built-in profile ([`crate::profiles`] names them); call again to lay one over the other.
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.profiles.extends.0.push(entry(name));
        self
    }

    /// A layer over the profiles, for what has no method here. It is trusted.
    pub fn layer(mut self, layer: Fragment) -> Self {
        self.layers.push(layer);
        self
    }

    /// Uses a finished policy instead of profiles and layers. Only [`Builder::allow_read`] and
    /// [`Builder::allow_write`] still add to it; anything else besides is an error.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Lets commands read `path` and what is below it. Taken literally; relative to the current
    /// directory.
    pub fn allow_read(self, path: impl AsRef<Path>) -> Self {
        self.grant(path.as_ref(), Permission::Read)
    }

    /// Lets commands read and change `path` and what is below it. Taken literally; relative to the
    /// current directory.
    pub fn allow_write(self, path: impl AsRef<Path>) -> Self {
        self.grant(path.as_ref(), Permission::Write)
    }

    fn grant(mut self, path: &Path, permission: Permission) -> Self {
        let rule = std::path::absolute(path)
            .ok()
            .and_then(|path| Rule::grant_path(&path, permission, LAYER));
        match rule {
            Some(rule) => self.own.files.extra.push(rule),
            None => {
                self.problem.get_or_insert(Error::Path {
                    path: path.display().to_string(),
                    problem: "not a path that a policy can name (it must be utf-8)".into(),
                });
            }
        }
        self
    }

    /// Hides a path or pattern (`**/*.key`, `~/x`, `/x`; else relative to the workspace).
    pub fn deny_read(mut self, pattern: impl Into<String>) -> Self {
        self.own.files.deny.push(entry(pattern));
        self
    }

    /// Keeps a path or pattern from being changed.
    pub fn deny_write(mut self, pattern: impl Into<String>) -> Self {
        self.own.files.protect.push(entry(pattern));
        self
    }

    /// Sets a variable for every command.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.own.environment.set.insert(name.into(), value.into());
        self
    }

    /// Passes one of this program's variables (a name, or `PREFIX_*`).
    pub fn pass_env(mut self, name: impl Into<String>) -> Self {
        self.own.environment.pass.push(entry(name));
        self
    }

    /// Does not pass a variable that the profile would.
    pub fn deny_env(mut self, name: impl Into<String>) -> Self {
        self.own.environment.deny.push(entry(name));
        self
    }

    /// Lets commands reach a host, through the filter: a name, `*.example.com`, an address or range,
    /// a group such as `npm`, `localhost:PORT`; on any port or `:PORTS`.
    pub fn allow_host(mut self, host: impl Into<String>) -> Self {
        self.own.network.allow.push(entry(host));
        self.own.network.mode = Some(NetworkMode::Filtered);
        self
    }

    /// Hears of every connection that was refused, and of every one that was let through when it has
    /// ended. Called on the filter's thread, one after the other: until it returns nothing else leaves
    /// any sandbox of that command. No call comes after the command was waited for.
    ///
    /// ```
    /// use std::io::Write;
    /// use std::sync::mpsc;
    /// # let dir = tempfile::tempdir()?;
    /// # if !ringfence::Sandbox::builder().workspace(dir.path()).build()?.command("bash").arg("-c").arg(":").status().is_ok_and(|s| s.success()) { return Ok(()); }
    /// let server = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let port = server.local_addr()?.port();
    /// std::thread::spawn(move || server.accept().map(|(mut client, _)| client.write_all(b"hello")));
    ///
    /// let (records, heard) = mpsc::channel();
    /// let sandbox = ringfence::Sandbox::builder()
    ///     .workspace(dir.path())
    ///     .allow_host(format!("localhost:{port}"))
    ///     .on_network(move |record| drop(records.send(record.clone())))
    ///     .build()?;
    /// let script = format!("cat </dev/tcp/127.0.0.1/{port}; : </dev/tcp/192.0.2.1/80");
    /// let output = sandbox.command("bash").arg("-c").arg(script).output()?;
    /// assert_eq!(output.stdout, b"hello");
    ///
    /// let records: Vec<_> = heard.try_iter().collect();
    /// assert!(records.iter().any(|r| r.allowed && r.port == port && r.bytes_in == 5));
    /// assert!(records.iter().any(|r| !r.allowed && r.port == 80));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_network(mut self, hear: impl Fn(&Record) + Send + Sync + 'static) -> Self {
        self.ear = Ear(Some(std::sync::Arc::new(hear)));
        self
    }

    /// Refuses a host, whatever allows it. An error where the network is the host's, which has no
    /// filter to refuse by.
    pub fn deny_host(mut self, host: impl Into<String>) -> Self {
        self.own.network.deny.push(entry(host));
        self
    }

    /// The host's network, unfiltered.
    pub fn host_network(mut self) -> Self {
        self.own.network.mode = Some(NetworkMode::Host);
        self
    }

    /// No network but a loopback of its own.
    pub fn no_network(mut self) -> Self {
        self.own.network.mode = Some(NetworkMode::None);
        self
    }

    /// Ends a command after this time: SIGTERM to all of it, SIGKILL after the grace. Holds whether
    /// or not anybody waits.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.own.limits.timeout = Some(Millis(Some(millis(timeout))));
        self
    }

    /// Time between SIGTERM and SIGKILL at the timeout; five seconds by default.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.own.limits.grace = Some(Millis(Some(millis(grace))));
        self
    }

    /// Memory of each command with all its children, bytes; needs a writable control group.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.own.limits.memory = Some(Bytes(Some(bytes)));
        self
    }

    /// Hundredths of one CPU: 150 is one and a half; needs a writable control group.
    pub fn cpu_percent(mut self, percent: u32) -> Self {
        self.own.limits.cpu = Some(Cpu(Some(percent)));
        self
    }

    /// Processes and threads of each command.
    pub fn pids(mut self, count: u64) -> Self {
        self.own.limits.pids = Some(Count(Some(count)));
        self
    }

    /// Runs although this protection cannot be had on the host; [`crate::Status`] says so.
    pub fn accept_missing(mut self, name: impl Into<String>) -> Self {
        self.own.accept_missing.push(entry(name));
        self
    }

    /// Whether what a walk of a large workspace found is remembered in the user's cache directory.
    pub fn cache(mut self, cache: bool) -> Self {
        self.cache = cache;
        self
    }

    /// Keeps what commands write in a layer of this name, as `ringfence run --layer` does: the real files
    /// stay as they are, and `ringfence diff`, `apply` and `discard` tell and do what becomes of it. One
    /// command at a time. (A [`Builder::layer`] is one of the policy.)
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// let sandbox =
    ///     ringfence::Sandbox::builder().workspace(dir.path()).in_layer("attempt").build()?;
    /// let layer = sandbox.plan()?.layer.expect("the plan has a layer");
    /// assert_eq!(layer.roots[0].path, dir.path().canonicalize()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_layer(mut self, name: impl Into<String>) -> Self {
        self.delta = Some(name.into());
        self
    }

    /// Puts the layers together. Nothing of the host is looked at but the workspace's path.
    pub fn build(self) -> Result<Sandbox, Error> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let (allows, denies) =
            (!self.own.network.allow.is_empty(), !self.own.network.deny.is_empty());
        let policy = if let Some(mut policy) = self.policy {
            let rest =
                Fragment { files: ringfence_policy::FilesFragment::default(), ..self.own.clone() };
            let only_grants = self.own.files.deny.is_empty()
                && self.own.files.protect.is_empty()
                && rest == Fragment::named(LAYER)
                && self.profiles == Fragment::default()
                && self.layers.is_empty();
            if !only_grants {
                return Err(Error::TwoPolicies);
            }
            policy.files.rules.extend(self.own.files.extra);
            policy
        } else {
            let mut layers = vec![(self.profiles, None)];
            layers.extend(self.layers.into_iter().map(|l| (l.with_origin(LAYER), None)));
            layers.push((self.own, None));
            resolve_layers(layers, &NoFiles)?.finish()?
        };
        match policy.network {
            Network::Host if allows || denies => {
                return Err(Error::Network(
                    "hosts are allowed or denied, but the network is the host's, which is not filtered",
                ));
            }
            Network::None if allows => {
                return Err(Error::Network("hosts are allowed, but there is to be no network"));
            }
            _ => {}
        }
        let workspace = match self.workspace {
            Some(dir) => Some(std::path::absolute(&dir).map_err(|e| Error::Path {
                path: dir.display().to_string(),
                problem: e.to_string(),
            })?),
            None => None,
        };
        if let Some(name) = &self.delta {
            LayerRequest::new(Some(name), PathBuf::new(), false).map_err(RunError::from)?;
        }
        Ok(Sandbox { policy, workspace, cache: self.cache, delta: self.delta, ear: self.ear })
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
