//! The decision and what follows from it: rules, lookup, check of every address, dial of a checked
//! one, record. Everything that leaves goes through [`Judge::open`].

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use ringfence_policy::HostRule;
use ringfence_policy::net::{Host, Name, Reason, Rules, Verdict};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::dns::{Registry, Standing};
use crate::gate::{Gate, Opened, Refusal, Ticket, Why};
use crate::inspect::Inspector;
use crate::limits::{ATTRIBUTION, ATTRIBUTION_ASIDE, Bucket, DNS_RATE, Labels, REFUSED_NAMES};
use crate::pool::Pool;
use crate::process::{Finder, Kind};
use crate::record::{Process, Record, Sink};
use crate::resolve::{Resolver, dial};
use crate::upstream::Upstream;
use crate::{Asked, Via, lock};

/// The rules as the judge asks them. Tests have a fake.
pub(crate) trait Book: Send + Sync {
    fn name(&self, name: &Name, port: Option<u16>) -> Verdict<'_>;
    fn address(&self, address: IpAddr, port: u16) -> Verdict<'_>;
    fn resolved(&self, name: &Name, address: IpAddr, port: u16) -> Verdict<'_>;
}

impl Book for Rules {
    fn name(&self, name: &Name, port: Option<u16>) -> Verdict<'_> {
        Rules::name(self, name, port)
    }

    fn address(&self, address: IpAddr, port: u16) -> Verdict<'_> {
        Rules::address(self, address, port)
    }

    fn resolved(&self, name: &Name, address: IpAddr, port: u16) -> Verdict<'_> {
        Rules::resolved(self, name, address, port)
    }
}

pub(crate) struct Judge {
    book: Mutex<Arc<dyn Book>>,
    /// Counts replacements of the book, to notice one during a dial.
    edition: AtomicU64,
    pub pool: Arc<Pool>,
    labels: Labels,
    resolver: Resolver,
    inspector: Mutex<Option<Arc<Inspector>>>,
    sink: Sink,
    finder: Arc<Finder>,
    pub connections: Connections,
    upstream: Option<Upstream>,
    /// Whether records of allowed connections name the process too.
    pub name_allowed: AtomicBool,
    pub proxy_port: u16,
    six: bool,
    refused_names: Mutex<HashMap<Name, u64>>,
    pub dns_rate: Bucket,
}

/// What a judge is made of.
pub(crate) struct Parts {
    pub book: Arc<dyn Book>,
    pub resolver: Resolver,
    pub inspector: Option<Arc<Inspector>>,
    pub sink: Sink,
    pub finder: Finder,
    pub upstream: Option<Upstream>,
    pub proxy_port: u16,
    pub six: bool,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
}

/// A refusal before it is recorded: the stable word, the sentence, the rule, the remedy.
#[derive(Debug)]
struct No {
    reason: &'static str,
    detail: String,
    rule: Option<HostRule>,
    remedy: Option<String>,
    address: Option<IpAddr>,
}

impl No {
    fn plain(reason: &'static str, detail: impl Into<String>) -> Box<Self> {
        let detail = detail.into();
        Box::new(Self { reason, detail, rule: None, remedy: None, address: None })
    }
}

/// What was decided before anything is dialled.
struct Way {
    addresses: Vec<IpAddr>,
    rule: Option<HostRule>,
}

fn sentence(verdict: &Verdict<'_>) -> String {
    match (verdict.reason, verdict.rule) {
        (Reason::Allowed | Reason::Denied | Reason::Port, Some(rule)) => {
            format!("{} {}", verdict.reason, rule.host)
        }
        (Reason::Denied, None) => "denied by the built-in list".to_owned(),
        (reason, _) => reason.to_string(),
    }
}

/// A refusal by the rules. `port` `None`: of the name on every port; `resolved`: for an address that
/// the name led to.
fn no(verdict: &Verdict<'_>, host: &Host, port: Option<u16>, resolved: Option<IpAddr>) -> Box<No> {
    let mut detail = sentence(verdict);
    let remedy = match (verdict.reason, port) {
        // At a lookup the port is not known yet.
        (Reason::NotListed, None) => {
            Some(format!("allow it with --allow-host {host} or network.allow = [\"{host}\"]"))
        }
        _ => verdict.remedy(host, port.unwrap_or_default(), resolved),
    };
    if matches!((verdict.reason, host), (Reason::NotListed, Host::Address(_))) {
        detail.push_str(": names are judged by DNS, and this address stands for none");
    }
    if let Some(address) = resolved {
        let _ = write!(detail, " ({address})");
    }
    let (reason, rule) = (verdict.reason.word(), verdict.rule.cloned());
    Box::new(No { reason, detail, rule, remedy, address: resolved })
}

