//! The public listener with TLS: browsers' protocols, the command line, and a certificate that changes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::tls::TlsInfo;
use reqwest::{Response, Version};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::archive::{archive, example};
use crate::client::Client;
use crate::platform::{Form, Platform, program, until};
use crate::websocket::WebSocket;

const PATIENCE: Duration = Duration::from_secs(30);

/// An authority, and a certificate of it as files.
pub(crate) struct Certificates {
    directory: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    pub(crate) fn make() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let made = Self { directory: tempfile::tempdir()?, authority };
        std::fs::write(made.path("ca.pem"), made.authority.pem())?;
        made.renew()?;
        Ok(made)
    }

    /// Puts a fresh certificate into the files.
    fn renew(&self) -> Result<Vec<u8>> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        let certificate = params.signed_by(&key, &self.authority)?;
        std::fs::write(self.path("key.pem"), key.serialize_pem())?;
        std::fs::write(self.path("cert.pem"), certificate.pem())?;
        Ok(certificate.der().to_vec())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) async fn platform(&self, form: Form, settings: &[(&str, &str)]) -> Result<Platform> {
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| self.path(name).display().to_string());
        let files = [("TLS_CERT_FILE", certificate.as_str()), ("TLS_KEY_FILE", key.as_str())];
        let authority = reqwest::Certificate::from_der(self.authority.der())?;
        Platform::start_behind(Some(authority), form, &[&files[..], settings].concat()).await
    }

    /// What makes connections that speak one of these.
    pub(crate) fn connector(&self, protocols: &[&[u8]]) -> Result<TlsConnector> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// A connection that speaks one of these.
    pub(crate) async fn handshake(&self, port: u16, protocols: &[&[u8]]) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        Ok(self.connector(protocols)?.connect("localhost".try_into()?, stream).await?)
    }
}

fn probe() -> Vec<u8> {
    let manifest = "contract = \"http\"\naccess = \"public\"\n";
    archive(&[("index.js", include_str!("programs/probe.js")), ("dartcloud.toml", manifest)])
}

/// A call whose body and answer go on at once.
struct Duplex<S> {
    words: mpsc::Sender<Bytes>,
    answer: S,
}

async fn duplex(client: &Client, path: &str) -> Result<Duplex<impl Stream<Item = reqwest::Result<Bytes>> + Unpin>> {
    let (words, heard) = mpsc::channel::<Bytes>(1);
    words.send("first".into()).await?;
    let body = stream::unfold(heard, async |mut heard| Some((Ok::<_, std::io::Error>(heard.recv().await?), heard)));
    let body = reqwest::Body::wrap_stream(body.boxed());
    let answer = client.request("POST", &format!("{path}/echo")).body(body).send().await?.error_for_status()?;
    ensure!(answer.version() == Version::HTTP_2, "{:?}", answer.version());
    let mut duplex = Duplex { words, answer: answer.bytes_stream().boxed() };
    ensure!(duplex.answer.next().await.context("no echo")?? == "first");
    Ok(duplex)
}

impl<S: Stream<Item = reqwest::Result<Bytes>> + Unpin> Duplex<S> {
    async fn turn(&mut self, word: &'static str) -> Result<()> {
        self.words.send(word.into()).await?;
        let echo = tokio::time::timeout(PATIENCE, self.answer.next()).await?.context("the stream ended")??;
        ensure!(echo == word, "{echo:?}");
        Ok(())
    }
}

fn shown(answer: &Response) -> Option<&[u8]> {
    answer.extensions().get::<TlsInfo>()?.peer_certificate()
}

