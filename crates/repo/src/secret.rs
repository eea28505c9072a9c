//! Text that must not leak: wiped when dropped, never printed.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A passphrase or a private key in text form.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Takes the text over; the caller keeps no copy.
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// What opens a repository.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// Nothing: an unencrypted repository, or a host that writes and cannot read.
    #[default]
    None,
    /// A passphrase that one of the key slots was made for.
    Passphrase(Secret),
    /// A private age identity (`AGE-SECRET-KEY-1...`) that one of the key slots was made for.
    Identity(Secret),
}