impl Judge {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            book: Mutex::new(parts.book),
            edition: AtomicU64::new(0),
            pool: Arc::new(Pool::default()),
            labels: Labels::default(),
            resolver: parts.resolver,
            inspector: Mutex::new(parts.inspector),
            sink: parts.sink,
            finder: Arc::new(parts.finder),
            connections: Connections::default(),
            upstream: parts.upstream,
            name_allowed: AtomicBool::new(false),
            proxy_port: parts.proxy_port,
            six: parts.six,
            refused_names: Mutex::default(),
            dns_rate: Bucket::new(DNS_RATE),
        }
    }

    fn book(&self) -> Arc<dyn Book> {
        Arc::clone(&lock(&self.book))
    }

    /// Other rules from now on. Connections that they would not let through are closed; how many.
    pub(crate) fn replace(&self, book: Arc<dyn Book>) -> usize {
        *lock(&self.book) = book;
        self.edition.fetch_add(1, Ordering::SeqCst);
        lock(&self.refused_names).clear();
        self.connections.close_unless(|asked, address| self.still(asked, address))
    }

    /// Other request rules and secrets from now on.
    pub(crate) fn inspect(&self, inspector: Option<Arc<Inspector>>) {
        *lock(&self.inspector) = inspector;
        self.edition.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a connection that is open would be let through now.
    fn still(&self, asked: &Asked, address: Option<IpAddr>) -> bool {
        let book = self.book();
        match &asked.host {
            Host::Name(name) => {
                book.name(name, Some(asked.port)).allowed
                    && address.is_none_or(|a| book.resolved(name, a, asked.port).allowed)
            }
            Host::Address(address) => book.address(*address, asked.port).allowed,
        }
    }

    /// What a connection to an address that stands for no name is about: the address, or a name that
    /// the host's hosts file gives it, where only that name is allowed. Everything that holds for names
    /// then holds here; the name's addresses are checked as if it had been asked for.
    pub(crate) fn host_at(&self, address: IpAddr, port: u16) -> Host {
        let book = self.book();
        if address.is_loopback() || Pool::covers(address) || book.address(address, port).allowed {
            return Host::Address(address);
        }
        let names = self.resolver.names_of(address);
        let allowed = names.into_iter().find(|name| book.name(name, Some(port)).allowed);
        allowed.map_or(Host::Address(address), Host::Name)
    }

    /// `localhost` is the loopback, never a question for the host's resolver.
    fn normal(asked: &Asked) -> Asked {
        let mut asked = asked.clone();
        if let Host::Name(name) = &asked.host
            && name.as_str() == "localhost"
        {
            asked.host = Host::Address(Ipv4Addr::LOCALHOST.into());
        }
        if let Host::Address(address) = asked.host {
            asked.host = Host::Address(address.to_canonical());
        }
        asked
    }

    async fn way(&self, asked: &Asked) -> Result<Way, Box<No>> {
        let name = match &asked.host {
            Host::Address(address) => return self.way_to_address(*address, asked),
            Host::Name(name) => name,
        };
        let book = self.book();
        let rule = {
            let verdict = book.name(name, Some(asked.port));
            if !verdict.allowed {
                return Err(no(&verdict, &asked.host, Some(asked.port), None));
            }
            verdict.rule.cloned()
        };
        if let Some(rule) = &rule {
            self.labels.admit(&rule.host, name).map_err(|detail| No::plain("limit", detail))?;
        }
        if self.upstream.is_some() {
            return Ok(Way { addresses: Vec::new(), rule });
        }
        let found = self.resolver.lookup(name).await;
        let found = found.map_err(|e| No::plain("unresolvable", e.to_string()))?;
        let mut addresses = Vec::new();
        let mut refused = None;
        for address in found {
            let verdict = book.resolved(name, address, asked.port);
            // Addresses of the pool mean something inside only.
            if verdict.allowed && !Pool::covers(address) {
                addresses.push(address);
            } else if refused.is_none() {
                let mut why = no(&verdict, &asked.host, Some(asked.port), Some(address));
                if verdict.allowed {
                    why =
                        No::plain("resolved-special", "the name leads to an address of the filter");
                }
                refused = Some(why);
            }
        }
        match refused {
            Some(why) if addresses.is_empty() => Err(why),
            _ => Ok(Way { addresses, rule }),
        }
    }

    fn way_to_address(&self, address: IpAddr, asked: &Asked) -> Result<Way, Box<No>> {
        let book = self.book();
        if Pool::covers(address) {
            // An answer of another run, or made up: there is nothing outside at this address.
            let detail =
                "the address is one that this filter gives to names, and stands for none now";
            return Err(No::plain("not-listed", detail));
        }
        let verdict = book.address(address, asked.port);
        if !verdict.allowed {
            return Err(no(&verdict, &asked.host, Some(asked.port), None));
        }
        let rule = verdict.rule.cloned();
        let addresses = match address {
            // The host's loopback: a server there may listen on one family only.
            IpAddr::V4(Ipv4Addr::LOCALHOST) => vec![address, Ipv6Addr::LOCALHOST.into()],
            IpAddr::V6(Ipv6Addr::LOCALHOST) => vec![address, Ipv4Addr::LOCALHOST.into()],
            _ => vec![address],
        };
        Ok(Way { addresses, rule })
    }

    async fn connect(
        &self,
        asked: &Asked,
        way: &Way,
    ) -> Result<(TcpStream, Option<IpAddr>), Box<No>> {
        let here = way.addresses.first().is_some_and(IpAddr::is_loopback);
        if let Some(upstream) = self.upstream.as_ref().filter(|_| !here) {
            let stream = upstream.connect(&self.resolver, &asked.host, asked.port).await;
            return Ok((stream.map_err(|e| No::plain("upstream", e.to_string()))?, None));
        }
        match dial(&way.addresses, asked.port).await {
            Ok((stream, address)) => Ok((stream, Some(address))),
            Err(e) => {
                let mut no = No::plain("unreachable", format!("allowed, but not reached: {e}"));
                no.rule.clone_from(&way.rule);
                no.address = way.addresses.first().copied();
                Err(no)
            }
        }
    }

    async fn let_out(&self, asked: &Asked) -> Result<Opened, Refusal> {
        let asked = &Self::normal(asked);
        let edition = self.edition.load(Ordering::SeqCst);
        let way = match self.way(asked).await {
            Ok(way) => way,
            Err(no) => return Err(self.refused(asked, no).await),
        };
        let (stream, address) = match self.connect(asked, &way).await {
            Ok(connected) => connected,
            Err(no) => return Err(self.refused(asked, no).await),
        };
        let mut record = Record::new(asked, true, "allowed", "allowed").by(way.rule.as_ref());
        if let Some(rule) = &way.rule {
            record.detail = format!("allowed by {}", rule.host);
        }
        record.address = address.or(record.address);
        if self.name_allowed.load(Ordering::Relaxed) {
            record.process = self.process(asked).await;
        }
        let entry = self.connections.enter(asked, address);
        // Entered before looking again: a replacement either sees the entry or is seen here.
        if self.edition.load(Ordering::SeqCst) != edition && !self.still(asked, address) {
            let no = No::plain("denied", "the rules were replaced while it was being opened");
            return Err(self.refused(asked, no).await);
        }
        let ticket = Ticket::new(record, Arc::clone(&self.sink)).holding(entry);
        Ok(Opened { stream, ticket })
    }

    fn record(asked: &Asked, no: No) -> Record {
        let mut record =
            Record::new(asked, false, no.reason, &no.detail).by(no.rule.as_ref()).remedy(no.remedy);
        record.address = no.address.or(record.address);
        record
    }

    async fn refused(&self, asked: &Asked, no: Box<No>) -> Refusal {
        let mut unsaid =
            Unsaid { record: Self::record(asked, *no), sink: Arc::clone(&self.sink), said: false };
        unsaid.record.process = self.process(asked).await;
        unsaid.say();
        Refusal(unsaid.record.clone())
    }

    fn ports(&self, asked: &Asked) -> [u16; 2] {
        [asked.port, self.proxy_port]
    }

    /// Who asked; on another thread, since it walks `/proc`.
    async fn process(&self, asked: &Asked) -> Option<Process> {
        if !self.finder.is_able() {
            return None;
        }
        if let Some(known) = self.connections.process(asked.client) {
            return known;
        }
        let (finder, client, ports) = (Arc::clone(&self.finder), asked.client, self.ports(asked));
        let find = move || finder.find(Kind::Tcp, client, &ports, ATTRIBUTION_ASIDE);
        let find = tokio::task::spawn_blocking(find);
        let found = tokio::time::timeout(2 * ATTRIBUTION_ASIDE, find).await.ok()?.ok()?;
        self.connections.set_process(asked.client, found.clone());
        found
    }
}

