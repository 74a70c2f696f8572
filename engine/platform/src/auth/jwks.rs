//! Sets of public keys (JWKS, RFC 7517), from a file, from the URL of an identity provider, or from the URL that the
//! discovery document of an issuer names (OpenID Connect Discovery 1.0).
//!
//! A URL is fetched at start, every 5 minutes, and when a token names an unknown key. If a fetch fails, the keys of the
//! last successful fetch remain valid, so tokens are accepted while the provider is unavailable.

use std::time::Duration;

use futures::StreamExt;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::redirect::Policy;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::auth::{Authenticator, Error, Key, RSA, Settings, validation};
use crate::telemetry::redact::redact;

/// Interval of the regular fetches.
const FETCH_EVERY: Duration = Duration::from_secs(300);
/// Minimum time between two fetches, because any client can cause fetches with tokens that name unknown keys.
const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of attempts at start, and the pause between them.
const TRIES: usize = 5;
const RETRY_DELAY: Duration = Duration::from_secs(1);
const BYTES_MAX: usize = 1024 * 1024;
/// Path of the discovery document, below the issuer.
const DISCOVERY: &str = "/.well-known/openid-configuration";
/// Number of sources of fetched keys: the URL, and the issuer.
pub(super) const SOURCES: usize = 2;

/// A key: its id, if it has one, the key itself, and the algorithms for which it is valid.
pub(super) type PublicKey = (Option<String>, DecodingKey, Vec<Algorithm>);

impl Authenticator {
    /// Fetches the keys of the URL and of the issuer, if they are configured. Makes up to 5 attempts, with a pause of 1 s between them.
    ///
    /// # Errors
    /// Fails if the last attempt gets no response or no usable key.
    pub async fn fetch_keys(&self) -> Result<(), Error> {
        for _ in 1..TRIES {
            match self.fetch().await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error, "Could not fetch the token keys. Retrying."),
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        self.fetch().await
    }

    /// Keeps the fetched keys current until `stop` is cancelled.
    pub async fn refresh_keys(self, stop: CancellationToken) {
        if !is_used(&self.0.settings) {
            return;
        }
        let follow = async {
            loop {
                tokio::time::sleep(MIN_FETCH_INTERVAL).await;
                // The timeout is the regular fetch. It finds new keys early, and removes withdrawn keys.
                let _ = tokio::time::timeout(FETCH_EVERY, self.0.unknown_key.notified()).await;
                if let Err(error) = self.fetch().await {
                    tracing::warn!(%error, "Could not fetch the token keys. The previous keys remain in use.");
                }
            }
        };
        tokio::select! { () = follow => {}, () = stop.cancelled() => {} }
    }

    /// Fetches the keys of every source once. A source that fails keeps its keys, and does not keep the other from being
    /// fetched.
    ///
    /// # Errors
    /// A source gives no response or no usable key.
    pub async fn fetch(&self) -> Result<(), Error> {
        let Settings { jwt_jwks_url, oidc_issuer, jwt_issuer, .. } = &self.0.settings;
        let mut outcome = Ok(());
        if let Some(url) = jwt_jwks_url {
            let set = keys_at(url).await.map_err(|reason| failed(url, &reason));
            outcome = set.map(|set| self.replace(0, jwt_issuer, set));
        }
        if let Some(issuer) = oidc_issuer {
            match discover(issuer).await {
                Ok(set) => self.replace(1, issuer, set),
                Err(reason) => outcome = Err(undiscovered(issuer, &reason)),
            }
        }
        outcome
    }

    fn replace(&self, source: usize, issuer: &str, set: Vec<PublicKey>) {
        let key =
            |(id, decoding, algorithms): PublicKey| Key { id, decoding, validation: validation(issuer, &algorithms) };
        self.0.fetched.send_modify(|fetched| fetched[source] = set.into_iter().map(key).collect());
    }
}

/// Whether keys are fetched.
pub(super) fn is_used(settings: &Settings) -> bool {
    settings.jwt_jwks_url.is_some() || settings.oidc_issuer.is_some()
}

/// Checks that the URLs of the settings are HTTP or HTTPS and have a host.
pub(super) fn check(settings: &Settings) -> Result<(), Error> {
    if let Some(url) = &settings.jwt_jwks_url {
        check_url(url).map_err(|reason| failed(url, &reason))?;
    }
    if let Some(issuer) = &settings.oidc_issuer {
        let url = check_url(issuer).map_err(|reason| undiscovered(issuer, &reason))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(undiscovered(issuer, "an issuer has neither a query nor a fragment"));
        }
    }
    Ok(())
}

fn check_url(url: &str) -> Result<reqwest::Url, String> {
    match reqwest::Url::parse(url) {
        Ok(parsed) if ["http", "https"].contains(&parsed.scheme()) && parsed.has_host() => Ok(parsed),
        _ => Err("the URL must have the form https://HOST/PATH or http://HOST/PATH".to_owned()),
    }
}

