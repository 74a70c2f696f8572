//! A network that can be cut: a TCP proxy in front of one address, or of one after the other.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on to one address, until it is cut.
pub struct Proxy {
    address: SocketAddr,
    target: watch::Sender<String>,
    /// Raised with each cut; `true` while the network is away.
    cut: watch::Sender<bool>,
}

impl Proxy {
    /// Listens on a free port and passes on to `target`, such as `127.0.0.1:15000`.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let (cut, watched) = watch::channel(false);
        let (target, targets) = watch::channel(target.to_owned());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut watched, target) = (watched.clone(), targets.borrow().clone());
                tokio::spawn(async move {
                    let passed = async {
                        let mut server = TcpStream::connect(&target).await?;
                        copy_bidirectional(&mut client, &mut server).await
                    };
                    tokio::select! {
                        _ = watched.wait_for(|cut| *cut) => {}
                        _ = passed => {}
                    }
                });
            }
        });
        Self { address, target, cut }
    }

    /// Where it listens, as a base of URLs.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens, as `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Passes new connections on to another address; those that are open stay where they are.
    pub fn switch(&self, target: String) {
        self.target.send_replace(target);
    }

    /// Ends every connection, and takes none for a while.
    pub async fn cut(&self, away: Duration) {
        self.cut.send_replace(true);
        tokio::time::sleep(away).await;
        self.cut.send_replace(false);
    }
}
