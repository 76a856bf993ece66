//! What is refused, and how.

use super::program::{Answer, Program, Test, Word};

/// The machine's own calling convention; every other one (32-bit programs) is refused whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Architecture {
    /// `AUDIT_ARCH_*` of `linux/audit.h`.
    audit: u32,
    /// x86 alone: numbers with this bit are x32's, a second door to the same calls.
    has_x32: bool,
}

pub(super) const X86_64: Architecture = Architecture { audit: 0xC000_003E, has_x32: true };
pub(super) const AARCH64: Architecture = Architecture { audit: 0xC000_00B7, has_x32: false };

impl Architecture {
    pub(super) fn of_this_machine() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(X86_64),
            "aarch64" => Some(AARCH64),
            _ => None,
        }
    }
}

pub(super) const X32_BIT: u32 = 0x4000_0000;
/// `file_setattr`, the newest call that this list was written for (Linux 6.17); later numbers are ENOSYS.
const NEWEST: u32 = 469;
/// `open_tree_attr`, which libc has no name for yet.
const OPEN_TREE_ATTR: i64 = 467;

const NOT_PERMITTED: Answer = Answer::Errno(libc::EPERM);
/// As where the kernel was built without it: what programs know how to go on from.
const NOT_THERE: Answer = Answer::Errno(libc::ENOSYS);

/// Every flag of `clone` and `unshare` that makes a namespace.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();
/// Of `unshare` alone; in `clone` the bit belongs to the exit signal.
const NEW_TIME: u32 = 0x80;

/// Injecting input into a terminal, and changing what a terminal is.
const TERMINAL_TRICKS: [u32; 3] = [0x5412, 0x541C, 0x5423]; // TIOCSTI, TIOCLINUX, TIOCSETD

/// `personality` values that change no rule of memory: the usual one, Linux's 32-bit name, 2.6's version, and a query.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, u32::MAX];

