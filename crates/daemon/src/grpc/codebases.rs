//! Codebases.

use ringfence_supervisor::codebases::{Answer as Came, Ask as Wish};
use ringfence_supervisor::{Command, Reply};
use tonic::{Request, Response, Streaming};

use super::files::{first, rest};
use super::wire::codebases_server::Codebases;
use super::{
    Answer, Ask, Grpc, Handled, Parts, answer, asked, fields, sent, told, unexpected, wire,
};

impl Ask {
    async fn codebases(&self, wish: Wish) -> Handled<Came> {
        match self.run(Command::Codebases(wish)).await? {
            Reply::Codebases(came) => Ok(came),
            other => Err(unexpected(&other)),
        }
    }

    async fn codebase(&self, wish: Wish) -> Answer<wire::Codebase> {
        match self.codebases(wish).await? {
            Came::Codebase(codebase) => answer(&codebase),
            other => Err(unexpected(&other)),
        }
    }

    async fn file(&self, wish: Wish) -> Answer<wire::FileInfo> {
        match self.codebases(wish).await? {
            Came::File(info) => answer(&info),
            other => Err(unexpected(&other)),
        }
    }

    async fn parts(&self, wish: Wish) -> Answer<Parts> {
        match self.codebases(wish).await? {
            Came::Bytes(download) => Ok(Response::new(sent(download))),
            other => Err(unexpected(&other)),
        }
    }
}

#[tonic::async_trait]
impl Codebases for Grpc {
    type ReadFileStream = Parts;
    type ExportStream = Parts;

    async fn create(&self, request: Request<wire::CreateCodebase>) -> Answer<wire::Codebase> {
        let (ask, message) = self.of(request)?;
        let made_of = asked(fields(&message, &[])?)?;
        ask.codebase(Wish::Create(Box::new(made_of))).await
    }

    async fn list(&self, request: Request<wire::Nothing>) -> Answer<wire::CodebaseList> {
        let (ask, _) = self.of(request)?;
        match ask.codebases(Wish::List).await? {
            Came::Codebases(codebases) => {
                Ok(Response::new(wire::CodebaseList { codebases: told(&codebases)? }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn get(&self, request: Request<wire::CodebaseName>) -> Answer<wire::Codebase> {
        let (ask, name) = self.of(request)?;
        ask.codebase(Wish::Get(name.codebase)).await
    }

    async fn delete(&self, request: Request<wire::CodebaseName>) -> Answer<wire::Nothing> {
        let (ask, name) = self.of(request)?;
        ask.done(Command::Codebases(Wish::Delete(name.codebase))).await
    }

    async fn seal(&self, request: Request<wire::CodebaseName>) -> Answer<wire::Codebase> {
        let (ask, name) = self.of(request)?;
        ask.codebase(Wish::Seal(name.codebase)).await
    }

    async fn read_file(&self, request: Request<wire::FileRange>) -> Answer<Parts> {
        let (ask, message) = self.of(request)?;
        let wire::FileRange { codebase: name, path, offset, length, .. } = message;
        ask.parts(Wish::Read { name, path, offset, length }).await
    }

    async fn write_file(
        &self,
        request: Request<Streaming<wire::FilePart>>,
    ) -> Answer<wire::FileInfo> {
        let (ask, mut from) = self.of(request)?;
        let wire::FilePart { codebase: name, path, mode, data, .. } = first(&mut from).await?;
        if mode.is_some_and(|mode| mode > 0o777) {
            return Err(super::invalid("mode: more than permissions"));
        }
        ask.file(Wish::Write { name, path, mode, content: rest(data, from) }).await
    }

    async fn stat_file(&self, request: Request<wire::FilePath>) -> Answer<wire::FileInfo> {
        let (ask, wire::FilePath { codebase: name, path, .. }) = self.of(request)?;
        ask.file(Wish::Stat { name, path }).await
    }

    async fn list_files(&self, request: Request<wire::FilePath>) -> Answer<wire::FileList> {
        let (ask, message) = self.of(request)?;
        let wire::FilePath { codebase: name, path, recursive, .. } = message;
        match ask.codebases(Wish::ListFiles { name, path, recursive }).await? {
            Came::Listing(listing) => answer(&listing),
            other => Err(unexpected(&other)),
        }
    }

    async fn make_directory(&self, request: Request<wire::FilePath>) -> Answer<wire::Nothing> {
        let (ask, wire::FilePath { codebase: name, path, .. }) = self.of(request)?;
        ask.done(Command::Codebases(Wish::MakeDirectory { name, path })).await
    }

    async fn remove_file(&self, request: Request<wire::FilePath>) -> Answer<wire::Nothing> {
        let (ask, message) = self.of(request)?;
        let wire::FilePath { codebase: name, path, recursive, .. } = message;
        ask.done(Command::Codebases(Wish::Remove { name, path, recursive })).await
    }

    async fn move_file(&self, request: Request<wire::FileMove>) -> Answer<wire::Nothing> {
        let (ask, wire::FileMove { codebase: name, from, to, .. }) = self.of(request)?;
        ask.done(Command::Codebases(Wish::Move { name, from, to })).await
    }

    async fn import(&self, request: Request<Streaming<wire::FilePart>>) -> Answer<wire::Codebase> {
        let (ask, mut from) = self.of(request)?;
        let wire::FilePart { codebase: name, path, data, .. } = first(&mut from).await?;
        ask.codebase(Wish::PutArchive { name, path, content: rest(data, from) }).await
    }

    async fn export(&self, request: Request<wire::CodebaseName>) -> Answer<Parts> {
        let (ask, name) = self.of(request)?;
        ask.parts(Wish::Export { name: name.codebase, zstd: false }).await
    }
}
