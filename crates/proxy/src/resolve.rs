//! Names to addresses, with the host's own settings: its hosts file and its name servers. Only
//! allowed names get here. Search domains are not applied: the name that was judged is the name
//! that is asked for.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name as Absolute, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use ringfence_policy::net::Name;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::limits::{DIAL, DIAL_ADDRESSES, DIAL_STAGGER, RESOLVE};
use crate::lock;

const SETTINGS: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
/// How often the files are looked at.
const RECHECK: Duration = Duration::from_secs(2);
/// A server's word is good for this long at most: longer only delays changes.
const LONGEST: Duration = Duration::from_secs(3600);
/// "There is no such name" is believed for less: it is what is changed next.
const LONGEST_NO: Duration = Duration::from_secs(10);

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("the host's resolver knows no address of it")]
    NoAddress,
    #[error("the host's resolver did not answer in time")]
    Timeout,
    #[error("the host's resolver failed: {0}")]
    Failed(String),
}

/// Made on first use; made anew when the host's settings change.
pub(crate) struct Resolver {
    fixed: Option<(ResolverConfig, ResolverOpts)>,
    state: Mutex<Option<State>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

struct State {
    resolver: Arc<TokioResolver>,
    hosts: Arc<Hosts>,
    search: Vec<String>,
    seen: Seen,
    checked: Instant,
}

/// What a file was like: inode, length and time of change of both files.
type Seen = [Option<(u64, u64, i64, i64)>; 2];

fn seen() -> Seen {
    use std::os::unix::fs::MetadataExt;
    [SETTINGS, HOSTS].map(|path| {
        let meta = Path::new(path).metadata().ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    })
}

impl Resolver {
    /// With the host's settings, which are read when first needed.
    pub(crate) fn system() -> Self {
        Self { fixed: None, state: Mutex::default() }
    }

    #[cfg(test)]
    pub(crate) fn fixed(config: ResolverConfig, options: ResolverOpts) -> Self {
        Self { fixed: Some((config, options)), state: Mutex::default() }
    }

    fn settings(&self) -> (ResolverConfig, ResolverOpts) {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let (config, mut options) = std::fs::read(SETTINGS)
            .ok()
            .and_then(|text| hickory_resolver::system_conf::parse_resolv_conf(text).ok())
            .unwrap_or_else(|| {
                // As the C library: no name server named means the one of this machine.
                let here = NameServerConfig::udp_and_tcp(IpAddr::from([127, 0, 0, 1]));
                (ResolverConfig::from_parts(None, vec![], vec![here]), ResolverOpts::default())
            });
        // Looked at by ourselves, see `Resolver::lookup`.
        options.use_hosts_file = ResolveHosts::Never;
        (config, options)
    }

    fn current(&self) -> Result<(Arc<TokioResolver>, Arc<Hosts>), Unresolved> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if let Some(known) = state.as_mut() {
            if self.fixed.is_some() || now.duration_since(known.checked) < RECHECK {
                return Ok((Arc::clone(&known.resolver), Arc::clone(&known.hosts)));
            }
            known.checked = now;
            if known.seen == seen() {
                return Ok((Arc::clone(&known.resolver), Arc::clone(&known.hosts)));
            }
        }
        let seen = seen();
        let (config, mut options) = self.settings();
        let search = config.search().iter().map(|n| n.to_ascii().to_lowercase()).collect();
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        options.positive_max_ttl = Some(LONGEST);
        options.negative_max_ttl = Some(LONGEST_NO);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build().map_err(|e| Unresolved::Failed(e.to_string()))?;
        let resolver = Arc::new(resolver);
        let hosts = match self.fixed {
            Some(_) => Hosts::default(),
            None => Hosts::from_system().unwrap_or_default(),
        };
        let hosts = Arc::new(hosts);
        *state = Some(State {
            resolver: Arc::clone(&resolver),
            hosts: Arc::clone(&hosts),
            search,
            seen,
            checked: now,
        });
        Ok((resolver, hosts))
    }

