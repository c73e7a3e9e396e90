//! Signatures of webhooks: `Stripe-Signature: t=<seconds>,v1=<hex>[,v1=<hex>…]`, with HMAC-SHA256 over
//! the time and the unchanged body (<https://docs.stripe.com/webhooks/signature>).

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use metergate_domain::base::Timestamp;
use metergate_domain::base::limits::WEBHOOK_AGE_MAX;

/// The most signatures of one header that are checked; Stripe sends one for each active secret.
const SIGNATURES_MAX: usize = 16;

/// The claims in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    at: Timestamp,
    /// The time as spelled in the header, because the signature covers this text.
    spelled: String,
    v1: Vec<Vec<u8>>,
}

/// The age of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    Fresh,
    TooOld,
    InFuture,
}

impl Signature {
    /// Parses a header. Returns none if it does not have Stripe's form. Ignores schemes other than `v1`.
    pub fn parse(header: &str) -> Option<Self> {
        let (mut spelled, mut v1) = (None, Vec::new());
        for part in header.split(',') {
            match part.split_once('=')? {
                (name, value) if name.trim() == "t" => spelled = Some(value.trim()),
                (name, value) if name.trim() == "v1" && v1.len() < SIGNATURES_MAX => {
                    v1.extend(hex::decode(value.trim()).ok());
                }
                _ => {}
            }
        }
        let spelled = spelled?;
        let seconds: i64 = spelled.parse().ok()?;
        let at = Timestamp::from_micros(seconds.checked_mul(1_000_000)?)?;
        (!v1.is_empty()).then(|| Self { at, spelled: spelled.to_owned(), v1 })
    }

    /// Returns whether the body was signed with this secret. A comparison takes constant time.
    pub fn is_by(&self, secret: &SecretString, body: &[u8]) -> bool {
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) else { return false };
        let mac = mac.chain_update(self.spelled.as_bytes()).chain_update(b".").chain_update(body);
        self.v1.iter().any(|v1| mac.clone().verify_slice(v1).is_ok())
    }

    /// Returns whether the signature is recent. Clocks may differ by five minutes either way.
    pub fn age(&self, now: Timestamp) -> Age {
        if self.at.saturating_add(WEBHOOK_AGE_MAX) < now {
            Age::TooOld
        } else if now.saturating_add(WEBHOOK_AGE_MAX) < self.at {
            Age::InFuture
        } else {
            Age::Fresh
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;
    const V1: &str = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";

    fn secret() -> SecretString {
        SecretString::from("whsec_test_secret")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000).unwrap()
    }

    #[test]
    fn the_known_vector_passes() {
        let other = "00".repeat(32);
        let good = [
            format!("t=1700000000,v1={V1}"),
            format!("t=1700000000,v1={other},v1={V1}"),
            format!(
                "t=1700000000,v1={V1},v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39"
            ),
            format!("v1={V1}, t=1700000000,v2=x"),
        ];
        for header in good {
            assert!(Signature::parse(&header).unwrap().is_by(&secret(), BODY), "{header}");
        }
    }

    #[test]
    fn altered_signatures_are_rejected() {
        let signed = |header: &str| Signature::parse(header).is_some_and(|s| s.is_by(&secret(), BODY));
        let bad = [
            String::new(),
            "t=1700000000".to_owned(),
            format!("v1={V1}"),
            format!("t=1700000001,v1={V1}"),
            format!("t=01700000000,v1={V1}"),
            format!("t=1700000000,v0={V1}"),
            format!("t=1700000000,v1={}", &V1[..62]),
            format!("t=1700000000,v1={V1}00"),
            format!("t=1700000000,v1={}", "zz".repeat(32)),
            format!("t=99999999999999999999,v1={V1}"),
            format!("t=-9223372036854775808,v1={V1}"),
            "nonsense".to_owned(),
        ];
        for header in bad {
            assert!(!signed(&header), "{header}");
        }
        let header = format!("t=1700000000,v1={V1}");
        let signature = Signature::parse(&header).unwrap();
        assert!(!signature.is_by(&secret(), br#"{"id":"evt_2","object":"event"}"#));
        assert!(!signature.is_by(&SecretString::from("whsec_other"), BODY));
        assert!(!signature.is_by(&SecretString::from(""), BODY));
    }

    #[test]
    fn signatures_are_valid_within_five_minutes_either_way() {
        let signature = Signature::parse(&format!("t=1700000000,v1={V1}")).unwrap();
        let cases = [
            (0, Age::Fresh),
            (300, Age::Fresh),
            (301, Age::TooOld),
            (-300, Age::Fresh),
            (-301, Age::InFuture),
        ];
        for (later, expected) in cases {
            assert_eq!(signature.age(at(1_700_000_000 + later)), expected, "{later}");
        }
    }
}
