//! Memory devices.

use crate::domain::devices::memory_device::{MemoryDevice, MemoryModel};
use crate::domain::{Address, DimmAddress};
use crate::qemu::addresses::Plug;
use crate::qemu::machine::memory::{self, Piece};
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info};

impl Placed for MemoryDevice {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        (!self.is_module()).then_some(Plug::Express)
    }
}

impl QemuDevice for MemoryDevice {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        let name = alias(&self.info);
        let id = format!("mem{name}");
        let virtio_mem = self.model == MemoryModel::VirtioMem;
        let piece = Piece {
            id: id.clone(),
            file_name: name.to_owned(),
            size: self.size,
            cell: self.cell,
            access: self.access,
            discard: self.discard,
            page_size: self.page_size,
            host_nodes: self.host_nodes.clone(),
            path: self.path.clone(),
            preallocate: (self.model == MemoryModel::Nvdimm).then_some(true).or(virtio_mem.then_some(false)),
            on_demand: virtio_mem,
            align: self.align,
            pmem: self.pmem,
            span: self.info.span,
        };
        memory::add(context.domain, context.capabilities, &piece, line, diagnostics);
        let mut told = JsonObject::new();
        told.put(
            "driver",
            match self.model {
                MemoryModel::Dimm => "pc-dimm",
                MemoryModel::Nvdimm => "nvdimm",
                MemoryModel::VirtioMem => "virtio-mem-pci",
                MemoryModel::VirtioPmem => "virtio-pmem-pci",
            },
        );
        told.put_some("node", self.cell);
        told.put_some("label-size", self.label);
        told.put_some("unarmed", self.readonly.then_some(true));
        told.put_some("block-size", self.block);
        told.put_some("requested-size", self.requested);
        told.put("memdev", id);
        // What the guest does not use is not there: what it takes is made ready by the device, not by the object.
        let ready = virtio_mem && memory::is_made_ready(context.domain, context.capabilities, &piece);
        told.put_some("prealloc", ready.then_some(true));
        let base = self.guest_address();
        told.put_some("memaddr", base.filter(|_| !self.is_module()));
        told.put_some("dynamic-memslots", self.dynamic_slots);
        told.put("id", name);
        if let Some(Address::Dimm(DimmAddress { slot, .. })) = self.info.address {
            told.put_some("slot", slot);
            told.put_some("addr", base);
        }
        device(line, told, &self.info);
    }
}
