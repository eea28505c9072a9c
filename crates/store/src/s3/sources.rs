//! Where credentials are looked for, and the files and services that hold them.
//!
//! Invariants: the order is that of Amazon's tools (environment, profile, SSO, web identity, container, instance metadata
//! v2); who names a file or a profile means that, and nothing behind it is asked, since that would be another's role; of
//! what is set up and fails the failure is told, for the same reason, and a machine's metadata count as set up where somebody
//! answers; the kind of source that gave the first credentials of a job gives all of them; no error is made from what may quote
//! a secret.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider,
    EnvCredentialProvider, IMDSv2CredentialProvider, ProfileCredentialProvider,
    SSOCredentialProvider,
};
use reqsign_core::{Context, ErrorKind, FileRead, HttpSend, ProvideCredential};
use reqwest::Url;

use super::location::Location;
use super::trust;

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
pub(super) const OF_WEB_IDENTITY: &str = "web identity";
/// What marks an error of the service that gives roles to who has signed in.
pub(super) const OF_SSO: &str = "SSO";
/// What marks an error that may hold what a service of the container or the machine said.
pub(super) const OF_SERVICE: &str = "service";
/// What marks that the file which the URL names cannot be read.
pub(super) const OF_FILE: &str = "file of credentials";
/// Longest file or answer that may hold credentials, in bytes.
const CREDENTIALS_BYTES_MAX: u64 = 1 << 20;

/// What the URL and the environment say about where credentials are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// This file holds them, and nothing else is asked.
    pub file: Option<String>,
    /// The profile that was named.
    pub profile: Option<String>,
    /// Whether the URL named it: who does so does not mean what happens to stand in the environment.
    is_profile_of_url: bool,
}

impl Wish {
    pub fn new(location: &Location) -> Self {
        let of_environment = || std::env::var("AWS_PROFILE").ok();
        let profile = location.profile.clone().or_else(of_environment);
        let file = location.credentials.as_ref();
        Wish {
            file: file.map(|path| path.to_string_lossy().into_owned()),
            profile: profile.filter(|name| !name.is_empty()),
            is_profile_of_url: location.profile.is_some(),
        }
    }

    /// Where nobody named anything.
    #[cfg(test)]
    pub const fn anywhere() -> Self {
        Wish {
            file: None,
            profile: None,
            is_profile_of_url: false,
        }
    }

    /// The profile that is read.
    pub fn profile(&self) -> &str {
        self.profile.as_deref().unwrap_or("default")
    }

    fn order(&self) -> &'static [Source] {
        use Source::{Container, Environment, Machine, Profile, Sso, WebIdentity};
        match (&self.file, &self.profile) {
            (Some(_), _) => &[Profile],
            (None, Some(_)) if self.is_profile_of_url => &[Profile, Sso],
            (None, Some(_)) => &[Environment, Profile, Sso],
            (None, None) => &[Environment, Profile, Sso, WebIdentity, Container, Machine],
        }
    }
}

/// A kind of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Environment,
    Profile,
    Sso,
    WebIdentity,
    Container,
    Machine,
}

/// Looks for credentials as a wish says.
#[derive(Debug)]
pub(super) struct Sources {
    wish: Wish,
    /// What gave the first credentials.
    first: OnceLock<Source>,
    profile: ProfileCredentialProvider,
    sso: SSOCredentialProvider,
    web_identity: AssumeRoleWithWebIdentityCredentialProvider,
    container: ECSCredentialProvider,
    machine: IMDSv2CredentialProvider,
}

