//! Records: bodies of every type, and whole objects without a seal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover_format::{FrameDecoder, ObjectSealer, ObjectType, Preamble, Record};

fuzz_target!(|bytes: &[u8]| {
    for code in 4..=7 {
        let object_type = ObjectType::from_code(code).expect("a record's type");
        if let Ok(record) = Record::decode(object_type, bytes) {
            let again = record.encode().expect("what decodes encodes");
            assert_eq!(Record::decode(object_type, &again).ok(), Some(record));
        }
    }
    let Ok((preamble, _)) = Preamble::decode(bytes) else {
        return;
    };
    if let Ok(sealer) = ObjectSealer::new(&preamble, None) {
        let _ = Record::decode_object(bytes, &preamble, &sealer, &mut FrameDecoder::new());
    }
});
