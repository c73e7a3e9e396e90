//! `Stripe-Signature`: HMAC-SHA256 over the time and the body.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// One `v1` for each secret, as while a secret is rolled.
pub(crate) fn sign<S: AsRef<str>>(secrets: &[S], at: i64, body: &str) -> String {
    let mut header = format!("t={at}");
    for secret in secrets {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_ref().as_bytes()).expect("any length is a key");
        mac.update(format!("{at}.{body}").as_bytes());
        header.push_str(",v1=");
        header.push_str(&hex::encode(mac.finalize().into_bytes()));
    }
    header
}
