//! A command's terminal, over a WebSocket.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::Path;

use futures_util::{SinkExt as _, StreamExt as _};
use ringfence_api::{Attach, Exec, FromTerminal, TerminalSize, ToTerminal};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::{Error, authorization, lost, refused, segment};

/// More than a terminal ever hands out at once.
const PIECE: usize = 64 << 10;

/// How it was left.
#[derive(Debug)]
pub enum Left {
    /// The command ended.
    Ended(Box<Exec>),
    /// This program was told to end, by this signal.
    Told(i32),
}

/// Relays a terminal, `keyboard` and `screen`, to that of a command until one of them ends. `size` says
/// how large it is now. Nothing is changed about the terminal itself.
pub fn relay(
    socket: &Path,
    (sandbox, exec): (&str, &str),
    attach: Attach,
    keyboard: BorrowedFd<'_>,
    screen: &mut dyn Write,
    size: &dyn Fn() -> Option<TerminalSize>,
) -> Result<Left, Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(lost)?;
    let url = format!(
        "ws://localhost/v1/sandboxes/{}/execs/{}/terminal?offset={}&hangup={}",
        segment(sandbox),
        segment(exec),
        attach.offset,
        attach.hangup
    );
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket).await.map_err(lost)?;
        let mut request = url.into_client_request().map_err(lost)?;
        if let Some(authorization) = authorization() {
            let value = authorization.parse().map_err(lost)?;
            request.headers_mut().insert(hyper::header::AUTHORIZATION, value);
        }
        let connected = tokio_tungstenite::client_async(request, stream).await;
        let (web, _) = connected.map_err(|e| match e {
            tungstenite::Error::Http(response) => {
                refused(response.status(), response.body().as_deref().unwrap_or_default())
            }
            e => lost(e),
        })?;
        let (mut to, mut from) = web.split();
        // Shared with whoever started us, so it is not made nonblocking: what is there is read, and less
        // than the buffer holds.
        let keys = keyboard.try_clone_to_owned().map_err(lost)?;
        let mut keys = pipe::Receiver::from_owned_fd_unchecked(keys).map_err(lost)?;
        let mut buffer = vec![0u8; PIECE];
        let mut resized = signal(SignalKind::window_change()).map_err(lost)?;
        let mut hung_up = signal(SignalKind::hangup()).map_err(lost)?;
        let mut terminated = signal(SignalKind::terminate()).map_err(lost)?;
        let mut interrupted = signal(SignalKind::interrupt()).map_err(lost)?;
        let mut typing = true;
        let left = loop {
            tokio::select! {
                message = from.next() => match message.ok_or_else(|| lost("it closed"))?.map_err(lost)? {
                    Message::Binary(bytes) => {
                        screen.write_all(&bytes).and_then(|()| screen.flush()).map_err(lost)?;
                    }
                    Message::Text(text) => match serde_json::from_str(&text).map_err(lost)? {
                        FromTerminal::Ended(exec) => break Left::Ended(exec),
                        FromTerminal::Lost(bytes) => {
                            write!(screen, "\r\n[{bytes} bytes are gone]\r\n").map_err(lost)?;
                        }
                    },
                    _ => {}
                },
                read = keys.read(&mut buffer), if typing => match read {
                    Ok(n) if n > 0 => {
                        let bytes = buffer.get(..n).unwrap_or_default().to_vec();
                        to.send(Message::Binary(bytes.into())).await.map_err(lost)?;
                    }
                    // The keyboard is gone.
                    _ => typing = false,
                },
                _ = resized.recv() => if let Some(size) = size() {
                    let said = serde_json::to_string(&ToTerminal::Resize(size)).map_err(lost)?;
                    to.send(Message::Text(said.into())).await.map_err(lost)?;
                },
                _ = hung_up.recv() => break Left::Told(1),
                _ = interrupted.recv() => break Left::Told(2),
                _ = terminated.recv() => break Left::Told(15),
            }
        };
        // It is over either way.
        let _ = to.close().await;
        Ok(left)
    })
}
