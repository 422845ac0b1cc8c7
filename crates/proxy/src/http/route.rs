//! Whose request is it? The host that is judged is the one that is dialled and the one that the
//! rebuilt head names. Pure.

use std::net::SocketAddr;

use ringfence_policy::net::{Host, Name};

use super::head::{self, Length, Problem, Request, put};
use crate::gate::Why;
use crate::{Asked, Via};

/// Where a request goes.
#[derive(Debug)]
pub(crate) enum Route {
    /// To the proxy itself.
    Help,
    Connect(Asked),
    Forward(Forward),
}

#[derive(Debug)]
pub(crate) struct Forward {
    pub asked: Asked,
    /// Rebuilt.
    pub head: Vec<u8>,
    /// The client asks for another protocol, and may have it.
    pub upgrade: bool,
    /// What the Host field says of a host that was judged by its address.
    pub claimed: Option<Name>,
}

/// A request that is refused before anybody is asked.
#[derive(Debug)]
pub(crate) struct Fault {
    /// `None`: not even its host is known.
    pub asked: Option<Asked>,
    pub why: Why,
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self { asked: None, why: Why::Malformed(problem.into()) }
    }
}

/// `host[:port]`, canonical.
pub(crate) fn authority(text: &[u8]) -> Result<(Host, Option<u16>), String> {
    if let Some(bad) = text.iter().find(|b| b"@/\\?#, \t%".contains(b)) {
        return Err(format!("a host with {:?} in it", char::from(*bad)));
    }
    let (host, port) = if let Some(rest) = text.strip_prefix(b"[") {
        let end = rest.iter().position(|b| *b == b']').ok_or("a bracket that does not close")?;
        let (host, rest) = (&rest[..end], &rest[end + 1..]);
        if !host.contains(&b':') {
            return Err("brackets around what is no IPv6 address".into());
        }
        match rest {
            [] => (host, None),
            [b':', port @ ..] => (host, Some(port)),
            _ => return Err("bytes after a bracket".into()),
        }
    } else {
        let mut parts = text.split(|b| *b == b':');
        let parts = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        match parts {
            (host, port, None) => (host, port),
            _ => return Err("more than one colon in a host".into()),
        }
    };
    let port = match port {
        None => None,
        Some(digits) if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            let number: u32 = digits.iter().fold(0, |n, d| n * 10 + u32::from(d - b'0'));
            let number = u16::try_from(number).ok().filter(|n| *n > 0);
            Some(number.ok_or("a port that is not one")?)
        }
        Some(_) => return Err("a port that is not a number".into()),
    };
    let host = Host::parse(host).map_err(|e| e.to_string())?;
    Ok((host, port))
}

fn known(text: &[u8]) -> Result<(Host, Option<u16>), Fault> {
    authority(text).map_err(|problem| Fault { asked: None, why: Why::Malformed(problem) })
}

/// `host`, `host:port`, `[v6]:port`, without the port that goes without saying.
fn written(host: &Host, port: u16) -> String {
    let host = match host {
        Host::Address(std::net::IpAddr::V6(six)) => format!("[{six}]"),
        host => host.to_string(),
    };
    if port == 80 { host } else { format!("{host}:{port}") }
}

