//! Credentials and the signature of a request.
//!
//! Invariants: they are looked for (see `sources`) once for all shards, again when they run out, and when the store no
//! longer lets in who signed for a time; whoever bears a web identity is that or nobody, so where its role is refused, or
//! not given just now, nothing behind it is asked; no error, log or debug text holds a secret, because none of them is
//! made from a request's headers or body, nor from an error that may quote one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::request::Parts;
use mover_base::{Error, Kind, Result};
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::time::Timestamp;
use reqsign_core::{Context, ErrorKind, OsEnv, ProvideCredential, SignRequest, Signer};

use super::chunked::{Seal, SealSlot};
use super::client::innermost;
use super::location::Location;
use super::sources::{
    CredentialServices, Files, OF_FILE, OF_SERVICE, OF_SSO, OF_WEB_IDENTITY, Sources, Wish,
    causes_of,
};

/// How often the same credentials are doubted because the store does not let in who signed: most often what is missing is a
/// right, and there are no others.
const DOUBT_EVERY: Duration = Duration::from_secs(60);
/// The header that bears the token of credentials for a time.
const TOKEN_HEADER: &str = "x-amz-security-token";
/// How its refusals are told that no later try changes. The others may be of a token that is about to be replaced, or of
/// a service behind it.
const REFUSALS: [&str; 3] = [
    "error_code: AccessDenied",
    "error_code: IDPRejectedClaim",
    "error_code: InvalidIdentityToken",
];
/// Signs requests for one location; shared by all shards.
pub(super) struct Signature {
    region: String,
    sources: Arc<Sources>,
    services: CredentialServices,
    current: Mutex<Current>,
    /// When those that sign were doubted last.
    doubted: tokio::sync::Mutex<Option<(Edition, Instant)>>,
}

/// What signs at present, and how many did before.
struct Current {
    signer: Signer<Credential>,
    edition: Edition,
}

/// Counts the credentials that signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edition(u64);

/// Tells which credentials signed a request.
pub(super) struct SignedBy {
    edition: Edition,
    /// Their token, where they hold for a time.
    token: Option<HeaderValue>,
}

