//! Runs the servers that the tests of one run share: `shared-servers FILE PID`. See [`tests::shared`].

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(file), Some(runner)) = (arguments.next(), arguments.next()) else {
        panic!("usage: shared-servers FILE PID");
    };
    let runner = runner.to_str().and_then(|id| id.parse().ok()).expect("PID is a process id");
    tests::shared::serve(file.into(), runner).await;
}
