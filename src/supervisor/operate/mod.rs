//! What is done to a running guest beside plugging: passwords of its displays, the size of its disks.

mod error;
mod passwords;
mod resize;

pub use error::OperationError;
pub use passwords::{NewPassword, remove_password, set_password};
pub use resize::resize;

pub(super) use passwords::{check_passwords, limit_passwords};
pub(super) use resize::virtual_size;
