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

    pub fn no_sandbox() -> Self {
        Self::new(Kind::NotFound, "no such sandbox").with("list the sandboxes")
    }

    #[must_use]
    pub fn with(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}
