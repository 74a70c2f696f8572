//! The test harness. It starts the real `docket` binary together with real servers, and talks to it as a client does.
//!
//! A story is an end-to-end test in `it/<story>.rs`. It gets a [`system::TestSystem`] and uses only the public
//! interfaces: HTTP, WebSocket and the CLI. The harness links no Docket crate: it computes the expected read models
//! from the log itself ([`fold`]).

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
pub mod shared;
pub mod socket;
pub mod stream;
pub mod system;
pub mod verify;
pub mod wait;

/// Turns each named story, `async fn story(system: TestSystem)`, into two tests: `embedded::story` and `scaled::story`.
/// With `settings = NAME;` in front, the function `NAME(Builder) -> Builder` changes the settings of both systems
/// before they start.
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
