//! Owns the sandboxes.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use ringfence_api::{
    AuditQuery, CreateSandbox, ExecRequest, FileInfo, FollowEvents, Listing, OwnerUse,
    SandboxLimits, State,
};
use ringfence_sandbox::lower::candidates;
use ringfence_sandbox::resident::Refusal;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, watch};

use crate::codebases;
use crate::error::{Error, Kind};
use crate::exec::{Birth, Exec, Input};
use crate::files::Written;
use crate::host::{self, End, Host};
use crate::journal::{self, CALLER, Deed, Events, Journal, Owner, Source, Wanted};
use crate::link::{self, Link, Program, Refused, Started};
use crate::log::{KEPT, KEPT_WHOLE};
use crate::machine::{Admitted, Ask, Event};
use crate::realm::{Realm, Realms};
use crate::sandbox::{Live, Sandbox};
use crate::session::{self, Session};
use crate::snapshots::{self, Shots};
use crate::spares::Spares;
use crate::spawner;
use crate::store::Store;
use crate::tended::{self, Own, Tended};
use crate::terminal::{self, Terminal};
use crate::versions::{self, Part, When};
use crate::{
    fault, files, guest, layers, lock, metrics, now_ms, quota, random_id, stats, still, trees,
    workspaces,
};

/// Sandboxes that one owner may have.
const MOST_SANDBOXES: usize = 4096;
/// Labels of one sandbox, and characters of each name and value.
const MOST_LABELS: usize = 64;
const MOST_LABEL: usize = 256;
/// Idempotency keys of commands that one sandbox remembers.
const MOST_KEYS: usize = 1024;
/// How long commands have to end by themselves when their sandbox is stopped.
const GRACE: Duration = Duration::from_secs(2);
/// How long a sandbox may take to end before it is killed from outside, and after.
const PATIENCE: Duration = Duration::from_secs(5);
/// Times a sandbox is made again whose codebase was changed meanwhile.
const TRIES: usize = 5;
/// Those of them during which it may go on to be changed.
const FREE_TRIES: usize = 2;
/// How long after a spawner was taken another is made ready.
const SOON: Duration = Duration::from_millis(1);
/// How often lives and idle times are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub owner: Owner,
    pub source: Source,
}

/// Everything that can be asked. Sandboxes are named by id or by name.
#[derive(Clone, Debug)]
pub enum Command {
    Create {
        made_of: Box<CreateSandbox>,
        key: Option<String>,
    },
    List,
    Get(String),
    Start(String),
    Stop(String),
    Freeze(String),
    /// It ends later.
    Extend {
        sandbox: String,
        seconds: u64,
    },
    Delete(String),
    /// It is limited otherwise.
    Limit {
        sandbox: String,
        limits: SandboxLimits,
    },
    /// `whole`: the answer will be all of its output.
    Exec {
        sandbox: String,
        request: Box<ExecRequest>,
        input: Option<Input>,
        whole: bool,
        key: Option<String>,
    },
    Execs(String),
    FindExec {
        sandbox: String,
        exec: String,
    },
    Kill {
        sandbox: String,
        exec: String,
        signal: i32,
    },
    ReadFile {
        sandbox: String,
        path: String,
        part: Part,
        /// Its bytes are wanted unless it is so.
        when: When,
    },
    /// `durable`: it is on the disk before the answer is.
    WriteFile {
        sandbox: String,
        path: String,
        bytes: Written,
        durable: bool,
        when: When,
    },
    StatFile {
        sandbox: String,
        path: String,
    },
    ListFiles {
        sandbox: String,
        path: String,
    },
    MakeDirectory {
        sandbox: String,
        path: String,
    },
    RemoveFile {
        sandbox: String,
        path: String,
    },
    Codebases(codebases::Ask),
    Layer {
        sandbox: String,
        ask: layers::Ask,
    },
    InSession(session::Ask),
    InFiles(trees::Ask),
    Events(FollowEvents),
    Audit(AuditQuery),
    /// Who asks, and what they have.
    Owner,
    Stats(stats::Ask),
    Snapshots(snapshots::Ask),
}

/// What comes of it.
#[derive(Debug)]
pub enum Reply {
    Done,
    Sandbox(Box<ringfence_api::Sandbox>),
    Sandboxes(Vec<ringfence_api::Sandbox>),
    Exec(Arc<Exec>),
    Execs(Vec<ringfence_api::Exec>),
    Read(versions::Read),
    /// The tag of what was written, where that was asked for or costs nothing.
    Written(Option<String>),
    File(FileInfo),
    Listing(Listing),
    Codebases(codebases::Answer),
    Layer(layers::Answer),
    Session(Box<ringfence_api::Session>),
    Sessions(Vec<ringfence_api::Session>),
    Found(ringfence_api::FoundFiles),
    Download(crate::codebases::Download),
    Unpacked(ringfence_api::Unpacked),
    Events(Box<Events>),
    Audit(ringfence_api::Audit),
    Owner(Box<ringfence_api::OwnerInfo>),
    Stats(stats::Answer),
    Snapshots(Vec<snapshots::Snapshot>),
    Watch(crate::watch::Watch),
}

/// How a supervisor is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file of the store.
    pub store: PathBuf,
    /// The directory of layers and codebases.
    pub layers: PathBuf,
    /// What the spawner is: a program that calls [`spawner::serve`] with its standard input.
    pub spawner: (PathBuf, Vec<String>),
    /// Directories that no sandbox may see, whatever its policy.
    pub hidden: Vec<String>,
    /// Where the workspaces are that are a sandbox's own.
    pub workspaces: PathBuf,
    /// The file of the owners that have names.
    pub owners: PathBuf,
}

/// A sandbox whose end the spawner will tell, and who waits for it.
type Expected = (Weak<Sandbox>, watch::Sender<Option<String>>);

#[derive(Debug)]
pub struct Supervisor {
    settings: Settings,
    store: Store,
    pub(crate) sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    host: tokio::sync::Mutex<Arc<Host>>,
    /// Of those that sandboxes have for themselves.
    spares: Spares,
    /// By the spawner's numbers.
    numbers: Mutex<HashMap<u64, Expected>>,
    ends: mpsc::UnboundedSender<End>,
    /// Sandboxes by owner and idempotency key, with what was asked.
    keys: tokio::sync::Mutex<HashMap<(Owner, String), (String, String)>>,
    pub(crate) realms: Realms,
    journal: Arc<Journal>,
    shots: Shots,
}

