//! Authentication: verifies bearer tokens (JWT) and extracts a [`Principal`].

mod claims;
mod jwks;

use std::collections::{HashMap, HashSet};
use std::future::{Future, ready};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header::{AUTHORIZATION, COOKIE, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderValue};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, get_current_timestamp};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::metrics;
use crate::problem::{
    AUTHENTICATION_REQUIRED, FORBIDDEN, INVALID_TOKEN, Problem, ProblemType, SUBJECT_BANNED, TOKEN_EXPIRED,
    TOKEN_REVOKED, UNKNOWN_KEY,
};
use crate::request_id;

/// Minimum length of a shared secret, in bytes.
pub const SECRET_BYTES_MIN: usize = 32;
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Tolerated clock difference in seconds: a token is accepted for this time after `exp` and before `nbf`.
pub const LEEWAY_SECONDS: u64 = 5;
const RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// Settings of authentication. At least one source of keys is required. With several, a token that is signed with any
/// of the keys is accepted.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The shared secret for HS256, at least 32 bytes. A process with the secret can also sign tokens.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub jwt_secret: Option<SecretString>,
    /// Path of a PEM file (RSA, EC P-256 or P-384, or Ed25519) or of a JWKS file with public keys. With a private key,
    /// in PKCS#8 PEM, the process can also sign tokens.
    pub jwt_key_file: Option<PathBuf>,
    /// URL of an identity provider's JWKS with its public keys: `https://…` or `http://…`.
    pub jwt_jwks_url: Option<String>,
    /// Issuer URL of an OpenID Connect provider, exactly as in the `iss` of its tokens. Its discovery document names its
    /// JWKS. Only tokens with this `iss` are accepted with these keys.
    pub oidc_issuer: Option<String>,
    /// The required `iss` of a token that is signed with another key than those of `oidc_issuer`.
    pub jwt_issuer: String,
    /// The accepted audiences, separated by commas. A token must have one of them, and may have others as well.
    pub jwt_audience: String,
    /// Path of the claim that contains the audience.
    pub jwt_audience_claim: String,
    /// Path of the claim that contains the subject.
    pub jwt_subject_claim: String,
    /// Path of the claim that contains the role or the roles: names of members, joined by dots.
    pub jwt_role_claim: String,
    /// Mapping from values of the role claim to roles: `VALUE=ROLE`, separated by commas, or a JSON object. Empty: the
    /// claim is `customer`, `staff` or `admin`.
    pub jwt_roles: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            jwt_secret: None,
            jwt_key_file: None,
            jwt_jwks_url: None,
            oidc_issuer: None,
            jwt_issuer: "docket".to_owned(),
            jwt_audience: "docket".to_owned(),
            jwt_audience_claim: "aud".to_owned(),
            jwt_subject_claim: "sub".to_owned(),
            jwt_role_claim: "role".to_owned(),
            jwt_roles: String::new(),
        }
    }
}

/// Errors of reading keys and signing tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No source of keys is configured.
    #[error(
        "no key to verify tokens is configured: set DOCKET_JWT_SECRET (at least 32 bytes), DOCKET_JWT_KEY_FILE (PEM or \
         JWKS), DOCKET_JWT_JWKS_URL or DOCKET_OIDC_ISSUER"
    )]
    NoKey,
    /// The secret is too short to be secure.
    #[error("jwt_secret has {0} bytes but needs at least 32: create it with `openssl rand -hex 32`")]
    ShortSecret(usize),
    /// The key file cannot be read.
    #[error("jwt_key_file: could not read {path:?}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The key file contains no usable key.
    #[error("jwt_key_file: {path:?} contains no usable key: {reason}")]
    Key {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong, and what is required.
        reason: String,
    },
    /// The keys of the URL cannot be fetched, or none of them is usable.
    #[error("jwt_jwks_url: could not use the keys at {url}: {reason}")]
    Fetch {
        /// URL of the key set.
        url: String,
        /// Why the keys cannot be used.
        reason: String,
    },
    /// The discovery document of the issuer cannot be fetched or used.
    #[error("could not use the issuer DOCKET_OIDC_ISSUER {issuer}: {reason}")]
    Discover {
        /// The issuer.
        issuer: String,
        /// Why its discovery document or its keys cannot be used.
        reason: String,
    },
    /// The value of a setting is not valid.
    #[error("{setting}: {allowed}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The setting `jwt_roles` maps no value to the role of a new token.
    #[error("jwt_roles maps no value to the role {}: add one, such as shop-{}={}", .0.as_str(), .0.as_str(), .0.as_str())]
    UnmappedRole(Role),
    /// Only public keys are configured.
    #[error("no key to sign tokens is configured: set DOCKET_JWT_SECRET, or DOCKET_JWT_KEY_FILE with a private key")]
    CannotSign,
    /// The subject is not valid in a token.
    #[error("a subject must have 1 to {} characters {}", kernel::id::CHARS_MAX, kernel::id::RULE)]
    Subject,
    /// Signing failed.
    #[error("could not sign the token: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// The role of a principal. Each role includes the permissions of the roles before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// May read and change its own data.
    Customer,
    /// May read and change all business data.
    Staff,
    /// May also operate the service.
    Admin,
}

impl Role {
    /// Returns the name of the role.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Staff => "staff",
            Self::Admin => "admin",
        }
    }
}

/// The authenticated caller, from a verified token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// The subject of the token (`sub`, or the claim of the setting `jwt_subject_claim`), 1 to 255 characters. For the
    /// role customer it is the customer's id.
    pub subject: String,
    /// The role, from the claim of the setting `jwt_role_claim`.
    pub role: Role,
    /// The token's `jti`, if it has one.
    pub token_id: Option<String>,
    /// The token's `iat`, in seconds since 1970; 0 if the token has none.
    pub issued_at: i64,
    /// The token's `exp`, in seconds since 1970. Long-lived connections must end at this time.
    pub expires_at: i64,
}

impl Principal {
    /// Allows staff and admins only.
    ///
    /// # Errors
    /// 403 (`forbidden`) for customers.
    pub fn staff_only(&self) -> Result<(), Problem> {
        if self.is_staff() { Ok(()) } else { Err(forbidden("staff")) }
    }

