//! Which tests run on which kernel. Every test that the machine's own kernel can run, runs on it;
//! what that may lack runs on a kernel in user mode. The stock kernels run in emulated machines,
//! where a test takes ten times as long: each runs what only it can show, and the rest of what may
//! depend on a kernel where everything is asked for.

use crate::kernel_features::Feature;
use crate::{
    Test, admission, advice, agent_tls, below, boot_unit, breadth, bystanders, changes, closed,
    consent, cut_off, detours, disguise, dispatcher, doctor, encapsulation, enforcement,
    exceptions, explain, explain_all, firewall, guard, half_done, help, hostile, late_gate,
    lifecycle, little_room, live_sessions, loopback, lost_answers, memories, messages, metrics,
    openness, outbound, own_frames, path_mtu, ports, regions, relay, rule_files, ruleset,
    silent_files, specification, tc, tests, unpinned, unplugged, updates, vendor_answers,
    vendor_facts, vendor_packets, verdicts, verify, verify_xdp, watch, way_back, way_out,
    without_lock, xdp, xdp_alone, xdp_others, xdp_stacked, xdp_tags,
};
use agent_fw_lab::{RARE, is_emulated, is_whole};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;

/// What each stock kernel shows: that it takes the tables and the programs, decides by them with
/// real packets, exchanges them without a gap, holds the guard's tables, and says truly what stands
/// in a packet's way.
const ON_STOCK_KERNELS: [&str; 26] = [
    "a_source_of_the_region_connects_and_talks_and_its_neighbours_do_not",
    "over_ipv6_a_listed_source_connects_and_an_unlisted_one_does_not",
    "with_both_lists_a_packet_must_match_both",
    "ten_thousand_prefixes_admit_exactly_theirs",
    "early_drop_refuses_the_same_sources",
    "no_disguise_of_a_syn_gets_an_unlisted_source_through",
    "this_host_reaches_its_agent_by_each_of_its_addresses",
    "a_rule_that_sets_the_port_behind_the_gate_lets_nobody_in",
    "an_allow_list_admits_what_it_names_and_answers_to_what_the_host_asks",
    "counters_go_on_through_updates",
    "explain_names_the_rule_of_another_firewall_that_drops_a_listed_source",
    "explain_names_the_agents_own_rules",
    "explain_names_the_rules_of_iptables_legacy",
    "explain_names_the_tc_program_that_drops_and_no_other",
    "what_others_take_away_the_guard_puts_back_or_the_kernel_keeps",
    "the_table_outlives_a_guard_that_is_killed_and_the_next_one_takes_it_over",
    "a_program_that_is_detached_behind_the_guards_back_is_put_back",
    "native_and_generic_programs_admit_listed_sources_and_no_others",
    "counters_of_the_program_go_on_through_updates",
    "behind_anothers_xdp_program_the_tc_hook_admits_listed_sources_and_no_others",
    "a_vlan_tag_gets_nobody_past_the_tc_hook",
    "a_later_change_of_mac_addresses_opens_nothing",
    "verify_says_in_words_and_in_json_what_is_true",
    // What they have as modules, and the kernel in user mode in another version.
    "a_source_that_is_this_hosts_own_gets_nobody_in_inside_a_vrf",
    "what_mpls_pops_to_loopback_is_not_this_hosts_own",
    "below_a_vlan_in_a_vrf_unlisted_sources_stay_out",
];

/// The tests to run here.
pub(crate) fn of_this_kernel() -> Vec<Test> {
    let rare: Vec<Test> = rare().concat();
    if std::env::var_os(RARE).is_some() {
        return rare;
    }
    let by_kernel = [&by_kernel().concat()[..], &rare].concat();
    if is_emulated() && is_whole() {
        return by_kernel;
    }
    let all = [&by_kernel[..], &elsewhere_the_same().concat(), TESTS].concat();
    if is_emulated() {
        return all.into_iter().filter(|(name, _)| ON_STOCK_KERNELS.contains(name)).collect();
    }
    all
}

tests![what_stock_kernels_are_to_run_are_tests_and_no_test_has_anothers_name];