impl Supervisor {
    /// Starts with what the store remembers: persistent sandboxes are made again.
    pub async fn start(settings: Settings) -> Result<Arc<Self>, Error> {
        metrics::begin();
        let (store, rows) = Store::open(&settings.store)?;
        let (ends, heard) = mpsc::unbounded_channel();
        let host = new_host(&settings, None, &ends)?;
        let realms = Realms::new(&settings)?;
        let menders = realms.all_own();
        // Before anything is made of them.
        files::blocking(move || {
            menders.iter().for_each(Own::mend);
            Ok(())
        })
        .await?;
        let supervisor = Arc::new(Self {
            realms,
            journal: Journal::open(&settings.store.with_file_name("audit.db"))?,
            shots: Shots::new(settings.store.with_file_name("snapshots")),
            settings,
            store,
            sandboxes: Mutex::default(),
            host: tokio::sync::Mutex::new(host),
            spares: Spares::default(),
            numbers: Mutex::default(),
            ends,
            keys: tokio::sync::Mutex::default(),
        });
        let mut again = Vec::new();
        for row in rows {
            if let Some(key) = &row.key {
                let asked = fingerprint(&row.made_of)?;
                let named = (row.owner, key.clone());
                supervisor.keys.lock().await.insert(named, (asked, row.id.clone()));
            }
            let was = match row.state {
                State::Stopped | State::Failed => (row.state, row.reason.clone()),
                _ => (State::Stopped, "restarted".to_owned()),
            };
            let stays = matches!(row.state, State::Stopped | State::Failed);
            let (id, made) = (row.id.clone(), row.created_ms);
            let of = (row.owner, supervisor.journal.clone());
            let sandbox = Sandbox::new(id, of, row.made_of, made, row.key, was);
            lock(&supervisor.sandboxes).insert(row.id, sandbox.clone());
            if !stays {
                sandbox.happened(Event::Making, "restarted");
                again.push(sandbox);
            }
        }
        let known = lock(&supervisor.sandboxes).keys().cloned().collect();
        workspaces::sweep(&supervisor.settings.workspaces, &known);
        let (sweepers, known) = (supervisor.realms.all_own(), supervisor.clone());
        tokio::task::spawn_blocking(move || {
            for sweeper in sweepers {
                sweeper.sweep(|layer| lock(&known.sandboxes).contains_key(layer));
            }
        });
        tokio::spawn(Arc::clone(&supervisor).hear(heard));
        tokio::spawn(tick(Arc::downgrade(&supervisor)));
        let maker = supervisor.clone();
        tokio::spawn(async move {
            for sandbox in again {
                let _life = sandbox.life.lock().await;
                // Its state says what went wrong.
                let _ = maker.bring_up(&sandbox, "restarted").await;
            }
        });
        Ok(supervisor)
    }

    /// The one way in. What was begun is carried out, also when nobody waits for the answer any more.
    pub async fn run(self: &Arc<Self>, caller: Caller, command: Command) -> Result<Reply, Error> {
        let supervisor = self.clone();
        let (operation, began) = (metrics::Operation::of(&command), Instant::now());
        let done = tokio::spawn(CALLER.scope(caller, async move {
            let deed = Deed::of(&command);
            let done = supervisor.carry_out(caller, command).await;
            supervisor.tell(caller, deed, done.as_ref().err());
            done
        }))
        .await
        .unwrap_or_else(|e| Err(Error::internal(format!("a task ended: {e}"))));
        metrics::carried_out(operation, began, &done);
        done
    }

    /// Records what was done or refused.
    fn tell(&self, caller: Caller, deed: Deed, failed: Option<&Error>) {
        let named = deed.sandbox.clone();
        let event = match failed {
            None => deed.done(),
            Some(e) => deed.refused(e),
        };
        let Some(event) = event else { return };
        let sandbox = named.and_then(|named| self.find(caller, &named).ok());
        let event = ringfence_api::Event {
            sandbox: sandbox.as_ref().map(|s| s.id.clone()),
            name: sandbox.and_then(|s| s.made_of.name.clone()),
            ..event
        };
        match failed {
            None => self.journal.record(caller.owner, caller.source, event),
            Some(_) => self.journal.refused(caller.owner, caller.source, event),
        }
    }

    /// What is a caller's own. None is there for an owner that is not in the file any more.
    pub(crate) fn realm(&self, caller: Caller) -> Result<Arc<Realm>, Error> {
        let realm = self.realms.of(caller.owner)?;
        if realm.is_guest() {
            self.journal.name(caller.owner, realm.name.clone());
        }
        Ok(realm)
    }

    /// Whose token it is.
    pub fn owner_of_token(&self, token: &str) -> Option<Owner> {
        let record = self.realms.owners.by_token(token)?;
        self.journal.name(record.owner(), record.name.clone());
        Some(record.owner())
    }

    /// A request was refused before anybody knew what it asks for: at the door.
    pub fn refused(&self, source: Source, reason: &str) {
        let reason = Some(reason.to_owned());
        let event = ringfence_api::Event { reason, ..ringfence_api::Event::default() };
        self.journal.refused(Owner::user(), source, event);
    }

    /// The id of a caller's own sandbox; as it was named where it is gone.
    fn id_of(&self, caller: Caller, named: Option<String>) -> Option<String> {
        named.map(|named| self.find(caller, &named).map_or(named, |sandbox| sandbox.id.clone()))
    }

    async fn audit(&self, caller: Caller, query: AuditQuery) -> Result<Reply, Error> {
        let limit = query.limit.unwrap_or(100);
        if !(1..=1000).contains(&limit) {
            return Err(Error::invalid("limit: not from 1 to 1000"));
        }
        let limit = limit as usize;
        let owner = match &query.owner {
            None => caller.owner,
            Some(name) => self.realms.named_by(caller.owner, name)?,
        };
        let caller = Caller { owner, ..caller };
        let wanted = Wanted {
            sandbox: self.id_of(caller, query.sandbox),
            kind: query.kind,
            since_ms: query.since_ms.unwrap_or(0),
            until_ms: query.until_ms.unwrap_or(u64::MAX),
            after: query.after.unwrap_or(0),
            limit: limit + 1,
            ..Wanted::of(owner)
        };
        let mut events = self.journal.read(wanted).await?;
        let more = events.len() > limit;
        events.truncate(limit);
        let next = events.last().map(|last| last.id).filter(|_| more);
        Ok(Reply::Audit(ringfence_api::Audit { events, next }))
    }

