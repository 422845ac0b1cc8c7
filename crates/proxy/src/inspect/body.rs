//! What the sandbox gets as body: our own answer, or the server's, with secrets hidden.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::secrets::Needles;

/// The body of an answer.
pub(super) enum Answer {
    Own(Option<Bytes>),
    Passed(Incoming),
    Scrubbed(Scrubbed<Incoming>),
}

impl Answer {
    /// The server's body. `in_body`: whether it is searched, not only its trailers.
    pub(super) fn passed(incoming: Incoming, needles: Needles, in_body: bool) -> Self {
        if needles.is_empty() {
            return Self::Passed(incoming);
        }
        Self::Scrubbed(Scrubbed::new(incoming, needles, in_body))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Passed(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Scrubbed(scrubbed) => Pin::new(scrubbed).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Passed(incoming) => incoming.is_end_stream(),
            Self::Scrubbed(scrubbed) => scrubbed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Passed(incoming) => incoming.size_hint(),
            Self::Scrubbed(scrubbed) => scrubbed.size_hint(),
        }
    }
}

/// A body whose secrets are replaced as it flows. Only what may be the beginning of a secret is held
/// back, so that events arrive when they are sent.
pub(super) struct Scrubbed<B> {
    inner: B,
    needles: Needles,
    in_body: bool,
    held: Vec<u8>,
    /// Frames that wait for what was held.
    next: VecDeque<Frame<Bytes>>,
    ended: bool,
}

impl<B> Scrubbed<B> {
    fn new(inner: B, needles: Needles, in_body: bool) -> Self {
        Self { inner, needles, in_body, held: Vec::new(), next: VecDeque::new(), ended: false }
    }

    /// Everything that can go out now; what may be the beginning of a needle stays.
    fn take(&mut self, data: Bytes) -> Bytes {
        if self.held.is_empty()
            && self.needles.first(&data).is_none()
            && self.needles.begun(&data) == 0
        {
            return data;
        }
        self.held.extend_from_slice(&data);
        let mut out = Vec::with_capacity(self.held.len());
        let mut rest = self.held.as_slice();
        while let Some((at, length, shown)) = self.needles.first(rest) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(shown);
            rest = &rest[at + length..];
        }
        let keep = self.needles.begun(rest);
        out.extend_from_slice(&rest[..rest.len() - keep]);
        self.held = rest[rest.len() - keep..].to_vec();
        out.into()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Scrubbed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.next.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => Some(frame),
                Some(Err(error)) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => None,
            };
            let trailers = match frame.map(Frame::into_data) {
                Some(Ok(data)) if this.in_body => {
                    let data = this.take(data);
                    if !data.is_empty() {
                        this.next.push_back(Frame::data(data));
                    }
                    continue;
                }
                Some(Ok(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Err(frame)) => frame.into_trailers().ok(),
                None => None,
            };
            // The end: a mere beginning is no secret.
            this.ended = true;
            if !this.held.is_empty() {
                this.next.push_back(Frame::data(std::mem::take(&mut this.held).into()));
            }
            if let Some(mut trailers) = trailers {
                this.needles.scrub(&mut trailers);
                this.next.push_back(Frame::trailers(trailers));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_empty() && self.held.is_empty() && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.in_body { SizeHint::default() } else { self.inner.size_hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;

    fn scrubbed(text: &str, chunks: &[usize]) -> String {
        let mut rest = text.as_bytes();
        let mut frames = Vec::new();
        for &length in chunks {
            let (chunk, after) = rest.split_at(length.min(rest.len()));
            frames.push(Ok::<_, std::convert::Infallible>(Frame::data(Bytes::copy_from_slice(
                chunk,
            ))));
            rest = after;
        }
        frames.push(Ok(Frame::data(Bytes::copy_from_slice(rest))));
        let body = StreamBody::new(Frames(frames.into()));
        let body = Scrubbed::new(body, Needles::of(&[("abcabcabd", "PLACE")]), true);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let collected = runtime.block_on(body.collect()).unwrap().to_bytes();
        String::from_utf8(collected.to_vec()).unwrap()
    }

    struct Frames<T>(VecDeque<T>);

    impl<T: Unpin> futures_core::Stream for Frames<T> {
        type Item = T;
        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(
            text in "([abcd]|abcabcabd|abcabc){0,12}",
            chunks in prop::collection::vec(0usize..9, 0..9),
        ) {
            prop_assert_eq!(scrubbed(&text, &chunks), text.replace("abcabcabd", "PLACE"));
        }
    }
}
