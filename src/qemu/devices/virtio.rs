//! What all virtio devices are told.

use crate::domain::devices::virtio::{VirtioModel, VirtioOptions};
use crate::qemu::JsonObject;
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;

/// How a virtio device plugs into PCI: transitional ones need conventional slots.
pub(super) fn plug(model: VirtioModel) -> Plug {
    match model {
        VirtioModel::Transitional => Plug::Conventional,
        VirtioModel::Virtio | VirtioModel::NonTransitional => Plug::Express,
    }
}

/// The driver's name and the common options.
pub(super) fn start(base: &str, model: VirtioModel, options: &VirtioOptions) -> JsonObject {
    let mut device = JsonObject::new();
    device.put("driver", format!("{base}-pci{}", model.suffix()));
    put(options, &mut device);
    device
}

/// The common options.
pub(super) fn put(options: &VirtioOptions, device: &mut JsonObject) {
    device.put_some("iommu_platform", options.iommu);
    device.put_some("ats", options.ats);
    device.put_some("packed", options.packed);
    device.put_some("page-per-vq", options.page_per_vq);
}
