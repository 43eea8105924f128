//! The kernel's doors: netlink's sockets for interfaces, routes, traffic control, nf_tables and tracked
//! connections, and `bpf(2)`. What goes through them is values.

pub(crate) mod address;
pub mod bpf;
pub(crate) mod conntrack;
pub mod ethtool;
pub(crate) mod fou;
pub(crate) mod frame;
pub(crate) mod generic;
pub mod link;
pub(crate) mod listeners;
pub(crate) mod message;
pub mod monitor;
pub(crate) mod multicast;
pub(crate) mod neighbours;
pub(crate) mod nfnetlink;
pub(crate) mod no_nf_tables;
pub(crate) mod route_lookup;
pub(crate) mod routes;
pub mod surroundings;
pub(crate) mod tap;
pub mod tc;
