//! One sandbox: what it is, how it stands, what runs in it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use ringfence_api::{CreateSandbox, FrozenBy, SandboxLimits, State};
use tokio::sync::watch;

use crate::error::{Error, Kind};
use crate::exec::Exec;
use crate::host::Host;
use crate::journal::{self, About, Journal, Owner};
use crate::link::Link;
use crate::machine::{Admitted, Ask, Denied, Event, admit, next};
use crate::session::Sessions;
use crate::spawner::Made;
use crate::store::Row;
use crate::tended;
use crate::trees::Room;
use crate::{limits, lock, now_ms};

/// Commands that have ended and are remembered.
const REMEMBERED: usize = 32;
const FOREVER: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Sandbox {
    pub id: String,
    pub owner: Owner,
    journal: Arc<Journal>,
    pub made_of: CreateSandbox,
    pub created_ms: u64,
    pub key: Option<String>,
    /// Its life, as it was last extended; [`FOREVER`] where it has no end.
    ttl_seconds: AtomicU64,
    inner: Mutex<Inner>,
    /// Held while it is started, stopped, frozen or deleted: one at a time.
    pub life: tokio::sync::Mutex<()>,
    /// Idempotency keys of commands: of what request, and the command.
    pub keys: tokio::sync::Mutex<HashMap<String, (String, Arc<Exec>)>>,
    pub sessions: Sessions,
    /// For searches and archives.
    pub room: Room,
    /// Limits that were changed.
    changed: Mutex<SandboxLimits>,
    /// What it is limited by now.
    limits: Mutex<Option<SandboxLimits>>,
    /// Commands that were started.
    entered: AtomicU64,
    pub watches: Room,
    /// To put files in place through the interface; alone, for who does so only if they are as expected.
    pub turn: tokio::sync::RwLock<()>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    reason: String,
    /// What held it when it was frozen last.
    frozen_by: Option<FrozenBy>,
    live: Option<Live>,
    /// That run, or are being started.
    commands: usize,
    /// When the last of them ended.
    since: Instant,
    execs: VecDeque<Arc<Exec>>,
}

/// Its processes.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub number: u64,
    /// The spawner of its own, if it has one.
    pub host: Option<Arc<Host>>,
    pub link: Arc<Link>,
    pub made: Arc<Made>,
    /// How many mounts it has, once somebody asked.
    pub mounts: Arc<OnceLock<u64>>,
    /// Why it ended, once it has.
    pub ended: watch::Receiver<Option<String>>,
}

impl Sandbox {
    pub(crate) fn new(
        id: String,
        (owner, journal): (Owner, Arc<Journal>),
        made_of: CreateSandbox,
        created_ms: u64,
        key: Option<String>,
        (state, reason): (State, String),
    ) -> Arc<Self> {
        let inner = Inner {
            state,
            reason,
            frozen_by: None,
            live: None,
            commands: 0,
            since: Instant::now(),
            execs: VecDeque::new(),
        };
        let ttl_seconds = AtomicU64::new(made_of.ttl_seconds.unwrap_or(FOREVER));
        Arc::new(Self {
            id,
            owner,
            journal,
            made_of,
            ttl_seconds,
            created_ms,
            key,
            inner: Mutex::new(inner),
            life: tokio::sync::Mutex::default(),
            keys: tokio::sync::Mutex::default(),
            sessions: Sessions::default(),
            room: Room::default(),
            changed: Mutex::default(),
            limits: Mutex::default(),
            entered: AtomicU64::new(0),
            watches: Room::of(crate::watch::MOST),
            turn: tokio::sync::RwLock::default(),
        })
    }

    pub(crate) fn row(&self) -> Row {
        let inner = lock(&self.inner);
        Row {
            id: self.id.clone(),
            owner: self.owner,
            created_ms: self.created_ms,
            state: inner.state,
            reason: inner.reason.clone(),
            made_of: CreateSandbox { ttl_seconds: self.ttl_seconds(), ..self.made_of_now() },
            key: self.key.clone(),
        }
    }

    fn ttl_seconds(&self) -> Option<u64> {
        Some(self.ttl_seconds.load(Ordering::Relaxed)).filter(|ttl| *ttl != FOREVER)
    }

    /// It ends so much later; where it had no end, that long from now.
    pub(crate) fn extend(&self, seconds: u64) {
        let lived = now_ms().saturating_sub(self.created_ms) / 1000;
        let longer = |ttl: u64| match ttl {
            FOREVER => lived.saturating_add(seconds),
            ttl => ttl.saturating_add(seconds),
        };
        let to = |ttl| Some(longer(ttl).min(FOREVER - 1));
        let _ = self.ttl_seconds.fetch_update(Ordering::Relaxed, Ordering::Relaxed, to);
    }

