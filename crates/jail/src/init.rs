//! PID 1 of the sandbox: starts the command, reaps everything, forwards what the supervisor says,
//! and ends when the command ends, which makes the kernel kill whatever is left.

use std::sync::atomic::Ordering;

use ringfence_sys::raw::{self, Errno};
use ringfence_sys::shared::Page;

use crate::asks::Asks;
use crate::broker::Broker;
use crate::child::{self, Fail, Res, at, report};
use crate::message;
use crate::moments::{Moment, note};
use crate::spawn::Birth;
use crate::spec::{Exec, JailSpec, Step};
use crate::stage::Stage;

/// Exit codes of init itself; the command's own status travels in the shared page.
pub(crate) const SETUP_FAILED: i32 = 125;

/// Descriptors that init keeps, moved to fixed numbers.
pub(crate) const CONTROL: i32 = 3;
pub(crate) const SUPERVISOR: i32 = 4;
pub(crate) const CHILDREN: i32 = 5;
const CONNECTOR: i32 = 6;
/// Out of the way of all of these while they are moved.
pub(crate) const HIGH: i32 = 64;
const TERMINAL: i32 = 7;
const LISTENER: i32 = 9;
pub(crate) const LOCK: i32 = 8;
const ASKS: i32 = 10;

/// Never returns: the rest of PID 1's life.
pub(crate) fn run(birth: &Birth<'_>) -> ! {
    let Birth { spec, trees, control, supervisor, page, has_network, spread, .. } = *birth;
    if spec.resident >= 0 {
        crate::resident::run(birth)
    }
    let (terminal, front) = match session(spec, trees, control) {
        Ok(found) => found,
        Err(fail) => fail_and_exit(page, &fail),
    };
    let channel = match confine_both(spec, trees) {
        Ok(channel) => channel,
        Err(fail) => fail_and_exit(page, &fail),
    };
    note(page, Moment::Session);
    // SAFETY: this process is single-threaded since the clone, and the child only makes raw calls
    // before execve or _exit.
    match unsafe { ringfence_sys::ns::fork() } {
        Err(errno) => fail_and_exit(page, &Fail::new(Stage::Fork, errno)),
        Ok(None) => {
            let watched = channel.map_or(-1, |(_, theirs)| theirs);
            let Err(fail) = become_command(birth, [terminal, watched], front);
            report(page, &fail);
            raw::exit(SETUP_FAILED)
        }
        Ok(Some((pid, pidfd))) => {
            // Both have work now, and the scheduler would often let them take turns.
            if let Some(processors) = spread {
                processors.move_away(pid);
            }
            page.command.store(pid, Ordering::Release);
            note(page, Moment::Forked);
            // The command does the same; whoever comes first, its group is there before any signal.
            let _ = raw::setpgid(pid, pid);
            let done = finish_set_up(spec, trees, pidfd, page, has_network).and_then(|()| {
                let kept = [control, supervisor, terminal, take_listener(channel)];
                keep_house(birth, pid, kept)
            });
            match done {
                Ok(()) => raw::exit(0),
                Err(fail) => {
                    // Without a pid namespace nobody else would end it.
                    let _ = raw::kill(pid, libc::SIGKILL);
                    fail_and_exit(page, &fail)
                }
            }
        }
    }
}

/// Whether the view must be there before the command's process is.
fn builds_view_first(spec: &JailSpec) -> bool {
    spec.stdio.wants_pty() || !spec.watch.is_empty()
}

/// Where init carries out calls of the command: a channel for the listener, and both in one Landlock
/// domain, so that init may look into the command's processes and do no more than they may.
fn confine_both(spec: &JailSpec, trees: &[i32]) -> Result<Option<(i32, i32)>, Fail> {
    if spec.watch.is_empty() {
        return Ok(None);
    }
    if !spec.stdio.wants_pty() {
        child::view(spec, trees)?;
        child::leave_host(spec)?;
    }
    at(Stage::NoNewPrivs, raw::set_no_new_privs())?;
    child::landlock(spec)?;
    at(Stage::Broker, raw::seqpacket_pair()).map(Some)
}

