//! From libnftnl's expressions to ours.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "libnftnl is called directly; its constants have other integer types than its functions"
)]

use super::object::{Object, owned_text};
use crate::nft::expression::{CtKey, Expression, MetaKey, Payload, PayloadBase};
use crate::nft::kernel::uapi::{
    CT_LABELS, DYNSET_UPDATE, FIB_F_DADDR, FIB_F_SADDR, FIB_RESULT_ADDRTYPE, LIMIT_PACKETS,
    NFT_OBJECT_COUNTER, ONE_SECOND, REGISTER, ct_key, meta_key, payload_base,
};
use nftnl_sys::{self as sys, libc};
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

impl Object<sys::nftnl_rule> {
    /// The rule's instructions, or `None` if one of them is none of agent-fw's.
    pub(super) fn expressions(&self) -> Option<Vec<Expression>> {
        unsafe extern "C" fn collect(expression: *mut sys::nftnl_expr, into: *mut c_void) -> c_int {
            // SAFETY: `into` is the vector below, borrowed for the duration of the iteration.
            let collected = unsafe { &mut *into.cast::<Option<Vec<Expression>>>() };
            let decoded = NonNull::new(expression).and_then(|e| LiveExpression(e).decode());
            match (collected.as_mut(), decoded) {
                (Some(all), Some(decoded)) => all.push(decoded),
                _ => *collected = None,
            }
            0
        }
        let mut collected: Option<Vec<Expression>> = Some(Vec::new());
        // SAFETY: the rule is live, and `collect` uses the pointer only as what it is.
        unsafe {
            sys::nftnl_expr_foreach(self.as_ptr(), Some(collect), (&raw mut collected).cast());
        }
        collected
    }
}

/// An expression of a rule, borrowed from it.
pub(super) struct LiveExpression(pub(super) NonNull<sys::nftnl_expr>);

impl LiveExpression {
    pub(super) fn has(&self, number: u32) -> bool {
        // SAFETY: the expression is live.
        unsafe { sys::nftnl_expr_is_set(self.0.as_ptr(), number as u16) }
    }

    pub(super) fn u32(&self, number: u32) -> Option<u32> {
        // SAFETY: the expression is live, and the attribute is set.
        self.has(number).then(|| unsafe { sys::nftnl_expr_get_u32(self.0.as_ptr(), number as u16) })
    }

    fn u64(&self, number: u32) -> Option<u64> {
        // SAFETY: the expression is live, and the attribute is set.
        self.has(number).then(|| unsafe { sys::nftnl_expr_get_u64(self.0.as_ptr(), number as u16) })
    }

    pub(super) fn text(&self, number: u32) -> Option<String> {
        if !self.has(number) {
            return None;
        }
        // SAFETY: the expression is live and the attribute, a text, is set; it is copied at once.
        unsafe { owned_text(sys::nftnl_expr_get_str(self.0.as_ptr(), number as u16)) }
    }

    pub(super) fn bytes(&self, number: u32) -> Option<Vec<u8>> {
        if !self.has(number) {
            return None;
        }
        let mut length = 0;
        // SAFETY: the expression is live and the attribute is set; libnftnl gives the length.
        unsafe {
            let data =
                sys::nftnl_expr_get(self.0.as_ptr(), number as u16, &raw mut length).cast::<u8>();
            (!data.is_null()).then(|| std::slice::from_raw_parts(data, length as usize).to_vec())
        }
    }

    pub(super) fn uses_register(&self, number: u32) -> Option<()> {
        (self.u32(number)? == REGISTER).then_some(())
    }

    /// What it does, if agent-fw has such an instruction.
    pub(super) fn decode(&self) -> Option<Expression> {
        match self.text(sys::NFTNL_EXPR_NAME)?.as_str() {
            "meta" => self.meta(),
            "payload" => self.payload(),
            "ct" => self.connection(),
            "bitwise" => self.mask(),
            "cmp" => self.compare(),
            "lookup" => self.lookup(),
            "dynset" => self.learn(),
            "objref" => self.count(),
            "fib" => self.fib(),
            "limit" => self.limit(),
            "log" => self.log(),
            "immediate" => self.constant().or_else(|| self.verdict()),
            _ => None,
        }
    }