    pub(crate) fn expires_ms(&self) -> Option<u64> {
        let ttl = self.ttl_seconds()?;
        Some(self.created_ms.saturating_add(ttl.saturating_mul(1000)))
    }

    pub(crate) fn described(&self) -> ringfence_api::Sandbox {
        let inner = lock(&self.inner);
        let degraded = inner.live.as_ref().map(|live| live.made.degraded.clone());
        ringfence_api::Sandbox {
            id: self.id.clone(),
            name: self.made_of.name.clone(),
            labels: self.made_of.labels.clone(),
            state: inner.state,
            reason: inner.reason.clone(),
            frozen_by: inner.frozen_by.filter(|_| inner.state == State::Frozen),
            workspace: match self.made_of.codebase {
                Some(_) => ringfence_codebases::WORKSPACE.to_owned(),
                None => self.made_of.workspace.clone(),
            },
            codebase: self.made_of.codebase.clone(),
            layer: tended::layer_of(&self.made_of, &self.id).map(ToOwned::to_owned),
            rules: self.made_of.rules.clone(),
            profiles: self.made_of.profiles.clone(),
            persistent: self.made_of.persistent,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms(),
            commands: inner.commands,
            limits: self.limits(),
            degraded: degraded.unwrap_or_default(),
        }
    }

    pub(crate) fn frozen_by(&self) -> Option<FrozenBy> {
        lock(&self.inner).frozen_by
    }

    pub(crate) fn set_frozen_by(&self, by: FrozenBy) {
        lock(&self.inner).frozen_by = Some(by);
    }

    pub(crate) fn state(&self) -> State {
        lock(&self.inner).state
    }

    /// Whether it has been idle for as long as it may be.
    pub(crate) fn is_idle_too_long(&self) -> bool {
        let Some(most) = self.made_of.idle_stop_seconds else { return false };
        let inner = lock(&self.inner);
        inner.state == State::Idle && inner.since.elapsed().as_secs() >= most
    }

    pub(crate) fn may(&self, ask: Ask) -> Result<Admitted, Error> {
        let state = self.state();
        admit(state, ask).map_err(|denied| denial(state, denied))
    }

    /// What happened; nothing where that cannot be.
    pub(crate) fn happened(&self, event: Event, reason: &str) -> bool {
        let mut inner = lock(&self.inner);
        let Some(state) = next(inner.state, event) else { return false };
        inner.state = state;
        if event == Event::Frozen {
            inner.frozen_by = None;
        }
        reason.clone_into(&mut inner.reason);
        // Under the lock: in the order in which it happened.
        let event = self.of_state(state, reason);
        self.journal.record(self.owner, journal::source(), event);
        true
    }

    fn of_state(&self, state: State, reason: &str) -> ringfence_api::Event {
        ringfence_api::Event {
            kind: "sandbox.state".into(),
            sandbox: Some(self.id.clone()),
            name: self.made_of.name.clone(),
            state: Some(state),
            reason: Some(reason.to_owned()),
            ..ringfence_api::Event::default()
        }
    }

    /// For what is recorded of it.
    pub(crate) fn about(&self) -> About {
        About {
            journal: self.journal.clone(),
            owner: self.owner,
            source: journal::source(),
            sandbox: self.id.clone(),
            name: self.made_of.name.clone(),
        }
    }

    pub(crate) fn is_alive(&self, live: Live) {
        let mut inner = lock(&self.inner);
        inner.since = Instant::now();
        inner.commands = 0;
        inner.live = Some(live);
    }

    /// With the limits that it has by now.
    pub(crate) fn made_of_now(&self) -> CreateSandbox {
        limits::with(&self.made_of, *lock(&self.changed))
    }

    pub(crate) fn limits(&self) -> SandboxLimits {
        *lock(&self.limits).get_or_insert_with(|| limits::of(&self.made_of))
    }

    /// What is said of them replaces what there was.
    pub(crate) fn set_limits(&self, wanted: SandboxLimits) {
        let mut changed = lock(&self.changed);
        let was = *changed;
        *changed = SandboxLimits {
            memory: wanted.memory.or(was.memory),
            cpu_percent: wanted.cpu_percent.or(was.cpu_percent),
            cpu_shares: wanted.cpu_shares.or(was.cpu_shares),
            pids: wanted.pids.or(was.pids),
            disk: wanted.disk.or(was.disk),
            open_files: wanted.open_files.or(was.open_files),
            timeout_ms: wanted.timeout_ms.or(was.timeout_ms),
        };
        *lock(&self.limits) = Some(limits::of(&limits::with(&self.made_of, *changed)));
    }

