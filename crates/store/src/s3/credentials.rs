//! Where credentials come from, and the signature of a request.
//!
//! Invariants: the chain is that of Amazon's tools (environment, profile, SSO, web identity, container, instance
//! metadata v2) and is walked once for all shards, again only when the credentials run out; whoever bears a web
//! identity is that or nobody, so where its role is refused, or not given just now, nothing behind it is asked; no
//! error, log or debug text holds a secret, because none of them is made from a request's headers or body, nor from an
//! error that may quote one.

use std::error::Error as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use mover_base::{Error, Kind, Result};
use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, DefaultCredentialProvider,
    ProfileCredentialProvider, RequestSigner,
};
use reqsign_core::time::Timestamp;
use reqsign_core::{
    Context, ErrorKind, FileRead, HttpSend, OsEnv, ProvideCredential, SignRequest, Signer,
};
use reqwest::Url;

use super::chunked::{Seal, SealSlot};
use super::client::innermost;
use super::location::Location;

/// Time-outs towards the services that give credentials on a machine: they are near, or not there at all.
const NEAR: Reach = Reach {
    connect: Duration::from_secs(1),
    answer: Duration::from_secs(5),
    is_proxied: false,
};
/// The same towards those that give them to many, which are as far away as the store.
const FAR: Reach = Reach {
    connect: Duration::from_secs(5),
    answer: Duration::from_secs(15),
    is_proxied: true,
};
/// What marks an error of the service that gives roles to web identities.
const OF_WEB_IDENTITY: &str = "web identity";
/// How its refusals are told that no later try changes. The others may be of a token that is about to be replaced, or of
/// a service behind it.
const REFUSALS: [&str; 3] = [
    "error_code: AccessDenied",
    "error_code: IDPRejectedClaim",
    "error_code: InvalidIdentityToken",
];
/// Longest file or answer that may hold credentials, in bytes.
const CREDENTIALS_BYTES_MAX: u64 = 1 << 20;

/// Signs requests for one location; shared by all shards.
pub(super) struct Signature {
    region: String,
    profile: Option<String>,
    file: Option<String>,
    current: Mutex<Current>,
}

/// What signs at present, and how many did before.
struct Current {
    signer: Signer<Credential>,
    edition: Edition,
}