#[tokio::test]
async fn both_protocols_streams_and_a_new_certificate() -> Result<()> {
    let certificates = Certificates::make()?;
    let platform = certificates.platform(Form::Dev, &[]).await?;
    let user = platform.user().await?;
    let deployed = user.deploy("probe", probe()).await?.expect(201)?;
    let path = format!("/f/{}/probe", user.handle);
    ensure!(deployed["url"] == format!("{}{path}", platform.url()), "{deployed}");
    let old = Client { http: platform.http().http1_only().build()?, ..user.clone() };
    for (client, version) in [(&user, Version::HTTP_2), (&old, Version::HTTP_11)] {
        let answer = client.request("GET", &format!("{path}/?a=b")).send().await?;
        ensure!(answer.version() == version, "{:?}", answer.version());
        let seen: serde_json::Value = answer.json().await?;
        let headers = &seen["headers"];
        ensure!(seen["url"] == "/?a=b" && headers["x-forwarded-proto"] == "https", "{seen}");
        ensure!(headers["host"] == platform.url().trim_start_matches("https://"), "{seen}");
        let invoked = client.invoke("probe", json!({})).await?.expect(200)?;
        ensure!(invoked["success"] == true, "{invoked}");
    }
    let mut socket =
        WebSocket::over(certificates.handshake(platform.port(), &[]).await?, &format!("{path}/socket")).await?;
    socket.send("over TLS").await?;
    ensure!(socket.receive().await? == "over TLS");

    // A stream that its client takes back ends at the function, too; its neighbours go on.
    let mut both_ways = duplex(&user, &path).await?;
    let mut forever = user.request("GET", &format!("{path}/forever")).send().await?;
    ensure!(forever.chunk().await?.context("it ended")? == "begun\n");
    ensure!(user.get(&format!("{path}/count")).await?.expect(200)?["open"] == 2);
    drop(forever);
    until("the function sees the client go", PATIENCE, async || {
        let count = user.get(&format!("{path}/count")).await?.expect(200)?;
        Ok((count["open"] == 1).then_some(()))
    })
    .await?;
    both_ways.turn("second").await?;

    let renewed = certificates.renew()?;
    until("the new certificate is shown", PATIENCE, async || {
        let answer = platform.http().tls_info(true).build()?.get(platform.url()).send().await?;
        Ok((shown(&answer) == Some(&renewed)).then_some(()))
    })
    .await?;
    both_ways.turn("third").await?;
    socket.send("still here").await?;
    ensure!(socket.receive().await? == "still here");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_believes_whom_it_is_told() -> Result<()> {
    let certificates = Certificates::make()?;
    let platform = certificates.platform(Form::Dev, &[]).await?;
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("hello"))?;
    std::fs::write(folder.path().join("hello.tar.gz"), example("hello-python"))?;
    let unpacked =
        Command::new("tar").args(["xzf", "hello.tar.gz", "-C", "hello"]).current_dir(folder.path()).status()?;
    ensure!(unpacked.success());
    let (data_dir, ca) = (platform.data_dir(), certificates.path("ca.pem"));
    let run = |ca: Option<&Path>, arguments: &[&str]| -> Result<(bool, String)> {
        let mut command = Command::new(program("dartcloud"));
        command.args(arguments).current_dir(folder.path());
        command.env("DATA_DIR", data_dir).env("XDG_CONFIG_HOME", folder.path());
        command.envs(ca.map(|path| ("DARTCLOUD_CA_FILE", path)));
        let output = command.output()?;
        let said = [&output.stdout[..], &output.stderr].concat();
        Ok((output.status.success(), String::from_utf8(said)?))
    };
    let (done, said) = run(Some(&ca), &["deploy", "hello", "--name", "hello"])?;
    ensure!(done && said.contains("https://localhost:"), "{said}");
    let (done, said) = run(Some(&ca), &["invoke", "hello", "--body", r#"{"name": "Ada"}"#])?;
    ensure!(done && said.contains("Hello, Ada!"), "{said}");
    let (done, said) = run(None, &["list"])?;
    ensure!(!done && said.contains("DARTCLOUD_CA_FILE"), "{said}");
    let (done, said) = run(Some(&certificates.path("key.pem")), &["list"])?;
    ensure!(!done && said.contains("no certificate"), "{said}");
    Ok(())
}
