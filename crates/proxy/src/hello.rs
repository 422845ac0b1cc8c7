//! What are the client's first bytes? TLS, HTTP/1 or something else.
//!
//! Pure and incremental: the answer for some bytes never changes when more follow, however they were
//! cut. It has to recognise what a *lenient* server would take for TLS or HTTP, because whatever is
//! called opaque here reaches the server without another look; but nothing lenient passes: what is
//! recognised is then parsed strictly.

/// What they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// Not decidable yet. Never for [`LIMIT`] bytes or more.
    More,
    /// A whole TLS client hello.
    Tls {
        /// The host name of the server name extension, as sent.
        server_name: Option<Vec<u8>>,
        /// There is an encrypted client hello beside it. Browsers send a meaningless one (GREASE) that
        /// cannot be told from a real one; with a real one `server_name` is only the public name.
        encrypted: bool,
    },
    /// An HTTP/1 request, or what some servers would take for one.
    Http,
    /// Nothing that is looked into: ssh, databases, mail.
    Opaque,
    /// Refused; the text says why.
    Malformed(&'static str),
}

/// Most bytes that are looked at: no client hello and no request line needs more.
pub const LIMIT: usize = 64 * 1024;

/// Longest request method, and longest first line of text that is waited for.
const METHOD: usize = 64;
const LINE: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
/// Encrypted client hello, its drafts, and the encrypted server name before them.
const ENCRYPTED: [u16; 7] = [0xfe0d, 0xfe0c, 0xfe0b, 0xfe0a, 0xfe09, 0xfe08, 0xffce];

/// Methods that are an HTTP request even when no version follows.
const METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// A fatal `access_denied` alert, for a client that speaks TLS.
pub const fn alert() -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, 49]
}

/// What `bytes`, everything that the client has sent so far, are.
pub fn read(bytes: &[u8]) -> First {
    let seen = &bytes[..bytes.len().min(LIMIT)];
    let first = match seen.first() {
        None => return First::More,
        Some(20..=23) => tls(seen),
        Some(0x80..) => sslv2(seen),
        Some(_) => text(seen),
    };
    match first {
        First::More if bytes.len() >= LIMIT => First::Malformed("the first message is too long"),
        first => first,
    }
}

/// A record layer begins like no other protocol: content type, then major version 3.
fn tls(bytes: &[u8]) -> First {
    match bytes.get(1) {
        None => return First::More,
        Some(3) => {}
        Some(_) => return First::Opaque,
    }
    let mut hello = Vec::new();
    let mut rest = bytes;
    loop {
        match rest.first() {
            None => return First::More,
            Some(&HANDSHAKE) => {}
            Some(_) => return First::Malformed("a tls record before or within the client hello"),
        }
        match rest.get(1) {
            None => return First::More,
            Some(3) => {}
            Some(_) => return First::Malformed("a tls record of another version"),
        }
        let Some(length) = rest.get(3..5) else { return First::More };
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length == 0 || length > 1 << 14 {
            return First::Malformed("a tls record of impossible length");
        }
        let record = &rest[5..rest.len().min(5 + length)];
        hello.extend_from_slice(record);
        if hello.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return First::Malformed("tls that does not begin with a client hello");
        }
        if let Some(size) = hello.get(1..4) {
            let size = 4 + u32::from_be_bytes([0, size[0], size[1], size[2]]) as usize;
            if size > LIMIT {
                return First::Malformed("the client hello is too long");
            }
            // What is announced decides, whether it has arrived or not.
            let announced = hello.len() - record.len() + length;
            if announced > size {
                return First::Malformed("more than the client hello in its record");
            }
            if hello.len() == size {
                return client_hello(&hello[4..])
                    .unwrap_or(First::Malformed("the client hello is not well-formed"));
            }
        }
        if record.len() < length {
            return First::More;
        }
        rest = &rest[5 + length..];
    }
}

/// Takes apart what must be exactly as long as it says.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// A vector with a length of one byte, or of two.
    fn short(&mut self) -> Option<&'a [u8]> {
        let n = self.u8()?;
        self.take(n.into())
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(n.into())
    }
}

