//! A TLS handshake with whatever listens on a port of this host.
//!
//! Nobody is authenticated: the agent's certificate is its own, and nothing is said after the
//! handshake.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    ProtocolVersion, SignatureScheme,
};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What both sides have agreed to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// The version of TLS: `1.2`.
    pub version: String,
    /// The cipher suite, by its registered name.
    pub suite: String,
    /// Why the handshake ended after that, as where the other side asks for a certificate.
    pub ended: Option<String>,
}

/// Why nothing was agreed to.
#[derive(Debug, thiserror::Error)]
pub enum NoHandshake {
    /// There is no connection.
    #[error("no connection: {0}")]
    Unreachable(io::Error),
    /// Nothing came in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The other side has ended the connection without a word of TLS.
    #[error("the connection was closed without an answer")]
    Closed,
    /// What answers has no version or suite in common with this side.
    #[error("no version and suite in common ({0})")]
    NothingInCommon(String),
    /// What answers does not speak TLS, or not as it should.
    #[error("the answer is no TLS ({0})")]
    NotTls(String),
}

/// Begins TLS with what listens there, for at most this long: offers TLS 1.2 and 1.3 with the suites
/// that rustls has, which encrypt by GCM or ChaCha20 and exchange keys by ECDHE.
pub fn handshake(with: SocketAddr, patience: Duration) -> Result<Agreed, NoHandshake> {
    let deadline = Instant::now() + patience;
    let mut socket =
        TcpStream::connect_timeout(&with, patience).map_err(NoHandshake::Unreachable)?;
    let own = |error: Error| NoHandshake::Unreachable(io::Error::other(error));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(own)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let name = ServerName::IpAddress(with.ip().into());
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(own)?;
    let end = converse(&mut connection, &mut socket, deadline);
    let agreed = connection.protocol_version().zip(connection.negotiated_cipher_suite());
    match (agreed, end) {
        (Some((version, suite)), end) => Ok(Agreed {
            version: version_in_words(version),
            suite: suite_in_words(suite.suite()),
            ended: end.err().map(|end| end.to_string()),
        }),
        (None, Err(End::Late)) => Err(NoHandshake::Silent(patience)),
        (None, Err(End::Closed) | Ok(())) => Err(NoHandshake::Closed),
        (None, Err(End::Refused(error))) => Err(refusal(error)),
    }
}

/// How a conversation ends before the handshake does.
enum End {
    Late,
    Closed,
    Refused(Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("nothing more came in time"),
            Self::Closed => f.write_str("the connection was closed"),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

fn converse(
    connection: &mut ClientConnection,
    socket: &mut TcpStream,
    deadline: Instant,
) -> Result<(), End> {
    let ended = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Late,
        _ => End::Closed,
    };
    while connection.is_handshaking() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(End::Late);
        }
        socket.set_write_timeout(Some(left)).map_err(ended)?;
        socket.set_read_timeout(Some(left)).map_err(ended)?;
        while connection.wants_write() {
            connection.write_tls(socket).map_err(ended)?;
        }
        if connection.read_tls(socket).map_err(ended)? == 0 {
            return Err(End::Closed);
        }
        connection.process_new_packets().map_err(End::Refused)?;
    }
    Ok(())
}

fn refusal(error: Error) -> NoHandshake {
    match error {
        Error::AlertReceived(
            alert @ (AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity),
        ) => NoHandshake::NothingInCommon(format!("it answers {alert:?}")),
        Error::PeerIncompatible(what) => NoHandshake::NothingInCommon(format!("{what:?}")),
        error => NoHandshake::NotTls(error.to_string()),
    }
}

fn version_in_words(version: ProtocolVersion) -> String {
    match version {
        ProtocolVersion::TLSv1_2 => "1.2".to_owned(),
        ProtocolVersion::TLSv1_3 => "1.3".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The registered name: rustls has a name of its own for the suites of TLS 1.3.
fn suite_in_words(suite: rustls::CipherSuite) -> String {
    let name = format!("{suite:?}");
    name.strip_prefix("TLS13_").map_or(name.clone(), |rest| format!("TLS_{rest}"))
}

/// Takes anybody for the agent.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        // Old ones, too: the agent's certificate may be old.
        vec![
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA512,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::RSA_PKCS1_SHA1,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_their_registered_names() {
        for (suite, name) in [
            (rustls::CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
            (
                rustls::CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            ),
        ] {
            assert_eq!(suite_in_words(suite), name);
        }
    }

    #[test]
    fn where_nobody_listens_there_is_no_handshake() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let refused = handshake(free.expect("a port"), Duration::from_secs(1));
        assert!(matches!(refused, Err(NoHandshake::Unreachable(_))), "{refused:?}");
    }
}