/// The members of a discovery document that are used.
#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

/// Fetches the discovery document of an issuer, and the keys that it names.
///
/// # Errors
/// The reason, in words.
async fn discover(issuer: &str) -> Result<Vec<PublicKey>, String> {
    let url = format!("{}{DISCOVERY}", issuer.trim_end_matches('/'));
    let text = get(&url).await.map_err(|reason| format!("{url}: {reason}"))?;
    let found: Discovered =
        serde_json::from_slice(&text).map_err(|error| format!("{url} is not a discovery document: {error}"))?;
    // Otherwise the tokens of one issuer could be verified with the keys of another one.
    if found.issuer != issuer {
        return Err(format!(
            "the discovery document names the issuer {}, which must be equal to the setting, character by character. Set \
             oidc_issuer to that text if it is the issuer that you trust",
            found.issuer
        ));
    }
    let keys = check_url(&found.jwks_uri).map_err(|reason| format!("jwks_uri {}: {reason}", found.jwks_uri))?;
    if issuer.starts_with("https:") && keys.scheme() != "https" {
        return Err(format!("jwks_uri {} must begin with https:, as the issuer does", found.jwks_uri));
    }
    keys_at(&found.jwks_uri).await.map_err(|reason| format!("jwks_uri {}: {reason}", found.jwks_uri))
}

async fn keys_at(url: &str) -> Result<Vec<PublicKey>, String> {
    read(&get(url).await?)
}

fn undiscovered(issuer: &str, reason: &str) -> Error {
    Error::Discover { issuer: redact(issuer).into_owned(), reason: redact(reason).into_owned() }
}

fn failed(url: &str, reason: &str) -> Error {
    Error::Fetch { url: redact(url).into_owned(), reason: redact(reason).into_owned() }
}

/// Formats an error with all its causes, because the outermost error does not name the reason.
fn format_error_chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn get(url: &str) -> Result<Vec<u8>, String> {
    let failed = |error: reqwest::Error| format_error_chain(&error);
    // A redirect could lead from the configured server to any other one.
    let client = reqwest::Client::builder().timeout(FETCH_TIMEOUT).redirect(Policy::none()).build().map_err(failed)?;
    let answer = client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    if answer.status().is_redirection() {
        return Err(format!("the server answers {} with a redirect: give the URL to which it leads", answer.status()));
    }
    let mut body = answer.bytes_stream();
    let mut text = Vec::new();
    while let Some(piece) = body.next().await {
        text.extend_from_slice(&piece.map_err(failed)?);
        // A truncated text is not valid JSON, so parsing it fails.
        if text.len() > BYTES_MAX {
            break;
        }
    }
    Ok(text)
}

/// Returns the usable keys of a set: public signature keys of a supported type. Other keys are ignored (RFC 7517,
/// section 5), also those of types that are unknown here.
pub(super) fn read(text: &[u8]) -> Result<Vec<PublicKey>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(text).map_err(|error| format!("the text is not a JWKS: {error}"))?;
    let known = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    let keys: Vec<PublicKey> = known.filter_map(|key| read_jwk(&key)).collect();
    match keys.is_empty() {
        true => Err("the JWKS has no public RSA, EC P-256 or P-384, or Ed25519 key for signatures".to_owned()),
        false => Ok(keys),
    }
}

