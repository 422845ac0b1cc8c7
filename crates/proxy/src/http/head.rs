//! Heads of HTTP/1 messages, strictly.
//!
//! Whatever two parsers have ever read differently is refused: bare CR or LF, folded lines, space
//! before the colon, NUL and controls, more than one length, a length beside chunks, any transfer
//! coding but `chunked`. What passes is taken apart and written anew, never forwarded as it came.

use crate::hello::token;

/// Longest head, and most fields in it.
pub const LIMIT: usize = 64 * 1024;
pub const FIELDS: usize = 256;

const METHOD: usize = 32;

/// Why a head is refused. The text goes into records and answers.
pub type Problem = &'static str;

/// One field; the value without the space around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: Vec<u8>,
}

/// How long the body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    None,
    Bytes(u64),
    Chunked,
    /// Until the connection ends (responses only).
    Close,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// HTTP/1.0: neither chunks nor keep-alive.
    pub old: bool,
    pub fields: Vec<Field>,
    pub length: Length,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub reason: Vec<u8>,
    pub old: bool,
    pub fields: Vec<Field>,
    /// As the fields say; the method may know better.
    pub length: Length,
}

/// Everything up to and with the empty line, `None` if it has not arrived. Bytes that can never
/// become a head are refused as soon as they are seen.
fn whole(bytes: &[u8]) -> Result<Option<&[u8]>, Problem> {
    let mut line = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if at >= LIMIT {
            return Err("the head is too long");
        }
        match byte {
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => {
                return Err("a line that ends without a carriage return");
            }
            b'\n' if at - 1 == line => return Ok(Some(&bytes[..=at])),
            b'\n' => line = at + 1,
            _ if at > 0 && bytes[at - 1] == b'\r' => return Err("a bare carriage return"),
            b'\r' | b'\t' => {}
            0..=0x1f | 0x7f => return Err("a control byte in the head"),
            b' ' if at == line => return Err("a line that begins with a space"),
            _ => {}
        }
        if *byte == b'\t' && at == line {
            return Err("a line that begins with a space");
        }
    }
    Ok(None)
}

/// Reads a request head; with its length in bytes. `None`: more is needed.
pub fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>, Problem> {
    // RFC 9112, 2.2: an empty line before a request is left out.
    let skip = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let Some(head) = whole(&bytes[skip..])? else { return Ok(None) };
    let mut lines = lines(head);
    let mut parts = lines.next().unwrap_or_default().split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("the request line does not have three parts");
    };
    let method = word(method).filter(|m| m.len() <= METHOD).ok_or("the method is not a token")?;
    if target.is_empty() || !target.iter().all(|b| b.is_ascii_graphic() && *b != b'#') {
        return Err("the request target holds bytes that it must not");
    }
    let old = old(version).ok_or("not HTTP/1.1 or HTTP/1.0")?;
    let fields = fields(lines)?;
    let length = match length(&fields, old)? {
        Length::Close => Length::None,
        length => length,
    };
    let target = String::from_utf8_lossy(target).into_owned();
    Ok(Some((Request { method, target, old, fields, length }, skip + head.len())))
}

/// Reads a response head.
pub fn response(bytes: &[u8]) -> Result<Option<(Response, usize)>, Problem> {
    let Some(head) = whole(bytes)? else { return Ok(None) };
    let mut lines = lines(head);
    let line = lines.next().unwrap_or_default();
    let (version, rest) = line.split_at_checked(8).ok_or("not an HTTP status line")?;
    let old = old(version).ok_or("not HTTP/1.1 or HTTP/1.0")?;
    let (status, reason) = match rest {
        [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..] => {
            let digit = |d: &u8| u16::from(*d - b'0');
            (digit(a) * 100 + digit(b) * 10 + digit(c), reason)
        }
        _ => return Err("not an HTTP status line"),
    };
    let reason = match reason {
        [] => &[],
        [b' ', reason @ ..] => reason,
        _ => return Err("not an HTTP status line"),
    };
    let fields = fields(lines)?;
    let length = length(&fields, old)?;
    Ok(Some((Response { status, reason: reason.to_vec(), old, fields, length }, head.len())))
}

