//! A client of VNC that does no more than log in (RFC 6143, 7.1 and 7.2).
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};

/// How a client fared.
#[derive(Debug, PartialEq)]
pub enum Login {
    /// It is in, with a password.
    In,
    /// It is in, and nobody asked it for a password.
    Unasked,
    /// It was turned away.
    Out,
}

/// The security types: none, and a challenge to encrypt with the password.
const NONE: u8 = 1;
const VNC_AUTHENTICATION: u8 = 2;

/// Tries to log in.
pub fn login(socket: &Path, password: &str) -> Login {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let version: [u8; 12] = read(&mut stream);
    assert_eq!(&version, b"RFB 003.008\n");
    stream.write_all(&version).unwrap();
    let [count] = read(&mut stream);
    let mut types = vec![0; count.into()];
    stream.read_exact(&mut types).unwrap();
    if types == [NONE] {
        return Login::Unasked;
    }
    assert_eq!(types, [VNC_AUTHENTICATION]);
    stream.write_all(&types).unwrap();
    let challenge: [u8; 16] = read(&mut stream);
    stream.write_all(&response(&challenge, password)).unwrap();
    match u32::from_be_bytes(read(&mut stream)) {
        0 => Login::In,
        _ => Login::Out,
    }
}

/// The challenge, encrypted with a key whose bytes have their bits the other way around.
fn response(challenge: &[u8; 16], password: &str) -> [u8; 16] {
    let mut key = [0; 8];
    for (to, from) in key.iter_mut().zip(password.bytes()) {
        *to = from.reverse_bits();
    }
    let cipher = Des::new(&key.into());
    let mut response = *challenge;
    for block in response.chunks_exact_mut(8) {
        cipher.encrypt_block(block.try_into().unwrap());
    }
    response
}

fn read<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
