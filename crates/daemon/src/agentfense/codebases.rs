//! Codebases and their files. Their clients read and write the files of a sandbox by its codebase: where
//! one sandbox runs from it, what that one sees is what there is.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_util::Stream as Parts;
use futures_util::StreamExt as _;
use futures_util::stream::{iter, unfold};
use md5::{Digest as _, Md5};
use prost::Message as _;
use ringfence_api::codebases::CreateCodebase;
use ringfence_api::{FileInfo, State};
use ringfence_supervisor::codebases::{Answer as Told, Ask as Wish, Content};
use ringfence_supervisor::{Command, Kind, Part as Range, Reply, When, Written};
use tonic::{Code, Request, Response, Status, Streaming};

use super::convert::required;
use super::wire::codebase_service_server::CodebaseService;
use super::wire::upload_chunk::Content as Part;
use super::{Ask, Fense, Handled, MOST_ANSWER, convert, page, said, unexpected, wire};

/// Bytes of a file that is sent here.
const MOST_FILE: usize = 64 << 20;
/// Bytes of a part of a file that is sent from here.
const PART: usize = 64 << 10;
/// Bytes of a file of a sandbox that are read at once.
const READ: u64 = 1 << 20;
/// Directories of a sandbox that are looked into for one list.
const MOST_DIRECTORIES: usize = 2_000;
/// Where a sandbox sees its codebase.
const WORKSPACE: &str = "/workspace";

type Answer<T> = Result<Response<T>, Status>;
type Chunks = Pin<Box<dyn Parts<Item = Handled<wire::FileChunk>> + Send>>;

/// A path of theirs, relative to the codebase.
fn relative(path: &str) -> Handled<String> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") || path.contains('\0') {
        return Err(Status::invalid_argument("file_path: it leads out of the codebase"));
    }
    Ok(parts.join("/"))
}

/// Whether a path is another, or lies below it.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn no_file(path: &str) -> Status {
    Status::not_found(format!("file not found: {path}"))
}

fn too_many() -> Status {
    Status::resource_exhausted("too many files for one list: list the directories one by one")
}

impl Ask {
    async fn wish(&self, wish: Wish) -> Result<Told, Status> {
        match self.run(Command::Codebases(wish)).await.map_err(said)? {
            Reply::Codebases(told) => Ok(told),
            other => Err(unexpected(&other)),
        }
    }

    async fn one(&self, wish: Wish) -> Handled<ringfence_api::codebases::Codebase> {
        match self.wish(wish).await? {
            Told::Codebase(codebase) => Ok(*codebase),
            other => Err(unexpected(&other)),
        }
    }

    /// By its id alone: a name of theirs is not unique.
    pub(super) async fn codebase(&self, id: &str) -> Handled<ringfence_api::codebases::Codebase> {
        required(id, "codebase_id")?;
        let absent = || Status::not_found(format!("codebase not found: {id}"));
        if !id.starts_with("cb_") {
            return Err(absent());
        }
        self.one(Wish::Get(id.into())).await.map_err(|status| match status.code() {
            Code::NotFound => absent(),
            _ => status,
        })
    }

    pub(super) async fn create_codebase(
        &self,
        asked: wire::CreateCodebaseRequest,
    ) -> Handled<wire::Codebase> {
        required(&asked.name, "name")?;
        required(&asked.owner_id, "owner_id")?;
        let random = ringfence_supervisor::random().map_err(said)?;
        let name = convert::name(&asked.name, &random)?;
        let made =
            CreateCodebase { name, owner: Some(asked.owner_id), ..CreateCodebase::default() };
        Ok(convert::codebase(&self.one(Wish::Create(Box::new(made))).await?))
    }

    pub(super) async fn get_codebase(&self, id: &str) -> Handled<wire::Codebase> {
        Ok(convert::codebase(&self.codebase(id).await?))
    }

