//! Extended attributes (ACLs and file capabilities are among them) of things that may not be opened.
//!
//! Invariants: names come back sorted; nothing is read beyond the limits of the kernel. Things without a
//! descriptor are named through the held descriptor of their directory and never followed.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use mover_base::tree::Entry;
use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use crate::beneath;

/// Longest list of names and longest value that the kernel hands out (XATTR_LIST_MAX, XATTR_SIZE_MAX).
pub(crate) const XATTR_BYTES_MAX: usize = 64 << 10;

/// Longest attribute name (XATTR_NAME_MAX).
pub(crate) const XATTR_NAME_BYTES_MAX: usize = 255;

/// The access ACL, which the permission bits of the group class depend on.
pub(crate) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// What a program may do beyond its user's rights.
pub(crate) const FILE_CAPABILITY: &[u8] = b"security.capability";

/// Something whose attributes are wanted.
#[derive(Clone, Copy)]
pub(crate) enum Node<'a> {
    /// An opened file or directory.
    Open(BorrowedFd<'a>),
    /// A name in a held directory: symbolic links, named pipes, files that are not opened.
    Named(BorrowedFd<'a>, &'a [u8]),
}

/// Attribute calls with their buffer, which is reused.
pub(crate) struct Attributes {
    buffer: Vec<u8>,
}

impl Attributes {
    pub(crate) fn new() -> Attributes {
        Attributes {
            buffer: vec![0; XATTR_BYTES_MAX],
        }
    }

    /// The names on `node`, sorted; none where the file system has no attributes.
    pub(crate) fn names(&mut self, node: Node<'_>) -> Result<Vec<CString>> {
        let listed = match node {
            Node::Open(fd) => rustix::fs::flistxattr(fd, &mut self.buffer[..]),
            Node::Named(dir, name) => {
                rustix::fs::llistxattr(beneath::proc_path_in(dir, name), &mut self.buffer[..])
            }
        };
        let bytes = match listed {
            Ok(bytes) => bytes,
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names: Vec<CString> = self.buffer[..bytes]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .filter_map(|name| CString::new(name).ok())
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The value of one attribute; none if it is gone.
    pub(crate) fn value(&mut self, node: Node<'_>, name: &CString) -> Result<Option<Vec<u8>>> {
        let got = match node {
            Node::Open(fd) => rustix::fs::fgetxattr(fd, name, &mut self.buffer[..]),
            Node::Named(dir, file) => {
                rustix::fs::lgetxattr(beneath::proc_path_in(dir, file), name, &mut self.buffer[..])
            }
        };
        match got {
            Ok(bytes) => Ok(Some(self.buffer[..bytes].to_vec())),
            Err(Errno::NODATA) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All names and values, sorted by name.
    pub(crate) fn read(&mut self, node: Node<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let names = self.names(node)?;
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            if let Some(value) = self.value(node, &name)? {
                all.push((name.into_bytes(), value));
            }
        }
        Ok(all)
    }
}

/// The value of one attribute of an entry.
pub(crate) fn value_in<'e>(entry: &'e Entry, name: &[u8]) -> Option<&'e [u8]> {
    let found = entry.xattrs.iter().find(|pair| pair.0 == name);
    found.map(|pair| pair.1.as_slice())
}

/// Sets one attribute, replacing an earlier value.
pub(crate) fn set(node: Node<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    let flags = XattrFlags::empty();
    match node {
        Node::Open(fd) => rustix::fs::fsetxattr(fd, name, value, flags),
        Node::Named(dir, file) => {
            rustix::fs::lsetxattr(beneath::proc_path_in(dir, file), name, value, flags)
        }
    }
}

/// Removes one attribute.
pub(crate) fn remove(node: Node<'_>, name: &CString) -> Result<()> {
    match node {
        Node::Open(fd) => rustix::fs::fremovexattr(fd, name),
        Node::Named(dir, file) => rustix::fs::lremovexattr(beneath::proc_path_in(dir, file), name),
    }
}
