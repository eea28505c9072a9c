//! Rows in the body of a page: slots from the front, rows from the back.
//!
//! Layout: number of slots (u16), where the rows begin (u16, counted in the body), then per slot offset and length
//! (u16 each; length 0: the row is gone); a row is its key (u64) and its content. All little-endian. A body of zeros is
//! an empty page.

use mover_source::page::{BODY_BYTES, PAGE_BYTES, PAGE_HEADER_BYTES, PageBytes};

const HEAD_BYTES: usize = 4;
const SLOT_BYTES: usize = 4;
/// Bytes of a row's key.
pub const KEY_BYTES: usize = 8;

fn get(body: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([body[at], body[at + 1]]))
}

fn set(body: &mut [u8], at: usize, value: usize) {
    body[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
}

fn body(page: &PageBytes) -> &[u8] {
    &page[PAGE_HEADER_BYTES..PAGE_BYTES]
}

/// How many slots there are.
pub fn slots(page: &PageBytes) -> usize {
    get(body(page), 0)
}

fn rows_begin(page: &PageBytes) -> usize {
    match get(body(page), 2) {
        0 => BODY_BYTES,
        begin => begin,
    }
}

/// The row in a slot: key and content; `None` if it is gone.
pub fn row(page: &PageBytes, slot: usize) -> Option<(u64, &[u8])> {
    let body = body(page);
    let at = HEAD_BYTES + slot * SLOT_BYTES;
    let (offset, len) = (get(body, at), get(body, at + 2));
    let row = &body[offset..offset + len];
    let (key, content) = row.split_at_checked(KEY_BYTES)?;
    Some((
        u64::from_le_bytes(key.try_into().expect("8 bytes")),
        content,
    ))
}

/// Puts a row in a new slot; `None` if it does not fit.
pub fn insert(page: &mut PageBytes, key: u64, content: &[u8]) -> Option<usize> {
    let (count, begin) = (slots(page), rows_begin(page));
    let len = KEY_BYTES + content.len();
    let slots_end = HEAD_BYTES + (count + 1) * SLOT_BYTES;
    let offset = begin.checked_sub(len).filter(|at| *at >= slots_end)?;
    let body = &mut page[PAGE_HEADER_BYTES..];
    body[offset..offset + KEY_BYTES].copy_from_slice(&key.to_le_bytes());
    body[offset + KEY_BYTES..offset + len].copy_from_slice(content);
    let at = HEAD_BYTES + count * SLOT_BYTES;
    set(body, at, offset);
    set(body, at + 2, len);
    set(body, 0, count + 1);
    set(body, 2, offset);
    Some(count)
}

/// Changes a row's content to one of the same length; false if the length differs.
pub fn replace(page: &mut PageBytes, slot: usize, content: &[u8]) -> bool {
    let at = HEAD_BYTES + slot * SLOT_BYTES;
    let body = &mut page[PAGE_HEADER_BYTES..];
    let (offset, len) = (get(body, at), get(body, at + 2));
    if len != KEY_BYTES + content.len() {
        return false;
    }
    body[offset + KEY_BYTES..offset + len].copy_from_slice(content);
    true
}

/// Takes a row out.
pub fn delete(page: &mut PageBytes, slot: usize) {
    let at = HEAD_BYTES + slot * SLOT_BYTES;
    set(&mut page[PAGE_HEADER_BYTES..], at + 2, 0);
}
