//! Reading and writing the integers and byte strings that all objects are made of.
//!
//! Invariants: integers are little-endian; a varint is unsigned LEB128 of at most ten bytes in its shortest
//! form, any other form is refused; no length read from the input is trusted before it was compared with its
//! cap and with the bytes that are left, so that nothing is allocated on the word of the input alone.

use mover_base::{Error, Kind, Result};

/// The longest varint: ten groups of seven bits hold 64 bits.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// An error about stored bytes; the caller who knows the key adds it as the object.
pub(crate) fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, message)
}

/// Appends `value` as a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Maps a signed number to an unsigned one so that small magnitudes stay small.
pub(crate) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub(crate) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A cursor over the bytes of one structure; `what` names it in errors.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Reader { what, rest: bytes }
    }

    /// An error about `field` of this structure.
    pub(crate) fn wrong(&self, field: &str, problem: &str) -> Error {
        corrupt(format!("{}: {field} {problem}", self.what))
    }

    /// Bytes not yet read.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn bytes(&mut self, field: &str, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| self.wrong(field, "ends early"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| self.wrong(field, "ends early"))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self, field: &str) -> Result<u8> {
        Ok(self.array::<1>(field)?[0])
    }

    pub(crate) fn u16(&mut self, field: &str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// Reads `N` bytes that must be zero: they are kept for later versions.
    pub(crate) fn reserved<const N: usize>(&mut self) -> Result<()> {
        if self.array::<N>("reserved bytes")? == [0; N] {
            Ok(())
        } else {
            Err(self.wrong("reserved bytes", "are not zero"))
        }
    }

    pub(crate) fn varint(&mut self, field: &str) -> Result<u64> {
        let mut value = 0u64;
        for index in 0..VARINT_BYTES_MAX {
            let byte = self.u8(field)?;
            let group = u64::from(byte & 0x7f);
            // The tenth group holds bit 63 alone.
            if index == VARINT_BYTES_MAX - 1 && group > 1 {
                return Err(self.wrong(field, "exceeds 64 bits"));
            }
            value |= group << (7 * index);
            if byte & 0x80 == 0 {
                if byte == 0 && index > 0 {
                    return Err(self.wrong(field, "is not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(self.wrong(field, "is longer than ten bytes"))
    }

    /// A varint that may be at most `max`.
    pub(crate) fn varint_max(&mut self, field: &str, max: u64) -> Result<u64> {
        let value = self.varint(field)?;
        if value > max {
            return Err(self.wrong(field, &format!("is {value}, above the cap of {max}")));
        }
        Ok(value)
    }

    /// A count of things of at least `bytes_each` bytes, so that the input bounds what is allocated for it.
    pub(crate) fn check_count(&self, field: &str, count: usize, bytes_each: usize) -> Result<()> {
        match count.checked_mul(bytes_each) {
            Some(bytes) if bytes <= self.rest.len() => Ok(()),
            _ => Err(self.wrong(field, "exceeds the bytes that follow")),
        }
    }

    /// A byte string: varint length, then the bytes.
    pub(crate) fn string(&mut self, field: &str, len_max: usize) -> Result<&'a [u8]> {
        let len = self.varint_max(field, len_max as u64)? as usize;
        self.bytes(field, len)
    }

    /// Everything must have been read.
    pub(crate) fn finish(&self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.wrong("end", "is followed by more bytes"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_length_boundary() {
        let powers = (0..64).map(|bit| 1u64 << bit);
        for value in powers.flat_map(|v| [v - 1, v, v + 1]).chain([u64::MAX]) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new("test", &bytes);
            assert_eq!(reader.varint("n").unwrap(), value);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn overlong_and_overflowing_varints_are_refused() {
        for bytes in [
            &[0x80, 0x00][..],
            &[0xff, 0x80, 0x00],
            &[0x80],
            &[],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[
                0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01,
            ],
        ] {
            assert!(
                Reader::new("test", bytes).varint("n").is_err(),
                "{bytes:02x?}"
            );
        }
    }

    #[test]
    fn zigzag_round_trips_at_the_extremes() {
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!([0, -1, 1, -2].map(zigzag), [0, 1, 2, 3]);
    }
}