    /// Allows admins only.
    ///
    /// # Errors
    /// 403 (`forbidden`) for customers and staff.
    pub fn admin_only(&self) -> Result<(), Problem> {
        if self.is_admin() { Ok(()) } else { Err(forbidden("admin")) }
    }

    /// Whether the role is staff or admin.
    pub fn is_staff(&self) -> bool {
        self.role >= Role::Staff
    }

    /// Whether the role is admin.
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// Whether the principal may access the data of this customer: it is this customer, or it is staff.
    pub fn can_access_customer(&self, customer_id: &str) -> bool {
        self.is_staff() || self.subject == customer_id
    }
}

/// Verifies and signs tokens. Clones share the keys.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    /// Keys from the settings.
    keys: Vec<Key>,
    /// Keys of the last successful fetch from each source. The keys of a source are always replaced as a whole.
    fetched: watch::Sender<[Vec<Key>; jwks::SOURCES]>,
    /// Notified when a token names an unknown key.
    unknown_key: Notify,
    settings: Settings,
    rules: claims::Rules,
    signer: Option<Signer>,
    blocklist: watch::Sender<Blocklist>,
}

/// Callers that are refused although their tokens are valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blocklist {
    /// The revoked tokens.
    pub revoked: Revoked,
    /// The banned subjects, each with the end of its ban in microseconds since 1970; `i64::MAX` for a ban without end.
    pub banned: HashMap<String, i64>,
}

/// Why a caller with a valid token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockReason {
    /// The token was revoked. A token that was issued later is accepted.
    Revoked,
    /// The subject is banned, whatever the token.
    Banned,
}

impl BlockReason {
    /// Returns the problem for the caller: 401 `token-revoked` or 403 `subject-banned`.
    pub fn problem(self) -> Problem {
        match self {
            Self::Revoked => refuse(TOKEN_REVOKED, "The token was revoked. Get a new one."),
            Self::Banned => Problem::new(SUBJECT_BANNED).detail(
                "The subject of the token is banned, so every token of it is refused. Ask the operator of this service.",
            ),
        }
    }
}

impl Blocklist {
    /// Returns why a principal is refused; `None` when it is not.
    pub fn block_reason(&self, principal: &Principal) -> Option<BlockReason> {
        if self.is_banned(&principal.subject) {
            return Some(BlockReason::Banned);
        }
        self.revoked.covers(principal).then_some(BlockReason::Revoked)
    }

    /// Whether a subject is banned now.
    pub fn is_banned(&self, subject: &str) -> bool {
        self.banned.get(subject).is_some_and(|until| jiff::Timestamp::now().as_microsecond() < *until)
    }
}

/// Tokens that are refused although they have not expired.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Revoked {
    /// Revocation time by subject, in seconds since 1970. Tokens that were issued at or before it are revoked.
    pub subjects: HashMap<String, i64>,
    /// `jti` of revoked tokens.
    pub token_ids: HashSet<String>,
}

impl Revoked {
    /// Whether the token of a principal is revoked.
    pub fn covers(&self, principal: &Principal) -> bool {
        self.subjects.get(&principal.subject).is_some_and(|revoked_at| principal.issued_at <= *revoked_at)
            || principal.token_id.as_ref().is_some_and(|id| self.token_ids.contains(id))
    }
}

/// A verification key. Only the algorithms of the key are accepted, whatever the token's header names.
struct Key {
    id: Option<String>,
    decoding: DecodingKey,
    validation: Validation,
}

struct Signer {
    header: Header,
    key: EncodingKey,
}

/// The claims of a token.
type Claims = Map<String, Value>;