/// Decides by the request alone. `origin`: whom the client believes to talk to, if not to a proxy.
pub(crate) fn route(
    request: &Request,
    origin: Option<&Asked>,
    client: SocketAddr,
) -> Result<Route, Fault> {
    let mut hosts = head::all(&request.fields, "host");
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err("more than one host field".into());
    }
    let target = &request.target[..];
    if request.method == "CONNECT" {
        return connect(request, header, client);
    }
    if target.starts_with('/') || target == "*" && request.method == "OPTIONS" {
        let Some(origin) = origin else {
            return match (&request.method[..], target) {
                ("GET" | "HEAD", "/") if request.length == Length::None => Ok(Route::Help),
                _ => Err("this is a proxy: the request must name a host, as GET http://host/ or \
                    CONNECT host:port"
                    .into()),
            };
        };
        let header = header.ok_or("a request without a host field")?;
        let (host, port) = known(header)?;
        let mut claimed = None;
        let named = match &origin.host {
            // Judged by address: the name is the server's affair.
            Host::Address(_) => {
                if header.is_empty() {
                    return Err("an empty host field".into());
                }
                if let Host::Name(name) = &host {
                    claimed = Some(name.clone());
                }
                written(&host, port.unwrap_or(80))
            }
            judged if *judged == host && port.is_none_or(|p| p == origin.port) => {
                written(judged, origin.port)
            }
            Host::Name(_) => return Err(other_host(origin.clone(), header)),
        };
        let forward = forward(request, origin.clone(), &named, target)?;
        return Ok(Route::Forward(Forward { claimed, ..forward }));
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err("a request target that is neither a path nor a url".into());
    };
    if !scheme.eq_ignore_ascii_case("http") {
        return Err("a url of another scheme than http; https goes by CONNECT".into());
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let (host, port) = known(host.as_bytes())?;
    let port = port.unwrap_or(80);
    let asked = match origin {
        Some(origin) if origin.host == host && origin.port == port => origin.clone(),
        // To some other proxy, perhaps: judged by where it is to end, as everything is.
        _ => Asked { host, port, via: Via::Http, client },
    };
    match header {
        None if !request.old => return Err("a request without a host field".into()),
        Some(header) => {
            let (host, named) = known(header)?;
            if host != asked.host || named.unwrap_or(80) != port {
                return Err(other_host(asked, header));
            }
        }
        None => {}
    }
    let path = match path {
        "" if request.method == "OPTIONS" => "*".into(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let named = written(&asked.host, asked.port);
    forward(request, asked, &named, &path).map(Route::Forward)
}

fn other_host(asked: Asked, header: &[u8]) -> Fault {
    let why = Why::HostHeader(String::from_utf8_lossy(header).into_owned());
    Fault { asked: Some(asked), why }
}

fn connect(request: &Request, header: Option<&[u8]>, client: SocketAddr) -> Result<Route, Fault> {
    let (host, port) = known(request.target.as_bytes())?;
    let port = port.ok_or("CONNECT without a port")?;
    if !matches!(request.length, Length::None | Length::Bytes(0)) {
        return Err("CONNECT with a body".into());
    }
    let asked = Asked { host, port, via: Via::Connect, client };
    if let Some(header) = header {
        // Some clients leave out the port here, others the field.
        let (host, named) = known(header)?;
        if host != asked.host || named.is_some_and(|p| p != port) {
            return Err(other_host(asked, header));
        }
    }
    Ok(Route::Connect(asked))
}

/// The head for the server.
fn forward(request: &Request, asked: Asked, host: &str, path: &str) -> Result<Forward, Fault> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(request.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    put(&mut out, "Host", host.as_bytes());
    head::forward(&request.fields, &mut out)?;
    match request.length {
        Length::Bytes(n) => put(&mut out, "Content-Length", n.to_string().as_bytes()),
        Length::Chunked => put(&mut out, "Transfer-Encoding", b"chunked"),
        Length::None | Length::Close => {}
    }
    let upgrade = upgrade(request);
    let trailers = head::lists(&request.fields, "te", "trailers");
    if trailers {
        put(&mut out, "TE", b"trailers");
    }
    match (upgrade, trailers) {
        (true, true) => put(&mut out, "Connection", b"Upgrade, TE"),
        (true, false) => put(&mut out, "Connection", b"Upgrade"),
        (false, true) => put(&mut out, "Connection", b"TE"),
        (false, false) => {}
    }
    if upgrade {
        for value in head::all(&request.fields, "upgrade") {
            put(&mut out, "Upgrade", value);
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(Forward { asked, head: out, upgrade, claimed: None })
}

/// Whether the client asks for a protocol that is not HTTP again: in HTTP/2 or within TLS it could
/// name another host. Such a wish is left out, which every client must be ready for.
fn upgrade(request: &Request) -> bool {
    let fields = &request.fields;
    let mut wishes = head::list(fields, "upgrade").peekable();
    !request.old
        && head::lists(fields, "connection", "upgrade")
        && wishes.peek().is_some()
        && wishes.all(|wish| {
            let name = wish.split(|b| *b == b'/').next().unwrap_or_default().to_ascii_lowercase();
            !matches!(&name[..], b"h2c" | b"h2" | b"h3" | b"http" | b"tls" | b"connect-udp")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> SocketAddr {
        ([127, 0, 0, 1], 9).into()
    }

    fn origin(host: &str, port: u16) -> Asked {
        let host = Host::parse(host.as_bytes()).unwrap();
        Asked { host, port, via: Via::Direct, client: client() }
    }

    fn of(text: &str, origin: Option<&Asked>) -> Result<Route, Fault> {
        let text = text.replace('\n', "\r\n") + "\r\n\r\n";
        route(&head::request(text.as_bytes()).unwrap().unwrap().0, origin, client())
    }

    fn forwarded(text: &str, origin: Option<&Asked>) -> (String, String) {
        match of(text, origin) {
            Ok(Route::Forward(f)) => {
                let to = format!("{}:{}", f.asked.host, f.asked.port);
                (to, String::from_utf8(f.head).unwrap().replace("\r\n", "\n"))
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    fn fault(text: &str, origin: Option<&Asked>) -> Why {
        match of(text, origin) {
            Err(fault) => fault.why,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_is_claimed_of_an_address_is_known() {
        let claimed = |host: &str, origin: &Asked| match of(
            &format!("GET / HTTP/1.1\nHost: {host}"),
            Some(origin),
        ) {
            Ok(Route::Forward(f)) => f.claimed.map(|name| name.to_string()),
            other => panic!("{other:?}"),
        };
        let address = origin("1.2.3.4", 80);
        assert_eq!(claimed("A.Example.", &address).as_deref(), Some("a.example"));
        assert_eq!(claimed("a.example:99", &address).as_deref(), Some("a.example"));
        assert_eq!(claimed("1.2.3.4", &address), None);
        // Judged by name: nothing else got this far.
        assert_eq!(claimed("a.example", &origin("a.example", 80)), None);
    }

    #[test]
    fn a_url_at_the_proxy() {
        for (text, to, line) in [
            ("GET http://A.Example/x HTTP/1.1\nHost: a.example", "a.example:80", "GET /x"),
            ("GET HTTP://a.example:80?q HTTP/1.1\nHost: a.example", "a.example:80", "GET /?q"),
            ("GET http://a.example HTTP/1.0", "a.example:80", "GET /"),
            ("OPTIONS http://a.example HTTP/1.0", "a.example:80", "OPTIONS *"),
            ("GET http://1.2.3.4:81/ HTTP/1.1\nHost: 1.2.3.4:81", "1.2.3.4:81", "GET /"),
            ("GET http://[::2]/ HTTP/1.1\nHost: [::2]:80", "::2:80", "GET /"),
        ] {
            let (asked, head) = forwarded(text, None);
            assert_eq!(asked, to);
            assert!(head.starts_with(&format!("{line} HTTP/1.1\nHost: ")), "{head}");
        }
        let (_, head) = forwarded(
            "POST http://a.example:8080/ HTTP/1.1\nX: 1\nHost: a.example:8080\n\
             Proxy-Authorization: q\nTransfer-Encoding: CHUNKED\nTE: trailers",
            None,
        );
        assert_eq!(
            head,
            "POST / HTTP/1.1\nHost: a.example:8080\nX: 1\nTransfer-Encoding: chunked\n\
             TE: trailers\nConnection: TE\n\n"
        );
    }

    #[test]
    fn a_url_that_is_refused() {
        for text in [
            "GET http://a.example/ HTTP/1.1",
            "GET http://u@a.example/ HTTP/1.1\nHost: a.example",
            "GET http://u:p@a.example/ HTTP/1.1\nHost: a.example",
            "GET http:///x HTTP/1.1\nHost: a.example",
            "GET http://a.example:/ HTTP/1.1\nHost: a.example",
            "GET http://a.example:0/ HTTP/1.1\nHost: a.example:0",
            "GET http://a.example:65536/ HTTP/1.1\nHost: a.example",
            "GET http://a.example:+80/ HTTP/1.1\nHost: a.example",
            "GET http://a.example:80:80/ HTTP/1.1\nHost: a.example",
            "GET http://a.example\\@b.example/ HTTP/1.1\nHost: a.example",
            "GET http://a%00.example/ HTTP/1.1\nHost: a.example",
            "GET http://[::1%25eth0]/ HTTP/1.1\nHost: a.example",
            "GET http://[a.example]/ HTTP/1.1\nHost: a.example",
            "GET https://a.example/ HTTP/1.1\nHost: a.example",
            "GET ftp://a.example/ HTTP/1.1\nHost: a.example",
            "GET a.example/ HTTP/1.1\nHost: a.example",
            "GET * HTTP/1.1\nHost: a.example",
            "GET /x HTTP/1.1\nHost: a.example",
            "GET http://a.example/ HTTP/1.1\nHost: a.example\nHost: a.example",
            "GET http://a.example/ HTTP/1.1\nHost:",
            "GET http://a.example/ HTTP/1.1\nHost: a.example, b.example",
            "GET http://a.example/ HTTP/1.1\nHost: a.example\nConnection: host",
            "CONNECT a.example HTTP/1.1\nHost: a.example",
            "CONNECT a.example:443/ HTTP/1.1",
            "CONNECT http://a.example:443 HTTP/1.1",
            "CONNECT u@a.example:443 HTTP/1.1",
            "CONNECT a.example:443 HTTP/1.1\nContent-Length: 3",
            "CONNECT a.example:443 HTTP/1.1\nTransfer-Encoding: chunked",
        ] {
            assert!(matches!(fault(text, None), Why::Malformed(_)), "{text}");
        }
        for text in [
            "GET http://a.example/ HTTP/1.1\nHost: b.example",
            "GET http://a.example/ HTTP/1.1\nHost: a.example:81",
            "GET http://a.example:81/ HTTP/1.1\nHost: a.example",
            "CONNECT a.example:443 HTTP/1.1\nHost: b.example:443",
            "CONNECT a.example:443 HTTP/1.1\nHost: a.example:80",
        ] {
            assert!(matches!(fault(text, None), Why::HostHeader(_)), "{text}");
        }
    }

    #[test]
    fn a_request_to_a_server() {
        let a = origin("a.example", 8080);
        for text in [
            "GET /x HTTP/1.1\nHost: a.example",
            "GET /x HTTP/1.1\nHost: A.EXAMPLE:8080",
            "GET http://a.example:8080/x HTTP/1.1\nHost: a.example:8080",
            "GET /x HTTP/1.0\nHost: a.example",
        ] {
            let (to, head) = forwarded(text, Some(&a));
            assert_eq!(to, "a.example:8080");
            assert_eq!(head, "GET /x HTTP/1.1\nHost: a.example:8080\n\n");
        }
        for text in [
            "GET / HTTP/1.1\nHost: b.example",
            "GET / HTTP/1.1\nHost: a.example:80",
            "GET / HTTP/1.1\nHost: a.example.b.example",
            "GET / HTTP/1.1\nHost: xa.example",
            "GET http://a.example:8080/ HTTP/1.1\nHost: b.example",
        ] {
            assert!(matches!(fault(text, Some(&a)), Why::HostHeader(_)), "{text}");
        }
        for text in [
            "GET / HTTP/1.1",
            "GET / HTTP/1.0",
            "GET / HTTP/1.1\nHost:",
            "GET / HTTP/1.1\nHost: a.example\nhost: b.example",
            "GET / HTTP/1.1\nHost: x@a.example",
        ] {
            assert!(matches!(fault(text, Some(&a)), Why::Malformed(_)), "{text}");
        }
        // Meant for another proxy: judged by where it would end.
        let (to, _) = forwarded("GET http://b.example/ HTTP/1.1\nHost: b.example", Some(&a));
        assert_eq!(to, "b.example:80");
        let Ok(Route::Connect(asked)) = of("CONNECT b.example:22 HTTP/1.1", Some(&a)) else {
            panic!("not a CONNECT");
        };
        assert_eq!((asked.host.to_string(), asked.port), ("b.example".into(), 22));
    }

    #[test]
    fn a_server_judged_by_address_may_have_any_name() {
        let a = origin("192.0.2.1", 80);
        let (to, head) = forwarded("GET / HTTP/1.1\nHost: any.example", Some(&a));
        assert_eq!((&to[..], &head[..]), ("192.0.2.1:80", "GET / HTTP/1.1\nHost: any.example\n\n"));
    }

    #[test]
    fn upgrades() {
        let a = origin("a.example", 80);
        let ask = |what: &str| {
            forwarded(
                &format!(
                    "GET / HTTP/1.1\nHost: a.example\nConnection: Upgrade, HTTP2-Settings\n\
                    HTTP2-Settings: x\nUpgrade: {what}"
                ),
                Some(&a),
            )
            .1
        };
        assert!(ask("websocket").ends_with("\nConnection: Upgrade\nUpgrade: websocket\n\n"));
        for what in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0", ""] {
            assert_eq!(ask(what), "GET / HTTP/1.1\nHost: a.example\n\n", "{what}");
        }
    }

    #[test]
    fn the_proxy_itself() {
        assert!(matches!(of("GET / HTTP/1.1\nHost: localhost:808", None), Ok(Route::Help)));
        assert!(matches!(of("HEAD / HTTP/1.0", None), Ok(Route::Help)));
    }
}
