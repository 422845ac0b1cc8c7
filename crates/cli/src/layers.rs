//! Which policy applies: flags, the file named by a flag, the nearest project file, the user's file,
//! the built-in default; in that order of search, the first found being the base.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ringfence_policy::{
    Bytes, Count, Cpu, Entry, Fragment, Loader, Millis, Network, NetworkMode, NoFiles, Origin,
    Policy, PolicyError, Pty, import, net, pattern, profiles, resolve, resolve_layers,
};
use ringfence_sandbox::discover::{Contents, PRIVATE_CACHES};

use crate::flags::{Id, Typed};
use crate::output::printable;
use crate::trust;

/// A policy that could not be had. Nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("{0}")]
    Flag(String),
    #[error("cannot read {file}: {problem}")]
    Read { file: String, problem: String },
    /// Not obeyed, and not ignored either: whoever wrote it may have meant to forbid something.
    #[error(
        "{file} {why}, and it asks for more than the default allows:\n  {}\n  read it, then run \
         `ringfence trust {file}`; or pass --no-config to run without it",
        .wants.join("\n  ")
    )]
    Untrusted { file: String, why: &'static str, wants: Vec<String> },
    /// Read while the run goes on, and not certain to be its user's.
    #[error("{0}")]
    Again(String),
}

impl LayerError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Untrusted { .. } | Self::Again(_) => crate::exit::REFUSED,
            _ => crate::exit::FAILED,
        }
    }
}

/// The layered result.
#[derive(Debug)]
pub struct Layered {
    pub policy: Policy,
    pub notes: Vec<String>,
    /// Policy files that were read: protected from the sandbox whatever their place.
    pub files: Vec<PathBuf>,
}

/// The layer called `command line`.
const COMMAND_LINE: &str = "command line";

/// Lays everything over each other.
pub fn layered(typed: &Typed) -> Result<Layered, LayerError> {
    by(typed, Files::default())
}

/// The same once more, of files that `check` lets pass.
pub fn again(
    typed: &Typed,
    check: impl Fn(&Path, &[u8]) -> Result<(), LayerError> + 'static,
) -> Result<Layered, LayerError> {
    by(typed, Files { check: Some(Box::new(check)), ..Files::default() })
}

fn by(typed: &Typed, loader: Files) -> Result<Layered, LayerError> {
    let mut notes = Vec::new();
    let flags = from_flags(typed)?;
    let mut profiles = Fragment::named("profiles");
    for value in typed.all(Id::Profile) {
        for name in text("profile", value)?.split(',') {
            profiles.extends.0.push(entry(name.trim().to_owned()));
        }
    }
    profiles.layers.clear();
    let has_profiles = !profiles.extends.0.is_empty();
    let file = base(typed, has_profiles, &loader, &mut notes)?;
    let policy = if file.is_none() && !has_profiles && flags == Fragment::named(COMMAND_LINE) {
        profiles::workspace()?
    } else {
        let mut layers = vec![(profiles, None)];
        if let Some((fragment, path)) = file {
            layers.push((fragment, Some(path)));
        }
        layers.push((flags, None));
        match resolve_layers(layers, &loader) {
            Ok(mut fragment) => {
                share_caches(&mut fragment)?;
                fragment.finish()?
            }
            Err(e) => return Err(loader.refused.take().unwrap_or_else(|| e.into())),
        }
    };
    held(typed, &policy)?;
    Ok(Layered { policy, notes, files: loader.read.into_inner() })
}

fn command_line() -> Origin {
    Origin { layer: COMMAND_LINE.into(), line: None }
}

/// What else a file has to be for it to be read.
type Check = Box<dyn Fn(&Path, &[u8]) -> Result<(), LayerError>>;

/// A file and what it holds.
type Content = (PathBuf, Vec<u8>);

/// Reads files for `extends`, and remembers which.
#[derive(Default)]
pub struct Files {
    read: RefCell<Vec<PathBuf>>,
    /// Content of what was read, where it is kept.
    kept: Option<RefCell<Vec<Content>>>,
    /// Set while a project's file is obeyed: what it extends came with the checkout as well, and
    /// trust in the one file says nothing of the content of the other.
    store: RefCell<Option<trust::Store>>,
    /// Why a file was not handed out, where it was for want of trust.
    refused: RefCell<Option<LayerError>>,
    check: Option<Check>,
}

impl Files {
    /// A loader that keeps what it reads, the user's own files left out.
    pub fn keeping() -> Self {
        Self { kept: Some(RefCell::default()), ..Self::default() }
    }

    pub fn kept(self) -> Vec<Content> {
        self.kept.map(RefCell::into_inner).unwrap_or_default()
    }