/// The command sends it just before it executes. Without it there is no command either: the end of
/// its process says so.
fn take_listener(channel: Option<(i32, i32)>) -> i32 {
    let Some((ours, theirs)) = channel else { return -1 };
    raw::close(theirs);
    let mut byte = [0u8; 1];
    let listener = match raw::recv_with_fd(ours, &mut byte, 0) {
        Ok((_, fd)) => fd.unwrap_or(-1),
        Err(_) => -1,
    };
    raw::close(ours);
    listener
}

/// Init's half of the set-up, in parallel with [`child::private`] in the command's process.
fn finish_set_up(
    spec: &JailSpec,
    trees: &[i32],
    command: i32,
    page: &Page,
    has_network: bool,
) -> Res {
    let first = !builds_view_first(spec);
    if first {
        child::view(spec, trees)?;
    }
    raw::set_and_wake(&page.view_ready);
    note(page, Moment::View);
    if first {
        child::leave_host(spec)?;
    }
    note(page, Moment::Left);
    if !has_network && spec.namespaces & ringfence_sys::ns::flags::NET != 0 {
        // Through /proc/1/net the command could otherwise read the host's network tables.
        while page.net_ready.load(Ordering::Acquire) == 0 {
            if page.failed_stage.load(Ordering::Acquire) != 0 {
                return Ok(());
            }
            raw::futex_wait_for(&page.net_ready, 0, 20);
        }
        match raw::setns(command, libc::CLONE_NEWNET) {
            // The command ended, and has said why.
            Err(_) if page.failed_stage.load(Ordering::Acquire) != 0 => return Ok(()),
            r => at(Stage::Network, r)?,
        }
    }
    raw::close(command);
    // Nobody inside may look into the memory that was copied from the supervisor.
    at(Stage::Dumpable, raw::set_dumpable(false))?;
    raw::set_and_wake(&page.sealed);
    note(page, Moment::Sealed);
    // The command is on its way; init confines itself too. It runs nothing of the sandbox's, so
    // this guards against mistakes of our own only, and costs nothing that is waited for.
    let filter = if spec.watch.is_empty() { &spec.seccomp } else { &spec.init_seccomp };
    child::harden(spec, filter)?;
    note(page, Moment::Confined);
    Ok(())
}

pub(crate) fn fail_and_exit(page: &Page, fail: &Fail) -> ! {
    report(page, fail);
    raw::exit(SETUP_FAILED)
}

/// Starts a session, so that the caller's terminal is out of reach. Init, not the command, leads it:
/// a command that led it would be in an orphaned process group, and the kernel discards Ctrl-Z for
/// those. Answers the terminal (-1 without one) and whether the command starts in its foreground.
///
/// A process gets its session's terminal from the one that forks it, so the terminal, and the view
/// that it is part of, must be there before the command's process.
fn session(spec: &JailSpec, trees: &[i32], control: i32) -> Result<(i32, bool), Fail> {
    at(Stage::Session, raw::setsid())?;
    if !spec.stdio.wants_pty() {
        return Ok((-1, false));
    }
    child::view(spec, trees)?;
    child::leave_host(spec)?;
    at(Stage::Session, open_terminal(control))
}

/// Opens a terminal in the sandbox's own devpts, makes it the controlling terminal of init's
/// session, and hands the master to the supervisor, which copies size and modes of the real terminal
/// and then says go on.
fn open_terminal(control: i32) -> raw::Result<(i32, bool)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let master = raw::openat(libc::AT_FDCWD, c"/dev/ptmx", flags, 0)?;
    let slave = ringfence_sys::tty::open_peer(master)?;
    ringfence_sys::tty::make_controlling(slave)?;
    raw::send_with_fd(control, &[message::TERMINAL, 0], master)?;
    raw::close(master);
    let mut answer = [0u8; 2];
    match raw::recv_with_fd(control, &mut answer, 0)? {
        (2, _) if answer[0] == message::RESUME => Ok((slave, answer[1] != 0)),
        _ => Err(Errno(libc::EPIPE)),
    }
}