impl SignedBy {
    /// Whether they hold for a time, so that others may follow them.
    pub fn is_for_a_time(&self) -> bool {
        self.token.is_some()
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signature")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl Signature {
    pub fn new(location: &Location) -> Self {
        let (region, sources) = (&location.region, Sources::new(Wish::new(location)));
        let sources = Arc::new(sources);
        let services = CredentialServices {
            ca: location.ca.clone(),
        };
        let signer = signer(region, &sources, &services);
        let edition = Edition(0);
        Signature {
            region: region.clone(),
            sources,
            services,
            current: Mutex::new(Current { signer, edition }),
            doubted: tokio::sync::Mutex::default(),
        }
    }

    /// Adds date, token and signature to a request's headers. A request that bears a slot for a seal gets one.
    pub async fn sign(&self, parts: &mut Parts) -> Result<SignedBy, Unsigned> {
        let (signer, edition) = self.signer();
        let signed = signer.sign(parts, None).await;
        signed.map_err(|error| unsigned(&error, self.sources.wish()))?;
        let token = parts.headers.get(TOKEN_HEADER).cloned();
        Ok(SignedBy { edition, token })
    }

    /// Who would sign a request now, if anybody.
    pub async fn at_present(&self) -> Option<SignedBy> {
        let (signer, edition) = self.signer();
        let parts = signed_head(&signer).await?;
        let token = parts.headers.get(TOKEN_HEADER).cloned();
        Some(SignedBy { edition, token })
    }

    /// Looks for credentials anew for the next request: the server says that what signed is expired. Of all who are told
    /// so at the same time the first forgets.
    pub fn forget(&self, expired: &SignedBy) {
        self.replace(expired.edition, self.fresh());
    }

    /// Looks for credentials anew because the server does not let in who signed. Returns whether others sign from now on.
    pub async fn renew(&self, refused: &SignedBy) -> bool {
        // Who is refused at the same time waits for what the first finds.
        let mut doubted = self.doubted.lock().await;
        if self.current().edition != refused.edition {
            return true;
        }
        let is_known = |(edition, at): (Edition, Instant)| {
            edition == refused.edition && at.elapsed() < DOUBT_EVERY
        };
        if doubted.is_some_and(is_known) {
            return false;
        }
        *doubted = Some((refused.edition, Instant::now()));
        let fresh = self.fresh();
        // That there are none just now is no news to whoever was refused.
        let Some(parts) = signed_head(&fresh).await else {
            return false;
        };
        if parts.headers.get(TOKEN_HEADER) == refused.token.as_ref() {
            return false;
        }
        self.replace(refused.edition, fresh);
        true
    }

    /// Looks for credentials when it signs first.
    fn fresh(&self) -> Signer<Credential> {
        signer(&self.region, &self.sources, &self.services)
    }

    /// Lets others sign in place of those of this edition.
    fn replace(&self, edition: Edition, signer: Signer<Credential>) {
        let mut current = self.current();
        if current.edition == edition {
            current.signer = signer;
            current.edition.0 += 1;
        }
    }

    fn signer(&self) -> (Signer<Credential>, Edition) {
        let current = self.current();
        (current.signer.clone(), current.edition)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The head of a request that goes nowhere, signed, where there are credentials to sign it.
async fn signed_head(signer: &Signer<Credential>) -> Option<Parts> {
    let mut request = http::Request::new(());
    *request.uri_mut() = http::Uri::from_static("http://localhost/");
    let (mut parts, ()) = request.into_parts();
    signer.sign(&mut parts, None).await.ok()?;
    Some(parts)
}

/// Why a request was not signed.
#[derive(Debug)]
pub(super) struct Unsigned {
    pub error: Error,
    pub outlook: Outlook,
}

/// Whether credentials that were not had may be had soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    /// A service did not answer, or is overloaded.
    Passing,
    /// They are not there, which may be so for a moment where there were some before.
    Unclear,
    /// They are refused, or a setting is wrong.
    Refused,
}

fn unsigned(error: &reqsign_core::Error, wish: &Wish) -> Unsigned {
    let is_of = |mark| error.context().iter().any(|of| of == mark);
    let is_of_web_identity = is_of(OF_WEB_IDENTITY);
    // The library takes whatever keeps a request from being answered for a fault that passes.
    let mut causes = causes_of(error).filter_map(|cause| cause.downcast_ref());
    let is_setting =
        causes.any(|cause: &reqsign_core::Error| cause.kind() == ErrorKind::ConfigInvalid);
    let is_refused = is_of_web_identity && error.context().iter().any(|of| is_refusal(of));
    let outlook = match error.is_retryable() {
        _ if is_setting || is_refused => Outlook::Refused,
        true => Outlook::Passing,
        false => Outlook::Unclear,
    };
    let kind = match outlook {
        Outlook::Passing => Kind::Unreachable,
        _ if is_setting || is_of(OF_FILE) => Kind::Usage,
        Outlook::Unclear | Outlook::Refused => Kind::Storage,
    };
    let told = match is_of_web_identity {
        true => without_role(kind, outlook, is_setting),
        false if is_of(OF_SSO) => without_sign_in(kind, wish),
        false => match (&wish.file, &wish.profile) {
            (Some(file), _) => without_keys_in(file, kind, is_of(OF_FILE), wish),
            (None, Some(profile)) => without_keys_of(profile, kind),
            (None, None) => without_any(kind, error.kind()),
        },
    };
    let error = told.cause(cause_of(error));
    Unsigned { error, outlook }
}

/// The error for a web identity that was given no role.
fn without_role(kind: Kind, outlook: Outlook, is_setting: bool) -> Error {
    let (message, hint) = match outlook {
        _ if is_setting => (
            "the service that gives roles to web identities cannot be asked",
            "set AWS_ENDPOINT_URL_STS to a URL such as https://sts.example.com, or to nothing; if the file at ca= is at fault, put it back",
        ),
        Outlook::Passing => (
            "the service that gives roles to web identities does not answer as it should",
            "check AWS_ENDPOINT_URL_STS and the network, then try again",
        ),
        Outlook::Unclear | Outlook::Refused => (
            "no role was given for the web identity",
            "check the token in the file that AWS_WEB_IDENTITY_TOKEN_FILE names, and whether the role AWS_ROLE_ARN trusts who issued it",
        ),
    };
    Error::new(kind, message).hint(hint)
}

/// The error for a profile that is signed in for (SSO), and gives no credentials.
fn without_sign_in(kind: Kind, wish: &Wish) -> Error {
    let profile = wish.profile();
    Error::new(kind, "the profile's sign-in (SSO) gives no credentials")
        .object(format!("profile {profile}"))
        .hint(format!(
            "run `aws sso login --profile {profile}`, then try again"
        ))
}

/// What is not followed in a profile.
const NOT_FOLLOWED: &str = "role_arn, source_profile and credential_process are not followed";

/// The error for the file that the URL names.
fn without_keys_in(file: &str, kind: Kind, is_unreadable: bool, wish: &Wish) -> Error {
    if is_unreadable {
        return Error::new(kind, "the file of credentials cannot be read")
            .object(file)
            .hint("credentials= names a file in the form that Amazon's tools share, with aws_access_key_id and aws_secret_access_key of a profile");
    }
    let profile = wish.profile();
    Error::new(kind, "the file of credentials holds no usable keys of the profile")
        .object(format!("{file}, profile {profile}"))
        .hint(format!(
            "write aws_access_key_id and aws_secret_access_key below [{profile}] into it, or name another profile (profile=); {NOT_FOLLOWED}"
        ))
}

/// The error for a profile that was named.
fn without_keys_of(profile: &str, kind: Kind) -> Error {
    Error::new(kind, "the profile has no usable credentials")
        .object(format!("profile {profile}"))
        .hint(format!(
            "write aws_access_key_id and aws_secret_access_key below [{profile}] into ~/.aws/credentials (AWS_SHARED_CREDENTIALS_FILE), or name another profile; {NOT_FOLLOWED}"
        ))
}

/// The error where nothing was named and nothing was found.
fn without_any(kind: Kind, of: ErrorKind) -> Error {
    let message = match of {
        ErrorKind::CredentialInvalid => "no usable credentials for the store were found",
        _ => "the credentials for the store could not be loaded",
    };
    let hint = match kind {
        // Also where a machine's metadata take a container's connection, and their answer does not reach it.
        Kind::Unreachable => {
            "try again when what gives this machine or container its role answers, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; with AWS_EC2_METADATA_DISABLED=true the machine is not asked"
        }
        _ => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached"
        }
    };
    Error::new(kind, message).hint(hint)
}

fn is_refusal(context: &str) -> bool {
    REFUSALS.contains(&context)
}

/// What an error says, and what the innermost does that it comes from.
fn cause_of(error: &reqsign_core::Error) -> String {
    let said = words_of(error);
    match causes_of(error).map_while(harmless).last() {
        Some(innermost) => format!("{said}: {innermost}"),
        None => said,
    }
}

/// What an error says itself, without the answer, or the place in a document, that it may quote.
fn words_of(error: &reqsign_core::Error) -> String {
    const OF_DOCUMENT: &str = "failed to parse";
    let said = first_line(&error.to_string());
    let is_of_service = error.context().iter().any(|of| of == OF_SERVICE);
    match said.split_once(": ") {
        Some((own, _)) if is_of_service || said.starts_with(OF_DOCUMENT) => own.to_owned(),
        _ => said,
    }
}

/// What an error says, where it is of a kind that quotes neither a file nor an answer.
fn harmless(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<reqwest::Error>() {
        return Some(innermost(error));
    }
    let is_own = error.is::<reqsign_core::Error>() || error.is::<std::io::Error>();
    is_own.then(|| first_line(&error.to_string()))
}

/// The sources, as the library asks them.
#[derive(Debug)]
struct Shared(Arc<Sources>);

impl ProvideCredential for Shared {
    type Credential = Credential;

