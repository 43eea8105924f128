//! Instructions that agent-fw's rules do not have, as far as they are common.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "libnftnl is called directly; its constants have other integer types than its functions"
)]

use super::expression::LiveExpression;
use super::object::Object;
use crate::nft::foreign::{Comparison, Instruction};
use nftnl_sys::{self as sys, libc};
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

impl Object<sys::nftnl_rule> {
    /// The rule's instructions, whatever they are.
    pub(super) fn instructions(&self) -> Vec<Instruction> {
        unsafe extern "C" fn collect(expression: *mut sys::nftnl_expr, into: *mut c_void) -> c_int {
            // SAFETY: `into` is the vector below, borrowed for the duration of the iteration.
            let collected = unsafe { &mut *into.cast::<Vec<Instruction>>() };
            collected.extend(NonNull::new(expression).map(|e| LiveExpression(e).instruction()));
            0
        }
        let mut collected: Vec<Instruction> = Vec::new();
        // SAFETY: the rule is live, and `collect` uses the pointer only as what it is.
        unsafe {
            sys::nftnl_expr_foreach(self.as_ptr(), Some(collect), (&raw mut collected).cast());
        }
        collected
    }
}

impl LiveExpression {
    fn instruction(&self) -> Instruction {
        if let Some(known) = self.decode() {
            return Instruction::Known(known);
        }
        let name = self.text(sys::NFTNL_EXPR_NAME).unwrap_or_default();
        let common = match name.as_str() {
            "cmp" => self.comparison(),
            "range" => self.between(),
            "lookup" => self.lookup_not(),
            "counter" => Some(Instruction::Nothing),
            "immediate" => self.return_or_continue(),
            "reject" => Some(Instruction::Reject),
            _ => None,
        };
        common.unwrap_or(Instruction::Unknown(name))
    }

    fn comparison(&self) -> Option<Instruction> {
        self.uses_register(sys::NFTNL_EXPR_CMP_SREG)?;
        let comparison = match self.u32(sys::NFTNL_EXPR_CMP_OP)?.cast_signed() {
            libc::NFT_CMP_LT => Comparison::Less,
            libc::NFT_CMP_GT => Comparison::More,
            libc::NFT_CMP_GTE => Comparison::AtLeast,
            _ => return None,
        };
        Some(Instruction::Compare(comparison, self.bytes(sys::NFTNL_EXPR_CMP_DATA)?))
    }

    fn between(&self) -> Option<Instruction> {
        self.uses_register(sys::NFTNL_EXPR_RANGE_SREG)?;
        // `NFT_RANGE_EQ`: inside, not outside.
        let from = self.bytes(sys::NFTNL_EXPR_RANGE_FROM_DATA)?;
        let to = self.bytes(sys::NFTNL_EXPR_RANGE_TO_DATA)?;
        (self.u32(sys::NFTNL_EXPR_RANGE_OP)? == 0).then_some(Instruction::Between(from, to))
    }

    fn lookup_not(&self) -> Option<Instruction> {
        self.uses_register(sys::NFTNL_EXPR_LOOKUP_SREG)?;
        // `NFT_LOOKUP_F_INV` alone.
        let is_inverse = self.u32(sys::NFTNL_EXPR_LOOKUP_FLAGS)? == 1;
        let set = self.text(sys::NFTNL_EXPR_LOOKUP_SET)?;
        (is_inverse && !self.has(sys::NFTNL_EXPR_LOOKUP_DREG))
            .then_some(Instruction::LookupNot(set))
    }

    fn return_or_continue(&self) -> Option<Instruction> {
        if self.u32(sys::NFTNL_EXPR_IMM_DREG)? != libc::NFT_REG_VERDICT as u32 {
            return None;
        }
        match self.u32(sys::NFTNL_EXPR_IMM_VERDICT)?.cast_signed() {
            libc::NFT_RETURN => Some(Instruction::Return),
            libc::NFT_CONTINUE => Some(Instruction::Nothing),
            _ => None,
        }
    }
}