fn become_command(
    birth: &Birth<'_>,
    [terminal, watched]: [i32; 2],
    front: bool,
) -> Result<std::convert::Infallible, Fail> {
    let Birth { spec, page, has_network, spread, .. } = *birth;
    note(page, Moment::Command);
    if spec.namespaces == 0 {
        // No pid namespace will end us with init.
        let kill = libc::SIGKILL as u64;
        at(Stage::ParentDeath, raw::prctl(libc::PR_SET_PDEATHSIG, kill, 0, 0, 0))?;
    }
    child::private(spec, page, has_network)?;
    raw::wait_until_set(&page.view_ready);
    note(page, Moment::Waited);
    if let Some(processors) = spread {
        // Init has moved us before it said so. A refusal would only cost time.
        let _ = processors.give(0);
    }
    if spec.watch.is_empty() {
        child::landlock(spec)?;
        note(page, Moment::Landlock);
    }
    // It leads a process group of its own in init's session.
    at(Stage::Session, raw::setpgid(0, 0))?;
    if front {
        // All signals are still blocked here, so taking the foreground from the background is allowed.
        let taken = ringfence_sys::tty::set_foreground(terminal, raw::getpid());
        at(Stage::Session, taken)?;
    }
    wire_stdio(spec, terminal)?;
    if watched >= 0 {
        let listener = at(Stage::Broker, ringfence_sys::notify::listen(&spec.watch))?;
        at(Stage::Broker, raw::send_with_fd(watched, &[1], listener))?;
    }
    at(Stage::Descriptors, raw::close_from(3, false))?;
    at(Stage::Chdir, raw::chdir(&spec.exec.cwd))?;
    raw::reset_signals();
    note(page, Moment::Wired);
    raw::wait_until_set(&page.sealed);
    note(page, Moment::Exec);
    page.started.store(1, Ordering::Release);
    let errno = exec(&spec.exec);
    page.started.store(0, Ordering::Release);
    Err(Fail::new(Stage::Exec, errno))
}

fn wire_stdio(spec: &JailSpec, terminal: i32) -> Res {
    let stdio = &spec.stdio;
    let source = |i: usize| if stdio.pty[i] { terminal } else { stdio.fds[i] };
    if (0..3).all(|i| source(i) == i as i32) {
        return Ok(());
    }
    // Through high numbers, so that no source is overwritten before it was copied.
    let mut high = [-1; 3];
    for (i, slot) in high.iter_mut().enumerate() {
        *slot = at(Stage::Descriptors, raw::dup_from(source(i), 10))?;
    }
    for (i, fd) in high.iter().enumerate() {
        at(Stage::Descriptors, raw::dup3(*fd, i as i32, 0))?;
    }
    Ok(())
}

/// Tries the candidates as `execvp` does: a missing one is passed over, a forbidden one remembered.
fn exec(e: &Exec) -> Errno {
    let mut worst = Errno(libc::ENOENT);
    for path in &e.candidates {
        match raw::execve(path, &e.argv, &e.envp) {
            Errno(libc::ENOENT | libc::ENOTDIR) => {}
            Errno(libc::EACCES) => worst = Errno(libc::EACCES),
            Errno(libc::ENOEXEC) => return raw::exec_script(path, &e.argv, &e.envp),
            other => return other,
        }
    }
    worst
}

