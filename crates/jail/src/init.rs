//! PID 1 of the sandbox: starts the command, reaps everything, forwards what the supervisor says,
//! and ends when the command ends, which makes the kernel kill whatever is left.

use std::sync::atomic::Ordering;

use ringfence_sys::raw::{self, Errno};
use ringfence_sys::shared::Page;

use crate::child::{self, Fail, Res, at, report};
use crate::message;
use crate::spec::{Exec, JailSpec};
use crate::stage::Stage;

/// Exit codes of init itself; the command's own status travels in the shared page.
pub(crate) const SETUP_FAILED: i32 = 125;

/// Descriptors that init keeps, moved to fixed numbers.
const CONTROL: i32 = 3;
const SUPERVISOR: i32 = 4;
const CHILDREN: i32 = 5;
const CONNECTOR: i32 = 6;

/// Never returns: the rest of PID 1's life.
pub(crate) fn run(
    spec: &JailSpec,
    trees: &[i32],
    control: i32,
    supervisor: i32,
    page: &Page,
) -> ! {
    if spec.stdio.wants_pty() {
        // Init, not the command, leads the session: a command that led it would be in an orphaned
        // process group, and the kernel discards Ctrl-Z for those.
        if let Err(errno) = raw::setsid() {
            fail_and_exit(page, &Fail::new(Stage::Session, errno));
        }
    }
    // SAFETY: this process is single-threaded since the clone, and the child only makes raw calls
    // before execve or _exit.
    match unsafe { ringfence_sys::ns::fork() } {
        Err(errno) => fail_and_exit(page, &Fail::new(Stage::Fork, errno)),
        Ok(None) => {
            let Err(fail) = become_command(spec, page);
            report(page, &fail);
            raw::exit(SETUP_FAILED)
        }
        Ok(Some((pid, pidfd))) => {
            page.command.store(pid, Ordering::Release);
            let done = finish_set_up(spec, trees, control, pidfd, page)
                .and_then(|()| keep_house(spec, pid, control, supervisor, page));
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

/// Init's half of the set-up, in parallel with [`child::private`] in the command's process.
fn finish_set_up(
    spec: &JailSpec,
    trees: &[i32],
    control: i32,
    command: i32,
    page: &Page,
) -> Res {
    child::view(spec, trees)?;
    prepare_terminal(spec, control)?;
    if spec.namespaces & ringfence_sys::ns::flags::NET != 0 {
        // Through /proc/1/net the command could otherwise read the host's network tables.
        while page.net_ready.load(Ordering::Acquire) == 0 {
            if page.failed_stage.load(Ordering::Acquire) != 0 {
                return Ok(());
            }
            raw::futex_wait_for(&page.net_ready, 0, 20);
        }
        at(Stage::Network, raw::setns(command, libc::CLONE_NEWNET))?;
    }
    raw::close(command);
    // Nobody inside may look into the memory that was copied from the supervisor.
    at(Stage::Dumpable, raw::set_dumpable(false))?;
    raw::set_and_wake(&page.view_ready);
    // The command is on its way; init confines itself too. It runs nothing of the sandbox's, so
    // this guards against mistakes of our own only, and costs nothing that is waited for.
    child::harden(spec)
}

pub(crate) fn fail_and_exit(page: &Page, fail: &Fail) -> ! {
    report(page, fail);
    raw::exit(SETUP_FAILED)
}

/// Opens a terminal in the sandbox's own devpts, makes it the controlling terminal of init's
/// session, and hands the master to the supervisor, which copies size and modes of the real terminal
/// and then says go on.
fn prepare_terminal(spec: &JailSpec, control: i32) -> Res {
    if !spec.stdio.wants_pty() {
        return Ok(());
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let open = || -> raw::Result<()> {
        let master = raw::openat(libc::AT_FDCWD, c"/dev/ptmx", flags, 0)?;
        let slave = ringfence_sys::tty::open_peer(master)?;
        ringfence_sys::tty::make_controlling(slave)?;
        raw::send_with_fd(control, &[message::TERMINAL, 0], master)?;
        raw::close(master);
        raw::close(slave);
        let mut answer = [0u8; 2];
        match raw::recv_with_fd(control, &mut answer, 0)? {
            (2, _) if answer[0] == message::RESUME => Ok(()),
            _ => Err(Errno(libc::EPIPE)),
        }
    };
    at(Stage::Session, open())
}

fn become_command(spec: &JailSpec, page: &Page) -> Result<std::convert::Infallible, Fail> {
    if spec.namespaces == 0 {
        // No pid namespace will end us with init.
        let kill = libc::SIGKILL as u64;
        at(Stage::ParentDeath, raw::prctl(libc::PR_SET_PDEATHSIG, kill, 0, 0, 0))?;
    }
    child::private(spec, page)?;
    raw::wait_until_set(&page.view_ready);
    child::landlock(spec)?;
    let mut terminal = -1;
    if spec.stdio.wants_pty() {
        // The session's controlling terminal is the one that init just made.
        let flags = libc::O_RDWR | libc::O_CLOEXEC;
        let tty = raw::openat(libc::AT_FDCWD, c"/dev/tty", flags, 0);
        terminal = at(Stage::Session, tty)?;
        at(Stage::Session, own_process_group(terminal))?;
    }
    wire_stdio(spec, terminal)?;
    at(Stage::Descriptors, raw::close_from(3, false))?;
    at(Stage::Chdir, raw::chdir(&spec.exec.cwd))?;
    raw::reset_signals();
    page.started.store(1, Ordering::Release);
    let errno = exec(&spec.exec);
    page.started.store(0, Ordering::Release);
    Err(Fail::new(Stage::Exec, errno))
}

/// The command leads a process group of its own in init's session, in the foreground.
fn own_process_group(terminal: i32) -> raw::Result<()> {
    raw::setpgid(0, 0)?;
    // All signals are still blocked here, so taking the foreground from the background is allowed.
    ringfence_sys::tty::set_foreground(terminal, raw::getpid())
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
fn keep_house(spec: &JailSpec, command: i32, control: i32, supervisor: i32, page: &Page) -> Res {
    let children = at(Stage::Descriptors, raw::signalfd(libc::SIGCHLD))?;
    // Nothing of the caller's stays open here: a pipe whose writer is the command must end with it.
    let keep = [
        (control, CONTROL),
        (supervisor, SUPERVISOR),
        (children, CHILDREN),
        (spec.connector, CONNECTOR),
    ];
    // Through high numbers, so that none is overwritten before it was copied.
    const HIGH: i32 = 64;
    let mut high = [-1; 4];
    for (slot, (fd, _)) in high.iter_mut().zip(keep) {
        if fd >= 0 {
            *slot = at(Stage::Descriptors, raw::dup_from(fd, HIGH))?;
        }
    }
    for (fd, (_, number)) in high.iter().zip(keep) {
        if *fd >= 0 {
            at(Stage::Descriptors, raw::dup3(*fd, number, libc::O_CLOEXEC))?;
        }
    }
    let last = if spec.connector >= 0 { CONNECTOR } else { CHILDREN };
    at(Stage::Descriptors, raw::close_from(last as u32 + 1, false))?;
    for fd in 0..3 {
        raw::close(fd);
    }
    let in_session = spec.stdio.wants_pty();
    let connector = if spec.connector >= 0 { CONNECTOR } else { -1 };
    // A negative descriptor is passed over by poll.
    let mut fds = [
        raw::pollin(CHILDREN),
        raw::pollin(CONTROL),
        raw::pollin(SUPERVISOR),
        raw::pollin(connector),
    ];
    loop {
        if reap(command, page) {
            end_stragglers(spec);
            return Ok(());
        }
        // The supervisor is gone (or closed its end): nothing may outlive it.
        if fds[2].revents != 0 || fds[1].revents & (libc::POLLHUP | libc::POLLERR) != 0 {
            kill_all(spec, libc::SIGKILL);
            return Ok(());
        }
        if fds[1].revents & libc::POLLIN != 0 {
            obey(spec, command, in_session);
        }
        if fds[3].revents & libc::POLLIN != 0 {
            hand_out_connection();
        } else if fds[3].revents != 0 {
            fds[3].fd = -1;
        }
        let _ = raw::poll(&mut fds, -1);
        drain(CHILDREN);
    }
}

fn drain(signalfd: i32) {
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
                    let _ = raw::send_with_fd(CONTROL, &[message::STOPPED, signal], -1);
                    continue;
                }
                page.wait_status.store(status, Ordering::Relaxed);
                page.ended.store(1, Ordering::Release);
                return true;
            }
            Ok(_) => {}
        }
    }
}

fn obey(spec: &JailSpec, command: i32, own_group: bool) {
    let mut m = [0u8; 2];
    while let Ok((2, fd)) = raw::recv_with_fd(CONTROL, &mut m, libc::MSG_DONTWAIT) {
        if let Some(fd) = fd {
            raw::close(fd);
        }
        let target = if own_group { -command } else { command };
        match m[0] {
            message::SIGNAL => {
                let _ = raw::kill(target, i32::from(m[1]));
            }
            message::SIGNAL_ALL => kill_all(spec, i32::from(m[1])),
            message::RESUME => {
                let _ = raw::kill(target, libc::SIGCONT);
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

fn kill_all(spec: &JailSpec, signal: i32) {
    if spec.namespaces & ringfence_sys::ns::flags::PID != 0 {
        // Every process of the namespace but init itself.
        let _ = raw::kill(-1, signal);
    } else {
        ringfence_sys::subreaper::kill_descendants(signal);
    }
}

/// Without a pid namespace the kernel does not kill what is left; as a subreaper init adopts all of
/// it and does.
fn end_stragglers(spec: &JailSpec) {
    if spec.namespaces & ringfence_sys::ns::flags::PID == 0 {
        ringfence_sys::subreaper::end_all();
    }
}
