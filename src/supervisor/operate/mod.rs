//! What is done to a running guest beside plugging: passwords and certificates of its displays, the size of its disks.

mod error;
mod passwords;
mod reload;
mod resize;
mod vnc;

pub use error::OperationError;
pub use passwords::{NewPassword, remove_password, set_password};
pub use reload::{Reloaded, reload_tls};
pub use resize::resize;

pub(super) use passwords::{check_passwords, limit_passwords};
pub(super) use resize::virtual_size;
pub(super) use vnc::reopen as reopen_display;
