//! A small random number generator; one seed gives the same numbers in every run.

/// The random numbers of one seed.
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    /// Returns the generator of a seed.
    pub fn new(seed: u64) -> Self {
        // The seed is spread over all bits. It must not be 0, because xorshift never leaves 0.
        Self((seed.wrapping_add(1).wrapping_mul(0xD134_2543_DE82_EF95) ^ 0x9E37_79B9_7F4A_7C15).max(1))
    }

    /// Returns the next number, from 0 to less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % bound
    }

    /// Returns one element of `from`.
    ///
    /// # Panics
    /// If `from` is empty.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = usize::try_from(self.below(from.len() as u64)).expect("an index");
        from[index].clone()
    }
}