    /// Of commands that are started from now on.
    pub(crate) fn set_timeout(&self, timeout_ms: u64) {
        if let Some(live) = &mut lock(&self.inner).live {
            let timeout_ms = Some(timeout_ms);
            live.made = Arc::new(Made { timeout_ms, ..Made::clone(&live.made) });
        }
    }

    pub(crate) fn live(&self) -> Option<Live> {
        lock(&self.inner).live.clone()
    }

    /// Its processes are gone. False when they were not these.
    pub(crate) fn is_dead(&self, number: u64) -> bool {
        let mut inner = lock(&self.inner);
        let its = inner.live.as_ref().is_some_and(|live| live.number == number);
        if its {
            inner.live = None;
        }
        its
    }

    /// Commands that were started since it is known.
    pub(crate) fn entered(&self) -> u64 {
        self.entered.load(Ordering::Relaxed)
    }

    pub(crate) fn commands(&self) -> usize {
        lock(&self.inner).commands
    }

    /// Takes part in its life: it stays `running` until the permit is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<(Live, Permit), Error> {
        let mut inner = lock(&self.inner);
        if let Err(denied) = admit(inner.state, Ask::Use) {
            return Err(denial(inner.state, denied));
        }
        let live = inner.live.clone().ok_or_else(Error::lost)?;
        if let Some(state) = next(inner.state, Event::CommandStarted) {
            if state != inner.state {
                self.journal.tell(self.owner, self.of_state(state, "command"));
            }
            inner.state = state;
        }
        inner.commands += 1;
        self.entered.fetch_add(1, Ordering::Relaxed);
        let permit = Permit { sandbox: self.clone(), number: live.number };
        Ok((live, permit))
    }

    /// For its files: nothing changes by that.
    pub(crate) fn look(&self) -> Result<Live, Error> {
        self.may(Ask::Use)?;
        self.live().ok_or_else(Error::lost)
    }

    pub(crate) fn remember(&self, exec: Arc<Exec>) {
        let mut inner = lock(&self.inner);
        inner.execs.push_back(exec);
        let ended = inner.execs.iter().filter(|e| e.has_ended()).count();
        if ended > REMEMBERED
            && let Some(oldest) = inner.execs.iter().position(|e| e.has_ended())
        {
            inner.execs.remove(oldest);
        }
    }

    pub(crate) fn forget(&self, id: &str) {
        lock(&self.inner).execs.retain(|e| e.id != id);
    }

    pub(crate) fn execs(&self) -> Vec<Arc<Exec>> {
        lock(&self.inner).execs.iter().cloned().collect()
    }

    pub(crate) fn exec(&self, id: &str) -> Result<Arc<Exec>, Error> {
        let inner = lock(&self.inner);
        inner.execs.iter().find(|e| e.id == id).cloned().ok_or_else(|| {
            Error::new(Kind::NotFound, format!("no such command: {}", crate::error::shown(id)))
                .with(format!("the last {REMEMBERED} that ended are remembered"))
        })
    }
}

/// A command that runs, or is being started.
#[derive(Debug)]
pub(crate) struct Permit {
    sandbox: Arc<Sandbox>,
    number: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = lock(&self.sandbox.inner);
        // Of processes that are gone nobody counts the commands any more.
        if inner.live.as_ref().is_none_or(|live| live.number != self.number) {
            return;
        }
        inner.commands = inner.commands.saturating_sub(1);
        if inner.commands == 0 {
            inner.since = Instant::now();
            if let Some(state) = next(inner.state, Event::LastCommandEnded) {
                let of = &self.sandbox;
                if state != inner.state {
                    of.journal.tell(of.owner, of.of_state(state, "command"));
                }
                inner.state = state;
            }
        }
    }
}

fn denial(state: State, denied: Denied) -> Error {
    let state = state.text();
    match denied {
        Denied::NotYet => {
            Error::new(Kind::Busy, format!("the sandbox is {state}")).with("try again")
        }
        Denied::First(_) => {
            Error::new(Kind::Conflict, format!("the sandbox is {state}")).with("start it first")
        }
        Denied::Gone => Error::no_sandbox(None),
    }
}
