//! The life of a sandbox. No I/O: what may be asked is decided here, before anything is done.
//!
//! ```text
//!              made                first command
//!   creating ────────▶ idle ◀──────────────────────▶ running
//!    │   ▲               │        last one ended        │
//!    │   │               └──────────┬───────────────────┘
//!    │   │ start       freeze │     │ stop, idle, ttl     │ lost (oom, killed, host-lost)
//!    │   │                    ▼     ▼                     ▼
//!    │   ├──────────────── frozen ─▶ stopped            failed ◀── creating: could not be made
//!    │   │   start: on        │        │                  │
//!    │   └────────────────────┼────────┴──── start ───────┘
//!    ▼                        ▼
//!   destroyed  ◀── delete, from every state, again without error
//! ```

use ringfence_api::State;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A command, or its files.
    Use,
    Start,
    Stop,
    Freeze,
    Delete,
}

impl Ask {
    pub const ALL: [Self; 5] = [Self::Use, Self::Start, Self::Stop, Self::Freeze, Self::Delete];
}

/// What may be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    Go,
    /// It is so already.
    Already,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It is on its way to a state that allows it.
    NotYet,
    /// Something else has to be asked first: what.
    First(Ask),
    /// There is nothing any more.
    Gone,
}

/// Whether it may be asked in this state.
pub fn admit(state: State, ask: Ask) -> Result<Admitted, Denied> {
    use Admitted::{Already, Go};
    use State::{Creating, Destroyed, Failed, Frozen, Idle, Running, Stopped};
    match (state, ask) {
        (Destroyed, Ask::Delete) => Ok(Already),
        (Destroyed, _) => Err(Denied::Gone),
        (_, Ask::Delete) => Ok(Go),
        (Creating, _) => Err(Denied::NotYet),
        (Idle | Running, Ask::Start) | (Stopped | Failed, Ask::Stop) | (Frozen, Ask::Freeze) => {
            Ok(Already)
        }
        (Idle | Running, _) | (Frozen, Ask::Start | Ask::Stop) | (Stopped | Failed, Ask::Start) => {
            Ok(Go)
        }
        (Frozen | Stopped | Failed, Ask::Use) | (Stopped | Failed, Ask::Freeze) => {
            Err(Denied::First(Ask::Start))
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is being made again.
    Making,
    /// It was made, or it goes on after a freeze.
    Ready {
        commands: bool,
    },
    CommandStarted,
    LastCommandEnded,
    Frozen,
    /// Every process in it was ended on purpose.
    Stopped,
    /// It could not be made, or ended by itself.
    Lost,
    Deleted,
}

impl Event {
    pub const ALL: [Self; 9] = [
        Self::Making,
        Self::Ready { commands: false },
        Self::Ready { commands: true },
        Self::CommandStarted,
        Self::LastCommandEnded,
        Self::Frozen,
        Self::Stopped,
        Self::Lost,
        Self::Deleted,
    ];
}

/// The state after it; `None` where it cannot happen, and then nothing changes.
pub fn next(state: State, event: Event) -> Option<State> {
    use State::{Creating, Destroyed, Failed, Frozen, Idle, Running, Stopped};
    Some(match (state, event) {
        (_, Event::Deleted) => Destroyed,
        (Stopped | Failed, Event::Making) => Creating,
        (Creating | Frozen, Event::Ready { commands }) => {
            if commands {
                Running
            } else {
                Idle
            }
        }
        (Idle | Running, Event::CommandStarted) => Running,
        (Running, Event::LastCommandEnded) => Idle,
        // Killed where it stood.
        (Frozen, Event::LastCommandEnded) | (Idle | Running, Event::Frozen) => Frozen,
        (Idle | Running | Frozen, Event::Stopped) => Stopped,
        (Creating | Idle | Running | Frozen, Event::Lost) => Failed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = State> {
        proptest::sample::select(State::ALL.to_vec())
    }

    fn event() -> impl Strategy<Value = Event> {
        proptest::sample::select(Event::ALL.to_vec())
    }

    /// What happens once an ask was admitted and carried out.
    fn done(state: State, ask: Ask) -> Option<State> {
        match (admit(state, ask).ok()?, ask) {
            (Admitted::Already, _) | (_, Ask::Use) => Some(state),
            (_, Ask::Start) if state == State::Frozen => {
                next(state, Event::Ready { commands: false })
            }
            (_, Ask::Start) => next(next(state, Event::Making)?, Event::Ready { commands: false }),
            (_, Ask::Stop) => next(state, Event::Stopped),
            (_, Ask::Freeze) => next(state, Event::Frozen),
            (_, Ask::Delete) => next(state, Event::Deleted),
        }
    }

    proptest! {
        #[test]
        fn what_is_admitted_can_be_carried_out(state in state()) {
            for ask in Ask::ALL {
                if admit(state, ask).is_ok() {
                    prop_assert!(done(state, ask).is_some(), "{state:?} {ask:?}");
                }
            }
        }

        #[test]
        fn every_state_has_a_legal_exit(state in state()) {
            if state != State::Destroyed {
                let exits = Event::ALL.iter().filter_map(|e| next(state, *e)).filter(|s| *s != state);
                prop_assert!(exits.count() > 1, "{state:?}");
            }
        }

        #[test]
        fn delete_is_idempotent_from_every_state(events in proptest::collection::vec(event(), 0..40)) {
            let mut state = State::Creating;
            for event in events {
                state = next(state, event).unwrap_or(state);
                let gone = done(state, Ask::Delete).unwrap();
                prop_assert_eq!(gone, State::Destroyed);
                prop_assert_eq!(done(gone, Ask::Delete), Some(State::Destroyed));
            }
        }

        #[test]
        fn nothing_comes_back_from_the_dead(event in event()) {
            prop_assert!(matches!(next(State::Destroyed, event), None | Some(State::Destroyed)));
        }

        /// Whatever happened, what is there can be used again by asking, or is gone for good.
        #[test]
        fn from_everywhere_there_is_a_way_to_use(events in proptest::collection::vec(event(), 0..40)) {
            let mut state = State::Creating;
            for event in events {
                state = next(state, event).unwrap_or(state);
            }
            if state == State::Creating {
                state = next(state, Event::Ready { commands: false }).unwrap();
            }
            for _ in 0..2 {
                match admit(state, Ask::Use) {
                    Ok(_) => break,
                    Err(Denied::First(ask)) => state = done(state, ask).unwrap(),
                    Err(Denied::Gone) => prop_assert_eq!(state, State::Destroyed),
                    Err(Denied::NotYet) => prop_assert!(false, "{:?}", state),
                }
            }
            prop_assert!(state == State::Destroyed || admit(state, Ask::Use).is_ok());
        }
    }
}
