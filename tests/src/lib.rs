//! The test harness: starts the real `docket` binary with real servers beside it, and speaks to it as a client does.
//!
//! A story (`it/<story>.rs`) gets a [`system::TestSystem`] and enters by the front door only: HTTP, WebSocket, the CLI.
//! The harness never links a Docket crate: what it expects of the read models it folds from the log itself ([`fold`]).

pub mod client;
pub mod collector;
pub mod deployment;
pub mod dice;
pub mod fold;
pub mod follower;
pub mod listener;
pub mod load;
pub mod nats;
pub mod ports;
pub mod postgres;
pub mod power;
pub mod process;
pub mod proxy;
pub mod record;
pub mod socket;
pub mod stream;
pub mod system;
pub mod verify;

/// Makes each named story, `async fn story(system: TestSystem)`, two tests: `embedded::story` and `scaled::story`.
#[macro_export]
macro_rules! stories {
    ($($story:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $story() {
                super::$story($crate::system::TestSystem::embedded().await).await;
            })+
        }
        mod scaled {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $story() {
                super::$story($crate::system::TestSystem::scaled().await).await;
            })+
        }
    };
}
