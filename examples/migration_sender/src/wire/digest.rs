//! Digests of pages, keyed by a secret of the run.

use std::{fmt, fs::File, io, io::Read};

use clap::ValueEnum;
use xxhash_rust::xxh3::xxh3_128_with_secret;

/// The function of the digests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DigestKind {
    /// XXH3-128 with a secret: fast, and made against accidents.
    Xxh3,
    /// BLAKE3 with a key: against a guest that chooses its pages.
    Blake3,
}

/// The secret of one run: the guest cannot compute a digest, and so cannot choose pages that
/// collide.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; Self::SIZE]);

impl Secret {
    pub const SIZE: usize = 192;
    /// The part that is BLAKE3's key.
    const KEY: usize = 32;

    /// A new secret from the kernel.
    pub fn draw() -> io::Result<Self> {
        let mut bytes = [0; Self::SIZE];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes))
    }

    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; Self::SIZE] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The keyed function of one run.
#[derive(Clone, Debug)]
pub struct Digester {
    kind: DigestKind,
    secret: Secret,
}

impl Digester {
    /// Bytes of a digest on the wire.
    pub const SIZE: usize = 16;

    pub fn new(kind: DigestKind, secret: Secret) -> Self {
        Self { kind, secret }
    }

    pub fn digest(&self, bytes: &[u8]) -> u128 {
        match self.kind {
            DigestKind::Xxh3 => xxh3_128_with_secret(bytes, &self.secret.0),
            DigestKind::Blake3 => {
                let key = self.secret.0.first_chunk::<{ Secret::KEY }>().expect("longer");
                let hash = blake3::keyed_hash(key, bytes);
                u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_depend_on_every_byte_and_on_the_secret() {
        let page = vec![7; 4096];
        for kind in [DigestKind::Xxh3, DigestKind::Blake3] {
            let digester = Digester::new(kind, Secret::draw().unwrap());
            let other = Digester::new(kind, Secret::draw().unwrap());
            assert_eq!(digester.digest(&page), digester.digest(&page.clone()));
            assert_ne!(digester.digest(&page), other.digest(&page));
            for at in [0, 2047, 4095] {
                let mut changed = page.clone();
                changed[at] ^= 1;
                assert_ne!(digester.digest(&page), digester.digest(&changed));
            }
        }
    }
}
