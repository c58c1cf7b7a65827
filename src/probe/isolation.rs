//! Namespaces and containers.

use std::{env, path::Path};

use super::{check::Check, kernel::KernelVersion, text::read};
use crate::sys::limits;

/// The namespaces and the container of the process; `None` if unknown.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Isolation {
    /// `true` if the process is in the initial user namespace. In any other, capabilities do not
    /// lift the memlock limit.
    pub initial_user_namespace: Option<bool>,
    /// `true` if the process is in the initial network namespace. From any other, packets usually
    /// leave over a virtual pair, where the kernel copies. Known since Linux 6.18.
    pub initial_network_namespace: Option<bool>,
    /// The kind of container, if the container left a trace (`docker`, `podman`, `kubernetes`,
    /// `lxc` and others).
    pub container: Option<String>,
}

impl Isolation {
    pub(super) fn read(kernel: Option<KernelVersion>) -> Self {
        const FIXED_NUMBERS: KernelVersion = KernelVersion { major: 6, minor: 18, patch: 0 };
        let network = limits::in_initial_namespace("net");
        let fixed = kernel.is_some_and(|version| version >= FIXED_NUMBERS);
        Self {
            initial_user_namespace: limits::in_initial_namespace("user"),
            initial_network_namespace: network.or(fixed.then_some(false)),
            container: container(&Traces::read()),
        }
    }

    pub(super) fn check(&self) -> Check {
        const NAME: &str = "isolation";
        let namespace = |kind, initial| match initial {
            Some(true) => format!("initial {kind} namespace"),
            Some(false) => format!("{kind} namespace of its own"),
            None => format!("{kind} namespace unknown"),
        };
        let found = format!(
            "{}, {}, {}",
            namespace("user", self.initial_user_namespace),
            namespace("network", self.initial_network_namespace),
            match &self.container {
                Some(container) => format!("container ({container})"),
                None => "no trace of a container".to_owned(),
            }
        );
        match (self.initial_user_namespace, self.initial_network_namespace) {
            (None, None) => Check::unknown(NAME, found, "mount /proc"),
            _ => Check::pass(NAME, found),
        }
    }
}

/// The traces of container managers.
#[derive(Default)]
struct Traces {
    dockerenv: bool,
    containerenv: bool,
    /// `$container`, set by systemd-nspawn, LXC and podman.
    variable: Option<String>,
    /// `/run/systemd/container`
    systemd: Option<String>,
    /// `/proc/self/cgroup`
    cgroup: String,
}

impl Traces {
    fn read() -> Self {
        Self {
            dockerenv: Path::new("/.dockerenv").exists(),
            containerenv: Path::new("/run/.containerenv").exists(),
            variable: env::var("container").ok(),
            systemd: read("/run/systemd/container"),
            cgroup: read("/proc/self/cgroup").unwrap_or_default(),
        }
    }
}

fn container(traces: &Traces) -> Option<String> {
    let named = [&traces.variable, &traces.systemd].into_iter().flatten();
    let cgroup = [
        ("kubepods", "kubernetes"),
        ("docker", "docker"),
        ("libpod", "podman"),
        ("lxc", "lxc"),
        ("containerd", "containerd"),
    ]
    .into_iter()
    .find_map(|(trace, name)| traces.cgroup.contains(trace).then_some(name));
    named
        .map(|name| name.trim())
        .find(|name| !name.is_empty())
        .or(cgroup)
        .or(traces.dockerenv.then_some("docker"))
        .or(traces.containerenv.then_some("podman"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Status;

    #[test]
    fn containers_leave_traces() {
        let cgroup = |text: &str| Traces { cgroup: text.to_owned(), ..Traces::default() };
        let variable = |text: &str| Some(text.to_owned());
        for (traces, name) in [
            (Traces::default(), None),
            (cgroup("0::/user.slice/user-0.slice/session-1.scope"), None),
            (cgroup("0::/kubepods/besteffort/pod1/docker-2"), Some("kubernetes")),
            (cgroup("3:cpu:/docker/0123"), Some("docker")),
            (cgroup("0::/lxc.payload.a"), Some("lxc")),
            (Traces { dockerenv: true, ..Traces::default() }, Some("docker")),
            (Traces { containerenv: true, ..Traces::default() }, Some("podman")),
            (
                Traces { variable: variable("systemd-nspawn"), ..Traces::default() },
                Some("systemd-nspawn"),
            ),
            (
                Traces { systemd: variable("lxc\n"), variable: variable(""), ..Traces::default() },
                Some("lxc"),
            ),
        ] {
            assert_eq!(container(&traces).as_deref(), name);
        }
    }

    #[test]
    fn known_facts_are_told() {
        let known = Isolation {
            initial_user_namespace: Some(false),
            initial_network_namespace: None,
            container: Some("podman".to_owned()),
        };
        let check = known.check();
        assert_eq!(check.status, Status::Pass);
        let found = "user namespace of its own, network namespace unknown, container (podman)";
        assert_eq!(check.found, found);
        let unknown = Isolation { initial_user_namespace: None, container: None, ..known };
        assert_eq!(unknown.check().status, Status::Unknown);
    }
}
