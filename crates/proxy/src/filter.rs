//! The filter's thread: a runtime, the loops that accept, and the way to talk to it.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ringfence_policy::net::Rules;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Semaphore, oneshot};

use crate::control::Control;
use crate::inspect::Inspector;
use crate::judge::{Judge, Parts};
use crate::limits::{
    ACCEPT_PAUSE, CONNECTIONS, DESCRIPTORS_EACH, DESCRIPTORS_SPARE, LEAST_CONNECTIONS,
};
use crate::process::{Finder, plain};
use crate::resolve::Resolver;
use crate::upstream::Upstream;
use crate::{Config, Sockets, Way, control, dns, lock, transparent, tunnel};

/// Threads for lookups in `/proc`; nothing else blocks.
const BLOCKING_THREADS: usize = 2;

/// Rounds of the event loop after the order to stop: accepting, beginning, judging, with some to spare.
const LAST_ROUNDS: usize = 8;

/// The running filter. Dropping it closes every connection of the sandbox.
#[derive(Debug)]
pub struct Filter {
    judge: Arc<Judge>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

impl Filter {
    /// Starts the filter on a thread of its own. The caller only makes that thread; everything else
    /// happens there, and the host's resolver settings are read when a name is first looked up.
    pub fn start(config: Config) -> io::Result<Self> {
        let Config { sockets, rules, inspector, sink, upstream, proxy_port, init, control } =
            config;
        let Sockets { tcp, udp, diagnosis, way } = sockets;
        let upstream = upstream.as_deref().map(Upstream::parse).transpose()?;
        let tcp: Vec<TcpListener> = tcp.into_iter().map(TcpListener::from).collect();
        let udp: Vec<UdpSocket> = udp.into_iter().map(UdpSocket::from).collect();
        let six = tcp.iter().any(|l| l.local_addr().is_ok_and(|a| a.is_ipv6()));
        let judge = Arc::new(Judge::new(Parts {
            book: rules,
            resolver: Resolver::system(),
            inspector,
            sink,
            finder: Finder::new(diagnosis, init),
            upstream,
            proxy_port,
            six,
        }));
        let (stop, stopped) = oneshot::channel();
        // Signals are for the program around it, whatever thread waits for them there; and a peer that
        // closes must not end it.
        let mask = ringfence_sys::raw::block_signals();
        let thread = {
            let judge = Arc::clone(&judge);
            std::thread::Builder::new()
                .name("egress".to_owned())
                .spawn(move || run(&judge, tcp, udp, way, control, stopped))
        };
        ringfence_sys::raw::set_signal_mask(&mask);
        Ok(Self { judge, stop: Mutex::new(Some(stop)), thread: Some(thread?) })
    }

    /// Other rules from now on, for open connections too: those that are no longer allowed are
    /// closed, and counted. A [`Rules`] that lets nothing through closes all.
    pub fn replace_rules(&self, rules: Arc<Rules>) -> usize {
        self.judge.replace(rules)
    }

    /// Other request rules and secrets from now on ([`Inspector::renewed`]); they hold for the next
    /// request of a connection that is open.
    pub fn replace_inspector(&self, inspector: Option<Arc<Inspector>>) {
        self.judge.inspect(inspector);
    }

    /// Whether records of allowed connections name the process, as those of refusals always do. It
    /// costs a walk of the sandbox's processes for each connection, so it is off unless asked for.
    pub fn name_processes(&self, all: bool) {
        self.judge.name_allowed.store(all, std::sync::atomic::Ordering::Relaxed);
    }

    /// Tells the filter to end, without waiting for it as dropping does.
    pub fn stop(&self) {
        if let Some(stop) = lock(&self.stop).take() {
            let _ = stop.send(());
        }
    }

