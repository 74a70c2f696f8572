//! Record of the random choices of a story, printed when the story fails.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the number in an environment variable, if the variable is set.
///
/// # Panics
/// If the variable is set to something else.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// A seed and the choices made from it. Printed when the value is dropped.
pub struct Record {
    variable: &'static str,
    /// The seed of all random choices.
    pub seed: u64,
    lines: Vec<String>,
}

impl Record {
    /// Returns a record whose seed comes from an environment variable, else from the clock.
    pub fn new(variable: &'static str) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos();
        Self { variable, seed: number(variable).unwrap_or_else(|| u64::from(now())), lines: vec![] }
    }

    /// Removes the lines so far, because they have no effect on what follows.
    pub fn clear(&mut self) {
        self.lines.clear();
    }

    /// Begins a line.
    pub fn line(&mut self, text: String) {
        self.lines.push(text);
    }

    /// Appends a text to the last line.
    ///
    /// # Panics
    /// If there is no line.
    pub fn add(&mut self, text: &str) {
        let line = self.lines.last_mut().expect("a line has begun");
        *line = format!("{line}, {text}");
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let what = if std::thread::panicking() { "Failed in the last of these cycles" } else { "Done" };
        eprintln!("{what}, {}={}:\n{}", self.variable, self.seed, self.lines.join("\n"));
    }
}
