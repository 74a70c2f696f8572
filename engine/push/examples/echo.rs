//! An echo server for the Autobahn test suite. Its sockets are configured as those of `/ws`, but accept messages of 16
//! MiB, because the suite sends such messages. Prints its address.

use axum::Router;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::routing::get;
use push::centrifuge::protocol::{close_for_error, configure_socket};

const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let upgrade = async |upgrade: WebSocketUpgrade| {
        configure_socket(upgrade, MESSAGE_BYTES_MAX).max_write_buffer_size(2 * MESSAGE_BYTES_MAX).on_upgrade(echo)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener, Router::new().route("/", get(upgrade))).await
}

async fn echo(mut socket: WebSocket) {
    loop {
        let sent = match socket.recv().await {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => socket.send(message).await,
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => {
                if let Some((code, reason)) = close_for_error(&error) {
                    let _ = socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
                }
                return;
            }
            None => return,
        };
        if sent.is_err() {
            return;
        }
    }
}
