//! `<smartcard>`.

use crate::domain::{Address, CcidAddress, DeviceInfo};
use crate::xml::{Diagnostics, Element, keywords};

use super::chardev::Chardev;

keywords! {
    /// Where a smart card is.
    pub enum SmartcardMode {
        /// The host's reader.
        Host = "host",
        /// Certificates of the host.
        HostCertificates = "host-certificates",
        /// Behind a character device.
        Passthrough = "passthrough",
    }
}

/// Where a smart card is, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SmartcardSource {
    /// The host's reader.
    Host,
    /// Certificates of the host.
    Certificates {
        /// Their three names.
        names: Vec<String>,
        /// The database that has them.
        database: String,
    },
    /// Behind a character device.
    Passthrough(Chardev),
}

/// A `<smartcard>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smartcard {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Where the card is.
    pub source: SmartcardSource,
}

impl Smartcard {
    /// Reads a `<smartcard>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        /// What a card emulated from certificates takes.
        const CERTIFICATES: usize = 3;
        /// Where NSS keeps those of the system.
        const DATABASE: &str = "/etc/pki/nssdb";
        let mut info = DeviceInfo::from_xml(element, diagnostics);
        // A reader has one slot.
        info.address.get_or_insert(Address::Ccid(CcidAddress::default()));
        if let Some(Address::Ccid(address)) = &info.address
            && address.slot != 0
        {
            diagnostics.error(info.address_span.unwrap_or(info.span), "a smart card reader has only slot 0");
        }
        let source = match element.require_keyword("mode", diagnostics)? {
            SmartcardMode::Host => {
                // What a reader behind a character device would have; virt-install writes it here as well.
                element.get("type");
                SmartcardSource::Host
            }
            SmartcardMode::HostCertificates => {
                let names: Vec<_> = element.children("certificate").map(|c| c.text().to_owned()).collect();
                if names.len() != CERTIFICATES {
                    diagnostics.error(element.span, "a card is made from three certificates");
                }
                let database = element.child_text("database").unwrap_or(DATABASE).to_owned();
                SmartcardSource::Certificates { names, database }
            }
            SmartcardMode::Passthrough => {
                SmartcardSource::Passthrough(Chardev::from_xml(element, false, diagnostics)?)
            }
        };
        Some(Self { info, source })
    }
}
