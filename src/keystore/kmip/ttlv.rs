//! TTLV, the encoding of KMIP messages (KMIP 1.2 section 9.1): tag, type, length, value, padded to eight bytes.
//!
//! Reading is strict and borrows: no byte of a message is copied, so a value stays in the one buffer that it came in.

use std::fmt;

use zeroize::Zeroizing;

/// How deep items may be nested. The deepest reply that is asked for has a key's material at depth seven.
const MAX_DEPTH: usize = 16;

/// How many items a message may have: enough for the attributes of a hundred objects and the names of 100 000.
const MAX_ITEMS: usize = 150_000;

/// Tag, type and length.
pub const HEADER_LEN: usize = 8;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TtlvError {
    /// It ends in the middle of an item, or an item goes beyond the one that it is in.
    #[error("an item of the message is cut off")]
    CutOff,
    /// There is something after the message.
    #[error("the message goes on after its end")]
    TooLong,
    /// There is no such type.
    #[error("an item of the message has the unknown type {0:#04x}")]
    UnknownType(u8),
    /// The length does not fit the type.
    #[error("an item of the message has a length that its type does not allow")]
    BadLength,
    /// What fills an item up to eight bytes is not zero.
    #[error("an item of the message is padded with something")]
    BadPadding,
    /// Neither true nor false.
    #[error("a boolean of the message is neither true nor false")]
    BadBoolean,
    /// A text that is not UTF-8.
    #[error("a text of the message is not UTF-8")]
    BadText,
    /// More levels than anyone needs.
    #[error("the message is nested too deeply")]
    TooDeep,
    /// More items than anyone needs.
    #[error("the message has too many items")]
    TooMany,
}

/// One item of a message.
pub struct Item<'a> {
    /// What it is: three bytes.
    pub tag: u32,
    /// Its value.
    pub value: Value<'a>,
}

/// The value of an item.
pub enum Value<'a> {
    /// Other items.
    Structure(Vec<Item<'a>>),
    /// 32 bits.
    Integer(i32),
    /// 64 bits.
    LongInteger(i64),
    /// Any number of bits, in two's complement.
    BigInteger(&'a [u8]),
    /// One of a list.
    Enumeration(u32),
    /// True or false.
    Boolean(bool),
    /// UTF-8.
    Text(&'a str),
    /// Anything.
    Bytes(&'a [u8]),
    /// Seconds since 1970.
    DateTime(i64),
    /// Seconds.
    Interval(u32),
    /// Microseconds since 1970 (KMIP 2.0).
    DateTimeExtended(i64),
}

/// Shows what kind of item it is, never its value.
impl fmt::Debug for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.tag)?;
        match &self.value {
            Value::Structure(items) => f.debug_list().entries(items).finish(),
            _ => Ok(()),
        }
    }
}

impl<'a> Item<'a> {
    /// The items in it; none if it is not a structure.
    pub fn items(&self) -> &[Item<'a>] {
        match &self.value {
            Value::Structure(items) => items,
            _ => &[],
        }
    }

    /// The first item in it with that tag.
    pub fn get(&self, tag: u32) -> Option<&Item<'a>> {
        self.all(tag).next()
    }

    /// All items in it with that tag.
    pub fn all(&self, tag: u32) -> impl Iterator<Item = &Item<'a>> {
        self.items().iter().filter(move |item| item.tag == tag)
    }

    /// A text.
    pub fn text(&self) -> Option<&'a str> {
        if let Value::Text(text) = self.value { Some(text) } else { None }
    }

    /// Bytes.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        if let Value::Bytes(bytes) = self.value { Some(bytes) } else { None }
    }

    /// One of a list.
    pub fn enumeration(&self) -> Option<u32> {
        if let Value::Enumeration(number) = self.value { Some(number) } else { None }
    }

    /// 32 bits.
    pub fn integer(&self) -> Option<i32> {
        if let Value::Integer(number) = self.value { Some(number) } else { None }
    }

    /// Seconds since 1970.
    pub fn date_time(&self) -> Option<i64> {
        match self.value {
            Value::DateTime(seconds) => Some(seconds),
            Value::DateTimeExtended(micros) => Some(micros.div_euclid(1_000_000)),
            _ => None,
        }
    }
}

/// The whole length of a message whose header this is.
pub fn message_len(header: [u8; HEADER_LEN]) -> u64 {
    let [_, _, _, _, length @ ..] = header;
    HEADER_LEN as u64 + u64::from(u32::from_be_bytes(length))
}

/// Reads a message: one item and nothing else.
pub fn decode(message: &[u8]) -> Result<Item<'_>, TtlvError> {
    let mut count = 0;
    let (item, rest) = item(message, MAX_DEPTH, &mut count)?;
    if rest.is_empty() { Ok(item) } else { Err(TtlvError::TooLong) }
}

