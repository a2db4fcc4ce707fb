//! What keystores need of this host, for a process that is to reach nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::percent_decode_str;

/// The files that reading secrets of a keystore takes. Nothing is changed for that; an index that is out of date is done without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Directories of secrets; certificates, PINs, libraries, programs, with what is beside them.
    pub read: Vec<PathBuf>,
    /// Whether code of others is run, of which nobody here knows what files it needs.
    pub foreign_code: bool,
}

impl Reach {
    /// That of the keystore with this URI.
    pub fn of(uri: &str) -> Self {
        let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
        match scheme {
            "file" | "libvirt" => {
                Self { read: vec![rest.split('?').next().unwrap_or_default().into()], foreign_code: false }
            }
            _ => Self {
                read: rest.split(['?', '&', ';', '=', ':']).filter_map(file).collect(),
                foreign_code: ["exec", "pkcs11"].contains(&scheme),
            },
        }
    }
}

/// The directory of a file that a part of a URI names. Who renews a certificate puts another one in its place.
fn file(part: &str) -> Option<PathBuf> {
    let part = percent_decode_str(part).decode_utf8().ok()?;
    // Two of them are before the name of a host.
    let is_path = part.starts_with('/') && !part.starts_with("//");
    let path = Some(Path::new(part.as_ref())).filter(|_| is_path)?;
    Some(path.parent().filter(|parent| *parent != Path::new("/")).unwrap_or(path).to_owned())
}

/// Has something done in each thread that keystores keep for themselves; how many there are that have done it.
pub fn in_each_thread(work: &Arc<dyn Fn() + Send + Sync>) -> usize {
    #[cfg(feature = "pkcs11")]
    return super::pkcs11::in_each_thread(work);
    #[cfg(not(feature = "pkcs11"))]
    {
        let _ = work;
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_says_which_files_it_is_about() {
        let reach = |uri| Reach::of(uri);
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(reach("file:/var/lib/a=b?x=/y").read, paths(&["/var/lib/a=b"]));
        assert_eq!(reach("libvirt:/etc/libvirt/secrets").read, paths(&["/etc/libvirt/secrets"]));
        let kmip =
            reach("kmip://keys.example:5696?ca=/etc/kmip/ca.pem&key=/keys/%61/key.pem&cert=credential");
        assert_eq!(kmip.read, paths(&["/etc/kmip", "/keys/a"]));
        let token = reach("pkcs11:token=a;object=b?module-path=/lib/p.so&pin-source=file:/pins/one");
        assert_eq!((token.read, token.foreign_code), (paths(&["/lib", "/pins"]), true));
        let program = reach("exec:/usr/local/bin/fetch");
        assert_eq!((program.read, program.foreign_code), (paths(&["/usr/local/bin"]), true));
        assert_eq!(reach("keyring:"), Reach::default());
    }
}