/// A refusal whose record waits for who asked. Where the run ends meanwhile it is said without.
struct Unsaid {
    record: Record,
    sink: Sink,
    said: bool,
}

impl Unsaid {
    fn say(&mut self) {
        if !std::mem::replace(&mut self.said, true) {
            (self.sink)(&self.record);
        }
    }
}

impl Drop for Unsaid {
    fn drop(&mut self) {
        self.say();
    }
}

impl Gate for Judge {
    async fn open(&self, asked: &Asked) -> Result<Opened, Refusal> {
        // Boxed: what a decision needs is not to be part of every connection's state.
        Box::pin(self.let_out(asked)).await
    }

    fn inspector(&self) -> Option<Arc<Inspector>> {
        lock(&self.inspector).clone()
    }

    fn denies(&self, name: &Name, port: u16) -> bool {
        self.book().name(name, Some(port)).reason == Reason::Denied
    }

    fn generation(&self) -> u64 {
        self.edition.load(Ordering::SeqCst)
    }

    fn passed(&self, asked: &Asked, what: &str, since: Instant) {
        let mut record = Record::new(asked, true, "request", what);
        record.duration_ms = since.elapsed().as_millis() as u64;
        record.process = self.connections.process(asked.client).flatten();
        (self.sink)(&record);
    }

