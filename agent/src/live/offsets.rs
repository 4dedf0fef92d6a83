//! Which kernel fields the programs read, and what is lost where this kernel lacks one.
//!
//! A missing field turns off one value or one probe; it never stops the agent.

use std::collections::HashMap;
use std::sync::Arc;

use hopscope_ebpf::NO_OFFSET;

use super::btf::Btf;
use crate::model::ResetReason;
use crate::stats::ProbeStatus;

/// Fields that serve one purpose.
struct Group {
    name: &'static str,
    /// What is lost without them.
    loss: &'static str,
    fields: &'static [Field],
}

/// A read-only global of the programs and the field whose offset it takes: struct, path, size.
type Field = (&'static str, &'static str, &'static str, u32);

const GROUPS: &[Group] = &[
    Group {
        name: "field_ends",
        loss: "the address of an upstream is known from its segments only, and connects are not matched by upstream",
        fields: &[
            ("SKC_FAMILY", "sock_common", "skc_family", 2),
            ("SKC_NUM", "sock_common", "skc_num", 2),
            ("SKC_DPORT", "sock_common", "skc_dport", 2),
            ("SKC_RCV_SADDR", "sock_common", "skc_rcv_saddr", 4),
            ("SKC_DADDR", "sock_common", "skc_daddr", 4),
        ],
    },
    Group {
        name: "field_ends_v6",
        loss: "the address of an IPv6 upstream is known from its segments only",
        fields: &[
            ("SKC_V6_RCV_SADDR", "sock_common", "skc_v6_rcv_saddr", 16),
            ("SKC_V6_DADDR", "sock_common", "skc_v6_daddr", 16),
        ],
    },
    Group {
        name: "field_source_port",
        loss: "why an upstream on this host reset a connection as it closed is inferred",
        fields: &[("INET_SPORT", "inet_sock", "inet_sport", 2)],
    },
    Group {
        name: "field_netns",
        loss: "events carry no network namespace",
        fields: &[
            ("SKC_NET", "sock_common", "skc_net.net", 8),
            ("NET_INUM", "net", "ns.inum", 4),
        ],
    },
    Group {
        name: "field_task_netns",
        loss: "the network namespace of a gateway that looks a name up is read from /proc, where it is still there",
        fields: &[
            ("TASK_NSPROXY", "task_struct", "nsproxy", 8),
            ("NSPROXY_NET", "nsproxy", "net_ns", 8),
        ],
    },
    Group {
        name: "field_error",
        loss: "errors of sockets are known from connect() only",
        fields: &[("SK_ERR", "sock", "sk_err", 4)],
    },
    Group {
        name: "field_state",
        loss: "a repeated SYN is not told from repeated data",
        fields: &[("SKC_STATE", "sock_common", "skc_state", 1)],
    },
    Group {
        name: "field_bytes_acked",
        loss: "a failed connect is told from a closed connection by state alone",
        fields: &[("TCP_BYTES_ACKED", "tcp_sock", "bytes_acked", 8)],
    },
    Group {
        name: "field_rtt",
        loss: "events carry no round-trip time",
        fields: &[("TCP_SRTT", "tcp_sock", "srtt_us", 4)],
    },
    Group {
        name: "field_last_send",
        loss: "a client that left is not told from a gateway that ran out of patience",
        fields: &[("TCP_LSNDTIME", "tcp_sock", "lsndtime", 4)],
    },
    Group {
        name: "field_sleeps",
        loss: "what a gateway's thread does in one go is told by time alone",
        fields: &[("TASK_SLEEPS", "task_struct", "nvcsw", 8)],
    },
    Group {
        name: "field_comm",
        loss: "gateways are recognised by the name of the thread that connects",
        fields: &[
            ("TASK_LEADER", "task_struct", "group_leader", 8),
            ("TASK_COMM", "task_struct", "comm", 16),
        ],
    },
    Group {
        name: "field_task",
        loss: "which thread answers a client, and whether its process died, is not known",
        fields: &[
            ("TASK_TGID", "task_struct", "tgid", 4),
            ("TASK_PID", "task_struct", "pid", 4),
            ("TASK_FLAGS", "task_struct", "flags", 4),
            ("TASK_EXIT", "task_struct", "exit_code", 4),
        ],
    },
    Group {
        name: "field_thread_pointer",
        loss: "which goroutine of a gateway written in Go connects or answers is not known",
        fields: &[("THREAD_FSBASE", "task_struct", "thread.fsbase", 8)],
    },
    Group {
        name: "field_protocol",
        loss: "sockets of SCTP and DCCP are not told from TCP",
        fields: &[("SK_PROTOCOL", "sock", "sk_protocol", 2)],
    },
    Group {
        name: "field_packet",
        loss: "a SYN-ACK that comes after the gateway gave up is not seen",
        fields: &[
            ("SKB_HEAD", "sk_buff", "head", 8),
            ("SKB_NETWORK", "sk_buff", "network_header", 2),
            ("SKB_TRANSPORT", "sk_buff", "transport_header", 2),
            ("SKB_DEV", "sk_buff", "dev", 8),
            ("DEV_NET", "net_device", "nd_net.net", 8),
        ],
    },
    Group {
        name: CONNECT_GROUP,
        loss: "a connect() that fails before the first SYN, or to a unix socket, is not seen",
        fields: &[
            ("SK_TYPE", "sock", "sk_type", 2),
            ("TASK_FILES", "task_struct", "files", 8),
            ("FILES_FDT", "files_struct", "fdt", 8),
            ("FDT_MAX", "fdtable", "max_fds", 4),
            ("FDT_FD", "fdtable", "fd", 8),
            ("FILE_PRIVATE", "file", "private_data", 8),
            ("SOCKET_SK", "socket", "sk", 8),
            ("SKC_COOKIE", "sock_common", "skc_cookie", 8),
        ],
    },
];

/// The group without which the connect probe would report datagram sockets.
const CONNECT_GROUP: &str = "field_fd";

/// Where this kernel keeps what the programs read.
pub(super) struct Offsets {
    /// Value of each global.
    pub(super) globals: Vec<(&'static str, u32)>,
    /// One row a group.
    pub(super) status: Vec<ProbeStatus>,
    /// Why the connect probe cannot be used, where it cannot.
    pub(super) no_connect: Option<String>,
    /// Names of the kernel's reasons for a reset; empty before Linux 6.10.
    pub(super) reset_reasons: ResetReasons,
}

impl Offsets {
    /// Looks everything up in `btf`.
    pub(super) fn resolve(btf: &Btf<'_>) -> Self {
        let mut globals = Vec::new();
        let mut status = Vec::new();
        let mut no_connect = None;
        for group in GROUPS {
            let mut reason = String::new();
            for (global, of, path, size) in group.fields {
                match btf.offset(of, path, *size) {
                    Ok(offset) => globals.push((*global, offset)),
                    Err(error) => {
                        globals.push((*global, NO_OFFSET));
                        reason = format!("{error}: {}", group.loss);
                    }
                }
            }
            if group.name == CONNECT_GROUP && !reason.is_empty() {
                no_connect = Some(reason.clone());
            }
            status.push(ProbeStatus {
                name: group.name,
                attached: reason.is_empty(),
                reason,
            });
        }
        let reset_reasons = ResetReasons::resolve(btf);
        let has_reason = reset_reasons.argument;
        globals.push(("RESET_HAS_REASON", u32::from(has_reason)));
        status.push(ProbeStatus {
            name: "reset_reason",
            attached: has_reason,
            reason: if has_reason {
                String::new()
            } else {
                "this kernel's tcp_send_reset gives no reason (Linux 6.10 does): why a reset was sent is inferred".to_owned()
            },
        });
        Self {
            globals,
            status,
            no_connect,
            reset_reasons,
        }
    }
}

/// The kernel's reasons for a reset by number.
#[derive(Clone, Debug, Default)]
pub(super) struct ResetReasons {
    /// Whether the tracepoint gives a reason at all.
    argument: bool,
    names: HashMap<i32, ResetReason>,
}

impl ResetReasons {
    fn resolve(btf: &Btf<'_>) -> Self {
        let argument = btf
            .tracepoint_arity("tcp_send_reset")
            .is_ok_and(|arity| arity >= 3);
        let names = btf.enumerators("sk_rst_reason").unwrap_or_default();
        let prefix = "SK_RST_REASON_";
        let names = names
            .into_iter()
            .filter_map(|(value, name)| Some((value, name.strip_prefix(prefix)?)))
            .filter(|(_, name)| *name != "NOT_SPECIFIED" && *name != "MAX")
            .map(|(value, name)| (value, ResetReason::from_kernel(name)))
            .collect();
        Self { argument, names }
    }

    /// The reason with this number; `None` where the kernel did not say or is newer than its names.
    pub(super) fn name(&self, value: i32) -> Option<ResetReason> {
        match (self.names.get(&value), value) {
            (Some(reason), _) => Some(reason.clone()),
            (None, value) if self.argument && value > 0 && self.names.is_empty() => {
                Some(ResetReason::Other(Arc::from(value.to_string())))
            }
            _ => None,
        }
    }
}