    async fn carry_out(self: &Arc<Self>, caller: Caller, command: Command) -> Result<Reply, Error> {
        match command {
            Command::Create { made_of, key } => self.create(caller, *made_of, key, None).await,
            Command::List => Ok(Reply::Sandboxes(self.list(caller))),
            Command::Get(id) => self.find(caller, &id).map(|sandbox| described(&sandbox)),
            Command::Start(id) => self.begin(&self.find(caller, &id)?).await,
            Command::Stop(id) => self.stop(&self.find(caller, &id)?, "requested").await,
            Command::Freeze(id) => freeze(&self.find(caller, &id)?).await,
            Command::Extend { sandbox, seconds } => {
                let sandbox = self.find(caller, &sandbox)?;
                sandbox.extend(seconds);
                self.keep(&sandbox).await?;
                Ok(described(&sandbox))
            }
            Command::Limit { sandbox, limits } => {
                self.limit(&self.find(caller, &sandbox)?, limits).await
            }
            Command::Delete(id) => match self.find(caller, &id) {
                Ok(sandbox) => self.delete(&sandbox).await,
                // Again is no error; and nobody learns what others have.
                Err(_) => Ok(Reply::Done),
            },
            Command::Exec { sandbox, request, input, whole, key } => {
                let sandbox = self.find(caller, &sandbox)?;
                self.admits_command(caller)?;
                exec_once(&sandbox, &request, input, whole, key).await.map(Reply::Exec)
            }
            Command::Execs(id) => {
                let execs = self.find(caller, &id)?.execs();
                Ok(Reply::Execs(execs.iter().map(|e| e.described()).collect()))
            }
            Command::FindExec { sandbox, exec } => {
                self.find(caller, &sandbox)?.exec(&exec).map(Reply::Exec)
            }
            Command::Kill { sandbox, exec, signal } => {
                if !(1..=64).contains(&signal) {
                    return Err(Error::invalid(format!("signal: {signal} is none")));
                }
                self.find(caller, &sandbox)?.exec(&exec)?.kill(signal).await?;
                Ok(Reply::Done)
            }
            Command::ReadFile { sandbox, path, part, when } => {
                let (live, path) = self.look(caller, &sandbox, &path)?;
                files::read(&live.link, &path, part, &when).await.map(Reply::Read)
            }
            Command::WriteFile { sandbox, path, bytes, durable, when } => {
                let sandbox = self.find(caller, &sandbox)?;
                let live = sandbox.look()?;
                let path = files::absolute(&path, &live.made.cwd)?;
                let write = files::Write {
                    durable,
                    when: &when,
                    most: sandbox.limits().disk.unwrap_or(u64::MAX),
                    turn: &sandbox.turn,
                };
                files::write(&live.link, &path, bytes, write).await.map(Reply::Written)
            }
            Command::StatFile { sandbox, path } => {
                let (live, path) = self.look(caller, &sandbox, &path)?;
                files::stat(&live.link, &path).await.map(Reply::File)
            }
            Command::ListFiles { sandbox, path } => {
                let (live, path) = self.look(caller, &sandbox, &path)?;
                files::list(&live.link, &path).await.map(Reply::Listing)
            }
            Command::MakeDirectory { sandbox, path } => {
                let (live, path) = self.look(caller, &sandbox, &path)?;
                files::make_directory(&live.link, &path).await.map(|()| Reply::Done)
            }
            Command::RemoveFile { sandbox, path } => {
                let (live, path) = self.look(caller, &sandbox, &path)?;
                files::remove(&live.link, &path).await.map(|()| Reply::Done)
            }
            Command::Layer { sandbox, ask } => {
                let sandbox = self.find(caller, &sandbox)?;
                self.layer(&sandbox, ask).await.map(Reply::Layer)
            }
            Command::Codebases(ask) => self.codebases(caller, ask).await.map(Reply::Codebases),
            Command::InSession(ask) => self.in_session(caller, ask).await,
            Command::InFiles(ask) => self.in_files(caller, ask).await,
            Command::Events(which) => {
                let sandbox = self.id_of(caller, which.sandbox);
                let events = self.journal.follow(caller.owner, sandbox, which.after);
                Ok(Reply::Events(Box::new(events)))
            }
            Command::Audit(query) => self.audit(caller, query).await,
            Command::Owner => self.owner(caller).await,
            Command::Stats(ask) => self.stats(caller, ask).await.map(Reply::Stats),
            Command::Snapshots(ask) => self.snapshots(caller, ask).await,
        }
    }

    async fn in_files(&self, caller: Caller, ask: trees::Ask) -> Result<Reply, Error> {
        use trees::Ask;
        let (Ask::Move { sandbox, .. }
        | Ask::Search { sandbox, .. }
        | Ask::Pack { sandbox, .. }
        | Ask::Unpack { sandbox, .. }
        | Ask::Chmod { sandbox, .. }
        | Ask::Watch { sandbox, .. }) = &ask;
        let sandbox = self.find(caller, sandbox)?;
        let live = sandbox.look()?;
        let at = |path: &str| trees::place(path, &live.made.cwd);
        let link = live.link.clone();
        match ask {
            Ask::Move { from, to, .. } => {
                let cwd = &live.made.cwd;
                let (from, to) = (files::absolute(&from, cwd)?, files::absolute(&to, cwd)?);
                trees::rename(&link, &from, &to).await.map(|()| Reply::Done)
            }
            Ask::Search { search, .. } => {
                let (root, permit) = (at(&search.path)?, sandbox.room.take()?);
                trees::search(link, permit, root, search).await.map(Reply::Found)
            }
            Ask::Pack { path, .. } => {
                let (root, permit) = (at(&path)?, sandbox.room.take()?);
                trees::pack(link, permit, root).await.map(Reply::Download)
            }
            Ask::Unpack { path, content, .. } => {
                let (root, permit) = (at(&path)?, sandbox.room.take()?);
                trees::unpack(link, permit, root, content).await.map(Reply::Unpacked)
            }
            Ask::Chmod { path, mode, .. } => {
                let path = files::absolute(&path, &live.made.cwd)?;
                trees::chmod(&link, &path, mode).await.map(|()| Reply::Done)
            }
            Ask::Watch { watch, .. } => {
                let (root, permit) = (at(&watch.path)?, sandbox.watches.take()?);
                crate::watch::watch(&live, permit, root, watch.recursive).await.map(Reply::Watch)
            }
        }
    }

    async fn in_session(&self, caller: Caller, ask: session::Ask) -> Result<Reply, Error> {
        use session::Ask;
        let one = |session: &Session| Reply::Session(Box::new(session.described()));
        match ask {
            Ask::Create { sandbox, request } => {
                let sandbox = self.find(caller, &sandbox)?;
                self.admits_session(caller)?;
                Ok(one(&*session::create(&sandbox, &request).await?))
            }
            Ask::List { sandbox } => {
                let sessions = self.find(caller, &sandbox)?.sessions.all();
                Ok(Reply::Sessions(sessions.iter().map(|s| s.described()).collect()))
            }
            Ask::Get { sandbox, session } => {
                Ok(one(&self.session(caller, sandbox.as_deref(), &session)?.1))
            }
            Ask::Delete { sandbox, session } => {
                if let Ok((_, session)) = self.session(caller, sandbox.as_deref(), &session) {
                    session.end("deleted").await;
                }
                Ok(Reply::Done)
            }
            Ask::Exec { sandbox, session, request, input, whole } => {
                let (sandbox, session) = self.session(caller, sandbox.as_deref(), &session)?;
                self.admits_command(caller)?;
                session::exec(&sandbox, &session, &request, input, whole).await.map(Reply::Exec)
            }
        }
    }

