//! Codebases, as their owner: the store of `ringfence codebase`, behind the daemon. Everything waits for
//! the disk, so it is done on threads.

use std::ffi::OsStr;
use std::io::{Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence_api::codebases::{Codebase, CreateCodebase};
use ringfence_api::{FileInfo, Listing};
use ringfence_codebases::{Codebases, From as Made, Options, Record, Used};
use rustix::fs::FileType;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc};

use crate::error::{Error, Kind};
use crate::files::{blocking, info};
use crate::lock;

/// Names in one listing.
const MOST_NAMES: usize = 10_000;
const MOST_NAMES_BELOW: usize = 100_000;
/// Bytes of a download that are on their way, in parts of this size.
const PART: usize = 256 << 10;
const PARTS: usize = 4;

/// Bytes that somebody sends, read on another thread. Whoever takes them first has them.
#[derive(Clone)]
pub struct Content(Arc<Mutex<Option<Box<dyn Read + Send>>>>);

impl Content {
    pub fn new(from: impl Read + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(from)))))
    }

    pub(crate) fn take(&self) -> Box<dyn Read + Send> {
        lock(&self.0).take().unwrap_or_else(|| Box::new(std::io::empty()))
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Content")
    }
}

/// Bytes as they come. An error ends them.
pub type Download = mpsc::Receiver<std::io::Result<Vec<u8>>>;

/// What can be asked. Codebases are named by id or name.
#[derive(Clone, Debug)]
pub enum Ask {
    Create(Box<CreateCodebase>),
    /// Of an archive.
    CreateFrom {
        name: String,
        owner: Option<String>,
        sealed: bool,
        content: Content,
    },
    List,
    Get(String),
    /// Again is no error.
    Delete(String),
    Seal(String),
    Export {
        name: String,
        zstd: bool,
    },
    PutArchive {
        name: String,
        path: String,
        content: Content,
    },
    Read {
        name: String,
        path: String,
        offset: u64,
        length: Option<u64>,
    },
    Write {
        name: String,
        path: String,
        mode: Option<u32>,
        content: Content,
    },
    Stat {
        name: String,
        path: String,
    },
    ListFiles {
        name: String,
        path: String,
        recursive: bool,
    },
    MakeDirectory {
        name: String,
        path: String,
    },
    Remove {
        name: String,
        path: String,
        recursive: bool,
    },
    Move {
        name: String,
        from: String,
        to: String,
    },
}

impl Ask {
    /// There is more on the disk afterwards, perhaps.
    pub(crate) fn adds(&self) -> bool {
        matches!(
            self,
            Self::Create(_)
                | Self::CreateFrom { .. }
                | Self::PutArchive { .. }
                | Self::Write { .. }
                | Self::MakeDirectory { .. }
        )
    }

    /// A tree that sandboxes may be made of is changed.
    fn changes(&self) -> bool {
        matches!(
            self,
            Self::PutArchive { .. }
                | Self::Write { .. }
                | Self::MakeDirectory { .. }
                | Self::Remove { .. }
                | Self::Move { .. }
        )
    }
}

/// What comes of it.
#[derive(Debug)]
pub enum Answer {
    Done,
    Codebase(Box<Codebase>),
    Codebases(Vec<Codebase>),
    File(FileInfo),
    Listing(Listing),
    Bytes(Download),
}

/// Where codebases are.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    /// The store of layers and codebases.
    store: PathBuf,
    /// Shared by those who change something.
    changes: Arc<RwLock<()>>,
    /// Open, for who makes sandboxes: to open the database takes longer than to look into it, and as long as
    /// one is open the others are quicker.
    kept: Arc<Kept>,
}

/// With the database that it is of: another may be there by now.
type Kept = Mutex<Option<((u64, u64), Codebases)>>;

/// A codebase that a sandbox is to be made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub id: String,
    pub name: String,
    pub tree: PathBuf,
    pub version: u64,
}

fn said(e: &ringfence_codebases::Error) -> Error {
    use ringfence_codebases::Error as E;
    use rustix::io::Errno;
    let kind = match e {
        E::NoCodebase(_) | E::Missing(_) | E::Os { errno: Errno::NOENT | Errno::NOTDIR, .. } => {
            Kind::NotFound
        }
        E::Taken(_) | E::Sealed(_) | E::InUse { .. } => Kind::Conflict,
        E::Name(_) | E::File { .. } | E::Os { errno: Errno::NAMETOOLONG, .. } => Kind::Invalid,
        E::Refused(_)
        | E::Archive(_)
        | E::Stream { .. }
        | E::Os { errno: Errno::ACCESS | Errno::PERM, .. } => Kind::Refused,
        E::Os { errno: Errno::NOSPC | Errno::DQUOT, .. } => Kind::Limit,
        _ => Kind::Internal,
    };
    let error = Error::new(kind, e.to_string());
    match e {
        E::NoCodebase(name) => {
            Error::new(kind, format!("no such codebase: {}", crate::error::shown(name)))
                .with("list them: `ringfence codebase list`")
        }
        E::InUse { .. } => error.with("stop or delete the sandbox first"),
        _ => error,
    }
}

