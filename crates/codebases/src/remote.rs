//! Codebases in an object store (S3 or a directory), so that several machines share them.
//!
//! ```text
//! URL/chunks/AB/ABCD…                    content by its SHA-256, compressed; shared by everything
//! URL/codebases/NAME/versions/0000000001 the manifests
//! ```
//!
//! A version exists from the moment when its manifest was put, on the condition that nobody put that
//! number before; all its chunks are there by then. Nothing that was read is believed before its
//! digest was computed anew.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ClientConfigKey, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use ringfence_layers::check_name;
use ringfence_layers::pack::tar::{BLOCK, Kind, Reader, padding, write_end, write_header};
use ringfence_sys::fd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::manifest::{CHUNK, Line, MAX_PACKED, Manifest, WINDOW_LOG, digest, is_digest};
use crate::store::{PULL, TREE};
use crate::{Codebases, Error, Made, Options, Progress, Record, make};

/// Requests at once.
const AT_ONCE: usize = 16;
/// Chunks that wait for their upload.
const WAITING: usize = 8;
const LEVEL: i32 = 3;
/// Bytes that a compressed chunk can have.
const MAX_CHUNK: u64 = (CHUNK + CHUNK / 128 + 1024) as u64;
/// Variables whose values never come into a message.
const SECRETS: [&str; 3] = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"];

/// Where an object store is. Credentials come from the usual variables of AWS, never from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `s3://BUCKET[/PREFIX]` or `file:///DIRECTORY`.
    pub url: String,
    /// Of a server that speaks S3; else AWS by region.
    pub endpoint: Option<String>,
    pub region: Option<String>,
}

/// What became of a push.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pushed {
    /// The version in the object store.
    pub version: u64,
    /// False: the latest version there is the same tree.
    pub new: bool,
    pub chunks: u64,
    /// Chunks that were not there, and their bytes as transferred.
    pub uploaded: u64,
    pub uploaded_bytes: u64,
}

/// What a pull is to get.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The name there.
    pub theirs: &'a str,
    /// The newest without one.
    pub version: Option<u64>,
    /// Also where the tree here was changed since.
    pub force: bool,
}

/// An object store that was opened.
#[derive(Debug)]
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    runtime: tokio::runtime::Runtime,
    url: String,
    /// What tells this object store from others, for the record.
    key: String,
}

impl Remote {
    pub fn open(place: &Place) -> Result<Self, Error> {
        let url = place.url.trim_end_matches('/').to_owned();
        let wrong =
            |problem: &str| Err(Error::Remote { url: hidden(&url), problem: problem.into() });
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return wrong("file:// is followed by an absolute path");
            }
            std::fs::create_dir_all(path).map_err(Error::io("make", path))?;
            let local = LocalFileSystem::new_with_prefix(path).map_err(|e| said(&url, &e))?;
            return Self::of(Arc::new(local), url.clone(), None);
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return wrong("neither s3://BUCKET[/PREFIX] nor file:///DIRECTORY");
        };
        if rest.contains('@') {
            return wrong(
                "credentials do not belong into an address: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            );
        }
        if rest.contains(['?', '#']) {
            return wrong("an address of a bucket has neither ? nor #");
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // The only one that is compiled in; another library may have chosen before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            // Else names are looked up by the C library, which a static program does not have whole.
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::RandomizeAddresses), "false");
        if let Some(endpoint) = &place.endpoint {
            if endpoint.contains('@') {
                return wrong("credentials do not belong into an address");
            }
            builder =
                builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some(region) = &place.region {
            builder = builder.with_region(region);
        }
        let s3 = builder.build().map_err(|e| said(&url, &e))?;
        let store: Arc<dyn ObjectStore> =
            if prefix.is_empty() { Arc::new(s3) } else { Arc::new(PrefixStore::new(s3, prefix)) };
        Self::of(store, url, place.endpoint.as_deref())
    }

    fn of(store: Arc<dyn ObjectStore>, url: String, endpoint: Option<&str>) -> Result<Self, Error> {
        let key = endpoint.map_or_else(|| url.clone(), |at| format!("{url} at {at}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::Stream { what: "begin", source })?;
        Ok(Self { store, runtime, url, key })
    }

    fn wrong(&self, e: &object_store::Error) -> Error {
        said(&self.url, e)
    }

    fn problem(&self, problem: impl Into<String>) -> Error {
        Error::Remote { url: self.url.clone(), problem: problem.into() }
    }

    /// The newest version; 0 where there is none.
    pub fn latest(&self, name: &str) -> Result<u64, Error> {
        let prefix = Key::from(format!("codebases/{name}/versions"));
        let found = self.runtime.block_on(self.store.list(Some(&prefix)).try_collect::<Vec<_>>());
        let found = match found {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(0),
            Err(e) => return Err(self.wrong(&e)),
        };
        let number = |key: &Key| key.filename().and_then(|name| name.parse::<u64>().ok());
        Ok(found.iter().filter_map(|meta| number(&meta.location)).max().unwrap_or(0))
    }

    fn manifest(&self, name: &str, version: u64) -> Result<Manifest, Error> {
        let packed = self
            .runtime
            .block_on(fetch(&*self.store, &version_key(name, version), MAX_PACKED))
            .map_err(|e| self.problem(clean(&e)))?;
        Manifest::unpack(&packed, name, version).map_err(|e| self.problem(e))
    }
}

fn version_key(name: &str, version: u64) -> Key {
    Key::from(format!("codebases/{name}/versions/{version:010}"))
}

fn chunk_key(digest: &str) -> Key {
    Key::from(format!("chunks/{}/{digest}", &digest[..2]))
}

/// An address without what may be a password in it.
fn hidden(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1)))
    {
        Some((scheme, rest)) => format!("{scheme}://{rest}"),
        None => url.to_owned(),
    }
}