    /// A session of a caller's own sandboxes.
    fn session(
        &self,
        caller: Caller,
        sandbox: Option<&str>,
        id: &str,
    ) -> Result<(Arc<Sandbox>, Arc<Session>), Error> {
        let all: Vec<Arc<Sandbox>> = match sandbox {
            Some(name) => vec![self.find(caller, name)?],
            None => lock(&self.sandboxes)
                .values()
                .filter(|s| s.owner == caller.owner)
                .cloned()
                .collect(),
        };
        all.into_iter()
            .find_map(|sandbox| sandbox.sessions.find(id).map(|session| (sandbox, session)))
            .ok_or_else(|| {
                let message = format!("no such session: {}", crate::error::shown(id));
                Error::new(Kind::NotFound, message)
                    .with("list the sessions: `ringfence session list SANDBOX`")
            })
    }

    /// A caller's own sandbox. That of another is not found, as one that is not there.
    pub(crate) fn find(&self, caller: Caller, name: &str) -> Result<Arc<Sandbox>, Error> {
        let all = lock(&self.sandboxes);
        let own = |s: &&Arc<Sandbox>| s.owner == caller.owner;
        let found = all
            .get(name)
            .filter(own)
            .or_else(|| all.values().filter(own).find(|s| s.made_of.name.as_deref() == Some(name)));
        found.cloned().ok_or_else(|| Error::no_sandbox(Some(name)))
    }

    fn look(&self, caller: Caller, name: &str, path: &str) -> Result<(Live, String), Error> {
        let live = self.find(caller, name)?.look()?;
        let path = files::absolute(path, &live.made.cwd)?;
        Ok((live, path))
    }

    fn list(&self, caller: Caller) -> Vec<ringfence_api::Sandbox> {
        let all = lock(&self.sandboxes);
        let own = all.values().filter(|s| s.owner == caller.owner);
        let mut list: Vec<_> = own.map(|s| s.described()).collect();
        list.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        list
    }

    async fn create(
        self: &Arc<Self>,
        caller: Caller,
        mut made_of: CreateSandbox,
        key: Option<String>,
        snapshot: Option<&str>,
    ) -> Result<Reply, Error> {
        check(&made_of)?;
        quota::memory_is_free()?;
        let realm = self.realm(caller)?;
        realm.may_create(&made_of)?;
        // Those of one key come one after the other.
        let mut keys = match &key {
            Some(_) => Some(self.keys.lock().await),
            None => None,
        };
        let asked = fingerprint(&made_of)?;
        if let (Some(keys), Some(key)) = (&keys, &key)
            && let Some((before, id)) = keys.get(&(caller.owner, key.clone()))
        {
            same(before, &asked)?;
            // Unless it is gone again.
            if let Ok(sandbox) = self.find(caller, id) {
                return Ok(described(&sandbox));
            }
        }
        if let Some(name) = &made_of.codebase {
            // By its id: a name may be given again.
            made_of.codebase = Some(realm.shelf.find(name, None).await?.id);
        }
        let first = if made_of.stopped { State::Stopped } else { State::Creating };
        let state = (first, "created".to_owned());
        let id = random_id("sb_")?;
        let own = made_of.workspace.is_empty() && made_of.codebase.is_none();
        if own {
            made_of.workspace = workspaces::path(&self.settings.workspaces, &id)?;
        }
        let of = (caller.owner, self.journal.clone());
        let sandbox = Sandbox::new(id.clone(), of, made_of, now_ms(), key.clone(), state);
        let life = sandbox.life.lock().await;
        let codebases = match realm.limits.disk {
            Some(_) => realm.codebases().await?,
            None => 0,
        };
        self.enter(caller, &sandbox, |used, made_of| {
            quota::admits(&realm.limits, used, made_of, codebases)
        })?;
        fault::point("create.entered");
        let place = match snapshot {
            Some(name) => self.shots.fill(caller.owner, name, &sandbox.made_of.workspace).await,
            None if own => workspaces::make(&sandbox.made_of),
            None => Ok(()),
        };
        let brought = match (place, first) {
            (Ok(()), State::Creating) => self.bring_up(&sandbox, "created").await,
            (Ok(()), _) => Ok(()),
            (Err(e), _) => {
                sandbox.happened(Event::Lost, &e.message);
                Err(e)
            }
        };
        fault::point("create.alive");
        let made = match brought {
            Ok(()) => self.keep(&sandbox).await,
            Err(e) => Err(e),
        };
        if let Err(e) = made {
            drop(life);
            // It was never acknowledged.
            let _ = self.delete(&sandbox).await;
            return Err(e);
        }
        if let (Some(keys), Some(key)) = (&mut keys, key) {
            keys.insert((caller.owner, key), (asked, id));
        }
        fault::point("create.kept");
        self.recorded(&sandbox, "sandbox.created").await;
        Ok(described(&sandbox))
    }

    /// Puts a new one among the others, if there is room and its name is free.
    fn enter(
        &self,
        caller: Caller,
        sandbox: &Arc<Sandbox>,
        admits: impl FnOnce(&OwnerUse, &CreateSandbox) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut all = lock(&self.sandboxes);
        let own = all.values().filter(|s| s.owner == caller.owner);
        let mut count = 0;
        for other in own {
            count += 1;
            if sandbox.made_of.name.is_some() && other.made_of.name == sandbox.made_of.name {
                let name = sandbox.made_of.name.as_deref().unwrap_or_default();
                return Err(Error::new(
                    Kind::Conflict,
                    format!("there is a sandbox {name} already"),
                )
                .with("choose another name, or delete that one"));
            }
        }
        if count >= MOST_SANDBOXES {
            return Err(Error::new(Kind::Limit, format!("there are {count} sandboxes already"))
                .with("delete some"));
        }
        let everybody = self.realms.owners.everybody();
        quota::admits_among_all(&everybody, all.len() as u64)?;
        if caller.owner != Owner::user() {
            let own = all.values().filter(|s| s.owner == caller.owner);
            admits(&quota::used(own, true), &sandbox.made_of)?;
        }
        all.insert(sandbox.id.clone(), sandbox.clone());
        Ok(())
    }

    /// What the owner of a sandbox has besides it, but for how many.
    pub(crate) fn used_besides(&self, sandbox: &Sandbox) -> OwnerUse {
        let all = lock(&self.sandboxes);
        let others = |s: &&Arc<Sandbox>| s.owner == sandbox.owner && s.id != sandbox.id;
        OwnerUse { sandboxes: 0, ..quota::used(all.values().filter(others), true) }
    }

