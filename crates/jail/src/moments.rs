//! The steps inside, for a trace of a start: noted on the shared page by whoever takes them, read by the
//! supervisor when the command has ended.

use ringfence_sys::shared::Page;

/// A step is over. The first of a process is its birth.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(crate) enum Moment {
    Born,
    Entered,
    Session,
    Forked,
    View,
    Left,
    Sealed,
    Confined,
    Command,
    Network,
    Limits,
    Filter,
    Waited,
    Landlock,
    Wired,
    Exec,
    Ended,
}

use Moment as M;

/// Of each process: its name, its birth, and what ends at each later moment.
type Lane = (&'static str, Moment, &'static [(Moment, &'static str)]);

const LANES: [Lane; 2] = [
    (
        "init",
        M::Born,
        &[
            (M::Entered, "ids, control group"),
            (M::Session, "session, terminal"),
            (M::Forked, "command's process is made"),
            (M::View, "view: mounts and the new root"),
            (M::Left, "host's view is taken away"),
            (M::Sealed, "joins the command's network"),
            (M::Confined, "init's own system call filter"),
            (M::Ended, "waits for the command"),
        ],
    ),
    (
        "command",
        M::Command,
        &[
            (M::Network, "network namespace"),
            (M::Limits, "limits, capabilities"),
            (M::Filter, "system call filter (seccomp)"),
            (M::Waited, "waits for the view"),
            (M::Landlock, "landlock"),
            (M::Wired, "stdio, descriptors, directory"),
            (M::Exec, "waits until all is sealed"),
            (M::Ended, "exec, and the command runs"),
        ],
    ),
];

/// One step inside; nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    pub name: &'static str,
    pub lane: &'static str,
    pub start: u64,
    pub end: u64,
}

pub(crate) fn note(page: &Page, moment: Moment) {
    page.moments.note(moment as usize);
}

/// What was noted. A step that was not taken is left out; the next begins where the last ended.
pub(crate) fn steps(page: &Page) -> Vec<Noted> {
    let mut steps = Vec::new();
    for (lane, birth, all) in LANES {
        let Some(mut start) = page.moments.at(birth as usize) else { continue };
        for (moment, name) in all {
            let Some(end) = page.moments.at(*moment as usize) else { continue };
            steps.push(Noted { name, lane, start, end: end.max(start) });
            start = end.max(start);
        }
    }
    steps
}
