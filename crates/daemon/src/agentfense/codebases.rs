//! Codebases and their files. Their clients read and write the files of a sandbox by its codebase: where
//! one sandbox runs from it, what that one sees is what there is.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_util::Stream as Parts;
use futures_util::StreamExt as _;
use futures_util::stream::{iter, unfold};
use ringfence_api::codebases::CreateCodebase;
use ringfence_api::{FileInfo, State};
use ringfence_supervisor::codebases::{Answer as Told, Ask as Wish, Content};
use ringfence_supervisor::{Command, Kind, Reply};
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status, Streaming};

use super::wire::codebase_service_server::CodebaseService;
use super::wire::upload_chunk::Content as Part;
use super::{Ask, Fense, Handled, convert, page, said, unexpected, wire};

/// Bytes of a file that is sent here.
const MOST_FILE: usize = 64 << 20;
/// Bytes of a part of a file that is sent from here.
const PART: usize = 64 << 10;
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
    async fn codebase(&self, id: &str) -> Handled<ringfence_api::codebases::Codebase> {
        if !id.starts_with("cb_") {
            return Err(Status::not_found(format!("codebase not found: {id}")));
        }
        self.one(Wish::Get(id.into())).await
    }

    pub(super) async fn create_codebase(
        &self,
        asked: wire::CreateCodebaseRequest,
    ) -> Handled<wire::Codebase> {
        let random = ringfence_supervisor::random().map_err(said)?;
        let name = convert::name(&asked.name, &random)?;
        let owner = (!asked.owner_id.is_empty()).then_some(asked.owner_id);
        let made = CreateCodebase { name, owner, ..CreateCodebase::default() };
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
        let (codebases, next_page_token) = page(all, asked.page_size, &asked.page_token)?;
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

    /// The one sandbox that runs from it, if it is one.
    async fn running(&self, codebase: &ringfence_api::codebases::Codebase) -> Option<String> {
        let mut all = self.all_running(codebase).await;
        if all.len() == 1 { all.pop() } else { None }
    }

    /// Into a sandbox, by its own rules; the directories that are missing are made.
    async fn put(&self, sandbox: String, path: &str, bytes: Vec<u8>) -> Handled<()> {
        let there = format!("{WORKSPACE}/{path}");
        for (at, _) in there.match_indices('/').skip(2) {
            let path = there.get(..at).unwrap_or_default().to_owned();
            // Those that are there; else the write says what is wrong.
            let _ = self.run(Command::MakeDirectory { sandbox: sandbox.clone(), path }).await;
        }
        let write = Command::WriteFile { sandbox, path: there, bytes };
        self.run(write).await.map(drop).map_err(said)
    }

    async fn upload(&self, id: &str, path: &str, bytes: Vec<u8>) -> Handled<wire::UploadResult> {
        let codebase = self.codebase(id).await?;
        let path = relative(path)?;
        if path.is_empty() {
            return Err(Status::invalid_argument("file_path is required"));
        }
        let checksum = Sha256::digest(&bytes).iter().fold(String::new(), |mut hex, byte| {
            use std::fmt::Write as _;
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let size = bytes.len() as i64;
        let mut running = self.all_running(&codebase).await;
        match (running.pop(), running.is_empty()) {
            // What lies below the layer of one that runs stays as it is.
            (Some(sandbox), true) => self.put(sandbox, &path, bytes).await?,
            (Some(_), false) => {
                let message = "several sandboxes run from this codebase: stop them first";
                return Err(Status::failed_precondition(message));
            }
            (None, _) => {
                let content = Content::new(std::io::Cursor::new(bytes));
                let (name, path) = (codebase.id.clone(), path.clone());
                self.wish(Wish::Write { name, path, mode: None, content }).await?;
            }
        }
        Ok(wire::UploadResult { codebase_id: codebase.id, file_path: path, size, checksum })
    }

    async fn download(&self, asked: wire::DownloadFileRequest) -> Handled<Chunks> {
        let codebase = self.codebase(&asked.codebase_id).await?;
        let path = relative(&asked.file_path)?;
        if let Some(sandbox) = self.running(&codebase).await {
            let there = format!("{WORKSPACE}/{path}");
            let read = Command::ReadFile { sandbox, path: there, offset: 0, length: None };
            match self.run(read).await {
                Ok(Reply::Bytes(bytes)) => {
                    let parts: Vec<_> = bytes
                        .chunks(PART)
                        .map(|part| Ok(wire::FileChunk { data: part.to_vec() }))
                        .collect();
                    return Ok(Box::pin(iter(parts)));
                }
                // The client is the owner's side: rules of the sandbox do not hide the codebase from it.
                Err(e) if matches!(e.kind, Kind::NotFound | Kind::Refused | Kind::Conflict) => {}
                Ok(other) => return Err(unexpected(&other)),
                Err(e) => return Err(said(e)),
            }
        }
        let wish = Wish::Read { name: codebase.id, path, offset: 0, length: None };
        match self.wish(wish).await? {
            Told::Bytes(download) => Ok(Box::pin(unfold(download, |mut download| async move {
                let part = download.recv().await?;
                let part = part.map(|data| wire::FileChunk { data });
                Some((part.map_err(|e| Status::internal(e.to_string())), download))
            }))),
            other => Err(unexpected(&other)),
        }
    }

    /// What a sandbox sees below a directory, by path.
    async fn seen(&self, sandbox: &str, below: &str, all: bool) -> BTreeMap<String, FileInfo> {
        let mut found = BTreeMap::new();
        let mut left = vec![below.to_owned()];
        let mut looked = 0;
        while let Some(directory) = left.pop() {
            looked += 1;
            if looked > MOST_DIRECTORIES {
                break;
            }
            let path = format!("{WORKSPACE}/{directory}");
            let list = Command::ListFiles { sandbox: sandbox.into(), path };
            // Gone again, or not to be looked into.
            let Ok(Reply::Listing(listing)) = self.run(list).await else { continue };
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
        found
    }

    pub(super) async fn list_files(
        &self,
        asked: wire::ListFilesRequest,
    ) -> Handled<wire::ListFilesResponse> {
        let codebase = self.codebase(&asked.codebase_id).await?;
        let path = relative(&asked.path)?;
        let (name, recursive) = (codebase.id.clone(), asked.recursive);
        let running = self.running(&codebase).await;
        let mut all: BTreeMap<String, FileInfo> = BTreeMap::new();
        match self.wish(Wish::ListFiles { name, path: path.clone(), recursive }).await {
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
            Err(status) if running.is_none() => return Err(status),
            // A directory that only the sandbox has.
            Err(_) => {}
        }
        if let Some(sandbox) = &running {
            all.extend(self.seen(sandbox, &path, recursive).await);
        }
        let files = all.into_iter().map(|(path, info)| wire::FileInfo {
            name: path.rsplit('/').next().unwrap_or_default().to_owned(),
            is_dir: info.kind == "directory",
            size: info.size as i64,
            modified_at: Some(convert::timestamp(info.modified_ms.max(0) as u64)),
            path,
        });
        Ok(wire::ListFilesResponse { files: files.collect() })
    }
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
                    return Err(Status::invalid_argument("metadata comes once"));
                }
                Some(Part::Data(data)) if about.is_some() => {
                    if bytes.len() + data.len() > MOST_FILE {
                        let message = format!("the file is larger than {} MiB", MOST_FILE >> 20);
                        return Err(Status::resource_exhausted(message));
                    }
                    bytes.extend(data);
                }
                Some(Part::Data(_)) => {
                    return Err(Status::invalid_argument("metadata comes first"));
                }
                None => {}
            }
        }
        let about = about.ok_or_else(|| Status::invalid_argument("metadata is required"))?;
        ask.upload(&about.codebase_id, &about.file_path, bytes).await.map(Response::new)
    }

    async fn download_file(&self, request: Request<wire::DownloadFileRequest>) -> Answer<Chunks> {
        let (ask, asked) = self.of(request)?;
        ask.download(asked).await.map(Response::new)
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
