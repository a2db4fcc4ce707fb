//! passt: networks that take no rights on the host.

use std::path::Path;

use crate::domain::devices::interface::{ForwardProtocol, Passt, PortForward, PortRange};
use crate::supervisor::SupervisorError;

use super::{HelperProgram, Invocation, Place, found};

/// The program.
pub(super) const PASST: &str = "passt";

impl HelperProgram for Passt {
    fn name(&self) -> &'static str {
        PASST
    }

    fn gives(&self) -> String {
        "a network".to_owned()
    }

    fn without(&self) -> &'static str {
        "has lost a network until it is started anew"
    }

    fn can_restart(&self) -> bool {
        true
    }

    fn invocation(&self, socket: &Path, _: &Place<'_>) -> Result<Invocation, SupervisorError> {
        // With QEMU's connection goes the guest.
        let mut arguments = ["--foreground", "--one-off", "--quiet"].map(str::to_owned).to_vec();
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--socket", socket.display().to_string());
        match &self.log {
            Some(log) => option("--log-file", log.display().to_string()),
            None => arguments.push("--stderr".to_owned()),
        }
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if let Some(device) = &self.device {
            option("--interface", device.clone());
        }
        for network in &self.addresses {
            option("--address", network.address.to_string());
            if let Some(prefix) = network.prefix.filter(|_| network.address.is_ipv4()) {
                option("--netmask", prefix.to_string());
            }
        }
        for forward in &self.forwards {
            let name = match forward.protocol {
                ForwardProtocol::Tcp => "--tcp-ports",
                ForwardProtocol::Udp => "--udp-ports",
            };
            option(name, ports(forward));
        }
        Ok(Invocation { program: found(PASST)?, arguments, descriptors: Vec::new() })
    }
}

/// `ADDRESS%DEVICE/22:2222,80-90,~85`.
fn ports(forward: &PortForward) -> String {
    let mut text = forward.address.map(|address| address.to_string()).unwrap_or_default();
    if let Some(device) = &forward.device {
        text.push_str(&format!("%{device}"));
    }
    if !text.is_empty() {
        text.push('/');
    }
    match forward.ranges.is_empty() {
        true => text.push_str("all"),
        false => text.push_str(&forward.ranges.iter().map(range).collect::<Vec<_>>().join(",")),
    }
    text
}

fn range(range: &PortRange) -> String {
    let exclude = if range.exclude { "~" } else { "" };
    let length = range.end.map(|end| end.saturating_sub(range.start));
    let span = |first: u16| match length {
        Some(length) => format!("{first}-{}", first.saturating_add(length)),
        None => first.to_string(),
    };
    let to = range.to.map(|to| format!(":{}", span(to))).unwrap_or_default();
    format!("{exclude}{}{to}", span(range.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_passt_reads_them() {
        let range = |start, end, to, exclude| PortRange { start, end, to, exclude };
        let forward = |address: Option<&str>, device: Option<&str>, ranges: &[PortRange]| PortForward {
            protocol: ForwardProtocol::Tcp,
            address: address.map(|a| a.parse().unwrap()),
            device: device.map(str::to_owned),
            ranges: ranges.to_vec(),
        };
        assert_eq!(ports(&forward(None, None, &[])), "all");
        assert_eq!(
            ports(&forward(Some("127.0.0.1"), None, &[range(2222, None, Some(22), false)])),
            "127.0.0.1/2222:22"
        );
        assert_eq!(
            ports(&forward(
                Some("::1"),
                Some("eth0"),
                &[range(80, Some(90), None, false), range(85, None, None, true)]
            )),
            "::1%eth0/80-90,~85"
        );
        assert_eq!(
            ports(&forward(None, Some("eth0"), &[range(8000, Some(8010), Some(80), false)])),
            "%eth0/8000-8010:80-90"
        );
    }
}
