//! Generic netlink: families of messages that parts of the kernel register by name.

use crate::netlink::message;
use crate::netlink::message::{attributes, text};

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY` of linux/genetlink.h.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
/// `struct genlmsghdr`.
const HEADER_BYTES: usize = 4;

/// The number of a family; none where it is not registered. To ask for it by name would have the
/// kernel look for a module.
pub(crate) fn family(name: &str) -> Option<u16> {
    /// `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`.
    const NUMBER: u16 = 1;
    const NAME: u16 = 2;
    let find = |family: &[u8], wanted| {
        let mut all = attributes(family);
        all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value.to_vec())
    };
    let families = dump(CONTROL, GET_FAMILY).ok()?;
    let family =
        families.iter().find(|family| find(family, NAME).is_some_and(|n| text(&n) == name));
    Some(u16::from_ne_bytes(*find(family?, NUMBER)?.first_chunk()?))
}

/// The attributes of every object that a command of a family lists.
pub(crate) fn dump(family: u16, command: u8) -> nix::Result<Vec<Vec<u8>>> {
    Ok(bodies(message::dump_generic(family, &request(command, &[]))?))
}

/// The attributes of the objects that a command of a family answers with.
pub(crate) fn get(family: u16, command: u8, body: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
    Ok(bodies(message::get_generic(family, &request(command, body))?))
}

fn request(command: u8, body: &[u8]) -> Vec<u8> {
    [&[command, 1, 0, 0], body].concat()
}

fn bodies(messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let body = |message: Vec<u8>| message.get(HEADER_BYTES..).map(<[u8]>::to_vec);
    messages.into_iter().filter_map(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_of_families_is_found_and_no_other_by_its_name() {
        assert_eq!(family("nlctrl"), Some(CONTROL));
        assert_eq!(family("nlctr"), None);
    }
}