    /// Whether the filter's thread is alive. If it is not, the sandbox has no network.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread. When it returns, the listeners are closed: the sandbox's connections fail.
fn run(
    judge: &Arc<Judge>,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    way: Way,
    control: Option<Control>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("egress-look")
        .build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let most = most_connections(getrlimit(Resource::Nofile).maximum);
        let places = Arc::new(Semaphore::new(most));
        for socket in udp {
            if socket.set_nonblocking(true).is_ok()
                && let Ok(socket) = tokio::net::UdpSocket::from_std(socket)
            {
                tokio::spawn(dns::serve_udp(Arc::clone(judge), socket));
            }
        }
        for listener in tcp {
            tunnel::set_options(&listener);
            if listener.set_nonblocking(true).is_ok()
                && let Ok(listener) = tokio::net::TcpListener::from_std(listener)
            {
                let places = (Arc::clone(&places), most);
                tokio::spawn(accept(Arc::clone(judge), listener, way, places));
            }
        }
        // Last: nothing of the sandbox waits for it.
        if let Some(control) = control {
            tokio::spawn(control::serve(Arc::clone(judge), control));
        }
        let _ = stopped.await;
        // What was asked just before the end is judged too, so that it is on record.
        for _ in 0..LAST_ROUNDS {
            tokio::task::yield_now().await;
        }
    });
    // Drops every task, and with them all sockets; a lookup that still runs is not waited for.
    runtime.shutdown_background();
}

/// Takes connections while there are places.
async fn accept(
    judge: Arc<Judge>,
    listener: tokio::net::TcpListener,
    way: Way,
    (places, most): (Arc<Semaphore>, usize),
) {
    let mut raised = false;
    let soft = getrlimit(Resource::Nofile).current;
    loop {
        // Before accepting: whoever does not fit waits in the kernel.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let busy = most.saturating_sub(places.available_permits());
        if !raised && soft.is_some_and(|soft| needs_descriptors(busy) > soft) {
            raised = true;
            raise_descriptors();
        }
        let (client, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) if lasting(&e) => {
                raise_descriptors();
                drop(place);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            // The client gave up before it was accepted.
            Err(_) => continue,
        };
        let Ok(original) = transparent::original(&client, peer, way) else {
            let _ = client.set_zero_linger();
            continue;
        };
        let judge = Arc::clone(&judge);
        let peer = plain(peer);
        let connection = judge.connections.begin(peer);
        tokio::spawn(async move {
            let _place = place;
            let _end = End { judge: Arc::clone(&judge), peer, connection: Arc::clone(&connection) };
            tokio::select! {
                () = transparent::serve(judge, client, peer, original) => {}
                () = connection.closed() => {}
            }
        });
    }
}

/// Takes a connection out of the list, also when its task is dropped.
struct End {
    judge: Arc<Judge>,
    peer: std::net::SocketAddr,
    connection: Arc<crate::judge::Connection>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.judge.connections.end(self.peer, &self.connection);
    }
}

/// Out of descriptors or memory: the next `accept` would say the same at once.
fn lasting(e: &io::Error) -> bool {
    use rustix::io::Errno;
    e.raw_os_error().is_some_and(|raw| {
        [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
            .contains(&Errno::from_raw_os_error(raw))
    })
}

/// As many as this process may ever have descriptors for, less what the supervisor needs to go on and
/// to end the run: however many a sandbox opens, it stops itself only.
fn most_connections(descriptors: Option<u64>) -> usize {
    let room = descriptors.unwrap_or(u64::MAX).saturating_sub(DESCRIPTORS_SPARE) / DESCRIPTORS_EACH;
    usize::try_from(room).unwrap_or(CONNECTIONS).clamp(LEAST_CONNECTIONS, CONNECTIONS)
}

fn needs_descriptors(busy: usize) -> u64 {
    (busy as u64) * DESCRIPTORS_EACH + DESCRIPTORS_SPARE
}

/// Raises this process's soft limit, not beyond what the filter can use. Only when it is needed.
fn raise_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = CONNECTIONS as u64 * DESCRIPTORS_EACH + DESCRIPTORS_SPARE;
    let wanted = maximum.map_or(wanted, |most| most.min(wanted));
    if current.is_some_and(|soft| soft < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
