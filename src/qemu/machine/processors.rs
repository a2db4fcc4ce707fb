//! `-cpu`, `-smp`.

use crate::domain::Domain;
use crate::qemu::CommandLine;

/// The processors.
pub(super) fn arguments(domain: &Domain, line: &mut CommandLine) {
    let model = domain.cpu.model.as_ref().map_or("qemu64", |(name, _)| name);
    line.text("-cpu", model);
    line.text("-smp", smp(domain));
}

fn smp(domain: &Domain) -> String {
    let vcpus = &domain.vcpus;
    let mut smp = vcpus.current.to_string();
    if vcpus.current != vcpus.max {
        smp.push_str(&format!(",maxcpus={}", vcpus.max));
    }
    match domain.cpu.topology {
        Some(t) => smp.push_str(&format!(
            ",sockets={},dies={},clusters={},cores={},threads={}",
            t.sockets, t.dies, t.clusters, t.cores, t.threads
        )),
        None => smp.push_str(&format!(",sockets={},cores=1,threads=1", vcpus.max)),
    }
    smp
}
