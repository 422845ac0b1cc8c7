//! What can be wrong with a policy file, said so that it can be mended: file, line, key, what is
//! allowed. Texts are lower case and without a full stop; the caller adds its own frame.

use std::fmt;

use crate::Origin;

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.layer),
            None => f.write_str(&self.layer),
        }
    }
}

/// A key of a policy file and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAt {
    /// Dotted: `network.allowedDomains`.
    pub key: String,
    pub at: Origin,
    /// Why it cannot be honoured, or what to write instead.
    pub note: String,
}

/// Why a policy was refused. Nothing is ever dropped in its stead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file is not TOML or JSONC, or a key is written twice.
    #[error("{at}: {message}")]
    Syntax { at: Origin, message: String },
    /// A key that the schema does not know.
    #[error("{at}: unknown key `{key}`{}", hint_text(hint.as_ref(), known))]
    UnknownKey { at: Origin, key: String, hint: Option<String>, known: Vec<String> },
    /// A value that the key cannot take.
    #[error("{at}: {key}: {message}")]
    Invalid { at: Origin, key: String, message: String },
    /// More bytes than [`crate::MAX_FILE_BYTES`].
    #[error("{file}: {size} bytes is too large for a policy file, the limit is {limit}")]
    TooLarge { file: String, size: u64, limit: u64 },
    #[error("{at}: not utf-8 text")]
    NotUtf8 { at: Origin },
    /// The file named by `extends` could not be read.
    #[error("{at}: cannot read {file}: {message}")]
    Read { at: Origin, file: String, message: String },
    #[error("{at}: unknown profile `{name}`; known profiles: {}", known.join(", "))]
    UnknownProfile { at: Origin, name: String, known: Vec<String> },
    /// `lift` names a rule that does not exist.
    #[error("{at}: unknown built-in rule `{id}`{}", hint_text(hint.as_ref(), known))]
    UnknownRule { at: Origin, id: String, hint: Option<String>, known: Vec<String> },
    #[error("{at}: extends goes in a circle: {}", chain.join(" -> "))]
    Cycle { at: Origin, chain: Vec<String> },
    #[error("{at}: extends goes deeper than {limit}: {}", chain.join(" -> "))]
    TooDeep { at: Origin, limit: usize, chain: Vec<String> },
    /// Keys of another product's file that ask for something not yet built.
    #[error("not supported yet, refused rather than ignored: {}", keys_text(keys))]
    NotYet { keys: Vec<KeyAt> },
}

fn hint_text(hint: Option<&String>, known: &[String]) -> String {
    match hint {
        Some(hint) => format!(", did you mean `{hint}`?"),
        None if known.is_empty() => String::new(),
        None => format!("; known here: {}", known.join(", ")),
    }
}

fn keys_text(keys: &[KeyAt]) -> String {
    let texts: Vec<String> = keys
        .iter()
        .map(|k| {
            if k.note.is_empty() {
                format!("{} ({})", k.key, k.at)
            } else {
                format!("{} ({}: {})", k.key, k.at, k.note)
            }
        })
        .collect();
    texts.join("; ")
}

/// The known word nearest to `word`, if it is near enough to be a slip of the finger.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Files from strangers: do not spend quadratic time on a key of a megabyte.
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|k| (distance(&word, &k.to_lowercase()), k))
        .filter(|(d, k)| *d <= 1 + k.len().min(word.len()) / 4)
        .min()
        .map(|(_, k)| k)
}

/// Optimal string alignment distance: a swap of neighbours counts one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}
