//! A packet that is about to be sent, as far as it is certain what rules will read in it.

use std::net::IpAddr;

/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A run of bytes, of which some are not known.
pub(super) type Bytes = Vec<Option<u8>>;

/// What is certain of a packet. What a rule may have changed on its way is forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::trace) struct Packet {
    /// Ethernet's header.
    pub(super) link: Bytes,
    /// IP's header.
    pub(super) network: Bytes,
    /// TCP's, UDP's or ICMP's header.
    pub(super) transport: Bytes,
    /// The interface that it comes in by, where every chain is sure to see that one.
    pub(super) by: Option<(u32, String)>,
    /// Whether it is sure to be to an address of this host.
    pub(super) is_to_here: bool,
    /// What connection tracking says of it, as nf_tables numbers it.
    pub(super) state: u32,
}

impl Packet {
    /// An IP packet. What is drawn anew for each one, and checksums, are not known.
    pub(in crate::trace) fn of(bytes: &[u8]) -> Self {
        let known = |bytes: &[u8]| -> Bytes { bytes.iter().copied().map(Some).collect() };
        let length = if bytes.first().is_some_and(|first| first >> 4 == 4) { 20 } else { 40 };
        let (network, transport) = bytes.split_at(length.min(bytes.len()));
        let (mut network, mut transport) = (known(network), known(transport));
        if length == 20 {
            forget(&mut network, 10..12);
        }
        let protocol = network.get(if length == 20 { 9 } else { 6 }).copied().flatten();
        match protocol {
            Some(TCP) => {
                // Sequence and acknowledgement; checksum and what follows.
                forget(&mut transport, 4..12);
                forget(&mut transport, 16..usize::MAX);
            }
            Some(UDP) => forget(&mut transport, 6..usize::MAX),
            _ => forget(&mut transport, 2..usize::MAX),
        }
        Self { link: vec![None; 14], network, transport, by: None, is_to_here: false, state: 0 }
    }

    /// A packet that the kernel itself makes: of its headers, only addresses and ports are certain.
    pub(in crate::trace) fn made_by_the_kernel(bytes: &[u8]) -> Self {
        let mut packet = Self::of(bytes);
        if packet.is_v4() {
            forget(&mut packet.network, 1..9);
        } else {
            forget(&mut packet.network, 1..6);
            forget(&mut packet.network, 7..8);
        }
        forget(&mut packet.transport, 4..usize::MAX);
        packet
    }

    /// The same, as it comes in from this MAC address to that one.
    pub(in crate::trace) fn framed(mut self, from: [u8; 6], to: [u8; 6]) -> Self {
        let kind = if self.is_v4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        self.link = [&to[..], &from, &kind].concat().into_iter().map(Some).collect();
        self
    }

    pub(super) fn is_v4(&self) -> bool {
        self.network.first().copied().flatten().is_some_and(|first| first >> 4 == 4)
    }

    pub(super) fn protocol(&self) -> Option<u8> {
        self.network.get(if self.is_v4() { 9 } else { 6 }).copied().flatten()
    }

    /// The source, or the destination, where it is certain.
    pub(super) fn address(&self, is_source: bool) -> Option<IpAddr> {
        let place = self.place_of_address(is_source);
        let bytes: Vec<u8> = self.network.get(place)?.iter().copied().collect::<Option<_>>()?;
        let v4 = <[u8; 4]>::try_from(&bytes[..]).map(IpAddr::from).ok();
        v4.or_else(|| <[u8; 16]>::try_from(&bytes[..]).map(IpAddr::from).ok())
    }

    /// The source's port, or the destination's, where it is certain.
    pub(super) fn port(&self, is_source: bool) -> Option<u16> {
        if !matches!(self.protocol(), Some(TCP | UDP)) {
            return None;
        }
        let place = if is_source { 0 } else { 2 };
        let [high, low] = *self.transport.get(place..)?.first_chunk()?;
        Some(u16::from_be_bytes([high?, low?]))
    }

    fn place_of_address(&self, is_source: bool) -> std::ops::Range<usize> {
        match (self.is_v4(), is_source) {
            (true, true) => 12..16,
            (true, false) => 16..20,
            (false, true) => 8..24,
            (false, false) => 24..40,
        }
    }

    /// Somebody may have changed where it comes from, or where it goes.
    pub(super) fn forget_end(&mut self, is_source: bool) {
        let place = self.place_of_address(is_source);
        forget(&mut self.network, place);
        forget(&mut self.transport, if is_source { 0..2 } else { 2..4 });
        self.is_to_here &= is_source;
    }

    /// One of the ports is not known.
    pub(in crate::trace) fn forget_port(&mut self, is_source: bool) {
        forget(&mut self.transport, if is_source { 0..2 } else { 2..4 });
    }

    /// Somebody may have changed anything in it but what it is of.
    pub(super) fn forget_all(&mut self) {
        let (is_v4, length) = (self.is_v4(), self.network.len());
        forget(&mut self.link, 0..usize::MAX);
        forget(&mut self.network, 1..if is_v4 { 9 } else { 6 });
        forget(&mut self.network, if is_v4 { 10 } else { 7 }..length);
        forget(&mut self.transport, 0..usize::MAX);
        self.is_to_here = false;
    }

    /// What is certain in both.
    pub(super) fn meet(&mut self, other: &Self) {
        let pairs = [
            (&mut self.link, &other.link),
            (&mut self.network, &other.network),
            (&mut self.transport, &other.transport),
        ];
        for (mine, others) in pairs {
            for (byte, other) in mine.iter_mut().zip(others) {
                *byte = byte.filter(|_| *byte == *other);
            }
        }
        self.is_to_here &= other.is_to_here;
    }
}

fn forget(bytes: &mut [Option<u8>], place: std::ops::Range<usize>) {
    let end = place.end.min(bytes.len());
    bytes[place.start.min(end)..end].fill(None);
}
