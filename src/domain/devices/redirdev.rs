//! `<redirdev>` and `<redirfilter>`: USB devices of whoever looks at the guest.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element, keywords};

use super::chardev::Chardev;

keywords! {
    /// The bus of a redirected device.
    pub enum RedirectedBus {
        /// USB.
        Usb = "usb",
    }
}

/// A `<redirdev>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirdev {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Where the device is.
    pub chardev: Chardev,
}

impl Redirdev {
    /// Reads a `<redirdev>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let info = DeviceInfo::from_xml(element, diagnostics);
        if element.attribute("bus").is_some() {
            element.keyword::<RedirectedBus>("bus", diagnostics)?;
        }
        Some(Self { info, chardev: Chardev::from_xml(element, false, diagnostics)? })
    }
}

/// A rule about redirected devices; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedirectRule {
    /// The class of the device.
    pub class: Option<u8>,
    /// Its vendor.
    pub vendor: Option<u16>,
    /// The vendor's number of it.
    pub product: Option<u16>,
    /// Its version, two digits before and two after the point, each in four bits.
    pub version: Option<u16>,
    /// Whether it may be redirected.
    pub allow: bool,
}

impl RedirectRule {
    /// Reads the rules of a `<redirfilter>`.
    pub fn all_from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Vec<Self> {
        element.children("usbdev").filter_map(|rule| Self::from_xml(rule, diagnostics)).collect()
    }

    fn from_xml(rule: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let mut id = |name: &str| -> Option<u64> {
            match rule.get(name) {
                None | Some("-1") => None,
                Some(_) => rule.hex_number(name, diagnostics),
            }
        };
        let (class, vendor, product) = (id("class"), id("vendor"), id("product"));
        let version = match rule.attribute("version") {
            None => None,
            Some(version) if version.value == "-1" => None,
            Some(version) => {
                let found = bcd(&version.value);
                if found.is_none() {
                    diagnostics
                        .error(version.span, format!("'{}' is not a version like 1.10", version.value));
                }
                found
            }
        };
        rule.require("allow", diagnostics)?;
        Some(Self {
            class: class.and_then(|c| u8::try_from(c).ok()),
            vendor: vendor.and_then(|v| u16::try_from(v).ok()),
            product: product.and_then(|p| u16::try_from(p).ok()),
            version,
            allow: rule.yes_no("allow", diagnostics)?,
        })
    }
}

/// `9.4` as USB has it: 0x0940.
fn bcd(version: &str) -> Option<u16> {
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    if minor.is_empty() || minor.len() > 2 {
        return None;
    }
    let major = u16::from_str_radix(major, 16).ok().filter(|m| *m <= 0x99)?;
    let digits = u16::from_str_radix(minor, 16).ok()?;
    let minor = if minor.len() == 1 { digits << 4 } else { digits };
    Some((major << 8) | minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_binary_coded_decimals() {
        assert_eq!(bcd("9.4"), Some(0x0940));
        assert_eq!(bcd("1.09"), Some(0x0109));
        assert_eq!(bcd("1.10"), Some(0x0110));
        assert_eq!(bcd("2"), Some(0x0200));
        assert_eq!(bcd("1."), None);
        assert_eq!(bcd("1.123"), None);
    }
}