    pub(super) async fn list_codebases(
        &self,
        asked: wire::ListCodebasesRequest,
    ) -> Handled<wire::ListCodebasesResponse> {
        let mut all = match self.wish(Wish::List).await? {
            Told::Codebases(all) => all,
            other => return Err(unexpected(&other)),
        };
        all.retain(|codebase| asked.owner_id.is_empty() || codebase.owner == asked.owner_id);
        let all = all.iter().map(convert::codebase).collect();
        let (codebases, next_page_token) = page(all, asked.page_size, &asked.page_token);
        Ok(wire::ListCodebasesResponse { codebases, next_page_token })
    }

    pub(super) async fn delete_codebase(&self, id: &str) -> Handled<wire::Empty> {
        let id = self.codebase(id).await?.id;
        self.wish(Wish::Delete(id)).await?;
        Ok(wire::Empty {})
    }

    /// The sandboxes that run from it.
    async fn all_running(&self, codebase: &ringfence_api::codebases::Codebase) -> Vec<String> {
        let mut found = Vec::new();
        for id in &codebase.sandboxes {
            if let Ok(Reply::Sandbox(sandbox)) = self.run(Command::Get(id.clone())).await
                && matches!(sandbox.state, State::Running | State::Idle)
            {
                found.push(sandbox.id);
            }
        }
        found
    }

    /// Into a sandbox, by its own rules; the directories that are missing are made.
    async fn put(&self, sandbox: String, path: &str, bytes: Vec<u8>) -> Handled<()> {
        let there = format!("{WORKSPACE}/{path}");
        for (at, _) in there.match_indices('/').skip(2) {
            let path = there.get(..at).unwrap_or_default().to_owned();
            // Those that are there; else the write says what is wrong.
            let _ = self.run(Command::MakeDirectory { sandbox: sandbox.clone(), path }).await;
        }
        let write = Command::WriteFile {
            sandbox,
            path: there,
            bytes: Written::Whole(bytes),
            durable: false,
            when: When::default(),
        };
        self.run(write).await.map(drop).map_err(said)
    }