    pub(crate) fn used_by_all(&self) -> OwnerUse {
        quota::used(lock(&self.sandboxes).values(), false)
    }

    pub(crate) fn used_by(&self, owner: Owner, bytes: bool) -> OwnerUse {
        let all = lock(&self.sandboxes);
        quota::used(all.values().filter(|s| s.owner == owner), bytes)
    }

    /// Makes the processes of a sandbox that is `creating`.
    async fn bring_up(self: &Arc<Self>, sandbox: &Arc<Sandbox>, reason: &str) -> Result<(), Error> {
        let brought = self.processes(sandbox).await;
        match brought {
            Ok(live) => {
                sandbox.is_alive(live);
                sandbox.happened(Event::Ready { commands: false }, reason);
                Ok(())
            }
            Err(e) => {
                sandbox.happened(Event::Lost, &e.message);
                Err(e)
            }
        }
    }

    async fn processes(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<Live, Error> {
        let realm = self.realms.of(sandbox.owner)?;
        let layer = tended::layer_of(&sandbox.made_of, &sandbox.id);
        let Some(layer) = layer else {
            return match self.made(sandbox, None).await {
                Err(e) if e.kind == Kind::Alone => {
                    self.made(sandbox, Some(&Tended::of(sandbox, None, &realm.store))).await
                }
                made => made,
            };
        };
        let remembered = async {
            if !tended::is_own(&sandbox.made_of) {
                return Ok(());
            }
            realm.own.remember(layer).await
        };
        let Some(codebase) = &sandbox.made_of.codebase else {
            remembered.await?;
            return self.made(sandbox, Some(&Tended::of(sandbox, None, &realm.store))).await;
        };
        let find = || realm.shelf.find(codebase, Some(layer));
        let (remembered, found) = tokio::join!(remembered, find());
        remembered?;
        let mut found = Some(found?);
        for n in 0..TRIES {
            // Who changes it all the time waits for a moment, rather than that no sandbox is ever made.
            let _quiet = if n < FREE_TRIES { None } else { realm.shelf.quiet(PATIENCE).await };
            let before = match found.take() {
                Some(found) => found,
                None => find().await?,
            };
            let tended = Tended::of(sandbox, Some(&before), &realm.store);
            let made = self.made(sandbox, Some(&tended)).await;
            let after = realm.shelf.find(codebase, None).await?;
            if after.version == before.version {
                return made;
            }
            // Rules of names were made of what is no longer so. From the moment that it is used the tree
            // stays, so another try that sees no change is right.
            if let Ok(live) = made {
                self.end(sandbox, live).await;
            }
        }
        Err(Error::new(Kind::Busy, "the codebase is being changed all the time").with("try again"))
    }

    /// One try.
    async fn made(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        tended: Option<&Tended>,
    ) -> Result<Live, Error> {
        let (number, own) = match tended {
            Some(_) => {
                let (number, own) = self.host_alone().await?;
                (number, Some(own))
            }
            None => (host::number(), None),
        };
        let host = match &own {
            Some(own) => own.clone(),
            None => self.host().await?,
        };
        let (told, ended) = watch::channel(None);
        lock(&self.numbers).insert(number, (Arc::downgrade(sandbox), told));
        fault::point("make.ordered");
        let guest = sandbox.owner.number().is_some();
        let made_of = sandbox.made_of_now();
        let made = host.make(number, (&made_of, guest), tended).await;
        fault::point("make.answered");
        let link = made.and_then(|(made, fd)| {
            let link = Link::new(fd, made.init)?;
            Ok((made, link))
        });
        match link {
            Ok((made, link)) => Ok(Live {
                number,
                host: own,
                link,
                made: Arc::new(made),
                mounts: Arc::default(),
                ended,
            }),
            Err(e) => {
                lock(&self.numbers).remove(&number);
                Err(e)
            }
        }
    }

    /// A spawner for one sandbox, and the number of that.
    async fn host_alone(self: &Arc<Self>) -> Result<(u64, Arc<Host>), Error> {
        let spare = self.spares.take();
        metrics::prepared(metrics::Pool::Spawners, spare.is_some());
        if self.spares.begin() {
            let supervisor = Arc::downgrade(self);
            tokio::spawn(async move {
                // Whoever asked comes first.
                tokio::time::sleep(SOON).await;
                while let Some(supervisor) = supervisor.upgrade() {
                    if !supervisor.spares.add(supervisor.divided().await) {
                        return;
                    }
                }
            });
        }
        if let Some(spare) = spare {
            return Ok(spare);
        }
        if let Some(divided) = self.divided().await {
            return Ok(divided);
        }
        let number = host::number();
        Ok((number, new_host(&self.settings, Some(number), &self.ends)?))
    }

    /// A copy of the spawner, which is there for one sandbox.
    async fn divided(&self) -> Option<(u64, Arc<Host>)> {
        let number = host::number();
        let host = self.host().await.ok()?;
        Some((number, host.divide(number, self.ends.clone()).await?))
    }

    /// The spawner; a new one where the last is gone.
    pub(crate) async fn host(&self) -> Result<Arc<Host>, Error> {
        let mut host = self.host.lock().await;
        if host.is_gone() {
            // Nobody will tell of the ends of its sandboxes: see `look_after`.
            self.forget_shared();
            *host = new_host(&self.settings, None, &self.ends)?;
        }
        Ok(host.clone())
    }

    /// The spawner of many is gone; those with one of their own go on.
    fn forget_shared(&self) {
        lock(&self.numbers).retain(|_, (sandbox, _)| {
            // Being made: whoever makes it is told.
            let stays = |s: Arc<Sandbox>| s.live().is_none_or(|live| live.host.is_some());
            sandbox.upgrade().is_some_and(stays)
        });
    }

    /// What the spawner says of ends.
    async fn hear(self: Arc<Self>, mut heard: mpsc::UnboundedReceiver<End>) {
        while let Some(End { number, reason, held }) = heard.recv().await {
            let known = lock(&self.numbers).remove(&number);
            let Some((sandbox, told)) = known else { continue };
            for line in held {
                crate::complain(&printable(&line));
            }
            if let Some(sandbox) = sandbox.upgrade()
                && sandbox.live().is_some_and(|l| l.number == number && !l.link.was_shut())
                && sandbox.is_dead(number)
            {
                let reason = if reason == "signal" { "killed" } else { &reason };
                sandbox.happened(Event::Lost, reason);
                metrics::lost(reason);
                // A failure to write it down is no reason to forget what happened.
                let _ = self.keep(&sandbox).await;
            }
            let _ = told.send(Some(reason));
        }
    }

    /// Writes down what must outlive us.
    pub(crate) async fn keep(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        if sandbox.made_of.persistent { self.store.put(sandbox.row()).await } else { Ok(()) }
    }

    async fn begin(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<Reply, Error> {
        let _life = sandbox.life.lock().await;
        if sandbox.may(Ask::Start)? == Admitted::Already {
            return Ok(described(sandbox));
        }
        if sandbox.state() == State::Frozen {
            let live = sandbox.live().ok_or_else(Error::lost)?;
            still::release(sandbox, &live).await?;
            sandbox.happened(Event::Ready { commands: sandbox.commands() > 0 }, "requested");
        } else {
            sandbox.happened(Event::Making, "requested");
            self.bring_up(sandbox, "requested").await?;
            fault::point("start.alive");
        }
        self.keep(sandbox).await?;
        Ok(described(sandbox))
    }

    async fn stop(&self, sandbox: &Arc<Sandbox>, reason: &str) -> Result<Reply, Error> {
        let _life = sandbox.life.lock().await;
        if sandbox.may(Ask::Stop)? == Admitted::Already {
            return Ok(described(sandbox));
        }
        fault::point("stop.begun");
        if let Some(live) = sandbox.live() {
            if sandbox.state() == State::Running {
                let _ = live.link.signal(0, libc::SIGTERM).await;
                let until = Instant::now() + GRACE;
                while sandbox.commands() > 0 && Instant::now() < until {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            self.end(sandbox, live).await;
        }
        fault::point("stop.ended");
        sandbox.happened(Event::Stopped, reason);
        self.keep(sandbox).await?;
        Ok(described(sandbox))
    }

    /// Ends its processes and waits until nothing of them is left.
    async fn end(&self, sandbox: &Arc<Sandbox>, mut live: Live) {
        live.link.shut();
        // Who is stopped does not see that.
        let patience = if live.link.is_stopped() { Duration::ZERO } else { PATIENCE };
        let ended = live.ended.wait_for(Option::is_some);
        if tokio::time::timeout(patience, ended).await.is_err() {
            let host = match &live.host {
                Some(own) => own.clone(),
                None => self.host.lock().await.clone(),
            };
            host.kill(live.number).await;
            let ended = live.ended.wait_for(Option::is_some);
            let _ = tokio::time::timeout(PATIENCE, ended).await;
        }
        sandbox.is_dead(live.number);
    }

    async fn delete(&self, sandbox: &Arc<Sandbox>) -> Result<Reply, Error> {
        let _life = sandbox.life.lock().await;
        if sandbox.may(Ask::Delete)? == Admitted::Go {
            fault::point("destroy.begun");
            if sandbox.made_of.persistent {
                // First: a sandbox that was said to be gone does not come back.
                self.store.remove(sandbox.id.clone()).await?;
            }
            fault::point("destroy.forgotten");
            if let Some(live) = sandbox.live() {
                if let Some(host) = &live.host
                    && tended::is_own(&sandbox.made_of)
                {
                    host.forget(live.number).await;
                }
                self.end(sandbox, live).await;
            }
            fault::point("destroy.ended");
            sandbox.happened(Event::Deleted, "requested");
            metrics::deleted();
            workspaces::remove(&self.settings.workspaces, &sandbox.id).await;
            self.recorded(sandbox, "sandbox.removed").await;
        }
        lock(&self.sandboxes).remove(&sandbox.id);
        if let Some(layer) = tended::layer_of(&sandbox.made_of, &sandbox.id)
            && tended::is_own(&sandbox.made_of)
            && let Ok(realm) = self.realms.of(sandbox.owner)
            && let Err(e) = realm.own.forget(layer).await
        {
            // The next start of the daemon tries again.
            crate::complain(&format!("layer {layer}: {e}"));
        }
        if let Some(key) = &sandbox.key {
            // Held by the creation that failed: it has not entered its key yet.
            let Ok(mut keys) = self.keys.try_lock() else { return Ok(Reply::Done) };
            keys.remove(&(sandbox.owner, key.clone()));
        }
        Ok(Reply::Done)
    }

    /// Written down before it is acknowledged.
    async fn recorded(&self, sandbox: &Sandbox, kind: &str) {
        let event = ringfence_api::Event { kind: kind.into(), ..ringfence_api::Event::default() };
        sandbox.about().record(event);
        self.journal.flush().await;
    }

    /// What time has come for.
    async fn look_after(self: Arc<Self>) {
        let all: Vec<Arc<Sandbox>> = lock(&self.sandboxes).values().cloned().collect();
        let now = now_ms();
        for sandbox in all {
            if sandbox.expires_ms().is_some_and(|at| at <= now) {
                let _ = self.delete(&sandbox).await;
            } else if sandbox.is_idle_too_long() {
                let _ = self.stop(&sandbox, "idle").await;
            } else if let Some(live) = sandbox.live()
                && live.ended.has_changed().is_err()
                && live.ended.borrow().is_none()
                && sandbox.is_dead(live.number)
            {
                // Nobody will say how it ended: the spawner is gone, and it with that.
                sandbox.happened(Event::Lost, "host-lost");
                metrics::lost("host-lost");
                let _ = self.keep(&sandbox).await;
            }
        }
        self.spares.look_after();
        if self.host.lock().await.is_gone() {
            self.forget_shared();
        }
    }

    async fn snapshots(
        self: &Arc<Self>,
        caller: Caller,
        ask: snapshots::Ask,
    ) -> Result<Reply, Error> {
        use snapshots::Ask;
        let owner = caller.owner;
        let one = |snapshot| Ok(Reply::Snapshots(vec![snapshot]));
        match ask {
            Ask::Take { sandbox, name } => {
                let sandbox = self.find(caller, &sandbox)?;
                let _life = sandbox.life.lock().await;
                let workspace = self.settings.workspaces.join(&sandbox.id);
                one(self.shots.take(&sandbox, &workspace, &name).await?)
            }
            Ask::List => self.shots.list(owner).await.map(Reply::Snapshots),
            Ask::Get(name) => one(self.shots.get(owner, &name).await?),
            Ask::Forget(name) => self.shots.forget(owner, &name).await.map(|()| Reply::Done),
            Ask::Restore { snapshot, name } => {
                let made_of = CreateSandbox {
                    name: Some(name),
                    workspace: String::new(),
                    stopped: true,
                    ..self.shots.get(owner, &snapshot).await?.made_of
                };
                self.create(caller, made_of, None, Some(&snapshot)).await
            }
        }
    }

    /// What is asked of a sandbox's layer. It does not start meanwhile.
    pub(crate) async fn layer(
        &self,
        sandbox: &Arc<Sandbox>,
        ask: layers::Ask,
    ) -> Result<layers::Answer, Error> {
        let Some(name) = tended::layer_of(&sandbox.made_of, &sandbox.id) else {
            return Err(Error::new(Kind::Conflict, "the sandbox has no layer")
                .with("make it with \"layer\": true"));
        };
        let _life = sandbox.life.lock().await;
        if ask.needs_rest() && sandbox.live().is_some() {
            return Err(Error::new(Kind::Conflict, "the sandbox is not stopped")
                .with("stop it first; what it changed stays"));
        }
        let realm = self.realms.of(sandbox.owner)?;
        if realm.limits.disk.is_some() && ask.adds() {
            return Err(Error::new(
                Kind::Refused,
                "this owner's disk is limited: no copies of layers",
            )
            .with("export the layer as an archive"));
        }
        let moved = match &sandbox.made_of.codebase {
            Some(codebase) => {
                let tree = realm.shelf.find(codebase, None).await?.tree;
                Some((tree, PathBuf::from(ringfence_codebases::WORKSPACE)))
            }
            None => None,
        };
        let layer = layers::Layer {
            store: realm.store.clone(),
            name: name.to_owned(),
            made_of: sandbox.made_of.clone(),
            hidden: self.settings.hidden.clone(),
            moved,
        };
        files::blocking(move || layer.carry_out(ask)).await
    }

    /// Each owner has codebases of its own.
    async fn codebases(
        &self,
        caller: Caller,
        ask: codebases::Ask,
    ) -> Result<codebases::Answer, Error> {
        use codebases::{Answer, Ask};
        let realm = self.realm(caller)?;
        if let (Ask::Create(made), true) = (&ask, realm.is_guest()) {
            guest::check_codebase(made)?;
        }
        if let Ask::Delete(name) = &ask
            && let Ok(found) = realm.shelf.find(name, None).await
            && let Some(sandbox) = self.made_from(&found.id).first()
        {
            let message = format!("codebase {} is what sandbox {sandbox} is made from", found.name);
            return Err(Error::new(Kind::Conflict, message).with("delete that sandbox first"));
        }
        if realm.limits.disk.is_some() && ask.adds() {
            self.admits_bytes(caller).await?;
        }
        let removed = match &ask {
            Ask::Delete(name) => realm.shelf.find(name, None).await.ok(),
            _ => None,
        };
        let mut answer = realm.shelf.run(ask).await?;
        if let Some(removed) = removed {
            let event = ringfence_api::Event {
                kind: "codebase.changed".into(),
                action: Some("remove".into()),
                subject: Some(removed.name),
                ..ringfence_api::Event::default()
            };
            self.journal.record(caller.owner, caller.source, event);
        }
        match &mut answer {
            Answer::Codebase(one) => one.sandboxes = self.made_from(&one.id),
            Answer::Codebases(all) => {
                for one in all {
                    one.sandboxes = self.made_from(&one.id);
                }
            }
            _ => {}
        }
        Ok(answer)
    }

    /// Ids of the sandboxes that are made from a codebase.
    fn made_from(&self, codebase: &str) -> Vec<String> {
        let all = lock(&self.sandboxes);
        let from = all.values().filter(|s| s.made_of.codebase.as_deref() == Some(codebase));
        let mut ids: Vec<String> = from.map(|s| s.id.clone()).collect();
        ids.sort();
        ids
    }

    /// Ends every sandbox; persistent ones come back with the next start.
    pub async fn shut_down(&self) {
        let all: Vec<Arc<Sandbox>> = lock(&self.sandboxes).values().cloned().collect();
        for sandbox in &all {
            if let Some(live) = sandbox.live() {
                live.link.shut();
            }
        }
        for sandbox in all {
            if let Some(live) = sandbox.live() {
                self.end(&sandbox, live).await;
            }
        }
    }
}

/// A spawner: of many sandboxes, or of the one with that number.
fn new_host(
    settings: &Settings,
    alone: Option<u64>,
    ends: &mpsc::UnboundedSender<End>,
) -> Result<Arc<Host>, Error> {
    let (program, arguments) = &settings.spawner;
    let hidden = (settings.hidden.clone(), settings.layers.as_path());
    Host::start(program, arguments, hidden, alone, ends.clone())
        .map_err(|e| Error::internal(format!("cannot start the spawner: {e}")))
}

async fn tick(supervisor: Weak<Supervisor>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(supervisor) = supervisor.upgrade() else { return };
        supervisor.look_after().await;
    }
}

async fn freeze(sandbox: &Arc<Sandbox>) -> Result<Reply, Error> {
    let _life = sandbox.life.lock().await;
    if sandbox.may(Ask::Freeze)? == Admitted::Go {
        let live = sandbox.live().ok_or_else(Error::lost)?;
        // Before: what comes from here on is refused, and what came before is stopped with the rest.
        sandbox.happened(Event::Frozen, "requested");
        if let Err(e) = still::hold(sandbox, &live).await {
            sandbox.happened(Event::Ready { commands: sandbox.commands() > 0 }, "not frozen");
            return Err(e);
        }
    }
    Ok(described(sandbox))
}

pub(crate) fn described(sandbox: &Sandbox) -> Reply {
    Reply::Sandbox(Box::new(sandbox.described()))
}

/// What a person may see of what a sandbox wrote.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

pub(crate) fn check(made_of: &CreateSandbox) -> Result<(), Error> {
    if let Some(name) = &made_of.name {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || name.len() > 64 || !name.chars().all(plain) || name.starts_with("sb_") {
            return Err(Error::invalid(format!(
                "name: {name:?} is not of at most 64 letters, digits, dashes, dots and underscores, or begins as ids do"
            )));
        }
    }
    tended::check(made_of)?;
    workspaces::check(&made_of.links)?;
    let long = |(k, v): (&String, &String)| {
        [k, v].into_iter().any(|text| text.chars().count() > MOST_LABEL)
    };
    if made_of.labels.len() > MOST_LABELS || made_of.labels.iter().any(long) {
        return Err(Error::invalid(format!(
            "labels: at most {MOST_LABELS}, of at most {MOST_LABEL} characters each"
        )));
    }
    variables(&made_of.environment)?;
    spawner::policy_of(made_of).map(drop)
}

pub(crate) fn variables(all: &std::collections::BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in all {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid(format!("environment: {name:?} cannot be set")));
        }
    }
    Ok(())
}

/// What a request says, in short.
fn fingerprint(request: &impl serde::Serialize) -> Result<String, Error> {
    let text = serde_json::to_vec(request).map_err(|e| Error::internal(e.to_string()))?;
    Ok(Sha256::digest(&text).iter().fold(String::new(), |mut hex, byte| {
        use std::fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

fn same(before: &str, asked: &str) -> Result<(), Error> {
    if before == asked {
        return Ok(());
    }
    Err(Error::new(Kind::Conflict, "this idempotency key was used for another request")
        .with("use a new key for each request"))
}

/// A command, or the one that was started with this key.
async fn exec_once(
    sandbox: &Arc<Sandbox>,
    request: &ExecRequest,
    input: Option<Input>,
    whole: bool,
    key: Option<String>,
) -> Result<Arc<Exec>, Error> {
    let Some(key) = key else { return exec(sandbox, request, input, whole, !whole).await };
    let asked = fingerprint(request)?;
    let mut keys = sandbox.keys.lock().await;
    if let Some((before, exec)) = keys.get(&key) {
        same(before, &asked)?;
        return Ok(exec.clone());
    }
    if keys.len() >= MOST_KEYS {
        let ended = keys.iter().find(|(_, (_, exec))| exec.has_ended()).map(|(k, _)| k.clone());
        match ended {
            Some(ended) => drop(keys.remove(&ended)),
            None => return Err(Error::new(Kind::Limit, "too many idempotency keys in use")),
        }
    }
    let exec = exec(sandbox, request, input, whole, true).await?;
    keys.insert(key, (asked, exec.clone()));
    Ok(exec)
}

async fn exec(
    sandbox: &Arc<Sandbox>,
    request: &ExecRequest,
    input: Option<Input>,
    whole: bool,
    remember: bool,
) -> Result<Arc<Exec>, Error> {
    let (live, permit) = sandbox.enter()?;
    let began = Instant::now();
    let made = &live.made;
    let asked = Asked::of(sandbox, &live, request)?;
    if let Some(size) = request.terminal {
        let terminal = Terminal::open(&live.link, size).await?;
        let id = random_id("ex_")?;
        return terminal::start(
            sandbox,
            (live, permit),
            &asked,
            terminal,
            (id, request.timeout_ms),
        )
        .await;
    }
    let (stdout, out) = link::pipe()?;
    let (stderr, err) = link::pipe()?;
    let (stdin, input) = match input {
        Some(bytes) => {
            let (theirs, ours) = link::pipe()?;
            (theirs, Some((ours, bytes)))
        }
        None => (link::null()?, None),
    };
    let fds = [stdin.as_fd(), out.as_fd(), err.as_fd()];
    fault::point("exec.asked");
    let started = asked.start(&live.link, fds, false).await?;
    // The command has its own: the pipes end with it.
    drop((stdin, out, err));
    let id = random_id("ex_")?;
    let timeout = request.timeout_ms.or(made.timeout_ms).map(Duration::from_millis);
    let birth = Birth {
        id: id.clone(),
        sandbox: sandbox.id.clone(),
        argv: asked.argv,
        told: (sandbox.about(), asked.shown),
        output: [stdout, stderr],
        input,
        timeout,
        kept: if whole { KEPT_WHOLE } else { KEPT },
    };
    let home = Arc::downgrade(sandbox);
    let done = move || {
        drop(permit);
        if !remember && let Some(sandbox) = home.upgrade() {
            sandbox.forget(&id);
        }
    };
    fault::point("exec.started");
    let exec = Exec::new(birth, started, began, live.link.clone(), done)?;
    if remember || !exec.has_ended() {
        sandbox.remember(exec.clone());
    }
    Ok(exec)
}

/// What is to be executed, as init takes it.
pub(crate) struct Asked {
    pub argv: Vec<String>,
    /// As it is written down.
    pub shown: Vec<String>,
    candidates: Vec<String>,
    environment: Vec<String>,
    cwd: String,
}

impl Asked {
    pub(crate) fn of(sandbox: &Sandbox, live: &Live, request: &ExecRequest) -> Result<Self, Error> {
        let argv = argv(request)?;
        variables(&request.environment)?;
        let mut environment = live.made.environment.clone();
        environment.extend(sandbox.made_of.environment.clone());
        environment.extend(request.environment.clone());
        let program = argv.first().map(String::as_str).unwrap_or_default();
        let path = environment.get("PATH").map_or("/usr/local/bin:/usr/bin:/bin", String::as_str);
        let candidates: Vec<String> = candidates(program.as_ref(), path.as_ref())
            .into_iter()
            .filter_map(|path| path.into_os_string().into_string().ok())
            .collect();
        if candidates.is_empty() {
            let refused = Refused { refusal: Refusal::Execute, errno: libc::ENOENT };
            return Err(not_started(program, refused));
        }
        let cwd = match &request.cwd {
            Some(cwd) => files::absolute(cwd, &live.made.cwd)?,
            None => live.made.cwd.clone(),
        };
        let environment = environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let shown = journal::shown(&argv, &[&sandbox.made_of.environment, &request.environment]);
        Ok(Self { argv, shown, candidates, environment, cwd })
    }

    /// Drops variables.
    pub(crate) fn without(mut self, names: &[&str]) -> Self {
        self.environment.retain(|pair| {
            !names.contains(&pair.split_once('=').map_or(pair.as_str(), |(name, _)| name))
        });
        self
    }

    pub(crate) async fn start(
        &self,
        link: &Link,
        fds: [BorrowedFd<'_>; 3],
        terminal: bool,
    ) -> Result<Started, Error> {
        let program = self.argv.first().map(String::as_str).unwrap_or_default();
        let asked = Program {
            cwd: &self.cwd,
            candidates: &self.candidates,
            argv: &self.argv,
            environment: &self.environment,
            terminal,
        };
        link.exec(asked, fds).await?.map_err(|r| not_started(program, r))
    }
}

pub(crate) fn argv(request: &ExecRequest) -> Result<Vec<String>, Error> {
    match &request.shell {
        Some(_) if !request.argv.is_empty() => {
            Err(Error::invalid("argv and shell exclude each other"))
        }
        Some(line) => Ok(vec!["/bin/sh".into(), "-c".into(), line.clone()]),
        None if request.argv.first().is_none_or(String::is_empty) => {
            Err(Error::invalid("argv: it is empty").with("give argv or shell"))
        }
        None => Ok(request.argv.clone()),
    }
}

pub(crate) fn not_started(program: &str, Refused { refusal, errno }: Refused) -> Error {
    let text = ringfence_sys::raw::Errno(errno).to_string();
    match refusal {
        Refusal::Execute if errno == libc::ENOENT => {
            Error::new(Kind::NotFound, format!("{program}: not found inside the sandbox"))
                .with("is its directory readable there? `ringfence policy explain PATH` tells")
        }
        Refusal::Execute => Error::new(Kind::Refused, format!("{program}: {text}")),
        Refusal::Directory => {
            Error::new(Kind::Refused, format!("cannot enter the working directory: {text}"))
        }
        Refusal::Process => {
            Error::new(Kind::Limit, format!("the sandbox cannot start another process: {text}"))
                .with("wait until some of its commands have ended")
        }
        Refusal::Request | Refusal::Descriptors => {
            Error::internal(format!("the sandbox's init refused: {text}"))
        }
    }
}
