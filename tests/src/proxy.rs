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
    /// Changes when the connections that are open fall silent.
    silence: watch::Sender<()>,
}

impl Proxy {
    /// Listens on a free port and passes on to `target`, such as `127.0.0.1:15000`.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
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
                        // Both ends stay open and hear nothing more, as when a machine vanishes.
                        let _ = watched.wait_for(|cut| *cut).await;
                    }
                });
            }
        });
        Self { address, target, cut, silence }
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

    /// Passes nothing more on the connections that are open, and leaves them open; new ones work.
    pub fn silence(&self) {
        self.silence.send_replace(());
    }

    /// Ends every connection, and takes none for a while.
    pub async fn cut(&self, away: Duration) {
        self.cut.send_replace(true);
        tokio::time::sleep(away).await;
        self.cut.send_replace(false);
    }
}