impl Sources {
    pub fn new(wish: Wish) -> Self {
        let mut profile = ProfileCredentialProvider::new().with_profile(wish.profile());
        if let Some(file) = &wish.file {
            profile = profile.with_credentials_file(file).with_config_file(file);
        }
        let mut web_identity = AssumeRoleWithWebIdentityCredentialProvider::new();
        if std::env::var_os("AWS_ROLE_SESSION_NAME").is_none_or(|name| name.is_empty()) {
            // By it people find out who did something under a role.
            web_identity = web_identity.with_role_session_name("helios-mover".to_owned());
        }
        Sources {
            profile,
            sso: SSOCredentialProvider::new().with_profile(wish.profile()),
            web_identity,
            container: ECSCredentialProvider::new(),
            machine: IMDSv2CredentialProvider::new(),
            wish,
            first: OnceLock::new(),
        }
    }

    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// Credentials for the context's files and services.
    pub async fn find(&self, context: &Context) -> reqsign_core::Result<Option<Credential>> {
        let first = self.first.get();
        let order = self.wish.order().iter();
        for source in order.filter(|source| first.is_none_or(|first| first == *source)) {
            if let Some(found) = self.ask(*source, context).await? {
                // Shards that look at the same time find the same.
                let _ = self.first.set(*source);
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn ask(
        &self,
        source: Source,
        context: &Context,
    ) -> reqsign_core::Result<Option<Credential>> {
        match source {
            Source::Environment => {
                let environment = EnvCredentialProvider::new();
                environment.provide_credential(context).await
            }
            Source::Profile => {
                // The library takes a file that cannot be read for one that holds nothing.
                if let Some(file) = &self.wish.file {
                    let path = context.expand_home_dir(file);
                    let read = context.file_read(path.as_deref().unwrap_or(file)).await;
                    read.map_err(|error| error.with_context(OF_FILE))?;
                }
                self.profile.provide_credential(context).await
            }
            Source::Sso => {
                let given = self.sso.provide_credential(context).await;
                given.map_err(|error| error.with_context(OF_SSO))
            }
            Source::WebIdentity => {
                let given = self.web_identity.provide_credential(context).await;
                given.map_err(|error| error.with_context(OF_WEB_IDENTITY))
            }
            Source::Container => {
                let given = self.container.provide_credential(context).await;
                given.map_err(of_service)
            }
            Source::Machine => match self.machine.provide_credential(context).await {
                // Most machines have none.
                Err(error) if self.first.get().is_none() && is_no_metadata(&error) => Ok(None),
                given => given.map_err(of_service),
            },
        }
    }
}

/// What an error comes from, the innermost last.
pub(super) fn causes_of(
    error: &reqsign_core::Error,
) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// Whether there are no metadata of a machine: nobody is there to be asked, or whoever is knows of no role. Who is there and says
/// nothing, or that it cannot just now, may have one, and so may who goes away behind the first of the questions.
fn is_no_metadata(error: &reqsign_core::Error) -> bool {
    /// What the library says where that failed, which is for a token.
    const OF_FIRST: &str = "failed to connect to IMDS";
    let is_of_first = error.to_string() == OF_FIRST;
    let mut causes = causes_of(error).filter_map(|cause| cause.downcast_ref());
    error.kind() == ErrorKind::ConfigInvalid
        || is_of_first && causes.any(|cause: &reqwest::Error| cause.is_connect())
}

/// The error as one of a service of the container or the machine. That it was asked too often the library takes for an answer that
/// will stay.
fn of_service(error: reqsign_core::Error) -> reqsign_core::Error {
    let mut context = error.context().iter();
    let is_throttled = context.any(|of| of.starts_with("http_status: 429"));
    let may_pass = error.is_retryable() || is_throttled;
    error.set_retryable(may_pass).with_context(OF_SERVICE)
}

/// Small local files: reading one blocks for less than the switch to another thread would take.
#[derive(Debug)]
pub(super) struct Files;

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
#[derive(Debug, Clone, Default)]
pub(super) struct CredentialServices {
    /// File of certificates to trust beside the system's, where TLS is spoken: whoever has a store of their own often gives roles
    /// themselves too.
    pub ca: Option<PathBuf>,
}

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
        let client = match &self.ca {
            Some(ca) if reach.is_proxied => {
                let tls = trust::config(ca);
                let unusable = |error: mover_base::Error| {
                    reqsign_core::Error::config_invalid(error.to_string())
                };
                client.tls_backend_preconfigured(tls.map_err(unusable)?)
            }
            _ => client,
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
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use mover_test_servers::{FaultProxy, Reply, Scripted};
    use reqsign_core::StaticEnv;

    use super::super::location::Surroundings;
    use super::super::tls::of_certificate;
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

    /// What a service at `url` answers to whoever trusts the certificates at `ca`.
    async fn asked(url: &str, ca: Option<PathBuf>) -> reqsign_core::Result<http::Response<Bytes>> {
        let request = http::Request::get(url).body(Bytes::new()).unwrap();
        CredentialServices { ca }.http_send(request).await
    }

    #[tokio::test]
    async fn a_service_of_an_authority_of_ones_own_is_trusted_where_the_url_names_that() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        let service = Scripted::start(|_, _| Reply::new(200, "given"));
        let over_tls = FaultProxy::start_tls(&service.endpoint(), &ca);
        let url = format!("{}/", over_tls.endpoint());
        let answer = asked(&url, Some(ca)).await.unwrap();
        assert_eq!(answer.body()[..], *b"given");

        let refused = asked(&url, None).await.unwrap_err();
        let mut causes = causes_of(&refused).filter_map(|cause| cause.downcast_ref());
        assert!(
            causes.any(|cause: &reqwest::Error| of_certificate(cause).is_some()),
            "{refused:?}"
        );
        let unusable = directory.path().join("absent.pem");
        let wrong = asked(&url, Some(unusable.clone())).await.unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::ConfigInvalid);
        assert!(!wrong.is_retryable());
        assert!(wrong.to_string().contains("absent.pem"), "{wrong}");
        assert_eq!(service.requests().len(), 1);
        // Who speaks without TLS shows no certificate.
        let near = format!("{}/", service.endpoint());
        asked(&near, Some(unusable)).await.unwrap();
        assert_eq!(service.requests().len(), 2);
    }

    /// An environment with keys in it, or with nothing.
    fn context(has_keys: bool) -> Context {
        let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "no")];
        let disabled = [("AWS_EC2_METADATA_DISABLED", "true")];
        let keys = keys.into_iter().filter(|_| has_keys);
        let all = keys.chain(disabled);
        let envs = all.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Context::new().with_file_read(Files).with_env(StaticEnv {
            home_dir: None,
            envs: envs.collect(),
        })
    }

    /// Whoever lost the keys of the environment in the middle of a job would go on as somebody else.
    #[tokio::test]
    async fn the_kind_of_source_stays_what_it_was() {
        let sources = Sources::new(Wish::anywhere());
        assert!(sources.find(&context(false)).await.unwrap().is_none());
        assert_eq!(sources.first.get(), None);
        assert!(sources.find(&context(true)).await.unwrap().is_some());
        assert_eq!(sources.first.get(), Some(&Source::Environment));
        sources.find(&context(true)).await.unwrap().unwrap();
        let other = Sources::new(Wish::anywhere());
        other.first.set(Source::Machine).unwrap();
        assert!(other.find(&context(true)).await.unwrap().is_none());
    }

    /// What is found where there is nothing but a machine's metadata, at `endpoint`.
    async fn found_on_machine(endpoint: &str) -> reqsign_core::Result<Option<Credential>> {
        let metadata = "AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned();
        let environment = StaticEnv {
            home_dir: None,
            envs: [(metadata, endpoint.to_owned())].into_iter().collect(),
        };
        let context = Context::new()
            .with_file_read(Files)
            .with_http_send(CredentialServices::default())
            .with_env(environment);
        Sources::new(Wish::anywhere()).find(&context).await
    }

    #[tokio::test]
    async fn a_machine_without_metadata_is_told_from_one_whose_metadata_have_their_troubles() {
        let nobody = found_on_machine("http://127.0.0.1:9").await;
        assert!(nobody.unwrap().is_none());
        for (status, is_there, may_pass) in [
            (404, false, false),
            (403, true, false),
            (429, true, true),
            (500, true, true),
            (503, true, true),
        ] {
            let service = Scripted::start(move |_, _| Reply::new(status, ""));
            match found_on_machine(&service.endpoint()).await {
                Ok(found) => assert!(found.is_none() && !is_there, "{status}"),
                Err(error) => {
                    assert!(is_there, "{status}: {error}");
                    assert_eq!(error.is_retryable(), may_pass, "{status}: {error}");
                    assert!(error.context().iter().any(|of| of == OF_SERVICE));
                }
            }
            assert_eq!(service.requests().len(), 1, "{status}");
        }
    }

    #[tokio::test]
    async fn a_machine_whose_metadata_go_away_behind_a_token_may_have_a_role() {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", service.local_addr().unwrap());
        let answering = thread::spawn(move || {
            let (mut client, _) = service.accept().unwrap();
            // Before it is answered, so that its next question finds nobody.
            drop(service);
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") {
                client.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\ntoken";
            client.write_all(answer).unwrap();
            head
        });
        let error = found_on_machine(&endpoint).await.unwrap_err();
        let head = answering.join().unwrap();
        assert!(head.starts_with(b"PUT /latest/api/token"));
        assert!(error.is_retryable(), "{error}");
        assert!(error.context().iter().any(|of| of == OF_SERVICE));
    }

    #[test]
    fn who_names_a_profile_or_a_file_is_given_no_other_role() {
        let order = |options: &str| {
            let place = format!("b?endpoint=http://h{options}");
            let location = Location::parse(&place, &Surroundings::default()).unwrap();
            Wish::new(&location).order()
        };
        assert_eq!(order("&credentials=/keys"), [Source::Profile]);
        assert_eq!(order("&credentials=/keys&profile=x"), [Source::Profile]);
        assert_eq!(order("&profile=x"), [Source::Profile, Source::Sso]);
        let of_environment = Wish {
            file: None,
            profile: Some("x".into()),
            is_profile_of_url: false,
        };
        assert_eq!(
            of_environment.order(),
            [Source::Environment, Source::Profile, Source::Sso]
        );
    }
}