    async fn provide_credential(
        &self,
        context: &Context,
    ) -> reqsign_core::Result<Option<Credential>> {
        self.0.find(context).await
    }
}

/// Signs a request's head, and leaves the seal for its chunks where the request has a slot for it.
#[derive(Debug)]
struct HeadsAndSeals {
    heads: RequestSigner,
    region: String,
}

impl SignRequest for HeadsAndSeals {
    type Credential = Credential;

    fn required_valid_until(
        &self,
        credential: &Credential,
        expires_in: Option<Duration>,
    ) -> Timestamp {
        self.heads.required_valid_until(credential, expires_in)
    }

    async fn sign_request(
        &self,
        context: &Context,
        parts: &mut Parts,
        credential: Option<&Credential>,
        expires_in: Option<Duration>,
    ) -> reqsign_core::Result<()> {
        let signed = self
            .heads
            .sign_request(context, parts, credential, expires_in);
        signed.await?;
        if let (Some(slot), Some(credential)) = (parts.extensions.get::<SealSlot>(), credential)
            && let Some(seal) =
                Seal::new(&credential.secret_access_key, &self.region, &parts.headers)
        {
            // A slot is filled once: each try has its own.
            let _ = slot.set(seal);
        }
        Ok(())
    }
}

fn signer(
    region: &str,
    sources: &Arc<Sources>,
    services: &CredentialServices,
) -> Signer<Credential> {
    let context = Context::new()
        .with_env(OsEnv)
        .with_file_read(Files)
        .with_http_send(services.clone());
    let requests = HeadsAndSeals {
        heads: RequestSigner::new("s3", region).with_standard_session_token(),
        region: region.to_owned(),
    };
    Signer::new(context, Shared(Arc::clone(sources)), requests)
}

/// An error's text without the context that follows it.
fn first_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(300)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nobody named anything.
    const ANYWHERE: Wish = Wish::anywhere();

