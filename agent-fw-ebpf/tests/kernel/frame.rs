//! Frames made by hand: each method puts one header behind those that are there.

pub(crate) const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];

#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    /// Where the number of the next header belongs: 2 bytes of Ethernet's, or 1 of IP's.
    next: Next,
    /// IP headers whose length is to be set at the end: where it is, and from where it counts.
    lengths: Vec<(usize, usize)>,
}

#[derive(Clone, Copy)]
enum Next {
    EtherType(usize),
    Protocol(usize),
}

impl Frame {
    pub(crate) fn new() -> Self {
        Self::between(PEER, OURS)
    }

    pub(crate) fn between(source: [u8; 6], destination: [u8; 6]) -> Self {
        let mut bytes = [destination, source].concat();
        bytes.extend([0, 0]);
        Self { bytes, next: Next::EtherType(12), lengths: Vec::new() }
    }

    /// A tag of virtual network 100.
    pub(crate) fn tag(self, kind: u16) -> Self {
        self.tag_with(kind, 100)
    }

    /// A tag of this number, with priority 5.
    pub(crate) fn tag_with(mut self, kind: u16, id: u16) -> Self {
        self.announce(kind, 0);
        self.bytes.extend((5 << 13 | id).to_be_bytes());
        self.next = Next::EtherType(self.bytes.len());
        self.bytes.extend([0, 0]);
        self
    }

    pub(crate) fn ether_type(mut self, kind: u16) -> Self {
        self.announce(kind, 0);
        self
    }

    pub(crate) fn ipv4(self, source: [u8; 4], destination: [u8; 4]) -> Self {
        self.ipv4_with(source, destination, 0, 0x4000)
    }

    /// With so many words of options, and these flags and fragment offset.
    pub(crate) fn ipv4_with(
        mut self,
        source: [u8; 4],
        destination: [u8; 4],
        words: u8,
        fragment: u16,
    ) -> Self {
        self.announce(0x0800, 4);
        let at = self.bytes.len();
        self.bytes.extend([0x45 + words, 0, 0, 0, 0, 7]);
        self.bytes.extend(fragment.to_be_bytes());
        self.next = Next::Protocol(self.bytes.len() + 1);
        self.bytes.extend([64, 0, 0, 0]);
        self.bytes.extend(source);
        self.bytes.extend(destination);
        self.bytes.extend(std::iter::repeat_n(1, usize::from(words) * 4));
        self.lengths.push((at + 2, at));
        self
    }

    pub(crate) fn ipv6(mut self, source: u128, destination: u128) -> Self {
        self.announce(0x86dd, 41);
        let at = self.bytes.len();
        self.bytes.extend([0x60, 0, 0, 0, 0, 0, 0, 64]);
        self.next = Next::Protocol(at + 6);
        self.bytes.extend(source.to_be_bytes());
        self.bytes.extend(destination.to_be_bytes());
        self.lengths.push((at + 4, at + 40));
        self
    }

    /// An extension header of this kind: so many of its units beyond the least.
    pub(crate) fn extension(mut self, kind: u8, units: u8) -> Self {
        self.announce(0, kind);
        self.next = Next::Protocol(self.bytes.len());
        let len = match kind {
            51 => (usize::from(units) + 2) * 4,
            _ => (usize::from(units) + 1) * 8,
        };
        self.bytes.extend([0, units]);
        self.bytes.extend(std::iter::repeat_n(0, len - 2));
        self
    }

    pub(crate) fn fragment_header(mut self, offset: u16, more: bool) -> Self {
        self.announce(0, 44);
        self.next = Next::Protocol(self.bytes.len());
        self.bytes.extend([0, 0]);
        self.bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
        self.bytes.extend([0, 0, 0, 9]);
        self
    }

    pub(crate) fn tcp(self, port: u16) -> Vec<u8> {
        let mut header = [0; 20];
        header[..2].copy_from_slice(&51000_u16.to_be_bytes());
        header[2..4].copy_from_slice(&port.to_be_bytes());
        header[12] = 5 << 4;
        header[13] = 2;
        self.payload(6, &header)
    }

    pub(crate) fn payload(mut self, protocol: u8, bytes: &[u8]) -> Vec<u8> {
        self.announce(0, protocol);
        self.bytes.extend(bytes);
        for (at, from) in self.lengths {
            let len = (self.bytes.len() - from) as u16;
            self.bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
        }
        self.bytes
    }

    fn announce(&mut self, ether_type: u16, protocol: u8) {
        match self.next {
            Next::EtherType(at) => {
                self.bytes[at..at + 2].copy_from_slice(&ether_type.to_be_bytes());
            }
            Next::Protocol(at) => self.bytes[at] = protocol,
        }
    }
}