    fn refuse(&self, asked: &Asked, why: Why) -> Refusal {
        let judged = match &asked.host {
            Host::Name(name) => name.as_str(),
            Host::Address(_) => "the address",
        };
        let mut said = (None, None);
        let mut denied = None;
        let (reason, detail) = match why {
            Why::Request(found) => {
                let found = *found;
                said = (found.origin, found.remedy);
                (found.reason, found.detail)
            }
            Why::ServerName(Some(other)) => {
                ("sni-mismatch", format!("the TLS server name is {other}, allowed was {judged}"))
            }
            Why::ServerName(None) => (
                "sni-mismatch",
                format!("the TLS client hello names no server, allowed was {judged}"),
            ),
            Why::HostHeader(other) => {
                ("host-mismatch", format!("the Host header is {other}, allowed was {judged}"))
            }
            Why::DeniedName(name) => {
                let book = self.book();
                let verdict = book.name(&name, Some(asked.port));
                let mut no = no(&verdict, &Host::Name(name.clone()), Some(asked.port), None);
                let _ = write!(no.detail, ", asked for at an address ({name})");
                denied = Some(no);
                ("denied", String::new())
            }
            Why::EncryptedHello => {
                ("ech", "an encrypted client hello hides the name and none was judged".to_owned())
            }
            Why::Malformed(what) => ("malformed", what),
            Why::Limit(what) => ("limit", what),
        };
        let no = denied.unwrap_or_else(|| No::plain(reason, detail));
        let mut record = Self::record(asked, *no);
        if let (origin, Some(remedy)) = said {
            record.origin = origin;
            record.remedy = Some(remedy);
        }
        // At once, as the client's socket is soon gone; the finder limits time and rate.
        record.process = match self.connections.process(asked.client) {
            Some(known) => known,
            None => self.finder.find(Kind::Tcp, asked.client, &self.ports(asked), ATTRIBUTION),
        };
        (self.sink)(&record);
        Refusal(record)
    }
}

impl Registry for Judge {
    fn standing(&self, name: &Name, client: SocketAddr, now: Instant) -> Standing {
        let book = self.book();
        let verdict = book.name(name, None);
        if !verdict.allowed {
            self.refused_name(&*book, name, client, &verdict);
            return Standing::Refused;
        }
        if let Some(rule) = verdict.rule
            && let Err(detail) = self.labels.admit(&rule.host, name)
        {
            self.say_name(name, client, No::plain("limit", detail));
            return Standing::Limit;
        }
        if let Some(pair) = self.pool.answer(name, now) {
            return Standing::Allowed(pair);
        }
        self.say_name(name, client, No::plain("limit", "too many names at a time"));
        Standing::Limit
    }

    fn name_of(&self, address: IpAddr) -> Option<Name> {
        self.pool.name(address)
    }

    fn six(&self) -> bool {
        self.six
    }
}

impl Judge {
    fn refused_name(
        &self,
        book: &dyn Book,
        name: &Name,
        client: SocketAddr,
        verdict: &Verdict<'_>,
    ) {
        if verdict.reason == Reason::NotListed && self.is_search(book, name) {
            return;
        }
        self.say_name(name, client, no(verdict, &Host::Name(name.clone()), None, None));
    }

