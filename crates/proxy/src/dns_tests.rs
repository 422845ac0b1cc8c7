use std::cell::RefCell;

use hickory_proto::op::{Edns, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name as Wire, RData, RecordType};

use super::*;
use crate::pool::{Pair, Pool};

struct Fake {
    pool: Pool,
    asked: RefCell<Vec<String>>,
    six: bool,
}

impl Fake {
    fn new() -> Self {
        Self { pool: Pool::default(), asked: RefCell::default(), six: true }
    }

    fn pair(&self, name: &str) -> Pair {
        self.pool.answer(&Name::parse(name.as_bytes()).unwrap(), Instant::now()).unwrap()
    }
}

impl Registry for Fake {
    fn standing(&self, name: &Name, _: SocketAddr, now: Instant) -> Standing {
        self.asked.borrow_mut().push(name.to_string());
        match name.as_str() {
            "api.example.test" => Standing::Allowed(self.pool.answer(name, now).unwrap()),
            "full.example.test" => Standing::Limit,
            _ => Standing::Refused,
        }
    }

    fn name_of(&self, address: IpAddr) -> Option<Name> {
        self.pool.name(address)
    }

    fn six(&self) -> bool {
        self.six
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Wire::from_ascii(name).unwrap(), kind));
    message
}

fn client() -> SocketAddr {
    "127.0.0.1:5000".parse().unwrap()
}

fn ask(fake: &Fake, message: &Message) -> Message {
    let bytes = answer(fake, &message.to_vec().unwrap(), client(), false).unwrap();
    let reply = Message::from_vec(&bytes).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert!(reply.metadata.recursion_desired && reply.metadata.recursion_available);
    reply
}

#[test]
fn an_allowed_name_gets_both_its_addresses() {
    let fake = Fake::new();
    let reply = ask(&fake, &query("Api.ExAmple.test.", RecordType::A));
    let pair = fake.pair("api.example.test");
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers[0].data, RData::A(pair.v4.into()));
    assert_eq!(reply.answers[0].name.to_ascii(), "Api.ExAmple.test.", "the case as asked");
    assert_eq!(reply.queries[0].name().to_ascii(), "Api.ExAmple.test.");
    let reply = ask(&fake, &query("api.example.test.", RecordType::AAAA));
    assert_eq!(reply.answers[0].data, RData::AAAA(pair.v6.into()));
    assert_eq!(fake.asked.borrow()[0], "api.example.test");
}

#[test]
fn without_ipv6_there_is_no_ipv6_address() {
    let fake = Fake { six: false, ..Fake::new() };
    let reply = ask(&fake, &query("api.example.test.", RecordType::AAAA));
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
}

#[test]
fn other_types_of_an_allowed_name_are_empty() {
    let fake = Fake::new();
    for kind in [RecordType::HTTPS, RecordType::SVCB, RecordType::TXT, RecordType::MX] {
        let reply = ask(&fake, &query("api.example.test.", kind));
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(reply.answers.is_empty());
        let reply = ask(&fake, &query("evil.example.", kind));
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{kind}");
    }
}

#[test]
fn other_names_do_not_exist_and_edns_says_why() {
    let fake = Fake::new();
    let mut message = query("secret.evil.example.", RecordType::A);
    let reply = ask(&fake, &message);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert!(reply.edns.is_none());
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let reply = ask(&fake, &message);
    let edns = reply.edns.unwrap();
    assert_eq!(edns.max_payload(), UDP_SIZE);
    let Some(EdnsOption::Unknown(15, data)) = edns.option(EdnsCode::Unknown(15)) else {
        panic!("no extended error: {edns:?}")
    };
    assert_eq!(data[..2], 18_u16.to_be_bytes());
}

