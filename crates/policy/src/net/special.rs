//! Addresses that are not the public internet. They are refused unless a rule lists them as
//! addresses, whatever name led there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::name::fold;

/// What a special address is, and what opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// For messages: `link-local`.
    pub what: &'static str,
    pub opens: Opens,
}

/// What makes a special address reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// An entry that lies wholly in this range: `10.0.0.0/8` or narrower, never `0.0.0.0/0`.
    Within(IpNet),
    /// Only the address itself: what hands out credentials is not opened in passing.
    Exact,
    /// The host's loopback: `localhost:PORT`.
    Localhost,
    /// Nothing.
    Nothing,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len)
}

const fn v6(a: [u16; 4], len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a[0], a[1], a[2], a[3], 0, 0, 0, 0), len)
}

/// Where clouds hand out credentials, beyond what a range covers.
const METADATA_V4: &[Ipv4Addr] = &[
    Ipv4Addr::new(169, 254, 169, 254), // AWS, Google, Azure and most others
    Ipv4Addr::new(169, 254, 170, 2),   // AWS containers
    Ipv4Addr::new(169, 254, 170, 23),  // AWS pods
    Ipv4Addr::new(169, 254, 0, 23),    // Tencent
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba
    Ipv4Addr::new(168, 63, 129, 16),   // Azure's host
    Ipv4Addr::new(192, 0, 0, 192),     // Oracle
];
const METADATA_V6: &[Ipv6Addr] = &[
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), // AWS
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),  // AWS pods
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),  // Google
];

/// Stand for names inside the sandbox, and so never for hosts.
pub const POOL_V4: Ipv4Net = v4(198, 18, 0, 0, 15);
/// As [`POOL_V4`].
pub const POOL_V6: Ipv6Net = v6([0xfd72, 0x696e, 0x6766, 0], 64);

const RANGES_V4: &[(Ipv4Net, &str)] = &[
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(100, 64, 0, 0, 10), "shared address space (carrier NAT)"),
    (v4(192, 0, 0, 0, 24), "protocol assignment"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(192, 88, 99, 0, 24), "6to4 relay"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "broadcast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
];

const RANGES_V6: &[(Ipv6Net, &str)] = &[
    (v6([0xfe80, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0], 10), "site-local"),
    (v6([0xfc00, 0, 0, 0], 7), "private (unique local)"),
    (v6([0xff00, 0, 0, 0], 8), "multicast"),
    (v6([0x2001, 0xdb8, 0, 0], 32), "documentation"),
    (v6([0x3fff, 0, 0, 0], 20), "documentation"),
    (v6([0x2001, 0, 0, 0], 32), "teredo"),
    (v6([0x2001, 0, 0, 0], 23), "protocol assignment"),
    (v6([0x2002, 0, 0, 0], 16), "6to4"),
    (v6([0x64, 0xff9b, 1, 0], 48), "local NAT64"),
    (v6([0x100, 0, 0, 0], 64), "discard"),
];

/// Well-known NAT64: a public v4 address behind it is public (DNS64 answers so).
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], 96);
const GLOBAL: Ipv6Net = v6([0x2000, 0, 0, 0], 3);
const LOW: Ipv6Net = v6([0, 0, 0, 0], 8);

/// What is special about an address, if anything.
pub fn special(address: IpAddr) -> Option<Special> {
    match fold(address) {
        IpAddr::V4(a) => special_v4(a),
        IpAddr::V6(a) => special_v6(a),
    }
}

fn special_v4(a: Ipv4Addr) -> Option<Special> {
    if a.is_loopback() {
        return Some(Special { what: "loopback", opens: Opens::Localhost });
    }
    if a.octets()[0] == 0 {
        // The kernel connects 0.0.0.0 to the loopback.
        return Some(Special { what: "unspecified", opens: Opens::Nothing });
    }
    if METADATA_V4.contains(&a) {
        return Some(Special { what: "metadata service", opens: Opens::Exact });
    }
    if POOL_V4.contains(&a) {
        return Some(Special { what: "benchmarking", opens: Opens::Nothing });
    }
    RANGES_V4
        .iter()
        .find(|(net, _)| net.contains(&a))
        .map(|(net, what)| Special { what, opens: Opens::Within((*net).into()) })
}

