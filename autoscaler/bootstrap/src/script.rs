//! What is run on a machine, as text. Nothing here is done: these are pure functions.
//!
//! A script goes in by standard input, to `sh` below `timeout`, which ends it on the machine itself whatever becomes of us. It ends
//! with a mark, without which it is not begun: a connection that is cut half way through it runs nothing.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::{AgentFiles, Install, Recipe};

const MARK: &str = "# The end of what flux-autoscaler sent.";

/// The packaged unit.
const UNIT: &str = include_str!("../../../agent/debian/flux-agent.service");

/// One word of a shell command.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Who runs a script, and whether beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    /// Whom SSH let in.
    Ourselves,
    /// Root, when no other script of ours runs: one whose connection was cut goes on to its end, and would meet its second try.
    RootAlone { sudo: bool },
}

/// What another script that did not end in time makes this one end with.
pub(crate) const STILL_BUSY: u32 = 73;

/// What SSH is asked to run; the same for every script, but for its time.
pub(crate) fn command(within: Duration, who: As) -> String {
    let take = format!(
        "s=$(cat); case \"$s\" in *{}) eval \"$s\" </dev/null ;; *) echo \"the script was cut\" >&2; exit 75 ;; esac",
        quoted(MARK).replace('\'', "\"")
    );
    let seconds = within.as_secs().max(1);
    // The lock is `flock`'s own: what a script leaves running does not hold it.
    let lock = format!("flock --close --wait {seconds} --conflict-exit-code {STILL_BUSY} /run/flux-setup.lock ");
    let before = match who {
        As::Ourselves => String::new(),
        As::RootAlone { sudo: false } => lock,
        As::RootAlone { sudo: true } => format!("sudo -n {lock}"),
    };
    format!("exec {before}timeout --kill-after=5 {seconds} sh -c {}", quoted(&take))
}

/// A script as it is sent.
pub(crate) fn sent(script: &str) -> Vec<u8> {
    format!(
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8\n\
         umask 022\nexec 2>&1\nset -e\n{script}\n{MARK}"
    )
    .into_bytes()
}

/// Who we are, and a folder of ours: its path is what is printed.
pub(crate) const WORK_DIR: &str = "umask 077\nmkdir -p \"$HOME/.flux-setup\"\nchmod 700 \"$HOME/.flux-setup\"\n\
    printf '%s %s' \"$(id -u)\" \"$HOME/.flux-setup\"";

pub(crate) const CAN_BE_ROOT: &str = "[ \"$(id -u)\" -eq 0 ]";

/// One command of the configuration, unless it was done on this machine before.
pub(crate) fn setup(number: usize, command: &str) -> String {
    let digest = Sha256::digest(command.as_bytes());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!(
        "done=/var/lib/flux-setup/{number}-{short}\n\
         if [ -e \"$done\" ]; then exit 0; fi\n\
         trap 'if [ $? -eq 0 ]; then mkdir -p /var/lib/flux-setup; : >\"$done\"; fi' EXIT\n\
         {command}"
    )
}

const APT: &str = "apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold";

/// The users that the agent and its functions run as, where no package makes them.
const USERS: &str = "for user in flux flux-runner; do\n\
    \x20 id \"$user\" >/dev/null 2>&1 || useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \"$user\"\n\
    done\n\
    grep -q '^flux-runner:' /etc/subuid 2>/dev/null || { touch /etc/subuid; usermod --add-subuids 1879048192-1879113727 flux-runner; }";

/// Where the file of [`Install::Upload`] is brought to, in our folder.
pub(crate) fn upload_name(install: &Install) -> Option<&'static str> {
    match install {
        Install::Upload(file) if file.extension().is_some_and(|it| it == "deb") => Some("flux-agent.deb"),
        Install::Upload(_) => Some("flux-agent"),
        _ => None,
    }
}

pub(crate) fn install(install: &Install, work: &str) -> String {
    match install {
        Install::Present => {
            "command -v flux-agent >/dev/null || { echo 'there is no flux-agent on this image' >&2; exit 1; }"
                .to_owned()
        }
        Install::Url { url, sha256 } => {
            let sum = sha256.as_ref().map(|sum| format!(" SHA256:{}", sum.to_ascii_lowercase())).unwrap_or_default();
            format!(
                "dir=$(mktemp -d /var/tmp/flux-agent.XXXXXX)\ntrap 'rm -rf \"$dir\"' EXIT\n\
                 /usr/lib/apt/apt-helper -o Acquire::Retries=2 download-file {} \"$dir/flux-agent.deb\"{sum}\n\
                 {APT} install -y --no-install-recommends \"$dir/flux-agent.deb\"",
                quoted(url)
            )
        }
        Install::Package(name) => {
            format!("{APT} update\n{APT} install -y --no-install-recommends -- {}", quoted(name))
        }
        Install::Upload(_) if upload_name(install) == Some("flux-agent.deb") => {
            format!("{APT} install -y --no-install-recommends {}", quoted(&format!("{work}/flux-agent.deb")))
        }
        Install::Upload(_) => format!(
            "{USERS}\ninstall -o root -g root -m 0755 {} /usr/local/bin/flux-agent.new\n\
             mv -f /usr/local/bin/flux-agent.new /usr/local/bin/flux-agent",
            quoted(&format!("{work}/flux-agent"))
        ),
    }
}

