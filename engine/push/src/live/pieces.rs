//! Output text in pieces: small texts are copied together, large ones are shared with other clients without a copy.

use std::collections::VecDeque;

use axum::body::Bytes;

/// Longest text that is copied, in bytes. A larger text becomes a piece of its own, which shares its bytes.
const COPIED_BYTES_MAX: usize = 4 * 1024;

/// Text that is ready to be sent, in pieces.
#[derive(Default)]
pub(super) struct Pieces {
    whole: VecDeque<Bytes>,
    text: String,
}

impl Pieces {
    /// Returns the last piece, to append to.
    pub(super) fn text(&mut self) -> &mut String {
        &mut self.text
    }

    /// Appends a text that is shared with other clients.
    pub(super) fn share(&mut self, bytes: &Bytes) {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.len() <= COPIED_BYTES_MAX => self.text.push_str(text),
            _ => {
                self.flush();
                self.whole.push_back(bytes.clone());
            }
        }
    }

    /// Removes and returns the next piece, of at most `bytes_max` bytes.
    pub(super) fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        if self.whole.is_empty() {
            self.flush();
        }
        let first = self.whole.front_mut()?;
        if first.len() > bytes_max {
            return Some(first.split_to(bytes_max));
        }
        self.whole.pop_front()
    }

    /// Returns the total bytes of all pieces.
    pub(super) fn len(&self) -> usize {
        self.text.len() + self.whole.iter().map(Bytes::len).sum::<usize>()
    }

    fn flush(&mut self) {
        if !self.text.is_empty() {
            self.whole.push_back(std::mem::take(&mut self.text).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_texts_are_shared_and_small_ones_joined() {
        let (small, large) = (Bytes::from_static(b"data: 1\n\n"), Bytes::from("x".repeat(COPIED_BYTES_MAX + 1)));
        let mut pieces = Pieces::default();
        for bytes in [&small, &small, &large, &small] {
            pieces.share(bytes);
        }
        assert_eq!(pieces.len(), 3 * small.len() + large.len());
        let shown: Vec<_> = std::iter::from_fn(|| pieces.next(usize::MAX)).collect();
        assert_eq!(shown, ["data: 1\n\ndata: 1\n\n".into(), large.clone(), small]);
        assert_eq!(shown[1].as_ptr(), large.as_ptr(), "the large text is not copied");
        pieces.share(&large);
        let parts: Vec<_> = std::iter::from_fn(|| pieces.next(COPIED_BYTES_MAX)).map(|part| part.len()).collect();
        assert_eq!(parts, [COPIED_BYTES_MAX, 1]);
    }
}
