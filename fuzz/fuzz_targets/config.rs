//! Configs: the hash is set right so that the JSON is reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_base::checksum::sha256;
use mover_format::RepositoryConfig;

fuzz_target!(|bytes: &[u8]| {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let hash: String = sha256(line).iter().map(|b| format!("{b:02x}")).collect();
    let text = [line, b"\nsha256 ", hash.as_bytes(), b"\n"].concat();
    let _ = RepositoryConfig::decode(bytes);
    if let Ok((config, named)) = RepositoryConfig::decode(&text) {
        assert_eq!(named, sha256(line));
        let encoded = config.encode().unwrap();
        assert_eq!(RepositoryConfig::decode(&encoded).unwrap().0, config);
    }
});