/// Tells which credentials signed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edition(u64);

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signature")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl Signature {
    pub fn new(location: &Location) -> Self {
        let file = location
            .credentials
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned());
        let (region, profile) = (location.region.clone(), location.profile.clone());
        let signer = signer(&region, profile.as_deref(), file.as_deref());
        let edition = Edition(0);
        Signature {
            region,
            profile,
            file,
            current: Mutex::new(Current { signer, edition }),
        }
    }

    /// Adds date, token and signature to a request's headers. A request that bears a slot for a seal gets one.
    pub async fn sign(&self, parts: &mut Parts) -> Result<Edition, Unsigned> {
        let (signer, edition) = {
            let current = self.current();
            (current.signer.clone(), current.edition)
        };
        let signed = signer.sign(parts, None).await;
        signed.map_err(|error| unsigned(&error))?;
        Ok(edition)
    }

    /// Walks the chain anew for the next request: the server says that what signed is expired. Of all who are told so
    /// at the same time the first forgets.
    pub fn forget(&self, expired: Edition) {
        let mut current = self.current();
        if current.edition == expired {
            current.signer = signer(&self.region, self.profile.as_deref(), self.file.as_deref());
            current.edition.0 += 1;
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

fn unsigned(error: &reqsign_core::Error) -> Unsigned {
    let is_of_web_identity = error.context().iter().any(|of| of == OF_WEB_IDENTITY);
    // The library takes whatever keeps a request from being answered for a fault that passes.
    let mut causes = sources(error).filter_map(|cause| cause.downcast_ref());
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
        Outlook::Refused if is_setting => Kind::Usage,
        Outlook::Unclear | Outlook::Refused => Kind::Storage,
    };
    let (message, hint) = match (is_of_web_identity, error.kind()) {
        (true, _) if is_setting => (
            "the service that gives roles to web identities cannot be asked",
            "set AWS_ENDPOINT_URL_STS to a URL such as https://sts.example.com, or to nothing",
        ),
        (true, _) if outlook == Outlook::Passing => (
            "the service that gives roles to web identities does not answer as it should",
            "check AWS_ENDPOINT_URL_STS and the network, then try again",
        ),
        (true, _) => (
            "no role was given for the web identity",
            "check the token in the file that AWS_WEB_IDENTITY_TOKEN_FILE names, and whether the role AWS_ROLE_ARN trusts who issued it",
        ),
        (false, kind) => (
            match kind {
                ErrorKind::CredentialInvalid => "no usable credentials for the store were found",
                _ => "the credentials for the store could not be loaded",
            },
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached",
        ),
    };
    let error = Error::new(kind, message).hint(hint).cause(cause_of(error));
    Unsigned { error, outlook }
}

fn is_refusal(context: &str) -> bool {
    REFUSALS.contains(&context)
}

/// What an error comes from, the innermost last.
fn sources(
    error: &reqsign_core::Error,
) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// What an error says, and what the innermost does that it comes from.
fn cause_of(error: &reqsign_core::Error) -> String {
    let said = first_line(&error.to_string());
    match sources(error).map_while(harmless).last() {
        Some(innermost) => format!("{said}: {innermost}"),
        None => said,
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

/// Where credentials are looked for, in this order.
#[derive(Debug)]
struct Sources {
    /// What was set for this program or this user.
    own: DefaultCredentialProvider,
    web_identity: AssumeRoleWithWebIdentityCredentialProvider,
    /// What the machine has for whoever runs on it.
    of_machine: DefaultCredentialProvider,
}

impl ProvideCredential for Sources {
    type Credential = Credential;

    async fn provide_credential(
        &self,
        context: &Context,
    ) -> reqsign_core::Result<Option<Credential>> {
        if let Some(found) = self.own.provide_credential(context).await? {
            return Ok(Some(found));
        }
        // The chains of the library take a failure for "none here" and ask on; behind a web identity that would be the
        // role of the machine, which is another's.
        let given = self.web_identity.provide_credential(context).await;
        match given.map_err(|error| error.with_context(OF_WEB_IDENTITY))? {
            Some(given) => Ok(Some(given)),
            None => self.of_machine.provide_credential(context).await,
        }
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

fn signer(region: &str, profile: Option<&str>, file: Option<&str>) -> Signer<Credential> {
    let context = Context::new()
        .with_env(OsEnv)
        .with_file_read(Files)
        .with_http_send(CredentialServices);
    let requests = HeadsAndSeals {
        heads: RequestSigner::new("s3", region).with_standard_session_token(),
        region: region.to_owned(),
    };
    // A credential process would be a program of someone else's choice run with this one's rights.
    let own = DefaultCredentialProvider::builder()
        .no_web_identity()
        .no_process()
        .no_ecs()
        .no_imds();
    if let Some(file) = file {
        // Who names a file means that file: nothing else is asked.
        let mut only = ProfileCredentialProvider::new()
            .with_credentials_file(file)
            .with_config_file(file);
        if let Some(profile) = profile {
            only = only.with_profile(profile);
        }
        return Signer::new(
            context,
            own.no_env().no_sso().profile(only).build(),
            requests,
        );
    }
    let own = match profile {
        // Who names a profile does not mean what happens to stand in the environment.
        Some(profile) => own.with_profile(profile).no_env(),
        None => own,
    };
    let of_machine = DefaultCredentialProvider::builder()
        .no_env()
        .no_profile()
        .no_sso()
        .no_web_identity()
        .no_process();
    let mut web_identity = AssumeRoleWithWebIdentityCredentialProvider::new();
    if std::env::var_os("AWS_ROLE_SESSION_NAME").is_none_or(|name| name.is_empty()) {
        // By it people find out who did something under a role.
        web_identity = web_identity.with_role_session_name("helios-mover".to_owned());
    }
    let sources = Sources {
        own: own.build(),
        web_identity,
        of_machine: of_machine.build(),
    };
    Signer::new(context, sources, requests)
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

/// Small local files: reading one blocks for less than the switch to another thread would take.
#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let failed = |error: std::io::Error| {
            reqsign_core::Error::unexpected("a file with credentials cannot be read")
                .with_source(error)
        };
        let bytes = std::fs::metadata(path).map_err(failed)?.len();
        if bytes > CREDENTIALS_BYTES_MAX {
            return Err(reqsign_core::Error::unexpected(
                "a file with credentials is longer than 1 MiB",
            ));
        }
        std::fs::read(path).map_err(failed)
    }
}

/// How a service for credentials is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reach {
    connect: Duration,
    answer: Duration,
    /// By way of the environment's proxies, if there are some.
    is_proxied: bool,
}

/// How the service at `url` is reached. What is on the machine, or beside it, speaks without TLS.
fn reach_of(url: &Url) -> Reach {
    match url.scheme() {
        "https" => FAR,
        _ => NEAR,
    }
}

/// Where a request goes that is meant for `url`: the service for roles may be another than Amazon's. A request that is
/// signed is signed for its place.
fn place_of(url: Url, is_signed: bool, sts: Option<&str>) -> Result<Url, String> {
    let is_sts = url.host_str().is_some_and(|host| host.starts_with("sts."));
    let Some(sts) = sts.filter(|_| is_sts && !is_signed) else {
        return Ok(url);
    };
    let place = Url::parse(sts).ok();
    let is_web = |place: &Url| matches!(place.scheme(), "http" | "https") && place.has_host();
    place
        .filter(is_web)
        .ok_or_else(|| "AWS_ENDPOINT_URL_STS is no URL of a web server".to_owned())
}

/// Requests to metadata and token services. A client of its own each time: they are rare, and a client belongs
/// to the runtime that it was made on.
#[derive(Debug)]
struct CredentialServices;

impl HttpSend for CredentialServices {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let failed = |error: reqwest::Error| {
            reqsign_core::Error::unexpected("a service for credentials does not answer")
                .with_source(error.without_url())
        };
        let mut request = reqwest::Request::try_from(request).map_err(failed)?;
        let is_signed = request.headers().contains_key(http::header::AUTHORIZATION);
        let sts = std::env::var("AWS_ENDPOINT_URL_STS").ok();
        let sts = sts.as_deref().filter(|url| !url.is_empty());
        let place = place_of(request.url().clone(), is_signed, sts)
            .map_err(reqsign_core::Error::config_invalid)?;
        let reach = reach_of(&place);
        *request.url_mut() = place;
        let client = reqwest::Client::builder()
            .connect_timeout(reach.connect)
            .timeout(reach.answer)
            .redirect(reqwest::redirect::Policy::none());
        let client = match reach.is_proxied {
            true => client,
            false => client.no_proxy(),
        };
        let client = client.build().map_err(failed)?;
        let mut response = client.execute(request).await.map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if (body.len() + chunk.len()) as u64 > CREDENTIALS_BYTES_MAX {
                return Err(reqsign_core::Error::unexpected(
                    "a service for credentials answers without end",
                ));
            }
            body.extend_from_slice(&chunk);
        }
        let mut answer = http::Response::new(Bytes::from(body));
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn services_of_the_machine_are_near_and_others_may_be_behind_a_proxy() {
        for near in [
            "http://169.254.169.254/latest",
            "http://127.0.0.1:1/x",
            "http://minio:9000/",
        ] {
            assert_eq!(reach_of(&url(near)), NEAR);
        }
        assert_eq!(reach_of(&url("https://sts.amazonaws.com/")), FAR);
    }

    #[test]
    fn the_service_for_roles_may_be_elsewhere() {
        let place = |of: &str, is_signed, sts| place_of(url(of), is_signed, sts);
        let (amazon, own) = ("https://sts.eu-west-1.amazonaws.com/", "http://minio:9000/");
        assert_eq!(place(amazon, false, Some(own)), Ok(url(own)));
        assert_eq!(place(amazon, false, None), Ok(url(amazon)));
        assert_eq!(place(amazon, true, Some(own)), Ok(url(amazon)), "signed");
        let other = "https://portal.sso.eu-west-1.amazonaws.com/";
        assert_eq!(place(other, false, Some(own)), Ok(url(other)));
        for bad in ["minio:9000", "/path", "file:///x"] {
            let said = place(amazon, false, Some(bad)).unwrap_err();
            assert!(said.contains("AWS_ENDPOINT_URL_STS"), "{said}");
        }
    }

    #[test]
    fn what_expired_is_forgotten_once() {
        let surroundings = super::super::location::Surroundings::default();
        let location = Location::parse("b?endpoint=http://h", &surroundings).unwrap();
        let signature = Signature::new(&location);
        let edition = || signature.current().edition;
        let first = edition();
        signature.forget(first);
        let second = edition();
        assert_ne!(first, second);
        signature.forget(first);
        assert_eq!(edition(), second, "what is fresh stays");
    }

    #[test]
    fn what_may_pass_is_unreachable_and_what_is_refused_is_told_with_its_variables() {
        let busy =
            reqsign_core::Error::rate_limited("Throttling: no").with_context(OF_WEB_IDENTITY);
        let busy = unsigned(&busy);
        assert_eq!(busy.outlook, Outlook::Passing);
        assert_eq!(busy.error.kind(), Kind::Unreachable);
        let refused = reqsign_core::Error::credential_invalid("InvalidIdentityToken: no");
        for (error, part) in [
            (unsigned(&refused), "AWS_ACCESS_KEY_ID"),
            (
                unsigned(&refused.with_context(OF_WEB_IDENTITY)),
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
            assert_eq!(unsigned(&of_web_identity).outlook, outlook, "{code}");
            assert_eq!(unsigned(&refused(code)).outlook, Outlook::Unclear, "{code}");
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
        // No later try makes another URL of it.
        let setting = unsigned(&outer(reqsign_core::Error::config_invalid("no URL")));
        assert_eq!(setting.outlook, Outlook::Refused);
        assert_eq!(setting.error.kind(), Kind::Usage);
        let said = setting.error.to_string();
        assert!(said.contains("failed to send: no URL"), "{said}");
    }
}