fn what_stock_kernels_are_to_run_are_tests_and_no_test_has_anothers_name() -> Result<()> {
    // As on a kernel that lacks nothing.
    let rare = [below::WITH_VRF, loopback::WITH_VRF, loopback::WITH_MPLS, xdp_stacked::TESTS];
    let all = [by_kernel(), rare.to_vec(), elsewhere_the_same()].concat().concat();
    let names: BTreeSet<&str> = all.iter().map(|(name, _)| *name).collect();
    ensure!(names.len() == all.len(), "{} tests have {} names", all.len(), names.len());
    let unknown: Vec<_> = ON_STOCK_KERNELS.iter().filter(|name| !names.contains(*name)).collect();
    ensure!(unknown.is_empty(), "there are no such tests: {unknown:?}");
    Ok(())
}

/// What needs something of the kernel that many lack, where this one has it.
fn rare() -> Vec<&'static [Test]> {
    let rare = [
        (Feature::Vrf, below::WITH_VRF),
        (Feature::Vrf, loopback::WITH_VRF),
        (Feature::Mpls, loopback::WITH_MPLS),
        (Feature::Ipvs, late_gate::WITH_IPVS),
        (Feature::Esp, encapsulation::WITH_ESP),
        (Feature::Fou, encapsulation::WITH_FOU),
        (Feature::Pedit, encapsulation::WITH_PEDIT),
        (Feature::Flowtables, detours::WITH_FLOWTABLES),
    ];
    let rare = rare.into_iter().filter(|(feature, _)| feature.is_here()).map(|(_, tests)| tests);
    let mut rare: Vec<_> = rare.collect();
    if xdp_stacked::is_possible() {
        rare.push(xdp_stacked::TESTS);
    }
    rare
}

/// What may differ from kernel to kernel.
fn by_kernel() -> Vec<&'static [Test]> {
    vec![
        admission::TESTS,
        bystanders::TESTS,
        disguise::TESTS,
        dispatcher::TESTS,
        detours::TESTS,
        explain::TESTS,
        firewall::ENGINE,
        firewall::TRAFFIC,
        guard::TESTS,
        late_gate::TESTS,
        little_room::TESTS,
        live_sessions::TESTS,
        loopback::TESTS,
        outbound::TESTS,
        own_frames::TESTS,
        relay::TESTS,
        ruleset::TESTS,
        unpinned::TESTS,
        vendor_packets::TESTS,
        unplugged::TESTS,
        updates::TESTS,
        verdicts::TESTS,
        xdp::TESTS,
        xdp_alone::TESTS,
        xdp_others::TESTS,
        xdp_tags::TESTS,
        if tc::has_tcx() { tc::TESTS } else { tc::WITHOUT_TCX },
    ]
}

/// What no other kernel changes: thousands of random cases of the compiler, messages and files; and
/// other firewalls, which the machines do not have.
fn elsewhere_the_same() -> Vec<&'static [Test]> {
    vec![
        advice::TESTS,
        agent_tls::TESTS,
        below::TESTS,
        boot_unit::TESTS,
        breadth::TESTS,
        changes::TESTS,
        closed::TESTS,
        consent::TESTS,
        cut_off::TESTS,
        half_done::TESTS,
        doctor::TESTS,
        enforcement::TESTS,
        exceptions::TESTS,
        help::TESTS,
        hostile::TESTS,
        explain_all::TESTS,
        lifecycle::TESTS,
        lost_answers::TESTS,
        memories::TESTS,
        messages::TESTS,
        metrics::TESTS,
        openness::TESTS,
        path_mtu::TESTS,
        ports::TESTS,
        regions::TESTS,
        rule_files::TESTS,
        silent_files::TESTS,
        firewall::BY_HAND,
        firewall::COUNTED,
        firewall::GOLDEN,
        firewall::LIFECYCLE,
        firewall::PROOF,
        firewall::SPECIFICATION,
        specification::TESTS,
        vendor_answers::TESTS,
        vendor_facts::TESTS,
        verify::TESTS,
        verify_xdp::TESTS,
        watch::TESTS,
        way_back::TESTS,
        way_out::TESTS,
        without_lock::TESTS,
    ]
}
