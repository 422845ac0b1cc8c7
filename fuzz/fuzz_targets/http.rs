#![no_main]
//! What the strict parser accepts, the parser of hyper reads alike.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(mine) = ringfence_proxy::fuzzing::http(bytes) else { return };
    let mut room = [httparse::EMPTY_HEADER; 256];
    let mut theirs = httparse::Request::new(&mut room);
    assert_eq!(theirs.parse(bytes), Ok(httparse::Status::Complete(mine.length)));
    assert_eq!(theirs.method, Some(&mine.method[..]));
    assert_eq!(theirs.path, Some(&mine.target[..]));
    assert_eq!(theirs.version, Some(mine.minor));
    assert_eq!(theirs.headers.len(), mine.fields.len());
    for (a, (name, value)) in theirs.headers.iter().zip(&mine.fields) {
        assert_eq!((a.name, a.value), (&name[..], &value[..]));
    }
});
