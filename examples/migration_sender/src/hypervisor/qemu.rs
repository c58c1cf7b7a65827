//! The steps of a migration of a QEMU: commands to the monitors of both ends.
//!
//! ```text
//!   source                                    destination
//!   running     source()                      inmigrate   destination()
//!               -- rounds of memory -->
//!   paused      stop()
//!   postmigrate save()
//!               -- rest of the memory, device state -->
//!                                             paused      load()
//!               -- go -->                     running     start()
//! ```
//!
//! The capability `x-ignore-shared` keeps shared memory out of QEMU's stream, so the stream has the
//! state of the devices alone. [`SourceMachine::resume`] leads from each state of the source back to
//! `running`, and takes the settings back: a later migration of QEMU's own must not skip memory.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    DestinationMachine, SourceMachine,
    memory::{self, Access, GuestRam},
    qmp::{Qmp, Version},
};
use crate::failure::{Code, Failure};

/// The name of the descriptor that carries the device state.
const FD: &str = "pinbuf-device-state";
const IGNORE_SHARED: &str = "x-ignore-shared";
/// Capabilities that change the stream, the memory or the order of the steps.
const FOREIGN: [&str; 10] = [
    "background-snapshot",
    "block",
    "mapped-ram",
    "multifd",
    "pause-before-switchover",
    "postcopy-ram",
    "release-ram",
    "return-path",
    "x-colo",
    "zero-copy-send",
];
/// The bandwidth of QEMU's own stream, in bytes per second. The device state goes to a socket of
/// this host, so the default would only make the downtime longer.
const BANDWIDTH: u64 = 64 << 30;
/// The period of questions after the end of a migration, a part of the downtime.
const PERIOD: Duration = Duration::from_millis(1);
/// Limits the rate of writes of all processors, in MiB per second.
const DIRTY_LIMIT: &str = "set-vcpu-dirty-limit";
const NO_LIMIT: u64 = 1 << 30;
/// QEMU takes a rate once per second.
const RATE_PERIOD: Duration = Duration::from_millis(2500);
/// The first version that can survive a device state that it refuses.
const SURVIVES: Version = Version { major: 9, minor: 1 };

/// A QEMU at one end of a move.
#[derive(Debug)]
pub struct Qemu {
    qmp: Qmp,
    timeout: Duration,
    /// The largest device state, in bytes.
    max_state: usize,
    ram: Arc<[GuestRam]>,
    /// The setting of the source before the move.
    bandwidth: u64,
    /// The memory that a processor writes without throttle, in MiB per second.
    write_rate: Option<u64>,
}

impl Qemu {
    /// Prepares the QEMU with the running guest. `timeout` limits every step; a device state of
    /// more than `max_state` bytes is refused.
    ///
    /// # Errors
    ///
    /// Fails with the missing condition. The guest runs on.
    pub fn source(path: &Path, timeout: Duration, max_state: usize) -> Result<Self, Failure> {
        let mut qemu = Self::connect(path, timeout, max_state, Access::Read)?;
        let parameters = qemu.qmp.execute("query-migrate-parameters", json!({}))?;
        qemu.refuse_parameters(&parameters)?;
        qemu.bandwidth = parameters["max-bandwidth"].as_u64().unwrap_or(BANDWIDTH);
        qemu.prepare(true, BANDWIDTH)?;
        Ok(qemu)
    }

    /// Prepares the QEMU that waits for a guest (`-incoming defer`).
    ///
    /// # Errors
    ///
    /// Fails with the missing condition.
    pub fn destination(path: &Path, timeout: Duration, max_state: usize) -> Result<Self, Failure> {
        let mut qemu = Self::connect(path, timeout, max_state, Access::Write)?;
        qemu.set_capability(true)?;
        Ok(qemu)
    }