fn item<'a>(bytes: &'a [u8], depth: usize, count: &mut usize) -> Result<(Item<'a>, &'a [u8]), TtlvError> {
    *count += 1;
    if *count > MAX_ITEMS {
        return Err(TtlvError::TooMany);
    }
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(TtlvError::CutOff)?;
    let [t0, t1, t2, kind, l0, l1, l2, l3] = *header;
    let tag = u32::from_be_bytes([0, t0, t1, t2]);
    let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).map_err(|_| TtlvError::CutOff)?;
    let (content, rest) = rest.split_at_checked(length).ok_or(TtlvError::CutOff)?;
    let (padding, rest) = rest.split_at_checked(padding_len(length)).ok_or(TtlvError::CutOff)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(TtlvError::BadPadding);
    }
    let value = match kind {
        0x01 => {
            // What is in it has eight bytes or a multiple, so its own length has as well.
            let (mut items, mut inner) = (Vec::new(), content);
            while !inner.is_empty() {
                let depth = depth.checked_sub(1).ok_or(TtlvError::TooDeep)?;
                let (next, after) = item(inner, depth, count)?;
                items.push(next);
                inner = after;
            }
            Value::Structure(items)
        }
        0x02 => Value::Integer(i32::from_be_bytes(exactly(content)?)),
        0x03 => Value::LongInteger(i64::from_be_bytes(exactly(content)?)),
        0x04 if !content.is_empty() && length.is_multiple_of(8) => Value::BigInteger(content),
        0x04 => return Err(TtlvError::BadLength),
        0x05 => Value::Enumeration(u32::from_be_bytes(exactly(content)?)),
        0x06 => match u64::from_be_bytes(exactly(content)?) {
            0 => Value::Boolean(false),
            1 => Value::Boolean(true),
            _ => return Err(TtlvError::BadBoolean),
        },
        0x07 => Value::Text(std::str::from_utf8(content).map_err(|_| TtlvError::BadText)?),
        0x08 => Value::Bytes(content),
        0x09 => Value::DateTime(i64::from_be_bytes(exactly(content)?)),
        0x0a => Value::Interval(u32::from_be_bytes(exactly(content)?)),
        0x0b => Value::DateTimeExtended(i64::from_be_bytes(exactly(content)?)),
        unknown => return Err(TtlvError::UnknownType(unknown)),
    };
    Ok((Item { tag, value }, rest))
}

fn exactly<const N: usize>(content: &[u8]) -> Result<[u8; N], TtlvError> {
    content.try_into().map_err(|_| TtlvError::BadLength)
}

/// How many zeros follow so many bytes.
fn padding_len(length: usize) -> usize {
    length.wrapping_neg() % 8
}

