//! The source's offer: the abilities it wants, the secret of the digests, the layout of the memory.

use super::{DigestKind, Layout, MAX_OFFER, ProtocolError, Secret, frame::u64_at};

/// A set of abilities, one bit each. A destination with fewer than the wanted abilities refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities(pub u32);

impl Abilities {
    /// Digests of applied pages, XXH3-128.
    pub const XXH3: u32 = 1;
    /// Digests of applied pages, BLAKE3.
    pub const BLAKE3: u32 = 2;
    /// Digests are sent for every applied page, for the source's choice of the next pages.
    pub const PAGE_DIGESTS: u32 = 4;
    /// Both ends compare digests of the whole memory before the guest starts.
    pub const VERIFY: u32 = 8;
    /// The device state is that of a QEMU.
    pub const QEMU: u32 = 16;
    /// All abilities of this version.
    pub const ALL: u32 = 31;

    pub fn has(self, ability: u32) -> bool {
        self.0 & ability == ability
    }

    /// The abilities that `other` lacks.
    pub fn beyond(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The source's offer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    pub digest: DigestKind,
    /// [`Abilities::PAGE_DIGESTS`].
    pub page_digests: bool,
    /// [`Abilities::VERIFY`].
    pub verify: bool,
    /// [`Abilities::QEMU`].
    pub qemu: bool,
    pub secret: Secret,
    pub layout: Layout,
}

impl Offer {
    pub fn abilities(&self) -> Abilities {
        let digest = match self.digest {
            DigestKind::Xxh3 => Abilities::XXH3,
            DigestKind::Blake3 => Abilities::BLAKE3,
        };
        let flags = [
            (self.page_digests, Abilities::PAGE_DIGESTS),
            (self.verify, Abilities::VERIFY),
            (self.qemu, Abilities::QEMU),
        ];
        Abilities(flags.iter().filter(|(is, _)| *is).fold(digest, |all, (_, bit)| all | bit))
    }

    /// The bytes behind the `Hello`: the secret, then for each region its length, the length of its
    /// name, and the name.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.secret.bytes().to_vec();
        for region in self.layout.regions() {
            out.extend((region.len as u64).to_le_bytes());
            out.push(region.id.len().min(255) as u8);
            out.extend(&region.id.as_bytes()[..region.id.len().min(255)]);
        }
        out
    }

    /// Reads an offer, with every limit that is independent of the destination.
    pub fn decode(abilities: Abilities, bytes: &[u8]) -> Result<Self, ProtocolError> {
        let short = ProtocolError::Hello("the source's offer is cut short");
        let wrong = |why| Err(ProtocolError::Hello(why));
        if bytes.len() > MAX_OFFER {
            return Err(ProtocolError::TooLarge);
        }
        if abilities.beyond(Abilities(Abilities::ALL)) != Abilities(0) {
            return wrong("the source wants abilities that this build lacks");
        }
        let digest = match abilities.0 & (Abilities::XXH3 | Abilities::BLAKE3) {
            Abilities::XXH3 => DigestKind::Xxh3,
            Abilities::BLAKE3 => DigestKind::Blake3,
            _ => return wrong("the source wants no kind of digest, or two"),
        };
        let (secret, mut rest) = bytes.split_first_chunk().ok_or(short)?;
        let mut regions = Vec::new();
        while !rest.is_empty() {
            let (head, behind) = rest.split_at_checked(9).ok_or(short)?;
            let (id, behind) = behind.split_at_checked(usize::from(head[8])).ok_or(short)?;
            let id = std::str::from_utf8(id).ok().filter(|id| !id.contains(char::is_control));
            let Some(id) = id else { return wrong("the name of a region is no text") };
            let len = usize::try_from(u64_at(head, 0)).map_err(|_| ProtocolError::TooLarge)?;
            regions.push((id.to_string(), len));
            rest = behind;
        }
        Ok(Self {
            digest,
            page_digests: abilities.has(Abilities::PAGE_DIGESTS),
            verify: abilities.has(Abilities::VERIFY),
            qemu: abilities.has(Abilities::QEMU),
            secret: Secret::from_bytes(*secret),
            layout: Layout::new(regions)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        Offer {
            digest: DigestKind::Blake3,
            page_digests: true,
            verify: false,
            qemu: true,
            secret: Secret::from_bytes([9; Secret::SIZE]),
            layout: Layout::new([("pc.ram".into(), 1 << 30), ("m1".into(), 5)]).unwrap(),
        }
    }

    #[test]
    fn an_offer_survives_the_wire() {
        let offer = offer();
        assert_eq!(Offer::decode(offer.abilities(), &offer.encode()), Ok(offer));
    }

    #[test]
    fn a_damaged_offer_is_refused() {
        let (abilities, bytes) = (offer().abilities(), offer().encode());
        for len in (0..bytes.len()).filter(|len| *len != Secret::SIZE + 9 + 6) {
            assert!(Offer::decode(abilities, &bytes[..len]).is_err(), "{len}");
        }
        for abilities in [0, 3, 1 << 31 | 1] {
            assert!(Offer::decode(Abilities(abilities), &bytes).is_err());
        }
        assert!(Offer::decode(abilities, &vec![0; MAX_OFFER + 1]).is_err());
    }
}
