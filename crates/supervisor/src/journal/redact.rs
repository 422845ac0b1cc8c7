//! What of a command is written down: not the secrets that can be told from the rest.

use std::collections::BTreeMap;

/// Words of a command, bytes of one, and bytes of all, that are kept.
const MOST_WORDS: usize = 64;
const MOST_WORD: usize = 1024;
const MOST: usize = 4096;
/// Shorter values are no secrets.
const SHORT: usize = 6;
const HIDDEN: &str = "***";

/// What tokens of well-known makers begin with.
const TOKENS: &[&str] = &[
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "rk_live_",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xapp-",
    "AKIA",
    "ASIA",
    "npm_",
    "pypi-",
    "hf_",
    "dop_v1_",
    "AIza",
    "eyJ",
];

/// A command as it may be written down. `variables`: what it is given; values of those whose names say
/// that they are secret are hidden wherever they stand.
pub(crate) fn shown(argv: &[String], variables: &[&BTreeMap<String, String>]) -> Vec<String> {
    let secrets: Vec<&str> = variables
        .iter()
        .flat_map(|all| all.iter())
        .filter(|(name, value)| value.len() >= SHORT && ringfence_policy::names_a_secret(name))
        .map(|(_, value)| value.as_str())
        .collect();
    let mut room = MOST;
    let mut out = Vec::with_capacity(argv.len().min(MOST_WORDS));
    let mut next_is_secret = false;
    for word in argv {
        if out.len() == MOST_WORDS || room == 0 {
            out.push(format!("[{} more]", argv.len() - out.len()));
            break;
        }
        let hidden = if next_is_secret && !word.starts_with('-') {
            HIDDEN.to_owned()
        } else {
            without(word, &secrets)
        };
        next_is_secret = is_flag_of_a_secret(word);
        let cut = cut(hidden, room.min(MOST_WORD));
        room -= cut.len().min(room);
        out.push(cut);
    }
    out
}

fn cut(mut word: String, most: usize) -> String {
    if word.len() > most {
        let mut at = most;
        while !word.is_char_boundary(at) {
            at -= 1;
        }
        word.truncate(at);
        word.push_str("...");
    }
    word
}

/// `--password`, `--api-key`: what follows is one.
fn is_flag_of_a_secret(word: &str) -> bool {
    let Some(name) = word.strip_prefix("--") else { return false };
    !name.contains(['=', ' ', '/']) && names_one(name)
}

fn names_one(name: &str) -> bool {
    let name = name.trim_start_matches('-').replace('-', "_");
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && ringfence_policy::names_a_secret(&name)
}

fn without(word: &str, secrets: &[&str]) -> String {
    let mut text = word.to_owned();
    for secret in secrets {
        if text.contains(secret) {
            text = text.replace(secret, HIDDEN);
        }
    }
    // A whole script may be one word.
    let mut out = String::with_capacity(text.len());
    let mut is_secret = false;
    for piece in text.split_inclusive([' ', '\t', '\n', ';', '\'', '"', '&', '|', ',']) {
        let bare = piece.trim_end_matches([' ', '\t', '\n', ';', '\'', '"', '&', '|', ',']);
        let end = piece.get(bare.len()..).unwrap_or_default();
        if bare.is_empty() {
            out.push_str(end);
            continue;
        }
        if is_secret && !bare.starts_with('-') {
            // `Authorization: Bearer x`: the word before says of what kind it is.
            let scheme = matches!(bare.to_ascii_lowercase().as_str(), "bearer" | "basic" | "token");
            out.push_str(if scheme { bare } else { HIDDEN });
            is_secret = scheme;
        } else {
            let lower = bare.to_ascii_lowercase();
            is_secret = is_flag_of_a_secret(bare)
                || lower == "bearer"
                || bare
                    .strip_suffix(':')
                    .is_some_and(|name| lower == "authorization:" || names_one(name));
            out.push_str(&piece_without(bare));
        }
        out.push_str(end);
    }
    out
}

/// `NAME=value`, `https://user:password@host`, a token by its beginning.
fn piece_without(piece: &str) -> String {
    if let Some((name, value)) = piece.split_once('=')
        && !value.is_empty()
        && names_one(name)
    {
        return format!("{name}={HIDDEN}");
    }
    if let Some((scheme, rest)) = piece.split_once("://")
        && let Some((user, host)) = rest.split('/').next().and_then(|host| host.rsplit_once('@'))
    {
        let path = rest.get(user.len() + 1 + host.len()..).unwrap_or_default();
        let name = user.split(':').next().unwrap_or_default();
        let user = if user.contains(':') { format!("{name}:{HIDDEN}") } else { HIDDEN.into() };
        return format!("{scheme}://{user}@{host}{path}");
    }
    let value = piece.split_once('=').map_or(piece, |(_, value)| value);
    if value.len() >= 16 && TOKENS.iter().any(|token| value.starts_with(token)) {
        let name = piece.strip_suffix(value).unwrap_or_default();
        return format!("{name}{HIDDEN}");
    }
    piece.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(argv: &[&str]) -> Vec<String> {
        let variables = [
            ("API_TOKEN".to_owned(), "hunter2hunter2".to_owned()),
            ("HOME".into(), "/home/me".into()),
        ];
        let argv: Vec<String> = argv.iter().map(|&w| w.to_owned()).collect();
        shown(&argv, &[&variables.into()])
    }

    #[test]
    fn secrets_are_not_written_down() {
        for (argv, wanted) in [
            (&["curl", "-H", "X: hunter2hunter2"][..], &["curl", "-H", "X: ***"][..]),
            (&["login", "--password", "abc", "x"], &["login", "--password", "***", "x"]),
            (&["login", "--password=abc"], &["login", "--password=***"]),
            (&["login", "--api-key", "--verbose"], &["login", "--api-key", "--verbose"]),
            (&["env", "DB_PASSWORD=x", "make"], &["env", "DB_PASSWORD=***", "make"]),
            (&["sh", "-c", "export TOKEN=abc; make"], &["sh", "-c", "export TOKEN=***; make"]),
            (
                &["curl", "-H", "Authorization: Bearer abc.def"],
                &["curl", "-H", "Authorization: Bearer ***"],
            ),
            (
                &["git", "clone", "https://me:pw@example.com/a@b/c"],
                &["git", "clone", "https://me:***@example.com/a@b/c"],
            ),
            (&["x", "ghp_0123456789abcdef0123"], &["x", "***"]),
            (&["x", "--t=ghp_0123456789abcdef0123"], &["x", "--t=***"]),
        ] {
            assert_eq!(of(argv), wanted);
        }
    }

    #[test]
    fn all_else_is_as_it_was() {
        for argv in [
            &["make", "-j4", "test"][..],
            &["ls", "/home/me"],
            &["sh", "-c", "echo  'a  b'; cat x | grep y=1 && true\n"],
            &["git", "log", "--format=%h"],
            &["curl", "https://example.com/?a=b"],
            &["cargo", "build", "--keep-going"],
        ] {
            assert_eq!(of(argv), argv);
        }
    }

    #[test]
    fn what_is_long_is_cut() {
        let long = "ä".repeat(5000);
        let words = of(&["x", &long, &long, &long, &long, &long, &long]);
        assert!(words.iter().map(String::len).sum::<usize>() < MOST + 200, "{words:?}");
        let many: Vec<&str> = vec!["a"; 1000];
        let words = of(&many);
        assert_eq!((words.len(), words[MOST_WORDS].as_str()), (MOST_WORDS + 1, "[936 more]"));
    }
}