fn client_hello(body: &[u8]) -> Option<First> {
    let mut body = Cursor(body);
    if body.u16()? >> 8 != 3 {
        return None;
    }
    body.take(32)?;
    let session = body.short()?;
    let suites = body.long()?;
    let compression = body.short()?;
    if session.len() > 32
        || suites.is_empty()
        || !suites.len().is_multiple_of(2)
        || compression.is_empty()
    {
        return None;
    }
    let mut server_name = None;
    let mut encrypted = false;
    if body.0.is_empty() {
        return Some(First::Tls { server_name, encrypted });
    }
    let mut extensions = Cursor(body.long()?);
    if !body.0.is_empty() {
        return None;
    }
    let mut seen = Vec::new();
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let value = extensions.long()?;
        seen.push(kind);
        if kind == SERVER_NAME {
            server_name = Some(host_name(value)?.to_vec());
        }
        encrypted |= ENCRYPTED.contains(&kind);
    }
    // Two of one kind: which one the server heeds is anybody's guess.
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() != all {
        return Some(First::Malformed("a tls extension appears twice"));
    }
    Some(First::Tls { server_name, encrypted })
}

/// One entry of the kind `host_name`, and nothing else.
fn host_name(value: &[u8]) -> Option<&[u8]> {
    let mut value = Cursor(value);
    let mut list = Cursor(value.long()?);
    let kind = list.u8()?;
    let name = list.long()?;
    (kind == 0 && !name.is_empty() && list.0.is_empty() && value.0.is_empty()).then_some(name)
}

/// The hello of SSL 2, which could announce TLS and has no server name.
fn sslv2(bytes: &[u8]) -> First {
    match bytes {
        [_, _, CLIENT_HELLO, 0, 2, ..] | [_, _, CLIENT_HELLO, 3, 0..=4, ..] => {
            First::Malformed("an ssl 2 client hello")
        }
        [_] | [_, _] | [_, _, CLIENT_HELLO] | [_, _, CLIENT_HELLO, 0 | 3] => First::More,
        _ => First::Opaque,
    }
}

/// Space as the most lenient servers see it.
const fn space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// Bytes of a method.
pub(crate) const fn token(byte: u8) -> bool {
    matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'z' | b'|' | b'~'
        | b'0'..=b'9' | b'A'..=b'Z')
}

/// `METHOD target HTTP/1.1` with any space, or a well-known method and a space.
fn text(bytes: &[u8]) -> First {
    let Some(start) = bytes.iter().position(|b| !space(*b)) else { return First::More };
    let line = &bytes[start..];
    let Some(end) = line.iter().position(|b| !token(*b)) else {
        return if line.len() > METHOD { First::Opaque } else { First::More };
    };
    let method = &line[..end];
    if end > METHOD || end == 0 || !space(line[end]) || line[end] == b'\n' {
        return First::Opaque;
    }
    if METHODS.contains(&method) && line[end] != b'\r' {
        return First::Http;
    }
    for (at, byte) in line.iter().enumerate().skip(end) {
        if at >= LINE {
            return First::Malformed("the first line is too long");
        }
        match byte {
            b'\n' => return whole_line(method, &line[..at]),
            b if space(*b) => {}
            // No request line, for nobody.
            0..=0x1f | 0x7f => return First::Opaque,
            _ => {}
        }
    }
    First::More
}

fn whole_line(method: &[u8], line: &[u8]) -> First {
    let http = line.windows(6).any(|w| space(w[0]) && w[1..].eq_ignore_ascii_case(b"HTTP/"));
    match (http, method) {
        // Frames with names of their own follow.
        (true, b"PRI") => First::Malformed("http/2 without tls"),
        (true, _) => First::Http,
        (false, _) => First::Opaque,
    }
}

/// Well-formed hellos for tests and for the seeds of the fuzzer.
#[cfg(any(test, feature = "fuzzing", feature = "bench"))]
pub mod samples {
    /// A record layer around `body` in pieces of `most` bytes.
    pub fn records(body: &[u8], most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in body.chunks(most) {
            out.extend([22, 3, 1]);
            out.extend((piece.len() as u16).to_be_bytes());
            out.extend(piece);
        }
        out
    }

