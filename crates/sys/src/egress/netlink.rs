//! Netlink messages as bytes.

/// Messages one behind the other, ready for one `write`.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
}

/// Flags of a message.
pub(super) mod flag {
    pub const REQUEST: u16 = 0x01;
    pub const ACK: u16 = 0x04;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
}

const NESTED: u16 = 0x8000;

impl Messages {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One message: its fixed header, then what `body` adds.
    pub fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        header: &[u8],
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | flag::REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(header);
        self.align();
        body(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.align();
    }

    /// As nftables takes its numbers.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// With the terminating NUL.
    pub fn text(&mut self, kind: u16, value: &std::ffi::CStr) {
        self.attribute(kind, value.to_bytes_with_nul());
    }

    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        body(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
