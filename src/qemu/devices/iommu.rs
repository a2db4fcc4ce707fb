//! The IOMMU of the guest.

use crate::domain::devices::iommu::{Iommu, IommuModel};
use crate::domain::os::Chipset;
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info};

impl Placed for Iommu {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        (self.model == IommuModel::Virtio).then_some(Plug::IntegratedExpress)
    }
}

impl QemuDevice for Iommu {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        if context.domain.os.chipset != Chipset::Q35 {
            diagnostics
                .error(self.info.span, "an IOMMU needs a q35 machine")
                .related(context.domain.os.machine_span, "this is none");
        }
        if self.model == IommuModel::Virtio && !context.domain.features.acpi {
            diagnostics.error(self.info.span, "virtio-iommu needs ACPI: <features><acpi/></features>");
        }
        let mut iommu = JsonObject::new();
        iommu.put(
            "driver",
            match self.model {
                IommuModel::Intel => "intel-iommu",
                IommuModel::Virtio => "virtio-iommu",
            },
        );
        iommu.put("id", alias(&self.info));
        let on_off = |value: Option<bool>| value.map(|on| if on { "on" } else { "off" });
        iommu.put_some("intremap", on_off(self.intremap));
        iommu.put_some("caching-mode", self.caching_mode);
        iommu.put_some("eim", on_off(self.eim));
        iommu.put_some("device-iotlb", self.iotlb);
        iommu.put_some("aw-bits", self.aw_bits);
        iommu.put_some("dma-translation", self.dma_translation);
        device(line, iommu, &self.info);
    }
}