    pub fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = kind.to_be_bytes().to_vec();
        out.extend((value.len() as u16).to_be_bytes());
        out.extend(value);
        out
    }

    pub fn server_name(names: &[(u8, &[u8])]) -> Vec<u8> {
        let mut list = Vec::new();
        for (kind, name) in names {
            list.push(*kind);
            list.extend((name.len() as u16).to_be_bytes());
            list.extend(*name);
        }
        let mut value = (list.len() as u16).to_be_bytes().to_vec();
        value.extend(list);
        extension(0, &value)
    }

    /// The handshake message with these extensions; `None`: not even an empty list.
    pub fn hello(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(32);
        body.extend([9; 32]);
        body.extend([0, 4, 0x13, 1, 0x13, 2, 1, 0]);
        if let Some(extensions) = extensions {
            let all = extensions.concat();
            body.extend((all.len() as u16).to_be_bytes());
            body.extend(all);
        }
        let mut out = vec![1];
        out.extend(&(body.len() as u32).to_be_bytes()[1..]);
        out.extend(body);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{extension, hello, records, server_name};
    use super::*;

    fn named(name: &[u8]) -> First {
        First::Tls { server_name: Some(name.to_vec()), encrypted: false }
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        server_name(&[(0, name)])
    }

    fn of(extensions: &[Vec<u8>]) -> First {
        read(&records(&hello(Some(extensions)), 1 << 14))
    }

    const ILL: First = First::Malformed("the client hello is not well-formed");

    #[test]
    fn a_hello_is_read_whole() {
        assert_eq!(of(&[extension(43, b"\x02\x03\x04"), sni(b"a.example")]), named(b"a.example"));
        assert_eq!(of(&[]), First::Tls { server_name: None, encrypted: false });
        assert_eq!(
            read(&records(&hello(None), 99)),
            First::Tls { server_name: None, encrypted: false }
        );
    }

    #[test]
    fn fragments_are_put_together_even_of_one_byte() {
        let message = hello(Some(&[extension(21, &[0; 3000]), sni(b"a.example")]));
        for most in [1, 2, 3, 5, 100, 1000] {
            assert_eq!(read(&records(&message, most)), named(b"a.example"), "{most}");
        }
    }

    #[test]
    fn both_facts_of_an_encrypted_hello_are_told() {
        for kind in ENCRYPTED {
            assert_eq!(
                of(&[extension(kind, &[0; 40]), sni(b"public.example")]),
                First::Tls { server_name: Some(b"public.example".to_vec()), encrypted: true }
            );
            assert_eq!(
                of(&[extension(kind, &[])]),
                First::Tls { server_name: None, encrypted: true }
            );
        }
    }

    #[test]
    fn ambiguous_server_names_are_refused() {
        assert_eq!(of(&[server_name(&[(0, b"a.example"), (0, b"b.example")])]), ILL);
        assert_eq!(of(&[server_name(&[(1, b"a.example")])]), ILL);
        assert_eq!(of(&[server_name(&[(0, b"")])]), ILL);
        assert_eq!(of(&[server_name(&[])]), ILL);
        assert_eq!(of(&[extension(0, b"")]), ILL);
        assert_eq!(of(&[extension(0, b"\0\x05\0\0\x01ax")]), ILL);
        assert_eq!(
            of(&[sni(b"a.example"), sni(b"b.example")]),
            First::Malformed("a tls extension appears twice")
        );
        assert_eq!(
            of(&[extension(43, b""), sni(b"a.example"), extension(43, b"")]),
            First::Malformed("a tls extension appears twice")
        );
    }

    #[test]
    fn lengths_must_agree() {
        let good = hello(Some(&[sni(b"a.example")]));
        // Each length field one more or one less than the truth.
        for (at, what) in [
            (3, "message"),
            (38, "session"),
            (72, "suites"),
            (77, "compression"),
            (80, "extensions"),
            (84, "extension"),
            (86, "list"),
            (89, "name"),
        ] {
            for by in [1_u8, 255] {
                let mut bad = good.clone();
                bad[at] = bad[at].wrapping_add(by);
                let answer = read(&records(&bad, 1 << 14));
                let ok = matches!(answer, First::Malformed(_)) || what == "message" && by == 1;
                assert!(ok, "{what} {by}: {answer:?}");
            }
        }
        let mut longer = good;
        longer.push(0);
        assert!(matches!(read(&records(&longer, 1 << 14)), First::Malformed(_)));
    }

    #[test]
    fn records_that_no_client_begins_with_are_refused() {
        for bytes in [
            &b"\x14\x03\x01\0\x01\x01\x16\x03\x01"[..],
            b"\x15\x03\x01\0\x02\x01\0",
            b"\x17\x03\x03\0\x05",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\x40\x01",
            b"\x16\x03\x01\0\x05\x02",
            b"\x16\x03\x01\0\x05\x01\x01\0\0",
            b"\x16\x03\x01\0\x01\x01\x16\x02",
            b"\x16\x03\x01\0\x01\x01\x17",
            b"\x80\x2e\x01\x03\x01",
            b"\x80\x2e\x01\0\x02",
        ] {
            assert!(matches!(read(bytes), First::Malformed(_)), "{bytes:x?}: {:?}", read(bytes));
        }
    }

    #[test]
    fn nothing_waits_for_ever() {
        assert!(matches!(read(&vec![b' '; LIMIT]), First::Malformed(_)));
        assert!(matches!(read(&[b"x".repeat(3), vec![b' '; LIMIT]].concat()), First::Malformed(_)));
        let mut message = hello(Some(&[]));
        message[1] = 0;
        message[2] = 0xff;
        message.resize(4 + 0xffff, 0);
        assert!(matches!(read(&records(&message, 1)), First::Malformed(_)));
        assert_eq!(read(&[b'a'; METHOD + 1]), First::Opaque);
    }

    #[test]
    fn http_as_lenient_servers_take_it() {
        for text in [
            &b"GET "[..],
            b"CONNECT x",
            b"\r\nGET / HTTP/1.1",
            b" \t\nPOST /",
            b"GET\t/",
            b"get / http/1.1\r\n",
            b"FOO /x HTTP/1.1\n",
            b"BREW\x0b/x\x0cHTTP/9\r\n",
            b"FOO \xff HTTP/1.0\n",
        ] {
            assert_eq!(read(text), First::Http, "{:?}", String::from_utf8_lossy(text));
        }
        assert_eq!(
            read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            First::Malformed("http/2 without tls")
        );
    }

    #[test]
    fn other_protocols_are_opaque() {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9.6p1 Ubuntu-3\r\n"[..],
            b"SSH-2.0-Go\r\n",
            b"EHLO me.example\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"get key\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"\x16\0\0\x01",
            b"\x05\x01\0",
            b"\x80\0\0",
            b"\xff\xff\xff\xff",
            b"\x80\x2e\x01\x07",
            b"(x",
            b"hello \x01",
        ] {
            assert_eq!(read(bytes), First::Opaque, "{:?}", String::from_utf8_lossy(bytes));
        }
        for bytes in [&b""[..], b"SSH", b"GET", b"get ", b"FOO bar", b"\x16", b"\x80", b"\r\n"] {
            assert_eq!(read(bytes), First::More, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(
            prop_oneof![prop::char::range('a', 'z').prop_map(|c| c as u8), any::<u8>()],
            1..80,
        )
    }

    fn extensions() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let other = prop::collection::btree_map(
            1_u16..=0xffff,
            prop::collection::vec(any::<u8>(), 0..60),
            0..12,
        );
        other.prop_map(|m| m.into_iter().map(|(k, v)| extension(k, &v)).collect())
    }

    /// What looks like something, broken.
    fn broken() -> impl Strategy<Value = Vec<u8>> {
        let start = prop_oneof![
            Just(records(&hello(Some(&[sni(b"a.example"), extension(0xfe0d, b"x")])), 40)),
            Just(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
            Just(b" FOO x HTTP/1.0\n".to_vec()),
            Just(b"\x80\x2e\x01\x03\x01".to_vec()),
            Just(Vec::new()),
        ];
        (
            start,
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            prop::collection::vec(any::<u8>(), 0..40),
        )
            .prop_map(|(mut bytes, changes, tail)| {
                for (at, byte) in changes {
                    if !bytes.is_empty() {
                        let at = at.index(bytes.len());
                        bytes[at] = byte;
                    }
                }
                bytes.extend(tail);
                bytes
            })
    }

    proptest! {
        /// A hello says the same however it is cut into records, and nothing before it is whole.
        #[test]
        fn a_valid_hello_is_undecided_until_it_is_whole(
            name in name(), mut rest in extensions(), at in any::<prop::sample::Index>(),
            most in 1_usize..700,
        ) {
            let encrypted =
                rest.iter().any(|e| ENCRYPTED.contains(&u16::from_be_bytes([e[0], e[1]])));
            rest.insert(at.index(rest.len() + 1), sni(&name));
            let bytes = records(&hello(Some(&rest)), most);
            for cut in 0..bytes.len() {
                prop_assert_eq!(read(&bytes[..cut]), First::More);
            }
            prop_assert_eq!(read(&bytes), First::Tls { server_name: Some(name), encrypted });
        }

        /// Once decided, decided; and no bytes at all make it panic.
        #[test]
        fn an_answer_never_changes(bytes in broken()) {
            let mut answer = First::More;
            for cut in 0..=bytes.len() {
                let now = read(&bytes[..cut]);
                if answer == First::More {
                    answer = now;
                } else {
                    prop_assert_eq!(&answer, &now, "at {}", cut);
                }
            }
        }
    }
}