/// Refused with EPERM whatever the arguments: only root has a use for them, or they look into other processes.
const PRIVILEGED: &[i64] = &[
    // Mounts and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    OPEN_TREE_ATTR,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_reboot,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Where memory lies.
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    // Input and output ports, segments.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

/// Refused with ENOSYS whatever the arguments.
const ABSENT: &[i64] = &[
    // Its flags lie in memory, where no filter can look: libc goes on with `clone`.
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
];

fn number(call: i64) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

fn is(call: i64) -> Test {
    Test::Equal(number(call))
}

/// The whole filter. Calls whose arguments are looked at come first: their answers are in no cache of the kernel's.
pub(super) fn filter(architecture: Architecture) -> Vec<libc::sock_filter> {
    let mut program = Program::default();
    let p = &mut program;
    p.load(Word::Architecture).answer_unless(Test::Equal(architecture.audit), Answer::Kill);
    p.load(Word::Number);
    if architecture.has_x32 {
        p.answer_if(Test::AtLeast(X32_BIT), NOT_THERE);
    }
    p.when(is(libc::SYS_clone), |p| {
        p.load(Word::Argument(0)).answer_if(Test::AnyBit(NEW_NAMESPACES), NOT_PERMITTED).answer(Answer::Allow);
    });
    p.when(is(libc::SYS_ioctl), |p| {
        p.load(Word::Argument(1));
        for request in TERMINAL_TRICKS {
            p.answer_if(Test::Equal(request), NOT_PERMITTED);
        }
        p.answer(Answer::Allow);
    });
    p.when(is(libc::SYS_socket), socket);
    p.when(is(libc::SYS_socketpair), |p| {
        p.load(Word::Argument(0));
        p.answer_if(Test::Equal(libc::AF_UNIX.cast_unsigned()), Answer::Allow);
        p.answer(Answer::Errno(libc::EAFNOSUPPORT));
    });
    p.when(is(libc::SYS_setns), |p| {
        p.load(Word::Argument(1));
        for flags in crate::sys::holder::JOINED {
            p.answer_if(Test::Equal(flags.cast_unsigned()), Answer::Allow);
        }
        p.answer(NOT_PERMITTED);
    });
    p.when(is(libc::SYS_unshare), |p| {
        p.load(Word::Argument(0));
        p.answer_if(Test::AnyBit(NEW_NAMESPACES | NEW_TIME), NOT_PERMITTED).answer(Answer::Allow);
    });
    p.when(is(libc::SYS_personality), |p| {
        p.load(Word::Argument(0));
        for personality in PERSONALITIES {
            p.answer_if(Test::Equal(personality), Answer::Allow);
        }
        p.answer(NOT_PERMITTED);
    });
    p.answer_if(Test::AtLeast(NEWEST + 1), NOT_THERE);
    for &call in ABSENT {
        p.answer_if(is(call), NOT_THERE);
    }
    for &call in PRIVILEGED {
        p.answer_if(is(call), NOT_PERMITTED);
    }
    p.answer(Answer::Allow);
    program.finish()
}

/// Unix sockets; TCP, UDP and ping over both IPs; and of netlink the routes, which `getaddrinfo` asks for.
///
/// No MPTCP, SCTP or UDP-Lite: their connections would pass by what guards the network (`network`), and all programs go on
/// without them.
fn socket(p: &mut Program) {
    const KIND: u32 = 0xF;
    let [ip, ipv6, unix, netlink] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK]
        .map(|family| Test::Equal(family.cast_unsigned()));
    let internet = |p: &mut Program| {
        p.load(Word::Argument(1)).mask(KIND);
        let stream: &[libc::c_int] = &[0, libc::IPPROTO_TCP];
        let datagram: &[libc::c_int] = &[0, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6];
        for (kind, protocols) in [(libc::SOCK_STREAM, stream), (libc::SOCK_DGRAM, datagram)] {
            p.when(Test::Equal(kind.cast_unsigned()), |p| {
                p.load(Word::Argument(2));
                for protocol in protocols {
                    p.answer_if(Test::Equal(protocol.cast_unsigned()), Answer::Allow);
                }
                p.answer(Answer::Errno(libc::EPROTONOSUPPORT));
            });
        }
        p.answer(NOT_PERMITTED);
    };
    p.load(Word::Argument(0));
    p.answer_if(unix, Answer::Allow);
    p.when(ip, internet);
    p.when(ipv6, internet);
    p.when(netlink, |p| {
        p.load(Word::Argument(2)).answer_if(Test::Equal(libc::NETLINK_ROUTE.cast_unsigned()), Answer::Allow);
        p.answer(Answer::Errno(libc::EAFNOSUPPORT));
    });
    p.answer(Answer::Errno(libc::EAFNOSUPPORT));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One call as the filter sees it.
    #[derive(Clone, Copy)]
    struct Call {
        architecture: u32,
        number: u32,
        arguments: [u64; 6],
    }

    /// What the kernel's interpreter would answer: of the instructions, those that the assembler writes.
    fn run(filter: &[libc::sock_filter], call: Call) -> u32 {
        let mut data = Vec::new();
        data.extend(call.number.to_le_bytes());
        data.extend(call.architecture.to_le_bytes());
        data.extend([0; 8]);
        data.extend(call.arguments.iter().flat_map(|a| a.to_le_bytes()));
        let (mut at, mut word) = (0, 0u32);
        loop {
            let step = filter[at];
            at += 1;
            let taken = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
            match u32::from(step.code) {
                0x20 => word = u32::from_le_bytes(data[step.k as usize..][..4].try_into().unwrap()),
                0x54 => word &= step.k,
                0x15 => at += taken(word == step.k),
                0x35 => at += taken(word >= step.k),
                0x45 => at += taken(word & step.k != 0),
                0x06 => return step.k,
                code => panic!("{code:#x} is not written by the assembler"),
            }
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn errno(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()
    }

    fn ask(number: i64, arguments: &[u64]) -> u32 {
        let here = Architecture::of_this_machine().unwrap();
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let call = Call { architecture: here.audit, number: u32::try_from(number).unwrap(), arguments: all };
        run(&filter(here), call)
    }

    #[test]
    fn every_call_has_one_answer() {
        for (call, expected) in [
            (libc::SYS_read, ALLOW),
            (libc::SYS_execve, ALLOW),
            (libc::SYS_clone3, errno(libc::ENOSYS)),
            (libc::SYS_io_uring_setup, errno(libc::ENOSYS)),
            (libc::SYS_keyctl, errno(libc::ENOSYS)),
            (libc::SYS_mount, errno(libc::EPERM)),
            (libc::SYS_bpf, errno(libc::EPERM)),
            (libc::SYS_ptrace, errno(libc::EPERM)),
            (libc::SYS_pidfd_open, ALLOW),
            (libc::SYS_pidfd_getfd, errno(libc::EPERM)),
            (libc::SYS_mseal, ALLOW),
            (OPEN_TREE_ATTR, errno(libc::EPERM)),
            (i64::from(NEWEST), ALLOW),
            (i64::from(NEWEST) + 1, errno(libc::ENOSYS)),
        ] {
            assert_eq!(ask(call, &[]), expected, "call {call}");
        }
    }

    #[test]
    fn a_namespace_is_made_by_no_flag() {
        const VFORK: u64 = 0x4111;
        assert_eq!(ask(libc::SYS_clone, &[VFORK]), ALLOW);
        // What glibc makes a thread with.
        assert_eq!(ask(libc::SYS_clone, &[0x003D_0F00]), ALLOW);
        for flag in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
            assert_eq!(ask(libc::SYS_clone, &[VFORK | flag]), errno(libc::EPERM), "{flag:#x}");
            assert_eq!(ask(libc::SYS_unshare, &[flag]), errno(libc::EPERM), "{flag:#x}");
        }
        assert_eq!(ask(libc::SYS_unshare, &[0x80]), errno(libc::EPERM));
        assert_eq!(ask(libc::SYS_unshare, &[libc::CLONE_FILES.cast_unsigned().into()]), ALLOW);
    }

    #[test]
    fn only_a_slots_namespaces_are_joined() {
        for flags in crate::sys::holder::JOINED {
            assert_eq!(ask(libc::SYS_setns, &[5, flags.cast_unsigned().into()]), ALLOW);
        }
        for flags in [0, libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET] {
            assert_eq!(ask(libc::SYS_setns, &[5, flags.cast_unsigned().into()]), errno(libc::EPERM));
        }
    }

    #[test]
    fn sockets_are_of_few_kinds() {
        let socket = |family: i32, kind: i32, protocol: i32| {
            ask(libc::SYS_socket, &[family, kind, protocol].map(|n| n.cast_unsigned().into()))
        };
        use libc::*;
        for (family, kind, protocol) in [
            (AF_UNIX, SOCK_SEQPACKET, 0),
            (AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
            (AF_INET6, SOCK_STREAM, IPPROTO_TCP),
            (AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, IPPROTO_UDP),
            (AF_INET, SOCK_DGRAM, IPPROTO_ICMP),
            (AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE),
        ] {
            assert_eq!(socket(family, kind, protocol), ALLOW, "{family} {kind} {protocol}");
        }
        for (family, kind, protocol, expected) in [
            (AF_ALG, SOCK_SEQPACKET, 0, EAFNOSUPPORT),
            (AF_VSOCK, SOCK_STREAM, 0, EAFNOSUPPORT),
            (AF_PACKET, SOCK_RAW, 0, EAFNOSUPPORT),
            (AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER, EAFNOSUPPORT),
            (AF_INET, SOCK_RAW, IPPROTO_ICMP, EPERM),
            // SOCK_PACKET: the old way to AF_PACKET.
            (AF_INET, 10, 3, EPERM),
            (AF_INET6, SOCK_SEQPACKET, 132, EPERM),
            (AF_INET, SOCK_STREAM, 262, EPROTONOSUPPORT),
            (AF_INET, SOCK_STREAM, IPPROTO_UDP, EPROTONOSUPPORT),
            (AF_INET6, SOCK_DGRAM, IPPROTO_UDPLITE, EPROTONOSUPPORT),
        ] {
            assert_eq!(socket(family, kind, protocol), errno(expected), "{family} {kind} {protocol}");
        }
        assert_eq!(ask(libc::SYS_socketpair, &[1]), ALLOW);
        assert_eq!(ask(libc::SYS_socketpair, &[30]), errno(EAFNOSUPPORT));
    }

    #[test]
    fn no_terminal_is_typed_into() {
        assert_eq!(ask(libc::SYS_ioctl, &[0, 0x5412]), errno(libc::EPERM));
        // The kernel reads 32 bits of it; so does the filter.
        assert_eq!(ask(libc::SYS_ioctl, &[0, 0x1_0000_5412]), errno(libc::EPERM));
        assert_eq!(ask(libc::SYS_ioctl, &[0, 0x5401]), ALLOW);
        assert_eq!(ask(libc::SYS_personality, &[0x40000]), errno(libc::EPERM));
        assert_eq!(ask(libc::SYS_personality, &[0xFFFF_FFFF]), ALLOW);
    }

    #[test]
    fn other_conventions_are_refused_whole() {
        let x86 = filter(X86_64);
        let call = |architecture, number| run(&x86, Call { architecture, number, arguments: [0; 6] });
        assert_eq!(call(0x4000_0003, 1), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(call(AARCH64.audit, 63), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(call(X86_64.audit, X32_BIT), errno(libc::ENOSYS));
        assert_eq!(call(X86_64.audit, u32::MAX), errno(libc::ENOSYS));
    }

    #[test]
    fn no_jump_leaves_the_program() {
        for architecture in [X86_64, AARCH64] {
            let filter = filter(architecture);
            assert!(filter.len() < 4096);
            for (at, step) in filter.iter().enumerate() {
                assert!(at + 1 + usize::from(step.jt.max(step.jf)) < filter.len() || step.code == 0x06);
            }
        }
    }
}