    /// In the user's own configuration directory.
    fn users_own(&self, path: &Path) -> bool {
        self.user_config()
            .and_then(|c| c.parent().map(Path::to_owned))
            .is_some_and(|folder| path.starts_with(folder))
    }

    fn checked(&self, path: &Path, bytes: &[u8]) -> Result<(), LayerError> {
        self.check.as_ref().map_or(Ok(()), |check| check(path, bytes))
    }

    fn obeyed(&self, path: &Path, bytes: &[u8]) -> Result<(), LayerError> {
        self.checked(path, bytes)?;
        let store = self.store.borrow();
        let Some(store) = store.as_ref() else { return Ok(()) };
        if self.users_own(path) || store.trusts(&trust::key_path(path), bytes) {
            return Ok(());
        }
        let fragment = import::load(&path.display().to_string(), bytes)?;
        let Err(wants) = fragment.narrowing_over(&profiles::workspace_fragment()) else {
            return Ok(());
        };
        Err(untrusted(store, path, bytes, &wants))
    }
}

fn untrusted(store: &trust::Store, path: &Path, bytes: &[u8], wants: &[String]) -> LayerError {
    let why = if store.changed(&trust::key_path(path), bytes) { CHANGED } else { NOT_YET };
    LayerError::Untrusted {
        file: printable(path).into_owned(),
        why,
        wants: wants.iter().map(|w| printable(w).into_owned()).collect(),
    }
}

const CHANGED: &str = "was changed since it was trusted";
const NOT_YET: &str = "is not trusted yet";

impl Loader for Files {
    fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        let bytes = read(path).map_err(|e| match e {
            LayerError::Read { problem, .. } => problem,
            other => other.to_string(),
        })?;
        self.obeyed(path, &bytes).map_err(|e| {
            let text = e.to_string();
            self.refused.replace(Some(e));
            text
        })?;
        self.read.borrow_mut().push(path.to_owned());
        if let Some(kept) = &self.kept
            && !self.users_own(path)
        {
            kept.borrow_mut().push((path.to_owned(), bytes.clone()));
        }
        Ok(bytes)
    }

    fn user_config(&self) -> Option<PathBuf> {
        user_candidates().into_iter().flatten().find(|p| std::fs::symlink_metadata(p).is_ok())
    }
}

/// The policy file: named by `-s`, else (unless a profile was named) the nearest project file, else
/// the user's.
fn base(
    typed: &Typed,
    has_profiles: bool,
    loader: &Files,
    notes: &mut Vec<String>,
) -> Result<Option<(Fragment, PathBuf)>, LayerError> {
    let found = if let Some(settings) = typed.last(Id::Settings) {
        let path = PathBuf::from(settings);
        let bytes = read(&path)?;
        Some((path, bytes, false))
    } else if has_profiles || typed.has(Id::NoConfig) {
        None
    } else if let Some((path, bytes)) = find_project(typed)? {
        Some((path, bytes, true))
    } else {
        find_user()?.map(|(path, bytes)| (path, bytes, false))
    };
    let Some((path, bytes, came_with_the_checkout)) = found else { return Ok(None) };
    loader.checked(&path, &bytes)?;
    let shown = path.display().to_string();
    let imported = import::load_with_notes(&shown, &bytes)?;
    notes.extend(imported.notes.iter().map(|n| format!("{}: {}: {}", n.at, n.key, n.note)));
    loader.read.borrow_mut().push(path.clone());
    if came_with_the_checkout {
        obey(&imported.fragment, &path, &bytes, loader, notes)?;
    }
    Ok(Some((imported.fragment, path)))
}

/// A project file is obeyed when its content is trusted; else only if it does no more than narrow.
fn obey(
    fragment: &Fragment,
    path: &Path,
    bytes: &[u8],
    loader: &Files,
    notes: &mut Vec<String>,
) -> Result<(), LayerError> {
    let store = trust::Store::open()
        .map_err(|e| LayerError::Read { file: "the trust store".into(), problem: e.to_string() })?;
    if store.trusts(&trust::key_path(path), bytes) {
        loader.store.replace(Some(store));
        return Ok(());
    }
    // Profiles only: an untrusted file may not pull in further files.
    let resolved = resolve(fragment.clone(), Some(path), &NoFiles);
    let wants = match resolved {
        Ok(resolved) => match resolved.narrowing_over(&profiles::workspace_fragment()) {
            Ok(()) => {
                let why =
                    if store.changed(&trust::key_path(path), bytes) { CHANGED } else { NOT_YET };
                notes.push(format!("{} {why}; it only narrows, so it applies", printable(path)));
                return Ok(());
            }
            Err(wants) => wants,
        },
        Err(PolicyError::Read { file, .. }) => vec![format!("extends = \"{file}\"")],
        Err(e) => return Err(e.into()),
    };
    Err(untrusted(&store, path, bytes, &wants))
}

