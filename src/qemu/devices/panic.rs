//! Panic notifiers.

use crate::domain::Address;
use crate::domain::devices::panic::{Panic, PanicModel};
use crate::qemu::addresses::Plug;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, JsonObject};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, device, has_info};

impl Placed for Panic {
    has_info!();

    fn plug(&self) -> Option<Plug> {
        (self.model == PanicModel::Pvpanic).then_some(Plug::IntegratedExpress)
    }
}

impl QemuDevice for Panic {
    fn tell(&self, _: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        let mut panic = JsonObject::new();
        match (self.model, &self.info.address) {
            // A feature of the processor: it is among the options of -cpu.
            (PanicModel::Hyperv, None) => {}
            (PanicModel::Hyperv, Some(_)) => {
                diagnostics.error(self.info.span, "a panic notifier of model 'hyperv' has no address");
            }
            (PanicModel::Isa, address) => {
                panic.put("driver", "pvpanic");
                match address {
                    Some(Address::Isa(isa)) => panic.put_some("ioport", isa.iobase),
                    None => {}
                    Some(_) => {
                        diagnostics
                            .error(self.info.span, "a panic notifier of model 'isa' has an ISA address");
                    }
                }
                line.json("-device", panic);
            }
            (PanicModel::Pvpanic, _) => {
                panic.put("driver", "pvpanic-pci");
                device(line, panic, &self.info);
            }
        }
    }
}
