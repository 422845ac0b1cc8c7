//! A sandbox that stands still: every process in it but init is held where it is. Init goes on, so that a
//! command can be killed meanwhile.
//!
//! Where the sandbox has a control group of its own (of limits, cgroup v2), the kernel's freezer holds it: nobody
//! inside can see that or undo it. Elsewhere it is SIGSTOP, which SIGCONT of another process inside undoes
//! as long as that one runs: so it is sent again until nothing is seen to go on.

use std::time::Duration;

use ringfence_api::FrozenBy;
use ringfence_sys::cgroup::Freezer;
use rustix::process::Pid;

use crate::error::{Error, Kind};
use crate::files::blocking;
use crate::processes::{self, Processes};
use crate::sandbox::{Live, Sandbox};

/// Times that SIGSTOP is sent, and how long after each it is looked at what goes on.
const ROUNDS: usize = 60;
const PAUSE: Duration = Duration::from_millis(15);
/// Looks one after the other that find nothing that goes on: who was still running in the first may have woken
/// somebody that had been looked at.
const LOOKS: usize = 2;

/// The freezer of the group that its init is in.
fn freezer(live: &Live) -> Option<(Freezer, Pid)> {
    let (pid, started) = live.made.init?;
    let freezer = Freezer::of(pid)?;
    let is_it = processes::started(pid) == Some(started);
    Some((freezer, Pid::from_raw(pid.cast_signed())?)).filter(|_| is_it)
}

/// Holds it; where that cannot be, it goes on. Its state says already that it is frozen: nothing is begun any more.
pub(crate) async fn hold(sandbox: &Sandbox, live: &Live) -> Result<(), Error> {
    // What was asked for before has begun when this is answered.
    live.link.ping().await?;
    let found = {
        let live = live.clone();
        blocking(move || Ok(freezer(&live))).await?
    };
    let by = match found {
        Some((freezer, init)) => {
            let frozen = blocking(move || freezer.freeze(init).map_err(|why| by_group(&why))).await;
            frozen.map(|()| FrozenBy::Cgroup)?
        }
        None => by_signals(live).await.map(|()| FrozenBy::Signals)?,
    };
    sandbox.set_frozen_by(by);
    Ok(())
}

fn by_group(why: &str) -> Error {
    Error::new(Kind::Busy, format!("the control group cannot be frozen: {why}"))
        .with("try again, or stop the sandbox")
}

/// Lets it go on.
pub(crate) async fn release(sandbox: &Sandbox, live: &Live) -> Result<(), Error> {
    if sandbox.frozen_by() == Some(FrozenBy::Cgroup) {
        let live = live.clone();
        return blocking(move || match freezer(&live) {
            Some((freezer, _)) => freezer.thaw().map_err(|why| by_group(&why)),
            None => Err(Error::lost()),
        })
        .await;
    }
    live.link.signal(0, libc::SIGCONT).await
}

async fn by_signals(live: &Live) -> Result<(), Error> {
    // Nobody can look where it is not known which they are.
    let Some(init) = live.made.init else { return live.link.signal(0, libc::SIGSTOP).await };
    let mut still = 0;
    for _ in 0..ROUNDS {
        live.link.signal(0, libc::SIGSTOP).await?;
        tokio::time::sleep(PAUSE).await;
        live.link.ping().await?;
        let moving = blocking(move || Ok(Processes::read().moving_below(init))).await?;
        still = if moving == 0 { still + 1 } else { 0 };
        if still == LOOKS {
            return Ok(());
        }
    }
    live.link.signal(0, libc::SIGCONT).await?;
    Err(Error::new(Kind::Busy, "processes of the sandbox go on in spite of SIGSTOP").with(
        "try again, stop it, or make it with a limit (memory, pids), whose control group freezes it",
    ))
}
