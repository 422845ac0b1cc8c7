//! Bodies as streams: what comes is read while more is sent, and what goes is sent while it is made.

use std::io::Read;

use axum::body::Body as Stream;
use axum::extract::Request;
use futures_util::{Stream as Parts, StreamExt as _};
use ringfence_supervisor::codebases::{Content, Download};
use tokio::sync::mpsc;

/// Parts of an upload that are on their way.
const PARTS: usize = 8;

/// A download as a body.
pub(crate) fn sent(download: Download) -> Stream {
    let parts = futures_util::stream::unfold(download, |mut download| async move {
        let part = download.recv().await?;
        Some((part, download))
    });
    Stream::from_stream(parts)
}

/// A body that is read on another thread, as fast as it comes.
pub(crate) fn received(request: Request) -> Content {
    let parts = request.into_body().into_data_stream();
    content(parts.map(|part| part.map(|b| b.to_vec()).map_err(std::io::Error::other)))
}

/// The same of parts that come by another way.
pub(crate) fn content(
    parts: impl Parts<Item = std::io::Result<Vec<u8>>> + Send + Unpin + 'static,
) -> Content {
    Content::new(Received { receiver: arriving(parts), part: Vec::new(), at: 0, ended: false })
}

/// Parts as they come; one of no bytes is the end of all.
pub(super) fn arriving(
    mut parts: impl Parts<Item = std::io::Result<Vec<u8>>> + Send + Unpin + 'static,
) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(PARTS);
    tokio::spawn(async move {
        while let Some(part) = parts.next().await {
            if part.as_ref().is_ok_and(Vec::is_empty) {
                continue;
            }
            let failed = part.is_err();
            // Nobody reads any more, or nothing more comes.
            if sender.send(part).await.is_err() || failed {
                return;
            }
        }
        // The end, and not only that the sender is gone.
        let _ = sender.send(Ok(Vec::new())).await;
    });
    receiver
}

struct Received {
    receiver: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    part: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Received {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.part.len() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(part)) if part.is_empty() => self.ended = true,
                Some(part) => (self.part, self.at) = (part?, 0),
                None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            }
        }
        let rest = self.part.get(self.at..).unwrap_or_default();
        let n = rest.len().min(into.len());
        for (to, from) in into.iter_mut().zip(rest) {
            *to = *from;
        }
        self.at += n;
        Ok(n)
    }
}
