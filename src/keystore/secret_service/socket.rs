//! The bus's socket, read with measure: a peer that talks nonsense without end is heard no longer than the deadline, and
//! fills no more memory than this conversation may take. (The library reads a handshake's line until it ends, and never
//! pauses as long as there is something to read, so that no timer could stop it.)

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use zbus::Address;
use zbus::address::transport::{Transport, UnixSocket};
use zbus::connection::socket::{BoxedSplit, ReadHalf, Split};

/// What a conversation may take. A list of ten thousand secrets is a tenth of it.
const MAX_RECEIVED: usize = 64 << 20;

/// The half of a socket that is read.
#[derive(Debug)]
pub(super) struct Measured {
    half: OwnedReadHalf,
    deadline: Instant,
    received: usize,
}

/// Connects to a bus on this machine.
pub(super) async fn connect(address: &str, deadline: Instant) -> zbus::Result<BoxedSplit> {
    let address: Address = address.try_into()?;
    let path = match address.transport() {
        Transport::Unix(unix) => match unix.path() {
            UnixSocket::File(path) => path.clone(),
            // Which is how such names are told from paths.
            UnixSocket::Abstract(name) => [OsStr::new("\0"), name].into_iter().collect::<OsString>().into(),
            _ => return Err(zbus::Error::Unsupported),
        },
        // A session's bus is on its machine, and no address starts a program here.
        _ => return Err(zbus::Error::Unsupported),
    };
    let (half, write) = UnixStream::connect(path).await?.into_split();
    Ok(Split::new(Box::new(Measured { half, deadline, received: 0 }), Box::new(write)))
}

#[async_trait::async_trait]
impl ReadHalf for Measured {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (len, descriptors) = ReadHalf::recvmsg(&mut self.half, buffer).await?;
        self.received += len;
        if self.received > MAX_RECEIVED {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it says more than was asked for"));
        }
        Ok((len, descriptors))
    }
}