impl Authenticator {
    /// Reads the keys from the settings. Call [`Authenticator::fetch_keys`] to fetch those of the URL.
    ///
    /// # Errors
    /// Fails without a source of keys, with a secret shorter than 32 bytes, with a key file that is missing or contains
    /// no usable key, with an invalid URL, and with an unreadable setting of claims.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let rules = claims::Rules::new(settings)?;
        let (mut keys, mut signer) = (Vec::new(), None);
        let mut add = |id, decoding, algorithms: &[Algorithm]| {
            keys.push(Key { id, decoding, validation: validation(&settings.jwt_issuer, algorithms) });
        };
        if let Some(secret) = &settings.jwt_secret {
            let secret = secret.expose_secret().as_bytes();
            if secret.len() < SECRET_BYTES_MIN {
                return Err(Error::ShortSecret(secret.len()));
            }
            add(None, DecodingKey::from_secret(secret), &[Algorithm::HS256]);
            signer = Some(Signer { header: Header::new(Algorithm::HS256), key: EncodingKey::from_secret(secret) });
        }
        if let Some(path) = &settings.jwt_key_file {
            let text = std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
            if text.trim_ascii_start().starts_with(b"{") {
                let set = jwks::read(&text).map_err(|reason| Error::Key { path: path.clone(), reason })?;
                for (id, decoding, algorithms) in set {
                    add(id, decoding, &algorithms);
                }
            } else {
                let (decoding, algorithms, private) = read_pem(path, &text)?;
                add(None, decoding, &algorithms);
                let private = private.map(|key| Signer { header: Header::new(algorithms[0]), key });
                signer = signer.or(private);
            }
        }
        jwks::check(settings)?;
        if keys.is_empty() && !jwks::is_used(settings) {
            return Err(Error::NoKey);
        }
        Ok(Self(Arc::new(Inner {
            keys,
            fetched: watch::channel(Default::default()).0,
            unknown_key: Notify::new(),
            settings: settings.clone(),
            rules,
            signer,
            blocklist: watch::channel(Blocklist::default()).0,
        })))
    }

    /// Verifies the signature, algorithm, `exp`, `nbf`, `iss`, audience, subject and role of a token. Clocks may differ
    /// by 5 seconds.
    ///
    /// # Errors
    /// A 401 problem with the reason: `token-expired`, `token-revoked`, `invalid-token` or `unknown-key`. `unknown-key`
    /// causes a new fetch of the key URLs, so the same token may be accepted soon. 403 `subject-banned` for a banned
    /// subject.
    pub fn verify(&self, token: &str) -> Result<Principal, Problem> {
        let outcome = self.principal_of(token);
        if let Err(problem) = &outcome {
            metrics::count_refused_token(problem.slug());
        }
        outcome
    }

    fn principal_of(&self, token: &str) -> Result<Principal, Problem> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid("The token is longer than 8192 bytes."));
        }
        let is_fetching = jwks::is_used(&self.0.settings);
        let claims = match self.0.keys.as_slice() {
            [key] if !is_fetching => decode(token, key)?,
            keys => match decode_with_any(token, keys.iter().chain(self.0.fetched.borrow().iter().flatten())) {
                Some(outcome) => outcome?,
                None => {
                    let detail = "No known key matches the kid and alg of the token.";
                    if !is_fetching {
                        return Err(invalid(detail));
                    }
                    self.0.unknown_key.notify_one();
                    return Err(refuse(UNKNOWN_KEY, detail));
                }
            },
        };
        let rules = &self.0.rules;
        rules.check_audience(&claims).map_err(invalid)?;
        let subject = rules.subject(&claims).map_err(invalid)?.to_owned();
        let role = rules.role(&claims).map_err(invalid)?;
        // The casts saturate, so a number beyond i64 means no practical expiry.
        let expires_at = claims.get("exp").and_then(Value::as_f64).unwrap_or_default() as i64;
        let issued_at = match claims.get("iat") {
            None | Some(Value::Null) => 0,
            Some(time) => time.as_f64().ok_or_else(|| invalid("The claim iat must be a number."))? as i64,
        };
        let token_id = match claims.get("jti") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(invalid("The claim jti must be a text.")),
        };
        let principal = Principal { subject, role, token_id, issued_at, expires_at };
        match self.block_reason(&principal) {
            Some(reason) => Err(reason.problem()),
            None => Ok(principal),
        }
    }

    /// Signs a token that [`Authenticator::verify`] accepts from now until `ttl` has passed.
    ///
    /// # Errors
    /// Fails if only public keys are configured, if the subject is not valid in a token, or if the setting `jwt_roles`
    /// maps no value to the role.
    pub fn sign(&self, subject: &str, role: Role, ttl: Duration) -> Result<String, Error> {
        let Signer { header, key } = self.0.signer.as_ref().ok_or(Error::CannotSign)?;
        if !kernel::id::is_valid(subject, kernel::id::CHARS_MAX) {
            return Err(Error::Subject);
        }
        let now = get_current_timestamp();
        let mut claims = Claims::new();
        self.0.rules.write(&mut claims, subject, role)?;
        claims.insert("iss".to_owned(), self.0.settings.jwt_issuer.as_str().into());
        claims.insert("jti".to_owned(), Uuid::now_v7().to_string().into());
        for (name, time) in [("iat", now), ("nbf", now), ("exp", now.saturating_add(ttl.as_secs()))] {
            claims.insert(name.to_owned(), time.into());
        }
        Ok(jsonwebtoken::encode(header, &claims, key)?)
    }

    /// Replaces the set of revoked tokens.
    pub fn revoke(&self, revoked: Revoked) {
        self.0.blocklist.send_if_modified(|known| {
            let changed = known.revoked != revoked;
            known.revoked = revoked;
            changed
        });
    }

    /// Replaces the banned subjects: the end of each ban by subject, in microseconds since 1970; `i64::MAX` for a ban
    /// without end.
    pub fn ban(&self, banned: HashMap<String, i64>) {
        metrics::record_bans(banned.len());
        self.0.blocklist.send_if_modified(|known| {
            let changed = known.banned != banned;
            known.banned = banned;
            changed
        });
    }

    /// Returns why a principal is refused since its verification; `None` when it is not refused.
    pub fn block_reason(&self, principal: &Principal) -> Option<BlockReason> {
        self.0.blocklist.borrow().block_reason(principal)
    }

    /// Whether a subject is banned.
    pub fn is_banned(&self, subject: &str) -> bool {
        self.0.blocklist.borrow().is_banned(subject)
    }

    /// Subscribes to changes of the revoked tokens and the banned subjects, so that long-lived connections end.
    pub fn blocklist(&self) -> watch::Receiver<Blocklist> {
        self.0.blocklist.subscribe()
    }

    /// Returns the principal of a request. The result is cached in the request's extensions, because the rate limiter
    /// and the handler both call this method.
    ///
    /// # Errors
    /// A 401 problem: `authentication-required` without a bearer token, else an error of [`Authenticator::verify`].
    pub fn authenticate(&self, parts: &mut Parts) -> Result<Principal, Problem> {
        if let Some(Outcome(outcome)) = parts.extensions.get() {
            return outcome.clone();
        }
        let outcome = bearer(parts).and_then(|token| self.verify(token));
        parts.extensions.insert(Outcome(outcome.clone()));
        outcome
    }
}

/// Returns the 403 problem of a principal without the required role.
pub fn forbidden(needs: &str) -> Problem {
    Problem::new(FORBIDDEN).detail(format!("This operation requires the role {needs}."))
}

/// Returns the subject of an authenticated request.
pub(crate) fn subject(extensions: &Extensions) -> Option<&str> {
    extensions.get().and_then(|Outcome(outcome)| outcome.as_ref().ok()).map(|principal| principal.subject.as_str())
}

#[derive(Clone)]
struct Outcome(Result<Principal, Problem>);

impl<S> FromRequestParts<S> for Principal
where
    Authenticator: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Problem;

    fn from_request_parts(parts: &mut Parts, state: &S) -> impl Future<Output = Result<Self, Problem>> + Send {
        ready(Authenticator::from_ref(state).authenticate(parts).inspect(|who| request_id::set_user(&who.subject)))
    }
}

