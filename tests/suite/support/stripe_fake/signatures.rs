//! `Stripe-Signature`: HMAC-SHA256 over the time and the body.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Signs a body with one `v1` per secret, as Stripe does while a secret is rotated.
pub(crate) fn sign<S: AsRef<str>>(secrets: &[S], at: i64, body: &str) -> String {
    let mut header = format!("t={at}");
    for secret in secrets {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_ref().as_bytes()).expect("HMAC keys have any length");
        mac.update(format!("{at}.{body}").as_bytes());
        header.push_str(",v1=");
        header.push_str(&hex::encode(mac.finalize().into_bytes()));
    }
    header
}
