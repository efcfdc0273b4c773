//! Registers an account that is bound to one made at the CA's site (RFC 8555 §7.3.4). The ACME library would make the
//! account's key by itself while it registers; here the key is on the disk before.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, Method, Request};
use instant_acme::{BodyWrapper, Error};
use serde_json::{Value, json};

use crate::cert::ca_client::CaClient;
use crate::cert::directory::Directory;
use crate::cert::failure::{Call, Class, Failure};
use crate::cert::trouble::{Trouble, patient};

/// The key of the other account. Never printed.
pub(in crate::cert) struct Binding<'a> {
    /// Its identifier.
    pub(in crate::cert) kid: &'a str,
    /// Its secret.
    pub(in crate::cert) hmac_key: &'a [u8],
}

/// Registers the account with the private key `key` and returns its URL; one that exists already is found.
pub(in crate::cert) async fn register(
    client: &CaClient,
    directory: &Directory,
    key: &[u8],
    email: Option<&str>,
    binding: &Binding<'_>,
) -> Result<String, Trouble> {
    let unusable = |what: &str| Failure::new(Class::Action, format!("the key of the account {what}"));
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key)
        .map_err(|_| unusable("is damaged"))?;
    let url = &directory.new_account;
    let jwk = jwk(&key).ok_or_else(|| unusable("is on no usable curve"))?;
    let contact: Vec<String> = email.iter().map(|email| format!("mailto:{email}")).collect();
    let payload = json!({
        "termsOfServiceAgreed": true,
        "contact": contact,
        "externalAccountBinding": bound(&jwk, url, binding),
    });
    let answer = patient(async || {
        let head = Request::builder().method(Method::HEAD).uri(&directory.new_nonce);
        let fresh = client.send(head.body(BodyWrapper::default())?).await?;
        let nonce = text(&fresh.headers, "replay-nonce").ok_or(Error::Str("no nonce in the CA's answer"))?;
        let header = json!({"alg": "ES256", "jwk": jwk, "nonce": nonce, "url": url});
        let body = signed(&header, &payload, |input| {
            let signature = key.sign(&SystemRandom::new(), input).map_err(|_| Error::Crypto)?;
            Ok(signature.as_ref().to_vec())
        })?;
        let request = Request::post(url).header(CONTENT_TYPE, "application/jose+json");
        client
            .send(request.body(BodyWrapper::from(Bytes::from(body.to_string().into_bytes()).to_vec()))?)
            .await
    })
    .await
    .map_err(|error| Trouble::Ca(Call::Binding, error))?;
    text(&answer.headers, LOCATION.as_str()).map(str::to_owned).ok_or_else(|| {
        Failure::new(Class::Transient, "the CA registered the account without saying where it is".to_owned())
            .into()
    })
}

fn bound(jwk: &Value, url: &str, binding: &Binding<'_>) -> Value {
    let header = json!({"alg": "HS256", "kid": binding.kid, "url": url});
    let key = hmac::Key::new(hmac::HMAC_SHA256, binding.hmac_key);
    let sign = |input: &[u8]| Ok::<_, Error>(hmac::sign(&key, input).as_ref().to_vec());
    signed(&header, jwk, sign).unwrap_or(Value::Null)
}

fn signed(
    header: &Value,
    payload: &Value,
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, Error>,
) -> Result<Value, Error> {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let (protected, payload) = (part(header), part(payload));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(format!("{protected}.{payload}").as_bytes())?);
    Ok(json!({"protected": protected, "payload": payload, "signature": signature}))
}

/// The public key (RFC 7518 §6.2.1): an uncompressed point is 4, x, y.
fn jwk(key: &EcdsaKeyPair) -> Option<Value> {
    let point = key.public_key().as_ref();
    let (x, y) = (point.get(1..33)?, point.get(33..65)?);
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    Some(json!({"crv": "P-256", "kty": "EC", "x": part(x), "y": part(y)}))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
