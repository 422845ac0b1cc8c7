//! A command's terminal over a WebSocket: bytes as binary messages, sizes and the end as text.

use std::sync::Arc;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use ringfence_api::{Attach, FromTerminal, ToTerminal};
use ringfence_supervisor::{Command, Exec};

use super::exec::exec_of;
use super::{Ask, Handled, Path, query};
use crate::problem::Problem;

/// The largest message that is taken.
const MOST_MESSAGE: usize = 64 << 10;

pub(crate) async fn attach(
    ask: Ask,
    Path((sandbox, exec)): Path<(String, String)>,
    how: Result<Query<Attach>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Handled<Response> {
    let how = query(how)?;
    let find = Command::FindExec { sandbox: sandbox.clone(), exec: exec.clone() };
    let found = exec_of(ask.run(find).await?)?;
    if found.terminal().is_none() {
        return Err(Problem::new(StatusCode::CONFLICT, "conflict", "the command has no terminal")
            .with("start it with `terminal`"));
    }
    let upgrade = upgrade.map_err(|e| {
        Problem::new(StatusCode::UPGRADE_REQUIRED, "invalid", e.body_text())
            .with("connect by WebSocket")
    })?;
    let upgrade = upgrade.max_message_size(MOST_MESSAGE).max_frame_size(MOST_MESSAGE);
    Ok(upgrade.on_upgrade(move |socket| async move {
        let (to, from) = socket.split();
        let ended = tokio::select! {
            ended = show(&found, to, how.offset) => ended,
            () = type_in(&found, from) => false,
        };
        if !ended && how.hangup {
            // Ended meanwhile is as good.
            let _ = ask.run(Command::Kill { sandbox, exec, signal: 1 }).await;
        }
    }))
}

/// True when all was shown.
async fn show(exec: &Arc<Exec>, mut to: SplitSink<WebSocket, Message>, offset: u64) -> bool {
    let mut following = exec.follow(offset, 0);
    while let Some(chunk) = following.next().await {
        if chunk.lost > 0 && !say(&mut to, &FromTerminal::Lost(chunk.lost)).await {
            return false;
        }
        if to.send(Message::Binary(chunk.bytes.into())).await.is_err() {
            return false;
        }
    }
    let said = say(&mut to, &FromTerminal::Ended(Box::new(exec.described()))).await;
    let _ = to.close().await;
    said
}

async fn say(to: &mut SplitSink<WebSocket, Message>, what: &FromTerminal) -> bool {
    let Ok(text) = serde_json::to_string(what) else { return false };
    to.send(Message::Text(text.into())).await.is_ok()
}

/// Until the other side is gone, or says what makes no sense.
async fn type_in(exec: &Arc<Exec>, mut from: SplitStream<WebSocket>) {
    let Some(terminal) = exec.terminal() else { return };
    while let Some(Ok(message)) = from.next().await {
        match message {
            Message::Binary(bytes) => {
                if terminal.write(&bytes).await.is_err() {
                    // Nobody reads it any more; what is left is to be shown.
                    std::future::pending::<()>().await;
                }
            }
            Message::Text(text) => {
                let Ok(ToTerminal::Resize(size)) = serde_json::from_str(&text) else { return };
                // A command that has ended needs no size.
                let _ = terminal.resize(size);
            }
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}
