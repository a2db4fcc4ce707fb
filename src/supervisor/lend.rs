//! Secrets that QEMU gets for one operation: those of open disks are long gone from it.

use qapi::qmp::object_del;

use crate::qemu::SecretObject;
use crate::qmp::{COMMAND_DEADLINE, QmpError};
use crate::secret::{SecretValue, os_random};

use super::Running;
use super::checkpoint::Checkpoint;

impl Running {
    /// Gives QEMU secrets, each under an id, does something with them there, and takes them back whatever came of it.
    ///
    /// The future is to be run to its end: dropping it midway would leave the secrets, encrypted, in QEMU.
    pub(super) async fn lend<T, E: From<QmpError>>(
        &self,
        secrets: &[(&str, &SecretValue)],
        work: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut lent = Vec::new();
        let mut result = Ok(());
        for (id, value) in secrets {
            let sealed = self.master_key.seal(value, &mut os_random());
            let properties = SecretObject::sealed_properties(id, &sealed);
            result = self.qmp.execute_json("object-add", Some(&properties), COMMAND_DEADLINE).await.map(drop);
            if result.is_err() {
                break;
            }
            lent.push((*id).to_owned());
        }
        let result = match result {
            Ok(()) => {
                Checkpoint::Lent.passed();
                work().await
            }
            Err(e) => Err(e.into()),
        };
        for id in lent {
            if let Err(e) = self.qmp.execute(object_del { id: id.clone() }).await
                && !e.is_disconnect()
            {
                tracing::warn!("the secret object {id} stays in QEMU until the guest ends: {e}");
            }
        }
        result
    }
}
