//! TPMs.

use crate::domain::devices::tpm::{Tpm, TpmBackend};
use crate::qemu::plan::comma_escaped;
use crate::qemu::properties::Properties;
use crate::qemu::{CommandLine, Helper, JsonObject, Resource, Service};
use crate::xml::Diagnostics;

use super::{Context, Placed, QemuDevice, alias, device, has_info};

impl Placed for Tpm {
    has_info!();
}

impl QemuDevice for Tpm {
    fn tell(&self, context: &Context, line: &mut CommandLine, diagnostics: &mut Diagnostics) {
        let name = alias(&self.info);
        if !context.capabilities.has_device(self.model.as_str()) {
            diagnostics.error(self.info.span, format!("this QEMU has no '{}'", self.model.as_str()));
        }
        let backend = format!("tpm-{name}");
        let socket = match &self.backend {
            TpmBackend::Passthrough(path) => {
                let span = self.info.span;
                line.require(Resource::Unavailable("the host's TPM".to_owned()), span);
                let tpm = line.fd_set(Resource::Device(path.clone()), &format!("{name}-tpm"), span);
                let cancel = line.fd_set(Resource::Device(path.clone()), &format!("{name}-cancel"), span);
                line.text("-tpmdev", format!("passthrough,id={backend},path={tpm},cancel-path={cancel}"));
                None
            }
            TpmBackend::Emulator(emulator) => {
                let socket = context.capabilities.host.tpm_socket(context.domain.name(), name);
                line.helpers.push(Helper {
                    device: name.to_owned(),
                    socket: socket.clone(),
                    service: Service::Tpm(emulator.clone()),
                    span: self.info.span,
                });
                Some(socket)
            }
            TpmBackend::External(path) => Some(path.clone()),
        };
        if let Some(socket) = socket {
            let path = comma_escaped(&socket.display().to_string());
            line.text("-chardev", format!("socket,id=chrtpm,path={path}"));
            line.text("-tpmdev", format!("emulator,id={backend},chardev=chrtpm"));
        }
        let mut tpm = JsonObject::new();
        tpm.put("driver", self.model.as_str());
        tpm.put("tpmdev", backend);
        tpm.put("id", name);
        device(line, tpm, &self.info);
    }
}