/// Returns the checks of the library. The audience and the subject are checked by [`claims::Rules`].
fn validation(issuer: &str, algorithms: &[Algorithm]) -> Validation {
    let mut validation = Validation::new(algorithms[0]);
    validation.algorithms = algorithms.to_vec();
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation.validate_aud = false;
    validation.set_issuer(&[issuer]);
    validation.set_required_spec_claims(&["exp", "iss"]);
    validation
}

fn bearer(parts: &Parts) -> Result<&str, Problem> {
    let required = |detail: &str| {
        Problem::new(AUTHENTICATION_REQUIRED)
            .detail(detail)
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    };
    let Some(value) = parts.headers.get(AUTHORIZATION) else {
        return Err(required(match parts.headers.contains_key(COOKIE) {
            true => {
                "Send the header Authorization: Bearer <JWT>. Cookies are accepted for live updates only, with an allowed Origin."
            }
            false => "Send the header Authorization: Bearer <JWT>.",
        }));
    };
    match value.to_str().unwrap_or_default().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim_start()),
        _ => Err(required("The header Authorization must have the form Bearer <JWT>.")),
    }
}

fn decode(token: &str, key: &Key) -> Result<Claims, Problem> {
    let token = jsonwebtoken::decode(token, &key.decoding, &key.validation).map_err(|error| refusal(error.kind()))?;
    // RFC 7515 requires refusing a token with critical extensions that the verifier does not support.
    if token.header.crit.is_some() {
        return Err(invalid("The token has the header parameter crit, but no extensions are supported."));
    }
    Ok(token.claims)
}

/// Tries the keys that match the token's `alg` and `kid`. A key matches any `kid` if the token or the key has none.
/// Returns `None` if no key matches.
fn decode_with_any<'a>(token: &str, keys: impl Iterator<Item = &'a Key>) -> Option<Result<Claims, Problem>> {
    let header = match jsonwebtoken::decode_header(token) {
        Ok(header) => header,
        Err(error) => return Some(Err(refusal(error.kind()))),
    };
    let mut outcome = None;
    for key in keys {
        let meant = header.kid.is_none() || key.id.is_none() || header.kid == key.id;
        if meant && key.validation.algorithms.contains(&header.alg) {
            outcome = Some(decode(token, key));
            if matches!(outcome, Some(Ok(_))) {
                break;
            }
        }
    }
    outcome
}

fn refusal(kind: &ErrorKind) -> Problem {
    match kind {
        ErrorKind::ExpiredSignature => refuse(TOKEN_EXPIRED, "The token expired. Get a new one."),
        ErrorKind::ImmatureSignature => invalid("The token is not valid yet (nbf)."),
        ErrorKind::InvalidIssuer => invalid("The token has a wrong issuer (iss)."),
        ErrorKind::InvalidSignature => invalid("The signature of the token is wrong."),
        ErrorKind::InvalidAlgorithm => invalid("The alg of the token is not allowed for this key."),
        ErrorKind::MissingRequiredClaim(name) => invalid(format!("The token lacks the claim {name}.")),
        ErrorKind::InvalidClaimFormat(name) => invalid(format!("The claim {name} of the token has a wrong type.")),
        _ => invalid("The token is not a well-formed JWT."),
    }
}

fn invalid(detail: impl Into<String>) -> Problem {
    refuse(INVALID_TOKEN, detail)
}

fn refuse(kind: ProblemType, detail: impl Into<String>) -> Problem {
    let detail = detail.into();
    // A quoted string of a header. Names of claims may contain characters that it cannot.
    let plain: String = detail.chars().filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')).collect();
    let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{plain}\"");
    let challenge = HeaderValue::from_str(&challenge).expect("the text is printable ASCII");
    Problem::new(kind).detail(detail).header(WWW_AUTHENTICATE, challenge)
}

type Pem = (DecodingKey, Vec<Algorithm>, Option<EncodingKey>);