    async fn upload(&self, id: &str, path: &str, bytes: Vec<u8>) -> Handled<wire::UploadResult> {
        let codebase = self.codebase(id).await?;
        let path = relative(path)?;
        if path.is_empty() {
            return Err(Status::invalid_argument("file_path is required"));
        }
        // Theirs: it says that what arrived is what was sent, nothing more.
        let checksum = Md5::digest(&bytes).iter().fold(String::new(), |mut hex, byte| {
            use std::fmt::Write as _;
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let size = bytes.len() as i64;
        let mut given = Vec::new();
        // Those that run keep the tree that they have: they are given it as far as their rules allow.
        for sandbox in self.all_running(&codebase).await {
            match self.put(sandbox.clone(), &path, bytes.clone()).await {
                Ok(()) => given.push((sandbox, true)),
                Err(status) if is_of_rules(&status) => given.push((sandbox, false)),
                Err(status) => return Err(status),
            }
        }
        let content = Content::new(std::io::Cursor::new(bytes));
        let (name, at) = (codebase.id.clone(), path.clone());
        self.wish(Wish::Write { name, path: at, mode: None, content }).await?;
        let mut memory = self.known.memory();
        for (sandbox, given) in given {
            memory.uploads.entry(sandbox).or_default().insert(path.clone(), given);
        }
        drop(memory);
        Ok(wire::UploadResult { codebase_id: codebase.id, file_path: path, size, checksum })
    }

    /// The beginning of a file as a sandbox sees it.
    async fn begun(
        &self,
        sandbox: &str,
        path: &str,
    ) -> Result<Vec<u8>, ringfence_supervisor::Error> {
        let (sandbox, path) = (sandbox.to_owned(), format!("{WORKSPACE}/{path}"));
        let part = Range::From { offset: 0, length: Some(READ) };
        let read = Command::ReadFile { sandbox, path, part, when: When::default() };
        match self.run(read).await? {
            Reply::Read(read) => Ok(read.bytes()),
            other => Err(ringfence_supervisor::Error::internal(format!("{other:?}"))),
        }
    }

    /// What a sandbox's commands removed, from the codebase on. What its rules hide is not among it.
    async fn removed(&self, sandbox: &str) -> Vec<String> {
        use ringfence_supervisor::layers::{Answer, Ask as Layers};
        let ask = Layers::Diff { path: None };
        let asked = Command::Layer { sandbox: sandbox.into(), ask };
        let Ok(Reply::Layer(Answer::Changes(all))) = self.run(asked).await else {
            return Vec::new();
        };
        let is = |change: &serde_json::Map<String, serde_json::Value>| {
            let removed = change.get("status").is_some_and(|status| status == "D");
            removed.then(|| change.get("relative")?.as_str().map(ToOwned::to_owned)).flatten()
        };
        all.changes.iter().filter_map(is).collect()
    }

    async fn download(&self, asked: wire::DownloadFileRequest) -> Handled<Chunks> {
        let codebase = self.codebase(&asked.codebase_id).await?;
        let path = relative(&asked.file_path)?;
        let running = self.all_running(&codebase).await;
        if let [sandbox] = running.as_slice()
            && self.known.given(sandbox, &path) != Some(false)
        {
            match self.begun(sandbox, &path).await {
                Ok(begun) => return Ok(self.rest(sandbox.clone(), &path, begun)),
                Err(e) if e.kind == Kind::NotFound => {
                    let given = self.known.given(sandbox, &path).is_some();
                    let removed = self.removed(sandbox).await;
                    if given || removed.iter().any(|gone| is_below(&path, gone)) {
                        return Err(no_file(&path));
                    }
                }
                // The client is the owner's side: rules of the sandbox do not hide the codebase from it.
                Err(e) if matches!(e.kind, Kind::Refused | Kind::Conflict) => {}
                Err(e) => return Err(said(e)),
            }
        }
        let wish = Wish::Read { name: codebase.id, path: path.clone(), offset: 0, length: None };
        match self.wish(wish).await {
            Ok(Told::Bytes(download)) => {
                Ok(Box::pin(unfold(download, |mut download| async move {
                    let part = download.recv().await?;
                    let part = part.map(|data| wire::FileChunk { data });
                    Some((part.map_err(|e| Status::internal(e.to_string())), download))
                })))
            }
            Ok(other) => Err(unexpected(&other)),
            // With several that run: where one alone has it, it is that one's.
            Err(status) if status.code() == Code::NotFound && running.len() > 1 => {
                let mut having = Vec::new();
                for sandbox in running {
                    if let Ok(begun) = self.begun(&sandbox, &path).await {
                        having.push((sandbox, begun));
                    }
                }
                match (having.pop(), having.is_empty()) {
                    (Some((sandbox, begun)), true) => Ok(self.rest(sandbox, &path, begun)),
                    _ => Err(status),
                }
            }
            Err(status) => Err(status),
        }
    }

    /// A file of a sandbox whose beginning was read: piece by piece, however large it is.
    fn rest(&self, sandbox: String, path: &str, begun: Vec<u8>) -> Chunks {
        let path = format!("{WORKSPACE}/{path}");
        let state = Some((self.clone(), 0, Some(begun)));
        let pieces = unfold(state, move |state| {
            let (sandbox, path) = (sandbox.clone(), path.clone());
            async move {
                let (ask, offset, begun) = state?;
                let length = Some(READ);
                let piece = if let Some(begun) = begun {
                    Ok(begun)
                } else {
                    let part = Range::From { offset, length };
                    let when = When::default();
                    match ask.run(Command::ReadFile { sandbox, path, part, when }).await {
                        Ok(Reply::Read(read)) => Ok(read.bytes()),
                        Ok(other) => Err(unexpected(&other)),
                        Err(e) => Err(said(e)),
                    }
                };
                let read = piece.as_ref().map_or(0, |piece| piece.len() as u64);
                let more = (read == READ).then_some((ask, offset + read, None));
                Some((piece, more))
            }
        });
        let parts = |piece: Handled<Vec<u8>>| match piece {
            Ok(bytes) => iter(
                bytes
                    .chunks(PART)
                    .map(|part| Ok(wire::FileChunk { data: part.to_vec() }))
                    .collect::<Vec<_>>(),
            ),
            Err(status) => iter(vec![Err(status)]),
        };
        Box::pin(pieces.flat_map(parts))
    }

    /// What a sandbox sees below a directory, by path.
    async fn seen(
        &self,
        sandbox: &str,
        below: &str,
        all: bool,
    ) -> Handled<BTreeMap<String, FileInfo>> {
        let mut found = BTreeMap::new();
        let mut left = vec![below.to_owned()];
        let mut looked = 0;
        while let Some(directory) = left.pop() {
            looked += 1;
            if looked > MOST_DIRECTORIES {
                return Err(too_many());
            }
            let path = format!("{WORKSPACE}/{directory}");
            let list = Command::ListFiles { sandbox: sandbox.into(), path };
            // Gone again, or not to be looked into.
            let Ok(Reply::Listing(listing)) = self.run(list).await else { continue };
            if listing.truncated {
                return Err(too_many());
            }
            for info in listing.entries {
                let path = if directory.is_empty() {
                    info.name.clone()
                } else {
                    format!("{directory}/{}", info.name)
                };
                if all && info.kind == "directory" {
                    left.push(path.clone());
                }
                found.insert(path, info);
            }
        }
        Ok(found)
    }

    pub(super) async fn list_files(
        &self,
        asked: wire::ListFilesRequest,
    ) -> Handled<wire::ListFilesResponse> {
        let codebase = self.codebase(&asked.codebase_id).await?;
        let path = relative(&asked.path)?;
        let (name, recursive) = (codebase.id.clone(), asked.recursive);
        let mut running = self.all_running(&codebase).await;
        let running = if running.len() == 1 { running.pop() } else { None };
        let mut all: BTreeMap<String, FileInfo> = BTreeMap::new();
        match self.wish(Wish::ListFiles { name, path: path.clone(), recursive }).await {
            Ok(Told::Listing(listing)) if listing.truncated => return Err(too_many()),
            Ok(Told::Listing(listing)) => {
                for info in listing.entries {
                    // Names of a recursive list are paths, from the codebase on.
                    let whole = recursive || path.is_empty();
                    let full =
                        if whole { info.name.clone() } else { format!("{path}/{}", info.name) };
                    all.insert(full, info);
                }
            }
            Ok(other) => return Err(unexpected(&other)),
            // A directory that is not there is an empty one for theirs; or only the sandbox has it.
            Err(status) if status.code() == Code::NotFound && !recursive => {}
            Err(status) if running.is_none() => return Err(status),
            Err(_) => {}
        }
        if let Some(sandbox) = &running {
            let removed = self.removed(sandbox).await;
            let seen = self.seen(sandbox, &path, recursive).await?;
            all.retain(|path, _| {
                let given = self.known.given(sandbox, path) == Some(true);
                let gone = given && !seen.contains_key(path);
                !gone && !removed.iter().any(|gone| is_below(path, gone))
            });
            for (path, info) in seen {
                if self.known.given(sandbox, &path) != Some(false) || !all.contains_key(&path) {
                    all.insert(path, info);
                }
            }
        }
        let files = all.into_iter().map(|(path, info)| wire::FileInfo {
            name: path.rsplit('/').next().unwrap_or_default().to_owned(),
            is_dir: info.kind == "directory",
            size: info.size as i64,
            modified_at: Some(convert::timestamp(info.modified_ms.max(0) as u64)),
            path,
        });
        let answer = wire::ListFilesResponse { files: files.collect() };
        if answer.encoded_len() > MOST_ANSWER { Err(too_many()) } else { Ok(answer) }
    }
}

/// A sandbox's rules, or that it was stopped meanwhile: it goes on without the file.
fn is_of_rules(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied | Code::NotFound | Code::FailedPrecondition | Code::Aborted
    )
}

#[tonic::async_trait]
impl CodebaseService for Fense {
    type DownloadFileStream = Chunks;