fn read_jwk(jwk: &Jwk) -> Option<PublicKey> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let family = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => RSA.to_vec(),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => vec![Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => vec![Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
        // A symmetric key in a public set is a mistake: anyone who can read the set could sign tokens.
        _ => return None,
    };
    let algorithms = match jwk.common.key_algorithm {
        None => family,
        Some(named) => family.into_iter().filter(|algorithm| KeyAlgorithm::from(*algorithm) == named).collect(),
    };
    let decoding = DecodingKey::from_jwk(jwk).ok()?;
    (!algorithms.is_empty()).then(|| (jwk.common.key_id.clone(), decoding, algorithms))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::routing::get;
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{EncodingKey, Header};

    use super::*;
    use crate::auth::Settings;
    use crate::auth::tests::{ED, P256, claims};

    struct Provider {
        shows: Arc<Mutex<String>>,
        settings: Settings,
    }

    impl Provider {
        async fn start(shows: String) -> Self {
            let shows = Arc::new(Mutex::new(shows));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/keys", listener.local_addr().unwrap());
            let text = shows.clone();
            let app = Router::new().route("/keys", get(move || std::future::ready(text.lock().unwrap().clone())));
            tokio::spawn(async move { axum::serve(listener, app).await });
            Self { shows, settings: Settings { jwt_jwks_url: Some(url), ..Settings::default() } }
        }

        fn shows(&self, text: &str) {
            *self.shows.lock().unwrap() = text.to_owned();
        }
    }

    /// Returns a token signed with a key, and a key set that contains the key.
    fn signed(id: &str) -> (String, String) {
        let (key, algorithm) = match id {
            "one" => (EncodingKey::from_ec_pem(P256.as_bytes()), Algorithm::ES256),
            _ => (EncodingKey::from_ed_pem(ED.as_bytes()), Algorithm::EdDSA),
        };
        let key = key.unwrap();
        let mut jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        let header = Header { kid: Some(id.to_owned()), ..Header::new(algorithm) };
        let token = jsonwebtoken::encode(&header, &claims(), &key).unwrap();
        (token, serde_json::to_string(&JwkSet { keys: vec![jwk] }).unwrap())
    }

    #[tokio::test]
    async fn keys_follow_the_provider() {
        let ((one, shows_one), (two, shows_two)) = (signed("one"), signed("two"));
        let provider = Provider::start(shows_one).await;
        let authenticator = Authenticator::new(&provider.settings).unwrap();
        assert_eq!(authenticator.verify(&one).unwrap_err().slug(), "unknown-key", "no keys are fetched yet");
        authenticator.fetch_keys().await.unwrap();
        assert!(authenticator.verify(&one).is_ok());

        let stop = CancellationToken::new();
        tokio::spawn(authenticator.clone().refresh_keys(stop.clone()));
        provider.shows(&shows_two);
        assert!(authenticator.verify(&one).is_ok(), "the old keys are valid until the next fetch");
        let mut fetched = authenticator.0.fetched.subscribe();
        fetched.mark_unchanged();
        assert_eq!(authenticator.verify(&two).unwrap_err().slug(), "unknown-key");
        fetched.changed().await.unwrap();
        assert!(authenticator.verify(&two).is_ok(), "a token with an unknown key caused a fetch");
        assert_eq!(authenticator.verify(&one).unwrap_err().slug(), "unknown-key", "the key is withdrawn");
        stop.cancel();
    }

    #[tokio::test]
    async fn fetched_keys_remain_until_the_next_successful_fetch() {
        let (token, shows) = signed("one");
        let padded = |bytes: usize| format!("{{\"more\":\"{}\",{}", "x".repeat(bytes), &shows[1..]);
        // A set may have a megabyte.
        let provider = Provider::start(padded(500_000)).await;
        let authenticator = Authenticator::new(&provider.settings).unwrap();
        authenticator.fetch_keys().await.unwrap();
        let too_long = padded(2 << 20);
        for text in ["", "oops", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#, &too_long] {
            provider.shows(text);
            let error = authenticator.fetch().await.unwrap_err().to_string();
            assert!(error.contains("/keys: "), "{error}");
            assert!(authenticator.verify(&token).is_ok());
        }
    }

    /// Starts an issuer. `document` changes its discovery document. Returns its URL.
    async fn issuer(keys: String, document: impl Fn(&str) -> serde_json::Value) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/realms/shop", listener.local_addr().unwrap());
        let document = document(&url).to_string();
        let app = Router::new()
            .route("/realms/shop/.well-known/openid-configuration", get(move || std::future::ready(document.clone())))
            .route("/certs", get(move || std::future::ready(keys.clone())))
            .route("/moved", get(|| std::future::ready(axum::response::Redirect::temporary("/certs"))));
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    fn with_issuer(url: &str) -> Authenticator {
        let settings = Settings { oidc_issuer: Some(url.to_owned()), ..Settings::default() };
        Authenticator::new(&settings).unwrap()
    }

    #[tokio::test]
    async fn the_keys_of_an_issuer_are_discovered() {
        let (key, algorithm) = (EncodingKey::from_ec_pem(P256.as_bytes()).unwrap(), Algorithm::ES256);
        let root = |url: &str| url.replace("/realms/shop", "");
        let url =
            issuer(signed("one").1, |url| serde_json::json!({"issuer": url, "jwks_uri": root(url) + "/certs"})).await;
        let authenticator = with_issuer(&url);
        let token = |issuer: &str| {
            let mut claims = claims();
            claims["iss"] = issuer.into();
            let header = Header { kid: Some("one".into()), ..Header::new(algorithm) };
            jsonwebtoken::encode(&header, &claims, &key).unwrap()
        };
        assert_eq!(authenticator.verify(&token(&url)).unwrap_err().slug(), "unknown-key", "no keys are fetched yet");
        authenticator.fetch_keys().await.unwrap();
        assert!(authenticator.verify(&token(&url)).is_ok());
        // The keys of an issuer are valid for that issuer only.
        for other in ["docket", &format!("{url}/"), "https://other.example"] {
            assert!(authenticator.verify(&token(other)).unwrap_err().to_string().contains("issuer"), "{other}");
        }
    }

    #[tokio::test]
    async fn an_issuer_that_contradicts_itself_is_refused() {
        let keys = signed("one").1;
        let root = |url: &str| url.replace("/realms/shop", "");
        let document = |issuer: String, keys: String| serde_json::json!({"issuer": issuer, "jwks_uri": keys});
        let other = issuer(keys.clone(), |url| document("https://other.example".into(), root(url) + "/certs")).await;
        let slash = issuer(keys.clone(), |url| document(format!("{url}/"), root(url) + "/certs")).await;
        let moved = issuer(keys.clone(), |url| document(url.to_owned(), root(url) + "/moved")).await;
        let file = issuer(keys.clone(), |url| document(url.to_owned(), "file:///etc/keys".into())).await;
        let none = issuer(keys, |_| serde_json::json!({})).await;
        for (url, reason) in [
            (other, "https://other.example"),
            (slash, "character by character"),
            (moved, "redirect"),
            (file, "jwks_uri"),
            (none, "discovery document"),
        ] {
            let error = with_issuer(&url).fetch().await.unwrap_err().to_string();
            assert!(error.contains("DOCKET_OIDC_ISSUER") && error.contains(reason), "{error}");
        }
        for url in ["shop", "ftp://host/realm", "https://host/realm?x=1"] {
            let settings = Settings { oidc_issuer: Some(url.to_owned()), ..Settings::default() };
            assert!(matches!(Authenticator::new(&settings), Err(Error::Discover { .. })), "{url}");
        }
    }

    #[test]
    fn a_set_may_contain_keys_of_unknown_types() {
        let known: serde_json::Value = serde_json::from_str(&signed("one").1).unwrap();
        let keys = serde_json::json!({"keys": [
            {"kty": "AKP", "alg": "ML-DSA-44", "pub": "x"},
            {"kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "n": "AQAB", "e": "AQAB"},
            {"kty": "EC", "crv": "secp256k1", "x": "x", "y": "y"},
            known["keys"][0],
        ]});
        assert_eq!(read(keys.to_string().as_bytes()).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn keys_of_the_url_are_used_beside_a_secret() {
        let (token, shows) = signed("one");
        let provider = Provider::start(shows).await;
        let secret = "0123456789abcdef0123456789abcdef";
        let settings = Settings { jwt_secret: Some(secret.to_owned().into()), ..provider.settings.clone() };
        let authenticator = Authenticator::new(&settings).unwrap();
        authenticator.fetch_keys().await.unwrap();
        assert!(authenticator.verify(&token).is_ok());
        let own = authenticator.sign("c-1", crate::auth::Role::Customer, Duration::from_secs(60)).unwrap();
        assert!(authenticator.verify(&own).is_ok());
    }

    #[test]
    fn a_set_has_keys_of_these_families() {
        let (x32, x48, x256) = ("A".repeat(43), "A".repeat(64), "A".repeat(342));
        let algorithms = |key: serde_json::Value| {
            let set = serde_json::json!({"keys": [key]}).to_string();
            read(set.as_bytes()).map(|keys| keys[0].2.clone()).unwrap_or_default()
        };
        let curve = |kty: &str, crv: &str, x: &str| serde_json::json!({"kty": kty, "crv": crv, "x": x, "y": x});
        assert_eq!(algorithms(serde_json::json!({"kty": "RSA", "n": x256, "e": "AQAB"})), RSA);
        assert_eq!(algorithms(curve("EC", "P-256", &x32)), [Algorithm::ES256]);
        assert_eq!(algorithms(curve("EC", "P-384", &x48)), [Algorithm::ES384]);
        assert_eq!(algorithms(curve("EC", "P-521", &x48)), []);
        assert_eq!(algorithms(curve("OKP", "Ed25519", &x32)), [Algorithm::EdDSA]);
        assert_eq!(algorithms(curve("OKP", "P-256", &x32)), []);
        assert_eq!(algorithms(serde_json::json!({"kty": "oct", "k": "c2VjcmV0"})), []);
    }

    #[tokio::test]
    async fn an_unusable_url_is_explained() {
        let of = |url: &str| Settings { jwt_jwks_url: Some(url.to_owned()), ..Settings::default() };
        for url in ["", "keys.json", "file:///keys.json", "ftp://host/keys", "https://"] {
            assert!(matches!(Authenticator::new(&of(url)), Err(Error::Fetch { .. })), "{url}");
        }
        // No server listens on this port.
        let away = Authenticator::new(&of("http://user:pass@127.0.0.1:1/keys")).unwrap();
        let error = away.fetch().await.unwrap_err().to_string();
        assert!(error.contains("refused") && !error.contains("pass@"), "{error}");
    }
}
