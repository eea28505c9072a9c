//! Bytes as lower-case hexadecimal digits.

/// Two digits for each byte, written in place: the bytes may be a secret, of which no copies may stay behind.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Exactly `N` bytes from lower-case digits, and from nothing else.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (value(pair[0])? << 4) | value(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_back_as_their_bytes() {
        for byte in 0..=255 {
            let bytes = [byte, 255 - byte];
            assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
        assert_eq!(encode(&[0x00, 0x9f, 0xa0]), "009fa0");
    }

    #[test]
    fn nothing_but_lower_case_digits_of_the_right_number_is_read() {
        for bad in ["", "0", "000", "0G", "AB", "é", " 1", "+1"] {
            assert_eq!(decode::<1>(bad), None, "{bad:?}");
        }
    }
}