/// Reads a private or public key in PEM. The first algorithm of the result is used for signing.
fn read_pem(path: &Path, text: &[u8]) -> Result<Pem, Error> {
    let families = [
        (EncodingKey::from_rsa_pem(text), Algorithm::RS256, RSA),
        (EncodingKey::from_ec_pem(text), Algorithm::ES256, &[Algorithm::ES256]),
        (EncodingKey::from_ec_pem(text), Algorithm::ES384, &[Algorithm::ES384]),
        (EncodingKey::from_ed_pem(text), Algorithm::EdDSA, &[Algorithm::EdDSA]),
    ];
    for (private, algorithm, algorithms) in families {
        // If no public key can be derived, the text has another key family or curve, or is not a private key.
        if let Ok(private) = private
            && let Ok(jwk) = Jwk::from_encoding_key(&private, algorithm)
            && let Ok(public) = DecodingKey::from_jwk(&jwk)
        {
            return Ok((public, algorithms.to_vec(), Some(private)));
        }
    }
    let ec = DecodingKey::from_ec_pem(text).ok().and_then(|key| match key.try_get_as_bytes().map(<[u8]>::len) {
        Ok(65) => Some((key, vec![Algorithm::ES256], None)),
        Ok(97) => Some((key, vec![Algorithm::ES384], None)),
        _ => None,
    });
    let ed = || DecodingKey::from_ed_pem(text).ok().map(|key| (key, vec![Algorithm::EdDSA], None));
    let rsa = || DecodingKey::from_rsa_pem(text).ok().map(|key| (key, RSA.to_vec(), None));
    ec.or_else(ed).or_else(rsa).ok_or_else(|| Error::Key {
        path: path.to_owned(),
        reason: "use a PEM key (RSA, EC P-256 or P-384, or Ed25519; PUBLIC KEY, or PRIVATE KEY in PKCS#8) or a JWKS"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use jsonwebtoken::jwk::JwkSet;
    use serde_json::json;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const TTL: Duration = Duration::from_secs(60);
    pub(super) const P256: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgEnMXdhtN9X37m1+9
/8y9ClAuDnTl96wQd+SBF3BDusehRANCAARpCaQRZr3rByeJ6Bz75KXoN1hTNFTF
8KzGPExmllttw5jpKw+iBnEO9PvbCwotVSLPa/L06kzlCUn2n7K4beEe
-----END PRIVATE KEY-----
";
    const P384: &str = "-----BEGIN PRIVATE KEY-----
MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDBZDdzfRZQztstBuf4m
j55ODD53qagjdjqZ3EeBGBLiSJT8rlhCL6NnRadtM+yRXK2hZANiAASARjmyfNRP
gbIv9WButh9Pldcm+sDkBy/tisdke6dwG+V5y8yAVe1nSJ13mkULDa1lwlXcRxhj
0hEYorJ2su957xWgvS0aMvn4hfHKBu4Ca/YaOjjcmpHRzcG8zXY7VjQ=
-----END PRIVATE KEY-----
";
    pub(super) const ED: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEICFLgHWlaagrZPHGCkWM0yWnzYBJD5sIgpvnkHCLHo6T
-----END PRIVATE KEY-----
";
    const RSA_2048: &str = "-----BEGIN PRIVATE KEY-----
MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQDTuV+g4Xl4dsXy
CUh9i4RmrhxTIZDjMX3SK6gQrOJs9yeft002628ElUaz1Y+3hoyBvYwB9wipRklq
yrVISsRsJmMnu9B6s7fwTslm3JMgquuNKknM/TR6eo7wVPaR0vK3oRyRrkdF0MJ+
DX+WbUIKo58IqpcfH1qpao3WIJxKeHYmXHwChmpKZVwUwA7+3FG9dUPWLh2myHAN
5C6XTkQj8h/xjKLLVAaBALgU+QfmZgmN5bjT5Nw4LDqtgSg2fy/li3hCap2VrE/w
yDjoneUC9qCFx7/oetnte9PYB1DneYH4hElYu7Q7/xu4vzfxLfKYHiA9HTg8e63m
XLNpzQElAgMBAAECggEAFnSC8K5xQmZAdLzo0A3nxzcgoG1/LyVs3YlNTCV1504o
SO95NEGwltkZNFIKadHOnaUDkCLJ66AdgcLJiscJQZopqoloIVdlwwosIKl0vkJ6
dJCfXqsdMX9FoTY1p34qyXCANfA4tW4gbpuSZFsmpbe4UoQ7Pm0GIdFABU2Une4q
25kuMWS+OhkViB7G2KOQ4xIiQ6hnXypFCnW7soXEBavhSGJ2HywrpT39ejrP5EmO
WF75HavQ0lzl8tzIhEeXUKavj4C7TY8oRUSZ0aSSJ7UfXFyUXruomrhSGvK3osed
g1H5Hg0DSpJQmg7MoELlWpqCAB5mQ3QX7xCA6phXiQKBgQDv/4BNDJ9Ouy0krZ9R
d5w37OJ+84wnHWCuuNcC44zaOv/1UE58xm9uz4IGp6a70yr2toyG+7/dXKeR89p+
kXhbPPMIwzVzUuxee8DORfWDdUkdENmSt0KLdZ0YMHzBLhC9qSiemhqK8gxwdHzr
Ga5w0Hy88nwd7GYqeaRmJC7znQKBgQDh10SRpTM9vnrrxeGtr2Fpwndo+RyNbdK9
ihiEl67LUeOXr0HLZIDmIJIkBsPslpa/yn32FzNxTUeZ2GMEwtikRdDcgicOkmW2
76bfCeEim+SzmqWmDKfFXvdVQ8rPKj1Xj5msa2f1xN2yY4p9kP6PFbm6oWo9IeBM
IIK2zmfhKQKBgE4SGGN4Eq6i1umSjTwMI8ZRidBwW4wx00yjFlZ7PUuUW8UqTY3r
Yz5xxENz8BozdEtzUL1sUZqp1Fz3LYF0wukzJ4AXOGD+faOysCKpwVb1JUaOP6ip
cr05ElRXGY4h9RItX+hQCwhd+svuKOC1pvhN6fXxD40QZJ+2mFMdvCRFAoGBANL8
M1kFxutGCrw9r+p9UDpnrPrqz5vpH9pnKySkOG5GYKOS3ZrQmANmJmF12JAs10Ty
Pd8sKakOE3hMyaTnC1Hcz5VSGn7okhHnrjPsnOGiVnTcYyjP5eTkJZkIrm3//jLR
OzXzWbonYx6HFBje3pJ6L3uF1SSrg0pbjQKPrkiRAoGAaeitRqJzYs8ScaP7xNJj
mXCQnSAk5ws9Sh5+QyS2gEDxhmDBtcBwcj+tc9tKn9zZzuLFZAasA0ksvl6+eiaU
+Wi5u+N/8qeBMfDDoa9eCeyaewNe3G9bKi+s+aFnoBDmXB4h18q67L8UvTvR68xv
IY8wd/eGGHXlDqWt9QVeCEY=
-----END PRIVATE KEY-----
";
    const P256_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaQmkEWa96wcniegc++Sl6DdYUzRU
xfCsxjxMZpZbbcOY6SsPogZxDvT72wsKLVUiz2vy9OpM5QlJ9p+yuG3hHg==
-----END PUBLIC KEY-----
";
    const P384_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEgEY5snzUT4GyL/VgbrYfT5XXJvrA5Acv
7YrHZHuncBvlecvMgFXtZ0idd5pFCw2tZcJV3EcYY9IRGKKydrLvee8VoL0tGjL5
+IXxygbuAmv2Gjo43JqR0c3BvM12O1Y0
-----END PUBLIC KEY-----
";
    const ED_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAX/RwmIIFhV8UZblSAEpVsW9EYbGlKoKlY2PBdSU12Zs=
-----END PUBLIC KEY-----
";
    const RSA_2048_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA07lfoOF5eHbF8glIfYuE
Zq4cUyGQ4zF90iuoEKzibPcnn7dNNutvBJVGs9WPt4aMgb2MAfcIqUZJasq1SErE
bCZjJ7vQerO38E7JZtyTIKrrjSpJzP00enqO8FT2kdLyt6Ecka5HRdDCfg1/lm1C
CqOfCKqXHx9aqWqN1iCcSnh2Jlx8AoZqSmVcFMAO/txRvXVD1i4dpshwDeQul05E
I/If8Yyiy1QGgQC4FPkH5mYJjeW40+TcOCw6rYEoNn8v5Yt4QmqdlaxP8Mg46J3l
Avaghce/6HrZ7XvT2AdQ53mB+IRJWLu0O/8buL838S3ymB4gPR04PHut5lyzac0B
JQIDAQAB
-----END PUBLIC KEY-----
";

    fn by_secret() -> Authenticator {
        Authenticator::new(&Settings { jwt_secret: Some(SECRET.into()), ..Settings::default() }).unwrap()
    }

    fn by_file(text: &str) -> Result<Authenticator, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Authenticator::new(&Settings { jwt_key_file: Some(file.path().to_owned()), ..Settings::default() })
    }

    pub(super) fn claims() -> Value {
        let now = get_current_timestamp();
        json!({"sub": "c-1", "role": "customer", "iss": "docket", "aud": "docket", "nbf": now, "exp": now + 60})
    }

    fn sign(algorithm: Algorithm, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
    }

    /// Changes the claims of a valid token with `change`, and returns the slug and text of the refusal.
    fn refused(change: impl Fn(&mut Value)) -> (&'static str, String) {
        let mut claims = claims();
        change(&mut claims);
        let problem = by_secret().verify(&sign(Algorithm::HS256, &claims)).unwrap_err();
        assert_eq!(problem.status(), 401);
        (problem.slug(), problem.to_string())
    }

    #[test]
    fn a_signed_token_is_accepted() {
        let principal = by_secret().verify(&by_secret().sign("c-1", Role::Staff, TTL).unwrap()).unwrap();
        assert_eq!((principal.subject.as_str(), principal.role), ("c-1", Role::Staff));
        assert!(principal.token_id.is_some());
        assert!((principal.expires_at - get_current_timestamp() as i64 - 60).abs() <= 1);
    }

    #[test]
    fn audience_lists_and_fractional_seconds_are_accepted() {
        let mut claims = claims();
        claims["aud"] = json!(["elsewhere", "docket"]);
        claims["exp"] = json!(claims["exp"].as_f64().unwrap() + 0.5);
        let principal = by_secret().verify(&sign(Algorithm::HS256, &claims)).unwrap();
        assert_eq!((principal.token_id, principal.role), (None, Role::Customer));
    }

    #[test]
    fn another_algorithm_is_refused() {
        let token = sign(Algorithm::HS512, &claims());
        assert_eq!(by_secret().verify(&token).unwrap_err().slug(), "invalid-token");
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJjLTEifQ.";
        assert_eq!(by_secret().verify(none).unwrap_err().slug(), "invalid-token");
        // Algorithm confusion attack: the text of the public key is used as a shared secret.
        let key = EncodingKey::from_secret(RSA_2048_PUBLIC.as_bytes());
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &key).unwrap();
        assert_eq!(by_file(RSA_2048_PUBLIC).unwrap().verify(&token).unwrap_err().slug(), "invalid-token");
    }

    #[test]
    fn each_claim_is_required() {
        for name in ["exp", "iss", "aud", "sub", "role"] {
            let (slug, detail) = refused(|claims| drop(claims.as_object_mut().unwrap().remove(name)));
            assert_eq!(slug, "invalid-token");
            assert!(detail.contains(name), "{detail}");
        }
    }

    #[test]
    fn each_claim_is_checked() {
        let now = get_current_timestamp();
        let cases = [
            ("exp", json!(now - 7), "token-expired"),
            ("exp", json!("tomorrow"), "invalid-token"),
            ("nbf", json!(now + 30), "invalid-token"),
            ("iss", json!("other"), "invalid-token"),
            ("aud", json!("other"), "invalid-token"),
            ("aud", json!(["other"]), "invalid-token"),
            ("sub", json!(""), "invalid-token"),
            ("sub", json!("x".repeat(256)), "invalid-token"),
            ("sub", json!(7), "invalid-token"),
            ("sub", json!("a\u{0}b"), "invalid-token"),
            ("sub", json!(" c-1"), "invalid-token"),
            ("sub", json!("e\u{301}"), "invalid-token"),
            ("role", json!("root"), "invalid-token"),
            ("iat", json!("today"), "invalid-token"),
            ("jti", json!(7), "invalid-token"),
        ];
        for (name, value, slug) in cases {
            assert_eq!(refused(|claims| claims[name] = value.clone()).0, slug, "{name} {value}");
        }
    }

    #[test]
    fn a_clock_skew_of_seconds_is_tolerated() {
        let mut claims = claims();
        claims["exp"] = json!(get_current_timestamp() - 3);
        claims["nbf"] = json!(get_current_timestamp() + 3);
        assert!(by_secret().verify(&sign(Algorithm::HS256, &claims)).is_ok());
    }

    #[test]
    fn a_critical_header_parameter_is_refused() {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        for crit in [vec!["b64"], vec!["exp"], vec!["https://example.org/unknown"], vec![]] {
            let crit = crit.into_iter().map(str::to_owned).collect();
            let header = Header { crit: Some(crit), ..Header::new(Algorithm::HS256) };
            let token = jsonwebtoken::encode(&header, &claims(), &key).unwrap();
            let problem = by_secret().verify(&token).unwrap_err();
            assert_eq!((problem.slug(), problem.to_string().contains("crit")), ("invalid-token", true), "{problem}");
        }
    }

    #[test]
    fn a_changed_or_foreign_token_is_refused() {
        let token = by_secret().sign("c-1", Role::Customer, TTL).unwrap();
        let (rest, signature) = token.rsplit_once('.').unwrap();
        let other = by_secret().sign("c-2", Role::Admin, TTL).unwrap();
        let forged = format!("{}.{signature}", other.rsplit_once('.').unwrap().0);
        for token in ["", "a", "a.b", "a.b.c", rest, &forged, &"x".repeat(9000), "\u{e9}.\u{e9}.\u{e9}"] {
            assert_eq!(by_secret().verify(token).unwrap_err().slug(), "invalid-token", "{token}");
        }
    }

    #[test]
    fn unusable_keys_are_refused_with_a_reason() {
        let error = |settings: &Settings| Authenticator::new(settings).err().unwrap().to_string();
        assert!(error(&Settings::default()).contains("DOCKET_JWT_SECRET"));
        let short = Settings { jwt_secret: Some(SECRET[1..].into()), ..Settings::default() };
        assert!(error(&short).contains("has 31 bytes"));
        let missing = Settings { jwt_key_file: Some("no/such/file".into()), ..Settings::default() };
        assert!(error(&missing).contains("no/such/file"));
        for text in ["", "junk", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#] {
            assert!(matches!(by_file(text), Err(Error::Key { .. })), "{text}");
        }
        assert!(!format!("{short:?}").contains(&SECRET[1..]), "a secret must not be printed");
    }

    #[test]
    fn a_private_key_signs_and_its_public_key_verifies() {
        let pairs = [(P256, P256_PUBLIC), (P384, P384_PUBLIC), (ED, ED_PUBLIC), (RSA_2048, RSA_2048_PUBLIC)];
        for (private, public) in pairs {
            let (private, public) = (by_file(private).unwrap(), by_file(public).unwrap());
            let token = private.sign("c-1", Role::Admin, TTL).unwrap();
            assert_eq!(private.verify(&token).unwrap(), public.verify(&token).unwrap());
            assert!(matches!(public.sign("c-1", Role::Admin, TTL), Err(Error::CannotSign)));
            assert!(by_secret().verify(&token).is_err());
        }
    }

    #[test]
    fn the_key_of_a_set_is_selected_by_kid_and_alg() {
        let jwk = |pem: EncodingKey, algorithm, id: &str| {
            let mut jwk = Jwk::from_encoding_key(&pem, algorithm).unwrap();
            jwk.common.key_id = Some(id.to_owned());
            jwk
        };
        let (p256, ed) =
            (EncodingKey::from_ec_pem(P256.as_bytes()).unwrap(), EncodingKey::from_ed_pem(ED.as_bytes()).unwrap());
        let keys = vec![jwk(p256, Algorithm::ES256, "one"), jwk(ed.clone(), Algorithm::EdDSA, "two")];
        let set = by_file(&serde_json::to_string(&JwkSet { keys }).unwrap()).unwrap();
        let token = |id: Option<&str>| {
            let header = Header { kid: id.map(str::to_owned), ..Header::new(Algorithm::EdDSA) };
            jsonwebtoken::encode(&header, &claims(), &ed).unwrap()
        };
        assert!(set.verify(&token(Some("two"))).is_ok());
        assert!(set.verify(&token(None)).is_ok());
        assert_eq!(set.verify(&token(Some("one"))).unwrap_err().slug(), "invalid-token");
        assert_eq!(set.verify(&token(Some("three"))).unwrap_err().slug(), "invalid-token");
        assert_eq!(set.verify(&sign(Algorithm::HS256, &claims())).unwrap_err().slug(), "invalid-token");
    }

    #[test]
    fn a_customer_can_access_only_its_own_data() {
        let of = |role| Principal { subject: "c-1".to_owned(), role, token_id: None, issued_at: 0, expires_at: 0 };
        let (customer, staff, admin) = (of(Role::Customer), of(Role::Staff), of(Role::Admin));
        assert!(
            customer.can_access_customer("c-1")
                && !customer.can_access_customer("c-2")
                && !customer.is_staff()
                && !customer.is_admin()
        );
        assert!(staff.can_access_customer("c-2") && staff.is_staff() && !staff.is_admin());
        assert!(admin.can_access_customer("c-2") && admin.is_staff() && admin.is_admin());
        let allowed = |result: Result<(), Problem>| match result {
            Ok(()) => true,
            Err(problem) => {
                assert_eq!((problem.status().as_u16(), problem.slug()), (403, "forbidden"));
                false
            }
        };
        let staff_only = [&customer, &staff, &admin].map(|one| allowed(one.staff_only()));
        let admin_only = [&customer, &staff, &admin].map(|one| allowed(one.admin_only()));
        assert_eq!((staff_only, admin_only), ([false, true, true], [false, false, true]));
    }

    #[test]
    fn a_token_has_at_most_8_kib() {
        let with_bytes = |bytes: usize| {
            let mut claims = claims();
            claims["note"] = "x".repeat(bytes).into();
            sign(Algorithm::HS256, &claims)
        };
        let longest = (5_800..6_100).map(with_bytes).find(|token| token.len() == 8_192).expect("a token of 8192 bytes");
        assert!(by_secret().verify(&longest).is_ok());
        let problem = by_secret().verify(&with_bytes(6_100)).unwrap_err();
        assert_eq!((problem.status().as_u16(), problem.slug()), (401, "invalid-token"));
        assert!(problem.to_string().contains("8192"), "{problem}");
    }

    #[test]
    fn a_refusal_names_its_reason() {
        let now = get_current_timestamp();
        let claim = |name: &str, value: Value| refused(|claims| claims[name] = value.clone()).1;
        let other = EncodingKey::from_secret(&[7; 32]);
        let of = |token: &str| by_secret().verify(token).unwrap_err().to_string();
        let wrong_key = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &other).unwrap();
        for (text, reason) in [
            (claim("nbf", json!(now + 30)), "not valid yet"),
            (claim("iss", json!("other")), "issuer"),
            (claim("aud", json!("other")), "audience"),
            (claim("exp", json!(now - 30)), "expired"),
            (of(&wrong_key), "signature"),
            (of(&sign(Algorithm::HS512, &claims())), "alg"),
            (of("no token"), "well-formed"),
        ] {
            assert!(text.contains(reason), "{text}: expected {reason}");
        }
    }

    #[test]
    fn revoked_tokens_are_refused() {
        let authenticator = by_secret();
        let principal = |subject: &str, token_id: Option<&str>, issued_at| Principal {
            subject: subject.to_owned(),
            role: Role::Customer,
            token_id: token_id.map(str::to_owned),
            issued_at,
            expires_at: i64::MAX,
        };
        let subjects = HashMap::from([("ada".to_owned(), 100)]);
        let revoked = Revoked { subjects, token_ids: HashSet::from(["t-1".to_owned()]) };
        let mut changes = authenticator.blocklist();
        changes.mark_unchanged();
        assert!(authenticator.block_reason(&principal("ada", Some("t-1"), 1)).is_none(), "nothing is revoked yet");
        authenticator.revoke(revoked.clone());
        assert!(changes.has_changed().unwrap());
        for (subject, token_id, issued_at, expected) in [
            ("ada", None, 99, true),
            ("ada", None, 100, true),
            ("ada", None, 101, false),
            ("ada", Some("t-1"), 101, true),
            ("bob", Some("t-1"), 500, true),
            ("bob", Some("t-2"), 1, false),
        ] {
            let principal = principal(subject, token_id, issued_at);
            assert_eq!(authenticator.block_reason(&principal) == Some(BlockReason::Revoked), expected, "{principal:?}");
        }
        changes.mark_unchanged();
        authenticator.revoke(revoked);
        assert!(!changes.has_changed().unwrap(), "an equal set wakes no connection");
        let mut claims = claims();
        claims["jti"] = "t-1".into();
        assert_eq!(authenticator.verify(&sign(Algorithm::HS256, &claims)).unwrap_err().slug(), "token-revoked");
    }

    #[test]
    fn a_banned_subject_is_refused_whatever_its_token() {
        let authenticator = by_secret();
        let token = |subject: &str| authenticator.sign(subject, Role::Admin, TTL).unwrap();
        let (ada, bob) = (token("ada"), token("bob"));
        let now = jiff::Timestamp::now().as_microsecond();
        let mut changes = authenticator.blocklist();
        changes.mark_unchanged();
        authenticator.ban(HashMap::from([("ada".to_owned(), i64::MAX), ("bob".to_owned(), now - 1)]));
        assert!(changes.has_changed().unwrap());
        for token in [ada.clone(), token("ada")] {
            let problem = authenticator.verify(&token).unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.slug()), (403, "subject-banned"));
        }
        assert!(authenticator.verify(&bob).is_ok(), "the ban of bob has ended");
        assert!(authenticator.verify(&token("Ada")).is_ok(), "another subject");
        // A token that was revoked stays revoked after the ban.
        let revoked = Revoked { subjects: HashMap::from([("ada".to_owned(), now / 1_000_000)]), ..Revoked::default() };
        authenticator.revoke(revoked);
        assert_eq!(authenticator.verify(&ada).unwrap_err().slug(), "subject-banned");
        authenticator.ban(HashMap::new());
        assert_eq!(authenticator.verify(&ada).unwrap_err().slug(), "token-revoked");
    }

    #[test]
    fn a_signed_token_has_the_configured_claims() {
        let settings = Settings {
            jwt_secret: Some(SECRET.into()),
            jwt_audience: "shop,other".into(),
            jwt_audience_claim: "azp".into(),
            jwt_subject_claim: "oid".into(),
            jwt_role_claim: "realm_access.roles".into(),
            jwt_roles: "shop-admin=admin,shopper=customer".into(),
            ..Settings::default()
        };
        let authenticator = Authenticator::new(&settings).unwrap();
        let token = authenticator.sign("auth0|7", Role::Admin, TTL).unwrap();
        let principal = authenticator.verify(&token).unwrap();
        assert_eq!((principal.subject.as_str(), principal.role), ("auth0|7", Role::Admin));
        assert!(authenticator.sign("x", Role::Staff, TTL).unwrap_err().to_string().contains("jwt_roles"));
        // The path also leads into objects and lists.
        let mut claims = claims();
        claims["oid"] = "7".into();
        claims["azp"] = "other".into();
        claims["realm_access"] = json!({"roles": ["offline_access", "shopper"]});
        let principal = authenticator.verify(&sign(Algorithm::HS256, &claims)).unwrap();
        assert_eq!((principal.subject.as_str(), principal.role), ("7", Role::Customer));
        claims["realm_access"] = json!({"roles": ["admin"]});
        let problem = authenticator.verify(&sign(Algorithm::HS256, &claims)).unwrap_err();
        assert!(problem.to_string().contains("realm_access.roles"), "{problem}");
    }

    #[test]
    fn the_subject_is_known_after_the_authentication() {
        let token = by_secret().sign("c-1", Role::Customer, TTL).unwrap();
        let request = Request::builder().header(AUTHORIZATION, format!("Bearer {token}")).body(()).unwrap();
        let mut parts = request.into_parts().0;
        assert_eq!(subject(&parts.extensions), None);
        by_secret().authenticate(&mut parts).unwrap();
        assert_eq!(subject(&parts.extensions), Some("c-1"));
    }

    async fn extract(authorization: Option<&str>) -> Result<Principal, Problem> {
        let mut request = Request::builder();
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let first = Principal::from_request_parts(&mut parts, &by_secret()).await;
        parts.headers.clear();
        let again = Principal::from_request_parts(&mut parts, &by_secret()).await;
        assert_eq!(first.as_ref().ok(), again.as_ref().ok(), "the outcome is cached");
        first
    }

    #[tokio::test]
    async fn the_extractor_reads_the_bearer_token() {
        let token = by_secret().sign("c-1", Role::Customer, TTL).unwrap();
        for scheme in ["Bearer", "bearer"] {
            assert_eq!(extract(Some(&format!("{scheme} {token}"))).await.unwrap().subject, "c-1");
        }
        for value in [None, Some("Basic YTpi"), Some(token.as_str()), Some("Bearer")] {
            assert_eq!(extract(value).await.unwrap_err().slug(), "authentication-required");
        }
    }

    #[tokio::test]
    async fn a_refusal_has_a_www_authenticate_challenge() {
        use axum::response::IntoResponse;
        let response = extract(None).await.unwrap_err().into_response();
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
        let response = extract(Some("Bearer x")).await.unwrap_err().into_response();
        assert_eq!(
            response.headers()[WWW_AUTHENTICATE],
            "Bearer error=\"invalid_token\", error_description=\"The token is not a well-formed JWT.\""
        );
    }
}