/// Reaps and forwards until the command ends.
fn keep_house(birth: &Birth<'_>, command: i32, kept: [i32; 4]) -> Res {
    let Birth { spec, page, judge, .. } = *birth;
    let [control, supervisor, terminal, listener] = kept;
    let children = at(Stage::Descriptors, raw::signalfd(libc::SIGCHLD))?;
    // Nothing of the caller's stays open here: a pipe whose writer is the command must end with it.
    let keep = [
        (control, CONTROL),
        (supervisor, SUPERVISOR),
        (children, CHILDREN),
        (spec.connector, CONNECTOR),
        (terminal, TERMINAL),
        (listener, LISTENER),
        (spec.lock, LOCK),
        (spec.asks, ASKS),
    ];
    // Through high numbers, so that none is overwritten before it was copied.
    let mut high = [-1; 8];
    for (slot, (fd, _)) in high.iter_mut().zip(keep) {
        if fd >= 0 {
            *slot = at(Stage::Descriptors, raw::dup_from(fd, HIGH))?;
        }
    }
    for (fd, (_, number)) in high.iter().zip(keep) {
        if *fd >= 0 {
            at(Stage::Descriptors, raw::dup3(*fd, number, libc::O_CLOEXEC))?;
        } else {
            raw::close(number);
        }
    }
    at(Stage::Descriptors, raw::close_from(ASKS as u32 + 1, false))?;
    for fd in 0..3 {
        raw::close(fd);
    }
    let connector = if spec.connector >= 0 { CONNECTOR } else { -1 };
    let asks = if spec.asks >= 0 { ASKS } else { -1 };
    let mut broker = match judge {
        Some(judge) if listener >= 0 => {
            Some(at(Stage::Broker, Broker::new(LISTENER, judge, Asks::new(asks)))?)
        }
        _ => None,
    };
    // A negative descriptor is passed over by poll.
    let mut fds = [
        raw::pollin(CHILDREN),
        raw::pollin(CONTROL),
        raw::pollin(SUPERVISOR),
        raw::pollin(connector),
        raw::pollin(if broker.is_some() { LISTENER } else { -1 }),
        raw::pollin(if broker.is_some() { asks } else { -1 }),
    ];
    let mut changed = true;
    loop {
        if changed && reap(command, page) {
            end_stragglers(spec);
            hand_out_copies(spec);
            page.emptied.store(1, Ordering::Release);
            // The supervisor wakes by it, and looks for what the run left while the kernel ends us.
            raw::close(CONTROL);
            return Ok(());
        }
        // The supervisor is gone (or closed its end): nothing may outlive it.
        if fds[2].revents != 0 || fds[1].revents & (libc::POLLHUP | libc::POLLERR) != 0 {
            kill_all(spec, libc::SIGKILL);
            if spec.lock >= 0 {
                end_stragglers(spec);
            }
            return Ok(());
        }
        if fds[1].revents & libc::POLLIN != 0 {
            obey(spec, command, terminal >= 0);
        }
        if fds[3].revents & libc::POLLIN != 0 {
            hand_out_connection();
        } else if fds[3].revents != 0 {
            fds[3].fd = -1;
        }
        let mut patience = -1;
        if let Some(broker) = &mut broker {
            if fds[4].revents & libc::POLLIN != 0 {
                broker.serve();
            } else if fds[4].revents != 0 {
                // Every process that it concerns has ended.
                fds[4].fd = -1;
            }
            if fds[5].revents & libc::POLLIN != 0 {
                broker.hear();
            } else if fds[5].revents != 0 {
                fds[5].fd = -1;
            }
            broker.retry();
            patience = broker.patience();
        }
        let _ = raw::poll(&mut fds, patience);
        changed = fds[0].revents != 0;
        if changed {
            drain(CHILDREN);
        }
    }
}

pub(crate) fn drain(signalfd: i32) {
    let mut info = [0u8; 128];
    while raw::read(signalfd, &mut info).is_ok_and(|n| n > 0) {}
}

/// Collects every child that changed state. True when the command has ended.
fn reap(command: i32, page: &Page) -> bool {
    loop {
        match raw::wait4(-1, libc::WNOHANG | libc::WUNTRACED) {
            Ok((0, _)) | Err(_) => return false,
            Ok((pid, status)) if pid == command => {
                if libc::WIFSTOPPED(status) {
                    let signal = libc::WSTOPSIG(status) as u8;
                    // Without waiting: a supervisor that does not read must not keep us from reaping.
                    let _ = raw::send_now(CONTROL, &[message::STOPPED, signal]);
                    continue;
                }
                note(page, Moment::Ended);
                page.wait_status.store(status, Ordering::Relaxed);
                page.ended.store(1, Ordering::Release);
                return true;
            }
            Ok(_) => {}
        }
    }
}

