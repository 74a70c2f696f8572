//! A small client of the Centrifuge protocol v2 (JSON), for stories that check single frames.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderName;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::client::Client;

/// Time limit for a reply or a push.
const DEADLINE: Duration = Duration::from_secs(30);

/// Opens a connection with a small receive buffer, so that unread data soon blocks the server.
async fn connect_with_small_buffer(client: &Client) -> TcpStream {
    let tcp = TcpSocket::new_v4().expect("a socket");
    tcp.set_recv_buffer_size(16 * 1024).expect("a small buffer");
    let address = client.base().trim_start_matches("http://").parse().expect("an address");
    tcp.connect(address).await.expect("the process listens")
}

/// Sends a GET over a connection with a small receive buffer, and does not read the response.
pub async fn get_without_reading(client: &Client, path: &str, token: &str) -> TcpStream {
    let mut tcp = connect_with_small_buffer(client).await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.expect("the request is sent");
    tcp
}

/// A connected client.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Received lines that are not processed yet.
    lines: VecDeque<Value>,
    /// Pushes that were received while the client waited for a reply.
    pushes: VecDeque<Value>,
    last_id: u64,
}

impl Socket {
    /// Connects to the process of `client` with this token.
    pub async fn connect(client: &Client, token: &str) -> Self {
        let mut socket = Self::open(&format!("{}/ws", client.base()), &[]).await.expect("a WebSocket");
        socket.send_connect(token).await;
        socket
    }

    /// Connects as [`Self::connect`] does, over a connection with a small receive buffer.
    pub async fn connect_slowly(client: &Client, token: &str) -> Self {
        let tcp = MaybeTlsStream::Plain(connect_with_small_buffer(client).await);
        let url = format!("{}/ws", client.base().replacen("http", "ws", 1));
        let (stream, _) = tokio_tungstenite::client_async(url, tcp).await.expect("a WebSocket");
        let mut socket = Self::over(stream);
        socket.send_connect(token).await;
        socket
    }

    /// Opens a WebSocket with these headers and sends nothing.
    ///
    /// # Errors
    /// The HTTP status of the refusal.
    pub async fn open(url: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let mut request = url.replacen("http", "ws", 1).into_client_request().expect("a URL");
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header's name");
            request.headers_mut().insert(name, value.parse().expect("a header's value"));
        }
        match connect_async(request).await {
            Ok((stream, _)) => Ok(Self::over(stream)),
            Err(tungstenite::Error::Http(refusal)) => Err(refusal.status().as_u16()),
            Err(error) => panic!("{url}: {error}"),
        }
    }

    fn over(stream: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self { stream, lines: VecDeque::new(), pushes: VecDeque::new(), last_id: 0 }
    }

    async fn send_connect(&mut self, token: &str) {
        let reply = self.call("connect", json!({"token": token})).await;
        assert!(reply["connect"]["client"].is_string(), "{reply}");
    }

    /// Sends a command without waiting for its reply.
    pub async fn send(&mut self, command: &Value) {
        self.stream.send(Message::text(command.to_string())).await.expect("the socket is open");
    }

    /// Waits for the next push of a kind and returns its channel.
    pub async fn next_push(&mut self, kind: &str) -> String {
        self.next_line_with(kind).await["push"]["channel"].as_str().expect("a channel").to_owned()
    }

    /// Waits for the next push of a kind and returns its client info.
    pub async fn next_push_of(&mut self, kind: &str) -> Value {
        self.next_line_with(kind).await["push"][kind]["info"].clone()
    }

    async fn next_line_with(&mut self, kind: &str) -> Value {
        loop {
            let line = match self.pushes.pop_front() {
                Some(line) => line,
                None => self.next_line().await,
            };
            if line["push"][kind].is_object() {
                return line;
            }
        }
    }

    /// Sends one command and returns the whole reply, with `error` or with the result under the command's name.
    pub async fn call(&mut self, command: &str, body: Value) -> Value {
        self.try_call(command, body).await.unwrap_or_else(|code| panic!("the server closed the socket with {code}"))
    }

    /// Sends one command as [`Self::call`] does, where the server may close the socket.
    ///
    /// # Errors
    /// The code of the server's Close.
    pub async fn try_call(&mut self, command: &str, body: Value) -> Result<Value, u16> {
        self.last_id += 1;
        let id = self.last_id;
        let text = json!({"id": id, command: body}).to_string();
        self.stream.send(Message::text(text)).await.expect("the socket is open");
        loop {
            let line = self.try_next_line().await?;
            if line["id"] == id {
                return Ok(line);
            }
            self.pushes.push_back(line);
        }
    }

    /// Subscribes to a channel and returns the snapshot in the reply's `data`.
    pub async fn subscribe(&mut self, channel: &str) -> Value {
        let reply = self.call("subscribe", json!({"channel": channel})).await;
        assert!(reply["error"].is_null(), "{reply}");
        reply["subscribe"]["data"].clone()
    }

    /// Waits for the next publication of a channel. Pushes of other channels before it are dropped.
    pub async fn next_publication(&mut self, channel: &str) -> Value {
        loop {
            let line = match self.pushes.pop_front() {
                Some(line) => line,
                None => self.next_line().await,
            };
            if line["push"]["channel"] == channel && line["push"]["pub"].is_object() {
                return line["push"]["pub"].clone();
            }
        }
    }

    /// Closes the socket and returns the code of the server's own Close, if the server sends one.
    pub async fn close(mut self) -> Option<u16> {
        let goodbye = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
        self.stream.send(Message::Close(Some(goodbye))).await.expect("the socket is open");
        loop {
            match tokio::time::timeout(DEADLINE, self.stream.next())
                .await
                .expect("the server closes the socket in time")?
            {
                Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// Answers pings until the server closes the socket, and returns the code of its Close.
    pub async fn closed(mut self) -> u16 {
        loop {
            let frame = tokio::time::timeout(DEADLINE, self.stream.next())
                .await
                .expect("the server sends a ping or a Close in time");
            match frame.expect("a close frame comes before the end").expect("a whole frame") {
                Message::Text(text) if text == "{}" => {
                    self.stream.send(Message::text("{}")).await.expect("the socket is open");
                }
                Message::Close(frame) => return frame.expect("the close frame has a code").code.into(),
                _ => {}
            }
        }
    }

    async fn next_line(&mut self) -> Value {
        self.try_next_line().await.unwrap_or_else(|code| panic!("the server closed the socket with {code}"))
    }

    /// Returns the next line that is not a ping, and answers pings.
    ///
    /// # Errors
    /// The code of the server's Close.
    async fn try_next_line(&mut self) -> Result<Value, u16> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                if line.as_object().is_some_and(serde_json::Map::is_empty) {
                    self.stream.send(Message::text("{}")).await.expect("the socket is open");
                    continue;
                }
                return Ok(line);
            }
            let frame =
                tokio::time::timeout(DEADLINE, self.stream.next()).await.expect("the server sends a frame in time");
            match frame.expect("the socket is open").expect("a whole frame") {
                Message::Text(text) => {
                    let lines = text.lines().filter(|line| !line.is_empty());
                    self.lines.extend(lines.map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON")));
                }
                Message::Close(frame) => return Err(frame.map_or(1005, |frame| frame.code.into())),
                _ => {}
            }
        }
    }
}