/// The nearest policy file from the working directory upward, with its content.
pub fn find_project(typed: &Typed) -> Result<Option<(PathBuf, Vec<u8>)>, LayerError> {
    let start = typed
        .last(Id::Workspace)
        .or_else(|| typed.last(Id::Cwd))
        .map_or_else(std::env::current_dir, |d| std::fs::canonicalize(Path::new(d)));
    // A directory that is not there is reported by the run itself, with its flag.
    let Ok(start) = start else { return Ok(None) };
    for path in ringfence_policy::search::project_candidates(&start) {
        const NOT_A_DIRECTORY: i32 = 20;
        match std::fs::symlink_metadata(&path) {
            Ok(_) => return read(&path).map(|bytes| Some((path, bytes))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) if e.raw_os_error() == Some(NOT_A_DIRECTORY) => {}
            Err(e) => return Err(read_error(&path, &e)),
        }
    }
    Ok(None)
}

/// The user's own file below `$XDG_CONFIG_HOME` or `~/.config`.
pub fn find_user() -> Result<Option<(PathBuf, Vec<u8>)>, LayerError> {
    for path in user_candidates().into_iter().flatten() {
        if std::fs::symlink_metadata(&path).is_ok() {
            return read(&path).map(|bytes| Some((path, bytes)));
        }
    }
    Ok(None)
}

fn user_candidates() -> Option<Vec<PathBuf>> {
    let absolute = |v: std::ffi::OsString| Some(PathBuf::from(v)).filter(|p| p.is_absolute());
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .and_then(absolute)
        .or_else(|| std::env::var_os("HOME").and_then(absolute).map(|h| h.join(".config")))?;
    Some(ringfence_policy::search::user_candidates(&base).collect())
}

fn read_error(path: &Path, e: &std::io::Error) -> LayerError {
    let problem = match e.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        _ => e.to_string().to_lowercase(),
    };
    LayerError::Read { file: printable(path).into_owned(), problem }
}

/// Reads at most one byte more than a policy may have; never blocks on a FIFO.
pub fn read(path: &Path) -> Result<Vec<u8>, LayerError> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    const O_NONBLOCK: i32 = 0o4000;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(|e| read_error(path, &e))?;
    let meta = file.metadata().map_err(|e| read_error(path, &e))?;
    if !meta.is_file() {
        return Err(LayerError::Read {
            file: printable(path).into_owned(),
            problem: if meta.is_dir() { "is a directory" } else { "not a regular file" }.into(),
        });
    }
    let mut bytes = Vec::new();
    file.take(ringfence_policy::MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| read_error(path, &e))?;
    Ok(bytes)
}

fn text(id: &str, value: &OsStr) -> Result<String, LayerError> {
    value
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| LayerError::Flag(format!("--{id}: {} is not utf-8", printable(value))))
}

fn entry(value: String) -> Entry {
    Entry::new(value, command_line())
}

/// `NAME[:DIR]` of `--codebase`: its name, and where it is shown.
pub fn codebase_named(text: &str) -> (&str, &str) {
    text.split_once(':').unwrap_or((text, ringfence_codebases::WORKSPACE))
}

/// A path typed on the command line is relative to where it was typed, not to the workspace; where that is a
/// codebase, to it, and one in its place is meant as it is seen there.
fn typed_path(id: &str, value: &OsStr, codebase: Option<&str>) -> Result<Entry, LayerError> {
    let text = text(id, value)?;
    if text.is_empty() {
        return Err(LayerError::Flag(format!("--{id}: empty path")));
    }
    if let Some(place) = codebase {
        let rest = text.strip_prefix(place.trim_end_matches('/'));
        match rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            Some(rest) => return Ok(entry(format!(".{rest}"))),
            None if !text.starts_with(['/', '~', '$']) => return Ok(entry(text)),
            None => {}
        }
    }
    // `~user` and `$VARIABLE` go on as they are, to be refused with the reason.
    if text.starts_with(['/', '~', '$']) || text.starts_with("**") {
        return Ok(entry(text));
    }
    let cwd = std::env::current_dir()
        .map_err(|e| LayerError::Flag(format!("--{id}: current directory: {e}")))?;
    let cwd = cwd.to_str().ok_or_else(|| {
        LayerError::Flag(format!(
            "--{id}: the current directory {} is not utf-8, so {text} cannot be taken from there; write an absolute path or **/{text}",
            printable(&cwd)
        ))
    })?;
    // Only what was typed is a pattern, not the name of the directory it was typed in.
    Ok(entry(format!("{}/{text}", pattern::literally(cwd.trim_end_matches('/')))))
}