fn obey(spec: &JailSpec, command: i32, has_terminal: bool) {
    let mut m = [0u8; 2];
    while let Ok((2, fd)) = raw::recv_with_fd(CONTROL, &mut m, libc::MSG_DONTWAIT) {
        if let Some(fd) = fd {
            raw::close(fd);
        }
        let group = raw::getpgid(command).unwrap_or(command);
        match m[0] {
            message::SIGNAL => {
                let signal = i32::from(m[1]);
                // What these do to a child that does not expect them nobody meant.
                let alone = matches!(signal, libc::SIGUSR1 | libc::SIGUSR2);
                let _ = raw::kill(if alone { command } else { -group }, signal);
            }
            message::SIGNAL_ALL => kill_all(spec, i32::from(m[1])),
            message::RESUME => {
                if has_terminal {
                    let front = if m[1] != 0 { Ok(group) } else { raw::getpgid(0) };
                    let _ = front.and_then(|g| ringfence_sys::tty::set_foreground(TERMINAL, g));
                }
                let _ = raw::kill(-group, libc::SIGCONT);
            }
            _ => {}
        }
    }
}

/// Connects to a port of the sandbox's own loopback for the supervisor.
fn hand_out_connection() {
    let mut request = [0u8; 3];
    let Ok((3, _)) = raw::recv_with_fd(CONNECTOR, &mut request, libc::MSG_DONTWAIT) else { return };
    let port = u16::from_be_bytes([request[1], request[2]]);
    let fd = raw::connect_loopback(request[0] == 6, port).unwrap_or(-1);
    let _ = raw::send_with_fd(CONNECTOR, &[u8::from(fd >= 0)], fd);
    if fd >= 0 {
        raw::close(fd);
    }
}

/// The command and everything else have ended: shows the supervisor private copies that were changed,
/// which end with the view.
pub(crate) fn hand_out_copies(spec: &JailSpec) {
    let Some(view) = &spec.view else { return };
    let Some(directory) = &view.copies else { return };
    let changed = view.steps.iter().any(|step| match step {
        Step::Copy(copy) => !child::is_as_given(copy),
        _ => false,
    });
    if !changed {
        return;
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    if let Ok(fd) = raw::openat(libc::AT_FDCWD, directory, flags, 0) {
        let _ = raw::send_with_fd(CONTROL, &[message::COPIES, 0], fd);
    }
}

pub(crate) fn kill_all(spec: &JailSpec, signal: i32) {
    if spec.namespaces & ringfence_sys::ns::flags::PID != 0 {
        // Every process of the namespace but init itself.
        let _ = raw::kill(-1, signal);
    } else {
        ringfence_sys::subreaper::kill_descendants(signal);
    }
}

/// Kills what the command left behind and waits for its end. With a pid namespace the kernel would do
/// it when init ends; doing it here lets the supervisor look for what the run left while the kernel
/// still takes the namespaces down.
pub(crate) fn end_stragglers(spec: &JailSpec) {
    if spec.namespaces & ringfence_sys::ns::flags::PID == 0 {
        ringfence_sys::subreaper::end_all();
        return;
    }
    end_everyone();
}

/// Gives back the memory of the plan, for a resident init alone: the last step before it stays. Nobody may look
/// at anything of `birth.spec` after it.
pub(crate) fn forget_plan(birth: &Birth<'_>) {
    // SAFETY: only PID 1 calls it, which has one thread, never returns and allocates nothing; what it uses
    // from then on lies on its stack, in the starter's own mapping and in the shared page.
    unsafe { ringfence_sys::shed::shed(std::ptr::from_ref(birth) as usize) };
}

/// Kills everybody else in the pid namespace and waits for their ends.
pub(crate) fn end_everyone() {
    // ESRCH: nobody else is there, the usual case.
    while raw::kill(-1, libc::SIGKILL).is_ok() {
        if raw::wait4(-1, 0).is_err() {
            return;
        }
    }
}