/// Lines of a head without the empty one at its end.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let body = head.strip_suffix(b"\r\n").unwrap_or(head);
    let body = body.strip_suffix(b"\r\n").unwrap_or(body);
    // `whole` let no CR or LF stand alone.
    body.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

fn word(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty() && bytes.iter().all(|b| token(*b)))
        .then(|| String::from_utf8_lossy(bytes).into_owned())
}

fn old(version: &[u8]) -> Option<bool> {
    match version {
        b"HTTP/1.1" => Some(false),
        b"HTTP/1.0" => Some(true),
        _ => None,
    }
}

/// Fields of a head, or of trailers.
pub fn fields<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Field>, Problem> {
    let mut fields = Vec::new();
    for line in lines {
        if fields.len() == FIELDS {
            return Err("too many fields");
        }
        let colon = line.iter().position(|b| *b == b':').ok_or("a field without a colon")?;
        let name = word(&line[..colon]).ok_or("a field name that is not a token")?;
        fields.push(Field { name, value: trim(&line[colon + 1..]).to_vec() });
    }
    Ok(fields)
}

/// Trailers: everything up to the empty line, which may be all there is.
pub fn trailers(bytes: &[u8]) -> Result<Option<(Vec<Field>, usize)>, Problem> {
    if bytes.starts_with(b"\r\n") {
        return Ok(Some((Vec::new(), 2)));
    }
    let Some(head) = whole(bytes)? else { return Ok(None) };
    let fields = fields(lines(head))?;
    if fields.iter().any(|f| FRAMING.iter().any(|n| f.is(n))) {
        return Err("a trailer that changes how the message is read");
    }
    Ok(Some((fields, head.len())))
}

/// Fields that say where a message goes or ends.
const FRAMING: [&str; 6] =
    ["host", "content-length", "transfer-encoding", "connection", "upgrade", "trailer"];

fn trim(value: &[u8]) -> &[u8] {
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let start = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !blank(b)).map_or(start, |at| at + 1);
    &value[start..end]
}

/// RFC 9112, 6.3, without any of its mercy.
fn length(fields: &[Field], old: bool) -> Result<Length, Problem> {
    let mut lengths = all(fields, "content-length");
    let mut codings = all(fields, "transfer-encoding");
    let (length, coding) = (lengths.next(), codings.next());
    if lengths.next().is_some() {
        return Err("more than one content-length");
    }
    if codings.next().is_some() {
        return Err("more than one transfer-encoding");
    }
    match (length, coding) {
        (Some(_), Some(_)) => Err("both content-length and transfer-encoding"),
        (None, Some(_)) if old => Err("transfer-encoding in HTTP/1.0"),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Length::Chunked),
        (None, Some(_)) => Err("a transfer-encoding other than chunked"),
        (Some(digits), None) => {
            let number =
                (!digits.is_empty() && digits.len() <= 19 && digits.iter().all(u8::is_ascii_digit))
                    .then(|| digits.iter().fold(0, |n: u64, d| n * 10 + u64::from(d - b'0')));
            number.map(Length::Bytes).ok_or("a content-length that is not a number")
        }
        (None, None) => Ok(Length::Close),
    }
}

impl Field {
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// The values of all fields of this name.
pub fn all<'a>(fields: &'a [Field], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |f| f.is(name)).map(|f| &f.value[..])
}

/// The members of a comma-separated field, of all its lines.
pub fn list<'a>(fields: &'a [Field], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    all(fields, name).flat_map(|v| v.split(|b| *b == b',')).map(trim).filter(|v| !v.is_empty())
}

pub fn lists(fields: &[Field], name: &str, member: &str) -> bool {
    list(fields, name).any(|m| m.eq_ignore_ascii_case(member.as_bytes()))
}

/// Fields that concern one connection only.
const HOP: [&str; 11] = [
    "connection",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "keep-alive",
    "te",
    "transfer-encoding",
    "content-length",
    "upgrade",
    "http2-settings",
    "host",
];

/// Fields that `Connection` must not take away: a server behind would read the message differently.
const ESSENTIAL: [&str; 7] = [
    "host",
    "content-length",
    "transfer-encoding",
    "content-type",
    "content-encoding",
    "expect",
    "range",
];