    fn connect(
        path: &Path,
        timeout: Duration,
        max_state: usize,
        access: Access,
    ) -> Result<Self, Failure> {
        let mut qmp = Qmp::connect(path, timeout)?;
        let ram = memory::find(&mut qmp, access)?.into();
        let (bandwidth, write_rate) = (BANDWIDTH, None);
        let mut qemu = Self { qmp, timeout, max_state, ram, bandwidth, write_rate };
        let remedy = match (access, qemu.status()?.as_str()) {
            (Access::Read, "running") | (Access::Write, "inmigrate") => "",
            (Access::Read, "inmigrate") => "this QEMU waits for a guest: is it the destination?",
            (Access::Read, _) => "start the guest first (QMP: cont)",
            (Access::Write, _) => "start the destination's QEMU anew, with -incoming defer",
        };
        if !remedy.is_empty() {
            let status = qemu.status()?;
            return Err(qemu.refused(format!("the guest is {status}; {remedy}")));
        }
        qemu.refuse_migration()?;
        qemu.refuse_capabilities()?;
        qemu.refuse_devices()?;
        Ok(qemu)
    }

    /// The connection to the monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The guest's memory: readable at the source, writable at the destination.
    pub fn ram(&self) -> &Arc<[GuestRam]> {
        &self.ram
    }

    /// The run state, in QEMU's words: `running`, `paused`, `postmigrate`, `inmigrate` and more.
    pub fn status(&mut self) -> Result<String, Failure> {
        let status = self.qmp.execute("query-status", json!({}))?;
        Ok(status["status"].as_str().unwrap_or("unknown").to_owned())
    }

    /// The writers that the hypervisor's page tables do not show, by name, for
    /// [`track::choose`](crate::track::choose). Digests see their writes.
    pub fn untracked_writers(&mut self) -> Result<Vec<String>, Failure> {
        let is_outside =
            |kind: &str| kind.starts_with("vhost-user") || kind.starts_with("vhost-scsi");
        let mut writers = self.devices(is_outside)?;
        if self.monitor("info network")?.contains("type=vhost-user") {
            writers.push("netdev vhost-user".into());
        }
        let nodes = self.qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
        for node in nodes.as_array().into_iter().flatten() {
            let is_direct = node["cache"]["direct"] == true || node["sg"] == true;
            if is_direct || node["drv"] == "nvme" {
                let name = node["node-name"].as_str().unwrap_or("without a name");
                writers.push(format!("block node {name} (direct I/O)"));
            }
        }
        Ok(writers)
    }

    /// The highest rate of writes of a processor, in MiB per second.
    fn measure_writes(&mut self) -> Result<u64, Failure> {
        thread::sleep(RATE_PERIOD);
        let limits = self.qmp.execute("query-vcpu-dirty-limit", json!({}))?;
        let rates = limits.as_array().into_iter().flatten();
        Ok(rates.filter_map(|limit| limit["current-rate"].as_u64()).max().unwrap_or(0))
    }

    fn prepare(&mut self, ignore_shared: bool, bandwidth: u64) -> Result<(), Failure> {
        self.set_capability(ignore_shared)?;
        self.qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": bandwidth }))?;
        Ok(())
    }

    fn set_capability(&mut self, state: bool) -> Result<(), Failure> {
        let capability = json!({ "capability": IGNORE_SHARED, "state": state });
        self.qmp.execute("migrate-set-capabilities", json!({ "capabilities": [capability] }))?;
        Ok(())
    }

    fn expect(&mut self, expected: &str) -> Result<(), Failure> {
        match self.status()? {
            status if status == expected => Ok(()),
            status => {
                Err(self.failed(format!("the guest is {status} where it should be {expected}")))
            }
        }
    }

    /// The state of QEMU's own migration, and its error.
    fn migration(&mut self) -> Result<(String, Value), Failure> {
        let migration = self.qmp.execute("query-migrate", json!({}))?;
        Ok((migration["status"].as_str().unwrap_or("none").to_owned(), migration))
    }