    /// Whether the name is an allowed one with a search domain of the host behind it: resolvers try
    /// that by themselves, and nobody needs to hear of it.
    fn is_search(&self, book: &dyn Book, name: &Name) -> bool {
        self.resolver.search().iter().any(|domain| {
            let domain = domain.trim_end_matches('.');
            name.as_str()
                .strip_suffix(domain)
                .and_then(|rest| rest.strip_suffix('.'))
                .and_then(|short| Name::parse(short.as_bytes()).ok())
                .is_some_and(|short| book.name(&short, None).allowed)
        })
    }

    /// Records a refused name: the first time, then at ten, a hundred, … so that a loop fills no log.
    fn say_name(&self, name: &Name, client: SocketAddr, no: Box<No>) {
        let mut names = lock(&self.refused_names);
        let full = names.len() >= REFUSED_NAMES && !names.contains_key(name);
        let mut no = no;
        if full {
            if names.len() > REFUSED_NAMES {
                return;
            }
            let detail =
                format!("more than {REFUSED_NAMES} names refused, further ones are not listed");
            no = No::plain("limit", detail);
        }
        let count = names.entry(name.clone()).or_insert(0);
        *count += 1;
        let count = *count;
        drop(names);
        if !is_power_of_ten(count) {
            return;
        }
        if count > 1 {
            no.detail = format!("{} (asked {count} times)", no.detail);
        }
        let asked = Asked { host: Host::Name(name.clone()), port: 0, via: Via::Dns, client };
        let mut record = Self::record(&asked, *no);
        record.process = self.finder.find(Kind::Udp, client, &[53], ATTRIBUTION);
        (self.sink)(&record);
    }
}

fn is_power_of_ten(mut count: u64) -> bool {
    while count >= 10 && count.is_multiple_of(10) {
        count /= 10;
    }
    count == 1
}

/// The connections that are being served, by the client's address: no two have the same one at a
/// listener, since the kernel tells connections apart by it.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    served: Mutex<HashMap<SocketAddr, Arc<Connection>>>,
}

/// Who a connection's client is, where that could be found out.
type Attribution = Option<Process>;

#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// Told when the rules no longer let it be.
    closed: Notify,
    state: Mutex<Open>,
    process: OnceLock<Attribution>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// What it has open now; a proxy's client may have several after another.
    outside: Vec<(u64, Asked, Option<IpAddr>)>,
}

/// One opened connection's entry; gone when dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    connection: Option<Arc<Connection>>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            lock(&connection.state).outside.retain(|(number, ..)| *number != self.number);
        }
    }
}

impl Connection {
    /// Waits until the rules no longer let it be.
    pub(crate) async fn closed(&self) {
        self.closed.notified().await;
    }
}

impl Connections {
    pub(crate) fn begin(&self, client: SocketAddr) -> Arc<Connection> {
        let connection = Arc::new(Connection::default());
        lock(&self.served).insert(client, Arc::clone(&connection));
        connection
    }

    pub(crate) fn end(&self, client: SocketAddr, connection: &Arc<Connection>) {
        let mut served = lock(&self.served);
        if served.get(&client).is_some_and(|known| Arc::ptr_eq(known, connection)) {
            served.remove(&client);
        }
    }

    fn get(&self, client: SocketAddr) -> Option<Arc<Connection>> {
        lock(&self.served).get(&client).cloned()
    }

    fn process(&self, client: SocketAddr) -> Option<Attribution> {
        self.get(client)?.process.get().cloned()
    }

    fn set_process(&self, client: SocketAddr, process: Option<Process>) {
        if let Some(connection) = self.get(client) {
            let _ = connection.process.set(process);
        }
    }

    fn enter(&self, asked: &Asked, address: Option<IpAddr>) -> Entry {
        let connection = self.get(asked.client);
        let mut number = 0;
        if let Some(connection) = &connection {
            let mut state = lock(&connection.state);
            number = state.next;
            state.next += 1;
            state.outside.push((number, asked.clone(), address));
        }
        Entry { connection, number }
    }

    fn close_unless(&self, allowed: impl Fn(&Asked, Option<IpAddr>) -> bool) -> usize {
        let mut closed = 0;
        let served: Vec<_> = lock(&self.served).values().cloned().collect();
        for connection in served {
            let bad = lock(&connection.state)
                .outside
                .iter()
                .any(|(_, asked, address)| !allowed(asked, *address));
            if bad {
                connection.closed.notify_one();
                closed += 1;
            }
        }
        closed
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
