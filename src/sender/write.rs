//! Writes of borrowed bytes: by copy, in order with the sends.

use std::io;

use super::{
    driver::{Core, os},
    kernel::Kernel,
    machine::{Item, Way},
    wait::Wait,
};
use crate::{
    error::{SendError, WaitError},
    sys::socket::IoVec,
};

impl<K: Kernel> Core<K> {
    /// Writes as many bytes as the socket takes now.
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, SendError<()>> {
        if self.is_forked() {
            return Err(SendError::Forked(()));
        }
        let mut machine = self.enter();
        let granted = machine.granted(bytes.len(), 0, true);
        if granted.is_none() {
            // The bytes need no room but the socket's, and so have no length for the admission.
            let item = Item { len: 0, pool: 0, quota: None };
            let (admitted, way) =
                self.admit(machine, item).map_err(|stop| stop.into_send_error(()))?;
            debug_assert!(way == Way::Copy);
            machine = admitted;
        }
        let call = machine.begin_write(IoVec::new(bytes.as_ptr(), bytes.len()));
        let Some((mut machine, sent)) = self.call_lone(machine, &call, granted.is_none(), None)
        else {
            return Ok(call.bytes);
        };
        match sent {
            Ok(accepted) => {
                machine.wants_watch |= self.limits_silence;
                machine.wrote(call, accepted);
                self.tidy(machine);
                Ok(accepted)
            }
            Err(error) => {
                let stop = self.copy_failed(&mut machine, call, os(&error));
                self.tidy(machine);
                Err(stop.into_send_error(()))
            }
        }
    }

    /// Writes as many bytes as the socket takes, and waits until it takes any.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.try_write(bytes) {
            Err(SendError::WouldBlock(())) => self.wait_to_write(bytes),
            written => Ok(written?),
        }
    }

    #[cold]
    fn wait_to_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.watch_hold();
        let mut wait = Wait::new(self, None, true);
        loop {
            wait.round_to_send()?;
            match self.try_write(bytes) {
                Err(SendError::WouldBlock(())) => {}
                written => return Ok(written?),
            }
        }
    }

    /// Waits until nothing is unsent. Fails if the last send was cut short.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_forked() {
            return Err(WaitError::Forked.into());
        }
        if !self.is_flushed() {
            Wait::new(self, None, true).until(|core| core.is_flushed().then_some(Ok(())))?;
        }
        self.flushed()
    }
}