/// A public key file typed on the command line is relative to where it was typed.
fn typed_key(value: &OsStr) -> Result<Entry, LayerError> {
    let text = text("ssh-agent", value)?;
    let is_file = Path::new(&text).extension() == Some(OsStr::new("pub"));
    if is_file && !text.starts_with(['/', '~']) {
        let cwd = std::env::current_dir()
            .map_err(|e| LayerError::Flag(format!("--ssh-agent: current directory: {e}")))?;
        if let Some(path) = cwd.join(&text).to_str() {
            return Ok(entry(path.to_owned()));
        }
    }
    Ok(entry(text))
}

/// Caches that are shared become grants. Executables are not among them.
fn share_caches(fragment: &mut Fragment) -> Result<(), LayerError> {
    let caches = || PRIVATE_CACHES.iter().filter(|c| c.contents == Contents::CopyOnWrite);
    for Entry { value: tool, origin } in std::mem::take(&mut fragment.layer.share_cache) {
        let mut shared = caches().filter(|c| tool == "all" || c.tool == tool).peekable();
        if shared.peek().is_none() {
            let mut known: Vec<&str> = caches().map(|c| c.tool).collect();
            known.sort_unstable();
            known.dedup();
            let place = match origin.layer.as_ref() {
                COMMAND_LINE => "--share-cache".to_owned(),
                _ => format!("{origin}: layer.share_cache"),
            };
            let known = known.join(", ");
            return Err(LayerError::Flag(format!("{place}: `{tool}` is not one of all, {known}")));
        }
        let grants = shared.map(|c| Entry::new(format!("~/{}", c.path), origin.clone()));
        fragment.files.write.extend(grants);
    }
    Ok(())
}

/// The flags as a layer of their own.
pub fn from_flags(typed: &Typed) -> Result<Fragment, LayerError> {
    let mut f = Fragment::named(COMMAND_LINE);
    let codebase = typed.last(Id::Codebase).and_then(|named| named.to_str());
    let codebase = codebase.map(|text| codebase_named(text).1);
    let bad =
        |id: &'static str| move |problem: String| LayerError::Flag(format!("--{id}: {problem}"));
    for (id, value) in &typed.flags {
        match id {
            Id::AllowRead => f.files.read.push(typed_path("allow-read", value, codebase)?),
            Id::AllowWrite => f.files.write.push(typed_path("allow-write", value, codebase)?),
            Id::ShareCache => f.layer.share_cache.push(entry(text("share-cache", value)?)),
            Id::Layer => f.layer.name = Some(text("layer", value)?),
            Id::Checkpoint => f.layer.checkpoint = Some(true),
            Id::Exact => f.layer.exact = Some(true),
            Id::LayerQuota => {
                let size = Bytes::parse(&text("layer-quota", value)?);
                f.layer.quota = Some(size.map_err(bad("layer-quota"))?);
            }
            Id::LayerInodes => {
                let number = Count::parse(&text("layer-inodes", value)?);
                f.layer.inodes = Some(number.map_err(bad("layer-inodes"))?);
            }
            Id::DenyRead => f.files.deny.push(typed_path("deny-read", value, codebase)?),
            Id::DenyWrite => f.files.protect.push(typed_path("deny-write", value, codebase)?),
            Id::Device => f.files.devices.push(entry(text("device", value)?)),
            Id::Lift => f.lift.push(entry(text("lift", value)?)),
            Id::AcceptMissing => {
                for name in text("accept-missing", value)?.split(',') {
                    f.accept_missing.push(entry(name.trim().to_owned()));
                }
            }
            Id::Env => match value.as_bytes().iter().position(|b| *b == b'=') {
                Some(_) => {
                    let text = text("env", value)?;
                    if let Some((name, value)) = text.split_once('=') {
                        if name.is_empty() {
                            return Err(LayerError::Flag("--env: empty name".into()));
                        }
                        f.environment.set.insert(name.to_owned(), value.to_owned());
                    }
                }
                None => f.environment.pass.push(entry(text("env", value)?)),
            },
            Id::DenyEnv => f.environment.deny.push(entry(text("deny-env", value)?)),
            Id::Network => {
                f.network.mode = Some(match text("network", value)?.as_str() {
                    "none" => NetworkMode::None,
                    "filtered" => NetworkMode::Filtered,
                    "host" => NetworkMode::Host,
                    other => {
                        return Err(LayerError::Flag(format!(
                            "--network: `{other}` is not one of none, filtered, host"
                        )));
                    }
                });
            }
            Id::SshAgent => f.ssh.agent.push(typed_key(value)?),
            Id::AllowHost => {
                f.network.allow.push(host("allow-host", value, net::List::Allow)?);
            }
            Id::DenyHost => f.network.deny.push(host("deny-host", value, net::List::Deny)?),
            Id::Inspect => {
                let text = text("inspect", value)?;
                ringfence_policy::check_inspected(&text).map_err(bad("inspect"))?;
                f.network.inspect.push(entry(text));
            }
            Id::UpstreamProxy => {
                let text = text("upstream-proxy", value)?;
                if text != "none" {
                    net::Upstream::parse(&text).map_err(bad("upstream-proxy"))?;
                }
                f.network.upstream_proxy = Some(entry(text));
            }
            Id::Memory => {
                let text = text("memory", value)?;
                f.limits.memory = Some(Bytes::parse(&text).map_err(bad("memory"))?);
            }
            Id::FileSize => {
                let text = text("file-size", value)?;
                f.limits.file_size = Some(Bytes::parse(&text).map_err(bad("file-size"))?);
            }
            Id::Cpu => {
                f.limits.cpu = Some(Cpu::parse(&text("cpu", value)?).map_err(bad("cpu"))?);
            }
            Id::Pids => {
                f.limits.pids = Some(Count::parse(&text("pids", value)?).map_err(bad("pids"))?);
            }
            Id::OpenFiles => {
                let text = text("open-files", value)?;
                f.limits.open_files = Some(Count::parse(&text).map_err(bad("open-files"))?);
            }
            Id::Timeout => {
                let text = text("timeout", value)?;
                f.limits.timeout = Some(Millis::parse(&text).map_err(bad("timeout"))?);
            }
            Id::Grace => {
                let text = text("grace", value)?;
                f.limits.grace = Some(Millis::parse(&text).map_err(bad("grace"))?);
            }
            Id::Pty => {
                f.terminal.pty = Some(match text("pty", value)?.as_str() {
                    "auto" => Pty::Auto,
                    "always" => Pty::Always,
                    "never" => Pty::Never,
                    other => {
                        return Err(LayerError::Flag(format!(
                            "--pty: `{other}` is not one of auto, always, never"
                        )));
                    }
                });
            }
            _ => {}
        }
    }
    about_hosts(typed, &mut f)?;
    Ok(f)
}