fn told<T>(done: Result<T, ringfence_codebases::Error>) -> Result<T, Error> {
    done.map_err(|e| said(&e))
}

fn codebase(record: Record) -> Codebase {
    let ms = |s: ringfence_layers::Stamp| s.0.saturating_mul(1000) + i64::from(s.1 / 1_000_000);
    Codebase {
        created_ms: ms(record.created),
        updated_ms: ms(record.updated),
        id: record.id,
        name: record.name,
        owner: record.owner,
        size: record.size,
        files: record.files,
        entries: record.entries,
        sealed: record.sealed,
        version: record.version,
        sandboxes: Vec::new(),
    }
}

fn one(record: Record) -> Answer {
    Answer::Codebase(Box::new(codebase(record)))
}

impl Shelf {
    pub(crate) fn new(store: PathBuf) -> Self {
        Self { store, changes: Arc::default(), kept: Arc::default() }
    }

    /// Waits until nobody changes anything, and lets nobody begin to as long as what is answered lives.
    /// Who is in the middle of a long upload may take too long.
    pub(crate) async fn quiet(&self, patience: Duration) -> Option<OwnedRwLockWriteGuard<()>> {
        tokio::time::timeout(patience, self.changes.clone().write_owned()).await.ok()
    }

    fn open(&self) -> Result<Codebases, Error> {
        told(Codebases::open(&self.store))
    }

    /// Looks into the one that is kept open.
    fn look<T>(
        &self,
        what: impl FnOnce(&Codebases) -> Result<T, ringfence_codebases::Error>,
    ) -> Result<T, Error> {
        let there = Codebases::database_id(&self.store);
        let mut kept = lock(&self.kept);
        if kept.as_ref().is_none_or(|(id, _)| Some(*id) != there) {
            let opened = self.open()?;
            let Some(id) = Codebases::database_id(&self.store) else {
                return told(what(&opened));
            };
            *kept = Some((id, opened));
        }
        match kept.as_ref() {
            Some((_, all)) => told(what(all)),
            None => told(what(&self.open()?)),
        }
    }

    /// A codebase as it is now. With a layer, that lies over it from now on.
    pub(crate) async fn find(&self, name: &str, layer: Option<&str>) -> Result<Found, Error> {
        let (shelf, name, layer) = (self.clone(), name.to_owned(), layer.map(ToOwned::to_owned));
        blocking(move || {
            let mut found = shelf.look(|all| all.get(&name))?;
            if let Some(layer) = layer {
                shelf.look(|all| all.settle(&found, &layer))?;
                if found.index().is_none() {
                    // A start goes by the index. Without one it takes longer, and no more. To make one takes
                    // long too: nobody waits for that who does not need it.
                    let _ = shelf.open()?.names(&found);
                }
                found = shelf.look(|all| all.get(&found.record.id))?;
            }
            let tree = std::fs::canonicalize(found.tree())
                .map_err(|e| Error::internal(format!("{}: {e}", found.tree().display())))?;
            let Record { id, name, version, .. } = found.record;
            Ok(Found { id, name, tree, version })
        })
        .await
    }

    /// Carries out what needs nothing of the sandboxes.
    pub(crate) async fn run(&self, ask: Ask) -> Result<Answer, Error> {
        let shelf = self.clone();
        match ask {
            Ask::Export { name, zstd } => shelf.export(name, zstd).await,
            Ask::Read { name, path, offset, length } => {
                shelf.read(name, path, offset, length).await
            }
            ask => {
                let change = if ask.changes() {
                    Some(self.changes.clone().read_owned().await)
                } else {
                    None
                };
                blocking(move || {
                    let _change = change;
                    shelf.carry_out(ask)
                })
                .await
            }
        }
    }

    fn carry_out(&self, ask: Ask) -> Result<Answer, Error> {
        let all = self.open()?;
        // Sandboxes that run keep what they have.
        let used = Used::Kept;
        let done = |record: Record| {
            let _ = record;
            Answer::Done
        };
        match ask {
            Ask::Create(asked) => create(&all, *asked),
            Ask::CreateFrom { name, owner, sealed, content } => {
                let options = Options { owner, sealed, ..Options::default() };
                let made = all.create(&name, Made::Stream(content.take()), &options, &mut |_| {});
                told(made).map(|made| one(made.record))
            }
            Ask::List => {
                Ok(Answer::Codebases(told(all.list())?.into_iter().map(codebase).collect()))
            }
            Ask::Get(name) => counted(&all, &name),
            Ask::Delete(name) => match all.remove(&name) {
                Ok(_) | Err(ringfence_codebases::Error::NoCodebase(_)) => Ok(Answer::Done),
                Err(e) => Err(said(&e)),
            },
            Ask::Seal(name) => told(all.seal(&name)).map(one),
            Ask::PutArchive { name, path, content } => {
                let put = all.put_archive(&name, OsStr::new(&path), content.take(), used);
                counted(&all, &told(put)?.id)
            }
            Ask::Write { name, path, mode, content } => {
                told(all.put_as(&name, OsStr::new(&path), mode, content.take(), used))?;
                stat(&all, &name, &path)
            }
            Ask::Stat { name, path } => stat(&all, &name, &path),
            Ask::ListFiles { name, path, recursive } => list(&all, &name, &path, recursive),
            Ask::MakeDirectory { name, path } => {
                told(all.make_directory(&name, OsStr::new(&path), used)).map(done)
            }
            Ask::Remove { name, path, recursive } => {
                told(all.remove_file(&name, OsStr::new(&path), recursive, used)).map(done)
            }
            Ask::Move { name, from, to } => {
                told(all.move_file(&name, OsStr::new(&from), OsStr::new(&to), used)).map(done)
            }
            Ask::Export { .. } | Ask::Read { .. } => Err(Error::internal("not done here")),
        }
    }

