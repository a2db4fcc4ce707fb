//! One TLS connection to a KMIP server, all of it within one deadline.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, StreamOwned};
use zeroize::Zeroizing;

use crate::keystore::Failure;

use super::address::Address;
use super::message::MAX_REPLY_LEN;
use super::ttlv;

/// In what way a server fails, and what the connection says of it.
#[derive(Debug)]
pub(super) struct Trouble {
    pub failure: Failure,
    pub cause: Option<Box<dyn Error + Send + Sync>>,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self { failure, cause: None }
    }
}

impl Trouble {
    fn because(failure: Failure, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { failure, cause: Some(cause.into()) }
    }
}

/// When everything must be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    end: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        Self { end: Instant::now() + timeout, timeout }
    }

    /// What is left; never zero, which sockets take for "for ever".
    fn left(&self) -> io::Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// A socket whose every step ends with the deadline, however little each brings.
struct Timed {
    socket: TcpStream,
    deadline: Deadline,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.deadline.left()?))?;
        self.socket.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.deadline.left()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// A connection on which messages go and come.
pub(super) struct Connection {
    stream: StreamOwned<ClientConnection, Timed>,
    deadline: Deadline,
}

impl Connection {
    /// Connects, and makes sure that the server is who it should be.
    pub(super) fn open(
        address: &Address,
        tls: Arc<ClientConfig>,
        deadline: Deadline,
    ) -> Result<Self, Trouble> {
        let trouble = |e: io::Error| trouble(e, deadline);
        let name = ServerName::try_from(address.host.clone())
            .map_err(|e| Trouble::because(Failure::Unreachable, e))?;
        let socket = connect(address, deadline).map_err(trouble)?;
        socket.set_nodelay(true).map_err(trouble)?;
        let mut client = ClientConnection::new(tls, name)
            .map_err(|e| Trouble::because(Failure::Other("TLS does not begin".to_owned()), e))?;
        let mut timed = Timed { socket, deadline };
        while client.is_handshaking() {
            if let Err(e) = client.complete_io(&mut timed) {
                return Err(last_words(&mut client, &mut timed).unwrap_or_else(|| trouble(e)));
            }
        }
        Ok(Self { stream: StreamOwned::new(client, timed), deadline })
    }

    /// The server's certificate, in DER.
    pub(super) fn server_certificate(&self) -> Option<&[u8]> {
        self.stream.conn.peer_certificates().and_then(<[_]>::first).map(AsRef::as_ref)
    }

    /// Sends a message and reads the one that answers it.
    pub(super) fn exchange(&mut self, request: &[u8]) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let deadline = self.deadline;
        let trouble = |e: io::Error| trouble(e, deadline);
        if let Err(e) = self.stream.write_all(request).and_then(|()| self.stream.flush()) {
            let StreamOwned { conn, sock } = &mut self.stream;
            return Err(last_words(conn, sock).unwrap_or_else(|| trouble(e)));
        }
        let mut header = [0; ttlv::HEADER_LEN];
        self.stream.read_exact(&mut header).map_err(trouble)?;
        let len = usize::try_from(ttlv::message_len(header)).unwrap_or(usize::MAX);
        if len > MAX_REPLY_LEN {
            return Err(Failure::BadAnswer(format!("it announces {len} bytes")).into());
        }
        let mut reply = Zeroizing::new(vec![0; len]);
        reply[..header.len()].copy_from_slice(&header);
        self.stream.read_exact(&mut reply[header.len()..]).map_err(trouble)?;
        Ok(reply)
    }
}

/// What a server has said before it hung up, while something was still being written to it: that it does not like the
/// client's certificate, for example.
fn last_words(client: &mut ClientConnection, timed: &mut Timed) -> Option<Trouble> {
    while client.read_tls(timed).is_ok_and(|n| n > 0) {
        if let Err(e) = client.process_new_packets() {
            return Some(tls_trouble(&e));
        }
    }
    None
}

/// Connects to the first address of a host that takes it.
fn connect(address: &Address, deadline: Deadline) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", address.host));
    for address in addresses(&address.host, address.port, deadline)? {
        match TcpStream::connect_timeout(&address, deadline.left()?) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// The addresses of a host. The resolver knows no deadline, so that it is left behind if it takes too long.
fn addresses(host: &str, port: u16, deadline: Deadline) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![(ip, port).into()]);
    }
    let (tell, told) = mpsc::channel();
    let host = host.to_owned();
    thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        // Nobody may be listening any more.
        let _ = tell.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
    })?;
    told.recv_timeout(deadline.left()?).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// What an error of the connection means.
fn trouble(error: io::Error, deadline: Deadline) -> Trouble {
    use io::ErrorKind as K;
    if let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return tls_trouble(tls);
    }
    match error.kind() {
        K::TimedOut | K::WouldBlock => Failure::TimedOut(deadline.timeout).into(),
        K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => {
            Trouble::because(Failure::NotReady("it closed the connection".to_owned()), error)
        }
        _ => Trouble::because(Failure::Unreachable, error),
    }
}

fn tls_trouble(error: &rustls::Error) -> Trouble {
    use AlertDescription as A;
    use CertificateError as C;
    use rustls::Error as E;
    let failure = match error {
        E::InvalidCertificate(why) => Failure::Certificate(
            match why {
                C::Expired | C::ExpiredContext { .. } => "its certificate has expired",
                C::NotValidYet | C::NotValidYetContext { .. } => "its certificate is not valid yet",
                C::UnknownIssuer | C::BadSignature => "its certificate is of an unknown authority",
                C::NotValidForName | C::NotValidForNameContext { .. } => {
                    "its certificate is for another name"
                }
                C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
                    "its certificate is not one of a server"
                }
                C::Revoked => "its certificate was revoked",
                _ => "its certificate is not valid",
            }
            .to_owned(),
        ),
        E::NoCertificatesPresented => Failure::Certificate("it shows no certificate".to_owned()),
        E::AlertReceived(
            A::AccessDenied
            | A::BadCertificate
            | A::CertificateExpired
            | A::CertificateRequired
            | A::CertificateRevoked
            | A::CertificateUnknown
            | A::UnknownCA
            | A::UnsupportedCertificate,
        ) => Failure::NotAuthenticated("the client certificate".to_owned()),
        E::AlertReceived(A::HandshakeFailure | A::ProtocolVersion) | E::PeerIncompatible(_) => {
            Failure::BadAnswer("it and vmward have no kind of TLS in common".to_owned())
        }
        _ => Failure::BadAnswer("what it speaks is not TLS".to_owned()),
    };
    Trouble::because(failure, error.clone())
}