fn special_v6(a: Ipv6Addr) -> Option<Special> {
    if a.is_loopback() {
        return Some(Special { what: "loopback", opens: Opens::Localhost });
    }
    if a.is_unspecified() {
        return Some(Special { what: "unspecified", opens: Opens::Nothing });
    }
    if METADATA_V6.contains(&a) {
        return Some(Special { what: "metadata service", opens: Opens::Exact });
    }
    if POOL_V6.contains(&a) {
        return Some(Special { what: "ringfence's own", opens: Opens::Nothing });
    }
    // An address inside an address is as special as that one, and opened by its outer form only.
    if let Some(inner) = embedded(a).and_then(special_v4) {
        return Some(match inner.opens {
            Opens::Within(_) if NAT64.contains(&a) => {
                Special { what: inner.what, opens: Opens::Within(NAT64.into()) }
            }
            Opens::Within(_) => Special { what: inner.what, opens: Opens::Exact },
            Opens::Exact => inner,
            Opens::Localhost | Opens::Nothing => {
                Special { what: inner.what, opens: Opens::Nothing }
            }
        });
    }
    if NAT64.contains(&a) {
        return None;
    }
    if let Some((net, what)) = RANGES_V6.iter().find(|(net, _)| net.contains(&a)) {
        return Some(Special { what, opens: Opens::Within((*net).into()) });
    }
    if GLOBAL.contains(&a) {
        return None;
    }
    // v4-compatible, translated, and whatever else the low block comes to hold.
    let opens = if LOW.contains(&a) { Opens::Nothing } else { Opens::Exact };
    Some(Special { what: "reserved", opens })
}

/// The v4 address that a v6 address carries, where a translator or tunnel would take it out.
pub(super) fn embedded(a: Ipv6Addr) -> Option<Ipv4Addr> {
    if a.is_loopback() || a.is_unspecified() {
        return None;
    }
    let s = a.segments();
    let at = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match s {
        // Teredo: the client's, inverted.
        [0x2001, 0, .., h, l] => Some(at(!h, !l)),
        // NAT64 (both prefixes; the local one with 96 bits), v4-compatible, mapped, translated,
        // 6to4, ISATAP.
        [0x64, 0xff9b, 0, 0, 0, 0, h, l]
        | [0x64, 0xff9b, 1, _, _, _, h, l]
        | [0, 0, 0, 0, 0, 0 | 0xffff, h, l]
        | [0, 0, 0, 0, 0xffff, 0, h, l]
        | [0x2002, h, l, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, h, l] => Some(at(h, l)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(text: &str) -> Option<&'static str> {
        special(text.parse().unwrap()).map(|s| s.what)
    }

    #[test]
    fn public_addresses_are_not_special() {
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "128.0.0.1",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "2001:200::1",
            "64:ff9b::1.1.1.1",
        ] {
            assert_eq!(what(text), None, "{text}");
        }
    }

    #[test]
    fn special_addresses_are() {
        for (text, want) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.255.255.255", "private"),
            ("100.127.255.255", "shared address space (carrier NAT)"),
            ("100.100.100.200", "metadata service"),
            ("127.255.255.255", "loopback"),
            ("169.254.1.1", "link-local"),
            ("169.254.169.254", "metadata service"),
            ("168.63.129.16", "metadata service"),
            ("172.31.255.255", "private"),
            ("192.0.0.8", "protocol assignment"),
            ("192.0.2.9", "documentation"),
            ("192.168.255.255", "private"),
            ("198.19.255.255", "benchmarking"),
            ("224.0.0.1", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:10.0.0.1", "private"),
            ("::10.0.0.1", "private"),
            ("::1.1.1.1", "reserved"),
            ("64:ff9b::169.254.169.254", "metadata service"),
            ("64:ff9b:1::1.1.1.1", "local NAT64"),
            ("2002:a00:1::", "private"),
            ("2002:101:101::", "6to4"),
            ("2001:0:101:101:0:0:f5ff:fffe", "private"),
            ("2001:db8::1", "documentation"),
            ("2606:4700::5efe:10.0.0.1", "private"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("fd00:ec2::254", "metadata service"),
            ("fd72:696e:6766::5", "ringfence's own"),
            ("fd12::1", "private (unique local)"),
            ("ff02::1", "multicast"),
            ("4000::1", "reserved"),
            ("::ffff:0:1.1.1.1", "reserved"),
        ] {
            assert_eq!(what(text), Some(want), "{text}");
        }
    }
}
