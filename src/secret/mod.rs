//! What a secret is: a value that never leaves locked memory in the clear, its definition as libvirt's
//! secret XML has it, and the master key that encrypts it for QEMU.

mod definition;
mod locked;
mod lookup;
mod master_key;
mod value;

pub use definition::{DefinitionError, SecretDefinition, Usage, UsageKind};
pub use locked::all_locked;
pub use lookup::{SecretLookup, SecretRef};
pub use master_key::{IV_LEN, MASTER_KEY_ID, MASTER_KEY_LEN, MasterKey, SealedSecret, os_random};
pub use value::{MAX_VALUE_LEN, SecretValue, ValueError};
pub use vmward_crypt::wiping_stack;
