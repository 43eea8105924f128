//! Whether connection tracking can take another connection.

/// In words, that the table of connections is full, if it is: new ones are dropped then.
pub(super) fn in_words() -> Option<String> {
    let read = |name| {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    let (count, most) = (read("count")?, read("max")?);
    (count >= most && most > 0).then(|| {
        format!(
            "by connection tracking: its table is full ({count} of {most} connections; sysctl \
             net.netfilter.nf_conntrack_max)"
        )
    })
}
