//! JSON objects in libvirt's order.

use serde_json::Value;

use crate::qemu::JsonObject;

/// Adds properties one after the other.
pub(crate) trait Properties {
    /// Adds a property.
    fn put(&mut self, name: &str, value: impl Into<Value>);

    /// Adds a property that may be unset.
    fn put_some(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    /// Adds a number that is unset when it is 0.
    fn put_nonzero(&mut self, name: &str, value: impl Into<u64>) {
        self.put_some(name, Some(value.into()).filter(|n| *n != 0));
    }
}

impl Properties for JsonObject {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.insert(name.to_owned(), value.into());
    }
}
