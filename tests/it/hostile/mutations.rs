//! Mutations of the corpus: bytes are flipped, cut, repeated and spliced. The seed is printed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use tests::raw::{Outcome, Until, exchange};
use tests::system::TestSystem;

use super::corpus::Row;
use super::{CONCURRENT_ROWS, long_form};

/// Number of mutations in the short form, and their seed.
const SHORT: usize = 2_000;
const SHORT_SEED: u64 = 1;
/// Time limit, longer than the server's own limit for a connection that sent half of a request.
const DEADLINE: Duration = Duration::from_secs(30);
/// Maximum size of a row that is mutated, in bytes. Larger rows would only take longer.
const BYTES_MAX: usize = 20_000;

/// The `SplitMix64` generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Sends mutations until their number or the time of the long form is reached.
///
/// # Panics
/// If a mutation gets a 5xx or no response; the message contains the seed, the number of the mutation and its bytes.
pub async fn run(system: &TestSystem, rows: &[Row]) {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.bytes.len() <= BYTES_MAX).collect();
    let asked = std::env::var("DOCKET_HOSTILE_SEED").ok();
    let seed = match (asked, long_form()) {
        (Some(seed), _) => seed.parse().expect("DOCKET_HOSTILE_SEED is a number"),
        (None, None) => SHORT_SEED,
        (None, Some(_)) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(SHORT_SEED, |now| now.as_secs()),
    };
    println!("mutations of seed {seed}; repeat them with DOCKET_HOSTILE_SEED={seed}");
    let (address, started) = (system.dockets[0].address(), Instant::now());
    let mut random = Random(seed);
    let mutated = std::iter::from_fn(|| Some(mutate(&mut random, &rows))).enumerate();
    let wanted = mutated.take_while(|(number, _)| match long_form() {
        None => *number < SHORT,
        Some(time) => started.elapsed() < time,
    });
    let mut sent = 0;
    let mut outcomes = futures::stream::iter(wanted)
        .map(async |(number, bytes)| (number, exchange(address, &bytes, true, Until::Answer, DEADLINE).await, bytes))
        .buffer_unordered(CONCURRENT_ROWS);
    while let Some((number, outcome, bytes)) = outcomes.next().await {
        sent += 1;
        let is_right = match &outcome {
            Outcome::Closed => true,
            Outcome::Silent => false,
            // A mutation may request a position that the log does not reach. The documented response is then this 503.
            Outcome::Answered(answer) => {
                answer.status < 500 || String::from_utf8_lossy(&answer.body).contains("/problems/projection-behind")
            }
        };
        let shown = String::from_utf8_lossy(&bytes);
        assert!(is_right, "mutation {number} of seed {seed}: {outcome:?}\nthe request was:\n{shown}\n{bytes:?}");
    }
    println!("{sent} mutations in {:.1} s", started.elapsed().as_secs_f64());
}

/// Applies one to four changes to one row.
fn mutate(random: &mut Random, rows: &[&Row]) -> Vec<u8> {
    let mut bytes = rows[random.below(rows.len())].bytes.clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + random.below(64)).min(bytes.len());
                drop(bytes.drain(at..end));
            }
            4 => {
                let end = (at + random.below(64)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let other = &rows[random.below(rows.len())].bytes;
                let from = random.below(other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let odd =
                    [&b"\r\n"[..], b"\0", b"\xff", b"\"", b"{", b"[", b"%00", b"999999999999", b"\r\n\r\n", b": "];
                bytes.splice(at..at, odd[random.below(odd.len())].iter().copied());
            }
        }
    }
    bytes
}
