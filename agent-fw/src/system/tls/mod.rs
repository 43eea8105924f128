//! TLS on the agent's port: what it agrees to, beside what the vendor says that agents offer.

mod handshake;
mod published;

pub use handshake::{Agreed, NoHandshake, handshake};
pub use published::{Offer, offers};