/// A message that is being written. What it has in it is zeroized with it.
pub struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// With room for so many bytes, so that it need not move while it is filled.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    /// The finished message.
    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    /// A structure and what is written into it.
    pub fn structure(&mut self, tag: u32, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.item(tag, 0x01, &[]);
        fill(self);
        // No message that is sent comes near 4 GiB: a value has 1 MiB at most.
        let length = (self.0.len() - start - HEADER_LEN) as u32;
        self.0[start + 4..start + HEADER_LEN].copy_from_slice(&length.to_be_bytes());
    }

    /// 32 bits.
    pub fn integer(&mut self, tag: u32, number: i32) {
        self.item(tag, 0x02, &number.to_be_bytes());
    }

    /// One of a list.
    pub fn enumeration(&mut self, tag: u32, number: u32) {
        self.item(tag, 0x05, &number.to_be_bytes());
    }

    /// True or false.
    pub fn boolean(&mut self, tag: u32, yes: bool) {
        self.item(tag, 0x06, &u64::from(yes).to_be_bytes());
    }

    /// UTF-8.
    pub fn text(&mut self, tag: u32, text: &str) {
        self.item(tag, 0x07, text.as_bytes());
    }

    /// Anything.
    pub fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        self.item(tag, 0x08, bytes);
    }

    fn item(&mut self, tag: u32, kind: u8, content: &[u8]) {
        let [_, tag @ ..] = tag.to_be_bytes();
        self.0.extend_from_slice(&tag);
        self.0.push(kind);
        self.0.extend_from_slice(&(content.len() as u32).to_be_bytes());
        self.0.extend_from_slice(content);
        self.0.extend_from_slice(&[0; 8][..padding_len(content.len())]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: u32 = 0x42_0020;

    /// An item by its parts; the length is not checked.
    fn raw(kind: u8, length: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x42, 0, 0x20, kind];
        bytes.extend(length.to_be_bytes());
        bytes.extend(content);
        bytes
    }

    fn error(bytes: &[u8]) -> TtlvError {
        decode(bytes).unwrap_err()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::with_capacity(0);
        writer.structure(TAG, |w| {
            w.integer(1, -8);
            w.enumeration(2, 255);
            w.boolean(3, true);
            w.text(4, "Grüße");
            w.bytes(5, &[1, 2, 3]);
            w.structure(6, |w| w.text(7, ""));
        });
        let bytes = writer.into_bytes();
        assert_eq!(message_len(bytes[..8].try_into().unwrap()), bytes.len() as u64);
        let item = decode(&bytes).unwrap();
        assert_eq!(item.get(1).unwrap().integer(), Some(-8));
        assert_eq!(item.get(2).unwrap().enumeration(), Some(255));
        assert!(matches!(item.get(3).unwrap().value, Value::Boolean(true)));
        assert_eq!(item.get(4).unwrap().text(), Some("Grüße"));
        assert_eq!(item.get(5).unwrap().bytes(), Some(&[1, 2, 3][..]));
        assert_eq!(item.get(6).unwrap().get(7).unwrap().text(), Some(""));
        assert_eq!((item.get(8).is_none(), item.get(4).unwrap().items().len()), (true, 0));
    }

    /// The examples of KMIP 1.2, section 9.1.2.
    #[test]
    fn the_examples_of_the_specification_are_read() {
        assert_eq!(decode(&raw(2, 4, &[0, 0, 0, 8, 0, 0, 0, 0])).unwrap().integer(), Some(8));
        let long = raw(3, 8, &[0x01, 0xB6, 0x9B, 0x4B, 0xA5, 0x74, 0x92, 0x00]);
        assert!(matches!(decode(&long).unwrap().value, Value::LongInteger(123_456_789_000_000_000)));
        let big = raw(4, 16, &[0, 0, 0, 0, 3, 0xFD, 0x35, 0xEB, 0x6B, 0xC2, 0xDF, 0x46, 0x18, 8, 0, 0]);
        assert!(matches!(decode(&big).unwrap().value, Value::BigInteger(b) if b.len() == 16));
        let text = raw(7, 11, b"Hello World\0\0\0\0\0");
        assert_eq!(decode(&text).unwrap().text(), Some("Hello World"));
        let date = raw(9, 8, &[0, 0, 0, 0, 0x47, 0xDA, 0x67, 0xF8]);
        assert_eq!(decode(&date).unwrap().date_time(), Some(1_205_495_800));
        let interval = raw(10, 4, &[0, 0x0D, 0x2F, 0, 0, 0, 0, 0]);
        assert!(matches!(decode(&interval).unwrap().value, Value::Interval(864_000)));
    }

    #[test]
    fn wrong_messages_are_refused() {
        assert_eq!(error(&[]), TtlvError::CutOff);
        assert_eq!(error(&raw(8, 4, &[0; 3])), TtlvError::CutOff);
        assert_eq!(error(&raw(8, 4, &[0; 7])), TtlvError::CutOff);
        assert_eq!(error(&raw(8, u32::MAX, &[0; 8])), TtlvError::CutOff);
        assert_eq!(error(&raw(8, 8, &[0; 16])), TtlvError::TooLong);
        assert_eq!(error(&raw(8, 1, &[0, 1, 0, 0, 0, 0, 0, 0])), TtlvError::BadPadding);
        assert_eq!(error(&raw(0x0c, 8, &[0; 8])), TtlvError::UnknownType(0x0c));
        assert_eq!(error(&raw(2, 8, &[0; 8])), TtlvError::BadLength);
        assert_eq!(error(&raw(4, 0, &[])), TtlvError::BadLength);
        assert_eq!(error(&raw(6, 8, &[0, 0, 0, 0, 0, 0, 0, 2])), TtlvError::BadBoolean);
        assert_eq!(error(&raw(7, 8, &[0xff; 8])), TtlvError::BadText);
        // An inner item that goes beyond its structure, though not beyond the message.
        let inner = raw(8, 16, &[0; 8]);
        assert_eq!(error(&raw(1, inner.len() as u32, &inner)), TtlvError::CutOff);
    }

    #[test]
    fn nesting_and_number_have_limits() {
        let nested =
            |levels: usize| (0..levels).fold(Vec::new(), |inner, _| raw(1, inner.len() as u32, &inner));
        assert!(decode(&nested(MAX_DEPTH + 1)).is_ok());
        assert_eq!(error(&nested(MAX_DEPTH + 2)), TtlvError::TooDeep);
        let many = raw(8, 0, &[]).repeat(MAX_ITEMS);
        assert_eq!(error(&raw(1, many.len() as u32, &many)), TtlvError::TooMany);
    }

    #[test]
    fn debug_shows_no_value() {
        let mut writer = Writer::with_capacity(0);
        writer.structure(TAG, |w| w.bytes(0x42_0043, b"hunter2"));
        let bytes = writer.into_bytes();
        assert_eq!(format!("{:?}", decode(&bytes).unwrap()), "0x420020[0x420043]");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode(&bytes);
        }

        /// Bytes that look more like messages: one byte of a good one is another.
        #[test]
        fn one_wrong_byte_makes_nothing_panic(at in 0..96usize, byte: u8) {
            let mut writer = Writer::with_capacity(0);
            writer.structure(1, |w| w.structure(2, |w| {
                w.text(3, "some name");
                w.structure(4, |w| { w.integer(5, 1); w.bytes(6, &[7; 9]); });
            }));
            let mut bytes = writer.into_bytes().to_vec();
            let len = bytes.len();
            bytes[at % len] = byte;
            let _ = decode(&bytes);
        }
    }
}