#[test]
fn a_full_pool_is_a_failure_not_a_missing_name() {
    let reply = ask(&Fake::new(), &query("full.example.test.", RecordType::A));
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn reverse_questions_know_the_pool() {
    let fake = Fake::new();
    let pair = fake.pair("api.example.test");
    for address in [IpAddr::from(pair.v4), IpAddr::from(pair.v6)] {
        let reply = ask(&fake, &query(&Wire::from(address).to_ascii(), RecordType::PTR));
        let RData::PTR(name) = &reply.answers[0].data else { panic!("{reply:?}") };
        assert_eq!(name.to_ascii(), "api.example.test.");
    }
    for other in ["8.8.8.8.in-addr.arpa.", "x.ip6.arpa.", "300.0.18.198.in-addr.arpa.", "arpa."] {
        let reply = ask(&fake, &query(other, RecordType::PTR));
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{other}");
    }
    assert!(fake.asked.borrow().is_empty(), "no reverse question is about a host");
}

#[test]
fn localhost_is_here() {
    let reply = ask(&Fake::new(), &query("foo.localhost.", RecordType::A));
    assert_eq!(reply.answers[0].data, RData::A(Ipv4Addr::LOCALHOST.into()));
}

#[test]
fn labels_cannot_fake_a_boundary() {
    let fake = Fake::new();
    let mut bytes = query("x.", RecordType::A).to_vec().unwrap();
    let tail = bytes.split_off(HEADER + 3);
    bytes.truncate(HEADER);
    bytes.extend_from_slice(b"\x10api.example.test\0");
    bytes.extend_from_slice(&tail);
    let reply = Message::from_vec(&answer(&fake, &bytes, client(), false).unwrap()).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert!(fake.asked.borrow().is_empty());
}

#[test]
fn what_is_no_question_is_refused() {
    let fake = Fake::new();
    let code = |bytes: &[u8]| {
        let reply = answer(&fake, bytes, client(), false)?;
        Some(Message::from_vec(&reply).unwrap().metadata.response_code)
    };
    let good = query("api.example.test.", RecordType::A).to_vec().unwrap();
    assert_eq!(code(&good[..11]), None);
    assert_eq!(code(&good[..14]), Some(ResponseCode::FormErr));
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(code(&response), None);
    let mut none = good.clone();
    none[5] = 0;
    assert_eq!(code(&none), Some(ResponseCode::FormErr));
    let mut pointer = good.clone();
    pointer[HEADER] = 0xC0;
    assert_eq!(code(&pointer), Some(ResponseCode::FormErr));
    let mut update = query("api.example.test.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update.to_vec().unwrap()), Some(ResponseCode::NotImp));
    let transfer = query("api.example.test.", RecordType::AXFR);
    assert_eq!(code(&transfer.to_vec().unwrap()), Some(ResponseCode::Refused));
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos.to_vec().unwrap()), Some(ResponseCode::Refused));
    let mut version = query("api.example.test.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    version.set_edns(edns);
    // 16 has two names.
    assert_eq!(code(&version.to_vec().unwrap()).map(u16::from), Some(16));
}

#[test]
fn an_answer_that_does_not_fit_is_truncated() {
    let fake = Fake::new();
    let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(60));
    let pair = fake.pair(&long);
    // Fits: the reverse name of an IPv6 address is 74 bytes.
    let message = query(&Wire::from(IpAddr::from(pair.v6)).to_ascii(), RecordType::PTR);
    assert_eq!(ask(&fake, &message).answers.len(), 1);
    let mut reply = Reply::new(&message.to_vec().unwrap(), b"\x01a\0\0\x01\0\x01");
    reply.edns = true;
    reply.record(kind::PTR, &[0; 250]);
    reply.record(kind::PTR, &[0; 250]);
    let bytes = reply.finish(PLAIN_SIZE);
    assert_eq!(bytes.len(), HEADER + 7);
    assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
}

proptest::proptest! {
    #[test]
    fn no_bytes_crash_it(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let fake = Fake::new();
        if let Some(reply) = answer(&fake, &bytes, client(), false) {
            proptest::prop_assert!(reply.len() <= usize::from(UDP_SIZE));
            proptest::prop_assert!(Message::from_vec(&reply).is_ok());
        }
    }

    #[test]
    fn no_mutation_of_a_query_crashes_it(
        at in 0_usize..60, byte in proptest::num::u8::ANY, cut in 12_usize..80
    ) {
        let fake = Fake::new();
        let mut message = query("Api.example.test.", RecordType::A);
        message.set_edns(Edns::new());
        let mut bytes = message.to_vec().unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut);
        if let Some(reply) = answer(&fake, &bytes, client(), false) {
            proptest::prop_assert!(Message::from_vec(&reply).is_ok(), "{:?}", reply);
        }
    }
}