    async fn create_codebase(
        &self,
        request: Request<wire::CreateCodebaseRequest>,
    ) -> Answer<wire::Codebase> {
        let (ask, asked) = self.of(request)?;
        ask.create_codebase(asked).await.map(Response::new)
    }

    async fn get_codebase(
        &self,
        request: Request<wire::GetCodebaseRequest>,
    ) -> Answer<wire::Codebase> {
        let (ask, asked) = self.of(request)?;
        ask.get_codebase(&asked.codebase_id).await.map(Response::new)
    }

    async fn list_codebases(
        &self,
        request: Request<wire::ListCodebasesRequest>,
    ) -> Answer<wire::ListCodebasesResponse> {
        let (ask, asked) = self.of(request)?;
        ask.list_codebases(asked).await.map(Response::new)
    }

    async fn delete_codebase(
        &self,
        request: Request<wire::DeleteCodebaseRequest>,
    ) -> Answer<wire::Empty> {
        let (ask, asked) = self.of(request)?;
        ask.delete_codebase(&asked.codebase_id).await.map(Response::new)
    }

    /// What it is comes first, then its bytes.
    async fn upload_files(
        &self,
        request: Request<Streaming<wire::UploadChunk>>,
    ) -> Answer<wire::UploadResult> {
        let (ask, mut parts) = self.of(request)?;
        let mut about = None;
        let mut bytes = Vec::new();
        while let Some(part) = parts.next().await {
            match part?.content {
                Some(Part::Metadata(first)) if about.is_none() => about = Some(first),
                Some(Part::Metadata(_)) => {
                    return Err(Status::invalid_argument("metadata already received"));
                }
                Some(Part::Data(data)) if about.is_some() => {
                    if bytes.len() + data.len() > MOST_FILE {
                        let message = format!("the file is larger than {} MiB", MOST_FILE >> 20);
                        return Err(Status::resource_exhausted(message));
                    }
                    bytes.extend(data);
                }
                Some(Part::Data(_)) => {
                    return Err(Status::invalid_argument("metadata must be sent first"));
                }
                None => {}
            }
        }
        let about = about.ok_or_else(|| Status::invalid_argument("no metadata received"))?;
        ask.upload(&about.codebase_id, &about.file_path, bytes).await.map(Response::new)
    }

    async fn download_file(&self, request: Request<wire::DownloadFileRequest>) -> Answer<Chunks> {
        let (ask, asked) = self.of(request)?;
        required(&asked.codebase_id, "codebase_id")?;
        let path = asked.file_path.clone();
        let answer = ask.download(asked).await.map(Response::new);
        answer.map_err(|status| match status.code() {
            Code::NotFound if status.message().starts_with("codebase") => status,
            // Whatever the reason is.
            Code::NotFound
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::FailedPrecondition => no_file(&path),
            _ => status,
        })
    }

    async fn list_files(
        &self,
        request: Request<wire::ListFilesRequest>,
    ) -> Answer<wire::ListFilesResponse> {
        let (ask, asked) = self.of(request)?;
        ask.list_files(asked).await.map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::relative;

    #[test]
    fn paths_stay_in_the_codebase() {
        assert_eq!(relative("/src//main.py").unwrap(), "src/main.py");
        assert_eq!(relative("./a/./b").unwrap(), "a/b");
        assert_eq!(relative("").unwrap(), "");
        for bad in ["../x", "a/../../x", "a\0b"] {
            assert!(relative(bad).is_err(), "{bad}");
        }
    }
}
