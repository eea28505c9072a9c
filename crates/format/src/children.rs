//! Many [`Child`]ren in little memory: as they are encoded, some 45 bytes for the map of a short file where a [`Child`] takes
//! 110.
//!
//! Invariant: what was pushed comes back equal, under the number that it was pushed as.

use mover_base::{Error, Kind, Result};

use crate::node::Child;
use crate::wire::Reader;

/// Children by number, and numbers that have none.
#[derive(Debug, Clone, Default)]
pub struct ChildList {
    encoded: Vec<u8>,
    /// Where each one ends in `encoded`: where the one before it does, if there is none of this number.
    ends: Vec<u32>,
}

impl ChildList {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Adds a child, or that there is none, as the next number.
    ///
    /// # Errors
    /// `Limit` if all of them would take 4 GiB.
    pub fn push(&mut self, child: Option<&Child>) -> Result<()> {
        if let Some(child) = child {
            child.encode(&mut self.encoded);
        }
        let end = u32::try_from(self.encoded.len())
            .map_err(|_| Error::new(Kind::Limit, "the maps of all files take more than 4 GiB"))?;
        self.ends.push(end);
        Ok(())
    }

    /// The child of a number, if it has one.
    ///
    /// # Errors
    /// `Internal` if there is no such number; `Corrupt` if what was pushed as it could not have been read from anywhere.
    pub fn get(&self, at: usize) -> Result<Option<Child>> {
        let begin = match at {
            0 => Some(&0),
            _ => self.ends.get(at - 1),
        };
        let (Some(begin), Some(end)) = (begin, self.ends.get(at)) else {
            return Err(Error::new(Kind::Internal, "a map that is not in the list"));
        };
        let encoded = &self.encoded[*begin as usize..*end as usize];
        if encoded.is_empty() {
            return Ok(None);
        }
        Child::read(&mut Reader::new("child", encoded)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use mover_base::PackId;
    use mover_base::checksum::sha256;
    use proptest::prelude::*;

    use super::*;
    use crate::node::{INLINE_BYTES_MAX, NodeRef};

    fn child() -> impl Strategy<Value = Option<Child>> {
        let inline = prop::collection::vec(any::<u8>(), 0..INLINE_BYTES_MAX);
        let inline = inline.prop_map(|bytes| Some(Child::Inline([vec![1], bytes].concat())));
        let node = any::<([u8; 16], u8, u8, u16)>().prop_map(|(pack, frame, offset, len)| {
            Some(Child::Node(NodeRef {
                sha256: sha256(&pack),
                pack: PackId(pack),
                frame: frame.into(),
                offset: offset.into(),
                len: u32::from(len) + INLINE_BYTES_MAX as u32 + 1,
            }))
        });
        prop_oneof![Just(None), inline, node]
    }

    proptest! {
        #[test]
        fn children_come_back_under_their_numbers(children in prop::collection::vec(child(), 0..20)) {
            let mut list = ChildList::default();
            for child in &children {
                list.push(child.as_ref()).unwrap();
            }
            prop_assert_eq!(list.len(), children.len());
            for (at, child) in children.iter().enumerate() {
                prop_assert_eq!(&list.get(at).unwrap(), child);
            }
            prop_assert_eq!(list.get(children.len()).unwrap_err().kind(), Kind::Internal);
        }
    }
}
