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
pub mod raw;
pub mod record;
pub mod socket;
pub mod stream;
pub mod system;
pub mod verify;

/// Makes each named story, `async fn story(system: TestSystem)`, two tests: `embedded::story` and `scaled::story`. With
/// `settings = NAME;` in front, the function `NAME(Builder) -> Builder` changes both systems before they start.
#[macro_export]
macro_rules! stories {
    (@both $settings:path; $($story:ident),+) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $story() {
                let builder = $crate::system::TestSystem::builder($crate::system::Mode::Embedded);
                super::$story($settings(builder).start().await).await;
            })+
        }
        mod scaled {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $story() {
                let builder = $crate::system::TestSystem::builder($crate::system::Mode::Scaled);
                super::$story($settings(builder).start().await).await;
            })+
        }
    };
    (settings = $settings:ident; $($story:ident),+ $(,)?) => {
        $crate::stories![@both super::$settings; $($story),+];
    };
    ($($story:ident),+ $(,)?) => {
        $crate::stories![@both std::convert::identity; $($story),+];
    };
}
