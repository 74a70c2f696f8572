//! The bare broadcast: a minimal push server with axum's WebSocket over `tokio::sync::broadcast`. It sends the same
//! bytes to every client. `POST /publish?count=N` publishes its body N times.

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{Message, Utf8Bytes, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::routing::{get, post};
use futures::SinkExt;
use serde::Deserialize;
use tokio::sync::broadcast::{self, Sender};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Deserialize)]
struct Publish {
    count: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(std::env::var("LISTEN")?).await?;
    let sender: Sender<Utf8Bytes> = broadcast::channel(256).0;
    let app = Router::new().route("/ws", get(socket)).route("/publish", post(publish)).with_state(sender);
    axum::serve(axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true))), app).await?;
    Ok(())
}

async fn publish(State(sender): State<Sender<Utf8Bytes>>, Query(Publish { count }): Query<Publish>, body: Bytes) {
    let Ok(message) = Utf8Bytes::try_from(body) else { return };
    for _ in 0..count {
        let _ = sender.send(message.clone());
    }
}

async fn socket(State(sender): State<Sender<Utf8Bytes>>, upgrade: WebSocketUpgrade) -> axum::response::Response {
    upgrade.read_buffer_size(4 * 1024).write_buffer_size(4 * 1024).on_upgrade(move |mut socket| async move {
        let mut receiver = sender.subscribe();
        loop {
            tokio::select! {
                message = receiver.recv() => {
                    let Ok(mut message) = message else { return };
                    // Waiting messages are written together, as in Docket.
                    loop {
                        if socket.feed(Message::Text(message)).await.is_err() {
                            return;
                        }
                        match receiver.try_recv() {
                            Ok(next) => message = next,
                            Err(_) => break,
                        }
                    }
                    if socket.flush().await.is_err() {
                        return;
                    }
                }
                message = socket.recv() => match message {
                    // The client expects a reply to every line.
                    Some(Ok(Message::Text(_))) => {
                        if socket.send(Message::Text("{\"id\":1}".into())).await.is_err() {
                            return;
                        }
                    }
                    Some(Ok(_)) => {}
                    _ => return,
                },
            }
        }
    })
}
