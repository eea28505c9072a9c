//! The scripted endpoints: that each answers what it says.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // A test says what it expects.

use std::io::{Read, Write};
use std::net::TcpStream;

use mover_test_servers::{Access, AccessKey, Client, Scripted, SessionCredentials};

fn client(server: &Scripted) -> Client {
    let access = Access {
        endpoint: server.endpoint(),
        region: "us-east-1".to_owned(),
        bucket: "mover".to_owned(),
        key: AccessKey::new("id", "secret"),
        ca_file: None,
    };
    access.client()
}

/// The reply to a bare request, as it came.
fn raw(server: &Scripted, request_line: &str, headers: &[(&str, &str)]) -> String {
    let mut stream =
        TcpStream::connect(server.endpoint().replace("http://", "")).expect("it listens");
    let mut request = format!("{request_line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("it answers");
    reply
}

fn credentials(token: &str) -> SessionCredentials {
    SessionCredentials {
        access_key_id: "ROLEKEY".to_owned(),
        secret_access_key: "role-secret".to_owned(),
        token: token.to_owned(),
        expiration: "2099-01-01T00:00:00Z".to_owned(),
    }
}

#[test]
fn a_web_page_is_no_object() {
    let server = Scripted::html_page();
    let reply = client(&server).put("k", b"body").expect("a reply");
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("text/html"))
    );
    let requests = server.requests();
    assert_eq!(
        (requests[0].head.path.as_str(), requests[0].body.as_slice()),
        ("/mover/k", &b"body"[..])
    );
    let query = &requests[0].head.query;
    assert!(
        query.contains("X-Amz-Algorithm=AWS4-HMAC-SHA256"),
        "{query}"
    );
}

#[test]
fn a_bucket_elsewhere_names_its_region() {
    let reply = client(&Scripted::other_region("eu-west-3"))
        .get("k")
        .expect("a reply");
    assert_eq!(
        (reply.status, reply.code().as_deref()),
        (301, Some("PermanentRedirect"))
    );
    assert_eq!(reply.header("x-amz-bucket-region"), Some("eu-west-3"));
}

#[test]
fn an_endless_list_goes_on_with_the_same_or_new_tokens() {
    for (same_token, expected) in [(true, true), (false, false)] {
        let server = Scripted::endless_list(same_token);
        let page = || raw(&server, "GET /mover?list-type=2", &[]);
        let (first, second) = (page(), page());
        assert!(first.contains("<IsTruncated>true</IsTruncated>"), "{first}");
        let token = |page: &str| {
            let (_, rest) = page.split_once("<NextContinuationToken>").expect("a token");
            rest.split_once('<').expect("its end").0.to_owned()
        };
        assert_eq!(token(&first) == token(&second), expected);
    }
}

#[test]
fn metadata_is_given_for_a_token_only() {
    let server = Scripted::instance_metadata(
        "mover-role",
        &[credentials("role-token"), credentials("next-token")],
    );
    let roles = "GET /latest/meta-data/iam/security-credentials/";
    assert!(raw(&server, roles, &[]).starts_with("HTTP/1.1 401 "));
    let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "21600")];
    let token = raw(&server, "PUT /latest/api/token", &ttl);
    let token = token.split_once("\r\n\r\n").expect("a body").1;
    let header = [("X-aws-ec2-metadata-token", token)];
    assert!(raw(&server, roles, &header).ends_with("mover-role"));
    let role = raw(&server, &format!("{roles}mover-role"), &header);
    assert!(
        role.contains("\"Token\":\"role-token\"") && role.contains("Success"),
        "{role}"
    );
    for _ in 0..2 {
        let next = raw(&server, &format!("{roles}mover-role"), &header);
        assert!(next.contains("\"Token\":\"next-token\""), "{next}");
    }
    assert!(raw(&server, &format!("{roles}other"), &header).starts_with("HTTP/1.1 404 "));
}

#[test]
fn container_credentials_are_given_for_the_right_authorization_only() {
    let server = Scripted::container_credentials("container-secret", &[credentials("token")]);
    assert!(raw(&server, "GET /creds", &[]).starts_with("HTTP/1.1 401 "));
    let reply = raw(
        &server,
        "GET /creds",
        &[("Authorization", "container-secret")],
    );
    assert!(reply.contains("\"AccessKeyId\":\"ROLEKEY\""), "{reply}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_role_is_given_for_the_token_whose_turn_it_is() {
    let arn = "arn:aws:iam::1:role/mover";
    let given = [
        ("one", credentials("first")),
        ("a+b/c=", credentials("second")),
    ];
    let server = Scripted::web_identity(arn, &given);
    let asked = |role: &str, token: &str| {
        let body = format!(
            "Action=AssumeRoleWithWebIdentity&RoleArn={role}&WebIdentityToken={token}&Version=2011-06-15&RoleSessionName=s"
        );
        let mut stream =
            TcpStream::connect(server.endpoint().replace("http://", "")).expect("it listens");
        let bytes = body.len();
        write!(
            stream,
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n{body}"
        )
        .expect("it reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("it answers");
        reply
    };
    let role = "arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fmover";
    let refused = asked(role, "other");
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    assert!(
        refused.contains("<Code>InvalidIdentityToken</Code>"),
        "{refused}"
    );
    assert!(asked("arn", "one").starts_with("HTTP/1.1 400 "));
    for (token, session) in [
        ("one", "first"),
        ("a%2Bb%2Fc%3D", "second"),
        ("a%2Bb%2Fc%3D", "second"),
    ] {
        let reply = asked(role, token);
        let expected = format!("<SessionToken>{session}</SessionToken>");
        assert!(
            reply.starts_with("HTTP/1.1 200 ") && reply.contains(&expected),
            "{reply}"
        );
    }
    assert!(
        asked(role, "one").starts_with("HTTP/1.1 400 "),
        "its turn is over"
    );
}
