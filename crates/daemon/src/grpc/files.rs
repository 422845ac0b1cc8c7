//! Files of sandboxes.

use futures_util::StreamExt as _;
use ringfence_supervisor::codebases::Content;
use ringfence_supervisor::trees::Ask as About;
use ringfence_supervisor::{Command, Error, Kind, Part, Reply, When, Written};
use tonic::{Request, Response, Streaming};

use super::wire::files_server::Files;
use super::{
    Answer, Grpc, Handled, Parts, answer, asked, cut, fields, invalid, said, sent, unexpected, wire,
};
use crate::native::content;

/// The largest file that is written at once.
const MOST_FILE: usize = 64 << 20;

/// The first message of an upload, which says where to.
pub(super) async fn first(from: &mut Streaming<wire::FilePart>) -> Handled<wire::FilePart> {
    let first = from.message().await?;
    first.ok_or_else(|| invalid("the first message does not say what is written"))
}

/// The bytes of an upload, with those of the first message.
pub(super) fn rest(first: Vec<u8>, from: Streaming<wire::FilePart>) -> Content {
    let rest = from.map(|part| part.map(|part| part.data).map_err(std::io::Error::other));
    content(futures_util::stream::iter([Ok(first)]).chain(rest))
}

async fn whole(mut bytes: Vec<u8>, mut from: Streaming<wire::FilePart>) -> Handled<Vec<u8>> {
    while let Some(part) = from.message().await? {
        bytes.extend_from_slice(&part.data);
        if bytes.len() > MOST_FILE {
            let message =
                format!("the file is larger than the {} MiB that are taken", MOST_FILE >> 20);
            return Err(said(Error::new(Kind::TooLarge, message)));
        }
    }
    Ok(bytes)
}

#[tonic::async_trait]
impl Files for Grpc {
    type ReadStream = Parts;
    type PackStream = Parts;

    async fn read(&self, request: Request<wire::FileRange>) -> Answer<Parts> {
        let (ask, message) = self.of(request)?;
        let wire::FileRange { sandbox, path, offset, length, .. } = message;
        let part = Part::From { offset, length };
        match ask.run(Command::ReadFile { sandbox, path, part, when: When::default() }).await? {
            Reply::Read(read) => Ok(Response::new(cut(&read.bytes()))),
            other => Err(unexpected(&other)),
        }
    }

    async fn write(&self, request: Request<Streaming<wire::FilePart>>) -> Answer<wire::Nothing> {
        let (ask, mut from) = self.of(request)?;
        let wire::FilePart { sandbox, path, data, .. } = first(&mut from).await?;
        let bytes = whole(data, from).await?;
        let bytes = Written::Whole(bytes);
        let when = When::default();
        ask.done(Command::WriteFile { sandbox, path, bytes, durable: false, when }).await
    }

    async fn stat(&self, request: Request<wire::FilePath>) -> Answer<wire::FileInfo> {
        let (ask, wire::FilePath { sandbox, path, .. }) = self.of(request)?;
        match ask.run(Command::StatFile { sandbox, path }).await? {
            Reply::File(info) => answer(&info),
            other => Err(unexpected(&other)),
        }
    }

    async fn list(&self, request: Request<wire::FilePath>) -> Answer<wire::FileList> {
        let (ask, wire::FilePath { sandbox, path, .. }) = self.of(request)?;
        match ask.run(Command::ListFiles { sandbox, path }).await? {
            Reply::Listing(listing) => answer(&listing),
            other => Err(unexpected(&other)),
        }
    }

    async fn make_directory(&self, request: Request<wire::FilePath>) -> Answer<wire::Nothing> {
        let (ask, wire::FilePath { sandbox, path, .. }) = self.of(request)?;
        ask.done(Command::MakeDirectory { sandbox, path }).await
    }

    async fn remove(&self, request: Request<wire::FilePath>) -> Answer<wire::Nothing> {
        let (ask, wire::FilePath { sandbox, path, .. }) = self.of(request)?;
        ask.done(Command::RemoveFile { sandbox, path }).await
    }

    async fn r#move(&self, request: Request<wire::FileMove>) -> Answer<wire::Nothing> {
        let (ask, wire::FileMove { sandbox, from, to, .. }) = self.of(request)?;
        ask.done(Command::InFiles(About::Move { sandbox, from, to })).await
    }

    async fn search(&self, request: Request<wire::SearchFiles>) -> Answer<wire::FoundFiles> {
        let (ask, message) = self.of(request)?;
        let search = asked(fields(&message, &["sandbox"])?)?;
        let about = About::Search { sandbox: message.sandbox, search };
        match ask.run(Command::InFiles(about)).await? {
            Reply::Found(found) => answer(&found),
            other => Err(unexpected(&other)),
        }
    }

    async fn pack(&self, request: Request<wire::FilePath>) -> Answer<Parts> {
        let (ask, wire::FilePath { sandbox, path, .. }) = self.of(request)?;
        match ask.run(Command::InFiles(About::Pack { sandbox, path })).await? {
            Reply::Download(download) => Ok(Response::new(sent(download))),
            other => Err(unexpected(&other)),
        }
    }

    async fn unpack(&self, request: Request<Streaming<wire::FilePart>>) -> Answer<wire::Unpacked> {
        let (ask, mut from) = self.of(request)?;
        let wire::FilePart { sandbox, path, data, .. } = first(&mut from).await?;
        let about = About::Unpack { sandbox, path, content: rest(data, from) };
        match ask.run(Command::InFiles(about)).await? {
            Reply::Unpacked(unpacked) => answer(&unpacked),
            other => Err(unexpected(&other)),
        }
    }
}