    fn meta(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_META_DREG)?;
        let key = self.u32(sys::NFTNL_EXPR_META_KEY)?;
        let known = [
            MetaKey::InputInterface,
            MetaKey::OutputInterface,
            MetaKey::InputInterfaceType,
            MetaKey::InputInterfaceKind,
            MetaKey::NetworkProtocol,
            MetaKey::TransportProtocol,
        ];
        known.into_iter().find(|&known| meta_key(known) == key).map(Expression::Meta)
    }

    fn payload(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_PAYLOAD_DREG)?;
        let base = self.u32(sys::NFTNL_EXPR_PAYLOAD_BASE)?;
        let known = [PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport];
        Some(Expression::Payload(Payload {
            base: known.into_iter().find(|&known| payload_base(known) == base)?,
            offset: self.u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET)?,
            length: self.u32(sys::NFTNL_EXPR_PAYLOAD_LEN)?,
        }))
    }

    fn connection(&self) -> Option<Expression> {
        let key = self.u32(sys::NFTNL_EXPR_CT_KEY)?;
        // Of one direction of the connection alone.
        if self.has(sys::NFTNL_EXPR_CT_DIR) {
            return None;
        }
        if self.has(sys::NFTNL_EXPR_CT_SREG) {
            self.uses_register(sys::NFTNL_EXPR_CT_SREG)?;
            return (key == CT_LABELS).then_some(Expression::SetCtLabels);
        }
        self.uses_register(sys::NFTNL_EXPR_CT_DREG)?;
        let known = [CtKey::State, CtKey::Direction, CtKey::Status, CtKey::Labels];
        known.into_iter().find(|&known| ct_key(known) == key).map(Expression::Ct)
    }

    fn constant(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_IMM_DREG)?;
        self.bytes(sys::NFTNL_EXPR_IMM_DATA).map(Expression::Constant)
    }

    fn mask(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_BITWISE_SREG)?;
        self.uses_register(sys::NFTNL_EXPR_BITWISE_DREG)?;
        // `NFT_BITWISE_BOOL`: with a mask, then an exclusive or, here with nothing.
        let is_plain = self.u32(sys::NFTNL_EXPR_BITWISE_OP).unwrap_or(0) == 0
            && self.bytes(sys::NFTNL_EXPR_BITWISE_XOR)?.iter().all(|byte| *byte == 0);
        is_plain.then(|| self.bytes(sys::NFTNL_EXPR_BITWISE_MASK)).flatten().map(Expression::Mask)
    }

    fn compare(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_CMP_SREG)?;
        let data = self.bytes(sys::NFTNL_EXPR_CMP_DATA)?;
        match self.u32(sys::NFTNL_EXPR_CMP_OP)?.cast_signed() {
            libc::NFT_CMP_EQ => Some(Expression::CompareEqual(data)),
            libc::NFT_CMP_NEQ => Some(Expression::CompareDifferent(data)),
            libc::NFT_CMP_LTE => Some(Expression::CompareAtMost(data)),
            _ => None,
        }
    }

    fn lookup(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_LOOKUP_SREG)?;
        if self.u32(sys::NFTNL_EXPR_LOOKUP_FLAGS).is_some_and(|flags| flags != 0) {
            return None;
        }
        if self.has(sys::NFTNL_EXPR_LOOKUP_DREG) {
            return None;
        }
        Some(Expression::Lookup { set: self.text(sys::NFTNL_EXPR_LOOKUP_SET)? })
    }

    fn learn(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_DYNSET_SREG_KEY)?;
        let is_plain = self.u32(sys::NFTNL_EXPR_DYNSET_OP)? == DYNSET_UPDATE
            // With a time of its own, instead of the set's.
            && self.u64(sys::NFTNL_EXPR_DYNSET_TIMEOUT).unwrap_or(0) == 0
            // `NFT_DYNSET_F_INV`: it goes on where the set is full.
            && self.u32(sys::NFTNL_EXPR_DYNSET_FLAGS).unwrap_or(0) & 1 == 0
            && !self.has(sys::NFTNL_EXPR_DYNSET_SREG_DATA)
            && !self.has(sys::NFTNL_EXPR_DYNSET_EXPR);
        let set = self.text(sys::NFTNL_EXPR_DYNSET_SET_NAME)?;
        is_plain.then_some(Expression::Learn { set })
    }

    fn count(&self) -> Option<Expression> {
        let kind = self.u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE)?;
        let counter = self.text(sys::NFTNL_EXPR_OBJREF_IMM_NAME)?;
        (kind == NFT_OBJECT_COUNTER).then_some(Expression::Count { counter })
    }

    fn fib(&self) -> Option<Expression> {
        self.uses_register(sys::NFTNL_EXPR_FIB_DREG)?;
        if self.u32(sys::NFTNL_EXPR_FIB_RESULT)? != FIB_RESULT_ADDRTYPE {
            return None;
        }
        match self.u32(sys::NFTNL_EXPR_FIB_FLAGS)? {
            FIB_F_DADDR => Some(Expression::FibDestinationType),
            FIB_F_SADDR => Some(Expression::FibSourceType),
            _ => None,
        }
    }

    fn limit(&self) -> Option<Expression> {
        let fits = self.u64(sys::NFTNL_EXPR_LIMIT_UNIT)? == ONE_SECOND
            && self.u32(sys::NFTNL_EXPR_LIMIT_TYPE)? == LIMIT_PACKETS
            && self.u32(sys::NFTNL_EXPR_LIMIT_FLAGS).unwrap_or(0) == 0;
        let rate = self.u64(sys::NFTNL_EXPR_LIMIT_RATE)?;
        let burst = self.u32(sys::NFTNL_EXPR_LIMIT_BURST)?;
        fits.then_some(Expression::Limit { rate, burst })
    }

    fn log(&self) -> Option<Expression> {
        let flags = self.u32(sys::NFTNL_EXPR_LOG_FLAGS).unwrap_or(0);
        if flags != 0 || self.has(sys::NFTNL_EXPR_LOG_GROUP) {
            return None;
        }
        let prefix = self.text(sys::NFTNL_EXPR_LOG_PREFIX)?;
        Some(Expression::Log { prefix, level: self.u32(sys::NFTNL_EXPR_LOG_LEVEL)? })
    }

    fn verdict(&self) -> Option<Expression> {
        if self.u32(sys::NFTNL_EXPR_IMM_DREG)? != libc::NFT_REG_VERDICT as u32 {
            return None;
        }
        match self.u32(sys::NFTNL_EXPR_IMM_VERDICT)?.cast_signed() {
            libc::NF_ACCEPT => Some(Expression::Accept),
            libc::NF_DROP => Some(Expression::Drop),
            libc::NFT_JUMP => {
                Some(Expression::Jump { chain: self.text(sys::NFTNL_EXPR_IMM_CHAIN)? })
            }
            libc::NFT_GOTO => {
                Some(Expression::Goto { chain: self.text(sys::NFTNL_EXPR_IMM_CHAIN)? })
            }
            _ => None,
        }
    }
}
