//! Entry pages: what decodes is the one encoding of its content, and no path leaves its root.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_base::tree::is_safe_path;
use mover_format::EntryPage;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(page) = EntryPage::decode(bytes) {
        assert_eq!(page.encode().unwrap(), bytes);
        assert!(
            page.entries
                .iter()
                .all(|stored| is_safe_path(&stored.entry.path))
        );
    }
});
