//! A network that can be cut: a TCP proxy in front of an address that can be switched.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A TCP proxy to one address, whose connections can be cut.
pub struct Proxy {
    address: SocketAddr,
    target: watch::Sender<String>,
    /// True while the network is cut.
    cut: watch::Sender<bool>,
    /// Changes when the open connections become silent.
    silence: watch::Sender<()>,
}

impl Proxy {
    /// Starts a proxy on a free port that forwards to `target`, such as `127.0.0.1:15000`.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("the listener has an address");
        let (cut, watched) = watch::channel(false);
        let (target, targets) = watch::channel(target.to_owned());
        let (silence, silenced) = watch::channel(());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut watched, target) = (watched.clone(), targets.borrow().clone());
                let mut silenced = silenced.clone();
                silenced.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(&target).await else { return };
                    let is_silent = tokio::select! {
                        _ = watched.wait_for(|cut| *cut) => false,
                        _ = silenced.changed() => true,
                        _ = copy_bidirectional(&mut client, &mut server) => false,
                    };
                    if is_silent {
                        // Both ends stay open and receive nothing more, as when a machine disappears.
                        let _ = watched.wait_for(|cut| *cut).await;
                    }
                });
            }
        });
        Self { address, target, cut, silence }
    }

    /// Returns the address of the proxy as a base of URLs.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the address of the proxy as `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Forwards new connections to another address; open connections keep theirs.
    pub fn switch(&self, target: String) {
        self.target.send_replace(target);
    }

    /// Stops forwarding on the open connections and leaves them open; new connections work.
    pub fn silence(&self) {
        self.silence.send_replace(());
    }

    /// Closes every connection and accepts none for the duration `away`.
    pub async fn cut(&self, away: Duration) {
        self.cut.send_replace(true);
        tokio::time::sleep(away).await;
        self.cut.send_replace(false);
    }
}