fn host(id: &str, value: &OsStr, list: net::List) -> Result<Entry, LayerError> {
    let text = text(id, value)?;
    net::check_entry(&text, list)
        .map_err(|problem| LayerError::Flag(format!("--{id}: {}: {problem}", printable(&text))))?;
    Ok(entry(text))
}

/// Flags that only the filter can hold.
const OF_THE_FILTER: [(Id, &str); 4] = [
    (Id::AllowHost, "allow-host"),
    (Id::DenyHost, "deny-host"),
    (Id::Inspect, "inspect"),
    (Id::UpstreamProxy, "upstream-proxy"),
];

/// Hosts ask for the filter; beside a mode that has none they are a contradiction, and guessing which
/// of the two was meant could open what was to be closed.
fn about_hosts(typed: &Typed, f: &mut Fragment) -> Result<(), LayerError> {
    let why = match f.network.mode {
        Some(NetworkMode::None) => "--network none reaches no host",
        Some(NetworkMode::Host) => "--network host is not filtered",
        Some(NetworkMode::Filtered) => return Ok(()),
        None => {
            if typed.has(Id::AllowHost) {
                f.network.mode = Some(NetworkMode::Filtered);
            }
            return Ok(());
        }
    };
    match OF_THE_FILTER.iter().find(|(id, _)| typed.has(*id)) {
        Some((_, flag)) => {
            Err(LayerError::Flag(format!("--{flag}: {why}; leave one of the two away")))
        }
        None => Ok(()),
    }
}

/// A deny that nothing would hold is refused. Where there is no network at all, it is held.
fn held(typed: &Typed, policy: &Policy) -> Result<(), LayerError> {
    if !matches!(policy.network, Network::Host) {
        return Ok(());
    }
    match OF_THE_FILTER.iter().find(|(id, _)| typed.has(*id)) {
        Some((_, flag)) => Err(LayerError::Flag(format!(
            "--{flag}: the policy gives the host's network, which is not filtered; add --network \
             filtered"
        ))),
        None => Ok(()),
    }
}
