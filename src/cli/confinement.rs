//! What the supervisor of a guest may reach beside what its XML names.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::keystore::Reach;
use crate::supervisor::Places;

use super::config::Config;

/// In a home, beside what is not hidden: where desktops keep images.
const IMAGES: &[&str] = &[".local/share/libvirt", ".local/share/gnome-boxes"];
/// What libraries of tokens and programs write to, beside a home: temporary files, the tokens of softhsm and of
/// opencryptoki, locks.
const FOREIGN: &[&str] = &["/tmp", "/var/tmp", "/var/lib", "/run/lock"];

/// Variables that name what keystores read: credentials, and authorities on servers' certificates.
const VARIABLES: &[&str] = &["CREDENTIALS_DIRECTORY", "SSL_CERT_DIR", "SSL_CERT_FILE"];

/// Everything that the configuration, the environment and the path of a guest's XML say.
pub(super) fn places(config: &Config, guest: &Path) -> Places {
    let mut places = config.places.clone();
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("HOME");
    if let Some(home) = &home {
        places.write.extend(visible(home));
        places.write.extend(IMAGES.iter().map(|name| home.join(name)));
    }
    if let Some(dir) = fs::canonicalize(guest).ok().as_deref().and_then(Path::parent) {
        let is_images = may_have_images(dir, home.as_deref(), &config.paths.guests_dir)
            && config.paths.secrets_dir.parent() != Some(dir);
        if is_images { &mut places.write } else { &mut places.read }.push(dir.to_owned());
    }
    // The key of file keystores, and files that URIs name relative to vmward.toml.
    places.own_read.extend(config.paths.config.parent().map(Path::to_owned));
    // What QEMU is to have of it comes as descriptors: the keystore is there.
    places.own_write.extend(config.paths.secrets_dir.parent().map(Path::to_owned));
    places.own_read.extend(VARIABLES.iter().filter_map(|name| absolute(name)));
    let mut foreign_code = false;
    for uri in &config.keystores {
        let reach = Reach::of(uri);
        places.own_read.extend(reach.read.iter().filter_map(|path| there(path)));
        foreign_code |= reach.foreign_code;
    }
    if foreign_code {
        places.own_read.push("/".into());
        places.own_write.extend(home);
        places.own_write.extend(FOREIGN.iter().map(PathBuf::from));
        places.own_write.extend(["TMPDIR", "XDG_RUNTIME_DIR", "GNUPGHOME"].into_iter().filter_map(absolute));
    }
    places
}

/// A path, or what there is of it: a keystore may be made only later.
fn there(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|path| path.exists()).filter(|path| *path != Path::new("/")).map(Path::to_owned)
}

/// Whether images may be beside a guest's XML in a directory. Where guests are configured there are none, and a home or all
/// of the host is not opened for that.
fn may_have_images(dir: &Path, home: Option<&Path>, guests: &Path) -> bool {
    let is_home = home.and_then(|home| fs::canonicalize(home).ok()).is_some_and(|home| home == dir);
    let is_guests = fs::canonicalize(guests).is_ok_and(|guests| dir.starts_with(guests));
    !(is_home || is_guests || dir == Path::new("/") || dir.starts_with("/etc"))
}

/// What is in a home and not hidden, as settings, keys and what runs at a login are, nor programs.
fn visible(home: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(home).into_iter().flatten().filter_map(Result::ok);
    let shown = entries.filter(|entry| {
        let name = entry.file_name();
        name != "bin" && !name.as_encoded_bytes().starts_with(b".")
    });
    shown.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_shows_what_is_no_setting_and_no_program() {
        let home = tempfile::tempdir().unwrap();
        for name in [".ssh", ".bashrc", "bin", "vms"] {
            fs::create_dir(home.path().join(name)).unwrap();
        }
        assert_eq!(visible(home.path()), [home.path().join("vms")]);
        assert_eq!(there(&home.path().join("no/such/store")).as_deref(), Some(home.path()));
        assert_eq!(there(Path::new("/no-such-store")), None);
    }

    #[test]
    fn images_are_beside_the_xml_where_that_opens_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(home.path()).unwrap();
        let guests = home.join(".config/vmward/guests");
        fs::create_dir_all(&guests).unwrap();
        let may = |dir: &Path| may_have_images(dir, Some(&home), &guests);
        assert!(may(&home.join("vms")) && may(Path::new("/srv")));
        assert!(
            !may(&home) && !may(&guests) && !may(Path::new("/")) && !may(Path::new("/etc/vmward/guests"))
        );
    }
}
