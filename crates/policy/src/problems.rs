//! Every problem of a file at once, for `ringfence policy check`: after each problem the part that
//! caused it is taken out and the rest is read again.

use crate::node::{self, Format, Member, Node, Value};
use crate::{PolicyError, import};

/// More problems than a person reads; a file from a stranger must not cost quadratic time.
const MOST: usize = 64;

/// All that is wrong with a policy file of any dialect; empty for a good one. The first is what
/// [`import::load`] answers.
pub fn problems(name: &str, bytes: &[u8]) -> Vec<PolicyError> {
    let mut node = match node::parse(name, bytes, Format::of(name)) {
        Ok(node) => node,
        // Without syntax there is no rest to read.
        Err(e) => return vec![e],
    };
    // Taking keys out must not change whose schema the file is read by.
    let dialect = import::dialect(name, &node);
    let mut found: Vec<PolicyError> = Vec::new();
    while found.len() < MOST {
        let Err(problem) = import::read(name, &node, dialect) else { break };
        let removed = match &problem {
            PolicyError::UnknownKey { key, .. } => remove(&mut node, key, None),
            PolicyError::Invalid { at, key, message } => {
                let key = whole(key);
                // One line may hold many entries, of which the message quotes the bad one.
                remove_quoted(&mut node, key, at.line, message) || remove(&mut node, key, at.line)
            }
            PolicyError::UnknownRule { at, .. } => remove(&mut node, "lift", at.line),
            PolicyError::UnknownProfile { at, .. } => remove(&mut node, "extends", at.line),
            PolicyError::NotYet { keys } => {
                // Each of them, not only the first.
                let gone = keys.iter().filter(|k| remove(&mut node, &k.key, None)).count();
                gone > 0
            }
            _ => false,
        };
        if found.last() == Some(&problem) {
            break;
        }
        found.push(problem);
        if !removed {
            break;
        }
    }
    found
}

/// A secret without one of its keys would be a problem that nobody wrote.
fn whole(key: &str) -> &str {
    const SECRETS: &str = "network.secrets.";
    match key.strip_prefix(SECRETS).and_then(|rest| rest.find('.')) {
        Some(at) => &key[..SECRETS.len() + at],
        None => key,
    }
}

/// Takes out the one element of that line which `message` begins with.
fn remove_quoted(node: &mut Node, key: &str, line: Option<u32>, message: &str) -> bool {
    let mut here = node;
    for part in key.split('.') {
        let Value::Table(members) = &mut here.value else { return false };
        let spelled = |m: &&mut Member| m.key == part || m.key == node::camel(part);
        let Some(member) = members.iter_mut().find(spelled) else { return false };
        here = &mut member.node;
    }
    let Value::List(list) = &mut here.value else { return false };
    let quoted = |n: &Node| match &n.value {
        Value::Str(text) => n.line == line && message.starts_with(&format!("{text:?}")),
        _ => false,
    };
    let Some(at) = list.iter().position(quoted) else { return false };
    list.remove(at);
    true
}

/// Takes out what `key` names; of a list only the elements of that line, where it says so.
fn remove(node: &mut Node, key: &str, line: Option<u32>) -> bool {
    let (first, rest) = match key.find(['.', '[']) {
        Some(at) if key[at..].starts_with('.') => (&key[..at], &key[at + 1..]),
        Some(at) if at > 0 => (&key[..at], &key[at..]),
        _ => (key, ""),
    };
    match &mut node.value {
        Value::Table(members) => {
            let spelled = |m: &Member| m.key == first || m.key == node::camel(first);
            let Some(at) = members.iter().position(spelled) else { return false };
            if !rest.is_empty() && remove(&mut members[at].node, rest, line) {
                return true;
            }
            if rest.is_empty()
                && let Value::List(list) = &mut members[at].node.value
                && line.is_some()
            {
                let before = list.len();
                list.retain(|n| n.line != line);
                if list.len() < before {
                    return true;
                }
            }
            // A key that itself holds a dot, or a part that is not found: the whole goes.
            members.remove(at);
            true
        }
        Value::List(list) => {
            let index = key
                .strip_prefix('[')
                .and_then(|k| k.split_once(']'))
                .and_then(|(i, rest)| Some((i.parse::<usize>().ok()?, rest)));
            match index {
                Some((i, rest)) if i < list.len() => {
                    let rest = rest.strip_prefix('.').unwrap_or(rest);
                    if rest.is_empty() || !remove(&mut list[i], rest, line) {
                        list.remove(i);
                    }
                    true
                }
                _ => {
                    let before = list.len();
                    list.retain(|n| line.is_none() || n.line != line);
                    list.len() < before
                }
            }
        }
        _ => false,
    }
}
