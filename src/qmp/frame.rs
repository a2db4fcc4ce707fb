//! One line of QMP: bounded in length, read tolerantly.

use std::io;

use serde_json::{Map, Value};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use zlink::futures_util::FutureExt;

use super::{Event, QmpError};

/// The longest line that is read. `query-qmp-schema` answers with a quarter of a megabyte, the block nodes
/// of 200 disks with less than two; more than this is no QEMU, and would only eat memory.
const MAX_LINE: usize = 16 << 20;

/// QEMU's version as the greeting gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct QemuVersion {
    /// 10 of 10.0.2.
    pub major: u32,
    /// 0 of 10.0.2.
    pub minor: u32,
    /// 2 of 10.0.2.
    pub micro: u32,
}

/// What a line says.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// The first line; `out_of_band`: QEMU can read commands while it carries out others.
    Greeting { version: QemuVersion, out_of_band: bool },
    /// An event.
    Event(Event),
    /// A command was carried out; `id` is `None` if the reply belongs to no command of ours.
    Return { id: Option<u64>, value: Value },
    /// A command was refused.
    Error { id: Option<u64>, class: String, desc: String },
    /// A message of a kind that is not known: a later QEMU's, to be passed over.
    Unknown,
}

/// Reads one line into `line`, without its end. `false` at the end of the stream.
///
/// Not cancel-safe on its own: a partial line stays in `line`, so a caller that goes on with the same buffer
/// loses nothing.
pub(super) async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
) -> Result<bool, QmpError> {
    loop {
        let available = reader.fill_buf().await.map_err(|e| QmpError::Broken(e.into()))?;
        if available.is_empty() {
            return if line.is_empty() {
                Ok(false)
            } else {
                Err(QmpError::Broken(io::Error::from(io::ErrorKind::UnexpectedEof).into()))
            };
        }
        let (taken, ended) = match available.iter().position(|b| *b == b'\n') {
            Some(at) => (at, true),
            None => (available.len(), false),
        };
        if line.len() + taken > MAX_LINE {
            return Err(QmpError::Protocol("it sent an endless line"));
        }
        line.extend_from_slice(&available[..taken]);
        reader.consume(taken + usize::from(ended));
        if ended {
            return Ok(true);
        }
    }
}

/// Understands one line.
pub(super) fn parse(line: &[u8]) -> Result<Frame, QmpError> {
    let Ok(Value::Object(mut message)) = serde_json::from_slice(line) else {
        return Err(QmpError::Protocol("it sent a line that is no JSON object"));
    };
    if let Some(greeting) = message.get("QMP") {
        let capabilities = greeting.get("capabilities").and_then(Value::as_array);
        let out_of_band = capabilities.is_some_and(|all| all.iter().any(|name| name == "oob"));
        return Ok(Frame::Greeting { version: version(greeting), out_of_band });
    }
    if let Some(Value::String(name)) = message.remove("event") {
        let data = match message.remove("data") {
            Some(Value::Object(data)) => data,
            _ => Map::new(),
        };
        return Ok(Frame::Event(Event {
            name,
            data,
            microseconds: message.get("timestamp").and_then(microseconds),
        }));
    }
    let id = message.get("id").and_then(Value::as_u64);
    if let Some(value) = message.remove("return") {
        return Ok(Frame::Return { id, value });
    }
    if let Some(error) = message.get("error") {
        let text = |field: &str| error.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        return Ok(Frame::Error { id, class: text("class"), desc: text("desc") });
    }
    Ok(Frame::Unknown)
}

/// Reads all of what came over a monitor, up to what is no QMP: how many frames were understood.
pub fn read_frames(mut data: &[u8]) -> Result<usize, QmpError> {
    let mut frames = 0;
    loop {
        let mut line = Vec::new();
        // There is nothing to wait for.
        if !read_line(&mut data, &mut line).now_or_never().unwrap_or(Ok(false))? {
            return Ok(frames);
        }
        if parse(&line)? != Frame::Unknown {
            frames += 1;
        }
    }
}

fn version(greeting: &Value) -> QemuVersion {
    let part = |name: &str| {
        greeting
            .pointer("/version/qemu")
            .and_then(|v| v.get(name))
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0)
    };
    QemuVersion { major: part("major"), minor: part("minor"), micro: part("micro") }
}

/// QEMU says -1 for both parts when the host's clock could not be read.
fn microseconds(timestamp: &Value) -> Option<u64> {
    let part = |name: &str| timestamp.get(name).and_then(Value::as_u64);
    part("seconds")?.checked_mul(1_000_000)?.checked_add(part("microseconds")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_events_fields_and_messages_are_no_errors() {
        let event =
            parse(br#"{"event":"WARP","timestamp":{"seconds":1,"microseconds":2},"data":{"x":[1]},"new":0}"#);
        let Ok(Frame::Event(event)) = event else { panic!("{event:?}") };
        assert_eq!((event.name.as_str(), event.microseconds), ("WARP", Some(1_000_002)));
        assert_eq!(event.data["x"][0], 1);
        let clockless = parse(br#"{"event":"STOP","timestamp":{"seconds":-1,"microseconds":-1}}"#);
        assert!(matches!(clockless, Ok(Frame::Event(Event { microseconds: None, .. }))));
        assert_eq!(parse(br#"{"notice":1}"#).unwrap(), Frame::Unknown);
    }

    #[test]
    fn an_enum_value_that_qapi_does_not_know_leaves_the_event_readable() {
        let frame = parse(br#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"by-comet"}}"#).unwrap();
        let Frame::Event(event) = frame else { panic!("{frame:?}") };
        assert!(event.get::<qapi::qmp::SHUTDOWN>().is_none());
        assert_eq!(event.text("reason"), Some("by-comet"));
    }

    #[test]
    fn garbage_is_an_error() {
        for line in [&b"hello"[..], b"", b"[]", b"{", b"\xff\xfe", b"5"] {
            assert!(matches!(parse(line), Err(QmpError::Protocol(_))), "{line:?}");
        }
        let deep = [b"{\"a\":".repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat();
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn the_greeting_gives_the_version_and_what_it_can() {
        let line = br#"{"QMP":{"version":{"qemu":{"micro":17,"minor":2,"major":7},"package":"Debian"},"capabilities":["oob"]}}"#;
        let version = QemuVersion { major: 7, minor: 2, micro: 17 };
        assert_eq!(parse(line).unwrap(), Frame::Greeting { version, out_of_band: true });
        let old = parse(br#"{"QMP":{"version":{},"capabilities":[]}}"#).unwrap();
        assert_eq!(old, Frame::Greeting { version: QemuVersion::default(), out_of_band: false });
    }

    #[tokio::test]
    async fn an_endless_line_ends() {
        let endless = tokio::io::repeat(b'x');
        let mut reader = tokio::io::BufReader::new(endless);
        let mut line = Vec::new();
        assert!(matches!(read_line(&mut reader, &mut line).await, Err(QmpError::Protocol(_))));
        assert!(line.len() <= MAX_LINE);
    }
}
