//! Text that is ready to be sent, in pieces: small texts are joined, large ones are shared with other listeners.

use std::collections::VecDeque;

use axum::body::Bytes;

/// Up to so many bytes, a text is copied beside its neighbours. A larger one is handed out as it is.
const COPIED_BYTES_MAX: usize = 4 * 1024;

/// What is ready.
#[derive(Default)]
pub(super) struct Pieces {
    whole: VecDeque<Bytes>,
    text: String,
}

impl Pieces {
    /// The end of the last piece, to write on.
    pub(super) fn text(&mut self) -> &mut String {
        &mut self.text
    }

    /// Appends a text that others get, too.
    pub(super) fn share(&mut self, bytes: &Bytes) {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.len() <= COPIED_BYTES_MAX => self.text.push_str(text),
            _ => {
                self.flush();
                self.whole.push_back(bytes.clone());
            }
        }
    }

    /// The next piece, of at most so many bytes.
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

    /// Bytes of all pieces.
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
        assert_eq!(shown[1].as_ptr(), large.as_ptr(), "the same bytes");
        pieces.share(&large);
        let parts: Vec<_> = std::iter::from_fn(|| pieces.next(COPIED_BYTES_MAX)).map(|part| part.len()).collect();
        assert_eq!(parts, [COPIED_BYTES_MAX, 1]);
    }
}