/// Appends what goes on to the next hop; the lengths, the host and the upgrade are written by the
/// caller.
pub fn forward(fields: &[Field], out: &mut Vec<u8>) -> Result<(), Problem> {
    let named: Vec<&[u8]> = list(fields, "connection").collect();
    if named.iter().any(|n| ESSENTIAL.iter().any(|e| n.eq_ignore_ascii_case(e.as_bytes()))) {
        return Err("connection names a field that belongs to the message");
    }
    for field in fields {
        let hop = HOP.iter().any(|h| field.is(h))
            || named.iter().any(|n| n.eq_ignore_ascii_case(field.name.as_bytes()));
        if !hop {
            put(out, &field.name, &field.value);
        }
    }
    Ok(())
}

pub fn put(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ok(text: &[u8]) -> Request {
        let (head, length) = request(text).unwrap().unwrap();
        assert_eq!(length, text.len());
        head
    }

    #[test]
    fn a_request_is_taken_apart() {
        let head =
            ok(b"POST http://a.example/x?y=1 HTTP/1.1\r\nHost:a.example \r\nX:\t\xff b\t\r\n\
            E:\r\nContent-Length: 12\r\n\r\n");
        assert_eq!(head.method, "POST");
        assert_eq!(head.target, "http://a.example/x?y=1");
        assert_eq!(head.length, Length::Bytes(12));
        let host = Field { name: "Host".into(), value: b"a.example".to_vec() };
        assert_eq!(head.fields[0], host);
        assert_eq!(head.fields[1].value, b"\xff b");
        assert_eq!(head.fields[2].value, b"");
    }

    /// What request smuggling is made of, each refused for its own reason.
    #[test]
    fn smuggling_is_refused() {
        let table: &[(&[u8], &str)] = &[
            (b"GET / HTTP/1.1\nHost: a\n\n", "carriage return"),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n", "carriage return"),
            (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", "bare carriage"),
            (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", "bare carriage"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n", "begins with a space"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\tX: b\r\n\r\n", "begins with a space"),
            (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "begins with a space"),
            (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "begins with a space"),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "field name"),
            (b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", "field name"),
            (b"GET / HTTP/1.1\r\n: a\r\n\r\n", "field name"),
            (b"GET / HTTP/1.1\r\nHo\xc3\xb6st: a\r\n\r\n", "field name"),
            (b"GET / HTTP/1.1\r\nHost\r\n\r\n", "without a colon"),
            (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", "control"),
            (b"GET / HTTP/1.1\r\nHost: a\x0bb\r\n\r\n", "control"),
            (b"GET / HTTP/1.1\r\nHost: a\x7f\r\n\r\n", "control"),
            (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", "control"),
            (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
            (b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
            (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "three parts"),
            (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "three parts"),
            (b"GET / x HTTP/1.1\r\nHost: a\r\n\r\n", "three parts"),
            (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "three parts"),
            (b"GET /\r\n\r\n", "three parts"),
            (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", "not HTTP/1.1"),
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "not HTTP/1.1"),
            (b"GET / http/1.1\r\nHost: a\r\n\r\n", "not HTTP/1.1"),
            (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", "not HTTP/1.1"),
            (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "method"),
            (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "three parts"),
            (b"P / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "more than one c"),
            (b"P / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n", "more than one c"),
            (b"P / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", "not a number"),
            (b"P / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "not a number"),
            (b"P / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "not a number"),
            (b"P / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n", "not a number"),
            (b"P / HTTP/1.1\r\nContent-Length: 1 2\r\n\r\n", "not a number"),
            (b"P / HTTP/1.1\r\nContent-Length:\r\n\r\n", "not a number"),
            (b"P / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", "not a number"),
            (b"P / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "both"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", "both"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "other than chunked"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", "other than chunked"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", "other than chunked"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", "other than chunked"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", "other than chunked"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", "other than chunked"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n", "other than chunked"),
            (
                b"P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
                "more than one t",
            ),
            (b"P / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n", "field name"),
            (b"P / HTTP/1.1\r\nTransfer-Encoding\0: chunked\r\n\r\n", "control"),
            (b"P / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0"),
        ];
        for (text, why) in table {
            let shown = String::from_utf8_lossy(text);
            let problem = request(text).expect_err(&shown);
            assert!(problem.contains(why), "{shown:?}: {problem}");
        }
        let long = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; LIMIT]].concat();
        assert_eq!(request(&long), Err("the head is too long"));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS + 1));
        assert_eq!(request(many.as_bytes()), Err("too many fields"));
    }

    #[test]
    fn responses() {
        let (head, _) = response(b"HTTP/1.1 200 OK fine\r\nA: b\r\n\r\nrest").unwrap().unwrap();
        assert_eq!(
            (head.status, &head.reason[..], head.length),
            (200, &b"OK fine"[..], Length::Close)
        );
        assert_eq!(response(b"HTTP/1.0 304\r\n\r\n").unwrap().unwrap().0.status, 304);
        for bad in [
            &b"HTTP/1.1 20 OK\r\n\r\n"[..],
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"ICY 200 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(response(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn what_concerns_one_hop_stays() {
        let head = ok(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\
            Keep-Alive: 5\r\nProxy-Authorization: x\r\nTE: trailers\r\nAccept: b\r\n\r\n");
        let mut out = Vec::new();
        forward(&head.fields, &mut out).unwrap();
        assert_eq!(out, b"Accept: b\r\n");
        let head = ok(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: content-LENGTH\r\n\r\n");
        assert!(forward(&head.fields, &mut out).is_err());
    }

    #[test]
    fn trailers_do_not_frame() {
        assert_eq!(trailers(b"\r\nrest"), Ok(Some((vec![], 2))));
        assert_eq!(trailers(b"\r"), Ok(None));
        assert_eq!(trailers(b"A: b\r\n\r\n").unwrap().unwrap().1, 8);
        assert!(trailers(b"Content-Length: 3\r\n\r\n").is_err());
        assert!(trailers(b" a: b\r\n\r\n").is_err());
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => Just(b"GET".to_vec()),
            4 => Just(b" ".to_vec()),
            4 => Just(b"/path?q={x}|".to_vec()),
            2 => Just(b"http://a.example:80/".to_vec()),
            4 => Just(b" HTTP/1.1\r\n".to_vec()),
            6 => Just(b"\r\n".to_vec()),
            4 => Just(b"Host: a.example\r\n".to_vec()),
            2 => Just(b"X-Y:z\r\n".to_vec()),
            1 => Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
            1 => Just(b"Content-Length: 5\r\n".to_vec()),
            1 => Just(b"\n".to_vec()),
            2 => prop::collection::vec(any::<u8>(), 0..4),
        ]
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let free = prop::collection::vec(piece(), 0..10).prop_map(|p| p.concat());
        let framed = (prop::collection::vec(piece(), 0..2), prop::collection::vec(piece(), 0..8))
            .prop_map(|(target, fields)| {
                [
                    b"GET /".to_vec(),
                    target.concat(),
                    b" HTTP/1.1\r\n".to_vec(),
                    fields.concat(),
                    b"\r\n".to_vec(),
                ]
                .concat()
            });
        prop_oneof![free, framed]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// What passes here is the same request for the parser of hyper.
        #[test]
        fn what_is_accepted_httparse_reads_alike(text in text()) {
            if let Ok(Some((mine, length))) = request(&text) {
                let mut room = [httparse::EMPTY_HEADER; FIELDS];
                let mut theirs = httparse::Request::new(&mut room);
                let parsed = theirs.parse(&text).unwrap();
                prop_assert_eq!(parsed, httparse::Status::Complete(length));
                prop_assert_eq!(theirs.method, Some(&mine.method[..]));
                prop_assert_eq!(theirs.path, Some(&mine.target[..]));
                prop_assert_eq!(theirs.version, Some(u8::from(!mine.old)));
                prop_assert_eq!(theirs.headers.len(), mine.fields.len());
                for (a, b) in theirs.headers.iter().zip(&mine.fields) {
                    prop_assert_eq!(a.name, &b.name);
                    prop_assert_eq!(a.value, &b.value[..]);
                }
            }
        }

        /// Once decided, decided.
        #[test]
        fn an_answer_never_changes(text in text()) {
            let mut answer = Ok(None);
            for cut in 0..=text.len() {
                let now = request(&text[..cut]);
                if answer == Ok(None) {
                    answer = now;
                } else {
                    prop_assert_eq!(&answer, &now);
                }
            }
        }
    }
}
