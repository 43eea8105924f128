//! From the elements of a set to ranges or values.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "libnftnl is called directly; its constants have other integer types than its functions"
)]

use crate::model::{MacAddr, Ordinal, Port, Range};
use crate::nft::kernel::uapi::INTERVAL_END;
use crate::nft::table::{Elements, Key, Prefixes};
use nftnl_sys as sys;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ptr::NonNull;

/// An element of a set, borrowed from it.
pub(super) struct Element(pub(super) NonNull<sys::nftnl_set_elem>);

impl Element {
    fn has(&self, number: u32) -> bool {
        // SAFETY: the element is live.
        unsafe { sys::nftnl_set_elem_is_set(self.0.as_ptr(), number as u16) }
    }

    fn key<const N: usize>(&self) -> Option<[u8; N]> {
        let mut length = 0;
        // SAFETY: the element is live; libnftnl gives the key's length with it.
        unsafe {
            let number = sys::NFTNL_SET_ELEM_KEY as u16;
            let key = sys::nftnl_set_elem_get(self.0.as_ptr(), number, &raw mut length);
            let fits = !key.is_null() && length as usize == N;
            fits.then(|| *key.cast::<[u8; N]>())
        }
    }

    fn is_end(&self) -> bool {
        let flags = sys::NFTNL_SET_ELEM_FLAGS;
        // SAFETY: the element is live, and the attribute is set.
        self.has(flags)
            && unsafe { sys::nftnl_set_elem_get_u32(self.0.as_ptr(), flags as u16) } & INTERVAL_END
                != 0
    }

    /// Whether it has something that no element of agent-fw's has.
    fn is_foreign(&self) -> bool {
        [
            sys::NFTNL_SET_ELEM_TIMEOUT,
            sys::NFTNL_SET_ELEM_EXPR,
            sys::NFTNL_SET_ELEM_EXPRESSIONS,
            sys::NFTNL_SET_ELEM_KEY_END,
            sys::NFTNL_SET_ELEM_DATA,
            sys::NFTNL_SET_ELEM_VERDICT,
            sys::NFTNL_SET_ELEM_OBJREF,
        ]
        .into_iter()
        .any(|number| self.has(number))
    }
}

/// How a set holds its ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// As starts and ends.
    Intervals,
    /// Each element is a value.
    Values,
}

/// The bounds of a set's ranges as they come, in whatever order.
pub(super) enum Bounds {
    V4(Edges<Ipv4Addr>),
    V6(Edges<Ipv6Addr>),
    Mac(Edges<MacAddr>),
    Port(Edges<Port>),
    HashedV4(Edges<Ipv4Addr>),
    HashedV6(Edges<Ipv6Addr>),
    /// What rules have learned comes and goes; these do not.
    Learned(Key, Vec<String>),
}

/// The starts of ranges, and the values behind their ends.
pub(super) struct Edges<T> {
    starts: Vec<T>,
    ends: Vec<T>,
    faults: Vec<String>,
    form: Form,
}

impl Bounds {
    pub(super) fn new(elements: &Elements, form: Form) -> Self {
        match elements {
            Elements::V4(_) => Self::V4(Edges::new(form)),
            Elements::V6(_) => Self::V6(Edges::new(form)),
            Elements::Mac(_) => Self::Mac(Edges::new(form)),
            Elements::Port(_) => Self::Port(Edges::new(form)),
            Elements::HashedV4(_) => Self::HashedV4(Edges::new(Form::Values)),
            Elements::HashedV6(_) => Self::HashedV6(Edges::new(Form::Values)),
            Elements::Learned(key) => Self::Learned(*key, Vec::new()),
        }
    }

    pub(super) fn add(&mut self, element: &Element) {
        match self {
            Self::V4(edges) | Self::HashedV4(edges) => {
                edges.add(element, |key: [u8; 4]| key.into());
            }
            Self::V6(edges) | Self::HashedV6(edges) => {
                edges.add(element, |key: [u8; 16]| key.into());
            }
            Self::Mac(edges) => edges.add(element, MacAddr),
            Self::Port(edges) => edges.add(element, |key| Port(u16::from_be_bytes(key))),
            // The kernel tells how long it lasts where that is not what the set says.
            Self::Learned(_, faults) if element.is_foreign() => {
                faults.push("an element that lasts".to_owned());
            }
            Self::Learned(..) => {}
        }
    }

    pub(super) fn into_elements(self) -> (Elements, Vec<String>) {
        match self {
            Self::V4(mut edges) => (Elements::V4(edges.ranges()), edges.faults),
            Self::V6(mut edges) => (Elements::V6(edges.ranges()), edges.faults),
            Self::Mac(mut edges) => (Elements::Mac(edges.ranges()), edges.faults),
            Self::Port(mut edges) => (Elements::Port(edges.ranges()), edges.faults),
            Self::HashedV4(mut edges) => {
                let first = edges.values();
                (Elements::HashedV4(Prefixes { first, ..Prefixes::new() }), edges.faults)
            }
            Self::HashedV6(mut edges) => {
                let first = edges.values();
                (Elements::HashedV6(Prefixes { first, ..Prefixes::new() }), edges.faults)
            }
            Self::Learned(key, faults) => (Elements::Learned(key), faults),
        }
    }
}

impl<T: Ordinal> Edges<T> {
    fn new(form: Form) -> Self {
        Self { starts: Vec::new(), ends: Vec::new(), faults: Vec::new(), form }
    }

    fn add<const N: usize>(&mut self, element: &Element, value: impl Fn([u8; N]) -> T) {
        match element.key().map(value) {
            None => self.faults.push("an element of another length".to_owned()),
            Some(value) if element.is_foreign() => {
                self.faults.push(format!("element {value:?} with data"));
            }
            Some(value) if element.is_end() => self.ends.push(value),
            Some(value) => self.starts.push(value),
        }
    }

    /// The values of a set that has no ranges.
    fn values(&mut self) -> Vec<T> {
        let mut values = std::mem::take(&mut self.starts);
        values.sort_unstable_by_key(|value| value.bits());
        values
    }

    /// Pairs each start with the next end behind it. nft itself puts an end in front of all
    /// ranges, which pairs with nothing.
    fn ranges(&mut self) -> Vec<Range<T>> {
        let (mut starts, mut ends) =
            (std::mem::take(&mut self.starts), std::mem::take(&mut self.ends));
        starts.sort_unstable_by_key(|start| start.bits());
        if self.form == Form::Values {
            return starts.into_iter().map(Range::single).collect();
        }
        ends.sort_unstable_by_key(|end| end.bits());
        let mut ranges = Vec::with_capacity(starts.len());
        let mut ends = ends.into_iter().peekable();
        let mut starts = starts.into_iter().peekable();
        while let Some(first) = starts.next() {
            while ends.next_if(|end| *end <= first).is_some() {}
            // A range ends where it says, at the next start, or with all values.
            let behind = match (ends.peek().copied(), starts.peek().copied()) {
                (Some(end), Some(next)) => Some(end.min(next)),
                (end, next) => end.or(next),
            };
            let last = behind.and_then(Ordinal::previous).unwrap_or(T::MAX);
            ranges.extend(Range::new(first, last));
        }
        ranges
    }
}