    async fn export(self, name: String, zstd: bool) -> Result<Answer, Error> {
        let shelf = self.clone();
        let found = blocking(move || told(shelf.open()?.get(&name))).await?;
        Ok(Answer::Bytes(download(move |out| {
            found.export(out, zstd).map(drop).map_err(|e| e.to_string())
        })))
    }

    async fn read(
        self,
        name: String,
        path: String,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Answer, Error> {
        let (mut file, _) = blocking(move || {
            let found = told(self.open()?.get(&name))?;
            told(found.open_file(OsStr::new(&path)))
        })
        .await?;
        Ok(Answer::Bytes(download(move |mut out| {
            file.seek(SeekFrom::Start(offset)).map_err(|e| e.to_string())?;
            let mut part = file.take(length.unwrap_or(u64::MAX));
            std::io::copy(&mut part, &mut out).map(drop).map_err(|e| e.to_string())
        })))
    }
}

fn create(all: &Codebases, asked: CreateCodebase) -> Result<Answer, Error> {
    let CreateCodebase { name, directory, exclude, owner, sealed } = asked;
    let from = match &directory {
        Some(path) if !path.starts_with('/') => {
            return Err(Error::invalid("directory: not an absolute path"));
        }
        Some(path) => Made::Directory(Path::new(path)),
        None if !exclude.is_empty() => {
            return Err(Error::invalid("exclude: there is no directory to leave anything out of"));
        }
        None => Made::Nothing,
    };
    let options = Options { owner, sealed, exclude, ..Options::default() };
    told(all.create(&name, from, &options, &mut |_| {})).map(|made| one(made.record))
}

/// A codebase, counted where it was not since its last change.
fn counted(all: &Codebases, name: &str) -> Result<Answer, Error> {
    let found = told(all.get(name))?;
    told(all.names(&found))?;
    told(all.get(&found.record.id)).map(|found| one(found.record))
}

fn stat(all: &Codebases, name: &str, path: &str) -> Result<Answer, Error> {
    let found = told(all.get(name))?;
    let stat = told(found.stat(OsStr::new(path)))?;
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    Ok(Answer::File(info(last.to_owned(), &stat)))
}

fn list(all: &Codebases, name: &str, path: &str, recursive: bool) -> Result<Answer, Error> {
    let found = told(all.get(name))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !recursive {
        let (names, truncated) = told(found.children(OsStr::new(path), MOST_NAMES))?;
        let entries = names.iter().map(|(name, stat)| info(text(name.as_encoded_bytes()), stat));
        return Ok(Answer::Listing(Listing { entries: entries.collect(), truncated }));
    }
    let names = told(all.files(&found, OsStr::new(path), true))?;
    let truncated = names.len() > MOST_NAMES_BELOW;
    let kind = |kind| match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "other",
    };
    let entries = names.into_iter().take(MOST_NAMES_BELOW).map(|n| FileInfo {
        etag: None,
        name: text(&n.path),
        kind: kind(n.kind).into(),
        size: n.size,
        // The index does not have it.
        mode: if n.kind == FileType::Directory { 0o755 } else { 0o644 },
        modified_ms: n.mtime.0.saturating_mul(1000) + i64::from(n.mtime.1 / 1_000_000),
    });
    Ok(Answer::Listing(Listing { entries: entries.collect(), truncated }))
}

/// What `write` writes, part by part, as fast as it is taken.
pub(crate) fn download(
    write: impl FnOnce(&mut dyn Write) -> Result<(), String> + Send + 'static,
) -> Download {
    let (sender, receiver) = mpsc::channel(PARTS);
    tokio::task::spawn_blocking(move || {
        let to = Parts(sender.clone());
        let mut out = std::io::BufWriter::with_capacity(PART, to);
        let done = write(&mut out).and_then(|()| out.flush().map_err(|e| e.to_string()));
        if let Err(problem) = done {
            // Nobody is there any more, perhaps.
            let _ = sender.blocking_send(Err(std::io::Error::other(problem)));
        }
    });
    receiver
}

struct Parts(mpsc::Sender<std::io::Result<Vec<u8>>>);

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .blocking_send(Ok(bytes.to_vec()))
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
