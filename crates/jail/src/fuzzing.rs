//! What the fuzzer calls (`fuzz/`): what init is asked, with the laws that hold for what is taken. A broken
//! law panics. Not in a release.

use ringfence_sys::raw::Usage;
use ringfence_sys::starter::{self, Counts};

use crate::resident::{HEAD, Head, kind, path};

/// One message, as it comes by the channel.
pub fn resident(message: &[u8]) {
    let Some(head) = Head::decode(message) else {
        assert!(message.len() < HEAD);
        return;
    };
    assert_eq!(Head::decode(&head.encode()), Some(head));
    let strings = message.get(HEAD..).unwrap_or_default();
    starter::is_taken(strings, head.counts);
    if let Ok((first, rest)) = path(strings) {
        assert!(first.to_bytes().starts_with(b"/"));
        assert_eq!(first.to_bytes_with_nul().len() + rest.len(), strings.len());
        let _ = path(rest);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let message = |head: Head, strings: &[u8]| [&head.encode()[..], strings].concat();
    let counts = Counts { candidates: 1, arguments: 2, variables: 1 };
    let usage = Usage { user_us: 1, system_us: 2, peak_kib: 3 };
    vec![
        message(
            Head { kind: kind::EXEC, token: 1, counts, ..Head::default() },
            b"/w\0/bin/sh\0sh\0-c\0A=1\0",
        ),
        message(Head { kind: kind::RENAME, token: 2, ..Head::default() }, b"/w/a\0/w/b\0"),
        message(Head { kind: kind::OPEN, token: 3, extra: 0o644, ..Head::default() }, b"/w/a\0"),
        message(Head { kind: kind::ENDED, token: 4, usage, ..Head::default() }, b""),
    ]
}
