//! From our expressions to those of libnftnl.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "libnftnl is called directly; its constants have other integer types than its functions"
)]

use super::message::{attribute, c_string};
use crate::nft::expression::Expression;
use crate::nft::kernel::set_generation::SetGeneration;
use crate::nft::kernel::uapi::{
    CT_LABELS, DYNSET_UPDATE, FIB_F_DADDR, FIB_F_SADDR, FIB_RESULT_ADDRTYPE, LIMIT_PACKETS,
    NFT_OBJECT_COUNTER, ONE_SECOND, REGISTER, ct_key, meta_key, payload_base,
};
use nftnl_sys::{self as sys, libc};
use std::ptr::NonNull;

/// An expression, with the epoch of the sets that it may look into.
pub(super) struct InEpoch<'a> {
    pub(super) expression: &'a Expression,
    pub(super) epoch: SetGeneration,
}

impl nftnl::expr::Expression for InEpoch<'_> {
    fn to_expr(&self, _: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        match self.expression {
            Expression::Meta(key) => Builder::new(c"meta")
                .u32(sys::NFTNL_EXPR_META_KEY, meta_key(*key))
                .u32(sys::NFTNL_EXPR_META_DREG, REGISTER),
            Expression::Payload(payload) => Builder::new(c"payload")
                .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, payload_base(payload.base))
                .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, payload.offset)
                .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, payload.length)
                .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, REGISTER),
            Expression::Ct(key) => Builder::new(c"ct")
                .u32(sys::NFTNL_EXPR_CT_KEY, ct_key(*key))
                .u32(sys::NFTNL_EXPR_CT_DREG, REGISTER),
            Expression::Constant(data) => Builder::new(c"immediate")
                .u32(sys::NFTNL_EXPR_IMM_DREG, REGISTER)
                .bytes(sys::NFTNL_EXPR_IMM_DATA, data),
            Expression::SetCtLabels => Builder::new(c"ct")
                .u32(sys::NFTNL_EXPR_CT_KEY, CT_LABELS)
                .u32(sys::NFTNL_EXPR_CT_SREG, REGISTER),
            Expression::Mask(mask) => Builder::new(c"bitwise")
                .u32(sys::NFTNL_EXPR_BITWISE_SREG, REGISTER)
                .u32(sys::NFTNL_EXPR_BITWISE_DREG, REGISTER)
                .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
                .bytes(sys::NFTNL_EXPR_BITWISE_MASK, mask)
                .bytes(sys::NFTNL_EXPR_BITWISE_XOR, &vec![0; mask.len()]),
            Expression::CompareEqual(data) => compare(libc::NFT_CMP_EQ, data),
            Expression::CompareDifferent(data) => compare(libc::NFT_CMP_NEQ, data),
            Expression::CompareAtMost(data) => compare(libc::NFT_CMP_LTE, data),
            Expression::Lookup { set } => Builder::new(c"lookup")
                .u32(sys::NFTNL_EXPR_LOOKUP_SREG, REGISTER)
                .text(sys::NFTNL_EXPR_LOOKUP_SET, &self.epoch.name_of(set)),
            Expression::Learn { set } => Builder::new(c"dynset")
                .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, REGISTER)
                .u32(sys::NFTNL_EXPR_DYNSET_OP, DYNSET_UPDATE)
                .text(sys::NFTNL_EXPR_DYNSET_SET_NAME, &self.epoch.name_of(set)),
            Expression::Count { counter } => Builder::new(c"objref")
                .u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER)
                .text(sys::NFTNL_EXPR_OBJREF_IMM_NAME, counter),
            Expression::FibDestinationType => type_of(FIB_F_DADDR),
            Expression::FibSourceType => type_of(FIB_F_SADDR),
            Expression::Limit { rate, burst } => Builder::new(c"limit")
                .u64(sys::NFTNL_EXPR_LIMIT_RATE, *rate)
                .u64(sys::NFTNL_EXPR_LIMIT_UNIT, ONE_SECOND)
                .u32(sys::NFTNL_EXPR_LIMIT_BURST, *burst)
                .u32(sys::NFTNL_EXPR_LIMIT_TYPE, LIMIT_PACKETS),
            Expression::Log { prefix, level } => Builder::new(c"log")
                .text(sys::NFTNL_EXPR_LOG_PREFIX, prefix)
                .u32(sys::NFTNL_EXPR_LOG_LEVEL, *level),
            Expression::Accept => verdict(libc::NF_ACCEPT),
            Expression::Drop => verdict(libc::NF_DROP),
            Expression::Jump { chain } => {
                verdict(libc::NFT_JUMP).text(sys::NFTNL_EXPR_IMM_CHAIN, chain)
            }
            Expression::Goto { chain } => {
                verdict(libc::NFT_GOTO).text(sys::NFTNL_EXPR_IMM_CHAIN, chain)
            }
        }
        .0
    }
}

fn type_of(address: u32) -> Builder {
    Builder::new(c"fib")
        .u32(sys::NFTNL_EXPR_FIB_DREG, REGISTER)
        .u32(sys::NFTNL_EXPR_FIB_RESULT, FIB_RESULT_ADDRTYPE)
        .u32(sys::NFTNL_EXPR_FIB_FLAGS, address)
}

fn compare(operation: i32, data: &[u8]) -> Builder {
    Builder::new(c"cmp")
        .u32(sys::NFTNL_EXPR_CMP_SREG, REGISTER)
        .u32(sys::NFTNL_EXPR_CMP_OP, operation as u32)
        .bytes(sys::NFTNL_EXPR_CMP_DATA, data)
}

fn verdict(code: i32) -> Builder {
    Builder::new(c"immediate")
        .u32(sys::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT as u32)
        // A verdict is a signed number that the interface takes as u32.
        .u32(sys::NFTNL_EXPR_IMM_VERDICT, code.cast_unsigned())
}

/// An expression of libnftnl in the making. Whoever takes it out owns it.
struct Builder(NonNull<sys::nftnl_expr>);

impl Builder {
    fn new(name: &std::ffi::CStr) -> Self {
        // SAFETY: the name ends with a zero. Null would mean that libnftnl does not know the
        // expression; version 1.2.4, which the build demands, knows all that we use.
        let expression = unsafe { sys::nftnl_expr_alloc(name.as_ptr()) };
        Self(NonNull::new(expression).expect("an expression that libnftnl knows"))
    }

    fn u32(self, number: u32, value: u32) -> Self {
        // SAFETY: `self.0` is a live expression; an unknown attribute is ignored.
        unsafe { sys::nftnl_expr_set_u32(self.0.as_ptr(), attribute(number), value) };
        self
    }

    fn u64(self, number: u32, value: u64) -> Self {
        // SAFETY: `self.0` is a live expression; an unknown attribute is ignored.
        unsafe { sys::nftnl_expr_set_u64(self.0.as_ptr(), attribute(number), value) };
        self
    }

    fn bytes(self, number: u32, data: &[u8]) -> Self {
        let (bytes, length) = (data.as_ptr().cast(), data.len() as u32);
        // SAFETY: `self.0` is a live expression, and libnftnl copies the bytes.
        unsafe { sys::nftnl_expr_set(self.0.as_ptr(), attribute(number), bytes, length) };
        self
    }

    fn text(self, number: u32, text: &str) -> Self {
        let text = c_string(text);
        // SAFETY: `self.0` is a live expression, and libnftnl copies the text.
        unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attribute(number), text.as_ptr()) };
        self
    }
}
