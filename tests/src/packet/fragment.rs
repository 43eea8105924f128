//! Cutting a datagram into fragments.

use super::{Fragment, Ipv4, Layer, Packet, Raw, length_field, protocol};

impl Packet {
    /// The packet's fragments, each with at most `size` bytes of the datagram (in whole
    /// units of 8), in order. With a `size` of 8 the first has no more of TCP than ports and
    /// sequence number.
    ///
    /// # Panics
    ///
    /// If the packet has no IP header, or `size` is less than 8.
    #[must_use]
    pub fn fragments(&self, size: usize) -> Vec<Self> {
        let cut = self.cut();
        let size = size / 8 * 8;
        assert!(size > 0, "a fragment has at least 8 bytes");
        let protocol = protocol(self.0.get(cut));
        let datagram = self.bytes_from(cut);
        let last = datagram.len().saturating_sub(1) / size;
        let pieces = datagram.chunks(size).enumerate();
        pieces
            .map(|(index, piece)| {
                let mut layers = self.0[..cut].to_vec();
                let identification = identification(&datagram);
                mark(&mut layers, length_field(index * size), index < last, identification);
                layers.push(Raw { protocol, bytes: piece.to_vec() }.into());
                Self(layers)
            })
            .collect()
    }

    /// Where the headers end that every fragment has.
    fn cut(&self) -> usize {
        let ip = self.0.iter().rposition(|layer| matches!(layer, Layer::Ipv4(_) | Layer::Ipv6(_)));
        let inside = ip.expect("only IP has fragments") + 1;
        let per_fragment = self.0[inside..].iter().take_while(
            |layer| matches!(layer, Layer::Extension(header) if header.is_per_fragment()),
        );
        inside + per_fragment.count()
    }
}

/// A number that fragments of one IPv6 datagram have in common and others hardly have: FNV-1a.
fn identification(datagram: &[u8]) -> u32 {
    datagram
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Makes the headers of a whole datagram those of a fragment.
fn mark(layers: &mut Vec<Layer>, offset: u16, more: bool, identification: u32) {
    match layers.last_mut() {
        Some(Layer::Ipv4(Ipv4 { fragment_offset, more_fragments, .. })) => {
            *fragment_offset = offset;
            *more_fragments = more;
        }
        _ => layers.push(Fragment { offset, more, identification }.into()),
    }
}