    fn wait(&mut self, is_over: impl Fn(&str) -> bool) -> Result<(String, Value), Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let (status, migration) = self.migration()?;
            if is_over(&status) {
                return Ok((status, migration));
            }
            if Instant::now() > deadline {
                return Err(self.failed(format!("the migration of the devices stays {status}")));
            }
            thread::sleep(PERIOD);
        }
    }

    fn complete(&mut self) -> Result<(), Failure> {
        // Right after the command the state may still be that of an earlier attempt or none.
        match self.wait(|status| !is_under_way(status) && status != "none")? {
            (status, _) if status == "completed" => Ok(()),
            (status, migration) => {
                let why =
                    migration["error-desc"].as_str().unwrap_or("its standard error tells why");
                Err(self.failed(format!(
                    "the migration of the devices is {status}: {why}; both ends need the same \
                     machine type, devices, memory backends and sizes"
                )))
            }
        }
    }

    /// A connection to QEMU, known there as [`FD`]. Only QEMU has the opposite end, so the end of
    /// its stream can be read.
    fn socket(&mut self) -> Result<UnixStream, Failure> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|e| Failure::io("socket for the device state", &e))?;
        self.qmp.getfd(FD, theirs.as_fd())?;
        Ok(ours)
    }

    /// Reads the device state to its end.
    fn read(&self, socket: &mut UnixStream) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + self.timeout;
        let (mut state, mut len) = (vec![0; 1 << 20], 0);
        loop {
            if len == state.len() {
                state.resize(2 * len, 0);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.failed("the device state has no end".into()));
            }
            let _ = socket.set_read_timeout(Some(left));
            match socket.read(&mut state[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(e) => return Err(Failure::io("reading the device state", &e)),
            }
            if len > self.max_state {
                return Err(self.failed(format!(
                    "the device state has more than {} MiB: QEMU sends memory of its own in it; all \
                     memory has to be in -object memory-backend-file,share=on",
                    self.max_state >> 20,
                )));
            }
        }
        state.truncate(len);
        Ok(state)
    }

    fn refuse_migration(&mut self) -> Result<(), Failure> {
        let (status, migration) = self.migration()?;
        if is_under_way(&status) {
            return Err(self.refused(format!("a migration is {status}; end it first")));
        }
        match &migration["blocked-reasons"] {
            Value::Array(reasons) if !reasons.is_empty() => {
                Err(self.refused(format!("QEMU cannot migrate this guest: {}", reasons[0])))
            }
            _ => Ok(()),
        }
    }

    fn refuse_capabilities(&mut self) -> Result<(), Failure> {
        let capabilities = self.qmp.execute("query-migrate-capabilities", json!({}))?;
        let state = |name: &str| {
            let entry = capabilities.as_array()?.iter().find(|entry| entry["capability"] == name);
            entry?["state"].as_bool()
        };
        if state(IGNORE_SHARED).is_none() {
            return Err(self.refused(format!("this QEMU lacks the capability {IGNORE_SHARED}")));
        }
        if let Some(name) = FOREIGN.into_iter().find(|name| state(name) == Some(true)) {
            let why = format!(
                "the capability {name} is on and does not work with memory sent from outside; turn \
                 it off (QMP: migrate-set-capabilities)"
            );
            return Err(self.refused(why));
        }
        Ok(())
    }

    fn refuse_parameters(&self, parameters: &Value) -> Result<(), Failure> {
        for (name, allowed) in [("tls-creds", ""), ("mode", "normal")] {
            match parameters[name].as_str() {
                Some(value) if value != allowed => {
                    let why = format!(
                        "the migration parameter {name} is {value:?}; set it to {allowed:?} \
                         (QMP: migrate-set-parameters)"
                    );
                    return Err(self.refused(why));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses devices that write to the memory past every page table.
    fn refuse_devices(&mut self) -> Result<(), Failure> {
        let is_direct = |kind: &str| kind.starts_with("vfio-") || kind.contains("vhost-vdpa");
        let mut devices = self.devices(is_direct)?;
        if self.monitor("info network")?.contains("type=vhost-vdpa") {
            devices.push("netdev vhost-vdpa".into());
        }
        match devices.first() {
            Some(device) => Err(self.refused(format!(
                "{device} writes to the guest's memory without the processor, so changes go unseen; \
                 unplug it first (QMP: device_del)"
            ))),
            None => Ok(()),
        }
    }

    /// The devices of the command line and of hotplug whose type is asked for.
    fn devices(&mut self, is_asked: impl Fn(&str) -> bool) -> Result<Vec<String>, Failure> {
        let mut devices = Vec::new();
        for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
            devices.extend(self.children(folder)?);
        }
        devices.retain(|(_, kind)| is_asked(kind));
        Ok(devices.into_iter().map(|(name, kind)| format!("{kind} {name}")).collect())
    }

    /// Names and types of the objects in a folder of QEMU's object model.
    fn children(&mut self, folder: &str) -> Result<Vec<(String, String)>, Failure> {
        let properties = self.qmp.execute("qom-list", json!({ "path": folder }))?;
        let child = |property: &Value| {
            let kind = property["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
            Some((property["name"].as_str()?.to_owned(), kind.to_owned()))
        };
        Ok(properties.as_array().into_iter().flatten().filter_map(child).collect())
    }

    /// A command of the human monitor.
    fn monitor(&mut self, line: &str) -> Result<String, Failure> {
        let text = self.qmp.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    fn refused(&self, why: String) -> Failure {
        Failure::new(Code::Environment, format!("QMP {}: {why}", self.qmp.path().display()))
    }

    fn failed(&self, why: String) -> Failure {
        Failure::new(Code::Io, format!("QMP {}: {why}", self.qmp.path().display()))
    }
}

impl SourceMachine for Qemu {
    fn stop(&mut self) -> Result<(), Failure> {
        self.qmp.execute("stop", json!({}))?;
        self.expect("paused")
    }

    fn save(&mut self) -> Result<Vec<u8>, Failure> {
        // Again after an earlier `resume`.
        self.prepare(true, BANDWIDTH)?;
        let mut socket = self.socket()?;
        self.qmp.execute("migrate", json!({ "uri": format!("fd:{FD}") }))?;
        let state = self.read(&mut socket)?;
        self.complete()?;
        self.expect("postmigrate")?;
        Ok(state)
    }

    /// Takes QEMU's settings back too. The guest must not run at the destination, now or later.
    fn resume(&mut self) -> Result<(), Failure> {
        if is_under_way(&self.migration()?.0) {
            self.qmp.execute("migrate_cancel", json!({}))?;
            self.wait(|status| !is_under_way(status))?;
        }
        if self.status()? != "running" {
            self.qmp.execute("cont", json!({}))?;
        }
        self.expect("running")?;
        if self.write_rate.take().is_some() {
            self.qmp.execute("cancel-vcpu-dirty-limit", json!({}))?;
        }
        self.prepare(false, self.bandwidth)
    }

    /// Only KVM with a dirty ring (`-accel kvm,dirty-ring-size=4096`) can slow a guest down from
    /// QMP: by a limit of the memory that each processor writes. The limit is a share of the rate
    /// at the first call.
    fn throttle(&mut self, percent: u8) -> Result<bool, Failure> {
        let rate = match self.write_rate {
            Some(rate) => rate,
            None => match self.qmp.execute(DIRTY_LIMIT, json!({ "dirty-rate": NO_LIMIT })) {
                Ok(_) => {
                    let rate = self.measure_writes()?;
                    *self.write_rate.insert(rate)
                }
                Err(error) if error.refusal().is_some() => return Ok(false),
                Err(error) => return Err(error.into()),
            },
        };
        let limit = (rate * u64::from(100_u8.saturating_sub(percent)) / 100).max(1);
        self.qmp.execute(DIRTY_LIMIT, json!({ "dirty-rate": limit }))?;
        Ok(true)
    }
}

impl DestinationMachine for Qemu {
    /// Before version 9.1 a QEMU that cannot load the state ends.
    fn load(&mut self, state: &[u8]) -> Result<(), Failure> {
        let mut socket = self.socket()?;
        let mut arguments = json!({ "uri": format!("fd:{FD}") });
        if self.qmp.version() >= SURVIVES {
            arguments["exit-on-error"] = false.into();
        }
        self.qmp.execute("migrate-incoming", arguments).map_err(|error| match error.refusal() {
            Some(_) => self.refused(format!("{error}; start QEMU with -incoming defer")),
            None => error.into(),
        })?;
        let _ = socket.set_write_timeout(Some(self.timeout));
        // A QEMU that refuses the state closes the socket, and tells why below.
        let _ = socket.write_all(state);
        let _ = socket.shutdown(Shutdown::Write);
        self.complete()?;
        self.expect("paused")
    }

    fn start(&mut self) -> Result<(), Failure> {
        self.qmp.execute("cont", json!({}))?;
        self.expect("running")
    }
}

/// Returns `true` for the states of a migration of QEMU's own that has not ended.
fn is_under_way(status: &str) -> bool {
    !matches!(status, "none" | "completed" | "failed" | "cancelled")
}
