//! Where one WebSocket frame ends and the next begins (RFC 6455 §5.2), so that edge can say goodbye between two of them.

/// Follows one direction of a WebSocket. Looks at frame headers only.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; 14],
    have: usize,
    payload_left: u64,
    closed: bool,
}

/// The server ends: a tunnel cut at shutdown.
pub const GOING_AWAY: u16 = 1001;
/// The service restarts: a tunnel whose worker ended.
pub const RESTART: u16 = 1012;

/// A server's Close frame with a status code and no reason (RFC 6455 §5.5.1).
pub fn close(code: u16) -> [u8; 4] {
    let [high, low] = code.to_be_bytes();
    [0x88, 2, high, low]
}

impl Frames {
    /// Takes the next bytes of the direction.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.step(bytes)..];
        }
    }

    /// Takes no more of the next bytes than end the frame they are in; how many those are.
    pub fn finish(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_between() {
            taken += self.step(&bytes[taken..]);
        }
        taken
    }

    /// Whether a frame may be put in here: between two frames, and none ended the WebSocket.
    pub fn takes_close(&self) -> bool {
        self.is_between() && !self.closed
    }

    /// Whether a frame ended the WebSocket.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn is_between(&self) -> bool {
        self.have == 0 && self.payload_left == 0
    }

    /// Takes at least one of the next bytes; how many it took.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.payload_left > 0 {
            let step = self.payload_left.min(bytes.len() as u64);
            self.payload_left -= step;
            return step as usize;
        }
        self.header[self.have] = bytes[0];
        self.have += 1;
        if self.have >= 2 && self.have == self.header_length() {
            self.payload_left = self.payload_length();
            self.closed |= self.header[0] & 0x0f == 0x8;
            self.have = 0;
        }
        1
    }

    fn header_length(&self) -> usize {
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 != 0 { 4 } else { 0 };
        2 + extended + mask
    }

    fn payload_length(&self) -> u64 {
        let bytes = match self.header[1] & 0x7f {
            126 => &self.header[2..4],
            127 => &self.header[2..10],
            short => return u64::from(short),
        };
        bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        let mask = if masked { 0x80 } else { 0 };
        match payload {
            0..126 => frame.push(mask | payload as u8),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend((payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.resize(frame.len() + if masked { 4 } else { 0 } + payload, 0x88);
        frame
    }

    #[test]
    fn nothing_may_follow_a_close_frame() {
        let mut frames = Frames::default();
        assert!(frames.takes_close());
        frames.feed(&close(GOING_AWAY));
        assert!(!frames.takes_close());
    }

    proptest! {
        #[test]
        fn a_boundary_is_seen_exactly_after_each_whole_frame(
            shapes in prop::collection::vec((1u8..3, any::<bool>(), prop_oneof![0usize..300, Just(70_000)]), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let frames: Vec<Vec<u8>> = shapes.iter().map(|&(op, masked, size)| frame(op, masked, size)).collect();
            let bytes = frames.concat();
            let cut = cut.index(bytes.len());
            let mut ends = frames.iter().scan(0, |end, frame| { *end += frame.len(); Some(*end) });
            let mut seen = Frames::default();
            seen.feed(&bytes[..cut]);
            prop_assert_eq!(seen.takes_close(), cut == 0 || ends.any(|end| end == cut));
            seen.feed(&bytes[cut..]);
            prop_assert!(seen.takes_close());
        }
    }
}
