//! What goes wrong, in kinds that a surface can turn into its own codes.

/// For programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// No such thing, or not the caller's: the two look the same.
    NotFound,
    /// Not in this state.
    Conflict,
    /// It is not what whoever asks takes it for.
    Changed,
    /// Not yet: try again soon.
    Busy,
    /// A limit of the daemon is reached.
    Limit,
    /// A policy, or the sandbox itself, refuses.
    Refused,
    /// Larger than is taken.
    TooLarge,
    /// The sandbox or the spawner went away meanwhile.
    Lost,
    /// Between the spawner and the daemon: this sandbox needs a spawner of its own.
    Alone,
    /// Our own failure.
    Internal,
}

impl Kind {
    pub fn text(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::Changed => "changed",
            Self::Busy => "busy",
            Self::Limit => "limit",
            Self::Refused => "refused",
            Self::TooLarge => "too-large",
            Self::Lost => "lost",
            Self::Alone => "alone",
            Self::Internal => "internal",
        }
    }

    /// From [`Self::text`], as the spawner sends it.
    pub fn from_text(text: &str) -> Self {
        match text {
            "invalid" => Self::Invalid,
            "refused" => Self::Refused,
            "limit" => Self::Limit,
            "alone" => Self::Alone,
            _ => Self::Internal,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: String::new() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    pub fn lost() -> Self {
        Self::new(Kind::Lost, "the sandbox ended")
            .with("ask for its state; start it again if it is stopped")
    }

    /// Of no name where nobody knows by which it was asked for.
    pub fn no_sandbox(name: Option<&str>) -> Self {
        let message = match name {
            Some(name) => format!("no such sandbox: {}", shown(name)),
            None => "no such sandbox".to_owned(),
        };
        Self::new(Kind::NotFound, message).with("list the sandboxes: `ringfence list`")
    }

    #[must_use]
    pub fn with(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// Of a name that somebody gave, as much as helps.
const MOST_SHOWN: usize = 80;

/// What somebody gave as a name, in a message.
pub(crate) fn shown(name: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut text: String = name.chars().take(MOST_SHOWN).map(plain).collect();
    if name.chars().nth(MOST_SHOWN).is_some() {
        text.push('…');
    }
    text
}