    /// The host's search domains, with which programs try names of others.
    pub(crate) fn search(&self) -> Vec<String> {
        let _ = self.current();
        lock(&self.state).as_ref().map(|s| s.search.clone()).unwrap_or_default()
    }

    /// The names that the hosts file gives to an address, in alphabetical order. The sandbox reads that
    /// file too, so its programs connect to what it says without a question.
    pub(crate) fn names_of(&self, address: IpAddr) -> Vec<Name> {
        let Ok((_, hosts)) = self.current() else { return Vec::new() };
        hosts_names(&hosts, address)
    }

    /// Every address of a name, in the order to try them.
    pub(crate) async fn lookup(&self, name: &Name) -> Result<Vec<IpAddr>, Unresolved> {
        let (resolver, hosts) = self.current()?;
        let absolute = Absolute::from_ascii(format!("{name}."))
            .map_err(|e| Unresolved::Failed(e.to_string()))?;
        let here = in_hosts(&hosts, &absolute);
        if !here.is_empty() {
            return Ok(interleave(&here));
        }
        let answer = tokio::time::timeout(RESOLVE, resolver.lookup_ip(absolute)).await;
        match answer.map_err(|_| Unresolved::Timeout)? {
            Ok(found) => {
                let mut addresses: Vec<IpAddr> = Vec::new();
                for address in found.iter().map(|a| a.to_canonical()) {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                if addresses.is_empty() {
                    Err(Unresolved::NoAddress)
                } else {
                    Ok(interleave(&addresses))
                }
            }
            Err(e) if e.is_nx_domain() || e.is_no_records_found() => Err(Unresolved::NoAddress),
            Err(e) => Err(Unresolved::Failed(e.to_string())),
        }
    }
}

/// What the hosts file says of a name. As for the C library, it is then all there is: a name server
/// is not asked for the family that the file does not have.
fn in_hosts(hosts: &Hosts, name: &Absolute) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for kind in [RecordType::AAAA, RecordType::A] {
        let found = hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = found.iter().flat_map(Lookup::answers);
        for address in found.filter_map(|r| r.data.ip_addr()).map(|a| a.to_canonical()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

fn hosts_names(hosts: &Hosts, address: IpAddr) -> Vec<Name> {
    let found = hosts.lookup_static_host(&Query::query(address.into(), RecordType::PTR));
    let mut names: Vec<Name> = found
        .iter()
        .flat_map(Lookup::answers)
        .filter_map(|record| match &record.data {
            RData::PTR(name) => Name::parse(name.0.to_ascii().as_bytes()).ok(),
            _ => None,
        })
        .collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names
}

/// Families in turn, IPv6 first, so that one dead family costs one head start.
fn interleave(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (mut six, mut four): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().copied().partition(IpAddr::is_ipv6);
    let mut order = Vec::with_capacity(addresses.len());
    six.reverse();
    four.reverse();
    while !(six.is_empty() && four.is_empty()) {
        order.extend(six.pop());
        order.extend(four.pop());
    }
    order
}

/// Connects to the first of these addresses, in their order, that answers, and to nothing else.
pub(crate) async fn dial(addresses: &[IpAddr], port: u16) -> io::Result<(TcpStream, IpAddr)> {
    if let [only] = addresses {
        let target = SocketAddr::new(*only, port);
        let stream = tokio::time::timeout(DIAL, connect(target))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        return Ok((stream, *only));
    }
    tokio::time::timeout(DIAL, race(addresses, port))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Connects. On this machine that is done as soon as it was asked for, though a socket that must not
/// block says otherwise; asking again saves the timers and a round of the event loop.
async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    let mut asked = rustix::net::connect(&socket, &target);
    if asked == Err(Errno::INPROGRESS) && target.ip().is_loopback() {
        asked = rustix::net::connect(&socket, &target);
    }
    let connected = match asked {
        Ok(()) | Err(Errno::ISCONN) => true,
        Err(Errno::INPROGRESS | Errno::ALREADY) => false,
        Err(e) => return Err(e.into()),
    };
    let stream = TcpStream::from_std(socket.into())?;
    if !connected {
        stream.writable().await?;
        if let Some(e) = stream.take_error()? {
            return Err(e);
        }
    }
    Ok(stream)
}

async fn race(addresses: &[IpAddr], port: u16) -> io::Result<(TcpStream, IpAddr)> {
    let mut waiting = addresses.iter().copied().take(DIAL_ADDRESSES);
    let Some(first) = waiting.next() else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
    // Nearly always the first one answers: no task is made for it.
    let mut connecting = std::pin::pin!(connect(SocketAddr::new(first, port)));
    match tokio::time::timeout(DIAL_STAGGER, &mut connecting).await {
        Ok(Ok(stream)) => Ok((stream, first)),
        Ok(Err(e)) => others(waiting, port, e).await,
        Err(_) => {
            let last = io::ErrorKind::TimedOut.into();
            let mut others = std::pin::pin!(others(waiting, port, last));
            tokio::select! {
                done = &mut connecting => match done {
                    Ok(stream) => Ok((stream, first)),
                    Err(_) => others.await,
                },
                done = &mut others => match done {
                    Ok(done) => Ok(done),
                    Err(_) => connecting.await.map(|stream| (stream, first)),
                },
            }
        }
    }
}

/// All that are left, each with a head start over the next.
async fn others(
    mut waiting: impl Iterator<Item = IpAddr>,
    port: u16,
    mut last: io::Error,
) -> io::Result<(TcpStream, IpAddr)> {
    let mut tries = JoinSet::new();
    let mut more = true;
    loop {
        if more {
            match waiting.next() {
                Some(address) => {
                    let target = SocketAddr::new(address, port);
                    tries.spawn(async move { (connect(target).await, address) });
                }
                None => more = false,
            }
        }
        let next = async {
            if more { tokio::time::sleep(DIAL_STAGGER).await } else { std::future::pending().await }
        };
        tokio::select! {
            done = tries.join_next() => match done {
                Some(Ok((Ok(stream), address))) => return Ok((stream, address)),
                Some(Ok((Err(e), _))) => last = e,
                Some(Err(e)) => last = io::Error::other(e),
                None if more => {}
                None => return Err(last),
            },
            () = next => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse =
            |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(
            interleave(&parse(&["192.0.2.1", "192.0.2.2", "2001:db8::1"])),
            parse(&["2001:db8::1", "192.0.2.1", "192.0.2.2"])
        );
    }

    #[test]
    fn the_hosts_file_answers_for_both_families() {
        let mut hosts = Hosts::default();
        hosts
            .read_hosts_conf(
                &b"192.0.2.1 a.test b.test # c.test\n192.0.2.2 a.test\n::ffff:192.0.2.1 a.test\n"[..],
            )
            .unwrap();
        let of = |name: &str| in_hosts(&hosts, &Absolute::from_ascii(name).unwrap());
        let v4 = |last| IpAddr::from([192, 0, 2, last]);
        assert_eq!(of("a.test."), [v4(1), v4(2)]);
        assert_eq!(of("b.test."), [v4(1)]);
        assert_eq!(of("c.test."), Vec::<IpAddr>::new());
        let names = |address: IpAddr| -> Vec<String> {
            hosts_names(&hosts, address).iter().map(ToString::to_string).collect()
        };
        assert_eq!(names(v4(1)), ["a.test", "b.test"]);
        assert_eq!(names(v4(2)), ["a.test"]);
        assert_eq!(names(v4(3)), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_dead_address_does_not_stop_the_others() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses: Vec<IpAddr> =
            ["127.0.0.9", "127.0.0.8", "127.0.0.1"].map(|a| a.parse().unwrap()).to_vec();
        let (stream, address) = dial(&addresses, port).await.unwrap();
        assert_eq!(address, addresses[2]);
        assert_eq!(stream.peer_addr().unwrap().ip(), addresses[2]);
        assert!(dial(&addresses[..2], port).await.is_err());
        assert!(dial(&[], port).await.is_err());
    }
}