/// A message without credentials.
fn clean(text: &str) -> String {
    let mut text = text.to_owned();
    for name in SECRETS {
        if let Ok(value) = std::env::var(name)
            && value.len() > 3
        {
            text = text.replace(&value, "***");
        }
    }
    text
}

fn said(url: &str, e: &object_store::Error) -> Error {
    Error::Remote { url: hidden(url), problem: clean(&e.to_string()) }
}

/// An object of at most `most` bytes.
async fn fetch(store: &dyn ObjectStore, key: &Key, most: u64) -> Result<Vec<u8>, String> {
    let got = store.get(key).await.map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    let mut pieces = got.into_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| e.to_string())?;
        if (all.len() + piece.len()) as u64 > most {
            return Err(format!("{key} is larger than it can be"));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// The content of a chunk, if it is what its digest says.
fn open_chunk(packed: &[u8], wanted: &str, length: usize) -> Result<Vec<u8>, String> {
    let damaged = || format!("chunk {wanted} is damaged");
    let mut decoder = zstd::Decoder::with_buffer(packed).map_err(|_| damaged())?;
    decoder.window_log_max(WINDOW_LOG).map_err(|_| damaged())?;
    let mut plain = Vec::with_capacity(length);
    decoder.take(length as u64 + 1).read_to_end(&mut plain).map_err(|_| damaged())?;
    if plain.len() != length || digest(&plain) != wanted {
        return Err(damaged());
    }
    Ok(plain)
}

struct Upload {
    digest: String,
    packed: Vec<u8>,
}

impl Codebases {
    /// Puts the tree as a new version into an object store; only what is missing there is transferred.
    /// Where the newest version there is not the one that this tree came from, it is an error unless
    /// `force`d.
    pub fn push(
        &self,
        name: &str,
        there_as: Option<&str>,
        remote: &Remote,
        force: bool,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Pushed, Error> {
        let codebase = self.get(name)?;
        let name = there_as.unwrap_or(&codebase.record.name);
        check_name(name).map_err(|_| Error::Name(name.to_owned()))?;
        let latest = remote.latest(name)?;
        let known = self.database.remote(&codebase.record.id, &remote.key)?;
        let based_on = known.map_or(0, |(theirs, _)| theirs);
        let newest = if latest == 0 { None } else { Some(remote.manifest(name, latest)?) };
        let there: HashSet<String> =
            newest.iter().flat_map(|m| &m.lines).flat_map(|l| l.chunks.clone()).collect();

        // The archive is the tree in a fixed order, read by one thread; this one cuts it into chunks
        // while the third transfers them.
        let (mut pushed, lines) = Self::upload(&codebase, remote, there, progress)?;
        if self.get(&codebase.record.id)?.record.version != codebase.record.version {
            return Err(Error::Refused(format!("codebase {name} was changed while it was pushed")));
        }
        let version = latest + 1;
        let manifest =
            Manifest::new(name, version, lines).map_err(|problem| remote.problem(problem))?;
        if newest.is_some_and(|newest| newest.header.tree == manifest.header.tree) {
            self.database.set_remote(&codebase.record, &remote.key, latest)?;
            pushed.version = latest;
            return Ok(pushed);
        }
        let conflict = |theirs: u64| {
            remote.problem(format!(
                "{name} has version {theirs} there, and this tree was made from {}: pull that one with --to under another name and bring both together, or push with --force to make this the newest (every version is kept)",
                if based_on == 0 { "none of its versions".into() } else { format!("version {based_on}") }
            ))
        };
        if based_on != latest && !force {
            return Err(conflict(latest));
        }
        let packed = manifest.pack().map_err(|problem| remote.problem(problem))?;
        let put = remote.runtime.block_on(remote.store.put_opts(
            &version_key(name, version),
            PutPayload::from(packed),
            PutMode::Create.into(),
        ));
        match put {
            Ok(_) => {}
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => {
                return Err(conflict(version));
            }
            Err(e) => return Err(remote.wrong(&e)),
        }
        self.database.set_remote(&codebase.record, &remote.key, version)?;
        (pushed.version, pushed.new) = (version, true);
        Ok(pushed)
    }

    fn upload(
        codebase: &crate::Codebase,
        remote: &Remote,
        mut there: HashSet<String>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Pushed, Vec<Line>), Error> {
        let (from, to) =
            std::io::pipe().map_err(|source| Error::Stream { what: "make a pipe", source })?;
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Upload>(WAITING);
        std::thread::scope(|scope| {
            let exporting = scope.spawn(move || codebase.export(to, false));
            let cutting = scope.spawn(move || cut(from, &mut there, &sender, progress));
            let store = &*remote.store;
            let uploads = stream::poll_fn(|context| receiver.poll_recv(context))
                .map(|upload| one_upload(store, upload))
                .buffer_unordered(AT_ONCE)
                .try_fold((0_u64, 0_u64), async |(n, bytes), sent: Option<u64>| {
                    Ok(sent.map_or((n, bytes), |sent| (n + 1, bytes + sent)))
                });
            let sent = remote.runtime.block_on(uploads);
            // Whoever still wants to send finds nobody.
            drop(receiver);
            let gone = || Error::Refused("a part of the push ended early".into());
            let cut = cutting.join().map_err(|_| gone())?;
            let exported = exporting.join().map_err(|_| gone())?;
            let (uploaded, uploaded_bytes) = sent.map_err(|e| remote.wrong(&e))?;
            exported?;
            let (lines, chunks) = cut?;
            let pushed = Pushed { version: 0, new: false, chunks, uploaded, uploaded_bytes };
            Ok((pushed, lines))
        })
    }

    /// Makes a codebase from a version in an object store, or brings the
    /// one that is called `name` here to it. What an interrupted pull has fetched is not fetched again.
    pub fn pull(
        &self,
        name: &str,
        remote: &Remote,
        wanted: &Wanted<'_>,
        options: &Options,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Made, Error> {
        let Wanted { theirs, version, force } = *wanted;
        for name in [theirs, name] {
            check_name(name).map_err(|_| Error::Name(name.to_owned()))?;
        }
        let existing = self.database.find(name)?;
        let version = match version {
            Some(version) => version,
            None => remote.latest(theirs)?,
        };
        if version == 0 {
            return Err(remote.problem(format!("there is no codebase called {theirs} there")));
        }
        if let Some(record) = &existing {
            let known = self.database.remote(&record.id, &remote.key)?;
            if known == Some((version, record.version)) {
                return Ok(Made { record: record.clone(), skipped: Vec::new() });
            }
            if record.sealed {
                return Err(Error::Sealed(name.to_owned()));
            }
            if !force && known.is_none_or(|(_, ours)| ours != record.version) {
                return Err(Error::Refused(format!(
                    "codebase {name} was changed here since it was pushed or pulled: pull with --force to replace it, or remove or rename it first"
                )));
            }
        }
        let manifest = remote.manifest(theirs, version)?;
        let fetched = self.fetch_chunks(name, remote, &manifest, progress)?;
        let draft = self.draft()?;
        let tree = rustix::fs::openat(&draft.dir, TREE, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", draft.path.join(TREE)))?;
        let archive = Archive::new(&manifest, &fetched.dir);
        make::unpack(&tree, Box::new(archive), &mut |_| {})?;
        let next = existing.as_ref().map_or(1, |old| old.version + 1);
        let mut record = make::indexed(&draft, &tree, name, (options, next))?;
        if let Some(old) = existing {
            record = Record {
                id: old.id,
                owner: old.owner,
                created: old.created,
                sealed: old.sealed,
                ..record
            };
            self.replace(&draft, &record)?;
        } else {
            self.keep(draft, &record)?;
        }
        self.database.set_remote(&record, &remote.key, version)?;
        fetched.remove(self);
        Ok(Made { record, skipped: Vec::new() })
    }

    /// All chunks of a version on this disk, each with the content that its digest says.
    fn fetch_chunks(
        &self,
        name: &str,
        remote: &Remote,
        manifest: &Manifest,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Fetched, Error> {
        let fetched = Fetched::open(self, name)?;
        let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
        for line in &manifest.lines {
            line.member(0, 0).map_err(|problem| remote.problem(problem))?;
            wanted.extend(line.pieces());
        }
        let mut done = Progress::default();
        let mut missing = Vec::new();
        for (digest, length) in wanted {
            if read_chunk(&fetched.dir, digest, length).is_ok() {
                done.names += 1;
                done.bytes += length as u64;
            } else {
                missing.push((digest, length));
            }
        }
        progress(done);
        let store = &*remote.store;
        let dir = &fetched.dir;
        let path = &fetched.path;
        let all = stream::iter(missing)
            .map(|(digest, length)| async move {
                let packed = fetch(store, &chunk_key(digest), MAX_CHUNK)
                    .await
                    .and_then(|packed| open_chunk(&packed, digest, length).map(|_| packed))
                    .map_err(|e| remote.problem(clean(&e)))?;
                keep_chunk(dir, path, digest, &packed)?;
                Ok::<_, Error>(length as u64)
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|length| {
                done.names += 1;
                done.bytes += length;
                progress(done);
                std::future::ready(Ok(()))
            });
        remote.runtime.block_on(all)?;
        Ok(fetched)
    }
}

/// Cuts an archive into chunks; what is not `there` is sent on.
fn cut(
    from: std::io::PipeReader,
    there: &mut HashSet<String>,
    to: &tokio::sync::mpsc::Sender<Upload>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(Vec<Line>, u64), Error> {
    let mut reader = Reader::new(std::io::BufReader::with_capacity(256 << 10, from));
    let mut lines = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let (mut chunks, mut done) = (0, Progress::default());
    let tar = |e| Error::Archive(ringfence_layers::pack::Error::Tar(e));
    while let Some(member) = reader.next_member().map_err(tar)? {
        let mut digests = Vec::new();
        loop {
            let mut filled = 0;
            while filled < CHUNK {
                match reader.content(&mut buffer[filled..]).map_err(tar)? {
                    0 => break,
                    n => filled += n,
                }
            }
            if filled == 0 {
                break;
            }
            let digest = digest(&buffer[..filled]);
            chunks += 1;
            if there.insert(digest.clone()) {
                let packed = zstd::bulk::compress(&buffer[..filled], LEVEL)
                    .map_err(|source| Error::Stream { what: "compress a chunk", source })?;
                if to.blocking_send(Upload { digest: digest.clone(), packed }).is_err() {
                    return Err(Error::Refused("the transfer ended early".into()));
                }
            }
            digests.push(digest);
            done.bytes += filled as u64;
        }
        done.names += 1;
        progress(done);
        let line = Line::new(&member, digests).ok_or_else(|| {
            Error::file(
                PathBuf::from(String::from_utf8_lossy(&member.path).into_owned()),
                "is of a kind that is not shared",
            )
        })?;
        lines.push(line);
    }
    Ok((lines, chunks))
}

/// The bytes that were transferred, or `None` if it was there.
async fn one_upload(
    store: &dyn ObjectStore,
    upload: Upload,
) -> Result<Option<u64>, object_store::Error> {
    let key = chunk_key(&upload.digest);
    match store.head(&key).await {
        // One that somebody else left half-way has another length.
        Ok(meta) if meta.size == upload.packed.len() as u64 => return Ok(None),
        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
        Err(e) => return Err(e),
    }
    let length = upload.packed.len() as u64;
    store.put(&key, PutPayload::from(upload.packed)).await?;
    Ok(Some(length))
}

/// Chunks on this disk, kept until the pull is complete.
struct Fetched {
    dir: OwnedFd,
    path: PathBuf,
    name: String,
    _lock: OwnedFd,
}

impl Fetched {
    fn open(all: &Codebases, codebase: &str) -> Result<Self, Error> {
        let name = format!("{PULL}{codebase}");
        let path = all.path.join(&name);
        let _lock = all.lock()?;
        match rustix::fs::mkdirat(&all.dir, &*name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::os("make", path)(errno)),
        }
        let dir = rustix::fs::openat(&all.dir, &*name, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &path))?;
        let lock = dir.try_clone().map_err(Error::io("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { dir, path, name, _lock: lock }),
            Err(Errno::WOULDBLOCK) => {
                Err(Error::Refused(format!("another process pulls {codebase} just now")))
            }
            Err(errno) => Err(Error::os("lock", path)(errno)),
        }
    }

    fn remove(self, all: &Codebases) {
        let _ = ringfence_layers::copy::remove_tree(all.dir.as_fd(), self.name.as_ref());
    }
}

fn read_chunk(dir: &OwnedFd, wanted: &str, length: usize) -> Result<Vec<u8>, String> {
    if !is_digest(wanted) {
        return Err("not a digest".into());
    }
    let packed = fd::read_regular(dir.as_fd(), wanted.as_bytes(), MAX_CHUNK)
        .map_err(|e| format!("chunk {wanted}: {e}"))?;
    open_chunk(&packed, wanted, length)
}

fn keep_chunk(dir: &OwnedFd, path: &Path, name: &str, packed: &[u8]) -> Result<(), Error> {
    let draft = format!(".{name}");
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, &*draft, flags, Mode::RUSR | Mode::WUSR)
        .map_err(Error::os("make", path.join(&draft)))?;
    std::fs::File::from(file).write_all(packed).map_err(Error::io("write", path.join(&draft)))?;
    rustix::fs::renameat(dir, &*draft, dir, name).map_err(Error::os("keep", path.join(name)))
}

/// A version as the archive that it was cut from, for the one reader that makes trees of archives.
struct Archive<'a> {
    manifest: &'a Manifest,
    chunks: &'a OwnedFd,
    owner: (u32, u32),
    line: usize,
    piece: usize,
    ready: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<'a> Archive<'a> {
    fn new(manifest: &'a Manifest, chunks: &'a OwnedFd) -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { manifest, chunks, owner, line: 0, piece: 0, ready: Vec::new(), at: 0, ended: false }
    }

    /// The next bytes; false at the end.
    fn more(&mut self) -> Result<bool, String> {
        self.at = 0;
        self.ready.clear();
        let Some(line) = self.manifest.lines.get(self.line) else {
            if std::mem::replace(&mut self.ended, true) {
                return Ok(false);
            }
            write_end(&mut self.ready).map_err(|e| e.to_string())?;
            return Ok(true);
        };
        if self.piece == 0 {
            let member = line.member(self.owner.0, self.owner.1)?;
            write_header(&mut self.ready, &member).map_err(|e| e.to_string())?;
            if member.kind != Kind::File || member.size == 0 {
                self.line += 1;
                return Ok(true);
            }
            self.piece = 1;
            return Ok(true);
        }
        if let Some((digest, length)) = line.pieces().nth(self.piece - 1) {
            self.ready = read_chunk(self.chunks, digest, length)?;
            self.piece += 1;
            return Ok(true);
        }
        self.ready.extend(&[0; BLOCK][..padding(line.size)]);
        self.line += 1;
        self.piece = 0;
        Ok(true)
    }
}

impl Read for Archive<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.ready.len() {
            if !self.more().map_err(std::io::Error::other)? {
                return Ok(0);
            }
        }
        let n = into.len().min(self.ready.len() - self.at);
        into[..n].copy_from_slice(&self.ready[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
