//! `<vsock>`.

use crate::domain::DeviceInfo;
use crate::xml::{Diagnostics, Element};

use super::virtio::{VirtioModel, VirtioOptions};

/// A `<vsock>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vsock {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Which virtio.
    pub model: VirtioModel,
    /// The guest's number among all guests; `None`: the next free one.
    pub cid: Option<u32>,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

impl Vsock {
    /// Reads a `<vsock>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        /// Below are the hypervisor's and the host's.
        const FIRST_CID: u32 = 3;
        let info = DeviceInfo::from_xml(element, diagnostics);
        let model = element.keyword("model", diagnostics).unwrap_or(VirtioModel::Virtio);
        let virtio = VirtioOptions::of_device(element, diagnostics);
        let cid = element.only_child("cid", diagnostics);
        let auto = cid.and_then(|c| c.yes_no("auto", diagnostics)).unwrap_or(cid.is_none());
        let given = cid.and_then(|c| c.number("address", diagnostics));
        if let (Some(cid), Some(number)) = (cid, given)
            && number < FIRST_CID
        {
            diagnostics.error(cid.span, format!("the CIDs of guests start at {FIRST_CID}"));
        }
        if let (Some(cid), None, false) = (cid, given, auto) {
            diagnostics.error(cid.span, "<cid> needs an address, or auto='yes'");
        }
        Some(Self { info, model, cid: given.filter(|_| !auto), virtio })
    }
}
