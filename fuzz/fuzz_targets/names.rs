//! Names, ids, times and sizes as text: of objects in a listing, of files in a store, in JSON, in a server's headers. What parses is
//! written the same, where there is one way to write it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_base::{
    BackupId, HoldId, PackId, RepoId, SessionId, SlotId, SystemId, Timestamp, hex, units,
};
use mover_store::Key;

fn same<T: std::str::FromStr + ToString>(text: &str) {
    if let Ok(parsed) = text.parse::<T>() {
        assert_eq!(parsed.to_string(), text);
    }
}

fuzz_target!(|bytes: &[u8]| {
    // Any time that is stored can be shown, and read again.
    if let Some((micros, _)) = bytes.split_first_chunk() {
        let time = Timestamp::from_micros(i64::from_le_bytes(*micros));
        let shown = time.to_string();
        let read = Timestamp::parse_rfc3339(&shown).expect("a time that is shown");
        assert_eq!(read.to_string(), shown);
        let _ = (
            time.compact(),
            time.utc_day(),
            time.utc_week(),
            time.utc_month(),
        );
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    same::<BackupId>(text);
    same::<HoldId>(text);
    same::<PackId>(text);
    same::<RepoId>(text);
    same::<SessionId>(text);
    same::<SlotId>(text);
    same::<SystemId>(text);
    if let Some(digits) = hex::decode::<4>(text) {
        assert_eq!(hex::encode(&digits), text);
    }
    for time in [
        Timestamp::parse_compact(text),
        Timestamp::parse_rfc3339(text),
        Timestamp::parse_http_date(text),
    ] {
        let _ = time.map(|time| (time.to_string(), time.compact()));
    }
    if let Ok(size) = units::parse_bytes(text) {
        let _ = units::format_bytes(size);
    }
    match Key::new(text) {
        Ok(key) => assert_eq!(key.as_str(), text),
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
});