/// From our folder to where they belong: each whole or not at all, the key nobody's but the agent's.
pub(crate) fn place(files: &AgentFiles, recipe: &Recipe, work: &str) -> String {
    let dir = quoted(&recipe.config_dir);
    let certs = quoted(&format!("{}/certs", recipe.config_dir));
    let mut lines = vec![
        "if id flux >/dev/null 2>&1; then user=flux; else user=root; fi".to_owned(),
        format!("install -d -m 0755 {dir}"),
        format!("for d in {certs} {certs}/ca {certs}/agents {certs}/agents/{}; do", quoted(files.agent.as_str())),
        "  install -d -o \"$user\" -g \"$user\" -m 0700 \"$d\"\ndone".to_owned(),
    ];
    for (name, mode, _) in files.placed() {
        let (from, to) = (quoted(&format!("{work}/{}", flat(&name))), quoted(&format!("{}/{name}", recipe.config_dir)));
        // Root reads the configuration at each start, so that the agent may not change it.
        let (owner, mode) = if name.starts_with("certs/") { ("\"$user\"", mode) } else { ("root", 0o640) };
        lines.push(format!("install -o {owner} -g \"$user\" -m {mode:04o} {from} {to}.new"));
        lines.push(format!("mv -f {to}.new {to}\nrm -f {from}"));
    }
    lines.push("sync".to_owned());
    lines.join("\n")
}

/// A path as one name in our folder.
pub(crate) fn flat(name: &str) -> String {
    name.replace('/', "_")
}

pub(crate) fn start(recipe: &Recipe) -> String {
    let by_hand = recipe.start_command.clone().unwrap_or_else(|| recipe.start_detached());
    let unit = match recipe.install {
        Install::Upload(_) => UNIT.replace("/usr/bin/flux-agent", "/usr/local/bin/flux-agent"),
        _ => UNIT.to_owned(),
    };
    format!(
        "if [ -d /run/systemd/system ]; then\n\
         \x20 if ! systemctl cat flux-agent.service >/dev/null 2>&1; then\n\
         cat >/etc/systemd/system/flux-agent.service <<'end-of-unit'\n{unit}\nend-of-unit\n\
         \x20   systemctl daemon-reload\n\
         \x20 fi\n\
         \x20 systemctl enable --quiet flux-agent.service\n\
         \x20 systemctl restart flux-agent.service\n\
         else\n{by_hand}\nfi"
    )
}

/// Why an agent is not heard of.
pub(crate) const LOG: &str = "if [ -d /run/systemd/system ]; then systemctl --no-pager status flux-agent.service 2>&1 | head -n 5; \
    journalctl --no-pager -u flux-agent.service -n 40; else tail -n 40 /var/log/flux-agent.log; fi";

pub(crate) fn clean_up(work: &str) -> String {
    format!("rm -rf -- {}", quoted(work))
}

/// Whether what [`Install::Upload`] would bring is in our folder.
pub(crate) fn has_upload(work: &str, name: &str, sha256: &str) -> String {
    format!("echo {} | sha256sum --check --status -", quoted(&format!("{sha256}  {work}/{name}")))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Output, Stdio},
    };

    use super::*;

    /// As sshd does it: the login shell gets the command, the script comes by standard input.
    fn run(input: &[u8]) -> Output {
        let mut child = Command::new("sh")
            .args(["-c", &command(Duration::from_secs(60), As::Ourselves)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh");
        child.stdin.take().expect("its input").write_all(input).expect("written");
        child.wait_with_output().expect("it ends")
    }

    #[test]
    fn a_script_runs_as_it_is_and_reads_no_input() {
        let tricky = "cat; printf '%s' \"it's \\\"$((1 + 2))\\\" `echo ok` $1*\"";
        let ran = run(&sent(tricky));
        assert_eq!((String::from_utf8_lossy(&ran.stdout).as_ref(), ran.status.code()), ("it's \"3\" ok *", Some(0)));
        assert_eq!(run(&sent("false\necho no")).status.code(), Some(1), "the first that fails ends it");
        assert_eq!(run(&sent("exit 3")).status.code(), Some(3));
    }

    #[test]
    fn a_script_that_came_in_part_is_not_begun() {
        let whole = sent("echo begun");
        for cut in (0..whole.len()).step_by(11).chain([whole.len() - 1]) {
            let ran = run(&whole[..cut]);
            assert_eq!((ran.status.code(), ran.stdout.as_slice()), (Some(75), b"".as_slice()), "{cut} bytes");
        }
    }

    #[test]
    fn words_are_words() {
        let ran = run(&sent(&format!("printf '%s|' {} {}", quoted("a b'c\"$x"), quoted(""))));
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "a b'c\"$x||");
    }

    #[test]
    fn no_command_line_has_what_is_sent() {
        let as_root = command(Duration::from_secs(7), As::RootAlone { sudo: true });
        assert!(
            as_root.starts_with("exec sudo -n flock --close --wait 7 ") && !as_root.contains("echo begun"),
            "{as_root}"
        );
    }
}