    #[test]
    fn what_expired_is_forgotten_once() {
        let surroundings = super::super::location::Surroundings::default();
        let location = Location::parse("b?endpoint=http://h", &surroundings).unwrap();
        let signature = Signature::new(&location);
        let edition = || signature.current().edition;
        let by = |edition| SignedBy {
            edition,
            token: None,
        };
        let first = edition();
        signature.forget(&by(first));
        let second = edition();
        assert_ne!(first, second);
        signature.forget(&by(first));
        assert_eq!(edition(), second, "what is fresh stays");
    }

    #[test]
    fn what_is_trusted_for_the_store_is_trusted_for_what_gives_its_credentials() {
        let surroundings = super::super::location::Surroundings::default();
        let url = "b?endpoint=http://h&ca=/own.pem";
        let location = Location::parse(url, &surroundings).unwrap();
        let services = Signature::new(&location).services;
        assert_eq!(services.ca, Some("/own.pem".into()));
    }

    #[test]
    fn what_may_pass_is_unreachable_and_what_is_refused_is_told_with_its_variables() {
        let busy =
            reqsign_core::Error::rate_limited("Throttling: no").with_context(OF_WEB_IDENTITY);
        let busy = unsigned(&busy, &ANYWHERE);
        assert_eq!(busy.outlook, Outlook::Passing);
        assert_eq!(busy.error.kind(), Kind::Unreachable);
        let refused = reqsign_core::Error::credential_invalid("InvalidIdentityToken: no");
        for (error, part) in [
            (unsigned(&refused, &ANYWHERE), "AWS_ACCESS_KEY_ID"),
            (
                unsigned(&refused.with_context(OF_WEB_IDENTITY), &ANYWHERE),
                "AWS_WEB_IDENTITY_TOKEN_FILE",
            ),
        ] {
            assert_eq!(error.outlook, Outlook::Unclear);
            assert_eq!(error.error.kind(), Kind::Storage);
            let hint = error.error.hint_text().unwrap();
            assert!(hint.contains(part), "{hint}");
        }
    }

    #[test]
    fn a_web_identity_is_refused_for_good_by_what_no_later_try_changes() {
        let refused = |code: &str| {
            let error = reqsign_core::Error::credential_invalid(format!("{code}: no"));
            error.with_context(format!("error_code: {code}"))
        };
        for (code, outlook) in [
            ("AccessDenied", Outlook::Refused),
            ("InvalidIdentityToken", Outlook::Refused),
            ("IDPCommunicationError", Outlook::Unclear),
            ("ExpiredTokenException", Outlook::Unclear),
        ] {
            let of_web_identity = refused(code).with_context(OF_WEB_IDENTITY);
            assert_eq!(
                unsigned(&of_web_identity, &ANYWHERE).outlook,
                outlook,
                "{code}"
            );
            assert_eq!(
                unsigned(&refused(code), &ANYWHERE).outlook,
                Outlook::Unclear,
                "{code}"
            );
        }
    }

    #[test]
    fn an_error_says_where_it_comes_from_unless_that_may_quote_a_secret() {
        let outer = |source: reqsign_core::Error| {
            let error = reqsign_core::Error::unexpected("failed to send").with_source(source);
            error.set_retryable(true).with_context(OF_WEB_IDENTITY)
        };
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let silent = reqsign_core::Error::unexpected("does not answer").with_source(refused);
        assert_eq!(
            cause_of(&outer(silent)),
            "failed to send: connection refused"
        );
        let secret = "s3cret".parse::<u8>().unwrap_err();
        let quoted = reqsign_core::Error::unexpected("no answer").with_source(secret);
        assert_eq!(cause_of(&outer(quoted)), "failed to send: no answer");
        for quoting in [
            reqsign_core::Error::unexpected("failed to parse the token: s3cret at line 1"),
            reqsign_core::Error::unexpected("the container's service said: s3cret")
                .with_context(OF_SERVICE),
        ] {
            let said = cause_of(&quoting);
            assert!(!said.is_empty() && !said.contains("s3cret"), "{said}");
        }
        // No later try makes another URL of it.
        let setting = unsigned(
            &outer(reqsign_core::Error::config_invalid("no URL")),
            &ANYWHERE,
        );
        assert_eq!(setting.outlook, Outlook::Refused);
        assert_eq!(setting.error.kind(), Kind::Usage);
        let said = setting.error.to_string();
        assert!(said.contains("failed to send: no URL"), "{said}");
    }
}
