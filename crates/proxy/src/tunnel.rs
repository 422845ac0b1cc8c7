//! Stand-in.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::Asked;
use crate::gate::{Gate, Opened};

pub(crate) async fn run<G: Gate>(
    gate: Arc<G>,
    mut client: TcpStream,
    prefix: Vec<u8>,
    asked: Asked,
    mut opened: Opened,
) {
    if crate::hello::read(&prefix) == crate::hello::First::Http {
        let mode = crate::http::Mode::Origin { asked, first: Some(opened) };
        return crate::http::serve(gate, client, prefix, mode).await;
    }
    if opened.stream.write_all(&prefix).await.is_ok() {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut opened.stream).await;
    }
}
